//! `Container`: the requests that the platform makes of a container, over a few connections that are kept.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::error::{Error, Result};
use crate::frontend::sagemaker::failure::{Code, Original, ServiceError};
use crate::frontend::sagemaker::target::{CUSTOM_ATTRIBUTES, TARGET_MODEL};

/// How long the container may take to accept a connection. The platform allows 250 ms; who is slower is told of.
const CONNECT: Duration = Duration::from_secs(2);

/// What the platform allows.
const CONNECT_ALLOWED: Duration = Duration::from_millis(250);

/// How long `GET /ping` may take.
const PING: Duration = Duration::from_secs(2);

/// Connections that wait for the next request.
const MOST_IDLE: usize = 64;

/// How long they do: less than any server keeps them.
const IDLE: Duration = Duration::from_secs(1);

/// The largest answer, in bytes: what the runtime API hands through.
const ANSWER_BYTES: usize = 6_291_456;

/// What the container said.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why it said nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Silence {
    /// Nobody listens there: the container does not run, and holds nothing.
    Refused,
    /// It takes no connection.
    Unreachable(String),
    /// It broke off.
    Broken(String),
    /// It did not answer in time.
    Late(Duration),
    /// It answered more than may be handed through.
    TooLarge,
}

impl Silence {
    /// As the runtime API tells it. What the container did is told by status 0.
    pub(super) fn error(&self) -> ServiceError {
        let text = match self {
            Self::Refused => {
                return ServiceError::new(Code::Unavailable, "the container does not run").retry_after(1);
            }
            Self::Unreachable(why) => {
                let text = format!("the container takes no connection: {why}");
                return ServiceError::new(Code::Unavailable, text).retry_after(1);
            }
            Self::Broken(why) => format!("the container broke off: {why}"),
            Self::Late(limit) => format!("the container did not answer within {} s", limit.as_secs_f64()),
            Self::TooLarge => format!("the container answered more than {ANSWER_BYTES} bytes"),
        };
        let message = format!("Received server error (0) from primary with message \"{text}\"");
        ServiceError {
            original: Some(Original { status: 0, message: text }),
            ..ServiceError::new(Code::Model, message)
        }
    }
}

/// What of an invocation the container sees.
#[derive(Clone, Debug)]
pub(super) struct Invocation {
    pub(super) content_type: Option<HeaderValue>,
    pub(super) accept: Option<HeaderValue>,
    pub(super) custom_attributes: Option<HeaderValue>,
    pub(super) body: Bytes,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Container {
    addresses: Vec<SocketAddr>,
    authority: String,
    idle: Mutex<Vec<(Instant, SendRequest<Full<Bytes>>)>>,
}

impl Container {
    /// Reads `http://HOST:PORT`, where the host is this one.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no such URL, or not on loopback; `Unsupported` for `https://`.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("--container '{url}' is no URL such as http://127.0.0.1:8080"));
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = full.parse().map_err(|error| wrong().with_source(error))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(Error::unsupported(format!("--container '{url}': containers speak http://"))),
            _ => return Err(wrong()),
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong());
        }
        let host = authority.host().trim_matches(['[', ']']);
        let ips = if host.eq_ignore_ascii_case("localhost") {
            vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
        } else {
            let ip = host.parse::<IpAddr>().ok().filter(|ip| ip.to_canonical().is_loopback());
            vec![ip.ok_or_else(|| {
                Error::invalid(format!(
                    "--container '{url}' is not on this machine: the platform's side is played against containers on \
                     127.0.0.0/8, ::1 or localhost alone"
                ))
            })?]
        };
        let port = match authority.as_str().strip_prefix(authority.host()) {
            None | Some("") => 80,
            Some(port) => {
                let port = port.strip_prefix(':').and_then(|port| port.parse::<u16>().ok());
                port.filter(|port| *port > 0).ok_or_else(wrong)?
            }
        };
        let addresses = ips.into_iter().map(|ip| SocketAddr::new(ip, port)).collect();
        Ok(Self { addresses, authority: authority.as_str().to_owned(), idle: Mutex::default() })
    }

    /// Its address, for people.
    pub(super) fn name(&self) -> &str {
        &self.authority
    }

    /// The status of `GET /ping`.
    pub(super) async fn ping(&self) -> Result<StatusCode, Silence> {
        self.ask(Method::GET, "/ping", HeaderMap::new(), Bytes::new(), PING).await.map(|answer| answer.status)
    }

    /// The status of `GET /models`, which only containers of multi-model endpoints have.
    pub(super) async fn models(&self) -> Result<StatusCode, Silence> {
        self.ask(Method::GET, "/models", HeaderMap::new(), Bytes::new(), PING).await.map(|answer| answer.status)
    }

    /// `POST /models`: the model `hash`, which people call `target`, lies in `folder`.
    pub(super) async fn load(
        &self,
        hash: &str,
        target: &str,
        folder: &Path,
        limit: Duration,
    ) -> Result<Answer, Silence> {
        let body = serde_json::json!({ "model_name": hash, "url": folder.to_string_lossy() }).to_string();
        let mut headers = named(target);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.ask(Method::POST, "/models", headers, body.into(), limit).await
    }

    /// `DELETE /models/{hash}`.
    pub(super) async fn unload(&self, hash: &str, target: &str, limit: Duration) -> Result<Answer, Silence> {
        self.ask(Method::DELETE, &format!("/models/{hash}"), named(target), Bytes::new(), limit).await
    }

    /// `POST /models/{hash}/invoke`.
    pub(super) async fn invoke(
        &self,
        hash: &str,
        target: &str,
        call: &Invocation,
        limit: Duration,
    ) -> Result<Answer, Silence> {
        let mut headers = named(target);
        let handed =
            [(CONTENT_TYPE, &call.content_type), (ACCEPT, &call.accept), (CUSTOM_ATTRIBUTES, &call.custom_attributes)];
        for (name, value) in handed {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
        self.ask(Method::POST, &format!("/models/{hash}/invoke"), headers, call.body.clone(), limit).await
    }

    /// Drops the connections that wait: the next request is made over a new one.
    pub(super) fn hang_up(&self) {
        self.idle.lock().clear();
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        mut headers: HeaderMap,
        body: Bytes,
        limit: Duration,
    ) -> Result<Answer, Silence> {
        let broken = |error: &dyn std::error::Error| Silence::Broken(chain(error));
        headers.insert(HOST, HeaderValue::from_str(&self.authority).map_err(|error| broken(&error))?);
        if method != Method::GET {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|error| broken(&error))?;
        *request.headers_mut() = headers;
        tokio::time::timeout(limit, self.converse(request)).await.unwrap_or(Err(Silence::Late(limit)))
    }

    async fn converse(&self, mut request: Request<Full<Bytes>>) -> Result<Answer, Silence> {
        let (mut sender, response) = loop {
            let (mut sender, is_new) = match self.kept() {
                Some(sender) => (sender, false),
                None => (self.connect().await?, true),
            };
            match sender.try_send_request(request).await {
                Ok(response) => break (sender, response),
                Err(mut error) => match error.take_message() {
                    // The server had closed a kept connection: nothing was sent yet.
                    Some(unsent) if !is_new => request = unsent,
                    _ => return Err(Silence::Broken(chain(error.error()))),
                },
            }
        };
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { Silence::TooLarge } else { Silence::Broken(chain(&*error)) }
        })?;
        // Not kept where the server closes it, or where its end has not been seen yet.
        if futures_util::poll!(std::pin::pin!(sender.ready())).is_ready() && !sender.is_closed() {
            self.keep(sender);
        }
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    }

    fn kept(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock();
        idle.retain(|(since, sender)| since.elapsed() < IDLE && sender.is_ready());
        idle.pop().map(|(_, sender)| sender)
    }

    fn keep(&self, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock();
        if idle.len() < MOST_IDLE {
            idle.push((Instant::now(), sender));
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Silence> {
        let unreachable = |error: &dyn std::error::Error| Silence::Unreachable(chain(error));
        let begun = Instant::now();
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect(&*self.addresses)).await;
        let stream = stream.map_err(|error| unreachable(&error))?.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => Silence::Refused,
            _ => unreachable(&error),
        })?;
        let took = begun.elapsed();
        if took > CONNECT_ALLOWED {
            tracing::warn!(?took, "the container is slow to accept a connection: SageMaker allows 250 ms");
        }
        // Small requests wait for nobody.
        let _unchanged = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
        // Ends with its sender.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the container ended with an error");
            }
        });
        Ok(sender)
    }
}

/// The header by which the container's log names a model.
fn named(target: &str) -> HeaderMap {
    let value = HeaderValue::from_bytes(target.as_bytes()).ok();
    value.into_iter().map(|value| (TARGET_MODEL, value)).collect()
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn only_this_machine_is_spoken_to() {
        for url in
            ["http://127.0.0.1:8080", "127.8.9.10:1", "http://[::1]:8080/", "http://LOCALHOST", "[::ffff:127.0.0.1]:80"]
        {
            let container = Container::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert!(container.addresses.iter().all(|address| address.ip().to_canonical().is_loopback()), "{url}");
        }
        for url in
            ["http://10.0.0.1:8080", "http://0.0.0.0:8080", "http://example.com", "http://[::2]:1", "127.0.0.1.nip.io"]
        {
            let error = Container::parse(url).unwrap_err();
            assert!(error.report().contains("not on this machine"), "{url}: {}", error.report());
        }
    }

    #[test]
    fn what_is_no_url_of_a_container_is_refused() {
        for url in [
            "",
            "http://",
            "ftp://127.0.0.1",
            "http://me@127.0.0.1",
            "http://127.0.0.1/x",
            "http://127.0.0.1?x",
            "127.0.0.1:0",
            "127.0.0.1:99999",
        ] {
            assert_eq!(Container::parse(url).unwrap_err().kind(), ErrorKind::InvalidArgument, "{url}");
        }
        assert_eq!(Container::parse("https://127.0.0.1").unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

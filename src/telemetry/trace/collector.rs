//! An OpenTelemetry collector: OTLP over HTTP (opentelemetry.io/docs/specs/otlp), protobuf, one connection a message.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};

/// How long the collector may take for one message.
const LIMIT: Duration = Duration::from_secs(10);

/// How often a message is sent that the collector could not take for the moment, and the pauses between.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// How much of an answer is read, in bytes.
const ANSWER_BYTES: usize = 64 << 10;

/// Where spans are sent.
#[derive(Clone, Debug)]
pub(super) struct Collector {
    host: String,
    port: u16,
    authority: String,
    path: String,
}

/// Why a message was not taken.
struct Refused {
    error: Error,
    /// Whether it may be taken later.
    later: bool,
}

impl Collector {
    /// Reads `http://HOST[:PORT]/PATH`, with or without the scheme, as Triton's option has it.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no such URL, `Unsupported` for `https://`.
    pub(super) fn at(url: &str) -> Result<Self> {
        let option = "--trace-config opentelemetry,url";
        let wrong = || Error::invalid(format!("{option}={url} is no URL such as http://localhost:4318/v1/traces"));
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = full.parse().map_err(|error| wrong().with_source(error))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                let text =
                    format!("{option}={url}: spans are sent over http:// alone; run a collector beside the server");
                return Err(Error::unsupported(text));
            }
            _ => return Err(wrong()),
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        let host = authority.host().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }

    /// Sends a message, some times where the collector cannot take it for the moment; once the server stops, only once.
    /// How many of its spans the collector rejected.
    ///
    /// # Errors
    /// `NotReady` where it cannot be reached or did not take the message.
    pub(super) async fn send(&self, message: Vec<u8>, stop: &CancellationToken) -> Result<u64> {
        let message = Bytes::from(message);
        let mut pauses = PAUSES.into_iter();
        loop {
            let Refused { error, later } = match self.send_once(message.clone()).await {
                Ok(rejected) => return Ok(rejected),
                Err(refused) => refused,
            };
            let pause = pauses.next().filter(|_| later && !stop.is_cancelled());
            let Some(pause) = pause else { return Err(error) };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn send_once(&self, message: Bytes) -> Result<u64, Refused> {
        tokio::time::timeout(LIMIT, self.converse(message)).await.unwrap_or_else(|_elapsed| {
            let text = format!("the collector at {} did not answer within {} s", self.authority, LIMIT.as_secs());
            Err(Refused { error: Error::new(ErrorKind::DeadlineExceeded, text), later: true })
        })
    }

    async fn converse(&self, message: Bytes) -> Result<u64, Refused> {
        let broken = |what: &str| Error::not_ready(format!("{what} the collector at {}", self.authority));
        let later = |error: Error| Refused { error, later: true };
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| later(broken("cannot reach").with_source(error)))?;
        let lost = |error: hyper::Error| later(broken("lost").with_source(error));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let request = Request::post(self.path.as_str())
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/x-protobuf")
            .header(USER_AGENT, concat!("roundhouse/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(message))
            .map_err(|error| Refused { error: broken("cannot ask").with_source(error), later: false })?;
        let asked = async {
            let response = sender.send_request(request).await.map_err(lost)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES).collect().await;
            Ok((status, body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
        };
        let driven = async {
            // It ends with the answer, or with an error that the request has too.
            let _ended = connection.await;
            std::future::pending::<()>().await;
        };
        let (status, body) = tokio::select! {
            answered = asked => answered?,
            () = driven => return Err(later(broken("lost"))),
        };
        if status.is_success() {
            let partial = ExportTraceServiceResponse::decode(body).ok().and_then(|answer| answer.partial_success);
            return Ok(partial.map_or(0, |partial| partial.rejected_spans.max(0).unsigned_abs()));
        }
        let later = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        let text = format!("the collector at {} answered {status}", self.authority);
        Err(Refused { error: Error::not_ready(text), later })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_with_and_without_a_scheme() {
        let at = |url: &str| {
            let collector = Collector::at(url).unwrap();
            (collector.host, collector.port, collector.path)
        };
        assert_eq!(at("localhost:4318/v1/traces"), ("localhost".into(), 4318, "/v1/traces".into()));
        assert_eq!(at("http://[::1]:9/a?b=c"), ("::1".into(), 9, "/a?b=c".into()));
        assert_eq!(at("http://otel"), ("otel".into(), 80, "/".into()));
    }

    #[test]
    fn what_cannot_be_sent_to_is_refused_by_its_option() {
        for url in ["", "http://", "ftp://x/", "http://me:secret@host/", "http://a b"] {
            let text = Collector::at(url).unwrap_err().report();
            assert!(text.contains("opentelemetry,url"), "{text}");
        }
        assert_eq!(Collector::at("https://x/v1/traces").unwrap_err().kind(), ErrorKind::Unsupported);
    }
}

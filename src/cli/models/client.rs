//! A small HTTP/1.1 client for a server of ours: one connection a request, no TLS.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::error::{Error, ErrorKind, Result};

/// How long the server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// The largest answer: ten thousand rows are a twentieth of it.
const ANSWER_BYTES: usize = 256 << 20;

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// Name or address, without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// What `Host` says.
    authority: String,
    /// A path that all routes are below, where a proxy puts them there; without a slash at its end.
    prefix: String,
}

impl Server {
    /// Reads `http://HOST[:PORT][/PREFIX]`, with or without the scheme.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no such URL, `Unsupported` for `https://`.
    pub(super) fn parse(url: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("--url '{url}' is no URL such as http://localhost:8000"));
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = full.parse().map_err(|error| wrong().with_source(error))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(Error::unsupported(format!(
                    "--url '{url}': this command speaks http:// alone; name the server's own port, or a tunnel to it"
                )));
            }
            _ => return Err(wrong()),
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        let host = authority.host().trim_matches(['[', ']']);
        if host.is_empty() || uri.query().is_some() {
            return Err(wrong());
        }
        Ok(Self {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// Asks with `method` for `path`, within `limit` where there is one. The body of a success.
    ///
    /// # Errors
    /// `NotReady` if the server cannot be reached; the server's own error; `Internal` for an answer that is no HTTP.
    pub(super) async fn ask(&self, method: Method, path: &str, limit: Option<Duration>) -> Result<Bytes> {
        let Some(limit) = limit else { return self.converse(method, path).await };
        tokio::time::timeout(limit, self.converse(method, path)).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("http://{} did not answer within {} s", self.authority, limit.as_secs()),
            ))
        })
    }

    async fn converse(&self, method: Method, path: &str) -> Result<Bytes> {
        let broken = |error: hyper::Error| {
            Error::not_ready(format!("http://{} broke off; is it a Roundhouse server?", self.authority))
                .with_source(error)
        };
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.prefix))
            .header(HOST, &self.authority)
            .header(CONTENT_LENGTH, 0)
            .body(Full::<Bytes>::default())
            .map_err(|error| Error::invalid(format!("cannot ask for {path}")).with_source(error))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES)
            .collect()
            .await
            .map_err(|error| Error::not_ready("the server's answer broke off").with_source(Broken(error)))?
            .to_bytes();
        driver.abort();
        if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
    }

    async fn connect(&self) -> Result<TcpStream> {
        let unreachable = || {
            Error::not_ready(format!(
                "cannot reach a server at http://{}: start one with `roundhouse serve`, or name another one with --url",
                self.authority
            ))
        };
        match tokio::time::timeout(CONNECT, TcpStream::connect((self.host.as_str(), self.port))).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(unreachable().with_source(error)),
            Err(late) => Err(unreachable().with_source(late)),
        }
    }
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Broken(Box<dyn std::error::Error + Send + Sync>);

/// The error that a body of `{"error", "code"}` tells; the status where it has another form.
fn refusal(status: http::StatusCode, body: &[u8]) -> Error {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let told = body["error"].as_str().filter(|text| !text.is_empty());
    let kind = body["code"].as_str().and_then(|code| ErrorKind::ALL.into_iter().find(|kind| kind.code() == code));
    match told {
        Some(text) if text != "Not Found" => Error::new(kind.unwrap_or(ErrorKind::Internal), text.to_owned()),
        _ => Error::not_ready(format!(
            "the server answered {status}: it is no Roundhouse server that knows this command"
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(url: &str) -> (String, u16, String) {
        let server = Server::parse(url).unwrap();
        (server.host, server.port, server.prefix)
    }

    #[test]
    fn a_url_gives_host_port_and_prefix() {
        assert_eq!(parts("http://localhost:8000"), ("localhost".into(), 8000, String::new()));
        assert_eq!(parts("10.0.0.1:9000/"), ("10.0.0.1".into(), 9000, String::new()));
        assert_eq!(parts("http://[::1]:8000/models/"), ("::1".into(), 8000, "/models".into()));
        assert_eq!(parts("gpu-7"), ("gpu-7".into(), 80, String::new()));
    }

    #[test]
    fn https_is_not_offered_and_says_so() {
        let error = Server::parse("https://localhost").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.report().contains("http:// alone"), "{}", error.report());
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for url in ["", "http://", "ftp://localhost", "http://a b", "http://me:secret@host", "http://host?x=1", "://"] {
            assert_eq!(Server::parse(url).unwrap_err().kind(), ErrorKind::InvalidArgument, "{url}");
        }
    }

    #[test]
    fn a_refusal_keeps_the_servers_text_and_kind() {
        let refused = refusal(http::StatusCode::NOT_FOUND, br#"{"error":"no model 'x'","code":"not_found"}"#);
        assert_eq!((refused.kind(), refused.report()), (ErrorKind::NotFound, "no model 'x'".to_owned()));
        for body in [&b"<html>"[..], b"", b"{}", br#"{"error":"Not Found","code":"not_found"}"#] {
            let refused = refusal(http::StatusCode::NOT_FOUND, body);
            assert!(refused.report().contains("no Roundhouse server"), "{}", refused.report());
        }
    }

    proptest! {
        #[test]
        fn no_url_makes_reading_panic(url in any::<String>()) {
            let _ = Server::parse(&url);
        }
    }
}

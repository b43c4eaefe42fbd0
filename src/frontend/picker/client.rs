//! Asking an instance: HTTP/1.1 without TLS over one connection that is kept.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST};
use http::{HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::digest::DIGEST_BYTES;
use crate::error::Error;

/// How long an instance may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Silence {
    /// Nobody listens there, or nobody is there at all.
    #[error("it cannot be reached")]
    Refused(#[source] std::io::Error),
    /// It did not answer in time, or broke off.
    #[error("{0}")]
    Broken(String),
}

impl From<Silence> for Error {
    fn from(silence: Silence) -> Self {
        match silence {
            Silence::Refused(error) => Self::not_ready("it cannot be reached").with_source(error),
            Silence::Broken(text) => Self::not_ready(text),
        }
    }
}

/// An instance.
pub(super) struct Instance {
    address: String,
    token: Option<HeaderValue>,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Instance {
    pub(super) const fn at(address: String, token: Option<HeaderValue>) -> Self {
        Self { address, token, connection: None }
    }

    /// Asks within `limit`. The body of a success; an answer that is none is an error with its status.
    pub(super) async fn ask(&mut self, method: Method, path: &str, limit: Duration) -> Result<Bytes, Silence> {
        let asked = tokio::time::timeout(limit, self.converse(method, path)).await;
        let answered = asked.unwrap_or_else(|_elapsed| {
            Err(Silence::Broken(format!("it did not answer within {} ms", limit.as_millis())))
        });
        if answered.is_err() {
            self.connection = None;
        }
        answered
    }

    /// Connects; the address that we are seen at there.
    pub(super) async fn seen_at(&mut self) -> Result<IpAddr, Silence> {
        let (sender, own) = self.connect().await?;
        self.connection = Some(sender);
        Ok(own)
    }

    async fn converse(&mut self, method: Method, path: &str) -> Result<Bytes, Silence> {
        let broken = |error: &dyn std::error::Error| Silence::Broken(error.to_string());
        // The other side may have closed it since.
        let kept = match self.connection.take() {
            Some(mut kept) => kept.ready().await.is_ok().then_some(kept),
            None => None,
        };
        let mut sender = match kept {
            Some(kept) => kept,
            None => self.connect().await?.0,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.as_str())
            .header(CONTENT_LENGTH, 0)
            .body(Full::<Bytes>::default())
            .map_err(|error| broken(&error))?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), DIGEST_BYTES)
            .collect()
            .await
            .map_err(|error| Silence::Broken(format!("its answer broke off: {error}")))?
            .to_bytes();
        self.connection = Some(sender);
        match status.is_success() {
            true => Ok(body),
            false => Err(Silence::Broken(format!("it answered {status}"))),
        }
    }

    /// A connection, and our address on it.
    async fn connect(&self) -> Result<(SendRequest<Full<Bytes>>, IpAddr), Silence> {
        let connected = tokio::time::timeout(CONNECT, TcpStream::connect(self.address.as_str())).await;
        let stream = connected.map_err(|late| Silence::Refused(late.into()))?.map_err(Silence::Refused)?;
        let own = stream.local_addr().map_err(Silence::Refused)?.ip();
        let shaken = http1::handshake(TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|error| Silence::Broken(error.to_string()))?;
        // Ends with the sender.
        drop(tokio::spawn(connection));
        Ok((sender, own))
    }
}

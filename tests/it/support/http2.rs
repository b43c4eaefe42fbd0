//! A client of HTTP/2, over whatever it is given.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::client::{Request, Response};
use super::within;

/// One connection.
#[derive(Clone)]
pub(crate) struct Http2 {
    sender: SendRequest<Full<Bytes>>,
}

impl Http2 {
    /// Speaks HTTP/2 at once, without asking whether the server does.
    pub(crate) async fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let executor = TokioExecutor::new();
        let mut builder = hyper::client::conn::http2::Builder::new(executor);
        let (sender, connection) = builder.max_concurrent_streams(1000).handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    /// Whether the server has not ended the connection.
    pub(crate) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a request and reads the answer.
    pub(crate) async fn ask(&self, request: &Request) -> Response {
        self.try_ask(request).await.unwrap()
    }

    /// The same where the server may cut it off.
    pub(crate) async fn try_ask(&self, request: &Request) -> hyper::Result<Response> {
        let mut sender = self.sender.clone();
        within("an answer over HTTP/2", async {
            sender.ready().await?;
            let answer = sender.send_request(request.to_http()).await?;
            let (head, body) = answer.into_parts();
            assert_eq!(head.version, http::Version::HTTP_2);
            let headers = head.headers.iter();
            let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
            let body = body.collect().await?.to_bytes().to_vec();
            Ok(Response { status: head.status.as_u16(), headers, body })
        })
        .await
    }
}

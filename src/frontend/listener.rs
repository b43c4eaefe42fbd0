//! Accepting connections, agreeing on a protocol with each, and letting them end well: HTTP/1.1 and HTTP/2, in clear text
//! or under TLS.

mod bulk;
mod http2;
mod open;
pub mod tls;
mod transport;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::http2::Http2Options;
use self::open::{Opened, Version};
use self::tls::Tls;
use self::transport::Transport;

/// How long a connection may be idle, or take to send the head of a request: longer than the idle time of the usual
/// proxies and load balancers before us (60 s), so that they close first.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// The largest head of a request plus what is read ahead of a body.
const BUFFER: usize = 512 << 10;

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Either: in clear text a client says HTTP/2 with its first bytes (prior knowledge), under TLS by ALPN.
    Http1AndHttp2,
    /// HTTP/2 alone, as gRPC wants it.
    Http2,
}

/// How a port is served.
#[derive(Clone, Debug)]
pub struct Serving {
    /// No connection is accepted any more from then on, and each ends after the requests it is at.
    pub shutdown: CancellationToken,
    /// Tracks each connection; one task each, and with HTTP/2 one more a request.
    pub connections: TaskTracker,
    /// Connections at a time, those that have not agreed on a protocol yet included.
    pub limit: usize,
    /// What is spoken.
    pub wire: Wire,
    /// Limits and times of HTTP/2.
    pub http2: Http2Options,
    /// The certificate; clear text if `None`.
    pub tls: Option<Tls>,
}

impl Serving {
    /// HTTP/1.1 and HTTP/2 in clear text, within the usual limits.
    #[must_use]
    pub fn new(shutdown: CancellationToken, connections: TaskTracker, limit: usize) -> Self {
        let (wire, http2) = (Wire::Http1AndHttp2, Http2Options::default());
        Self { shutdown, connections, limit, wire, http2, tls: None }
    }
}

/// What a handler gives back: an answer, always.
pub type Answered<B> = Result<Response<B>, Infallible>;

/// Serves `listener` until the shutdown.
pub async fn serve<H, F, B>(listener: TcpListener, handler: H, serving: Serving)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answered<B>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let places = Arc::new(Semaphore::new(serving.limit.clamp(1, Semaphore::MAX_PERMITS)));
    let serving = Arc::new(serving);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = serving.shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, place)) => {
                let conversation = converse(stream, handler.clone(), Arc::clone(&serving));
                serving.connections.spawn(async move {
                    conversation.await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, mostly: connections that end make room.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// The next connection, once there is a place for it; until then it waits in the system's queue.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _peer) = listener.accept().await?;
    Ok((stream, place))
}

async fn converse<H, F, B>(stream: TcpStream, handler: H, serving: Arc<Serving>)
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Answered<B>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let mut ending = pin!(serving.shutdown.cancelled());
    let opened = tokio::select! {
        biased;
        opened = open::open(stream, serving.wire, serving.tls.as_ref()) => opened,
        () = ending.as_mut() => return,
    };
    let ended = match opened {
        Ok(Some(Opened { transport, version: Version::Http1 })) => http1(transport, handler, ending).await,
        // In a box, so that connections of HTTP/1 do not carry its weight.
        Ok(Some(Opened { transport, version: Version::Http2 })) => {
            Box::pin(http2::converse(transport, handler, &serving.http2, ending)).await
        }
        Ok(None) => Ok(()),
        Err(error) => {
            tracing::debug!(%error, "connection ended before its first request");
            Ok(())
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended with an error");
    }
}

async fn http1<H, F, B>(
    transport: Transport,
    handler: H,
    ending: Pin<&mut impl Future<Output = ()>>,
) -> hyper::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Answered<B>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER)
        .pipeline_flush(true)
        .serve_connection(TokioIo::new(transport), service_fn(handler));
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = ending => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

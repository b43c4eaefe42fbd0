//! Connections of HTTP/2 (RFC 9113), with limits on what a client may have the server do and keep.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::Request;
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::{Instant, sleep_until};

use super::bulk::Bulk;
use super::transport::Transport;
use super::{Answered, HEAD_TIMEOUT};

/// Streams that a client opened and reset before they were looked at; more end the connection (rapid reset,
/// CVE-2023-44487).
const PENDING_RESETS: usize = 64;

/// Streams that the client's faults had us reset; more end the connection (CVE-2025-8671).
const OUR_RESETS: usize = 256;

/// Limits and times of HTTP/2. The defaults are those of the ports that speak HTTP/1 as well.
#[derive(Clone, Copy, Debug)]
pub struct Http2Options {
    /// Requests at a time on one connection.
    pub max_concurrent_streams: u32,
    /// After which silence a client is asked whether it is there; never if `None`.
    pub keepalive_interval: Option<Duration>,
    /// How long it may take to say so.
    pub keepalive_timeout: Duration,
    /// Bytes of one request that may come before they are read.
    pub stream_window: u32,
    /// Bytes of all requests of a connection that may come before they are read.
    pub connection_window: u32,
    /// The largest frame that is taken, in bytes; 16 KiB to 16 MiB - 1.
    pub frame: u32,
    /// The largest head of a request, unpacked, in bytes as RFC 9113, 6.5.2 counts them.
    pub header_list: u32,
    /// Bytes of one answer that may wait for the client.
    pub send_buffer: usize,
    /// After how long without a request a connection ends; never if `None`.
    pub idle: Option<Duration>,
    /// After how long a connection ends, so that a balancer may move its client; never if `None`.
    pub age: Option<Duration>,
    /// How long requests in flight may take then; for ever if `None`.
    pub age_grace: Option<Duration>,
}

impl Default for Http2Options {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 256,
            keepalive_interval: Some(Duration::from_secs(60)),
            keepalive_timeout: Duration::from_secs(20),
            stream_window: 1 << 20,
            connection_window: 4 << 20,
            frame: 16 << 10,
            header_list: 64 << 10,
            send_buffer: 400 << 10,
            idle: Some(HEAD_TIMEOUT),
            age: None,
            age_grace: None,
        }
    }
}

impl Http2Options {
    fn builder(&self) -> http2::Builder<TokioExecutor> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(self.max_concurrent_streams)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(OUR_RESETS)
            .keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .initial_stream_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(self.frame)
            .max_header_list_size(self.header_list)
            .max_send_buf_size(self.send_buffer);
        builder
    }
}

/// What happens on a connection, for who looks now and then whether anything does.
#[derive(Default)]
struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// Counts a request as ended, also one that was cancelled.
struct Running(Arc<Activity>);

impl Running {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.begun.fetch_add(1, Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Relaxed);
    }
}

impl Activity {
    /// Whether nothing runs and nothing began since `begun` requests had.
    fn is_quiet_since(&self, begun: u64) -> bool {
        self.begun.load(Relaxed) == begun && self.ended.load(Relaxed) == begun
    }
}

/// Serves one connection, whose preface has come already, until the client leaves, `ending` is there, or its time is over.
pub(super) async fn converse<H, F, B>(
    transport: Transport,
    handler: H,
    options: &Http2Options,
    mut ending: Pin<&mut impl Future<Output = ()>>,
) -> hyper::Result<()>
where
    H: Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    F: Future<Output = Answered<B>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let activity = Arc::new(Activity::default());
    let service = {
        let activity = Arc::clone(&activity);
        service_fn(move |request| {
            let running = Running::begin(&activity);
            let answer = handler(request);
            async move {
                let answered = answer.await;
                drop(running);
                answered
            }
        })
    };
    let mut connection = pin!(options.builder().serve_connection(TokioIo::new(Bulk::new(transport)), service));
    let opened = Instant::now();
    let mut seen = 0;
    let mut look = options.idle.map(|idle| opened + idle);
    let mut aged = options.age.map(|age| opened + age);
    let mut cut = None;
    let mut is_ending = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = ending.as_mut(), if !is_ending => is_ending = true,
            () = until(look), if !is_ending => {
                is_ending = activity.is_quiet_since(seen);
                seen = activity.begun.load(Relaxed);
                look = options.idle.map(|idle| Instant::now() + idle);
            }
            () = until(aged), if !is_ending => {
                aged = None;
                is_ending = true;
                cut = options.age_grace.map(|grace| Instant::now() + grace);
            }
            () = until(cut), if cut.is_some() => return Ok(()),
        }
        if is_ending {
            // Says GOAWAY, answers what has been asked, and closes. To say so again changes nothing.
            connection.as_mut().graceful_shutdown();
        }
    }
}

/// Waits for that time; for ever without one.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

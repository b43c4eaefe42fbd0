//! Bodies: read whole within limits and laid out so that tensors are aligned; written in pieces without a copy.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use http::HeaderMap;
use http::header::{CONTENT_LENGTH, EXPECT};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::trace_headers::Sending;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::Deadline;

/// Tensors behind a JSON header of known length begin at a multiple of this, as kernels like them.
const ALIGNMENT: usize = 64;

/// A piece of a body shorter than this counts against the limit on pieces, in bytes.
const CRUMB: usize = 64;

/// The most that is set aside for a body before it comes, in bytes.
const RESERVED: usize = 16 << 20;

/// How much of a refused body is read and thrown away so that the connection can go on.
const DRAIN_FACTOR: u64 = 2;

/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// What a request body may be.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Bytes.
    pub bytes: usize,
    /// Crumbs it may arrive in where no length was announced.
    pub chunks: usize,
    /// By when it must be there; a client that trickles holds memory.
    pub deadline: Option<Deadline>,
    /// The option that sets `bytes`, for the error.
    pub flag: &'static str,
}

/// A response body: pieces, written in order with gathered writes, then what is still being made.
#[derive(Default)]
pub struct Body {
    pieces: VecDeque<Bytes>,
    left: u64,
    /// Held until the connection has taken all of it.
    sending: Option<Sending>,
    rest: Option<Rest>,
}

/// Pieces that come one by one.
type Rest = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut body = f.debug_struct("Body");
        body.field("pieces", &self.pieces).field("left", &self.left).field("streams", &self.rest.is_some()).finish()
    }
}

impl Body {
    /// One piece.
    #[must_use]
    pub fn full(bytes: Bytes) -> Self {
        Self::pieces([bytes])
    }

    /// Pieces in order.
    #[must_use]
    pub fn pieces(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let pieces: VecDeque<_> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        let left = pieces.iter().map(|piece| piece.len() as u64).sum();
        Self { pieces, left, sending: None, rest: None }
    }

    /// Has the request's trace say when it has left.
    pub fn trace(&mut self, sending: Sending) {
        self.sending = Some(sending);
    }

    /// The body with each piece that is there already in another form.
    #[must_use]
    pub fn map(self, form: impl FnMut(Bytes) -> Bytes) -> Self {
        let Self { pieces, rest, sending, .. } = self;
        Self { rest, sending, ..Self::pieces(pieces.into_iter().map(form)) }
    }

    /// Pieces as they come, none of them made before the one before it was taken. Each is sent at once.
    #[must_use]
    pub fn streamed(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self { rest: Some(Box::pin(pieces)), ..Self::default() }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(piece) = self.pieces.pop_front() {
            self.left -= piece.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let piece = ready!(rest.as_mut().poll_next(context));
        if piece.is_none() {
            self.rest = None;
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rest.is_none() { SizeHint::with_exact(self.left) } else { SizeHint::default() }
    }
}

/// Reads a whole body. With `header_length` the bytes behind the JSON header begin aligned.
///
/// # Errors
/// `TooLarge` naming the limit, after reading what was announced as far as that is bearable, so that the connection
/// survives; `InvalidArgument` if the body breaks off.
pub async fn read(
    mut body: Incoming,
    headers: &HeaderMap,
    header_length: Option<usize>,
    limits: &BodyLimits,
) -> Result<Bytes> {
    let announced = body.size_hint().exact();
    if let Some(length) = announced
        && length > limits.bytes as u64
    {
        // Who waits for a go-ahead has not sent the body yet.
        if !headers.contains_key(EXPECT) && length <= (limits.bytes as u64).saturating_mul(DRAIN_FACTOR) {
            drain(&mut body, length, limits).await;
        }
        return Err(too_large(limits));
    }
    let rest = async {
        let Some(first) = next_piece(&mut body).await? else { return Ok(Bytes::new()) };
        if first.len() > limits.bytes {
            drain(&mut body, limits.bytes as u64, limits).await;
            return Err(too_large(limits));
        }
        if announced == Some(first.len() as u64) || body.is_end_stream() {
            return Ok(first);
        }
        gather(body, first, announced, header_length, limits).await
    };
    let Some(deadline) = limits.deadline else { return rest.await };
    tokio::pin!(rest);
    // Small bodies come with the head: no timer for those.
    if let Poll::Ready(whole) = futures_util::poll!(rest.as_mut()) {
        return whole;
    }
    tokio::time::timeout_at(deadline.instant().into(), rest).await.unwrap_or_else(|_elapsed| {
        Err(Error::new(ErrorKind::DeadlineExceeded, "the request body was not there by the request's deadline"))
    })
}

async fn gather(
    mut body: Incoming,
    first: Bytes,
    announced: Option<u64>,
    header_length: Option<usize>,
    limits: &BodyLimits,
) -> Result<Bytes> {
    let announced = announced.and_then(|length| usize::try_from(length).ok());
    // What is announced is not believed beyond this: the buffer grows as the body comes.
    let capacity = announced.unwrap_or(first.len() * 4).min(RESERVED) + ALIGNMENT;
    let mut whole = Vec::with_capacity(capacity);
    let skip = match header_length {
        Some(header) if announced.is_some() => {
            (whole.as_ptr() as usize).wrapping_add(header).wrapping_neg() % ALIGNMENT
        }
        _ => 0,
    };
    whole.resize(skip, 0);
    whole.extend_from_slice(&first);
    let mut pieces = 1_usize;
    while let Some(piece) = next_piece(&mut body).await? {
        // A long body in segments of the network's size is no abuse; one in crumbs is.
        pieces += usize::from(piece.len() < CRUMB);
        if pieces > limits.chunks && announced.is_none() {
            drain(&mut body, limits.bytes as u64, limits).await;
            return Err(Error::too_large(format!(
                "the body came in more than {} pieces of under {CRUMB} bytes",
                limits.chunks
            )));
        }
        if whole.len() - skip + piece.len() > limits.bytes {
            drain(&mut body, limits.bytes as u64, limits).await;
            return Err(too_large(limits));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(Bytes::from(whole).slice(skip..))
}

async fn next_piece(body: &mut Incoming) -> Result<Option<Bytes>> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(error)) => {
                return Err(Error::invalid("the request body broke off before its end").with_source(error));
            }
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Reads and throws away up to `bytes`, for no longer than the request's deadline and a few seconds: a client that sends
/// them slowly, or never, loses its connection rather than holding it.
async fn drain(body: &mut Incoming, bytes: u64, limits: &BodyLimits) {
    let latest = Instant::now() + DRAIN_TIME;
    let end = limits.deadline.map_or(latest, |deadline| deadline.instant().min(latest));
    let pieces = async {
        let mut left = bytes;
        while left > 0 {
            match next_piece(body).await {
                Ok(Some(piece)) => left = left.saturating_sub(piece.len() as u64),
                Ok(None) | Err(_) => return,
            }
        }
    };
    // Whatever came, the answer is the same.
    let _elapsed = tokio::time::timeout_at(end.into(), pieces).await;
}

fn too_large(limits: &BodyLimits) -> Error {
    Error::too_large(format!("the request body is larger than {} {}", limits.flag, limits.bytes))
}

/// The announced length of a body, if it is a number.
#[must_use]
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// When an answer must be there: the earliest of the request's own timeout, its headers', and the server's.
#[must_use]
pub fn deadline(
    arrived: Instant,
    own: Option<Duration>,
    headers: &HeaderMap,
    server: Option<Duration>,
) -> Option<Deadline> {
    let shortest = [own, header_timeout(headers), server].into_iter().flatten().min()?;
    Deadline::after(arrived, shortest)
}

/// The milliseconds a caller or the proxy before us is willing to wait.
fn header_timeout(headers: &HeaderMap) -> Option<Duration> {
    ["x-request-timeout-ms", "x-envoy-expected-rq-timeout-ms"]
        .iter()
        .filter_map(|name| headers.get(*name)?.to_str().ok()?.trim().parse().ok())
        .filter(|ms| *ms > 0)
        .min()
        .map(Duration::from_millis)
}

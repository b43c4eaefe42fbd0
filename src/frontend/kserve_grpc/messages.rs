//! gRPC's messages out of the body of a request: a prefix of five bytes (compressed or not, length), then the message.
//! Source: gRPC over HTTP/2, in the documentation of gRPC.

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};

use super::super::compression::{self, Encoding};
use super::buffers::Buffers;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::Deadline;

/// How the messages of a request are compressed, and those of an answer.
pub(in crate::frontend) const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// What the other side can read.
pub(in crate::frontend) const ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// What this side can read.
pub(in crate::frontend) const OFFERED: HeaderValue = HeaderValue::from_static("identity,deflate,gzip");

/// A tensor that ends a message begins at a multiple of this where its own length is one.
const ALIGNMENT: usize = 64;

/// The most that is set aside for a message before it comes, in bytes.
const RESERVED: usize = 16 << 20;

/// The messages of one request.
pub(in crate::frontend) struct Messages {
    body: Incoming,
    /// What came behind the last message.
    held: Bytes,
    encoding: Encoding,
    limit: usize,
    buffers: Buffers,
}

impl Messages {
    /// Those in `body`, each of at most `limit` bytes, before and after decompression.
    pub(in crate::frontend) fn new(
        headers: &HeaderMap,
        body: Incoming,
        limit: usize,
        buffers: &Buffers,
    ) -> Result<Self> {
        let encoding = match headers.get(ENCODING).map(|value| value.to_str().unwrap_or("?")) {
            None | Some("identity") => Encoding::Identity,
            Some("gzip") => Encoding::Gzip,
            Some("deflate") => Encoding::Deflate,
            Some(other) => {
                return Err(Error::unsupported(format!(
                    "grpc-encoding '{}' is not offered: send messages as gzip, deflate or identity",
                    other.chars().take(32).collect::<String>()
                )));
            }
        };
        Ok(Self { body, held: Bytes::new(), encoding, limit, buffers: buffers.clone() })
    }

    /// The only message of a call, and the end of its body, by `deadline`.
    pub(in crate::frontend) async fn only(mut self, deadline: Option<Deadline>) -> Result<Bytes> {
        let read = async {
            let message = self.next().await?.ok_or_else(|| Error::invalid("the call came without a message"))?;
            // Most often the end came with the message.
            if self.held.is_empty() && self.body.is_end_stream() {
                return Ok(message);
            }
            match self.next().await? {
                None => Ok(message),
                Some(_) => Err(Error::invalid("the call came with more than one message")),
            }
        };
        tokio::pin!(read);
        let Some(deadline) = deadline else { return read.await };
        // Small messages come with the head: no timer for those.
        if let std::task::Poll::Ready(message) = futures_util::poll!(read.as_mut()) {
            return message;
        }
        tokio::time::timeout_at(deadline.instant().into(), read).await.unwrap_or_else(|_elapsed| {
            Err(Error::new(ErrorKind::DeadlineExceeded, "the message was not there by the request's deadline"))
        })
    }

    /// The next message; `None` after the last.
    pub(in crate::frontend) async fn next(&mut self) -> Result<Option<Bytes>> {
        let mut prefix = [0; 5];
        let mut there = 0;
        while there < prefix.len() {
            if self.held.is_empty() {
                match next_piece(&mut self.body).await? {
                    Some(piece) => self.held = piece,
                    None if there == 0 => return Ok(None),
                    None => return Err(broke_off()),
                }
            }
            let count = self.held.len().min(prefix.len() - there);
            if let Some(place) = prefix.get_mut(there..there + count) {
                self.held.copy_to_slice(place);
            }
            there += count;
        }
        let [flag, length @ ..] = prefix;
        let length = u32::from_be_bytes(length) as usize;
        if length > self.limit {
            return Err(Error::too_large(format!(
                "the message of {length} bytes is larger than --grpc-max-message-bytes {}",
                self.limit
            )));
        }
        let message = if self.held.len() >= length { self.held.split_to(length) } else { self.gather(length).await? };
        match flag {
            0 => Ok(Some(message)),
            1 if self.encoding == Encoding::Identity => {
                Err(Error::invalid("the message is marked as compressed, but the call names no grpc-encoding"))
            }
            1 => compression::expand(self.encoding, message, self.limit, "--grpc-max-message-bytes").await.map(Some),
            other => Err(Error::invalid(format!("a message begins with the unknown flag {other}"))),
        }
    }

    /// A message that came in several pieces. Not more is set aside than has come, but for the first megabytes.
    async fn gather(&mut self, length: usize) -> Result<Bytes> {
        let mut whole = self.buffers.take(length.min(RESERVED) + ALIGNMENT);
        let skip = (whole.as_ptr() as usize).wrapping_add(length).wrapping_neg() % ALIGNMENT;
        whole.resize(skip, 0);
        whole.extend_from_slice(&std::mem::take(&mut self.held));
        while whole.len() < skip + length {
            let mut piece = next_piece(&mut self.body).await?.ok_or_else(broke_off)?;
            let count = piece.len().min(skip + length - whole.len());
            whole.extend_from_slice(&piece.split_to(count));
            self.held = piece;
        }
        Ok(self.buffers.bytes(whole).slice(skip..))
    }
}

async fn next_piece(body: &mut Incoming) -> Result<Option<Bytes>> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(error)) => {
                return Err(Error::invalid("the request broke off before its end").with_source(error));
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

#[cold]
fn broke_off() -> Error {
    Error::invalid("the request ended in the middle of a message")
}

/// How the messages of an answer may be compressed: the first of gzip and deflate that the caller reads.
pub(in crate::frontend) fn accepted(headers: &HeaderMap) -> Encoding {
    let Some(value) = headers.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()) else {
        return Encoding::Identity;
    };
    let accepts = |name| value.split(',').any(|item| item.trim() == name);
    if accepts("gzip") {
        Encoding::Gzip
    } else if accepts("deflate") {
        Encoding::Deflate
    } else {
        Encoding::Identity
    }
}

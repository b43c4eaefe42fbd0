//! Answers: the head, messages in pieces, and the status in the trailers.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::messages::{ACCEPT_ENCODING, OFFERED};
use super::response::Pieces;
use super::stream::InferStream;
use crate::error::{Error, ErrorKind};
use crate::frontend::status::grpc_status;
use crate::frontend::trace_headers::Sending;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The body of an answer.
pub struct GrpcBody(Inner);

enum Inner {
    /// Nothing: the status is in the head.
    Empty,
    /// One message, then the status OK.
    Message { pieces: smallvec::IntoIter<[Bytes; 3]>, ended: bool, sending: Option<Sending> },
    /// The answers of a stream of inferences.
    Infer(Box<InferStream>),
    /// Messages as they come, then the status OK.
    Changes { messages: Pin<Box<dyn Stream<Item = Bytes> + Send>>, ended: bool },
    /// Another service's.
    Other(tonic::body::Body),
}

impl Body for GrpcBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.0 {
            Inner::Empty => Poll::Ready(None),
            Inner::Message { pieces, ended, sending } => Poll::Ready(match pieces.next() {
                Some(piece) => Some(Ok(Frame::data(piece))),
                None if *ended => None,
                None => {
                    *ended = true;
                    *sending = None;
                    Some(Ok(Frame::trailers(ok())))
                }
            }),
            Inner::Infer(stream) => stream.poll_frame(context).map(|frame| frame.map(Ok)),
            Inner::Changes { ended: true, .. } => Poll::Ready(None),
            Inner::Changes { messages, ended } => messages.as_mut().poll_next(context).map(|message| {
                *ended = message.is_none();
                Some(Ok(message.map_or_else(|| Frame::trailers(ok()), Frame::data)))
            }),
            Inner::Other(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Empty => true,
            Inner::Message { ended, .. } | Inner::Changes { ended, .. } => *ended,
            Inner::Infer(stream) => stream.is_ended(),
            Inner::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Message { .. } | Inner::Infer(_) | Inner::Changes { .. } => SizeHint::default(),
            Inner::Other(body) => body.size_hint(),
        }
    }
}

/// Trailers that say that all went well.
pub(super) fn ok() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// Trailers that say this.
pub(super) fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(4);
    if status.add_header(&mut trailers).is_err() {
        trailers.insert(GRPC_STATUS, HeaderValue::from(status.code() as i32));
    }
    trailers
}

fn head(body: GrpcBody) -> Response<GrpcBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// One message.
pub(in crate::frontend) fn message(pieces: Pieces) -> Response<GrpcBody> {
    traced_message(pieces, None)
}

/// One message, whose request's trace says when it has left.
pub(super) fn traced_message(pieces: Pieces, sending: Option<Sending>) -> Response<GrpcBody> {
    head(GrpcBody(Inner::Message { pieces: pieces.into_iter(), ended: false, sending }))
}

/// The answers of a stream.
pub(super) fn stream(stream: InferStream) -> Response<GrpcBody> {
    head(GrpcBody(Inner::Infer(Box::new(stream))))
}

/// Messages as they come.
pub(in crate::frontend) fn changes(messages: Pin<Box<dyn Stream<Item = Bytes> + Send>>) -> Response<GrpcBody> {
    head(GrpcBody(Inner::Changes { messages, ended: false }))
}

/// What another service answers.
pub(super) fn other(response: Response<tonic::body::Body>) -> Response<GrpcBody> {
    response.map(|body| GrpcBody(Inner::Other(body)))
}

/// Nothing but a status.
pub(in crate::frontend) fn status(status: &Status) -> Response<GrpcBody> {
    let mut response = head(GrpcBody(Inner::Empty));
    response.headers_mut().extend(trailers(status));
    response
}

/// An error.
pub(in crate::frontend) fn error(error: &Error) -> Response<GrpcBody> {
    let mut response = status(&grpc_status(error));
    if error.kind() == ErrorKind::Unsupported {
        // It may have been the compression.
        response.headers_mut().insert(ACCEPT_ENCODING, OFFERED);
    }
    response
}

//! Frames of `/invocations-response-stream`, as SageMaker's clients read them (botocore, `sagemaker-runtime` 2017-05-13).
//!
//! A stream is a run of frames: parts of the model's answer (`PayloadPart`), and at most one error, which ends it.

use aws_smithy_eventstream::frame::write_message_to;
use aws_smithy_types::event_stream::{Header, HeaderValue, Message};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::header;
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

/// The content type of a stream of frames.
pub const CONTENT_TYPE: header::HeaderValue = header::HeaderValue::from_static("application/vnd.amazon.eventstream");

/// The largest part of an answer in one frame, in bytes: clients refuse frames over 16 or 24 MiB.
pub const MAX_PART: usize = 8 << 20;

/// What a frame has beside its payload: lengths, checksums and headers; a little more than it needs.
const OVERHEAD: usize = 160;

/// Why a stream ends before its answer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamCode {
    /// The model took too long.
    ModelInvocationTimeExceeded,
    /// The model's answer broke off.
    StreamBroken,
    /// A fault of our own.
    Internal,
}

impl StreamCode {
    /// The code for an error that ends a stream.
    #[must_use]
    pub const fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::DeadlineExceeded => Self::ModelInvocationTimeExceeded,
            ErrorKind::Internal => Self::Internal,
            ErrorKind::NotFound
            | ErrorKind::AlreadyLoaded
            | ErrorKind::InvalidArgument
            | ErrorKind::TooLarge
            | ErrorKind::NotReady
            | ErrorKind::Overloaded
            | ErrorKind::OutOfDeviceMemory
            | ErrorKind::OutOfDisk
            | ErrorKind::Unsupported
            | ErrorKind::BackendFailed
            | ErrorKind::RepositoryFailed => Self::StreamBroken,
        }
    }

    /// The exception, and the code in its body; the service has none for faults of its own.
    const fn names(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::ModelInvocationTimeExceeded => ("ModelStreamError", Some("ModelInvocationTimeExceeded")),
            Self::StreamBroken => ("ModelStreamError", Some("StreamBroken")),
            Self::Internal => ("InternalStreamFailure", None),
        }
    }
}

/// A part of the answer. What is larger than [`MAX_PART`] comes as several frames, and nothing as none.
#[must_use]
pub fn payload_part(mut bytes: Bytes) -> Bytes {
    let frames = bytes.len().div_ceil(MAX_PART);
    let mut stream = BytesMut::with_capacity(bytes.len() + frames * OVERHEAD);
    while !bytes.is_empty() {
        let part = bytes.split_to(bytes.len().min(MAX_PART));
        write(("event", ":event-type", "PayloadPart"), "application/octet-stream", part, &mut stream);
    }
    stream.freeze()
}

/// Parts as they come; an error, which ends them, as the exception that clients know.
pub fn framed(parts: impl Stream<Item = Result<Bytes>> + Send + 'static) -> impl Stream<Item = Bytes> + Send + 'static {
    parts.map(|part| match part {
        Ok(bytes) => payload_part(bytes),
        Err(error) => stream_error(StreamCode::of(&error), &error.report()),
    })
}

/// The error that ends a stream.
#[must_use]
pub fn stream_error(code: StreamCode, message: &str) -> Bytes {
    let (exception, error_code) = code.names();
    let mut members = Map::new();
    members.insert("Message".to_owned(), Value::from(message));
    if let Some(error_code) = error_code {
        members.insert("ErrorCode".to_owned(), Value::from(error_code));
    }
    let body = Value::Object(members).to_string();
    let mut stream = BytesMut::with_capacity(body.len() + OVERHEAD);
    write(("exception", ":exception-type", exception), "application/json", body.into(), &mut stream);
    stream.freeze()
}

/// One frame; `kind` is the message's type, and the header that says which one of these it is.
fn write(
    kind: (&'static str, &'static str, &'static str),
    content_type: &'static str,
    payload: Bytes,
    stream: &mut BytesMut,
) {
    let (message_type, header, name) = kind;
    let message = [(":message-type", message_type), (header, name), (":content-type", content_type)]
        .into_iter()
        .fold(Message::new(payload), |message, (name, value)| {
            message.add_header(Header::new(name, HeaderValue::String(value.into())))
        });
    // Fails only for a payload over 4 GiB, or headers longer than ours.
    let written = write_message_to(&message, stream);
    debug_assert!(written.is_ok(), "a frame is small enough: {written:?}");
}

#[cfg(test)]
mod tests {
    use aws_smithy_eventstream::frame::read_message_from;

    use super::*;

    fn read(stream: &mut Bytes) -> (Vec<(String, String)>, Bytes) {
        let message = read_message_from(stream).unwrap();
        let text = |header: &Header| {
            (header.name().as_str().to_owned(), header.value().as_string().unwrap().as_str().to_owned())
        };
        (message.headers().iter().map(text).collect(), message.payload().clone())
    }

    fn headers(list: [(&str, &str); 3]) -> Vec<(String, String)> {
        list.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    #[test]
    fn a_part_is_one_event_with_the_bytes_as_they_are() {
        let mut stream = payload_part(Bytes::from_static(b"\x00\xff{"));
        let (found, payload) = read(&mut stream);
        let wanted =
            [(":message-type", "event"), (":event-type", "PayloadPart"), (":content-type", "application/octet-stream")];
        assert_eq!(found, headers(wanted));
        assert_eq!(payload, &b"\x00\xff{"[..]);
        assert!(stream.is_empty());
    }

    #[test]
    fn a_large_part_is_several_frames_and_an_empty_one_is_none() {
        assert!(payload_part(Bytes::new()).is_empty());
        let mut stream = payload_part(Bytes::from(vec![7; 2 * MAX_PART + 1]));
        for length in [MAX_PART, MAX_PART, 1] {
            assert_eq!(read(&mut stream).1.len(), length);
        }
        assert!(stream.is_empty());
    }

    #[test]
    fn an_error_is_an_exception_that_clients_know() {
        let (found, body) = read(&mut stream_error(StreamCode::StreamBroken, "it \"broke\""));
        let wanted = [
            (":message-type", "exception"),
            (":exception-type", "ModelStreamError"),
            (":content-type", "application/json"),
        ];
        assert_eq!(found, headers(wanted));
        assert_eq!(body, r#"{"Message":"it \"broke\"","ErrorCode":"StreamBroken"}"#);
        let (found, body) = read(&mut stream_error(StreamCode::Internal, "x"));
        assert_eq!(found[1].1, "InternalStreamFailure");
        assert_eq!(body, r#"{"Message":"x"}"#);
    }

    #[test]
    fn an_error_of_ours_has_a_code_there() {
        assert_eq!(
            StreamCode::of(&Error::new(ErrorKind::DeadlineExceeded, "x")).names().1,
            Some("ModelInvocationTimeExceeded")
        );
        assert_eq!(StreamCode::of(&Error::new(ErrorKind::BackendFailed, "x")), StreamCode::StreamBroken);
        assert_eq!(StreamCode::of(&Error::internal("x")), StreamCode::Internal);
    }

    #[test]
    fn no_part_needs_more_room_than_was_set_aside() {
        assert!(payload_part(Bytes::from_static(b"x")).len() <= 1 + OVERHEAD);
    }

    /// What botocore 1.44.8 was seen to read: lengths and their checksum, headers, payload, checksum.
    #[test]
    fn frames_are_byte_for_byte_what_botocore_reads() {
        let part = payload_part(Bytes::from_static(b"\x00\xff{"));
        let wanted: [&[u8]; 6] = [
            b"\0\0\0\x6c\0\0\0\x59\x2b\x57\xac\x75",
            b"\x0d:message-type\x07\0\x05event",
            b"\x0b:event-type\x07\0\x0bPayloadPart",
            b"\x0d:content-type\x07\0\x18application/octet-stream",
            b"\x00\xff{",
            b"\x0b\xc5\x6d\x62",
        ];
        assert_eq!(part, wanted.concat());
        let error = stream_error(StreamCode::Internal, "x");
        let wanted: [&[u8]; 6] = [
            b"\0\0\0\x82\0\0\0\x63\x7a\xbf\x0c\x79",
            b"\x0d:message-type\x07\0\x09exception",
            b"\x0f:exception-type\x07\0\x15InternalStreamFailure",
            b"\x0d:content-type\x07\0\x10application/json",
            b"{\"Message\":\"x\"}",
            b"\xa9\x0e\xe7\x07",
        ];
        assert_eq!(error, wanted.concat());
    }
}

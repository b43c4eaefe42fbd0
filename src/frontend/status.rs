//! Error kinds as each protocol's codes: closed matches, so that a new kind does not compile until each has its place.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::body::Body;
use super::tensor_json;
use crate::cache::eviction::NoRoom;
use crate::cache::table::Refusal;
use crate::error::{Error, ErrorKind};

/// The status of KServe v2 over HTTP.
#[must_use]
pub const fn kserve_http(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyLoaded => StatusCode::CONFLICT,
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::NotReady | ErrorKind::OutOfDeviceMemory | ErrorKind::OutOfDisk => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::BackendFailed | ErrorKind::RepositoryFailed | ErrorKind::Internal => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// The status in the contract of SageMaker's containers: 507 says that the platform is to unload others and try again.
#[must_use]
pub fn sagemaker(error: &Error) -> StatusCode {
    match error.kind() {
        // What can never fit is no reason to unload anybody.
        ErrorKind::OutOfDeviceMemory | ErrorKind::OutOfDisk if !error.is_retryable() => StatusCode::BAD_REQUEST,
        ErrorKind::OutOfDeviceMemory | ErrorKind::OutOfDisk => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::AlreadyLoaded => StatusCode::CONFLICT,
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::NotReady => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Overloaded => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::BackendFailed | ErrorKind::RepositoryFailed | ErrorKind::Internal => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// An error as our container tells it: `{"error": text, "code": kind}`, and for want of room the book's numbers, in bytes:
/// `"reason": {"need", "free", "evictable", "pinned"}`.
#[must_use]
pub fn sagemaker_error_response(error: &Error) -> http::Response<Body> {
    let mut body = tensor_json::encode_error(&error.report(), error.kind().code()).to_vec();
    if let Some(room) = no_room(error) {
        body.pop();
        let NoRoom { need, free, evictable, pinned } = room;
        let reason =
            format!(",\"reason\":{{\"need\":{need},\"free\":{free},\"evictable\":{evictable},\"pinned\":{pinned}}}}}");
        body.extend_from_slice(reason.as_bytes());
    }
    let mut response = http::Response::new(Body::full(body.into()));
    *response.status_mut() = sagemaker(error);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What a book said to a load.
fn no_room(error: &Error) -> Option<NoRoom> {
    let mut cause = std::error::Error::source(error);
    while let Some(below) = cause {
        match below.downcast_ref::<Refusal>() {
            Some(Refusal::NoRoom(room)) => return Some(*room),
            Some(&Refusal::NeverFits { need, limit }) => {
                return Some(NoRoom { need, free: limit, evictable: 0, pinned: 0 });
            }
            Some(Refusal::Present) | None => {}
        }
        cause = below.source();
    }
    None
}

/// The status code of KServe v2 over gRPC.
#[must_use]
pub const fn grpc(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyLoaded => Code::AlreadyExists,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::TooLarge | ErrorKind::Overloaded | ErrorKind::OutOfDeviceMemory | ErrorKind::OutOfDisk => {
            Code::ResourceExhausted
        }
        ErrorKind::NotReady => Code::Unavailable,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::BackendFailed | ErrorKind::RepositoryFailed | ErrorKind::Internal => Code::Internal,
    }
}

/// The most of an error's text that goes into a header, in characters: clients take heads of 8 KiB, percent-encoded.
const STATUS_TEXT: usize = 2000;

/// An error as gRPC tells it: its code and text, the kind as metadata `error-code`, and `grpc-retry-pushback-ms` where a
/// retry may help.
#[must_use]
pub fn grpc_status(error: &Error) -> Status {
    let text: String = error.report().chars().take(STATUS_TEXT).collect();
    let mut status = Status::new(grpc(error.kind()), text);
    let metadata = status.metadata_mut();
    metadata.insert("error-code", MetadataValue::from_static(error.kind().code()));
    if retry_after(error.kind()).is_some() && error.is_retryable() {
        metadata.insert("grpc-retry-pushback-ms", MetadataValue::from_static("1000"));
    }
    status
}

/// Seconds after which a retry may help, where the protocol has a place for it.
const fn retry_after(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::NotReady | ErrorKind::Overloaded | ErrorKind::OutOfDeviceMemory | ErrorKind::OutOfDisk => Some("1"),
        ErrorKind::NotFound
        | ErrorKind::AlreadyLoaded
        | ErrorKind::InvalidArgument
        | ErrorKind::TooLarge
        | ErrorKind::DeadlineExceeded
        | ErrorKind::Unsupported
        | ErrorKind::BackendFailed
        | ErrorKind::RepositoryFailed
        | ErrorKind::Internal => None,
    }
}

/// An error as KServe v2 writes it: `{"error": text, "code": kind}` under the kind's status.
#[must_use]
pub fn error_response(error: &Error) -> http::Response<Body> {
    let body = tensor_json::encode_error(&error.report(), error.kind().code());
    let mut response = http::Response::new(Body::full(body));
    *response.status_mut() = kserve_http(error.kind());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after(error.kind()).filter(|_| error.is_retryable()) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    response
}

/// The answer to a method that a path does not have.
#[must_use]
pub fn method_not_allowed() -> http::Response<Body> {
    let mut response =
        http::Response::new(Body::full(tensor_json::encode_error("Method Not Allowed", "method_not_allowed")));
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An error on its way out of a handler.
pub struct Failure(pub Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        error_response(&self.0).map(axum::body::Body::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_statuses_is_the_documented_one() {
        let text = include_str!("../../ARCHITECTURE.md");
        for kind in ErrorKind::ALL {
            let container = sagemaker(&Error::new(kind, "x").with_retryable(true)).as_u16();
            let row = format!("| `{}` | {} | {container}", kind.code(), kserve_http(kind).as_u16());
            let code = format!("{:?}", grpc(kind));
            let written = text.lines().find(|line| line.starts_with(&row)).map(|line| line.replace('_', ""));
            let last = written.as_ref().and_then(|line| line.trim_end_matches(" |").rsplit("| ").next());
            assert_eq!(last, Some(code.to_uppercase().as_str()), "ARCHITECTURE.md lacks the row {row}");
        }
    }

    #[test]
    fn the_platform_is_told_what_the_book_says_and_to_unload_where_that_helps() {
        let room = NoRoom { need: 9, free: 1, evictable: 2, pinned: 3 };
        let full = Refusal::NoRoom(room).into_error(ErrorKind::OutOfDeviceMemory).wrap("model 'm' cannot be loaded");
        assert_eq!((sagemaker(&full).as_u16(), no_room(&full)), (507, Some(room)));
        let never = Refusal::NeverFits { need: 9, limit: 5 }.into_error(ErrorKind::OutOfDeviceMemory);
        assert_eq!((sagemaker(&never).as_u16(), no_room(&never).unwrap().free), (400, 5));
        assert_eq!((sagemaker(&Error::not_found("x")).as_u16(), no_room(&Error::not_found("x"))), (404, None));
    }

    #[test]
    fn only_what_may_pass_asks_for_a_retry() {
        let full = error_response(&Error::new(ErrorKind::Overloaded, "x"));
        assert_eq!(full.headers()[RETRY_AFTER], "1");
        let missing_library = Error::not_ready("x").with_retryable(false);
        assert!(!error_response(&missing_library).headers().contains_key(RETRY_AFTER));
    }
}

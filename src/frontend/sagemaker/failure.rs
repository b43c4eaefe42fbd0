//! Errors of SageMaker's runtime API: the service's codes and form (botocore, `sagemaker-runtime` 2017-05-13).
//!
//! The name of an error is in the header `x-Amzn-ErrorType`, its text in the member `Message` of a JSON object. What the
//! model's container answered is told by a `ModelError`.

use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderName, StatusCode};
use serde_json::{Map, Value};

use super::super::body::Body;
use super::super::status;
use crate::error::{Error, ErrorKind};

/// The name of an error.
pub const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// `Retry-After` as AWS's newer clients read it.
const AMZ_RETRY_AFTER: HeaderName = HeaderName::from_static("x-amz-retry-after");

/// Names of errors, each with its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The request is wrong, or there is no such endpoint or model.
    Validation,
    /// The model's container answered with an error.
    Model,
    /// The model is still being fetched or loaded.
    ModelNotReady,
    /// The body is larger than an invocation may have.
    TooLarge,
    /// There is no key on the request.
    MissingAuthenticationToken,
    /// The key is not known.
    UnrecognizedClient,
    /// The signature is another one than the request's, or too old.
    InvalidSignature,
    /// The signature lacks a part.
    IncompleteSignature,
    /// The key is not for this model.
    AccessDenied,
    /// There is nothing of this name to ask for.
    UnknownOperation,
    /// Not now.
    Unavailable,
    /// A fault of the service.
    Internal,
}

impl Code {
    /// As clients know it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Validation => "ValidationError",
            Self::Model => "ModelError",
            Self::ModelNotReady => "ModelNotReadyException",
            Self::TooLarge => "RequestEntityTooLargeException",
            Self::MissingAuthenticationToken => "MissingAuthenticationTokenException",
            Self::UnrecognizedClient => "UnrecognizedClientException",
            Self::InvalidSignature => "InvalidSignatureException",
            Self::IncompleteSignature => "IncompleteSignatureException",
            Self::AccessDenied => "AccessDeniedException",
            Self::UnknownOperation => "UnknownOperationException",
            Self::Unavailable => "ServiceUnavailable",
            Self::Internal => "InternalFailure",
        }
    }

    /// The status of the answer.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Validation | Self::IncompleteSignature => StatusCode::BAD_REQUEST,
            Self::Model => StatusCode::FAILED_DEPENDENCY,
            Self::ModelNotReady => StatusCode::TOO_MANY_REQUESTS,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MissingAuthenticationToken
            | Self::UnrecognizedClient
            | Self::InvalidSignature
            | Self::AccessDenied => StatusCode::FORBIDDEN,
            Self::UnknownOperation => StatusCode::NOT_FOUND,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// What the model's container answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Original {
    /// Its status.
    pub status: u16,
    /// Its body.
    pub message: String,
}

/// An error of the runtime API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceError {
    /// Its name.
    pub code: Code,
    /// Its text.
    pub message: String,
    /// What is behind a [`Code::Model`].
    pub original: Option<Original>,
    /// Seconds after which another try may help.
    pub retry_after: Option<u64>,
}

impl ServiceError {
    /// An error with a text.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), original: None, retry_after: None }
    }

    /// The request is wrong.
    pub fn validation(message: impl Into<String>) -> Self {
        Self::new(Code::Validation, message)
    }

    /// The container answered with `status` and `message`; `container` is its name, `primary` for the only one.
    #[must_use]
    pub fn model(container: &str, status: u16, message: String) -> Self {
        let whose = if status < 500 { "client" } else { "server" };
        let text = format!("Received {whose} error ({status}) from {container} with message \"{message}\"");
        Self { original: Some(Original { status, message }), ..Self::new(Code::Model, text) }
    }

    /// The same with the seconds after which another try may help.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// An error of our own, as the service tells it: what the caller or the model is at fault for is a `ModelError` with what the
    /// container's contract has for it, what may pass is 503.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::NotFound => Self::validation(error.report()),
            ErrorKind::NotReady
            | ErrorKind::Overloaded
            | ErrorKind::OutOfDeviceMemory
            | ErrorKind::OutOfDisk
            | ErrorKind::RepositoryFailed
                if error.is_retryable() =>
            {
                Self::new(Code::Unavailable, error.report()).retry_after(1)
            }
            ErrorKind::Internal => Self::new(Code::Internal, error.report()),
            ErrorKind::AlreadyLoaded
            | ErrorKind::InvalidArgument
            | ErrorKind::TooLarge
            | ErrorKind::NotReady
            | ErrorKind::Overloaded
            | ErrorKind::DeadlineExceeded
            | ErrorKind::OutOfDeviceMemory
            | ErrorKind::OutOfDisk
            | ErrorKind::Unsupported
            | ErrorKind::BackendFailed
            | ErrorKind::RepositoryFailed => Self::model("primary", status::sagemaker(error).as_u16(), error.report()),
        }
    }

    /// The JSON body.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let mut members = Map::new();
        members.insert("Message".to_owned(), Value::from(self.message.as_str()));
        if let Some(original) = &self.original {
            members.insert("OriginalStatusCode".to_owned(), Value::from(original.status));
            members.insert("OriginalMessage".to_owned(), Value::from(original.message.as_str()));
            members.insert("LogStreamArn".to_owned(), Value::from(""));
        }
        Value::Object(members).to_string().into_bytes()
    }

    /// The answer.
    #[must_use]
    pub fn response(&self) -> http::Response<Body> {
        let mut response = http::Response::new(Body::full(self.body().into()));
        *response.status_mut() = self.code.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ERROR_TYPE, HeaderValue::from_static(self.code.name()));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            // What AWS's own clients go by, in milliseconds.
            headers.insert(AMZ_RETRY_AFTER, HeaderValue::from(seconds.saturating_mul(1000)));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_error_tells_what_the_container_answered() {
        let error = ServiceError::of(&Error::invalid("input 'x' is missing"));
        let response = error.response();
        assert_eq!(response.status().as_u16(), 424);
        assert_eq!(response.headers()[ERROR_TYPE], "ModelError");
        let body: Value = serde_json::from_slice(&error.body()).unwrap();
        assert_eq!(body["OriginalStatusCode"], 400);
        assert_eq!(body["OriginalMessage"], "input 'x' is missing");
        assert_eq!(body["Message"], "Received client error (400) from primary with message \"input 'x' is missing\"");
    }

    #[test]
    fn what_may_pass_is_unavailable_and_what_may_not_is_not() {
        let full = Error::new(ErrorKind::OutOfDeviceMemory, "no room");
        assert_eq!(ServiceError::of(&full).code, Code::Unavailable);
        assert_eq!(ServiceError::of(&full.with_retryable(false)).code, Code::Model);
        assert_eq!(ServiceError::of(&Error::not_found("x")).code, Code::Validation);
    }
}

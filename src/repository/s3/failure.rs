//! What S3 said or did not say, as an error of ours that names the mend.
//!
//! Only the code and the message of S3's own error are repeated: what lies below holds request ids, hosts and now and
//! then what was signed.

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::error::{Error, ErrorKind};
use crate::repository::FetchError;

/// The most characters of S3's message that are repeated.
const MESSAGE_LENGTH: usize = 200;

/// Why a request got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The object is another one, or gone.
    Changed,
    Denied,
    NoSuchBucket,
    /// Another region than the client's.
    Region,
    /// The object lies in cold storage.
    Archived,
    /// Credentials that were good once.
    Expired,
    /// An answer that another attempt may better: too busy, a fault of the store's.
    Busy,
    /// No answer.
    Unreachable,
    /// An answer that none of the others is.
    Refused,
}

fn cause(status: Option<u16>, code: Option<&str>) -> Cause {
    match (status, code) {
        (None, _) => Cause::Unreachable,
        (_, Some("NoSuchBucket")) => Cause::NoSuchBucket,
        (_, Some("InvalidObjectState")) => Cause::Archived,
        (_, Some("ExpiredToken" | "TokenRefreshRequired")) => Cause::Expired,
        (_, Some("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException"))
        | (Some(301 | 307), _) => Cause::Region,
        (_, Some("SlowDown" | "RequestTimeout" | "Throttling" | "InternalError" | "ServiceUnavailable")) => Cause::Busy,
        (Some(404 | 412 | 416), _) => Cause::Changed,
        (Some(401 | 403), _) => Cause::Denied,
        (Some(408 | 429 | 500..), _) => Cause::Busy,
        (Some(_), _) => Cause::Refused,
    }
}

fn cause_of<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Cause {
    let status = error.raw_response().map(|response| response.status().as_u16());
    match error {
        // An answer of 200 that could not be read, or one cut short.
        SdkError::ResponseError(_) => Cause::Busy,
        SdkError::ConstructionFailure(_) => Cause::Refused,
        _ => cause(status, error.code()),
    }
}

/// The error of a request that asked `what` (`cannot list the models`) of `store`.
pub(super) fn failure<E>(what: &str, store: &str, error: &SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let cause = cause_of(error);
    let said = said(error);
    let mend = match cause {
        Cause::Changed => "there is no such object",
        Cause::Denied => {
            "access was denied: check the credentials and the bucket's policy (s3:ListBucket and s3:GetObject are \
             needed), or ask anonymously if the bucket is public"
        }
        Cause::NoSuchBucket => "there is no such bucket: check the name, the region and the endpoint",
        Cause::Region => "the bucket lies in another region: set AWS_REGION to it",
        Cause::Archived => "the object lies in an archive storage class: restore it first",
        Cause::Expired => "the credentials have expired: renew them",
        Cause::Busy => "S3 failed or is too busy",
        Cause::Unreachable => "S3 cannot be reached",
        Cause::Refused => "S3 refused the request",
    };
    let retryable = matches!(cause, Cause::Busy | Cause::Unreachable | Cause::Changed);
    Error::new(ErrorKind::RepositoryFailed, format!("{what} in {store}: {mend}{said}")).with_retryable(retryable)
}

/// The same for a request for bytes, where a missing object or another one is a change.
pub(super) fn fetch_failure<E>(what: &str, store: &str, error: &SdkError<E, HttpResponse>) -> FetchError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match cause_of(error) {
        Cause::Changed => FetchError::Changed,
        _ => FetchError::Failed(failure(what, store, error)),
    }
}

/// What S3 said, or what kept it from saying anything, in brackets.
fn said<E>(error: &SdkError<E, HttpResponse>) -> String
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let text = match (error.code(), error.message()) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        (None, Some(message)) => message.to_owned(),
        (None, None) => match (error, error.raw_response()) {
            (_, Some(response)) => format!("status {}", response.status().as_u16()),
            (SdkError::TimeoutError(_), None) => "no answer in time".to_owned(),
            (error, None) => root_cause(error),
        },
    };
    let shown: String = text.chars().take(MESSAGE_LENGTH).filter(|character| !character.is_control()).collect();
    if shown.is_empty() { shown } else { format!(" ({shown})") }
}

/// The text of the lowest cause: `connection refused`, and none of the wrappers around it.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut lowest = error;
    while let Some(below) = lowest.source() {
        lowest = below;
    }
    lowest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_told_by_its_code_first_and_then_by_its_status() {
        let table = [
            (Some(404), Some("NoSuchBucket"), Cause::NoSuchBucket),
            (Some(404), Some("NoSuchKey"), Cause::Changed),
            (Some(404), None, Cause::Changed),
            (Some(412), Some("PreconditionFailed"), Cause::Changed),
            (Some(416), Some("InvalidRange"), Cause::Changed),
            (Some(403), Some("SignatureDoesNotMatch"), Cause::Denied),
            (Some(403), Some("InvalidObjectState"), Cause::Archived),
            (Some(400), Some("ExpiredToken"), Cause::Expired),
            (Some(301), Some("PermanentRedirect"), Cause::Region),
            (Some(400), Some("AuthorizationHeaderMalformed"), Cause::Region),
            (Some(503), Some("SlowDown"), Cause::Busy),
            (Some(400), Some("RequestTimeout"), Cause::Busy),
            (Some(500), None, Cause::Busy),
            (Some(429), None, Cause::Busy),
            (Some(400), Some("KeyTooLongError"), Cause::Refused),
            (None, None, Cause::Unreachable),
        ];
        for (status, code, expected) in table {
            assert_eq!(cause(status, code), expected, "{status:?} {code:?}");
        }
    }
}

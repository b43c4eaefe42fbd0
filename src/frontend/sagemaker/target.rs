//! The headers of an invocation, checked: which model, and what is handed through.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::failure::ServiceError;
use crate::repository::check_name;

/// The model, relative to the repository's prefix.
pub const TARGET_MODEL: HeaderName = HeaderName::from_static("x-amzn-sagemaker-target-model");

/// What client and model tell each other; handed through both ways.
pub const CUSTOM_ATTRIBUTES: HeaderName = HeaderName::from_static("x-amzn-sagemaker-custom-attributes");

/// The production variant that the caller wants.
pub const TARGET_VARIANT: HeaderName = HeaderName::from_static("x-amzn-sagemaker-target-variant");

/// The production variant that answered.
pub const INVOKED_VARIANT: HeaderName = HeaderName::from_static("x-amzn-invoked-production-variant");

/// The request's own name, in each answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// The variant of endpoints that name none.
pub const ALL_TRAFFIC: HeaderValue = HeaderValue::from_static("AllTraffic");

/// The longest value of the headers that are handed on, in bytes.
const MAX_HEADER: usize = 1024;

/// The model that an invocation asks for: the header without the slash that some clients put before it.
///
/// # Errors
/// `ValidationError` for what cannot be a key below the repository's prefix.
pub fn target_model(headers: &HeaderMap) -> Result<Option<String>, ServiceError> {
    let Some(value) = headers.get(TARGET_MODEL) else { return Ok(None) };
    let text =
        std::str::from_utf8(value.as_bytes()).map_err(|_| ServiceError::validation("TargetModel is not UTF-8"))?;
    if text.starts_with(' ') {
        return Err(ServiceError::validation("TargetModel begins with a blank"));
    }
    let name = text.strip_prefix('/').unwrap_or(text);
    check_name(name)
        .map_err(|error| ServiceError::validation(format!("TargetModel is no key of a model: {}", error.report())))?;
    Ok(Some(name.to_owned()))
}

/// The custom attributes, which are handed through unread.
///
/// # Errors
/// `ValidationError` if they are longer than 1,024 bytes.
pub fn custom_attributes(headers: &HeaderMap) -> Result<Option<HeaderValue>, ServiceError> {
    match headers.get(CUSTOM_ATTRIBUTES) {
        Some(value) if value.len() > MAX_HEADER => {
            Err(ServiceError::validation("CustomAttributes is longer than 1024 bytes"))
        }
        other => Ok(other.cloned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(value: &[u8]) -> Result<Option<String>, ServiceError> {
        let mut headers = HeaderMap::new();
        headers.insert(TARGET_MODEL, HeaderValue::from_bytes(value).unwrap());
        target_model(&headers)
    }

    #[test]
    fn a_target_is_a_key_below_the_prefix() {
        assert_eq!(target_model(&HeaderMap::new()), Ok(None));
        assert_eq!(target(b"team/a.tar.gz"), Ok(Some("team/a.tar.gz".to_owned())));
        assert_eq!(target(b"/sam.tar.gz"), Ok(Some("sam.tar.gz".to_owned())));
        assert_eq!(target("größe".as_bytes()), Ok(Some("größe".to_owned())));
    }

    #[test]
    fn a_target_that_leaves_the_prefix_is_refused() {
        for value in [&b""[..], b"/", b"//a", b"../a", b"a/../b", b" a", b"a\\b", b"\xff", &[b'x'; 1025]] {
            assert!(target(value).is_err(), "{value:?}");
        }
        assert!(target(&[b'x'; 1024]).is_ok());
    }

    #[test]
    fn custom_attributes_have_a_limit() {
        let mut headers = HeaderMap::new();
        headers.insert(CUSTOM_ATTRIBUTES, HeaderValue::from_bytes(&[b'c'; 1025]).unwrap());
        assert!(custom_attributes(&headers).is_err());
        headers.insert(CUSTOM_ATTRIBUTES, HeaderValue::from_static("trace=1"));
        assert_eq!(custom_attributes(&headers).unwrap().unwrap(), "trace=1");
    }

    proptest! {
        #[test]
        fn no_target_leaves_the_prefix(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.insert(TARGET_MODEL, value);
                if let Ok(Some(name)) = target_model(&headers) {
                    let is_inside = |part: &str| !part.is_empty() && part != "." && part != "..";
                    prop_assert!(name.split('/').all(is_inside), "{}", name);
                }
            }
        }
    }
}

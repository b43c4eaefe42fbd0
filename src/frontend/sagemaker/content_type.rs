//! The content types of invocations: JSON under whatever name, and JSON before binary tensors, as NVIDIA's container has it.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};

use crate::error::{Error, Result};

/// JSON of so many bytes, and tensors behind it.
const BINARY: &str = "application/vnd.sagemaker-triton.binary+json;json-header-size=";

/// How a body is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// All of it is JSON.
    Json,
    /// This many bytes of JSON before the tensors; with none of them the whole body is one tensor.
    Binary(usize),
}

impl Layout {
    /// Where tensors begin, if they do not begin the body.
    pub(super) const fn header_length(self) -> Option<usize> {
        match self {
            Self::Json => None,
            Self::Binary(length) => Some(length),
        }
    }
}

/// The layout of a request's body.
///
/// # Errors
/// `InvalidArgument` for the binary type at another place than the front of the header, or without a number.
pub(super) fn layout(headers: &HeaderMap) -> Result<Layout> {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return Ok(Layout::Json) };
    match value.find(BINARY) {
        None => Ok(Layout::Json),
        Some(0) => {
            let number = value[BINARY.len()..].trim();
            let length = number.parse().map_err(|_| {
                let shown: String = number.chars().take(32).collect();
                Error::invalid(format!("json-header-size of the content type is '{shown}', expected a number of bytes"))
            })?;
            Ok(Layout::Binary(length))
        }
        Some(_) => Err(Error::invalid(format!("the content type must begin with {BINARY}"))),
    }
}

/// The content type of an answer whose first `header_length` bytes are JSON, or all of it.
pub(super) fn of_answer(header_length: Option<usize>) -> HeaderValue {
    let binary = header_length.and_then(|length| HeaderValue::try_from(format!("{BINARY}{length}")).ok());
    binary.unwrap_or(HeaderValue::from_static("application/json"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(value: &str) -> Result<Layout> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, value.parse().unwrap());
        layout(&headers)
    }

    #[test]
    fn json_goes_by_any_name_and_binary_by_its_own() {
        assert_eq!(layout(&HeaderMap::new()).unwrap(), Layout::Json);
        for name in ["application/json", "application/octet-stream", "text/csv", "application/vnd.sagemaker-triton"] {
            assert_eq!(read(name).unwrap(), Layout::Json, "{name}");
        }
        assert_eq!(read(&format!("{BINARY}181")).unwrap(), Layout::Binary(181));
        assert_eq!(read(&format!("{BINARY}0")).unwrap(), Layout::Binary(0));
        assert_eq!(of_answer(Some(7)), format!("{BINARY}7"));
        assert_eq!(of_answer(None), "application/json");
    }

    #[test]
    fn header_sizes_that_are_none_are_refused() {
        for wrong in [format!("{BINARY}x"), format!("{BINARY}-1"), BINARY.to_owned(), format!("x;{BINARY}3")] {
            assert!(read(&wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_reading_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), number in any::<u64>()) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.insert(CONTENT_TYPE, value);
                let _ = layout(&headers);
            }
            let length = usize::try_from(number).unwrap();
            prop_assert_eq!(read(&format!("{BINARY}{number}")).unwrap(), Layout::Binary(length));
        }
    }
}

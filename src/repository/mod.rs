//! `ModelRepository`: where models come from, and which keys name them.

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
pub mod download;
#[cfg(any(test, feature = "test-util"))]
pub mod faulty;
pub mod layout;
pub mod local;
pub mod manifest;
pub mod registered;
pub mod s3;
pub mod tree;

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use self::manifest::ModelManifest;
use crate::error::{Error, ErrorKind, Result};

/// Why bytes of an object did not come.
#[derive(Clone, Debug)]
pub enum FetchError {
    /// The object is not the one of the manifest any more, or gone: ask the repository anew.
    Changed,
    /// They did not come; `retryable` in the error says whether asking again may help.
    Failed(Error),
}

impl FetchError {
    /// As an error of the load it happened in.
    #[must_use]
    pub fn into_error(self) -> Error {
        match self {
            Self::Changed => {
                Error::new(ErrorKind::RepositoryFailed, "the model changed in the repository while it was fetched")
                    .with_retryable(true)
            }
            Self::Failed(error) => error,
        }
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed => f.write_str("the object changed in the repository"),
            Self::Failed(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl std::error::Error for FetchError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Changed => None,
            Self::Failed(error) => error.source(),
        }
    }
}

/// The bytes of a range, in order, as they come.
pub type ByteStream = BoxStream<'static, Result<Bytes, FetchError>>;

/// Where models come from. Several threads ask at once.
pub trait ModelRepository: Send + Sync {
    /// The keys of all models, ascending. Costs as much as the repository is large: never on a request's way.
    fn list(&self) -> BoxFuture<'_, Result<Vec<String>>>;

    /// What there is under `name`, asked anew each time.
    ///
    /// # Errors
    /// `NotFound` if there is no such model, `RepositoryFailed` if the repository cannot be read.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ModelManifest>>;

    /// Somebody says that there is, or was a moment ago, a model of this name: what is remembered of its absence is
    /// forgotten.
    fn expect(&self, _name: &str) {}

    /// Begins to fetch a range of bytes of one of the manifest's objects: one request, not retried here. A stream that
    /// ends early without an error does not happen.
    ///
    /// # Errors
    /// `Changed` if the object is not the manifest's any more.
    fn fetch<'a>(
        &'a self,
        manifest: &'a ModelManifest,
        object: usize,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, FetchError>>;
}

/// The longest key in bytes (S3 keys are at most 1,024 long).
pub const MAX_NAME_LENGTH: usize = 1024;

/// Checks that `name` can be a key below a repository: relative, without `.`, `..` or empty parts, without control
/// characters and backslashes.
///
/// # Errors
/// `InvalidArgument` naming what is wrong.
pub fn check_name(name: &str) -> Result<()> {
    let wrong = |what: &str| {
        let shown: String = name.chars().take(64).collect();
        Err(Error::invalid(format!("model name '{}' {what}", shown.escape_debug())))
    };
    if name.is_empty() {
        return wrong("is empty");
    }
    if name.len() > MAX_NAME_LENGTH {
        return wrong("is longer than 1024 bytes");
    }
    if name.chars().any(|character| character.is_control() || character == '\\') {
        return wrong("has a control character or a backslash in it");
    }
    if name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return wrong("has an empty part, '.' or '..' in it");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_repository_are_refused() {
        for name in ["", "/etc", "a//b", "../a", "a/..", "a/./b", "a\\b", "a\nb", "a/", &"x".repeat(1025)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["resnet", "team/resnet-50.v2", "größe", "a b", &"x".repeat(1024)] {
            assert!(check_name(name).is_ok(), "{name:?}");
        }
    }
}

//! `ModelRepository`: where models come from, and which keys name them.

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
#[cfg(any(test, feature = "test-util"))]
pub mod faulty;
pub mod layout;
pub mod local;

use std::path::PathBuf;

use futures_util::future::BoxFuture;

use crate::error::{Error, Result};
use crate::inference::Version;

/// What a repository says of a model: its files, for the versions it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelManifest {
    /// The model's key.
    pub name: String,
    /// The model's folder on this machine; for a bare file the folder it lies in.
    pub directory: PathBuf,
    /// Whether that folder is the model's own: that of a bare file at the side of other models is not.
    pub owns_directory: bool,
    /// The text of `config.pbtxt`, where there is one.
    pub config: Option<String>,
    /// The version folders, ascending; for a bare file version 1 alone.
    pub versions: Vec<Version>,
    /// The model's file where it lies outside a version folder: `resnet.onnx`, or `resnet/model.onnx`.
    pub bare_file: Option<PathBuf>,
}

/// Where models come from. Several threads ask at once.
pub trait ModelRepository: Send + Sync {
    /// The keys of all models, ascending. Costs as much as the repository is large: never on a request's way.
    fn list(&self) -> BoxFuture<'_, Result<Vec<String>>>;

    /// What there is under `name`, asked anew each time.
    ///
    /// # Errors
    /// `NotFound` if there is no such model, `RepositoryFailed` if the repository cannot be read.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ModelManifest>>;
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

//! Triton's repository layout: which names in a folder are versions, and which are model files.

use super::manifest::Form;
use crate::inference::Version;

/// The configuration's file name.
pub const CONFIG: &str = "config.pbtxt";

/// Bare model files, in the order they are looked for, and the backend that reads each.
pub const MODEL_FILES: &[(&str, &str, &str)] =
    &[("model.onnx", ".onnx", "onnxruntime"), ("model.pt", ".pt", "pytorch")];

/// Endings of archives, in the order they are looked for.
pub const ARCHIVE_ENDINGS: &[&str] = &[".tar.gz", ".tgz", ".tar.zst", ".tar", ".zip"];

/// The key of a model that lies at `key`, its ending taken off; `None` for what is neither an archive nor a model file.
#[must_use]
pub fn name_of(key: &str) -> Option<&str> {
    let endings = ARCHIVE_ENDINGS.iter().copied().chain(MODEL_FILES.iter().map(|(_, ending, _)| *ending));
    endings
        .into_iter()
        .find_map(|ending| key.strip_suffix(ending))
        .filter(|name| !name.is_empty() && !name.ends_with('/'))
}

/// What a key names, going by its ending: an archive, a model file, or neither.
#[must_use]
pub fn form_of(key: &str) -> Option<Form> {
    name_of(key)?;
    Some(if backend_of(key).is_some() { Form::File } else { Form::Archive })
}

/// The version a folder's name means: digits without a leading zero, from 1 (Triton ignores the others).
#[must_use]
pub fn version(folder: &str) -> Option<Version> {
    if folder.starts_with('0') || !folder.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    folder.parse().ok()
}

/// The backend that reads a file of this name, going by its ending.
#[must_use]
pub fn backend_of(file: &str) -> Option<&'static str> {
    MODEL_FILES.iter().find(|(_, ending, _)| file.ends_with(ending)).map(|(_, _, backend)| *backend)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_say_what_a_key_names() {
        assert_eq!(name_of("team/resnet.tar.gz"), Some("team/resnet"));
        assert_eq!(name_of("a.v2.onnx"), Some("a.v2"));
        assert_eq!(
            (form_of("a.zip"), form_of("a.pt"), form_of("a.txt")),
            (Some(Form::Archive), Some(Form::File), None)
        );
        assert_eq!((name_of(".onnx"), name_of("team/.zip"), name_of("a.gz")), (None, None, None));
    }

    #[test]
    fn only_plain_numbers_are_versions() {
        assert_eq!(version("1"), Some(1));
        assert_eq!(version("20240131"), Some(20_240_131));
        for other in ["0", "01", "", "v1", "1a", "-1", "99999999999999999999999"] {
            assert_eq!(version(other), None, "{other}");
        }
    }
}

//! Triton's repository layout: which names in a folder are versions, and which are model files.

use crate::inference::Version;

/// The configuration's file name.
pub const CONFIG: &str = "config.pbtxt";

/// Bare model files, in the order they are looked for, and the backend that reads each.
pub const MODEL_FILES: &[(&str, &str, &str)] =
    &[("model.onnx", ".onnx", "onnxruntime"), ("model.pt", ".pt", "pytorch")];

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
    fn only_plain_numbers_are_versions() {
        assert_eq!(version("1"), Some(1));
        assert_eq!(version("20240131"), Some(20_240_131));
        for other in ["0", "01", "", "v1", "1a", "-1", "99999999999999999999999"] {
            assert_eq!(version(other), None, "{other}");
        }
    }
}

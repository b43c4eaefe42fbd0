//! The token for instances that want one of whoever asks below `/v1`.

use std::path::Path;

use http::HeaderValue;

use crate::error::{Error, Result};

/// What to say to them, from the file that `flag` names.
///
/// # Errors
/// `InvalidArgument` for a file that cannot be read, or is not of one line.
pub fn bearer(path: &Path, flag: &str) -> Result<HeaderValue> {
    let failed = |what: &str| Error::invalid(format!("{what} {flag} {}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed("cannot read").with_source(error))?;
    let mut value = HeaderValue::from_str(&format!("Bearer {}", text.trim()))
        .map_err(|_| failed("there is no token of one line in"))?;
    if text.trim().is_empty() {
        return Err(failed("there is no token of one line in"));
    }
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_line_and_shows_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "secret\n").unwrap();
        let value = bearer(&path, "--token-file").unwrap();
        assert_eq!(value, "Bearer secret");
        assert!(!format!("{value:?}").contains("secret"));
        for text in ["", "\n", "a\nb"] {
            std::fs::write(&path, text).unwrap();
            assert!(bearer(&path, "--token-file").unwrap_err().report().contains("--token-file"), "{text:?}");
        }
        assert!(bearer(&folder.path().join("none"), "--token-file").is_err());
    }
}

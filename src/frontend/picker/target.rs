//! The model that a request is about, as the proxy before us finds it: the header, else the path. The text that the ring is
//! asked with is the one that Envoy's hash is over (docker/envoy.yaml), the name is what instances call it.

use std::borrow::Cow;

use super::super::percent;
use super::digest::NAME_BYTES;

/// The header that names it, where the path does not.
pub(super) const TARGET: &str = "x-amzn-sagemaker-target-model";

/// What may stand behind a name in a path.
const ACTIONS: [&str; 13] = [
    "infer",
    "generate",
    "generate_stream",
    "config",
    "ready",
    "stats",
    "load",
    "unload",
    "pin",
    "unpin",
    "prefetch",
    "residency",
    "explain",
];

/// A model by its name, and what its place on the ring is the hash of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) hashed: &'a str,
}

/// The model of a request with this header and this path. `None` where it is about none.
pub(super) fn target<'a>(header: Option<&'a str>, path: &'a str) -> Option<Target<'a>> {
    let is_name = |name: &str| !name.is_empty() && name.len() <= NAME_BYTES;
    if let Some(header) = header {
        let name = header.strip_prefix('/').unwrap_or(header);
        return is_name(name).then_some(Target { name: Cow::Borrowed(name), hashed: name });
    }
    let hashed = in_path(path)?;
    let name = percent::decode(hashed)?;
    is_name(&name).then_some(Target { name, hashed })
}

/// The part of a path that names a model, as it is written.
fn in_path(path: &str) -> Option<&str> {
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    let rest = path.strip_prefix("/v2/").or_else(|| path.strip_prefix("/v1/"))?;
    let rest = rest.strip_prefix("repository/").unwrap_or(rest).strip_prefix("models/")?;
    let rest = match rest.rsplit_once('/') {
        Some((before, action)) if ACTIONS.contains(&action) && !before.is_empty() => before,
        _ => rest.strip_suffix("/trace/setting").filter(|before| !before.is_empty()).unwrap_or(rest),
    };
    let rest = match rest.rsplit_once("/versions/") {
        Some((before, version))
            if !before.is_empty() && !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            before
        }
        _ => rest,
    };
    (!rest.is_empty()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found<'a>(header: Option<&'a str>, path: &'a str) -> Option<(String, &'a str)> {
        target(header, path).map(|target| (target.name.into_owned(), target.hashed))
    }

    #[test]
    fn a_model_is_found_however_it_is_named() {
        for (path, name, hashed) in [
            ("/v2/models/m/infer", "m", "m"),
            ("/v2/models/m", "m", "m"),
            ("/v2/models/m/versions/3/infer?x=/y", "m", "m"),
            ("/v2/models/team%2Fa/infer", "team/a", "team%2Fa"),
            ("/v2/models/team/a/versions/1", "team/a", "team/a"),
            ("/v2/repository/models/m/load", "m", "m"),
            ("/v1/models/m/prefetch", "m", "m"),
            ("/v2/models/m/trace/setting", "m", "m"),
            ("/v2/models/infer/infer", "infer", "infer"),
        ] {
            assert_eq!(found(None, path), Some((name.to_owned(), hashed)), "{path}");
        }
        assert_eq!(found(Some("/a.tar.gz"), "/endpoints/e/invocations"), Some(("a.tar.gz".to_owned(), "a.tar.gz")));
        assert_eq!(found(Some("m"), "/v2/models/other/infer"), Some(("m".to_owned(), "m")));
    }

    #[test]
    fn what_names_no_model_is_about_none() {
        for path in ["", "/", "/v2", "/v2/health/ready", "/v2/models/", "/v3/models/m/infer", "/v2/models/%ff/infer"] {
            assert_eq!(found(None, path), None, "{path}");
        }
        assert_eq!(found(Some(""), "/v2/models/m/infer"), None);
        let long = "x".repeat(NAME_BYTES + 1);
        assert_eq!(found(Some(&long), "/"), None);
    }

    proptest! {
        #[test]
        fn every_name_is_found_in_its_path(name in ".{1,40}") {
            let path = format!("/v2/models/{}/infer", percent::encode(&name));
            prop_assert_eq!(found(None, &path).map(|(name, _)| name), Some(name));
        }

        #[test]
        fn no_path_makes_reading_panic(path in ".{0,80}") {
            let _ = target(None, &path);
        }
    }
}

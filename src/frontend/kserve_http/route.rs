//! Paths below `/v2/models/`: `NAME[/versions/N][/ACTION]`. A name may have slashes in it, as they are or as `%2F`.

use std::borrow::Cow;

use super::super::percent::decode;
use crate::inference::Version;

/// What is asked of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Metadata,
    Ready,
    Config,
    Statistics,
    Infer,
    Generate,
    GenerateStream,
    TraceSetting,
}

impl Action {
    fn named(word: &str) -> Option<Self> {
        Some(match word {
            "ready" => Self::Ready,
            "config" => Self::Config,
            "stats" => Self::Statistics,
            "infer" => Self::Infer,
            "generate" => Self::Generate,
            "generate_stream" => Self::GenerateStream,
            _ => return None,
        })
    }
}

/// A model, one of its versions maybe, and what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModelRoute<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) version: Option<Version>,
    pub(super) action: Action,
}

impl<'a> ModelRoute<'a> {
    /// Reads the part of the path behind `/v2/models/`. `None` for what is no such path.
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        let (rest, action) = match path.rsplit_once('/').map(|(rest, word)| (rest, Action::named(word))) {
            Some((rest, Some(action))) => (rest, action),
            _ => match path.strip_suffix("/trace/setting") {
                Some(rest) => (rest, Action::TraceSetting),
                None => (path, Action::Metadata),
            },
        };
        let (name, version) = match rest.rsplit_once('/') {
            Some((before, number)) if before.ends_with("/versions") => {
                if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
                    return None;
                }
                // A number too large for a version is a version that is not there.
                (&before[..before.len() - "/versions".len()], Some(number.parse().unwrap_or(Version::MAX)))
            }
            _ => (rest, None),
        };
        // Settings are a model's and not a version's.
        if version.is_some() && action == Action::TraceSetting {
            return None;
        }
        if name.is_empty() || name.ends_with('/') || name.ends_with("/versions") {
            return None;
        }
        Some(Self { name: decode(name)?, version, action })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Option<(String, Option<Version>, Action)> {
        ModelRoute::parse(path).map(|route| (route.name.into_owned(), route.version, route.action))
    }

    #[test]
    fn names_versions_and_actions_are_told_apart() {
        assert_eq!(parse("m"), Some(("m".into(), None, Action::Metadata)));
        assert_eq!(parse("m/infer"), Some(("m".into(), None, Action::Infer)));
        assert_eq!(parse("m/versions/3"), Some(("m".into(), Some(3), Action::Metadata)));
        assert_eq!(parse("m/versions/03/ready"), Some(("m".into(), Some(3), Action::Ready)));
        assert_eq!(parse("a/b.c/infer"), Some(("a/b.c".into(), None, Action::Infer)));
        assert_eq!(parse("a%2Fb%20c/versions/1/config"), Some(("a/b c".into(), Some(1), Action::Config)));
        assert_eq!(parse("100%/infer"), Some(("100%".into(), None, Action::Infer)));
        assert_eq!(parse("a/b/trace/setting"), Some(("a/b".into(), None, Action::TraceSetting)));
        let beyond = parse("m/versions/99999999999999999999");
        assert_eq!(beyond, Some(("m".into(), Some(Version::MAX), Action::Metadata)));
    }

    #[test]
    fn what_triton_has_no_route_for_has_none_here() {
        for path in [
            "",
            "/infer",
            "m/",
            "m/versions",
            "m/versions/",
            "m/versions/abc",
            "m/versions/-1",
            "m/versions/+1/infer",
            "m/versions/1/trace/setting",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
        assert_eq!(parse("%ff/infer"), None);
    }
}

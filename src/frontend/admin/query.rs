//! The query of `GET /v1/residency`: `limit`, `after`, `since`, each once at most.

use super::super::percent;
use crate::error::{Error, Result};
use crate::lifecycle::residency::ResidencyQuery;

/// Models on a page where the query does not say.
const LIMIT: usize = 1_000;

/// The most models on a page.
const MOST: usize = 10_000;

/// Reads the part of a URI behind `?`.
///
/// # Errors
/// `InvalidArgument` that names the parameter.
pub(super) fn parse(query: &str) -> Result<ResidencyQuery> {
    let (mut limit, mut after, mut since) = (None, None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value =
            plain(value).ok_or_else(|| Error::invalid(format!("query parameter '{}' is not UTF-8", shortened(key))))?;
        let twice = match key {
            "limit" => limit.replace(read_limit(&value)?).is_some(),
            "after" => after.replace(value).is_some(),
            "since" => since.replace(read_since(&value)?).is_some(),
            _ => {
                return Err(Error::invalid(format!(
                    "unknown query parameter '{}', known are 'limit', 'after' and 'since'",
                    shortened(key)
                )));
            }
        };
        if twice {
            return Err(Error::invalid(format!("query parameter '{key}' is given twice")));
        }
    }
    Ok(ResidencyQuery { after: after.filter(|name| !name.is_empty()), limit: limit.unwrap_or(LIMIT), since })
}

/// A value as a form writes it: `+` for a space, the rest percent-encoded.
fn plain(value: &str) -> Option<String> {
    percent::decode(&value.replace('+', " ")).map(std::borrow::Cow::into_owned)
}

fn read_limit(value: &str) -> Result<usize> {
    number(value).and_then(|limit| usize::try_from(limit).ok()).filter(|limit| (1..=MOST).contains(limit)).ok_or_else(
        || {
            Error::invalid(format!(
                "query parameter 'limit' is '{}', expected a number from 1 to {MOST}",
                shortened(value)
            ))
        },
    )
}

fn read_since(value: &str) -> Result<u64> {
    number(value).ok_or_else(|| {
        Error::invalid(format!("query parameter 'since' is '{}', expected a page's 'generation'", shortened(value)))
    })
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn shortened(text: &str) -> String {
    text.chars().take(32).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_empty_query_asks_for_a_first_page() {
        for query in ["", "&", "after="] {
            assert_eq!(parse(query).unwrap(), ResidencyQuery { after: None, limit: 1_000, since: None }, "{query}");
        }
    }

    #[test]
    fn all_parameters_are_read() {
        let query = parse("limit=10000&after=team%2Fa+b%2B&since=18446744073709551615").unwrap();
        assert_eq!(query, ResidencyQuery { after: Some("team/a b+".into()), limit: 10_000, since: Some(u64::MAX) });
    }

    #[test]
    fn a_wrong_value_is_refused_with_the_parameters_name() {
        for (query, name) in [
            ("limit=0", "'limit'"),
            ("limit=10001", "'limit'"),
            ("limit=", "'limit'"),
            ("limit", "'limit'"),
            ("limit=+5", "'limit'"),
            ("limit=1e3", "'limit'"),
            ("limit=99999999999999999999999", "'limit'"),
            ("since=-1", "'since'"),
            ("since=18446744073709551616", "'since'"),
            ("after=%ff", "'after'"),
            ("after=a&after=b", "'after'"),
            ("limits=5", "'limits'"),
        ] {
            let error = parse(query).unwrap_err();
            assert_eq!(error.kind(), crate::error::ErrorKind::InvalidArgument, "{query}");
            assert!(error.report().contains(name), "{query}: {}", error.report());
        }
    }

    proptest! {
        #[test]
        fn a_page_after_any_name_can_be_asked_for(name in ".{1,40}") {
            let query = parse(&format!("after={}", percent::encode(&name))).unwrap();
            prop_assert_eq!(query.after, Some(name));
        }

        #[test]
        fn no_query_makes_reading_panic(query in any::<String>()) {
            let _ = parse(&query);
        }
    }
}

//! `GET /v1/digest`: what those are told that choose between instances. Small, and smaller yet to whoever asks with the
//! `cursor` of the one before, as `since`.

use serde::{Serialize, Serializer};

use super::super::percent;
use crate::error::{Error, Result};
use crate::lifecycle::digest::DigestRow;
use crate::server::digest::InstanceDigest;

/// The longest cursor that is ours.
const CURSOR_BYTES: usize = 64;

/// The document.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    cursor: &'a str,
    complete: bool,
    ready: bool,
    draining: bool,
    load_places: usize,
    loads: usize,
    executors: usize,
    models: Rows<'a>,
}

impl<'a> Document<'a> {
    pub(super) fn of(digest: &'a InstanceDigest) -> Self {
        let InstanceDigest { cursor, ready, draining, models } = digest;
        Self {
            cursor,
            complete: models.complete,
            ready: *ready,
            draining: *draining,
            load_places: models.load_places,
            loads: models.loads,
            executors: models.executors,
            models: Rows(&models.models),
        }
    }
}

struct Rows<'a>(&'a [DigestRow]);

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Row::of))
    }
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    state: &'static str,
    in_use: usize,
    parallel: u64,
    load_seconds: Option<f64>,
    uses: u64,
}

impl<'a> Row<'a> {
    fn of(row: &'a DigestRow) -> Self {
        let DigestRow { name, state, in_use, parallel, load_seconds, uses } = row;
        Self {
            name,
            state: state.name(),
            in_use: *in_use,
            parallel: *parallel,
            load_seconds: *load_seconds,
            uses: *uses,
        }
    }
}

/// Reads `since`. `for`, who asks, is a picker's to know: an instance tells everybody the same. A cursor of another start is no mistake: the answer is complete then.
///
/// # Errors
/// `InvalidArgument` that names the parameter.
pub(super) fn since(query: &str) -> Result<Option<String>> {
    let wrong = |text: String| Err(Error::invalid(text));
    let mut cursor = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        match key {
            "since" => {}
            "for" => continue,
            other => {
                let other: String = other.chars().take(32).collect();
                return wrong(format!("unknown query parameter '{other}', known are 'since' and 'for'"));
            }
        }
        let value = percent::decode(value).filter(|value| value.len() <= CURSOR_BYTES);
        let Some(value) = value else {
            return wrong(format!("query parameter 'since' is no digest's 'cursor' of at most {CURSOR_BYTES} bytes"));
        };
        if cursor.replace(value.into_owned()).is_some() {
            return wrong("query parameter 'since' is given twice".to_owned());
        }
    }
    Ok(cursor.filter(|cursor| !cursor.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_and_what_is_none_is_told() {
        assert_eq!(since("").unwrap(), None);
        assert_eq!(since("since=7-12").unwrap(), Some("7-12".to_owned()));
        assert_eq!(since("for=10.0.0.1%3A8000&since=7-12").unwrap(), Some("7-12".to_owned()));
        for query in ["after=x", "since=1&since=2", "since=%ff", &format!("since={}", "1".repeat(65))] {
            assert!(since(query).unwrap_err().report().contains("query parameter"), "{query}");
        }
    }
}

//! An instance's digest, as it comes over the wire: read within limits, and never taken further than it may be true.

use std::sync::Arc;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::picker::digest::{Digest, Held, Row};

/// The largest digest, in bytes: a hundred thousand models in memory.
pub const DIGEST_BYTES: usize = 16 << 20;

/// The most models of a digest.
const MOST_MODELS: usize = 100_000;

/// The longest name of a model, in bytes.
pub(super) const NAME_BYTES: usize = 1024;

/// The longest cursor, in bytes.
const CURSOR_BYTES: usize = 64;

/// The longest load that is believed, in seconds.
const MOST_SECONDS: f64 = 3600.0;

/// The most places and threads that are believed.
const MOST_PLACES: u32 = 1 << 16;

#[derive(Deserialize)]
struct Document {
    cursor: String,
    complete: bool,
    ready: bool,
    draining: bool,
    load_places: u64,
    loads: u64,
    executors: u64,
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    state: String,
    in_use: u64,
    parallel: u64,
    load_seconds: Option<f64>,
    uses: u64,
}

/// Reads a digest.
///
/// # Errors
/// `InvalidArgument` that names the member that is wrong. Nothing is taken of a digest with a fault.
pub fn parse(bytes: &[u8]) -> Result<Digest<Arc<str>>> {
    if bytes.len() > DIGEST_BYTES {
        return Err(Error::invalid(format!("the digest of {} bytes is larger than {DIGEST_BYTES}", bytes.len())));
    }
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| Error::invalid("this is no digest").with_source(error))?;
    let is_cursor = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    if document.cursor.is_empty() || document.cursor.len() > CURSOR_BYTES || !document.cursor.bytes().all(is_cursor) {
        return Err(Error::invalid(format!("'cursor' is no word of at most {CURSOR_BYTES} bytes")));
    }
    if document.models.len() > MOST_MODELS {
        return Err(Error::invalid(format!("'models' has {} rows, at most are {MOST_MODELS}", document.models.len())));
    }
    let mut rows = document.models.into_iter().map(row).collect::<Result<Vec<_>>>()?;
    rows.sort_unstable_by(|one, other| one.model.cmp(&other.model));
    if let Some(twice) = rows.windows(2).find(|pair| pair[0].model == pair[1].model) {
        return Err(Error::invalid(format!("'models' has two rows of '{}'", twice[0].model)));
    }
    let places = |number: u64| u32::try_from(number).unwrap_or(u32::MAX).clamp(1, MOST_PLACES);
    Ok(Digest {
        cursor: document.cursor,
        complete: document.complete,
        ready: document.ready,
        draining: document.draining,
        load_places: places(document.load_places),
        loads: clamped(document.loads),
        executors: places(document.executors),
        rows,
    })
}

fn row(model: Model) -> Result<Row<Arc<str>>> {
    let Model { name, state, in_use, parallel, load_seconds, uses } = model;
    if name.is_empty() || name.len() > NAME_BYTES {
        return Err(Error::invalid(format!("'name' of a model is empty or longer than {NAME_BYTES} bytes")));
    }
    let held = match state.as_str() {
        "READY" => Held::Ready,
        "LOADING" => Held::Loading,
        "UNAVAILABLE" | "UNLOADING" => Held::Gone,
        other => {
            let other: String = other.chars().take(32).collect();
            return Err(Error::invalid(format!("'state' of '{name}' is '{other}', none that is known")));
        }
    };
    Ok(Row {
        model: name.into(),
        held,
        in_use: clamped(in_use),
        parallel: clamped(parallel).max(1),
        load_seconds: load_seconds.filter(|seconds| seconds.is_finite()).unwrap_or(0.0).clamp(0.0, MOST_SECONDS),
        uses,
    })
}

fn clamped(number: u64) -> u32 {
    // Sums of a few thousand of them fit.
    u32::try_from(number).unwrap_or(u32::MAX).min(1 << 20)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn document() -> serde_json::Value {
        json!({
            "cursor": "7-12", "complete": false, "ready": true, "draining": false, "load_places": 4, "loads": 1,
            "executors": 2, "models": [
                {"name": "b", "state": "READY", "in_use": 3, "parallel": 8, "load_seconds": 0.5, "uses": 9},
                {"name": "a", "state": "UNAVAILABLE", "in_use": 0, "parallel": 1, "load_seconds": null, "uses": 0},
            ],
        })
    }

    fn read(document: &serde_json::Value) -> Result<Digest<Arc<str>>> {
        parse(document.to_string().as_bytes())
    }

    #[test]
    fn a_digest_is_read() {
        let digest = read(&document()).unwrap();
        assert_eq!((digest.cursor.as_str(), digest.complete, digest.load_places), ("7-12", false, 4));
        let row = |model: &str, held, in_use, parallel, load_seconds, uses| Row {
            model: model.into(),
            held,
            in_use,
            parallel,
            load_seconds,
            uses,
        };
        assert_eq!(digest.rows, [row("a", Held::Gone, 0, 1, 0.0, 0), row("b", Held::Ready, 3, 8, 0.5, 9)]);
    }

    #[test]
    fn a_digest_with_a_fault_is_refused_with_the_members_name() {
        let wrong = |path: &str, value: serde_json::Value| {
            let mut document = document();
            *document.pointer_mut(path).unwrap() = value;
            read(&document).unwrap_err().report()
        };
        for (path, value, named) in [
            ("/cursor", json!(""), "'cursor'"),
            ("/cursor", json!("a b"), "'cursor'"),
            ("/cursor", json!("1".repeat(65)), "'cursor'"),
            ("/models/0/name", json!(""), "'name'"),
            ("/models/0/name", json!("x".repeat(2000)), "'name'"),
            ("/models/0/name", json!("a"), "two rows of 'a'"),
            ("/models/0/state", json!("WARM"), "'state' of 'b'"),
            ("/loads", json!(-1), "no digest"),
            ("/models", json!({}), "no digest"),
        ] {
            let text = wrong(path, value);
            assert!(text.contains(named), "{path}: {text}");
        }
        assert!(parse(b"").is_err() && parse(b"<html>").is_err() && parse(b"[]").is_err());
    }

    #[test]
    fn numbers_beyond_belief_are_cut() {
        let mut wild = document();
        for (path, value) in
            [("/load_places", json!(0)), ("/executors", json!(u64::MAX)), ("/models/0/parallel", json!(0))]
        {
            *wild.pointer_mut(path).unwrap() = value;
        }
        *wild.pointer_mut("/models/0/load_seconds").unwrap() = json!(-3.0);
        *wild.pointer_mut("/models/0/in_use").unwrap() = json!(u64::MAX);
        let digest = read(&wild).unwrap();
        assert_eq!((digest.load_places, digest.executors), (1, MOST_PLACES));
        assert_eq!((digest.rows[1].parallel, digest.rows[1].load_seconds, digest.rows[1].in_use), (1, 0.0, 1 << 20));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_value_in_any_place_makes_reading_panic(
            place in prop::sample::select(vec!["/cursor", "/models", "/models/0", "/models/0/name", "/loads", ""]),
            value in prop_oneof![
                any::<i64>().prop_map(|number| json!(number)),
                any::<f64>().prop_map(|number| json!(number)),
                ".{0,40}".prop_map(|text| json!(text)),
                Just(json!(null)),
                Just(json!([[[]]])),
            ],
        ) {
            let mut document = document();
            *document.pointer_mut(place).unwrap() = value;
            let _ = read(&document);
        }
    }
}

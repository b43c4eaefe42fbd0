//! Headers that say where a model was when its request came, and how long its load held the request up.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::lifecycle::handle::ModelHandle;
use crate::lifecycle::residency::Tier;

/// The tier the model was on when the request came: `device`, `host`, `disk` or `remote`.
pub const MODEL_STATE: HeaderName = HeaderName::from_static("x-model-state");

/// Whole milliseconds that the request waited for its model's load.
pub const LOAD_MS: HeaderName = HeaderName::from_static("x-load-ms");

/// Where an answer's model came from: kept when the handle is gone already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provenance {
    from: Tier,
    waited: Duration,
}

impl Provenance {
    /// That of the model under `handle`.
    #[must_use]
    pub fn of(handle: &ModelHandle) -> Self {
        Self { from: handle.from(), waited: handle.waited() }
    }

    /// Puts both headers in. A model that was there already costs no allocation of a value.
    pub fn write(self, headers: &mut HeaderMap) {
        headers.insert(MODEL_STATE, HeaderValue::from_static(self.from.name()));
        headers.insert(
            LOAD_MS,
            match u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX) {
                0 => HeaderValue::from_static("0"),
                milliseconds => HeaderValue::from(milliseconds),
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_say_the_tier_and_whole_milliseconds() {
        let mut headers = HeaderMap::new();
        Provenance { from: Tier::Device, waited: Duration::from_micros(999) }.write(&mut headers);
        assert_eq!((&headers[MODEL_STATE], &headers[LOAD_MS]), (&"device".parse().unwrap(), &"0".parse().unwrap()));
        Provenance { from: Tier::Remote, waited: Duration::from_micros(41_999) }.write(&mut headers);
        assert_eq!((&headers[MODEL_STATE], &headers[LOAD_MS]), (&"remote".parse().unwrap(), &"41".parse().unwrap()));
        assert_eq!(headers.len(), 2, "the second answer replaces the first one's headers");
    }
}

//! What a model needs on its device: measured where it was loaded before, else declared, else estimated from its files.
//! Pure.

use std::collections::HashMap;

use crate::inference::DeviceId;
use crate::repository::manifest::Fingerprint;

/// What an earlier load of the same content came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Past {
    /// Bytes on the device, measured.
    pub bytes: u64,
    /// Seconds that the runtime's load took.
    pub seconds: f64,
}

/// Where an expectation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An earlier load.
    Measured,
    /// The configuration.
    Declared,
    /// The files.
    Estimated,
}

impl Source {
    /// The word in documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Declared => "declared",
            Self::Estimated => "estimated",
        }
    }
}

/// What a load is expected to need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Bytes on the device.
    pub bytes: u64,
    /// Why so many.
    pub source: Source,
}

/// What a runtime takes for a model beside its weights: its graph, its queue.
const GRAPH_BYTES: u64 = 256 << 10;

/// Chooses among what is known.
#[must_use]
pub fn need(past: Option<Past>, declared: Option<u64>, file_bytes: u64) -> Need {
    match (past, declared) {
        (Some(past), _) => Need { bytes: past.bytes, source: Source::Measured },
        (None, Some(bytes)) => Need { bytes, source: Source::Declared },
        // Weights are in memory as they are in the file (reference: 96.2 MiB for 96, 3.9 for 3.7).
        (None, None) => Need { bytes: file_bytes.saturating_add(GRAPH_BYTES), source: Source::Estimated },
    }
}

/// What a load of files took, by the growth of the memory in use: weights that are mapped are in no such count, so it is
/// not less than the files. `None` where requests must have got into the count: no runtime makes that of such files.
#[must_use]
pub fn plausible(growth: u64, file_bytes: u64) -> Option<u64> {
    let most = file_bytes.saturating_mul(16).saturating_add(64 << 20);
    (growth <= most).then_some(growth.max(file_bytes))
}

/// Contents that are remembered, about 80 bytes each.
const REMEMBERED: usize = 8_192;

/// What earlier loads came to, by content and device. Forgets what was not asked for or loaded during the last
/// `REMEMBERED` others, at the latest after twice as many.
#[derive(Debug, Default)]
pub struct History {
    young: HashMap<(Fingerprint, DeviceId), Past>,
    old: HashMap<(Fingerprint, DeviceId), Past>,
}

impl History {
    /// What the last load came to.
    pub fn get(&mut self, content: Fingerprint, device: DeviceId) -> Option<Past> {
        let key = (content, device);
        if let Some(past) = self.young.get(&key) {
            return Some(*past);
        }
        let past = self.old.remove(&key)?;
        self.record(content, device, past);
        Some(past)
    }

    /// A load came to this.
    pub fn record(&mut self, content: Fingerprint, device: DeviceId, past: Past) {
        if self.young.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert((content, device), past);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(number: u64) -> Fingerprint {
        Fingerprint::parse(&format!("{number:032x}")).unwrap()
    }

    #[test]
    fn what_was_measured_counts_before_what_is_declared_and_that_before_the_files() {
        let past = Some(Past { bytes: 7, seconds: 1.0 });
        assert_eq!(need(past, Some(5), 3), Need { bytes: 7, source: Source::Measured });
        assert_eq!(need(None, Some(5), 3), Need { bytes: 5, source: Source::Declared });
        assert_eq!(need(None, None, 3), Need { bytes: 3 + GRAPH_BYTES, source: Source::Estimated });
        assert_eq!(need(None, None, u64::MAX).bytes, u64::MAX);
    }

    #[test]
    fn a_growth_that_no_load_makes_is_not_taken_for_one() {
        assert_eq!(plausible(5 << 20, 2 << 20), Some(5 << 20));
        assert_eq!(plausible(1 << 20, 90 << 20), Some(90 << 20), "mapped weights do not grow malloc's count");
        assert_eq!(plausible(1 << 30, 2 << 20), None);
    }

    #[test]
    fn history_keeps_what_is_asked_for_and_stays_small() {
        let mut history = History::default();
        let past = Past { bytes: 1, seconds: 2.0 };
        history.record(content(0), DeviceId::Cpu, past);
        for number in 1..4 * REMEMBERED as u64 {
            history.record(content(number), DeviceId::Cpu, past);
            if number % 1_000 == 0 {
                assert_eq!(history.get(content(0), DeviceId::Cpu), Some(past));
            }
            assert!(history.young.len() + history.old.len() <= 2 * REMEMBERED);
        }
        assert_eq!(history.get(content(1), DeviceId::Cpu), None);
        assert_eq!(history.get(content(0), DeviceId::Gpu(0)), None);
    }
}

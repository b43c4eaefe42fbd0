//! Whether a model is so quick that the thread which decoded the request may as well run it.
//!
//! Handing a request to another thread and back costs two wake-ups, some 5 to 10 us: more than a small model takes. A
//! model earns the short way by a row of short runs and loses it by one long one, so that the threads that serve
//! connections are never held for longer than [`LIMIT`] but by the run that loses it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A run up to this long is short. Tokio asks that a task runs 10 to 100 us between two awaits.
pub const LIMIT: Duration = Duration::from_micros(100);

/// Short runs in a row that earn the short way.
pub const ROW: u32 = 16;

/// Counts short runs in a row.
#[derive(Debug, Default)]
pub struct Promptness(AtomicU32);

impl Promptness {
    /// Whether the next run may be made where the request is.
    #[must_use]
    pub fn is_prompt(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= ROW
    }

    /// Takes a run's duration into account.
    pub fn observe(&self, run: Duration) {
        if run > LIMIT {
            self.0.store(0, Ordering::Relaxed);
        } else if !self.is_prompt() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_short_runs_earns_the_short_way_and_a_long_one_loses_it() {
        let promptness = Promptness::default();
        for _ in 0..ROW {
            assert!(!promptness.is_prompt());
            promptness.observe(Duration::from_micros(3));
        }
        assert!(promptness.is_prompt());
        promptness.observe(LIMIT + Duration::from_nanos(1));
        assert!(!promptness.is_prompt());
        promptness.observe(Duration::ZERO);
        assert!(!promptness.is_prompt());
    }
}

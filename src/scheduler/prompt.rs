//! Whether a model is so quick that the thread which decoded the request may as well run it.
//!
//! Handing a request to another thread and back costs two wake-ups, some 5 to 10 us: more than a small model takes. A
//! model earns the short way by a row of short runs and loses it by one long one, so that the threads that serve
//! connections are never held for longer than [`LIMIT`] but by the run that loses it. That run costs others once: while it
//! lasts, what waits in the same thread waits with it, and tokio may leave the sockets unwatched where the other threads
//! are asleep. One thread is kept free of such runs where there are several (`Executor::start`).

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// A run up to this long is short. Tokio asks that a task runs 10 to 100 us between two awaits.
pub const LIMIT: Duration = Duration::from_micros(100);

/// Short runs in a row that earn the short way.
pub const ROW: u32 = 16;

/// Counts short runs in a row, and how large their inputs were: a request larger than those says nothing yet of how long
/// it will take.
#[derive(Debug, Default)]
pub struct Promptness {
    row: AtomicU32,
    largest: AtomicUsize,
}

impl Promptness {
    /// Whether the next run, over `bytes` of input, may be made where the request is.
    #[must_use]
    pub fn is_prompt(&self, bytes: usize) -> bool {
        self.row.load(Ordering::Relaxed) >= ROW && bytes <= self.largest.load(Ordering::Relaxed)
    }

    /// Takes a run's duration into account.
    pub fn observe(&self, run: Duration, bytes: usize) {
        if run > LIMIT {
            self.row.store(0, Ordering::Relaxed);
            self.largest.store(0, Ordering::Relaxed);
            return;
        }
        if self.row.load(Ordering::Relaxed) < ROW {
            self.row.fetch_add(1, Ordering::Relaxed);
        }
        if self.largest.load(Ordering::Relaxed) < bytes {
            self.largest.fetch_max(bytes, Ordering::Relaxed);
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
            assert!(!promptness.is_prompt(8));
            promptness.observe(Duration::from_micros(3), 8);
        }
        assert!(promptness.is_prompt(8));
        promptness.observe(LIMIT + Duration::from_nanos(1), 8);
        assert!(!promptness.is_prompt(8));
        promptness.observe(Duration::ZERO, 8);
        assert!(!promptness.is_prompt(8));
    }

    #[test]
    fn a_request_larger_than_any_short_one_goes_the_long_way_first() {
        let promptness = Promptness::default();
        for _ in 0..ROW {
            promptness.observe(Duration::ZERO, 64);
        }
        assert!(promptness.is_prompt(64));
        assert!(!promptness.is_prompt(65));
        promptness.observe(Duration::ZERO, 128);
        assert!(promptness.is_prompt(100));
    }
}

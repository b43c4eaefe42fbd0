//! What is counted where it happens, for signals that a page of totals cannot tell: how long a device ran, and how many
//! wait for how long, those that still wait included.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metrics::{Counter, CounterFn};
use parking_lot::Mutex;

use super::statistics::DurationSum;

/// What a device did since the server started. Recording is a few relaxed additions.
#[derive(Debug, Default)]
pub struct DeviceMeter {
    /// Turns of its threads, and runs on the short way past them.
    pub busy: DurationSum,
    /// Executions of models whose first instance is here, and how many requests they answered.
    executions: AtomicU64,
    requests: AtomicU64,
    /// Requests answered, and how long they were in a queue.
    pub queued: DurationSum,
}

impl DeviceMeter {
    /// Counts an execution that answered `requests`.
    pub fn executed(&self, requests: u64) {
        self.executions.fetch_add(1, Ordering::Relaxed);
        self.requests.fetch_add(requests, Ordering::Relaxed);
    }

    /// Executions, and the requests they answered.
    pub fn executions(&self) -> (u64, u64) {
        (self.executions.load(Ordering::Relaxed), self.requests.load(Ordering::Relaxed))
    }
}

/// How many wait, and the time that all have waited together. It is exact at any moment: whoever waits for a minute counts
/// from its first second on, not at its end.
#[derive(Debug, Default)]
pub struct WaitClock(Mutex<Waits>);

#[derive(Debug, Default)]
struct Waits {
    waiting: u32,
    /// Until `at`.
    total: Duration,
    at: Option<Instant>,
}

impl Waits {
    fn advance(&mut self, now: Instant) {
        let at = self.at.replace(now).unwrap_or(now);
        self.total += now.saturating_duration_since(at).saturating_mul(self.waiting);
    }
}

impl WaitClock {
    /// Waits from now on, until the handle is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Waiting {
        self.change(Instant::now(), |waiting| waiting.saturating_add(1));
        Waiting(Arc::clone(self))
    }

    /// How many wait at `now`, and how long all have waited until then.
    pub fn read(&self, now: Instant) -> (u32, Duration) {
        let mut waits = self.0.lock();
        waits.advance(now);
        (waits.waiting, waits.total)
    }

    fn change(&self, now: Instant, change: impl FnOnce(u32) -> u32) {
        let mut waits = self.0.lock();
        waits.advance(now);
        waits.waiting = change(waits.waiting);
    }
}

/// One that waits.
#[derive(Debug)]
pub struct Waiting(Arc<WaitClock>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.change(Instant::now(), |waiting| waiting.saturating_sub(1));
    }
}

/// A counter of the exporter's that can be read back, which the exporter's own cannot.
pub(super) struct Counted {
    total: AtomicU64,
    onward: Counter,
}

impl Counted {
    /// The counter to count with, and what it has counted.
    pub(super) fn over(onward: Counter) -> (Counter, Arc<Self>) {
        let counted = Arc::new(Self { total: AtomicU64::new(0), onward });
        (Counter::from_arc(Arc::clone(&counted)), counted)
    }

    pub(super) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

impl CounterFn for Counted {
    fn increment(&self, value: u64) {
        self.total.fetch_add(value, Ordering::Relaxed);
        self.onward.increment(value);
    }

    fn absolute(&self, value: u64) {
        self.total.fetch_max(value, Ordering::Relaxed);
        self.onward.absolute(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_still_waits_is_in_the_sum() {
        let clock = WaitClock::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        clock.change(at(0), |waiting| waiting + 1);
        clock.change(at(10), |waiting| waiting + 1);
        assert_eq!(clock.read(at(15)), (2, Duration::from_secs(20)));
        clock.change(at(20), |waiting| waiting - 1);
        clock.change(at(21), |waiting| waiting - 1);
        assert_eq!(clock.read(at(100)), (0, Duration::from_secs(31)));
        // A clock of another thread that is a little behind takes nothing back.
        assert_eq!(clock.read(at(99)), (0, Duration::from_secs(31)));
    }

    #[test]
    fn a_handle_that_is_dropped_waits_no_more() {
        let clock = Arc::new(WaitClock::default());
        let (one, other) = (clock.enter(), clock.enter());
        drop(one);
        assert_eq!(clock.read(Instant::now()).0, 1);
        drop(other);
        assert_eq!(clock.read(Instant::now()).0, 0);
    }

    #[test]
    fn what_is_counted_goes_on_to_the_exporter() {
        let (inner, exported) = Counted::over(Counter::noop());
        let (counter, counted) = Counted::over(inner);
        counter.increment(3);
        counter.absolute(2);
        counter.absolute(7);
        assert_eq!((counted.total(), exported.total()), (7, 7));
    }
}

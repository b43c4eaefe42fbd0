//! placeholder until the learner is in
use std::time::{Duration, Instant};
/// Learner.
#[derive(Debug)]
pub struct Budget;
impl Budget {
    /// New.
    #[must_use]
    pub fn new(_budget: Duration, _max_items: u32) -> Self {
        Self
    }
    /// Run.
    pub fn observe_run(&mut self, _items: u32, _run: Duration) {}
    /// Arrival.
    pub fn observe_arrival(&mut self, _now: Instant, _items: u32) {}
    /// Delay.
    #[must_use]
    pub fn delay(&self, _now: Instant, _waiting: u64, _oldest: Instant) -> Duration {
        Duration::ZERO
    }
}

//! What a loaded model counts: the KServe statistics extension and the `nv_inference_*` series both read from here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

/// Why a request failed, in Triton's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureReason {
    /// Not taken: the queue was full, or the deadline passed before it ran.
    Rejected,
    /// The caller went away.
    Canceled,
    /// The runtime failed.
    Backend,
    /// Anything else: a wrong request, mostly.
    Other,
}

impl FailureReason {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Rejected, Self::Canceled, Self::Backend, Self::Other];

    /// The label value.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Rejected => "REJECTED",
            Self::Canceled => "CANCELED",
            Self::Backend => "BACKEND",
            Self::Other => "OTHER",
        }
    }
}

/// How often and how long in all.
#[derive(Debug, Default)]
pub struct DurationSum {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl DurationSum {
    /// Adds one duration.
    pub fn add(&self, duration: Duration) {
        self.add_times(1, duration);
    }

    /// Adds `count` occurrences that took `duration` together.
    pub fn add_times(&self, count: u64, duration: Duration) {
        self.count.fetch_add(count, Ordering::Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How often.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// How long in all, in nanoseconds.
    pub fn nanoseconds(&self) -> u64 {
        self.nanoseconds.load(Ordering::Relaxed)
    }
}

/// When the parts of one execution began and ended.
#[derive(Clone, Copy, Debug)]
pub struct ExecutionTimes {
    /// Inputs are being prepared.
    pub start: Instant,
    /// The model runs.
    pub compute_start: Instant,
    /// The model is done; outputs are taken.
    pub compute_end: Instant,
    /// Outputs are there.
    pub end: Instant,
}

impl ExecutionTimes {
    fn parts(&self) -> [Duration; 3] {
        [
            self.compute_start.saturating_duration_since(self.start),
            self.compute_end.saturating_duration_since(self.compute_start),
            self.end.saturating_duration_since(self.compute_end),
        ]
    }
}

/// Executions at one batch size: count, and input, infer, output nanoseconds.
pub type BatchStatistics = [u64; 4];

/// A model version's counters. Recording takes no lock but for batches larger than one.
#[derive(Debug, Default)]
pub struct ModelStatistics {
    /// Requests answered, from arrival to answer.
    pub success: DurationSum,
    /// Requests failed, from arrival to the error.
    pub fail: DurationSum,
    /// Time in the queue of answered requests.
    pub queue: DurationSum,
    /// Preparing inputs.
    pub compute_input: DurationSum,
    /// Running.
    pub compute_infer: DurationSum,
    /// Extracting outputs.
    pub compute_output: DurationSum,
    /// Answers that were there already: finding them. They count as answered requests, not as inferences.
    pub cache_hit: DurationSum,
    /// Requests whose answer was not there: looking for it, and keeping the one that was computed.
    pub cache_miss: DurationSum,
    failures: [AtomicU64; 4],
    inferences: AtomicU64,
    executions: AtomicU64,
    last_inference_ms: AtomicU64,
    single: [AtomicU64; 4],
    batches: Mutex<BTreeMap<u64, BatchStatistics>>,
}

impl ModelStatistics {
    /// Records an execution of `batch_size` inferences that answered `requests` requests.
    pub fn record_execution(&self, batch_size: u64, requests: u64, times: &ExecutionTimes) {
        let parts = times.parts();
        self.executions.fetch_add(1, Ordering::Relaxed);
        self.inferences.fetch_add(batch_size, Ordering::Relaxed);
        for (sum, part) in [&self.compute_input, &self.compute_infer, &self.compute_output].into_iter().zip(parts) {
            sum.add_times(requests, part);
        }
        let nanoseconds = parts.map(|part| u64::try_from(part.as_nanos()).unwrap_or(u64::MAX));
        if batch_size == 1 {
            for (counter, value) in self.single.iter().zip(std::iter::once(1).chain(nanoseconds)) {
                counter.fetch_add(value, Ordering::Relaxed);
            }
        } else {
            let mut batches = self.batches.lock();
            let entry = batches.entry(batch_size).or_default();
            for (counter, value) in entry.iter_mut().zip(std::iter::once(1).chain(nanoseconds)) {
                *counter = counter.saturating_add(value);
            }
        }
    }

    /// Records a request that was answered.
    pub fn record_success(&self, total: Duration, queued: Duration) {
        self.success.add(total);
        self.queue.add(queued);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        self.last_inference_ms.store(u64::try_from(now).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Records a request that failed.
    pub fn record_failure(&self, reason: FailureReason, total: Duration) {
        self.fail.add(total);
        self.failures[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Requests failed for `reason`.
    pub fn failures(&self, reason: FailureReason) -> u64 {
        self.failures[reason as usize].load(Ordering::Relaxed)
    }

    /// Inferences, a batch of n counted n times.
    pub fn inferences(&self) -> u64 {
        self.inferences.load(Ordering::Relaxed)
    }

    /// Executions.
    pub fn executions(&self) -> u64 {
        self.executions.load(Ordering::Relaxed)
    }

    /// When the last request was answered, in milliseconds since 1970; 0 for never.
    pub fn last_inference_ms(&self) -> u64 {
        self.last_inference_ms.load(Ordering::Relaxed)
    }

    /// Executions by batch size.
    pub fn batches(&self) -> BTreeMap<u64, BatchStatistics> {
        let mut batches = self.batches.lock().clone();
        let single = self.single.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        if single[0] > 0 {
            batches.insert(1, single);
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_counted_by_batch_size() {
        let statistics = ModelStatistics::default();
        let start = Instant::now();
        let at = |ns| start + Duration::from_nanos(ns);
        let times = ExecutionTimes { start, compute_start: at(10), compute_end: at(110), end: at(115) };
        statistics.record_execution(1, 1, &times);
        statistics.record_execution(4, 2, &times);
        assert_eq!(statistics.executions(), 2);
        assert_eq!(statistics.inferences(), 5);
        assert_eq!(statistics.compute_infer.count(), 3);
        assert_eq!(statistics.batches()[&1], [1, 10, 100, 5]);
        assert_eq!(statistics.batches()[&4], [1, 10, 100, 5]);
    }

    #[test]
    fn failures_are_counted_by_reason() {
        let statistics = ModelStatistics::default();
        statistics.record_failure(FailureReason::Rejected, Duration::from_nanos(5));
        assert_eq!(statistics.failures(FailureReason::Rejected), 1);
        assert_eq!(statistics.failures(FailureReason::Backend), 0);
        assert_eq!(statistics.fail.count(), 1);
    }
}

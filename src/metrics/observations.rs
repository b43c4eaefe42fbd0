//! What CloudWatch is told, gathered as statistic sets: of any number of observations their count, sum, least and greatest.
//! The names and units are those that SageMaker has for its endpoints.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::{Histogram, HistogramFn};
use parking_lot::Mutex;

/// What there was of a metric in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StatisticSet {
    /// How many observations.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// The least.
    pub least: f64,
    /// The greatest.
    pub greatest: f64,
}

impl StatisticSet {
    /// Adds `times` observations of the same value. One that is no number is none.
    pub fn add(&mut self, value: f64, times: u64) {
        if times == 0 || !value.is_finite() {
            return;
        }
        (self.least, self.greatest) =
            if self.count == 0 { (value, value) } else { (self.least.min(value), self.greatest.max(value)) };
        self.count = self.count.saturating_add(times);
        #[expect(clippy::cast_precision_loss, reason = "sums are doubles")]
        let sum = value * times as f64;
        self.sum += sum;
    }
}

/// The unit of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Microseconds.
    Microseconds,
    /// Hundredths; a device that is all in use is 100, and several add up.
    Percent,
    /// None.
    None,
}

impl Unit {
    /// CloudWatch's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Microseconds => "Microseconds",
            Self::Percent => "Percent",
            Self::None => "None",
        }
    }
}

macro_rules! observed {
    ($($(#[$doc:meta])* $name:ident: $unit:ident,)*) => {
        /// A metric of CloudWatch's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Observed { $($(#[$doc])* $name,)* }

        impl Observed {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// Its unit.
            #[must_use]
            pub const fn unit(self) -> Unit {
                match self { $(Self::$name => Unit::$unit,)* }
            }
        }
    };
}

observed! {
    /// An inference was asked for: 1 each.
    Invocations: None,
    /// 1 for each that failed by the caller's fault, else 0.
    Invocation4XXErrors: None,
    /// 1 for each that failed by ours, else 0.
    Invocation5XXErrors: None,
    /// 1 for each that failed in the model, else 0.
    InvocationModelErrors: None,
    /// From the model's queue to its answer.
    ModelLatency: Microseconds,
    /// From the request's arrival to the model's queue, waiting for a load included.
    OverheadLatency: Microseconds,
    /// What a request waited for its model's load.
    ModelLoadingWaitTime: Microseconds,
    /// Fetching a model.
    ModelDownloadingTime: Microseconds,
    /// Loading it from this machine's disk.
    ModelLoadingTime: Microseconds,
    /// Unloading it.
    ModelUnloadingTime: Microseconds,
    /// 1 for each request whose model was in memory, else 0.
    ModelCacheHit: None,
    /// Models in memory.
    LoadedModelCount: None,
    /// How busy the host's processors are.
    CPUUtilization: Percent,
    /// How busy the GPUs are.
    GPUUtilization: Percent,
    /// How full their memory is.
    GPUMemoryUtilization: Percent,
    /// How full the host's memory is.
    MemoryUtilization: Percent,
    /// How full the disk is that models are fetched to.
    DiskUtilization: Percent,
    /// Ours: what to scale by.
    ScalePressure: None,
}

/// The metrics of the present period. An observation takes a lock of a metric's own for a few instructions.
#[derive(Debug)]
pub struct Observations {
    sets: Vec<Mutex<StatisticSet>>,
    wanted: AtomicBool,
}

impl Default for Observations {
    fn default() -> Self {
        Self { sets: Observed::ALL.iter().map(|_| Mutex::default()).collect(), wanted: AtomicBool::new(false) }
    }
}

impl Observations {
    /// Says that somebody takes them: until then none are made.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Whether somebody takes them.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// Observes `value`, in the metric's unit.
    pub fn observe(&self, metric: Observed, value: f64) {
        self.observe_many(metric, value, 1);
    }

    /// Observes the same value `times`.
    pub fn observe_many(&self, metric: Observed, value: f64, times: u64) {
        if self.is_wanted()
            && let Some(set) = self.sets.get(metric as usize)
        {
            set.lock().add(value, times);
        }
    }

    /// Observes a duration, in microseconds.
    pub fn observe_time(&self, metric: Observed, took: Duration) {
        self.observe(metric, took.as_secs_f64() * 1e6);
    }

    /// What was observed since the last call; metrics without an observation are left out.
    #[must_use]
    pub fn take(&self) -> Vec<(Observed, StatisticSet)> {
        let taken =
            Observed::ALL.iter().zip(&self.sets).map(|(metric, set)| (*metric, std::mem::take(&mut *set.lock())));
        taken.filter(|(_, set)| set.count > 0).collect()
    }
}

/// A histogram of the exporter's, in seconds, that is observed on the way.
pub(super) struct Tee {
    metric: Observed,
    observations: Arc<Observations>,
    onward: Histogram,
}

impl Tee {
    pub(super) fn over(onward: Histogram, metric: Observed, observations: &Arc<Observations>) -> Histogram {
        Histogram::from_arc(Arc::new(Self { metric, observations: Arc::clone(observations), onward }))
    }
}

impl HistogramFn for Tee {
    fn record(&self, seconds: f64) {
        self.observations.observe(self.metric, seconds * 1e6);
        self.onward.record(seconds);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_set_says_what_there_was_of_each_metric_since_the_last() {
        let observations = Observations::default();
        observations.observe(Observed::Invocations, 1.0);
        assert_eq!(observations.take(), [], "nobody wants them yet");
        observations.want();
        observations.observe_time(Observed::ModelLatency, Duration::from_micros(30));
        observations.observe_time(Observed::ModelLatency, Duration::from_micros(10));
        observations.observe_many(Observed::ModelCacheHit, 0.0, 3);
        observations.observe_many(Observed::ModelCacheHit, 1.0, 1);
        let taken = observations.take();
        assert_eq!(taken.len(), 2);
        let (latency, hits) = (taken[0], taken[1]);
        assert_eq!((latency.0, latency.1.count), (Observed::ModelLatency, 2));
        assert!((latency.1.sum - 40.0).abs() < 1e-6 && (latency.1.least - 10.0).abs() < 1e-6, "{latency:?}");
        assert_eq!(hits, (Observed::ModelCacheHit, StatisticSet { count: 4, sum: 1.0, least: 0.0, greatest: 1.0 }));
        assert_eq!(observations.take(), []);
    }

    #[test]
    fn a_histogram_is_observed_in_microseconds() {
        let observations = Arc::new(Observations::default());
        observations.want();
        Tee::over(Histogram::noop(), Observed::ModelLoadingWaitTime, &observations).record(0.5);
        let taken = observations.take();
        assert_eq!((taken[0].0, taken[0].1.sum), (Observed::ModelLoadingWaitTime, 500_000.0));
    }

    proptest! {
        #[test]
        fn a_set_has_its_mean_between_its_least_and_its_greatest(values in prop::collection::vec(prop::num::f64::ANY, 0..50)) {
            let mut set = StatisticSet::default();
            for value in &values {
                set.add(value.clamp(-1e9, 1e9), 1);
            }
            let numbers = values.iter().filter(|value| !value.is_nan()).count() as u64;
            prop_assert_eq!(set.count, numbers);
            if numbers > 0 {
                let mean = set.sum / numbers as f64;
                prop_assert!(set.least - 1e-3 <= mean && mean <= set.greatest + 1e-3);
            }
        }
    }
}

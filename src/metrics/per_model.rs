//! The families with a series a model, straight from the statistics of what is loaded: for the busiest models, and one for
//! all others together.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;

use super::busiest::{Candidate, Counts};
use super::defs::{self, Family, Kind};
use super::statistics::{FailureReason, ModelStatistics};

/// The model of the series that all others share. It is no name of a model: `docker/` and the README know it too.
pub const OTHERS: &str = "*";

/// What the page needs to know of one loaded version.
pub struct ModelSeries<'a> {
    /// The `model` label.
    pub model: &'a Arc<str>,
    /// The `version` label.
    pub version: u64,
    /// Its counters.
    pub statistics: &'a ModelStatistics,
    /// Requests in its queue.
    pub pending: usize,
    /// How long its load took, in seconds.
    pub load_seconds: f64,
    /// Whether its answers are kept.
    pub cached: bool,
}

type Read = fn(&ModelStatistics) -> u64;

/// Counters of each model, and where each is read.
const COUNTERS: [(Family, Read); FAILURES] = [
    (defs::REQUEST_SUCCESS, |statistics| statistics.success.count()),
    (defs::INFERENCE_COUNT, ModelStatistics::inferences),
    (defs::EXECUTION_COUNT, ModelStatistics::executions),
    (defs::REQUEST_DURATION, |statistics| statistics.success.nanoseconds() / 1000),
    (defs::QUEUE_DURATION, |statistics| statistics.queue.nanoseconds() / 1000),
    (defs::COMPUTE_INPUT_DURATION, |statistics| statistics.compute_input.nanoseconds() / 1000),
    (defs::COMPUTE_INFER_DURATION, |statistics| statistics.compute_infer.nanoseconds() / 1000),
    (defs::COMPUTE_OUTPUT_DURATION, |statistics| statistics.compute_output.nanoseconds() / 1000),
];

/// Counters of the models whose answers are kept.
const CACHE_COUNTERS: [(Family, Read); CACHE_COUNTERS_LEN] = [
    (defs::CACHE_HITS, |statistics| statistics.cache_hit.count()),
    (defs::CACHE_MISSES, |statistics| statistics.cache_miss.count()),
    (defs::CACHE_HIT_DURATION, |statistics| statistics.cache_hit.nanoseconds() / 1000),
    (defs::CACHE_MISS_DURATION, |statistics| statistics.cache_miss.nanoseconds() / 1000),
];

// Numbers by themselves, since a type is made of them: rustc 1.95 goes in a circle, where it optimises, when the length of
// an array has to be found by a call of `defs`.
const FAILURES: usize = 8;
const REASONS: usize = 4;
const CACHE_COUNTERS_LEN: usize = 4;
const CACHES: usize = FAILURES + REASONS;
const _: () = assert!(REASONS == FailureReason::ALL.len(), "REASONS is out of step");

/// How many counters a model has.
pub(super) const COUNTS: usize = CACHES + CACHE_COUNTERS_LEN;

/// One row of each family.
struct Row<'a> {
    model: Cow<'a, str>,
    /// Empty for those that share a row.
    version: String,
    counts: Counts,
    pending: usize,
    /// Of those that share a row there is none.
    load_seconds: Option<f64>,
    cached: bool,
}

impl ModelSeries<'_> {
    fn counts(&self) -> Counts {
        let mut counts = [0; COUNTS];
        let plain = COUNTERS.iter().map(|(_, read)| read(self.statistics));
        let failed = FailureReason::ALL.iter().map(|reason| self.statistics.failures(*reason));
        let cache = CACHE_COUNTERS.iter().map(|(_, read)| read(self.statistics));
        for (count, value) in counts.iter_mut().zip(plain.chain(failed).chain(cache)) {
            *count = value;
        }
        counts
    }

    /// What the choice of the busiest goes by.
    pub(super) fn candidate(&self) -> Candidate<'_> {
        let requests = self.statistics.success.count().saturating_add(self.statistics.fail.count());
        Candidate { name: self.model, version: self.version, counts: self.counts(), requests }
    }

    fn row(&self) -> Row<'_> {
        Row {
            model: escape_label(self.model),
            version: self.version.to_string(),
            counts: self.counts(),
            pending: self.pending,
            load_seconds: Some(self.load_seconds),
            cached: self.cached,
        }
    }
}

/// Writes the families of `models`, in the order of their names, those that are `shown` with series of their own and `rest` as what all others counted.
pub(super) fn render_models(page: &mut String, models: &[ModelSeries<'_>], shown: &[bool], rest: Option<Counts>) {
    let is_shown = |index: usize| shown.get(index).copied().unwrap_or(true);
    let mut ordered: Vec<_> = (0..).zip(models).filter(|(at, _)| is_shown(*at)).map(|(_, series)| series).collect();
    ordered.sort_unstable_by_key(|series| (&**series.model, series.version));
    let mut rows: Vec<_> = ordered.into_iter().map(ModelSeries::row).collect();
    if let Some(counts) = rest {
        rows.push(Row {
            model: Cow::Borrowed(OTHERS),
            version: String::new(),
            counts,
            pending: (0..).zip(models).filter(|(at, _)| !is_shown(*at)).map(|(_, series)| series.pending).sum(),
            load_seconds: None,
            cached: counts[CACHES..].iter().any(|count| *count > 0),
        });
    }
    if rows.is_empty() {
        return;
    }
    // Writing into a String cannot fail.
    for (index, (family, _)) in COUNTERS.iter().enumerate() {
        head(page, family);
        for row in &rows {
            let _ = writeln!(page, "{}{{{}}} {}", family.name, row.labels(), row.counts[index]);
        }
    }
    head(page, &defs::PENDING_REQUESTS);
    for row in &rows {
        let _ = writeln!(page, "{}{{{}}} {}", defs::PENDING_REQUESTS.name, row.labels(), row.pending);
    }
    if rows.iter().any(|row| row.load_seconds.is_some()) {
        head(page, &defs::MODEL_LOAD_DURATION);
    }
    for (row, seconds) in rows.iter().filter_map(|row| Some((row, row.load_seconds?))) {
        let _ = writeln!(page, "{}{{{}}} {seconds}", defs::MODEL_LOAD_DURATION.name, row.labels());
    }
    if rows.iter().any(|row| row.cached) {
        for (index, (family, _)) in CACHE_COUNTERS.iter().enumerate() {
            head(page, family);
            for row in rows.iter().filter(|row| row.cached) {
                let _ = writeln!(page, "{}{{{}}} {}", family.name, row.labels(), row.counts[CACHES + index]);
            }
        }
    }
    head(page, &defs::REQUEST_FAILURE);
    for row in &rows {
        for (index, reason) in FailureReason::ALL.iter().enumerate() {
            let (name, labels, reason) = (defs::REQUEST_FAILURE.name, row.labels(), reason.label());
            let _ = writeln!(page, "{name}{{{labels},reason=\"{reason}\"}} {}", row.counts[FAILURES + index]);
        }
    }
}

impl Row<'_> {
    fn labels(&self) -> impl std::fmt::Display + '_ {
        std::fmt::from_fn(|f| write!(f, "model=\"{}\",version=\"{}\"", self.model, self.version))
    }
}

/// Writes what stands before the series of a family.
pub(super) fn head(page: &mut String, family: &Family) {
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let _ = write!(page, "# HELP {0} {1}\n# TYPE {0} {kind}\n", family.name, family.help);
}

fn escape_label(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

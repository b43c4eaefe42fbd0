//! The families with a series a model, straight from the statistics of what is loaded.

use std::fmt::Write;

use super::defs::{self, Family, Kind};
use super::statistics::{FailureReason, ModelStatistics};

/// What the page needs to know of one loaded version.
pub struct ModelSeries<'a> {
    /// The `model` label.
    pub model: &'a str,
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

type Read = fn(&ModelSeries<'_>) -> f64;

/// Families with one series a model, and where each is read.
#[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
const PER_MODEL: &[(Family, Read)] = &[
    (defs::REQUEST_SUCCESS, |series| series.statistics.success.count() as f64),
    (defs::INFERENCE_COUNT, |series| series.statistics.inferences() as f64),
    (defs::EXECUTION_COUNT, |series| series.statistics.executions() as f64),
    (defs::REQUEST_DURATION, |series| (series.statistics.success.nanoseconds() / 1000) as f64),
    (defs::QUEUE_DURATION, |series| (series.statistics.queue.nanoseconds() / 1000) as f64),
    (defs::COMPUTE_INPUT_DURATION, |series| (series.statistics.compute_input.nanoseconds() / 1000) as f64),
    (defs::COMPUTE_INFER_DURATION, |series| (series.statistics.compute_infer.nanoseconds() / 1000) as f64),
    (defs::COMPUTE_OUTPUT_DURATION, |series| (series.statistics.compute_output.nanoseconds() / 1000) as f64),
    (defs::PENDING_REQUESTS, |series| series.pending as f64),
    (defs::MODEL_LOAD_DURATION, |series| series.load_seconds),
];

/// Families of the models whose answers are kept.
#[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
const PER_CACHED_MODEL: &[(Family, Read)] = &[
    (defs::CACHE_HITS, |series| series.statistics.cache_hit.count() as f64),
    (defs::CACHE_MISSES, |series| series.statistics.cache_miss.count() as f64),
    (defs::CACHE_HIT_DURATION, |series| (series.statistics.cache_hit.nanoseconds() / 1000) as f64),
    (defs::CACHE_MISS_DURATION, |series| (series.statistics.cache_miss.nanoseconds() / 1000) as f64),
];

pub(super) fn render_models(page: &mut String, models: &[ModelSeries<'_>]) {
    if models.is_empty() {
        return;
    }
    let names: Vec<String> = models.iter().map(|series| escape_label(series.model)).collect();
    for (family, read) in PER_MODEL {
        head(page, family);
        for (series, name) in models.iter().zip(&names) {
            // Writing into a String cannot fail.
            let _ =
                writeln!(page, "{}{{model=\"{name}\",version=\"{}\"}} {}", family.name, series.version, read(series));
        }
    }
    if models.iter().any(|series| series.cached) {
        for (family, read) in PER_CACHED_MODEL {
            head(page, family);
            for (series, name) in models.iter().zip(&names).filter(|(series, _)| series.cached) {
                let (version, value) = (series.version, read(series));
                let _ = writeln!(page, "{}{{model=\"{name}\",version=\"{version}\"}} {value}", family.name);
            }
        }
    }
    head(page, &defs::REQUEST_FAILURE);
    for (series, name) in models.iter().zip(&names) {
        for reason in FailureReason::ALL {
            let _ = writeln!(
                page,
                "{}{{model=\"{name}\",version=\"{}\",reason=\"{}\"}} {}",
                defs::REQUEST_FAILURE.name,
                series.version,
                reason.label(),
                series.statistics.failures(reason)
            );
        }
    }
}

fn head(page: &mut String, family: &Family) {
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    let _ = write!(page, "# HELP {0} {1}\n# TYPE {0} {kind}\n", family.name, family.help);
}

fn escape_label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

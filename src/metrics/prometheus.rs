//! The Prometheus page: server-wide families through the `metrics` facade and its exporter, per-model families straight
//! from the statistics of what is loaded, so that a model's series end with the model.

use std::fmt::Write;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::defs::{self, Family, Kind};
use super::statistics::{FailureReason, ModelStatistics};
use crate::error::{Error, Result};

const METADATA: Metadata<'static> = Metadata::new("roundhouse", Level::INFO, None);

/// The server-wide series. Handles are taken once; recording is an atomic add.
pub struct ServerMetrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    /// Loads that ended well.
    pub loads_ok: Counter,
    /// Loads that failed.
    pub loads_failed: Counter,
    /// Loads of models that do not exist.
    pub loads_not_found: Counter,
    /// Loads stopped since nobody waited any more.
    pub loads_cancelled: Counter,
    /// Unloads.
    pub unloads: Counter,
    /// Seconds a load took.
    pub load_seconds: Histogram,
    /// Seconds a request waited for a load.
    pub load_wait_seconds: Histogram,
    /// Models ready.
    pub resident: Gauge,
}

impl ServerMetrics {
    /// A recorder of its own: several servers in one process count apart.
    ///
    /// # Errors
    /// `Internal` if the exporter refuses our buckets.
    pub fn new() -> Result<Self> {
        let mut builder = PrometheusBuilder::new();
        for family in [defs::LOAD_SECONDS, defs::LOAD_WAIT_SECONDS] {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(family.name.to_owned()), defs::LOAD_BUCKETS)
                .map_err(|error| Error::internal("cannot set histogram buckets").with_source(error))?;
        }
        let recorder = builder.build_recorder();
        for family in [
            defs::LOADS,
            defs::UNLOADS,
            defs::LOAD_SECONDS,
            defs::LOAD_WAIT_SECONDS,
            defs::RESIDENT_MODELS,
            defs::CPU_MEMORY_TOTAL,
            defs::CPU_MEMORY_USED,
        ] {
            let name = KeyName::from_const_str(family.name);
            match family.kind {
                Kind::Counter => recorder.describe_counter(name, None, family.help.into()),
                Kind::Gauge => recorder.describe_gauge(name, None, family.help.into()),
                Kind::Histogram => recorder.describe_histogram(name, None, family.help.into()),
            }
        }
        let loads = |outcome: &'static str| {
            let key = Key::from_parts(defs::LOADS.name, vec![Label::new("outcome", outcome)]);
            let counter = recorder.register_counter(&key, &METADATA);
            counter.increment(0);
            counter
        };
        let (loads_ok, loads_failed) = (loads("ok"), loads("failed"));
        let (loads_not_found, loads_cancelled) = (loads("not_found"), loads("cancelled"));
        let unloads = recorder.register_counter(&Key::from_name(defs::UNLOADS.name), &METADATA);
        unloads.increment(0);
        let resident = recorder.register_gauge(&Key::from_name(defs::RESIDENT_MODELS.name), &METADATA);
        resident.set(0.0);
        let histogram = |family: Family| recorder.register_histogram(&Key::from_name(family.name), &METADATA);
        let (load_seconds, load_wait_seconds) = (histogram(defs::LOAD_SECONDS), histogram(defs::LOAD_WAIT_SECONDS));
        let handle = recorder.handle();
        Ok(Self {
            recorder,
            handle,
            loads_ok,
            loads_failed,
            loads_not_found,
            loads_cancelled,
            unloads,
            load_seconds,
            load_wait_seconds,
            resident,
        })
    }

    /// placeholder
    pub fn lookup_miss(&self) {}
    /// placeholder
    pub fn lookup_hits(&self, _n: u64) {}
    /// placeholder
    pub fn load_source(&self, _from: &'static str) {}
    /// placeholder
    pub fn load_phase(&self, _phase: &'static str, _d: std::time::Duration) {}
    /// placeholder
    pub fn evicted(&self, _tier: &'static str, _reason: &'static str, _age: std::time::Duration) {}
    /// placeholder
    pub fn evictions_unlike_lru(&self, _n: usize) {}
    /// placeholder
    pub fn room_wait(&self, _d: std::time::Duration) {}

    /// Sets a gauge without labels, for what is read when the page is asked for.
    pub fn set(&self, family: Family, value: f64) {
        self.recorder.register_gauge(&Key::from_name(family.name), &METADATA).set(value);
    }

    /// The page: per-model families of `models`, then the server-wide ones.
    #[must_use]
    pub fn render(&self, models: &[ModelSeries<'_>]) -> String {
        self.handle.run_upkeep();
        let mut page = String::with_capacity(4096 + models.len() * 1536);
        render_models(&mut page, models);
        page.push_str(&self.handle.render());
        page
    }
}

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

fn render_models(page: &mut String, models: &[ModelSeries<'_>]) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_each_family_once_and_a_series_a_model() {
        let metrics = ServerMetrics::new().unwrap();
        let statistics = ModelStatistics::default();
        let one = |model| ModelSeries { model, version: 1, statistics: &statistics, pending: 0, load_seconds: 0.5 };
        let page = metrics.render(&[one("a"), one("b\"c")]);
        assert_eq!(page.matches("# TYPE nv_inference_request_success counter").count(), 1);
        assert!(page.contains("nv_inference_request_success{model=\"a\",version=\"1\"} 0\n"), "{page}");
        assert!(page.contains("model=\"b\\\"c\""), "{page}");
        assert!(page.contains("nv_model_load_duration_secs{model=\"a\",version=\"1\"} 0.5\n"), "{page}");
        assert!(page.contains("roundhouse_model_loads_total{outcome=\"ok\"} 0"), "{page}");
    }

    #[test]
    fn series_end_with_their_model() {
        let metrics = ServerMetrics::new().unwrap();
        assert!(!metrics.render(&[]).contains("nv_inference"));
    }

    #[test]
    fn server_wide_series_are_on_the_page() {
        let metrics = ServerMetrics::new().unwrap();
        metrics.loads_ok.increment(1);
        metrics.load_seconds.record(0.02);
        metrics.set(defs::CPU_MEMORY_TOTAL, 42.0);
        let page = metrics.render(&[]);
        assert!(page.contains("roundhouse_model_loads_total{outcome=\"ok\"} 1"), "{page}");
        assert!(page.contains("roundhouse_model_load_seconds_bucket{le=\"0.025\"} 1"), "{page}");
        assert!(page.contains("nv_cpu_memory_total_bytes 42"), "{page}");
    }
}

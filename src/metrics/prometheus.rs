//! The Prometheus page: server-wide families through the `metrics` facade and its exporter, per-model families straight
//! from the statistics of what is loaded, so that a model's series end with the model.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::defs::{self, Family, Kind};
pub use super::per_model::ModelSeries;
use super::per_model::render_models;
use crate::error::{Error, Result};

const METADATA: Metadata<'static> = Metadata::new("roundhouse", Level::INFO, None);

type Labels = &'static [(&'static str, &'static str)];

/// Families in buckets other than the exporter's own, and their edges.
const BUCKETS: &[(Family, &[f64])] = &[
    (defs::LOAD_SECONDS, defs::LOAD_BUCKETS),
    (defs::LOAD_WAIT_SECONDS, defs::LOAD_BUCKETS),
    (defs::LOAD_PHASE_SECONDS, defs::LOAD_BUCKETS),
    (defs::ROOM_WAIT_SECONDS, defs::LOAD_BUCKETS),
    (defs::EVICTION_AGE_SECONDS, defs::AGE_BUCKETS),
];

/// Series that are on the page before anything happened: what is not there cannot be told from what never comes.
const FROM_THE_START: &[(Family, Labels)] = &[
    (defs::LOADS_BY_SOURCE, &[("source", "host")]),
    (defs::LOADS_BY_SOURCE, &[("source", "disk")]),
    (defs::LOADS_BY_SOURCE, &[("source", "remote")]),
    (defs::LOAD_PHASE_SECONDS, &[("phase", "resolve")]),
    (defs::LOAD_PHASE_SECONDS, &[("phase", "fetch")]),
    (defs::LOAD_PHASE_SECONDS, &[("phase", "wait")]),
    (defs::LOAD_PHASE_SECONDS, &[("phase", "initialise")]),
    (defs::LOAD_PHASE_SECONDS, &[("phase", "warm_up")]),
    (defs::FETCHES, &[("outcome", "ok")]),
    (defs::FETCHES, &[("outcome", "failed")]),
    (defs::FETCHES, &[("outcome", "cancelled")]),
    (defs::EVICTIONS, &[("tier", "device"), ("reason", "room")]),
    (defs::EVICTIONS, &[("tier", "device"), ("reason", "overrun")]),
    (defs::EVICTIONS, &[("tier", "device"), ("reason", "transient")]),
    (defs::EVICTIONS, &[("tier", "device"), ("reason", "deleted")]),
    (defs::EVICTIONS, &[("tier", "device"), ("reason", "unload")]),
    (defs::EVICTIONS, &[("tier", "device"), ("reason", "surplus")]),
    (defs::EVICTIONS, &[("tier", "disk"), ("reason", "room")]),
    (defs::EVICTIONS, &[("tier", "disk"), ("reason", "deleted")]),
    (defs::EVICTION_AGE_SECONDS, &[("tier", "device")]),
    (defs::EVICTION_AGE_SECONDS, &[("tier", "disk")]),
    (defs::EVICTIONS_UNLIKE_LRU, &[("tier", "device")]),
    (defs::EVICTIONS_UNLIKE_LRU, &[("tier", "disk")]),
    (defs::TRACES, &[("outcome", "written")]),
    (defs::TRACES, &[("outcome", "dropped")]),
    (defs::TRACES, &[("outcome", "failed")]),
];

/// The server-wide series. What requests touch has its handle taken once, so that recording is an atomic add; what
/// happens once a load or an eviction is looked up by its labels.
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
    /// Models whose instances changed in place.
    pub updates: Counter,
    /// Copies added to models that answered.
    pub copies_added: Counter,
    /// Copies that left models that went on answering.
    pub copies_removed: Counter,
    /// Seconds a load took.
    pub load_seconds: Histogram,
    /// Seconds a request waited for a load.
    pub load_wait_seconds: Histogram,
    /// Models ready.
    pub resident: Gauge,
    /// Requests whose model was in memory.
    pub lookups_hit: Counter,
    /// Requests whose model had to be loaded.
    pub lookups_miss: Counter,
    /// Seconds a load waited for room.
    pub room_wait_seconds: Histogram,
    /// Loads that wait for their turn or for room.
    pub loads_waiting: Gauge,
    /// Bytes fetched from the repository.
    pub fetched_bytes: Counter,
}

impl ServerMetrics {
    /// A recorder of its own: several servers in one process count apart.
    ///
    /// # Errors
    /// `Internal` if the exporter refuses our buckets.
    pub fn new() -> Result<Self> {
        let mut builder = PrometheusBuilder::new();
        for (family, edges) in BUCKETS {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(family.name.to_owned()), edges)
                .map_err(|error| Error::internal("cannot set histogram buckets").with_source(error))?;
        }
        let recorder = builder.build_recorder();
        for family in defs::ALL {
            let name = KeyName::from_const_str(family.name);
            match family.kind {
                Kind::Counter => recorder.describe_counter(name, None, family.help.into()),
                Kind::Gauge => recorder.describe_gauge(name, None, family.help.into()),
                Kind::Histogram => recorder.describe_histogram(name, None, family.help.into()),
            }
        }
        let counter = |family: Family, labels: &[(&'static str, &'static str)]| {
            let counter = recorder.register_counter(&key(family, labels), &METADATA);
            counter.increment(0);
            counter
        };
        let gauge = |family: Family| {
            let gauge = recorder.register_gauge(&key(family, &[]), &METADATA);
            gauge.set(0.0);
            gauge
        };
        let histogram = |family: Family, labels: &[(&'static str, &'static str)]| {
            recorder.register_histogram(&key(family, labels), &METADATA)
        };
        for &(family, labels) in FROM_THE_START {
            match family.kind {
                Kind::Counter => drop(counter(family, labels)),
                Kind::Histogram => drop(histogram(family, labels)),
                Kind::Gauge => {}
            }
        }
        let handle = recorder.handle();
        Ok(Self {
            loads_ok: counter(defs::LOADS, &[("outcome", "ok")]),
            loads_failed: counter(defs::LOADS, &[("outcome", "failed")]),
            loads_not_found: counter(defs::LOADS, &[("outcome", "not_found")]),
            loads_cancelled: counter(defs::LOADS, &[("outcome", "cancelled")]),
            unloads: counter(defs::UNLOADS, &[]),
            updates: counter(defs::UPDATES, &[]),
            copies_added: counter(defs::COPIES, &[("change", "added")]),
            copies_removed: counter(defs::COPIES, &[("change", "removed")]),
            load_seconds: histogram(defs::LOAD_SECONDS, &[]),
            load_wait_seconds: histogram(defs::LOAD_WAIT_SECONDS, &[]),
            resident: gauge(defs::RESIDENT_MODELS),
            lookups_hit: counter(defs::LOOKUPS, &[("outcome", "hit")]),
            lookups_miss: counter(defs::LOOKUPS, &[("outcome", "miss")]),
            room_wait_seconds: histogram(defs::ROOM_WAIT_SECONDS, &[]),
            loads_waiting: gauge(defs::LOADS_WAITING),
            fetched_bytes: counter(defs::FETCHED_BYTES, &[]),
            handle,
            recorder,
        })
    }

    /// Counts a load that ended well by where its files were: `host`, `disk` or `remote`.
    pub fn loaded_from(&self, source: &'static str) {
        self.count(defs::LOADS_BY_SOURCE, &[("source", source)]);
    }

    /// Records how long a part of a load took: `resolve`, `fetch`, `wait`, `initialise` or `warm_up`.
    pub fn load_phase(&self, phase: &'static str, took: Duration) {
        self.observe(defs::LOAD_PHASE_SECONDS, &[("phase", phase)], took);
    }

    /// Counts a fetch by how it ended: `ok`, `failed` or `cancelled`.
    pub fn fetch_ended(&self, outcome: &'static str) {
        self.count(defs::FETCHES, &[("outcome", outcome)]);
    }

    /// Counts a model that left `tier` (`device` or `disk`) for `reason` (`room`, `overrun`, `transient`, `deleted` or
    /// `unload`) after `age` on it.
    pub fn evicted(&self, tier: &'static str, reason: &'static str, age: Duration) {
        self.count(defs::EVICTIONS, &[("tier", tier), ("reason", reason)]);
        self.observe(defs::EVICTION_AGE_SECONDS, &[("tier", tier)], age);
    }

    /// Counts an eviction from `tier` of another model than the least recently used one.
    pub fn evicted_unlike_lru(&self, tier: &'static str) {
        self.count(defs::EVICTIONS_UNLIKE_LRU, &[("tier", tier)]);
    }

    /// Sets a counter that is counted elsewhere, for what is read when the page is asked for.
    pub fn set_total(&self, family: Family, labels: &[(&'static str, &'static str)], total: u64) {
        self.recorder.register_counter(&key(family, labels), &METADATA).absolute(total);
    }

    fn count(&self, family: Family, labels: &[(&'static str, &'static str)]) {
        self.recorder.register_counter(&key(family, labels), &METADATA).increment(1);
    }

    fn observe(&self, family: Family, labels: &[(&'static str, &'static str)], took: Duration) {
        self.recorder.register_histogram(&key(family, labels), &METADATA).record(took.as_secs_f64());
    }

    /// Sets a gauge without labels, for what is read when the page is asked for.
    pub fn set(&self, family: Family, value: f64) {
        self.recorder.register_gauge(&key(family, &[]), &METADATA).set(value);
    }

    /// Sets one series of a gauge, for what is read when the page is asked for. A series stays once it is set.
    pub fn set_labelled(&self, family: Family, labels: &[(&'static str, String)], value: f64) {
        let labels: Vec<_> = labels.iter().map(|(name, word)| Label::new(*name, word.clone())).collect();
        self.recorder.register_gauge(&Key::from_parts(family.name, labels), &METADATA).set(value);
    }

    /// Sets a labelled counter to what somebody else has counted.
    pub fn set_labelled_total(&self, family: Family, labels: &[(&'static str, String)], total: u64) {
        let labels: Vec<_> = labels.iter().map(|(name, word)| Label::new(*name, word.clone())).collect();
        self.recorder.register_counter(&Key::from_parts(family.name, labels), &METADATA).absolute(total);
    }

    /// The page: per-model families of `models`, then the server-wide ones.
    #[must_use]
    pub fn render(&self, models: &[ModelSeries<'_>]) -> String {
        self.handle.run_upkeep();
        let mut page = String::with_capacity(16_384 + models.len() * 1536);
        render_models(&mut page, models);
        page.push_str(&self.handle.render());
        page
    }
}

fn key(family: Family, labels: &[(&'static str, &'static str)]) -> Key {
    let labels: Vec<_> = labels.iter().map(|&(name, word)| Label::new(name, word)).collect();
    Key::from_parts(family.name, labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::statistics::ModelStatistics;

    #[test]
    fn a_page_has_each_family_once_and_a_series_a_model() {
        let metrics = ServerMetrics::new().unwrap();
        let statistics = ModelStatistics::default();
        let one = |model| ModelSeries {
            model,
            version: 1,
            statistics: &statistics,
            pending: 0,
            load_seconds: 0.5,
            cached: model == "a",
        };
        let page = metrics.render(&[one("a"), one("b\"c")]);
        assert_eq!(page.matches("# TYPE nv_inference_request_success counter").count(), 1);
        assert!(page.contains("nv_inference_request_success{model=\"a\",version=\"1\"} 0\n"), "{page}");
        assert!(page.contains("model=\"b\\\"c\""), "{page}");
        assert!(page.contains("nv_model_load_duration_secs{model=\"a\",version=\"1\"} 0.5\n"), "{page}");
        assert!(page.contains("roundhouse_model_loads_total{outcome=\"ok\"} 0"), "{page}");
        assert_eq!(page.matches("nv_cache_num_hits_per_model{").count(), 1, "b keeps no answers");
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

    #[test]
    fn what_has_not_happened_yet_is_on_the_page_as_zero() {
        let page = ServerMetrics::new().unwrap().render(&[]);
        for (family, labels) in FROM_THE_START {
            let labels: Vec<_> = labels.iter().map(|(name, word)| format!("{name}=\"{word}\"")).collect();
            let suffix = if family.kind == Kind::Histogram { "_count" } else { "" };
            let line = format!("{}{suffix}{{{}}} 0\n", family.name, labels.join(","));
            assert!(page.contains(&line), "{line} is not in {page}");
        }
        for line in ["roundhouse_loads_waiting 0\n", "roundhouse_model_lookups_total{outcome=\"miss\"} 0\n"] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
    }

    #[test]
    fn each_eviction_is_counted_with_its_age() {
        let metrics = ServerMetrics::new().unwrap();
        metrics.evicted("device", "room", Duration::from_secs(50));
        metrics.evicted("device", "unload", Duration::from_secs(700_000));
        metrics.evicted_unlike_lru("device");
        let page = metrics.render(&[]);
        for line in [
            "roundhouse_evictions_total{tier=\"device\",reason=\"room\"} 1\n",
            "roundhouse_evictions_total{tier=\"disk\",reason=\"room\"} 0\n",
            "roundhouse_eviction_age_seconds_bucket{tier=\"device\",le=\"10\"} 0\n",
            "roundhouse_eviction_age_seconds_bucket{tier=\"device\",le=\"60\"} 1\n",
            "roundhouse_eviction_age_seconds_bucket{tier=\"device\",le=\"604800\"} 1\n",
            "roundhouse_eviction_age_seconds_count{tier=\"device\"} 2\n",
            "roundhouse_evictions_unlike_lru_total{tier=\"device\"} 1\n",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
    }

    #[test]
    fn loads_are_counted_by_their_source_and_their_phases_timed() {
        let metrics = ServerMetrics::new().unwrap();
        metrics.loaded_from("remote");
        metrics.load_phase("fetch", Duration::from_millis(1_500));
        metrics.fetch_ended("cancelled");
        metrics.fetched_bytes.increment(7);
        let page = metrics.render(&[]);
        for line in [
            "roundhouse_model_loads_by_source_total{source=\"remote\"} 1\n",
            "roundhouse_load_phase_seconds_sum{phase=\"fetch\"} 1.5\n",
            "roundhouse_load_phase_seconds_count{phase=\"wait\"} 0\n",
            "roundhouse_fetches_total{outcome=\"cancelled\"} 1\n",
            "roundhouse_fetched_bytes_total 7\n",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
    }

    #[test]
    fn a_gauge_has_a_series_for_each_of_its_labels() {
        let metrics = ServerMetrics::new().unwrap();
        let on = |device: &str| [("tier", "device".to_owned()), ("device", device.to_owned())];
        metrics.set_labelled(defs::TIER_BOOKED, &on("cpu"), 5.0);
        metrics.set_labelled(defs::TIER_BOOKED, &on("gpu:0"), 6.0);
        metrics.set_labelled(defs::TIER_BOOKED, &on("gpu:0"), 7.0);
        metrics.set_labelled(defs::GPU_MEMORY_USED, &[("gpu_uuid", "GPU-1".to_owned())], 8.0);
        let page = metrics.render(&[]);
        for line in [
            "roundhouse_tier_booked_bytes{tier=\"device\",device=\"cpu\"} 5\n",
            "roundhouse_tier_booked_bytes{tier=\"device\",device=\"gpu:0\"} 7\n",
            "nv_gpu_memory_used_bytes{gpu_uuid=\"GPU-1\"} 8\n",
            "# TYPE roundhouse_tier_booked_bytes gauge\n",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
    }

    #[test]
    fn every_label_that_is_there_from_the_start_is_one_of_its_family() {
        for (family, labels) in FROM_THE_START {
            let names: Vec<_> = labels.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, family.labels, "{}", family.name);
        }
    }
}

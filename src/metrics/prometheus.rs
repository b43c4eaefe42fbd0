//! The Prometheus page: server-wide families through the `metrics` facade and its exporter, per-model families straight
//! from the statistics of what is loaded, so that a model's series end with the model.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use parking_lot::Mutex;

use super::busiest::Busiest;
use super::defs::{self, Family, Kind};
use super::meter::{Counted, WaitClock};
pub use super::per_model::{ModelSeries, OTHERS};
use super::per_model::{head, render_models};
use super::signal::Churn;
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
    /// Requests that wait for a load, and for how long.
    pub load_waits: Arc<WaitClock>,
    hits: Arc<Counted>,
    misses: Arc<Counted>,
    busiest: Mutex<Busiest>,
    /// Of what models leave for want of room: the devices, the disk.
    churn: [Mutex<Churn>; 2],
}

/// The tiers that models are evicted from, in the order of the churn ages.
pub const CHURNING: [&str; 2] = ["device", "disk"];

/// How many models have series of their own where nothing else is said.
pub const MOST_MODELS: usize = 100;

/// Which models are on the page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// The busiest, and the others together.
    #[default]
    Busiest,
    /// Each of those that are given.
    Each,
}

impl ServerMetrics {
    /// A recorder of its own: several servers in one process count apart.
    ///
    /// # Errors
    /// `Internal` if the exporter refuses our buckets.
    pub fn new() -> Result<Self> {
        Self::for_most(MOST_MODELS)
    }

    /// The same with series for the `most` busiest models.
    ///
    /// # Errors
    /// `Internal` if the exporter refuses our buckets.
    pub fn for_most(most: usize) -> Result<Self> {
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
        let (lookups_hit, hits) = Counted::over(counter(defs::LOOKUPS, &[("outcome", "hit")]));
        let (lookups_miss, misses) = Counted::over(counter(defs::LOOKUPS, &[("outcome", "miss")]));
        Ok(Self {
            loads_ok: counter(defs::LOADS, &[("outcome", "ok")]),
            loads_failed: counter(defs::LOADS, &[("outcome", "failed")]),
            loads_not_found: counter(defs::LOADS, &[("outcome", "not_found")]),
            loads_cancelled: counter(defs::LOADS, &[("outcome", "cancelled")]),
            unloads: counter(defs::UNLOADS, &[]),
            load_seconds: histogram(defs::LOAD_SECONDS, &[]),
            load_wait_seconds: histogram(defs::LOAD_WAIT_SECONDS, &[]),
            resident: gauge(defs::RESIDENT_MODELS),
            lookups_hit,
            lookups_miss,
            hits,
            misses,
            load_waits: Arc::default(),
            busiest: Mutex::new(Busiest::new(most)),
            churn: Default::default(),
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
        if reason == "room"
            && let Some((_, churn)) = CHURNING.iter().zip(&self.churn).find(|(name, _)| **name == tier)
        {
            churn.lock().left(Instant::now(), age);
        }
    }

    /// How old what left lately for want of room was, in seconds, for each of [`CHURNING`]; `None` where nothing did.
    #[must_use]
    pub fn churn_ages(&self, now: Instant) -> [Option<f64>; 2] {
        self.churn.each_ref().map(|churn| churn.lock().age(now))
    }

    /// Requests whose model was in memory, and those whose model had to be loaded.
    #[must_use]
    pub fn lookups(&self) -> (u64, u64) {
        (self.hits.total(), self.misses.total())
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

    /// The page: per-model families of `models`, then `more`, then the server-wide ones.
    #[must_use]
    pub fn render(&self, models: &[ModelSeries<'_>], detail: Detail, more: &[Sample]) -> String {
        self.handle.run_upkeep();
        let mut page = String::with_capacity(16_384 + models.len().min(1024) * 1536);
        match detail {
            Detail::Each => render_models(&mut page, models, &[], None),
            Detail::Busiest => {
                let candidates: Vec<_> = models.iter().map(ModelSeries::candidate).collect();
                let (shown, rest) = self.busiest.lock().select(Instant::now(), &candidates);
                render_models(&mut page, models, &shown, rest);
            }
        }
        render_samples(&mut page, more);
        page.push_str(&self.handle.render());
        page
    }
}

/// One sample of a family that is read when the page is asked for, and may be missing from the next.
#[derive(Clone, Debug)]
pub struct Sample {
    family: Family,
    /// The values of its labels, in their order.
    labels: Vec<String>,
    value: f64,
}

impl Sample {
    /// A sample of `family`, with the values of its labels.
    #[must_use]
    pub fn new<const N: usize>(family: Family, labels: [String; N], value: f64) -> Self {
        Self { family, labels: labels.into(), value }
    }
}

/// Writes samples, those of one family beside each other.
fn render_samples(page: &mut String, samples: &[Sample]) {
    let mut last = "";
    for Sample { family, labels, value } in samples {
        if family.name != last {
            head(page, family);
            last = family.name;
        }
        page.push_str(family.name);
        for (index, (name, word)) in family.labels.iter().zip(labels).enumerate() {
            // Writing into a String cannot fail.
            let _ = write!(page, "{}{name}=\"{word}\"", if index == 0 { '{' } else { ',' });
        }
        let _ = writeln!(page, "{} {value}", if family.labels.is_empty() { "" } else { "}" });
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
            cached: **model == *"a",
        };
        let (a, b) = ("a".into(), "b\"c".into());
        let page = metrics.render(&[one(&a), one(&b)], Detail::Busiest, &[]);
        assert_eq!(page.matches("# TYPE nv_inference_request_success counter").count(), 1);
        assert!(page.contains("nv_inference_request_success{model=\"a\",version=\"1\"} 0\n"), "{page}");
        assert!(page.contains("model=\"b\\\"c\""), "{page}");
        assert!(page.contains("nv_model_load_duration_secs{model=\"a\",version=\"1\"} 0.5\n"), "{page}");
        assert!(page.contains("roundhouse_model_loads_total{outcome=\"ok\"} 0"), "{page}");
        assert_eq!(page.matches("nv_cache_num_hits_per_model{").count(), 1, "b keeps no answers");
    }

    #[test]
    fn one_series_stands_for_all_but_the_busiest_unless_each_is_asked_for() {
        let metrics = ServerMetrics::for_most(1).unwrap();
        let (quiet, busy) = (ModelStatistics::default(), ModelStatistics::default());
        quiet.record_success(Duration::from_micros(5), Duration::ZERO);
        quiet.record_failure(crate::metrics::statistics::FailureReason::Backend, Duration::ZERO);
        for _ in 0..9 {
            busy.record_success(Duration::ZERO, Duration::ZERO);
        }
        let names = ["a", "b", "c"].map(Arc::<str>::from);
        let series: Vec<_> = names
            .iter()
            .zip([&quiet, &busy, &quiet])
            .map(|(model, statistics)| ModelSeries {
                model,
                version: 1,
                statistics,
                pending: 2,
                load_seconds: 0.5,
                cached: false,
            })
            .collect();
        let page = metrics.render(&series, Detail::Busiest, &[]);
        for line in [
            "nv_inference_request_success{model=\"b\",version=\"1\"} 9\n",
            "nv_inference_request_success{model=\"*\",version=\"\"} 2\n",
            "nv_inference_request_duration_us{model=\"*\",version=\"\"} 10\n",
            "nv_inference_request_failure{model=\"*\",version=\"\",reason=\"BACKEND\"} 2\n",
            "nv_inference_pending_request_count{model=\"*\",version=\"\"} 4\n",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
        assert!(!page.contains("model=\"a\""), "{page}");
        assert!(!page.contains("nv_model_load_duration_secs{model=\"*\""), "a sum of these says nothing");
        let each = metrics.render(&series, Detail::Each, &[]);
        assert!(each.contains("{model=\"a\"") && !each.contains("model=\"*\""), "{each}");
    }

    #[test]
    fn samples_that_are_read_for_the_page_have_their_labels_or_none() {
        let metrics = ServerMetrics::new().unwrap();
        let samples =
            [Sample::new(defs::SCALE_PRESSURE, [], 0.5), Sample::new(defs::CHURN_AGE, ["disk".to_owned()], 3.0)];
        let page = metrics.render(&[], Detail::Busiest, &samples);
        for line in ["roundhouse_scale_pressure 0.5\n", "roundhouse_churn_age_seconds{tier=\"disk\"} 3\n"] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
        assert!(!metrics.render(&[], Detail::Busiest, &[]).contains("roundhouse_churn_age"), "a sample does not stay");
    }

    #[test]
    fn what_left_for_want_of_room_makes_the_churn_age() {
        let metrics = ServerMetrics::new().unwrap();
        metrics.evicted("device", "room", Duration::from_secs(50));
        metrics.evicted("device", "unload", Duration::from_secs(5000));
        assert_eq!(metrics.churn_ages(Instant::now()), [Some(50.0), None]);
        metrics.lookups_hit.increment(3);
        metrics.lookups_miss.increment(1);
        assert_eq!(metrics.lookups(), (3, 1));
    }

    #[test]
    fn series_end_with_their_model() {
        let metrics = ServerMetrics::new().unwrap();
        assert!(!metrics.render(&[], Detail::Busiest, &[]).contains("nv_inference"));
    }

    #[test]
    fn server_wide_series_are_on_the_page() {
        let metrics = ServerMetrics::new().unwrap();
        metrics.loads_ok.increment(1);
        metrics.load_seconds.record(0.02);
        metrics.set(defs::CPU_MEMORY_TOTAL, 42.0);
        let page = metrics.render(&[], Detail::Busiest, &[]);
        assert!(page.contains("roundhouse_model_loads_total{outcome=\"ok\"} 1"), "{page}");
        assert!(page.contains("roundhouse_model_load_seconds_bucket{le=\"0.025\"} 1"), "{page}");
        assert!(page.contains("nv_cpu_memory_total_bytes 42"), "{page}");
    }

    #[test]
    fn what_has_not_happened_yet_is_on_the_page_as_zero() {
        let page = ServerMetrics::new().unwrap().render(&[], Detail::Busiest, &[]);
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
        let page = metrics.render(&[], Detail::Busiest, &[]);
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
        let page = metrics.render(&[], Detail::Busiest, &[]);
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
        let page = metrics.render(&[], Detail::Busiest, &[]);
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

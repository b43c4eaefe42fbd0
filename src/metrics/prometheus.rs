//! The Prometheus page: server-wide families through the `metrics` facade and its exporter, per-model families straight
//! from the statistics of what is loaded, so that a model's series end with the model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use parking_lot::Mutex;

use super::busiest::Busiest;
use super::defs::{self, Family, Kind};
use super::meter::{Counted, WaitClock};
use super::observations::{Observations, Observed, Tee};
use super::per_model::render_models;
pub use super::per_model::{ModelSeries, OTHERS};
pub use super::sample::Sample;
use super::sample::render_samples;
use super::signal::Churn;
use crate::error::{Error, Result};

const METADATA: Metadata<'static> = Metadata::new("roundhouse", Level::INFO, None);

type Labels = &'static [(&'static str, &'static str)];

/// Families in buckets other than the exporter's own, and their edges.
const BUCKETS: &[(Family, &[f64])] = &[
    (defs::LOAD_SECONDS, defs::LOAD_BUCKETS),
    (defs::LOAD_WAIT_SECONDS, defs::LOAD_BUCKETS),
    (defs::UNLOAD_SECONDS, defs::LOAD_BUCKETS),
    (defs::LOAD_PHASE_SECONDS, defs::LOAD_BUCKETS),
    (defs::ROOM_WAIT_SECONDS, defs::LOAD_BUCKETS),
    (defs::sleep::SLEEP_SECONDS, defs::LOAD_BUCKETS),
    (defs::sleep::WAKE_SECONDS, defs::LOAD_BUCKETS),
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
    (defs::EVICTIONS, &[("tier", "device"), ("reason", "lost")]),
    (defs::EVICTIONS, &[("tier", "host"), ("reason", "room")]),
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
    /// Models that sleep.
    pub asleep: Gauge,
    /// Models that were to sleep and could not.
    pub sleeps_failed: Counter,
    /// Models that were to wake and could not.
    pub wakes_failed: Counter,
    sleeping: Moves,
    waking: Moves,
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
    /// Seconds an unload took.
    pub unload_seconds: Histogram,
    /// The same and more for CloudWatch, where it is told.
    pub observations: Arc<Observations>,
    /// Requests that wait for a load, and for how long.
    pub load_waits: Arc<WaitClock>,
    hits: Arc<Counted>,
    misses: Arc<Counted>,
    busiest: Mutex<Busiest>,
    /// Of what models leave for want of room: the devices, the disk.
    churn: [Mutex<Churn>; 2],
}

/// Weights that went one way.
struct Moves {
    count: Counter,
    bytes: Counter,
    seconds: Histogram,
}

impl Moves {
    fn record(&self, bytes: u64, took: Duration) {
        self.count.increment(1);
        self.bytes.increment(bytes);
        self.seconds.record(took.as_secs_f64());
    }
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
        let observations = Arc::new(Observations::default());
        let observed = |family: Family, metric| Tee::over(histogram(family, &[]), metric, &observations);
        let (lookups_hit, hits) = Counted::over(counter(defs::LOOKUPS, &[("outcome", "hit")]));
        let (lookups_miss, misses) = Counted::over(counter(defs::LOOKUPS, &[("outcome", "miss")]));
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
            load_wait_seconds: observed(defs::LOAD_WAIT_SECONDS, Observed::ModelLoadingWaitTime),
            unload_seconds: observed(defs::UNLOAD_SECONDS, Observed::ModelUnloadingTime),
            resident: gauge(defs::RESIDENT_MODELS),
            asleep: gauge(defs::sleep::ASLEEP_MODELS),
            sleeps_failed: counter(defs::sleep::SLEEPS, &[("outcome", "failed")]),
            wakes_failed: counter(defs::sleep::WAKES, &[("outcome", "failed")]),
            sleeping: Moves {
                count: counter(defs::sleep::SLEEPS, &[("outcome", "ok")]),
                bytes: counter(defs::sleep::SLEEP_BYTES, &[]),
                seconds: histogram(defs::sleep::SLEEP_SECONDS, &[]),
            },
            waking: Moves {
                count: counter(defs::sleep::WAKES, &[("outcome", "ok")]),
                bytes: counter(defs::sleep::WAKE_BYTES, &[]),
                seconds: histogram(defs::sleep::WAKE_SECONDS, &[]),
            },
            lookups_hit,
            lookups_miss,
            hits,
            misses,
            observations: Arc::clone(&observations),
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

    /// A model was put to sleep: so many bytes to host memory in so long.
    pub fn slept(&self, bytes: u64, took: Duration) {
        self.sleeping.record(bytes, took);
    }

    /// A model was woken: so many bytes to its device in so long.
    pub fn woke(&self, bytes: u64, took: Duration) {
        self.waking.record(bytes, took);
    }

    /// Counts a load that ended well by where its files were: `host`, `disk` or `remote`.
    pub fn loaded_from(&self, source: &'static str) {
        self.count(defs::LOADS_BY_SOURCE, &[("source", source)]);
    }

    /// Records how long a part of a load took: `resolve`, `fetch`, `wait`, `initialise` or `warm_up`.
    pub fn load_phase(&self, phase: &'static str, took: Duration) {
        self.observe(defs::LOAD_PHASE_SECONDS, &[("phase", phase)], took);
        match phase {
            // None where the files were here.
            "fetch" if !took.is_zero() => self.observations.observe_time(Observed::ModelDownloadingTime, took),
            "initialise" => self.observations.observe_time(Observed::ModelLoadingTime, took),
            _ => {}
        }
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

    /// Sets a labelled counter to what somebody else has counted.
    pub fn set_labelled_total(&self, family: Family, labels: &[(&'static str, String)], total: u64) {
        let labels: Vec<_> = labels.iter().map(|(name, word)| Label::new(*name, word.clone())).collect();
        self.recorder.register_counter(&Key::from_parts(family.name, labels), &METADATA).absolute(total);
    }

    /// The page: per-model families of `models`, then `more`, then the server-wide ones.
    #[must_use]
    pub fn render(&self, models: &[ModelSeries<'_>], detail: Detail, more: &[Sample]) -> String {
        self.handle.run_upkeep();
        // What the families come to that are none of a model's, and those of one model.
        let room = |models: usize| String::with_capacity(32_768 + models.min(1024) * 1280);
        let mut page = match detail {
            Detail::Each => {
                let mut page = room(models.len());
                render_models(&mut page, models, &[], None);
                page
            }
            Detail::Busiest => {
                let candidates: Vec<_> = models.iter().map(ModelSeries::candidate).collect();
                let (shown, rest) = self.busiest.lock().select(Instant::now(), &candidates);
                let mut page = room(shown.iter().filter(|shown| **shown).count() + 1);
                render_models(&mut page, models, &shown, rest);
                page
            }
        };
        render_samples(&mut page, more);
        page.push_str(&self.handle.render());
        page
    }
}

fn key(family: Family, labels: &[(&'static str, &'static str)]) -> Key {
    let labels: Vec<_> = labels.iter().map(|&(name, word)| Label::new(name, word)).collect();
    Key::from_parts(family.name, labels)
}

#[cfg(test)]
mod tests;

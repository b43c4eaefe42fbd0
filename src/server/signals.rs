//! What autoscalers are told: read once a second, and put on the page of metrics.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::InferenceServer;
use crate::device::disk::disk_space;
use crate::device::monitor::Processors;
use crate::inference::DeviceId;
use crate::lifecycle::handle::LoadedVersion;
use crate::metrics::defs;
use crate::metrics::prometheus::{CHURNING, Sample};
use crate::metrics::signal::{DeviceReading, ProcessorReading, Reading, Signals};

/// How often what waits is looked at. A look costs a lock for each model in memory.
const TICK: Duration = Duration::from_secs(1);

impl InferenceServer {
    /// Takes readings for the signals until the future is dropped.
    pub async fn watch_signals(&self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let now = Instant::now();
            // Hits are counted in lots: now, or this second's come with the next.
            self.0.models.count_uses();
            self.take_reading(now);
            self.look_at_gpus().await;
        }
    }

    /// Takes one reading, as of `now`.
    pub fn take_reading(&self, now: Instant) {
        let reading = self.reading(now);
        self.0.signals.lock().observe(now, reading);
    }

    /// What the last minute's readings say.
    #[must_use]
    pub fn signals(&self) -> Signals {
        self.0.signals.lock().signals()
    }

    fn reading(&self, now: Instant) -> Reading {
        let (hits, misses) = self.0.metrics.lookups();
        let mut reading = Reading {
            load_waited: self.0.metrics.load_waits.read(now).1,
            held_up: self.held_up(),
            load_places: self.0.models.load_places(),
            hits,
            misses,
            processors: self.processors(),
            ..Reading::default()
        };
        for place in &self.0.models.loader().devices {
            let meter = place.executor.meter();
            let (executions, requests) = meter.executions();
            reading.executions = reading.executions.saturating_add(executions);
            reading.requests = reading.requests.saturating_add(requests);
            let busy = Duration::from_nanos(meter.busy.nanoseconds());
            reading.devices.push(DeviceReading { device: place.device(), threads: place.threads, busy });
        }
        reading
    }

    fn processors(&self) -> Option<ProcessorReading> {
        self.0.monitor.processors().map(|Processors { worked, cores }| ProcessorReading { worked, cores })
    }

    /// Requests that wait for an instance or a thread.
    pub(super) fn held_up(&self) -> usize {
        self.0.models.all_resident().iter().map(|model| held_up(model.versions())).sum()
    }

    /// The samples of the page, those of one family beside each other; so many requests wait for their turn.
    #[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
    pub(super) fn signal_samples(&self, held_up: usize) -> Vec<Sample> {
        let now = Instant::now();
        let Signals { pressure, busy, hit_ratio, cores } = self.signals();
        let (waiting, waited) = self.0.metrics.load_waits.read(now);
        let devices: Vec<_> =
            self.0.models.loader().devices.iter().map(|place| (place, place.executor.meter())).collect();
        let queued: u64 = devices.iter().map(|(_, meter)| meter.queued.nanoseconds()).sum();
        let mut samples = vec![
            Sample::new(defs::SCALE_PRESSURE, [], pressure),
            Sample::new(defs::REQUESTS_WAITING, ["load".to_owned()], f64::from(waiting)),
            Sample::new(defs::REQUESTS_WAITING, ["turn".to_owned()], held_up as f64),
            Sample::new(defs::LOAD_WAITED, [], waited.as_secs_f64()),
            Sample::new(defs::QUEUED, [], Duration::from_nanos(queued).as_secs_f64()),
        ];
        let name = |device: DeviceId| [device.to_string()];
        samples.extend(devices.iter().map(|(place, meter)| {
            let busy = Duration::from_nanos(meter.busy.nanoseconds());
            Sample::new(defs::EXECUTOR_BUSY, name(place.device()), busy.as_secs_f64())
        }));
        samples.extend(
            devices
                .iter()
                .map(|(place, _)| Sample::new(defs::EXECUTOR_THREADS, name(place.device()), place.threads as f64)),
        );
        samples
            .extend(busy.iter().map(|(device, share)| Sample::new(defs::EXECUTOR_BUSY_SHARE, name(*device), *share)));
        samples
            .extend(cores.map(|cores| Sample::new(defs::host::CPU_UTILIZATION, [], cores.busy / cores.all.max(1.0))));
        samples.extend(hit_ratio.map(|ratio| Sample::new(defs::HIT_RATIO, [], ratio)));
        let ages = CHURNING.into_iter().zip(self.0.metrics.churn_ages(now));
        samples
            .extend(ages.filter_map(|(tier, age)| age.map(|age| Sample::new(defs::CHURN_AGE, [tier.to_owned()], age))));
        if let Some(space) = disk_space(&self.0.cache_directory) {
            samples.push(Sample::new(defs::host::DISK_TOTAL, [], space.total as f64));
            samples.push(Sample::new(defs::host::DISK_USED, [], space.used as f64));
        }
        samples
    }
}

/// Requests that wait for an instance or a thread of these.
pub(super) fn held_up(versions: &[Arc<LoadedVersion>]) -> usize {
    versions.iter().filter_map(|version| version.queue()).map(|queue| queue.held_up()).sum()
}

//! The page of metrics: what is not counted as it happens is set when somebody looks.

use super::signals::held_up;
use super::{InferenceServer, gpu_gauges};
use crate::inference::DeviceId;
use crate::metrics::defs;
use crate::metrics::prometheus::{Detail, ModelSeries};
use crate::telemetry::trace::TraceCounts;

impl InferenceServer {
    /// The Prometheus page: with series for the busiest models and one for all others.
    #[must_use]
    pub fn metrics_page(&self) -> String {
        self.metrics_page_of(Detail::Busiest, None)
    }

    /// The same with series for each model, or for the versions of `model` alone.
    #[must_use]
    pub fn metrics_page_in_detail(&self, model: Option<&str>) -> String {
        self.metrics_page_of(Detail::Each, model)
    }

    fn metrics_page_of(&self, detail: Detail, model: Option<&str>) -> String {
        if let Ok(memory) = self.0.monitor.memory(DeviceId::Cpu) {
            #[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
            for (family, bytes) in
                [(defs::host::CPU_MEMORY_TOTAL, memory.total), (defs::host::CPU_MEMORY_USED, memory.used)]
            {
                self.0.metrics.set(family, bytes as f64);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
        for gpu in self.0.monitor.gpus() {
            if let Ok(memory) = self.0.monitor.memory(DeviceId::Gpu(gpu.index)) {
                let labels = [("gpu_uuid", gpu.uuid.clone())];
                self.0.metrics.set_labelled(defs::GPU_MEMORY_TOTAL, &labels, memory.total as f64);
                self.0.metrics.set_labelled(defs::GPU_MEMORY_USED, &labels, memory.used as f64);
            }
            if let Ok(reading) = self.0.monitor.gpu(gpu.index) {
                gpu_gauges::set(&self.0.metrics, gpu.uuid, &reading);
            }
        }
        if let Some(responses) = &self.0.models.loader().responses {
            #[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
            self.0.metrics.set(defs::RESPONSE_CACHE_BYTES, responses.bytes() as f64);
        }
        self.0.models.count_uses();
        let TraceCounts { written, dropped, failed } = self.0.tracer.counts();
        for (outcome, count) in [("written", written), ("dropped", dropped), ("failed", failed)] {
            self.0.metrics.set_total(defs::TRACES, &[("outcome", outcome)], count);
        }
        #[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
        for (tier, device, book) in self.0.models.tallies() {
            let device = device.map_or_else(String::new, |device| device.to_string());
            let labels = [("tier", tier.name().to_owned()), ("device", device)];
            self.0.metrics.set_labelled(defs::TIER_LIMIT, &labels, book.limit as f64);
            self.0.metrics.set_labelled(defs::TIER_BOOKED, &labels, book.booked as f64);
            self.0.metrics.set_labelled(defs::TIER_MODELS, &labels, book.models as f64);
        }
        if let Some(pinned) = self.0.models.pinned() {
            gpu_gauges::set_pinned(&self.0.metrics, pinned);
        }
        #[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
        self.0.metrics.loads_waiting.set(self.0.models.loads_waiting() as f64);
        let (versions, held_up) = match model {
            None => {
                // In no order: few of them have series, and only those are put in order.
                let versions: Vec<_> =
                    self.0.models.all_resident().iter().flat_map(|model| model.versions().to_vec()).collect();
                let held_up = held_up(&versions);
                (versions, held_up)
            }
            Some(model) => (self.versions_of(model), self.held_up()),
        };
        let series: Vec<_> = versions
            .iter()
            .map(|loaded| ModelSeries {
                model: &loaded.id.name,
                version: loaded.id.version,
                statistics: &loaded.statistics,
                pending: loaded.pending(),
                load_seconds: loaded.load_duration.as_secs_f64(),
                cached: loaded.responses.is_some(),
            })
            .collect();
        self.0.metrics.render(&series, detail, &self.signal_samples(held_up))
    }
}

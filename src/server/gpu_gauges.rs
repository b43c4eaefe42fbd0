//! What a GPU says of its work, as series of the metrics page. What it does not say has none.

use crate::device::cuda::pinned::PinnedUsage;
use crate::device::monitor::{GpuHealth, GpuReading};
use crate::metrics::defs;
use crate::metrics::prometheus::ServerMetrics;

pub(super) fn set(metrics: &ServerMetrics, uuid: String, reading: &GpuReading) {
    let labels = [("gpu_uuid", uuid)];
    let healthy = if reading.health == GpuHealth::Well { 1.0 } else { 0.0 };
    let gauges = [
        (defs::GPU_UTILIZATION, reading.utilization),
        (defs::GPU_MEMORY_UTILIZATION, reading.memory_utilization),
        (defs::GPU_POWER_USAGE, reading.power),
        (defs::GPU_POWER_LIMIT, reading.power_limit),
        (defs::GPU_TEMPERATURE, reading.temperature.map(f64::from)),
        (defs::GPU_HEALTHY, Some(healthy)),
    ];
    for (family, value) in gauges {
        if let Some(value) = value {
            metrics.set_labelled(family, &labels, value);
        }
    }
    if let Some(joules) = reading.energy {
        metrics.set_labelled_total(defs::GPU_ENERGY, &labels, joules);
    }
}

/// The locked host memory for models that sleep.
#[expect(clippy::cast_precision_loss, reason = "Prometheus values are doubles")]
pub(super) fn set_pinned(metrics: &ServerMetrics, pinned: PinnedUsage) {
    for (kind, bytes) in [("limit", pinned.limit), ("locked", pinned.locked), ("taken", pinned.taken)] {
        metrics.set_labelled(defs::sleep::PINNED, &[("kind", kind.to_owned())], bytes as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::prometheus::Detail;

    #[test]
    fn what_a_gpu_says_is_on_the_page_under_tritons_names() {
        let metrics = ServerMetrics::new().unwrap();
        let reading = GpuReading {
            utilization: Some(0.25),
            memory_utilization: None,
            power: Some(71.5),
            power_limit: Some(300.0),
            energy: Some(12),
            temperature: Some(41),
            processes: Vec::new(),
            health: GpuHealth::Sick { reason: "on purpose".to_owned() },
        };
        set(&metrics, "GPU-1".to_owned(), &reading);
        let page = metrics.render(&[], Detail::Each, &[]);
        for line in [
            "nv_gpu_utilization{gpu_uuid=\"GPU-1\"} 0.25\n",
            "nv_gpu_power_usage{gpu_uuid=\"GPU-1\"} 71.5\n",
            "nv_gpu_power_limit{gpu_uuid=\"GPU-1\"} 300\n",
            "nv_energy_consumption{gpu_uuid=\"GPU-1\"} 12\n",
            "# TYPE nv_energy_consumption counter\n",
            "roundhouse_gpu_temperature_celsius{gpu_uuid=\"GPU-1\"} 41\n",
            "roundhouse_gpu_healthy{gpu_uuid=\"GPU-1\"} 0\n",
        ] {
            assert!(page.contains(line), "{line} is not in {page}");
        }
        assert!(!page.contains("memory_utilization{"), "{page}");
    }
}

//! GPUs that fall sick while the server runs.

use std::sync::Arc;

use super::InferenceServer;
use crate::device::cuda::gpu::Gpu;
use crate::device::monitor::{GpuHealth, GpuReading};
use crate::inference::DeviceId;

impl InferenceServer {
    /// The devices in use that cannot be used any more, and why.
    #[must_use]
    pub fn sick_devices(&self) -> Vec<(DeviceId, String)> {
        self.0.models.sick_devices()
    }

    /// Whether there were GPUs to serve from, and none is left.
    pub(super) fn has_lost_its_gpus(&self) -> bool {
        let mut gpus = self.0.models.loader().devices.iter().filter(|place| place.gpu.is_some()).peekable();
        gpus.peek().is_some() && gpus.all(|place| place.sick().is_some())
    }

    /// Looks at the health of the GPUs in use. What is sick stays so until a restart.
    pub(super) async fn look_at_gpus(&self) {
        let well = self.0.models.loader().devices.iter().filter(|place| place.sick().is_none());
        let gpus: Vec<(u32, Arc<Gpu>)> = well
            .filter_map(|place| match place.device() {
                DeviceId::Gpu(index) => Some((index, Arc::clone(place.gpu.as_ref()?))),
                DeviceId::Cpu => None,
            })
            .collect();
        if gpus.is_empty() {
            return;
        }
        let monitor = Arc::clone(&self.0.monitor);
        let look = move || {
            for (index, gpu) in gpus {
                if let Ok(GpuReading { health: GpuHealth::Sick { reason }, .. }) = monitor.gpu(index) {
                    tracing::error!(gpu = index, reason, "the GPU is sick: its models leave it");
                    gpu.mark_sick(reason);
                }
            }
        };
        // The management library may take its time.
        drop(tokio::task::spawn_blocking(look).await);
    }
}

//! Where a model is to be: a device and, on a GPU, its share of the memory there.

use std::sync::Arc;

use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::owner::Owner;
use crate::device::cuda::stream::Stream;
use crate::inference::DeviceId;

/// Where a model is to be.
#[derive(Clone, Debug)]
pub struct Placement {
    device: DeviceId,
    share: Option<GpuShare>,
}

/// A model's share of a GPU: one for all its versions and instances there.
#[derive(Clone, Debug)]
pub struct GpuShare {
    /// Whose memory it is: what the runtime takes for the model is to be taken as this owner's, by an
    /// [`OwnerScope`](crate::device::cuda::hooks::OwnerScope) around each call into the runtime. Whatever of the runtime
    /// holds such memory is dropped before the last clone of this.
    pub owner: Arc<Owner>,
    /// The device.
    pub gpu: Arc<Gpu>,
}

impl GpuShare {
    /// The device in CUDA's words (`device_id`).
    #[must_use]
    pub fn ordinal(&self) -> u32 {
        self.gpu.context().ordinal()
    }

    /// A stream for a session, the next in turn. The stream is the device's and lives as long as that; keep the `Arc` beside
    /// the session all the same.
    #[must_use]
    pub fn stream(&self) -> Arc<Stream> {
        self.gpu.stream()
    }
}

impl Placement {
    /// A device, without a share of memory that is ours to hand out: the CPU, or a GPU whose memory a runtime takes by
    /// itself.
    #[must_use]
    pub const fn of(device: DeviceId) -> Self {
        Self { device, share: None }
    }

    /// A GPU, with a share of its memory.
    #[must_use]
    pub fn on(share: GpuShare) -> Self {
        Self { device: share.gpu.context().id(), share: Some(share) }
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> DeviceId {
        self.device
    }

    /// The share of its memory, where it is a GPU that we hand out.
    #[must_use]
    pub const fn share(&self) -> Option<&GpuShare> {
        self.share.as_ref()
    }
}

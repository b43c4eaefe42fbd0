//! `DeviceMonitor`: what a device says of its memory and its work.

use crate::error::Result;
use crate::inference::DeviceId;

/// A device's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What there is for us to use: the device's own, or less where a cgroup says so.
    pub total: u64,
    /// What is in use, by anybody.
    pub used: u64,
    /// What this process uses of it.
    pub ours: u64,
}

/// A GPU, by the name that stays when others are added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuIdentity {
    /// Its index.
    pub index: u32,
    /// `GPU-` and the driver's identifier.
    pub uuid: String,
}

/// Reads devices: NVML for GPUs, cgroup v2 and /proc for the host.
pub trait DeviceMonitor: Send + Sync {
    /// The memory of `device`.
    ///
    /// # Errors
    /// `NotFound` for a device this monitor does not know, `Internal` if it cannot be read.
    fn memory(&self, device: DeviceId) -> Result<DeviceMemory>;

    /// The part of the last sampling period in which `device` was busy, 0 to 1; `None` where it cannot be asked.
    fn utilization(&self, _device: DeviceId) -> Option<f64> {
        None
    }

    /// The GPUs there are, used or not.
    fn gpus(&self) -> Vec<GpuIdentity> {
        Vec::new()
    }
}

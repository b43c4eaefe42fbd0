//! `DeviceMonitor`: what a device says of its memory and its work.

use std::time::Duration;

use crate::error::{Error, Result};
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

/// The processors that there are for us, and what they have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Processors {
    /// How long they have worked, for anybody, all cores together: since the machine started, or the container that we are in.
    pub worked: Duration,
    /// How many cores we may use at a time.
    pub cores: usize,
}

/// A GPU, by the name that stays when others are added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuIdentity {
    /// Its index.
    pub index: u32,
    /// `GPU-` or `MIG-`, and the driver's identifier.
    pub uuid: String,
}

/// Whether work should be given to a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuHealth {
    /// Nothing speaks against it.
    Well,
    /// It is there or was, and what it computes is not to be trusted.
    Sick {
        /// Why, and the mend.
        reason: String,
    },
}

/// A process on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuProcess {
    /// Its number, outside of any container.
    pub pid: u32,
    /// The memory it holds, in bytes, where the driver counts by process.
    pub bytes: Option<u64>,
}

/// What a GPU says of its work; `None` where it does not say.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuReading {
    /// The part of the last sample period (up to a second) in which a kernel ran, 0 to 1.
    pub utilization: Option<f64>,
    /// The part of it in which its memory was read or written, 0 to 1.
    pub memory_utilization: Option<f64>,
    /// What it takes now, in watts.
    pub power: Option<f64>,
    /// What it may take, in watts.
    pub power_limit: Option<f64>,
    /// What it has taken since the driver was loaded, in joules.
    pub energy: Option<u64>,
    /// How warm it is, in degrees Celsius.
    pub temperature: Option<u32>,
    /// The processes that compute on it.
    pub processes: Vec<GpuProcess>,
    /// Whether it is well.
    pub health: GpuHealth,
}

impl GpuReading {
    /// One that says nothing of itself, against which nothing speaks.
    #[must_use]
    pub const fn unknown() -> Self {
        Self {
            utilization: None,
            memory_utilization: None,
            power: None,
            power_limit: None,
            energy: None,
            temperature: None,
            processes: Vec::new(),
            health: GpuHealth::Well,
        }
    }
}

/// Reads devices: NVML for GPUs, cgroup v2 and /proc for the host.
pub trait DeviceMonitor: Send + Sync {
    /// The memory of `device`.
    ///
    /// # Errors
    /// `NotFound` for a device this monitor does not know, `Internal` if it cannot be read.
    fn memory(&self, device: DeviceId) -> Result<DeviceMemory>;

    /// What the host's processors have done; `None` where it cannot be asked.
    fn processors(&self) -> Option<Processors> {
        None
    }

    /// What a GPU says of its work and its health. One that does not answer is sick, and no error.
    ///
    /// # Errors
    /// `NotFound` for a GPU this monitor does not know.
    fn gpu(&self, index: u32) -> Result<GpuReading> {
        Err(Error::not_found(format!("there is no gpu:{index}: no GPU can be seen")))
    }

    /// The part of the last sample period in which `device` was busy, 0 to 1; `None` where it cannot be asked.
    fn utilization(&self, device: DeviceId) -> Option<f64> {
        match device {
            DeviceId::Cpu => None,
            DeviceId::Gpu(index) => self.gpu(index).ok()?.utilization,
        }
    }

    /// The GPUs there are, used or not; a GPU that is cut into MIG devices is those.
    fn gpus(&self) -> Vec<GpuIdentity> {
        Vec::new()
    }
}

//! All devices of this machine behind one monitor.

use super::host::Host;
use super::monitor::{DeviceMemory, DeviceMonitor, GpuIdentity, GpuReading};
use super::nvml::Nvml;
use crate::error::{Error, Result};
use crate::inference::DeviceId;

/// The host, and the GPUs where there are any.
#[derive(Debug, Default)]
pub struct Devices {
    /// Answers for the CPU.
    pub host: Host,
    /// Answers for GPUs.
    pub nvml: Option<Nvml>,
}

impl DeviceMonitor for Devices {
    fn memory(&self, device: DeviceId) -> Result<DeviceMemory> {
        match (device, &self.nvml) {
            (DeviceId::Cpu, _) => self.host.memory(device),
            (DeviceId::Gpu(_), Some(nvml)) => nvml.memory(device),
            (DeviceId::Gpu(_), None) => Err(Error::not_found(format!("there is no {device}: no GPU can be seen"))),
        }
    }

    fn gpu(&self, index: u32) -> Result<GpuReading> {
        let nvml = self.nvml.as_ref();
        nvml.ok_or_else(|| Error::not_found(format!("there is no gpu:{index}: no GPU can be seen")))?.gpu(index)
    }

    fn gpus(&self) -> Vec<GpuIdentity> {
        self.nvml.as_ref().map(DeviceMonitor::gpus).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn the_host_answers_for_the_cpu_and_nobody_for_a_gpu_that_cannot_be_seen() {
        let devices = Devices::default();
        let memory = devices.memory(DeviceId::Cpu).unwrap();
        assert!(memory.ours > 0 && memory.ours < memory.total, "{memory:?}");
        assert_eq!(devices.memory(DeviceId::Gpu(0)).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(devices.gpu(0).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

//! All devices of this machine behind one monitor.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cuda::context::Context;
use super::host::Host;
use super::monitor::{DeviceMemory, DeviceMonitor, GpuHealth, GpuIdentity, GpuReading, Processors};
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

    fn processors(&self) -> Option<Processors> {
        self.host.processors()
    }

    fn gpu(&self, index: u32) -> Result<GpuReading> {
        let nvml = self.nvml.as_ref();
        nvml.ok_or_else(|| Error::not_found(format!("there is no gpu:{index}: no GPU can be seen")))?.gpu(index)
    }

    fn gpus(&self) -> Vec<GpuIdentity> {
        self.nvml.as_ref().map(DeviceMonitor::gpus).unwrap_or_default()
    }
}

/// Another monitor, with what the CUDA driver says beside it: where NVML is not there or answers no more, memory is still
/// told; and a GPU that is lost to this process is sick, whatever NVML thinks of it.
pub struct Opened {
    inner: Arc<dyn DeviceMonitor>,
    contexts: BTreeMap<u32, Arc<Context>>,
}

impl Opened {
    /// Over the GPUs that are open, by NVML's index.
    #[must_use]
    pub fn new(inner: Arc<dyn DeviceMonitor>, contexts: BTreeMap<u32, Arc<Context>>) -> Self {
        Self { inner, contexts }
    }
}

impl DeviceMonitor for Opened {
    fn memory(&self, device: DeviceId) -> Result<DeviceMemory> {
        let told = self.inner.memory(device);
        let context = match device {
            DeviceId::Gpu(index) => self.contexts.get(&index),
            DeviceId::Cpu => None,
        };
        match (told, context) {
            (Err(_), Some(context)) => {
                let (free, total) = context.memory()?;
                Ok(DeviceMemory { total, used: total.saturating_sub(free), ours: 0 })
            }
            (told, _) => told,
        }
    }

    fn processors(&self) -> Option<Processors> {
        self.inner.processors()
    }

    fn gpu(&self, index: u32) -> Result<GpuReading> {
        let told = self.inner.gpu(index);
        let Some(context) = self.contexts.get(&index) else { return told };
        let mut reading = told.unwrap_or_else(|_unknown| GpuReading::unknown());
        if context.is_lost() {
            reading.health = GpuHealth::Sick {
                reason: "it is lost to this process: look at nvidia-smi and the kernel's log, then restart the server"
                    .to_owned(),
            };
        }
        Ok(reading)
    }

    fn gpus(&self) -> Vec<GpuIdentity> {
        let told = self.inner.gpus();
        if !told.is_empty() {
            return told;
        }
        let opened = self.contexts.iter();
        opened.map(|(index, context)| GpuIdentity { index: *index, uuid: context.uuid().to_owned() }).collect()
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

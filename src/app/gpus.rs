//! The GPUs in use, opened: each with its memory, all with one pool of locked host memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::parts::eviction_policy;
use crate::cache::memory_pool::MemoryPool;
use crate::config::{CacheConfig, DeviceChoice, ServerConfig};
use crate::device::cuda::context::Context;
use crate::device::cuda::gpu::{Cuda, Gpu, SLAB};
use crate::device::cuda::pinned::PinnedPool;
use crate::device::devices::Opened;
use crate::device::monitor::DeviceMonitor;
use crate::error::{Error, Result};
use crate::inference::DeviceId;
use crate::lifecycle::sleep::HostTier;

/// What GPUs are to this process.
pub(super) struct Gpus {
    contexts: BTreeMap<u32, Arc<Context>>,
    /// Bytes that may be locked for models that sleep.
    host_limit: u64,
    pinned: Option<Arc<PinnedPool>>,
}

impl Gpus {
    /// Opens those of the devices that are GPUs, where there is a driver for it: before their memory is counted, since the
    /// driver takes some of it for this process. One that cannot be opened is taken out of `devices`, unless it was asked
    /// for by name.
    ///
    /// # Errors
    /// As the driver says; `Internal` where the host's memory cannot be read.
    pub(super) fn open(
        cuda: Option<Cuda>,
        devices: &mut Vec<DeviceId>,
        config: &ServerConfig,
        monitor: &dyn DeviceMonitor,
    ) -> Result<Self> {
        let mut contexts = BTreeMap::new();
        for device in devices.clone() {
            let (DeviceId::Gpu(index), Some(cuda)) = (device, &cuda) else { continue };
            let context = match cuda.open(index) {
                Ok(context) => context,
                Err(error) if config.devices.contains(&DeviceChoice::Gpu(index)) => {
                    let text = format!("--device {device} cannot be used; say auto or cpu");
                    return Err(Error::invalid(text).with_source(error));
                }
                Err(error) => {
                    tracing::warn!(%device, error = %error.report(), "a GPU cannot be opened and is not used");
                    devices.retain(|other| *other != device);
                    continue;
                }
            };
            let (name, ordinal, version) = (context.name(), context.ordinal(), cuda.version());
            tracing::info!(%device, name, uuid = context.uuid(), ordinal, cuda = version, "GPU opened");
            contexts.insert(index, context);
        }
        let host_limit = match contexts.is_empty() {
            true => 0,
            false => {
                let memory = monitor.memory(DeviceId::Cpu)?;
                config.cache.host_limit.of(memory.total.saturating_sub(memory.used))
            }
        };
        Ok(Self { contexts, host_limit, pinned: None })
    }

    /// The monitor, with what the driver itself says of the GPUs beside it.
    pub(super) fn watched(&self, monitor: Arc<dyn DeviceMonitor>) -> Arc<dyn DeviceMonitor> {
        match self.contexts.is_empty() {
            true => monitor,
            false => Arc::new(Opened::new(monitor, self.contexts.clone())),
        }
    }

    /// Bytes that may be locked for models that sleep.
    pub(super) const fn host_limit(&self) -> u64 {
        self.host_limit
    }

    /// Where models sleep, once GPUs are handed out, if they may at all.
    pub(super) fn host_tier(&self, config: &CacheConfig) -> Option<HostTier> {
        let pinned = self.pinned.as_ref().filter(|_| self.host_limit > 0)?;
        tracing::info!(limit = self.host_limit, "host memory for models that sleep");
        let book = MemoryPool::new(DeviceId::Cpu, self.host_limit, Duration::ZERO, eviction_policy(config.rule));
        Some(HostTier::new(book, Arc::clone(pinned)))
    }

    /// Hands out `memory` bytes of a device to models, with a stream for each of its threads. `None` for a device whose
    /// memory is not ours to hand out.
    ///
    /// # Errors
    /// As the driver says.
    pub(super) fn hand_out(&mut self, device: DeviceId, memory: u64, threads: usize) -> Result<Option<Arc<Gpu>>> {
        let DeviceId::Gpu(index) = device else { return Ok(None) };
        let Some(context) = self.contexts.get(&index) else { return Ok(None) };
        let pinned = self.pinned.get_or_insert_with(|| PinnedPool::new(context, self.host_limit, SLAB));
        Gpu::open(context, pinned, memory, threads).map(Some)
    }
}

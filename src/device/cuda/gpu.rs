//! A GPU that models run on: its memory, its streams, and who puts its models to sleep; and which of the driver's devices it
//! is.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::context::Context;
use super::driver::Driver;
use super::hooks;
use super::owner::Owner;
use super::pinned::PinnedPool;
use super::pool::{PoolLimits, VramPool};
use super::sleeper::Sleeper;
use super::stream::{Stream, Streams};
use crate::device::monitor::GpuIdentity;
use crate::error::{Error, Result};
use crate::inference::DeviceId;

/// What the slabs of pinned memory are, in bytes: large enough that a model of some GB lies in few parts, small enough
/// that one is locked in some ten milliseconds.
pub const SLAB: u64 = 64 << 20;

/// What may be locked for inputs and outputs on their way, in bytes, for each GPU.
const STAGING: u64 = 256 << 20;

/// The most memory that stays taken while nobody uses it, in bytes: what one model leaves the next one gets without asking
/// the driver.
const MOST_SPARE: u64 = 256 << 20;

/// The driver, and which of its devices is which GPU.
#[derive(Clone, Debug)]
pub struct Cuda {
    driver: Driver,
    /// The driver's index of each GPU.
    ordinals: BTreeMap<u32, u32>,
}

impl Cuda {
    /// Matches the driver's devices with the GPUs that NVML has `known`, by their identifiers: the two count them in
    /// different orders, and `CUDA_VISIBLE_DEVICES` changes the driver's. Where nothing is known, the driver's order counts.
    ///
    /// # Errors
    /// Why no GPU can be used, in words that fit after "since".
    pub fn find(driver: Driver, known: &[GpuIdentity]) -> Result<Self, String> {
        let uuids = (0..driver.devices()).map(|ordinal| driver.uuid(ordinal));
        let uuids: Vec<String> = uuids.collect::<Result<_>>().map_err(|error| error.report())?;
        let ordinals = matched(known, &uuids);
        if ordinals.is_empty() {
            return Err(format!(
                "none of the {} GPUs that NVML shows is one of the {} that the CUDA driver lets this process use: look at \
                 CUDA_VISIBLE_DEVICES",
                known.len(),
                uuids.len()
            ));
        }
        Ok(Self { driver, ordinals })
    }

    /// The GPUs that can be used, by NVML's index.
    #[must_use]
    pub fn gpus(&self) -> Vec<u32> {
        self.ordinals.keys().copied().collect()
    }

    /// The newest CUDA that the driver is for, such as `13.0`.
    #[must_use]
    pub fn version(&self) -> String {
        self.driver.version()
    }

    /// Opens a GPU by NVML's index. From then on some hundred MB of it are the driver's, for this process.
    ///
    /// # Errors
    /// `NotFound` for one that cannot be used; else as the driver says.
    pub fn open(&self, index: u32) -> Result<Arc<Context>> {
        let ordinal = self.ordinals.get(&index);
        let ordinal = ordinal.ok_or_else(|| Error::not_found(format!("gpu:{index} cannot be used by this process")))?;
        self.driver.context_as(*ordinal, DeviceId::Gpu(index))
    }
}

/// The driver's index of each GPU that both know. NVML writes another prefix before the identifiers of MIG devices.
fn matched(known: &[GpuIdentity], uuids: &[String]) -> BTreeMap<u32, u32> {
    let bare = |uuid: &str| uuid.split_once('-').map_or(uuid, |(_, rest)| rest).to_owned();
    if known.is_empty() {
        return (0..).zip(uuids).map(|(ordinal, _)| (ordinal, ordinal)).collect();
    }
    let ordinals: BTreeMap<String, u32> = uuids.iter().map(|uuid| bare(uuid)).zip(0..).collect();
    known.iter().filter_map(|gpu| Some((gpu.index, *ordinals.get(&bare(&gpu.uuid))?))).collect()
}

/// A GPU, open.
#[derive(Debug)]
pub struct Gpu {
    pool: Arc<VramPool>,
    sleeper: Sleeper,
    /// For sessions.
    streams: Arc<Streams>,
    /// For copies.
    copy_streams: Streams,
    staging: Arc<PinnedPool>,
    /// Pays for what runtimes take outside of any model.
    others: Arc<Owner>,
    sick: OnceLock<String>,
}

impl Gpu {
    /// Hands out `memory` bytes of a device, with as many streams as threads answer there; models sleep in `pinned`. Runtimes
    /// are served from it from now on ([`hooks`]).
    ///
    /// # Errors
    /// As the driver says.
    pub fn open(context: &Arc<Context>, pinned: &Arc<PinnedPool>, memory: u64, streams: usize) -> Result<Arc<Self>> {
        let limits = PoolLimits { memory, spare: (memory / 64).min(MOST_SPARE), piece: PoolLimits::PIECE };
        let pool = VramPool::new(context, limits);
        let (streams, copy_streams) = (Arc::new(Streams::new(context, streams)?), Streams::new(context, streams)?);
        let sleeper = Sleeper::new(context, pinned)?;
        let staging = PinnedPool::new(context, STAGING, SLAB / 16);
        let others = hooks::serve(&pool, memory, Some(&streams))?;
        Ok(Arc::new(Self { pool, sleeper, streams, copy_streams, staging, others, sick: OnceLock::new() }))
    }

    /// Nothing is to run on it any more, until the server is started anew.
    pub fn mark_sick(&self, reason: String) {
        let _first_reason_counts = self.sick.set(reason);
    }

    /// Why nothing is to run on it any more, and the mend.
    #[must_use]
    pub fn sick(&self) -> Option<String> {
        if self.context().is_lost() {
            let mend = "look at nvidia-smi and the kernel's log, then restart the server";
            return Some(format!("it is lost to this process: {mend}"));
        }
        self.sick.get().cloned()
    }

    /// Its memory.
    #[must_use]
    pub const fn pool(&self) -> &Arc<VramPool> {
        &self.pool
    }

    /// The device.
    #[must_use]
    pub fn context(&self) -> &Arc<Context> {
        self.pool.context()
    }

    /// Who puts its models to sleep.
    #[must_use]
    pub const fn sleeper(&self) -> &Sleeper {
        &self.sleeper
    }

    /// Who pays for what runtimes take outside of any model.
    #[must_use]
    pub const fn others(&self) -> &Arc<Owner> {
        &self.others
    }

    /// Locked host memory for inputs and outputs on their way.
    #[must_use]
    pub const fn staging(&self) -> &Arc<PinnedPool> {
        &self.staging
    }

    /// Memory that is taken of the device and is no model's alone, in bytes: scratch of runs, what runtimes take for themselves,
    /// and what is kept for the next one.
    #[must_use]
    pub fn shared_bytes(&self) -> u64 {
        let usage = self.pool.usage();
        usage.memory.saturating_sub(usage.weights.saturating_sub(self.others.usage().weight_memory))
    }

    /// A stream for a session: each in turn, as many as threads answer on the device. Any number of sessions may use one.
    #[must_use]
    pub fn stream(&self) -> Arc<Stream> {
        self.streams.next()
    }

    /// A stream for copies to and from the device, beside those that compute: each in turn, as many as of the others. Streams of
    /// one's own would each have memory of their own for what runs take.
    #[must_use]
    pub fn copy_stream(&self) -> Arc<Stream> {
        self.copy_streams.next()
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        hooks::end(&self.pool);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(uuids: &[&str]) -> Vec<GpuIdentity> {
        (0..).zip(uuids).map(|(index, uuid)| GpuIdentity { index, uuid: (*uuid).to_owned() }).collect()
    }

    fn uuids(all: &[&str]) -> Vec<String> {
        all.iter().map(|uuid| (*uuid).to_owned()).collect()
    }

    #[test]
    fn devices_are_matched_by_their_identifiers_and_not_by_their_order() {
        let pairs = matched(&known(&["GPU-a", "GPU-b", "GPU-c"]), &uuids(&["GPU-c", "GPU-a"]));
        assert_eq!(pairs, BTreeMap::from([(0, 1), (2, 0)]), "b is hidden from this process");
        let parts = matched(&known(&["MIG-x", "MIG-y"]), &uuids(&["GPU-y"]));
        assert_eq!(parts, BTreeMap::from([(1, 0)]));
    }

    #[test]
    fn without_nvml_the_drivers_order_counts() {
        assert_eq!(matched(&[], &uuids(&["GPU-c", "GPU-a"])), BTreeMap::from([(0, 0), (1, 1)]));
    }
}

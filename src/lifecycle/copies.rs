//! A model's copy on one device: its memory there, and which members of the model's queues run it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::handle::{Resident, Versions};
use crate::backend::placement::GpuShare;
use crate::backend::{Model, ModelMemory};
use crate::cache::memory_pool::{MemoryLease, MemoryPool};
use crate::error::{Error, Result};
use crate::inference::DeviceId;
use crate::model_config::RateLimiter;
use crate::scheduler::queue::{MemberId, Remains};

/// All versions of a model on one device; of an ensemble, what is booked for it in the book of ensembles.
pub(super) struct DeviceCopy {
    pub(super) pool: MemoryPool,
    pub(super) lease: Mutex<Option<MemoryLease>>,
    /// Its share of the device's memory, where that is ours to hand out.
    pub(super) share: Mutex<Option<GpuShare>>,
    /// Its place in host memory, while it sleeps.
    pub(super) host_lease: Mutex<Option<MemoryLease>>,
    /// Bytes of the lease without what runs have taken since.
    pub(super) loaded_bytes: u64,
    /// Whether the runtime counts all bytes itself.
    pub(super) exact: bool,
    /// The runtime's model of each version, alive as long as its queue has a member of it.
    pub(super) models: Models,
    /// What runs it, by instance group.
    pub(super) groups: Mutex<Vec<PlacedGroup>>,
    /// Seconds that bringing it took.
    pub(super) seconds: f64,
    /// Whether it came since the model's queue paid for it.
    pub(super) is_extra: bool,
}

pub(super) type Models = SmallVec<[Weak<dyn Model>; 1]>;

/// An instance group on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlacedGroup {
    pub(super) rate_limiter: RateLimiter,
    pub(super) count: usize,
    /// The member of each version's queue; none for a queue of sequences, whose members stay.
    pub(super) members: SmallVec<[MemberId; 1]>,
}

impl DeviceCopy {
    /// What an ensemble holds, which is next to nothing.
    pub(super) fn of_ensemble(lease: MemoryLease, took: Duration) -> Self {
        Self {
            pool: lease.pool().clone(),
            loaded_bytes: lease.bytes(),
            lease: Mutex::new(Some(lease)),
            share: Mutex::default(),
            host_lease: Mutex::default(),
            exact: false,
            models: Models::new(),
            groups: Mutex::default(),
            seconds: took.as_secs_f64(),
            is_extra: false,
        }
    }

    pub(super) fn device(&self) -> DeviceId {
        self.pool.device()
    }

    /// Bytes booked for it.
    pub(super) fn booked(&self) -> u64 {
        self.lease.lock().as_ref().map_or(0, MemoryLease::bytes)
    }

    /// What it holds now: as it took of us, else as the runtime says.
    pub(super) fn bytes_now(&self) -> u64 {
        let taken = self.share.lock().as_ref().and_then(taken);
        taken.unwrap_or_else(|| held(&self.models, self.exact, self.loaded_bytes))
    }

    /// Takes out its share of the device's memory, which ends with it: to be dropped where blocking is allowed, after the
    /// models are gone, and before the lease.
    pub(super) fn take_share(&self) -> Option<GpuShare> {
        self.share.lock().take()
    }

    /// Its memory is free: whoever still looks at what it was holds none of it.
    pub(super) fn give_back(&self) {
        self.give_back_device();
        drop(self.host_lease.lock().take());
    }

    /// Its device's memory is free, whatever of it is elsewhere.
    pub(super) fn give_back_device(&self) {
        drop(self.lease.lock().take());
    }

    /// How many instances of each version it has.
    pub(super) fn instances(&self) -> usize {
        self.groups.lock().iter().map(|group| group.count).sum()
    }

    /// Whether a runtime reads the files while it lives.
    pub(super) fn keeps_files(&self) -> bool {
        self.models.iter().filter_map(Weak::upgrade).any(|model| model.keeps_files())
    }

    /// Whether it has been chosen to leave and has not left.
    pub(super) fn is_leaving(&self, name: &super::Name) -> bool {
        self.pool.is_leaving(name)
    }

    /// Takes its members out of the queues of `versions`; returns when nothing of it runs any more. What is left is the
    /// caller's to drop, on a thread that may block.
    ///
    /// # Errors
    /// `Internal` where nobody would be left to answer: then the model goes as a whole.
    pub(super) async fn withdraw(&self, versions: &Versions) -> Result<Vec<Remains>> {
        let groups = self.groups.lock().clone();
        let mut remains = Vec::with_capacity(versions.len());
        for (at, version) in versions.iter().enumerate() {
            let members: Vec<_> = groups.iter().filter_map(|group| group.members.get(at).copied()).collect();
            let queue = version.queue().ok_or_else(|| Error::internal("an ensemble has no copies"))?;
            remains.push(queue.remove(&members).await?);
        }
        self.groups.lock().clear();
        Ok(remains)
    }
}

/// The memory below what was taken of a share and lasts; `None` where its runtime takes memory by itself.
pub(super) fn taken(share: &GpuShare) -> Option<u64> {
    let bytes = share.owner.usage().weight_memory;
    (bytes > 0).then_some(bytes)
}

/// What models hold, as their runtime says: all of it, or what runs took beside `loaded` bytes.
pub(super) fn held(models: &[Weak<dyn Model>], exact: bool, loaded: u64) -> u64 {
    let each = models.iter().filter_map(Weak::upgrade).map(|model| model.memory());
    let (all, runs) = each.fold((0_u64, 0_u64), |(all, runs), memory| match memory {
        ModelMemory::Exact(bytes) => (all.saturating_add(bytes), runs),
        ModelMemory::Runs(bytes) => (all, runs.saturating_add(bytes)),
    });
    if exact { all } else { loaded.saturating_add(runs) }
}

/// Whether a runtime counts all bytes of these models itself.
pub(super) fn is_exact(models: &[Weak<dyn Model>]) -> bool {
    let mut each = models.iter().filter_map(Weak::upgrade);
    each.all(|model| matches!(model.memory(), ModelMemory::Exact(_)))
}

impl Resident {
    /// Its copy on a device.
    pub(super) fn copy_on(&self, device: DeviceId) -> Option<&Arc<DeviceCopy>> {
        self.copies.iter().find(|copy| copy.device() == device)
    }

    /// Whether it goes on answering without its copy on this device.
    pub(super) fn can_spare(&self, device: DeviceId) -> bool {
        self.copies.len() > 1
            && self.copy_on(device).is_some()
            && self.versions.iter().all(|version| version.is_flexible())
    }

    /// Whether it is on its way out of any device.
    pub(super) fn is_leaving(&self, name: &super::Name) -> bool {
        self.copies.iter().any(|copy| copy.is_leaving(name))
    }

    /// Never evicts it, or lets it be evicted again.
    pub(super) fn set_pinned(&self, name: &super::Name, pinned: bool) {
        for copy in &self.copies {
            copy.pool.set_pinned(name, pinned);
        }
    }

    /// The same with other copies.
    pub(super) fn with_copies(&self, copies: Vec<Arc<DeviceCopy>>) -> Self {
        Self {
            versions: self.versions.clone(),
            copies,
            source: Arc::clone(&self.source),
            fingerprint: self.fingerprint,
            weights: self.weights,
            retention: self.retention,
            given_config: self.given_config,
            is_free: self.is_free,
            files: Arc::clone(&self.files),
        }
    }
}

//! Memory of a GPU that is lacking in the middle of a load, a run or a wake: others make room, or there is none.
//!
//! A runtime's thread asks and waits; who is to leave does so in tasks on the loading threads.

use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;

use super::residency::EvictionReason;
use super::room::LOOK;
use super::{ModelManager, Name, Shared};
use crate::backend::placement::Placement;
use crate::cache::eviction::Weight;
use crate::cache::memory_pool::{MemoryLease, MemoryPool};
use crate::cache::table::Victim;
use crate::config::Eviction;
use crate::device::cuda::gpu::Gpu;
use crate::inference::DeviceId;

/// What a load that needs more than was booked books at once, in bytes, so that it does not ask for each tensor.
const GROWTH: u64 = 32 << 20;

/// Bytes booked for a load beyond its lease; given back when the lease has the truth.
#[derive(Default)]
pub(super) struct Growth(Arc<Mutex<Vec<MemoryLease>>>);

impl ModelManager {
    /// Has the GPUs ask here when memory is lacking.
    pub(super) fn answer_shortages(&self) {
        for place in &self.0.loader.devices {
            let Some(gpu) = &place.gpu else { continue };
            let (shared, device) = (Arc::downgrade(&self.0), place.device());
            let upgrade = move |shared: &Weak<Shared>| shared.upgrade().map(ModelManager);
            gpu.pool().on_shortage(Box::new(move |bytes| {
                upgrade(&shared).is_some_and(|manager| manager.free_some(device, bytes))
            }));
        }
    }

    /// Frees memory of a device for a block of `bytes`, whatever its book says: somebody else may have it. Whether it is worth
    /// another try. Waits for those who use what is to leave, as long as a load waits for room. Blocking.
    fn free_some(&self, device: DeviceId, bytes: u64) -> bool {
        let Some(place) = self.0.loader.devices.iter().find(|place| place.device() == device) else { return false };
        let Some(gpu) = &place.gpu else { return false };
        give_back_spare(gpu);
        let lacking = bytes.saturating_sub(free_bytes(gpu));
        if lacking == 0 {
            return true;
        }
        tracing::warn!(%device, bytes, lacking, "the device is short of memory: others have to leave");
        let (manager, pool) = (self.clone(), place.pool.clone());
        self.wait_for(async move {
            let automatic = manager.0.options.eviction == Eviction::Automatic;
            let mut room = pool.wait_for_room();
            // Who could leave once its requests are answered is waited for; where nobody could, nothing is.
            while automatic && pool.book(Instant::now(), &|_| false).evictable >= lacking {
                let busy = |other: &Name| manager.is_busy(other, device);
                let victims = pool.reclaim(lacking, Instant::now(), &busy).victims;
                if !victims.is_empty() {
                    manager.evict_all(&pool, victims, None).await;
                    return true;
                }
                room.heard(LOOK).await;
            }
            false
        })
    }

    /// Has victims leave; returns when they are gone.
    async fn evict_all(&self, pool: &MemoryPool, victims: Vec<Victim<Name>>, made_room_for: Option<&Name>) {
        let names: Vec<Name> = victims.iter().map(|victim| Arc::clone(&victim.key)).collect();
        self.evict(pool.device(), victims, EvictionReason::Room, made_room_for);
        let mut room = pool.wait_for_room();
        while names.iter().any(|name| pool.is_leaving(name)) {
            room.heard(LOOK).await;
        }
    }

    /// What work on the loading threads says, which this thread waits for, as long as a load waits for room. This thread
    /// may be no thread of a runtime's, and must not be one that the work needs. Blocking.
    fn wait_for(&self, work: impl Future<Output = bool> + Send + 'static) -> bool {
        let (said, heard) = std::sync::mpsc::sync_channel(1);
        self.0.loader.loading.spawn(async move {
            // Who asked may have given up.
            let _heard = said.send(work.await);
        });
        heard.recv_timeout(self.0.options.room_wait).unwrap_or(false)
    }

    /// Lets a load take more of its devices than was booked, if that can be booked meanwhile.
    pub(super) fn let_grow(&self, name: &Name, placements: &[Placement], pools: &[MemoryPool]) -> Growth {
        let growth = Growth::default();
        for (placement, pool) in placements.iter().zip(pools) {
            let Some(share) = placement.share() else { continue };
            let (shared, leases) = (Arc::downgrade(&self.0), Arc::clone(&growth.0));
            let (name, pool) = (Arc::clone(name), pool.clone());
            share.owner.on_limit(Some(Arc::new(move |need| {
                let manager = ModelManager(shared.upgrade()?);
                let lease = manager.book_more(&name, &pool, need)?;
                let bytes = lease.bytes();
                leases.lock().push(lease);
                Some(bytes)
            })));
        }
        growth
    }

    /// Books more for a load that is under way. Blocking.
    fn book_more(&self, name: &Name, pool: &MemoryPool, need: u64) -> Option<MemoryLease> {
        let automatic = self.0.options.eviction == Eviction::Automatic;
        let busy = |other: &Name| !automatic || other == name || self.is_busy(other, pool.device());
        let try_for = |bytes| pool.try_reserve(name, Weight { bytes, seconds: 0.0 }, Instant::now(), &busy).ok();
        let reservation = try_for(need.max(GROWTH)).or_else(|| try_for(need))?;
        let (manager, name, pool) = (self.clone(), Arc::clone(name), pool.clone());
        let victims = reservation.eviction.victims;
        let is_clear = victims.is_empty()
            || self.wait_for(async move {
                manager.evict_all(&pool, victims, Some(&name)).await;
                true
            });
        is_clear.then_some(reservation.lease)
    }

    /// Books what runs share of a GPU, which is nobody's.
    pub(super) fn book_scratch(&self, device: DeviceId) {
        let Some(place) = self.0.loader.devices.iter().find(|place| place.device() == device) else { return };
        let (Some(gpu), Some(scratch)) = (&place.gpu, self.0.scratch.get(&device)) else { return };
        let bytes = gpu.shared_bytes();
        let mut lease = scratch.lock();
        let automatic = self.0.options.eviction == Eviction::Automatic;
        let busy = |other: &Name| !automatic || self.is_busy(other, device);
        let now = Instant::now();
        if bytes == 0 {
            *lease = None;
            return;
        }
        let mut victims = Vec::new();
        if lease.is_none() {
            // The least there is; corrected to what it is, the book has the truth where it is more than there may be.
            let least = Weight { bytes: 0, seconds: 0.0 };
            match place.pool.try_reserve(&SCRATCH.into(), least, now, &busy) {
                Ok(reservation) => {
                    victims = reservation.eviction.victims;
                    *lease = Some(reservation.lease);
                }
                Err(_no_room) => return,
            }
        }
        let made = lease.as_mut().map(|lease| lease.correct(bytes, now, &busy));
        drop(lease);
        victims.extend(made.and_then(Result::ok).unwrap_or_default().victims);
        self.evict(device, victims, EvictionReason::Overrun, None);
    }

    /// Gives back memory of GPUs that nobody has used for a tick, where no load is about to want it.
    pub(super) fn give_back_unused(&self) {
        if self.0.gate.waiting() > 0 {
            return;
        }
        for place in &self.0.loader.devices {
            let Some(gpu) = place.gpu.clone().filter(|gpu| gpu.shared_bytes() > 0) else { continue };
            let (manager, device) = (self.clone(), place.device());
            drop(self.0.loader.loading.spawn_blocking(move || {
                give_back_spare(&gpu);
                manager.book_scratch(device);
            }));
        }
    }
}
/// What scratch is called in a device's book: no model's name, which has no spaces at its ends.
pub(super) const SCRATCH: &str = " scratch ";

/// Gives back what nobody uses.
fn give_back_spare(gpu: &Gpu) {
    if let Err(error) = gpu.pool().trim() {
        tracing::warn!(device = %gpu.context().id(), error = %error.report(), "unused memory cannot be given back");
    }
}

/// What the device has and we may take of it.
fn free_bytes(gpu: &Gpu) -> u64 {
    let usage = gpu.pool().usage();
    let free = gpu.context().memory().map_or(0, |(free, _)| free);
    usage.limit.saturating_sub(usage.memory).min(free)
}

//! Models that sleep: their weights lie in host memory, their sessions and addresses stay, and the next request wakes them.
//!
//! ## Ready => (handles gone, copied, unmapped) => asleep => (room, mapped, copied back) => Ready
//! A model that has to leave a GPU sleeps where the host tier has room for it, else it is unloaded. Out of its slot it answers
//! nobody, so that a ready model costs a request nothing more; a request for it leads its load, which is a wake. The host
//! tier's own victims end: they have to be loaded again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::copies::{DeviceCopy, taken};
use super::flight::Flight;
use super::handle::Resident;
use super::loader::{LoadError, Loader};
use super::residency::{EvictionReason, Retention};
use super::room::{Evicts, LOOK, Want, reserve};
use super::slot::{Departure, Slot};
use super::{ModelManager, Name};
use crate::backend::placement::GpuShare;
use crate::cache::eviction::Weight;
use crate::cache::memory_pool::{MemoryLease, MemoryPool};
use crate::device::cuda::pinned::PinnedPool;
use crate::device::cuda::sleeper::Moved;
use crate::error::{Error, Result};

/// Host memory for models that sleep.
pub struct HostTier {
    /// Its book.
    pub book: MemoryPool,
    /// The memory: locked, so that devices copy from and to it by themselves.
    pub pinned: Arc<PinnedPool>,
    /// Bytes a second that wakes have come to lately.
    rate: AtomicU64,
}

/// What a wake is expected to come to before there was one, in bytes a second: half of what PCIe 4.0 carries.
const FIRST_RATE: u64 = 12_000_000_000;

/// What a wake takes beside its copy, in seconds.
const WAKE_SECONDS: f64 = 0.002;

impl HostTier {
    /// A tier that holds nothing yet.
    #[must_use]
    pub const fn new(book: MemoryPool, pinned: Arc<PinnedPool>) -> Self {
        Self { book, pinned, rate: AtomicU64::new(FIRST_RATE) }
    }

    /// Seconds that waking a model of so many bytes is expected to take.
    #[expect(clippy::cast_precision_loss, reason = "an expectation")]
    pub(super) fn wake_seconds(&self, bytes: u64) -> f64 {
        WAKE_SECONDS + bytes as f64 / self.rate.load(Ordering::Relaxed).max(1) as f64
    }

    /// A wake tells how fast it was; the last few count.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a rate")]
    fn woke(&self, moved: Moved) {
        // Small ones say how long the calls take, not the copy.
        if moved.bytes >= 1 << 20 {
            let rate = moved.bytes as f64 / moved.took.as_secs_f64().max(1e-6);
            let before = self.rate.load(Ordering::Relaxed) as f64;
            self.rate.store((before * 0.75 + rate * 0.25) as u64, Ordering::Relaxed);
        }
    }

    /// Books bytes for a model that is to sleep; returns when they may be used. `None` where there is no room, or none in time.
    async fn reserve(&self, manager: &ModelManager, name: &Name, weight: Weight) -> Option<MemoryLease> {
        let busy = |other: &Name| other == name || manager.is_in_flight(other);
        let reservation = self.book.try_reserve(name, weight, Instant::now(), &busy).ok()?;
        for victim in reservation.eviction.victims {
            let (made_room_for, age) = (Some(Arc::clone(name)), Some((victim.age, victim.idle)));
            let departure = Departure { made_room_for, age, ..Departure::because(EvictionReason::Room).out_of_host() };
            manager.unload_soon(&victim.key, departure);
        }
        let began = Instant::now();
        let mut room = self.book.wait_for_room();
        while !self.book.is_clear() {
            if began.elapsed() >= manager.0.options.room_wait {
                return None;
            }
            room.heard(LOOK).await;
        }
        Some(reservation.lease)
    }
}

/// What became of a model that was to sleep.
pub(super) enum Slept {
    /// It does.
    Asleep,
    /// It cannot, and is where it was.
    Cannot,
    /// It does not, and is out of its slot: to be freed.
    Failed(Arc<Resident>),
}

impl Resident {
    /// Its only copy and the share of it, if it can sleep: all that it holds of devices is ours to take and to give back.
    fn sole_share(&self) -> Option<(&Arc<DeviceCopy>, GpuShare)> {
        let [copy] = self.copies.as_slice() else { return None };
        let share = copy.share.lock().clone()?;
        (self.retention == Retention::Cached && taken(&share).is_some()).then_some((copy, share))
    }

    /// Lets nobody in; returns when nobody uses it and nothing of it runs any more.
    async fn rest(&self) {
        for version in &self.versions {
            version.pins.retire();
            if let Some(queue) = version.queue() {
                queue.hasten();
            }
        }
        for version in &self.versions {
            version.pins.drained().await;
            if let Some(queue) = version.queue() {
                queue.rest().await;
            }
        }
    }

    /// Undoes [`Resident::rest`].
    fn resume(&self) {
        for version in &self.versions {
            if let Some(queue) = version.queue() {
                queue.resume();
            }
            version.pins.reopen();
        }
    }

    /// Bytes of it in host memory, where it sleeps.
    pub(super) fn host_bytes(&self) -> u64 {
        self.copies.iter().map(|copy| copy.host_lease.lock().as_ref().map_or(0, MemoryLease::bytes)).sum()
    }
}

impl Slot {
    /// Puts the model to sleep in the place of unloading it, as the leader of its departure from a device.
    pub(super) async fn fall_asleep(&self, manager: &ModelManager, departure: &Departure) -> Slept {
        let (Some(tier), Some(device)) = (&manager.0.loader.host, departure.device) else { return Slept::Cannot };
        let has_to_leave = matches!(departure.reason, EvictionReason::Room | EvictionReason::Overrun);
        let Some(resident) = self.resident().filter(|_| has_to_leave) else { return Slept::Cannot };
        let Some((copy, share)) = resident.sole_share().filter(|(copy, _)| copy.device() == device) else {
            return Slept::Cannot;
        };
        let weight = Weight { bytes: share.owner.usage().weights, seconds: copy.seconds };
        let Some(lease) = tier.reserve(manager, &self.name, weight).await else { return Slept::Cannot };
        self.take_out(manager);
        resident.rest().await;
        let sleeping = manager.0.loader.loading.spawn_blocking(move || share.gpu.sleeper().sleep(&share.owner));
        let slept = sleeping.await.unwrap_or_else(|panic| Err(super::loader::panicked(panic)));
        let metrics = &manager.0.metrics;
        match slept {
            Ok(moved) => {
                lease.ready(copy.seconds, Instant::now());
                *copy.host_lease.lock() = Some(lease);
                copy.give_back_device();
                metrics.slept(moved.bytes, moved.took);
                tracing::info!(
                    model = %self.name,
                    %device,
                    bytes = moved.bytes,
                    ms = millis(moved.took),
                    "model put to sleep"
                );
                self.asleep_now(manager, resident);
                Slept::Asleep
            }
            Err(error) => {
                metrics.sleeps_failed.increment(1);
                tracing::warn!(model = %self.name, error = %error.report(), "cannot sleep: it is unloaded");
                drop(lease);
                Slept::Failed(resident)
            }
        }
    }
}

impl Loader {
    /// Wakes the model that sleeps in a slot, as the leader of its load; `false` where it has to be loaded, since it
    /// cannot be woken any more.
    pub(super) async fn wake(
        &self,
        manager: &ModelManager,
        slot: &Arc<Slot>,
        flight: &Arc<Flight>,
        asleep: &Arc<Resident>,
    ) -> Result<bool, LoadError> {
        let Some((copy, share)) = asleep.copies.first().and_then(|copy| Some((copy, copy.share.lock().clone()?)))
        else {
            return Err(Error::internal("a model sleeps and holds nothing").into());
        };
        if share.gpu.context().is_lost() {
            drop(share);
            slot.end_sleep(manager).await;
            return Ok(false);
        }
        let bytes = copy.loaded_bytes;
        let weight = Weight { bytes, seconds: self.seconds_back(copy) };
        let want = [Want { pool: copy.pool.clone(), weight, beside: false }];
        let reserving = reserve(manager, &slot.name, &want, (flight, &manager.0.wakes), Evicts::ForRequests);
        let reserved = tokio::select! {
            biased;
            reserved = reserving => reserved,
            () = flight.deserted() => return Err(LoadError::Abandoned),
        };
        let (_permit, mut leases) = reserved.map_err(super::room::RoomError::into_wake)?;
        let Some(lease) = leases.pop() else { return Err(Error::internal("no lease was booked").into()) };
        let waking = {
            let share = share.clone();
            self.loading.spawn_blocking(move || share.gpu.sleeper().wake(&share.owner))
        };
        let woken = waking.await.unwrap_or_else(|panic| Err(super::loader::panicked(panic)));
        let metrics = &manager.0.metrics;
        match woken {
            Ok(moved) => {
                *copy.lease.lock() = Some(lease);
                drop(copy.host_lease.lock().take());
                if let Some(tier) = &self.host {
                    tier.woke(moved);
                }
                asleep.resume();
                slot.awake_now(manager, asleep);
                copy.ready(self);
                if let Err(error) = manager.correct(&slot.name, copy, copy.bytes_now()) {
                    tracing::warn!(model = %slot.name, error = %error.report(), "over the memory limit, and nobody may leave now");
                }
                metrics.woke(moved.bytes, moved.took);
                metrics.loaded_from("host");
                tracing::info!(model = %slot.name, bytes = moved.bytes, ms = millis(moved.took), "model woken");
                Ok(true)
            }
            Err(error) => {
                metrics.wakes_failed.increment(1);
                drop(lease);
                let is_lost = share.gpu.context().is_lost();
                drop(share);
                if is_lost {
                    slot.end_sleep(manager).await;
                    return Ok(false);
                }
                Err(LoadError::StillAsleep(error))
            }
        }
    }

    /// Seconds that bringing a copy back is expected to take from the tier that it would fall to.
    pub(super) fn seconds_back(&self, copy: &DeviceCopy) -> f64 {
        let tier = self.host.as_ref().filter(|tier| copy.booked() <= tier.book.room().limit);
        match tier {
            Some(tier) if copy.share.lock().as_ref().and_then(taken).is_some() => {
                tier.wake_seconds(copy.loaded_bytes).min(copy.seconds)
            }
            _ => copy.seconds,
        }
    }
}

fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e5).round() / 100.0
}

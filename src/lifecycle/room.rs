//! Room for a load: booked, waited for, made by evicting others, or refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::flight::{Flight, Urgency};
use super::gate::{LoadGate, LoadPermit};
use super::loader::LoadError;
use super::residency::EvictionReason;
use super::{ModelManager, Name};
use crate::cache::eviction::{NoRoom, Weight};
use crate::cache::memory_pool::{MemoryLease, MemoryPool};
use crate::cache::table::Refusal;
use crate::config::Eviction;
use crate::error::{Error, ErrorKind};
use crate::inference::{DeviceId, Version};

/// Why there is no lease.
pub(super) enum RoomError {
    /// There would be room if the copy that answers now went first.
    OldFirst,
    /// Nobody waits for the load, and it would have to evict for it, or wait.
    NotForPrefetch,
    /// For this reason.
    Failed(Error),
}

impl RoomError {
    /// The same as the end of a load of `versions`.
    pub(super) fn into_load(self, versions: &[Version]) -> LoadError {
        match self {
            Self::Failed(error) => LoadError::Failed { versions: versions.to_vec(), error },
            Self::NotForPrefetch => LoadError::OnDisk,
            Self::OldFirst => Error::internal("a copy that is gone is in the way").into(),
        }
    }

    /// The same as the end of a wake.
    pub(super) fn into_wake(self) -> LoadError {
        match self {
            Self::Failed(error) => LoadError::StillAsleep(error),
            other => other.into_load(&[]),
        }
    }
}

/// What a load wants of one device.
pub(super) struct Want {
    pub(super) pool: MemoryPool,
    pub(super) weight: Weight,
    /// Whether a copy of the model is there already.
    pub(super) beside: bool,
}

/// For whom others may have to leave.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Evicts {
    /// For a load that somebody waits for.
    ForRequests,
    /// For this load, whoever waits; but it does not wait for room itself.
    AtOnce,
}

/// The longest that a wait for room goes without a look: models grow old without a word.
pub(super) const LOOK: Duration = Duration::from_millis(100);

/// Longer than any model is spared for being young.
const A_DAY: Duration = Duration::from_secs(86_400);

/// Takes a place among the loads and books what is wanted of each device; returns when the bytes may be used: those who had
/// to leave are gone. All or nothing is booked: whoever waits for room holds none, and no place.
pub(super) async fn reserve(
    manager: &ModelManager,
    name: &Name,
    wants: &[Want],
    (flight, gate): (&Arc<Flight>, &LoadGate),
    evicts: Evicts,
) -> Result<(LoadPermit, Vec<MemoryLease>), RoomError> {
    let options = &manager.0.options;
    let began = Instant::now();
    let mut rooms: Vec<_> = wants.iter().map(|want| want.pool.wait_for_room()).collect();
    let automatic = options.eviction == Eviction::Automatic;
    let (permit, leases) = loop {
        let permit = gate.enter(flight).await;
        let prefetch = flight.urgency() == Urgency::Prefetch;
        let spares_all = !automatic || (prefetch && evicts == Evicts::ForRequests);
        let (at, refusal) = match book(manager, name, wants, spares_all) {
            Ok(leases) => break (permit, leases),
            Err(refused) => refused,
        };
        drop(permit);
        if prefetch {
            return Err(RoomError::NotForPrefetch);
        }
        let (Some(Want { pool, weight, beside }), Some(room)) = (wants.get(at), rooms.get_mut(at)) else {
            return Err(RoomError::Failed(Error::internal("a refusal without a device")));
        };
        let busy = |other: &Name| spares_all || other == name || manager.is_busy(other, pool.device());
        if *beside && pool.would_fit_without(name, weight.bytes, Instant::now(), &busy) {
            return Err(RoomError::OldFirst);
        }
        let hopeless = match refusal {
            Refusal::NeverFits { .. } if !beside => true,
            // Not both copies; one of them, maybe.
            Refusal::NeverFits { .. } => !pool.could_fit(name, weight.bytes),
            Refusal::NoRoom(_) | Refusal::Present => !automatic || !pool.could_fit(name, weight.bytes),
        };
        if hopeless || began.elapsed() >= options.room_wait {
            return Err(refused(manager, pool, name, refusal));
        }
        room.heard(LOOK).await;
    };
    let clearing = Instant::now();
    for (Want { pool, weight, .. }, room) in wants.iter().zip(&mut rooms) {
        while !pool.is_clear() {
            // A measurement may have found that more is in use than there may be: then others have to go as well.
            manager.relieve(pool);
            if clearing.elapsed() >= options.room_wait {
                let no_room = NoRoom { need: weight.bytes, free: 0, evictable: 0, pinned: 0 };
                return Err(refused(manager, pool, name, Refusal::NoRoom(no_room)));
            }
            room.heard(LOOK).await;
        }
    }
    manager.0.metrics.room_wait_seconds.record(began.elapsed().as_secs_f64());
    Ok((permit, leases))
}

/// Books on all devices or, with the first that refuses, on none. Who has to leave is on the way when this returns.
fn book(
    manager: &ModelManager,
    name: &Name,
    wants: &[Want],
    spares_all: bool,
) -> Result<Vec<MemoryLease>, (usize, Refusal)> {
    let now = Instant::now();
    let busy_on = |device: DeviceId| move |other: &Name| spares_all || other == name || manager.is_busy(other, device);
    // Nobody leaves one device for a load that another has no room for.
    if wants.len() > 1 {
        for (at, want) in wants.iter().enumerate() {
            let preview = want.pool.preview(name, want.weight, now, &busy_on(want.pool.device()));
            preview.map_err(|refusal| (at, refusal))?;
        }
    }
    let mut leases = Vec::with_capacity(wants.len());
    for (at, Want { pool, weight, .. }) in wants.iter().enumerate() {
        let device = pool.device();
        let reservation = pool.try_reserve(name, *weight, now, &busy_on(device)).map_err(|refusal| (at, refusal))?;
        for _ in 0..reservation.eviction.unlike_lru {
            manager.0.metrics.evicted_unlike_lru("device");
        }
        manager.evict(device, reservation.eviction.victims, EvictionReason::Room, Some(name));
        leases.push(reservation.lease);
    }
    Ok(leases)
}

/// The refusal as an error that says what is there and what would help; the numbers are its source.
fn refused(manager: &ModelManager, pool: &MemoryPool, name: &Name, refusal: Refusal) -> RoomError {
    let device = pool.device();
    // Who unloads for us does not spare the young.
    let ahead = match manager.0.options.eviction {
        Eviction::Automatic => Duration::ZERO,
        Eviction::External => A_DAY,
    };
    let book = pool.book(Instant::now() + ahead, &|other| manager.is_busy(other, device));
    let refusal = match refusal {
        Refusal::NoRoom(no_room) => {
            let pinned = book.booked.saturating_sub(book.evictable);
            Refusal::NoRoom(NoRoom { evictable: book.evictable, pinned, ..no_room })
        }
        other => other,
    };
    let (text, retryable) = match &refusal {
        Refusal::NeverFits { .. } => (
            format!(
                "model '{name}' is too large for {device}: raise --memory-limit {device}=SIZE or use a larger device"
            ),
            false,
        ),
        Refusal::NoRoom(_) | Refusal::Present => (format!("no room for model '{name}' on {device}"), true),
    };
    RoomError::Failed(Error::new(ErrorKind::OutOfDeviceMemory, text).with_source(refusal).with_retryable(retryable))
}

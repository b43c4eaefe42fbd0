//! Room for a load: booked, waited for, made by evicting others, or refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::flight::{Flight, Urgency};
use super::gate::LoadPermit;
use super::residency::EvictionReason;
use super::{ModelManager, Name};
use crate::cache::eviction::{NoRoom, Weight};
use crate::cache::memory_pool::{MemoryLease, MemoryPool};
use crate::cache::table::Refusal;
use crate::config::Eviction;
use crate::error::{Error, ErrorKind};

/// Why there is no lease.
pub(super) enum RoomError {
    /// There would be room if the copy that answers now went first.
    OldFirst,
    /// Nobody waits for the load, and it would have to evict for it.
    NotForPrefetch,
    /// For this reason.
    Failed(Error),
}

/// The longest that a wait for room goes without a look: models grow old without a word.
const LOOK: Duration = Duration::from_millis(100);

/// Longer than any model is spared for being young.
const A_DAY: Duration = Duration::from_secs(86_400);

/// Takes a place among the loads and books `weight` on a device; returns when the bytes may be used: those who had to leave
/// are gone. `beside` says that a copy of the model is there already. Whoever waits for room holds no place.
pub(super) async fn reserve(
    manager: &ModelManager,
    pool: &MemoryPool,
    name: &Name,
    weight: Weight,
    beside: bool,
    flight: &Arc<Flight>,
) -> Result<(LoadPermit, MemoryLease), RoomError> {
    let options = &manager.0.options;
    let began = Instant::now();
    let mut room = pool.wait_for_room();
    let automatic = options.eviction == Eviction::Automatic;
    let (permit, lease, eviction) = loop {
        let permit = manager.0.gate.enter(flight).await;
        let prefetch = flight.urgency() == Urgency::Prefetch;
        let busy = |other: &Name| !automatic || prefetch || other == name || manager.is_busy(other);
        let refusal = match pool.try_reserve(name, weight, Instant::now(), &busy) {
            Ok(reservation) => break (permit, reservation.lease, reservation.eviction),
            Err(refusal) => refusal,
        };
        drop(permit);
        if prefetch {
            return Err(RoomError::NotForPrefetch);
        }
        if beside && pool.would_fit_without(name, weight.bytes, Instant::now(), &busy) {
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
    for _ in 0..eviction.unlike_lru {
        manager.0.metrics.evicted_unlike_lru("device");
    }
    manager.evict(eviction.victims, EvictionReason::Room, Some(name));
    let clearing = Instant::now();
    while !pool.is_clear() {
        // A measurement may have found that more is in use than there may be: then others have to go as well.
        manager.relieve(pool);
        if clearing.elapsed() >= options.room_wait {
            let no_room = NoRoom { need: weight.bytes, free: 0, evictable: 0, pinned: 0 };
            return Err(refused(manager, pool, name, Refusal::NoRoom(no_room)));
        }
        room.heard(LOOK).await;
    }
    manager.0.metrics.room_wait_seconds.record(began.elapsed().as_secs_f64());
    Ok((permit, lease))
}

/// The refusal as an error that says what is there and what would help; the numbers are its source.
fn refused(manager: &ModelManager, pool: &MemoryPool, name: &Name, refusal: Refusal) -> RoomError {
    let device = pool.device();
    // Who unloads for us does not spare the young.
    let ahead = match manager.0.options.eviction {
        Eviction::Automatic => Duration::ZERO,
        Eviction::External => A_DAY,
    };
    let book = pool.book(Instant::now() + ahead, &|other| manager.is_busy(other));
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

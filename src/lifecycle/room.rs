//! Room for a load: booked, waited for, made by evicting others, or refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::flight::{Flight, Urgency};
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

/// Books `weight` on a device and returns when it may be used: those who had to leave are gone. `beside` says that a copy
/// of the model is there already.
pub(super) async fn reserve(
    manager: &ModelManager,
    pool: &MemoryPool,
    name: &Name,
    weight: Weight,
    beside: bool,
    flight: &Arc<Flight>,
) -> Result<MemoryLease, RoomError> {
    let options = &manager.0.options;
    let began = Instant::now();
    let mut room = pool.wait_for_room();
    let (lease, eviction) = loop {
        let prefetch = flight.urgency() == Urgency::Prefetch;
        let may_evict = options.eviction == Eviction::Automatic && !prefetch;
        let busy = |other: &Name| !may_evict || other == name || manager.is_busy(other);
        let refusal = match pool.try_reserve(name, weight, Instant::now(), &busy) {
            Ok(reservation) => break (reservation.lease, reservation.eviction),
            Err(refusal) => refusal,
        };
        if beside {
            let alone = weight.bytes <= pool.book(began, &|_| true).limit;
            return Err(if alone { RoomError::OldFirst } else { refused(manager, pool, name, refusal) });
        }
        if prefetch {
            return Err(RoomError::NotForPrefetch);
        }
        let hopeless = !pool.could_fit(weight.bytes)
            || matches!(refusal, Refusal::NeverFits { .. })
            || (options.eviction == Eviction::External && matches!(refusal, Refusal::NoRoom(_)));
        if hopeless || began.elapsed() >= options.room_wait {
            return Err(refused(manager, pool, name, refusal));
        }
        room.heard(LOOK).await;
    };
    for _ in 0..eviction.unlike_lru {
        manager.0.metrics.evicted_unlike_lru("device");
    }
    manager.evict(eviction.victims, EvictionReason::Room, Some(name));
    while !pool.is_clear() {
        room.heard(LOOK).await;
    }
    manager.0.metrics.room_wait_seconds.record(began.elapsed().as_secs_f64());
    Ok(lease)
}

/// The refusal as an error that says what is there and what would help; the numbers are its source.
fn refused(manager: &ModelManager, pool: &MemoryPool, name: &Name, refusal: Refusal) -> RoomError {
    let device = pool.device();
    let book = pool.book(Instant::now(), &|other| manager.is_busy(other));
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

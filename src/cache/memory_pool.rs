//! `MemoryPool`: the book of a device's memory. Bytes are booked before they are used, corrected to what was measured, and
//! given back when the [`MemoryLease`] on them is dropped.
//!
//! Requests say that they use a model by [`Uses::count`], which takes no lock but the first time after the pool has
//! counted; everything else goes through one lock that is never held across I/O and that no request takes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::cache::eviction::{EvictionPolicy, Weight};
use crate::cache::table::{CacheTable, Entry, Eviction, Refusal, Stage};
use crate::inference::DeviceId;

/// What names a model in the book.
pub type Name = Arc<str>;

/// Whether a model is used by anybody now, as whoever hands out handles knows it.
pub type Busy<'a> = &'a dyn Fn(&Name) -> bool;

/// The least that is booked for a model: its queue, its metadata, its counters.
pub const LEAST_BYTES: u64 = 16 << 10;

/// How long a waiter for room gathers news before it looks.
const GATHER: Duration = Duration::from_millis(1);

/// Uses of one model between two counts that a policy is told of. A burst saves one load, however many requests it has.
const MOST_TOUCHES: u32 = 8;

/// The book of one device. Cheap to clone.
#[derive(Clone)]
pub struct MemoryPool(Arc<Pool>);

struct Pool {
    device: DeviceId,
    table: Mutex<CacheTable<Name>>,
    /// How many changes for the better there were: bytes that came back, models that fell idle.
    room: watch::Sender<u64>,
    waiting: AtomicUsize,
    touched: Mutex<Vec<Arc<Uses>>>,
    /// What policies were told of, for who keeps the models' files.
    used: Mutex<HashMap<Name, u32>>,
    /// Uses that the policy was told of and nobody has taken yet.
    counted: AtomicU64,
}

/// Counts the uses of a model in memory.
pub struct Uses {
    name: Name,
    pool: MemoryPool,
    since_counted: AtomicU32,
    /// Uses before those.
    counted: AtomicUsize,
}

impl Uses {
    /// One more.
    pub fn count(self: &Arc<Self>) {
        if self.since_counted.fetch_add(1, Ordering::Relaxed) == 0 {
            self.pool.0.touched.lock().push(Arc::clone(self));
        }
    }

    /// All so far.
    #[must_use]
    pub fn total(&self) -> usize {
        self.counted.load(Ordering::Relaxed) + self.since_counted.load(Ordering::Relaxed) as usize
    }

    /// Nobody uses the model any more for now: whoever waits for room may look again.
    pub fn idle(&self) {
        if self.pool.0.waiting.load(Ordering::Acquire) > 0 {
            self.pool.say_room();
        }
    }
}

/// Bytes of a device that are booked; dropping it gives them back.
pub struct MemoryLease {
    pool: MemoryPool,
    name: Name,
    bytes: u64,
}

/// Bytes that were booked, and who has to leave before they may be used.
pub struct Reservation {
    /// The bytes.
    pub lease: MemoryLease,
    /// Leaving already in the book; the caller carries it out.
    pub eviction: Eviction<Name>,
}

/// The book at a glance, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolBook {
    /// What may be booked.
    pub limit: u64,
    /// What is.
    pub booked: u64,
    /// What could be had by eviction now.
    pub evictable: u64,
    /// What is booked for models that are being loaded.
    pub reserved: u64,
    /// Models that are there.
    pub models: usize,
}

/// How much room there is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolRoom {
    /// What may be booked.
    pub limit: u64,
    /// What is not.
    pub free: u64,
    /// Models that are there or on their way.
    pub models: usize,
}

/// Hears of room. While one lives, models that fall idle say so.
pub struct RoomWaiter {
    pool: MemoryPool,
    heard: watch::Receiver<u64>,
}

impl MemoryPool {
    /// An empty device of `limit` bytes, on which a model stays for `min_residency` at least.
    #[must_use]
    pub fn new(device: DeviceId, limit: u64, min_residency: Duration, policy: Box<dyn EvictionPolicy<Name>>) -> Self {
        Self(Arc::new(Pool {
            device,
            table: Mutex::new(CacheTable::new(limit, min_residency, policy)),
            room: watch::Sender::new(0),
            waiting: AtomicUsize::new(0),
            touched: Mutex::default(),
            used: Mutex::default(),
            counted: AtomicU64::new(0),
        }))
    }

    /// Whose book it is.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        self.0.device
    }

    /// What a model that comes into memory counts its uses with.
    #[must_use]
    pub fn uses(&self, name: &Name) -> Arc<Uses> {
        Arc::new(Uses {
            name: Arc::clone(name),
            pool: self.clone(),
            since_counted: AtomicU32::new(0),
            counted: AtomicUsize::new(0),
        })
    }

    /// Tells the policy what was used; how many uses there were since this was last asked.
    pub fn take_uses(&self, now: Instant) -> u64 {
        self.count_uses(now);
        self.0.counted.swap(0, Ordering::AcqRel)
    }

    /// The models that were found used since this was last asked, and how often the policy was told of each.
    #[must_use]
    pub fn take_used(&self) -> HashMap<Name, u32> {
        std::mem::take(&mut *self.0.used.lock())
    }

    fn count_uses(&self, now: Instant) {
        let touched = std::mem::take(&mut *self.0.touched.lock());
        if touched.is_empty() {
            return;
        }
        let mut table = self.0.table.lock();
        let mut sum = 0;
        for uses in touched {
            let count = uses.since_counted.swap(0, Ordering::Relaxed);
            uses.counted.fetch_add(count as usize, Ordering::Relaxed);
            sum += u64::from(count);
            let touches = count.min(MOST_TOUCHES);
            *self.0.used.lock().entry(Arc::clone(&uses.name)).or_default() += touches;
            for _ in 0..touches {
                table.touch(&uses.name, now);
            }
        }
        self.0.counted.fetch_add(sum, Ordering::AcqRel);
    }

    /// Books `bytes` more for a model: the first, or another copy beside the one that is there.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing is booked and nobody leaves. `Present` for a model that is on its way out.
    pub fn try_reserve(
        &self,
        name: &Name,
        weight: Weight,
        now: Instant,
        busy: Busy<'_>,
    ) -> Result<Reservation, Refusal> {
        self.count_uses(now);
        let weight = Weight { bytes: weight.bytes.max(LEAST_BYTES), ..weight };
        let mut table = self.0.table.lock();
        let eviction = match table.get(name) {
            None => table.reserve_sparing(name, weight, now, busy)?,
            Some(Entry { stage: Stage::Leaving, .. }) => return Err(Refusal::Present),
            Some(_) => table.grow_sparing(name, weight.bytes, now, busy)?,
        };
        drop(table);
        let lease = MemoryLease { pool: self.clone(), name: Arc::clone(name), bytes: weight.bytes };
        Ok(Reservation { lease, eviction })
    }

    /// Who would leave for such a reservation. Nothing is booked and nobody leaves.
    ///
    /// # Errors
    /// As [`MemoryPool::try_reserve`].
    pub fn preview(
        &self,
        name: &Name,
        weight: Weight,
        now: Instant,
        busy: Busy<'_>,
    ) -> Result<Vec<(Name, Entry)>, Refusal> {
        self.count_uses(now);
        let table = self.0.table.lock();
        if table.get(name).is_some_and(|entry| entry.stage == Stage::Leaving) {
            return Err(Refusal::Present);
        }
        table.preview(name, weight.bytes.max(LEAST_BYTES), now, busy)
    }

    /// The sums that need no walk over what may go: what may be booked, what is free of it, and how many models there are.
    #[must_use]
    pub fn room(&self) -> PoolRoom {
        let table = self.0.table.lock();
        PoolRoom { limit: table.limit(), free: table.free(), models: table.len() }
    }

    /// Tells the policy of uses that were counted elsewhere: of a model with copies on several devices.
    pub fn touch(&self, name: &Name, touches: u32, now: Instant) {
        let mut table = self.0.table.lock();
        for _ in 0..touches {
            table.touch(name, now);
        }
    }

    /// Whether bytes that are booked may be used: everybody who had to leave is gone.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.0.table.lock().overhang() == 0
    }

    /// Chooses who leaves where more is booked than there may be, as measurements find now and then.
    #[must_use]
    pub fn relieve(&self, now: Instant, busy: Busy<'_>) -> Eviction<Name> {
        self.count_uses(now);
        let mut table = self.0.table.lock();
        if table.booked() <= table.limit() {
            return Eviction::default();
        }
        table.make_room_sparing(0, now, busy).unwrap_or_default()
    }

    /// Chooses who leaves so that `bytes` come back that the book does not miss; nobody where all that may go would not do.
    #[must_use]
    pub fn reclaim(&self, bytes: u64, now: Instant, busy: Busy<'_>) -> Eviction<Name> {
        self.count_uses(now);
        let mut table = self.0.table.lock();
        let limit = table.limit();
        let short = table.booked().saturating_sub(bytes);
        table.set_limit(short);
        let chosen = table.make_room_sparing(0, now, busy);
        table.set_limit(limit);
        chosen.unwrap_or_default()
    }

    /// Whether a model of so many bytes would be let in if the copy of it that is there were gone.
    #[must_use]
    pub fn would_fit_without(&self, name: &Name, bytes: u64, now: Instant, busy: Busy<'_>) -> bool {
        self.0.table.lock().would_fit_without(name, bytes.max(LEAST_BYTES), now, busy)
    }

    /// Whether `bytes` would fit for a model if it, and all that is not pinned, were gone.
    #[must_use]
    pub fn could_fit(&self, name: &Name, bytes: u64) -> bool {
        self.0.table.lock().could_fit(name, bytes)
    }

    /// Whether the model has been chosen to leave and has not left.
    #[must_use]
    pub fn is_leaving(&self, name: &Name) -> bool {
        self.0.table.lock().get(name).is_some_and(|entry| entry.stage == Stage::Leaving)
    }

    /// Never evicts the model, or lets it be evicted again. `false` where it is not there.
    pub fn set_pinned(&self, name: &Name, pinned: bool) -> bool {
        let done = self.0.table.lock().set_pinned(name, pinned);
        if !pinned {
            self.say_room();
        }
        done
    }

    /// What the book says of a model.
    #[must_use]
    pub fn entry(&self, name: &Name) -> Option<Entry> {
        self.0.table.lock().get(name).copied()
    }

    /// Models that may go, whoever should go first in front.
    #[must_use]
    pub fn line(&self, now: Instant, busy: Busy<'_>) -> Vec<Name> {
        self.count_uses(now);
        self.0.table.lock().line(now, busy)
    }

    /// The sums.
    #[must_use]
    pub fn book(&self, now: Instant, busy: Busy<'_>) -> PoolBook {
        let table = self.0.table.lock();
        PoolBook { evictable: table.evictable(now, busy), ..tally(&table) }
    }

    /// The same without what could be had by eviction, for which each model would have to be looked at.
    #[must_use]
    pub fn tally(&self) -> PoolBook {
        tally(&self.0.table.lock())
    }

    /// Hears of room from now on.
    #[must_use]
    pub fn wait_for_room(&self) -> RoomWaiter {
        self.0.waiting.fetch_add(1, Ordering::AcqRel);
        RoomWaiter { pool: self.clone(), heard: self.0.room.subscribe() }
    }

    fn say_room(&self) {
        self.0.room.send_modify(|changes| *changes += 1);
    }
}

fn tally(table: &CacheTable<Name>) -> PoolBook {
    let mut book = PoolBook { limit: table.limit(), booked: table.booked(), ..PoolBook::default() };
    for (_, entry) in table.iter() {
        match entry.stage {
            Stage::Reserved => book.reserved += entry.weight.bytes,
            Stage::Resident | Stage::Leaving => book.models += 1,
        }
    }
    book
}

impl RoomWaiter {
    /// Returns once something changed for the better since it last returned, or after `at_most`: the youngest grow old
    /// without a word. A little later, in fact: where many models fall idle by turns, one look is as good as hundreds.
    pub async fn heard(&mut self, at_most: Duration) {
        // The sender lives as long as the pool that this holds; and who waited long enough looks as well.
        if tokio::time::timeout(at_most, self.heard.changed()).await.is_ok() {
            tokio::time::sleep(GATHER).await;
        }
    }
}

impl Drop for RoomWaiter {
    fn drop(&mut self) {
        self.pool.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl MemoryLease {
    /// Bytes of this lease.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whose bytes they are.
    #[must_use]
    pub const fn pool(&self) -> &MemoryPool {
        &self.pool
    }

    /// The model is there; `seconds` is what bringing it back would take.
    pub fn ready(&self, seconds: f64, now: Instant) {
        self.pool.0.table.lock().ready(&self.name, seconds, now);
        self.pool.say_room();
    }

    /// Puts what was measured in the place of what was booked.
    ///
    /// # Errors
    /// `NoRoom` where the device is over its limit now and nobody may leave: the book has the truth all the same.
    pub fn correct(&mut self, bytes: u64, now: Instant, busy: Busy<'_>) -> Result<Eviction<Name>, Refusal> {
        let bytes = bytes.max(LEAST_BYTES);
        if bytes == self.bytes {
            return Ok(Eviction::default());
        }
        let less = bytes < self.bytes;
        self.pool.count_uses(now);
        let mut table = self.pool.0.table.lock();
        let Some(entry) = table.get(&self.name).copied() else { return Ok(Eviction::default()) };
        let sum = entry.weight.bytes.saturating_sub(self.bytes).saturating_add(bytes);
        self.bytes = bytes;
        let corrected = table.correct_sparing(&self.name, Weight { bytes: sum, ..entry.weight }, now, busy);
        drop(table);
        if less {
            self.pool.say_room();
        }
        corrected
    }
}

impl Drop for MemoryLease {
    fn drop(&mut self) {
        let mut table = self.pool.0.table.lock();
        let rest = table.get(&self.name).map(|entry| (entry.weight, entry.weight.bytes.saturating_sub(self.bytes)));
        match rest {
            // Another copy of the model stays. Nobody has to leave for less.
            Some((weight, rest)) if rest > 0 => table.shrink(&self.name, Weight { bytes: rest, ..weight }),
            Some(_) => drop(table.remove(&self.name)),
            None => {}
        }
        drop(table);
        self.pool.say_room();
    }
}

#[cfg(test)]
mod tests;

//! `MemoryPool`: the book of a device's memory. Bytes are booked before they are used, corrected to what was measured, and
//! given back when the [`MemoryLease`] on them is dropped.
//!
//! Requests say that they use a model by [`Uses::count`], which takes no lock but the first time after the pool has
//! counted; everything else goes through one lock that is never held across I/O and that no request takes.

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
            for _ in 0..count.min(MOST_TOUCHES) {
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

    /// Whether bytes that are booked may be used: everybody who had to leave is gone.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.0.table.lock().overhang() == 0
    }

    /// Chooses who leaves where more is booked than there may be, as measurements find now and then.
    #[must_use]
    pub fn relieve(&self, now: Instant, busy: Busy<'_>) -> Eviction<Name> {
        let mut table = self.0.table.lock();
        if table.booked() <= table.limit() {
            return Eviction::default();
        }
        table.make_room_sparing(0, now, busy).unwrap_or_default()
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
        let mut book = PoolBook { limit: table.limit(), booked: table.booked(), ..PoolBook::default() };
        for (_, entry) in table.iter() {
            match entry.stage {
                Stage::Reserved => book.reserved += entry.weight.bytes,
                Stage::Resident | Stage::Leaving => book.models += 1,
            }
        }
        book.evictable =
            table.line(now, busy).iter().filter_map(|name| table.get(name)).map(|entry| entry.weight.bytes).sum();
        book
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::cost_aware::CostAware;
    use crate::cache::eviction::NoRoom;

    const KIB: u64 = 1 << 10;
    const NOBODY: Busy<'static> = &|_| false;

    fn pool(limit: u64) -> MemoryPool {
        MemoryPool::new(DeviceId::Cpu, limit, Duration::ZERO, Box::new(CostAware::default()))
    }

    fn weight(bytes: u64) -> Weight {
        Weight { bytes, seconds: 1.0 }
    }

    fn load(pool: &MemoryPool, name: &str, bytes: u64) -> MemoryLease {
        let reservation = pool.try_reserve(&name.into(), weight(bytes), Instant::now(), NOBODY).unwrap();
        assert_eq!(reservation.eviction.victims, []);
        reservation.lease.ready(1.0, Instant::now());
        reservation.lease
    }

    #[test]
    fn bytes_come_back_with_the_last_lease_on_them() {
        let pool = pool(100 * KIB);
        let first = load(&pool, "a", 40 * KIB);
        let second = load(&pool, "a", 50 * KIB);
        assert_eq!(pool.book(Instant::now(), NOBODY).booked, 90 * KIB);
        drop(first);
        let book = pool.book(Instant::now(), NOBODY);
        assert_eq!((book.booked, book.models), (50 * KIB, 1));
        drop(second);
        assert_eq!(pool.book(Instant::now(), NOBODY), PoolBook { limit: 100 * KIB, ..PoolBook::default() });
    }

    #[test]
    fn a_second_copy_that_does_not_fit_beside_the_first_changes_nothing() {
        let pool = pool(100 * KIB);
        let first = load(&pool, "a", 60 * KIB);
        let refused = pool.try_reserve(&"a".into(), weight(60 * KIB), Instant::now(), NOBODY);
        assert!(matches!(refused.err(), Some(Refusal::NeverFits { .. })));
        assert_eq!(pool.book(Instant::now(), NOBODY).booked, 60 * KIB);
        drop(first);
        assert!(pool.try_reserve(&"a".into(), weight(60 * KIB), Instant::now(), NOBODY).is_ok());
    }

    #[test]
    fn who_is_busy_is_spared_and_room_is_clear_when_the_victim_is_gone() {
        let pool = pool(100 * KIB);
        let (one, two) = (load(&pool, "one", 50 * KIB), load(&pool, "two", 50 * KIB));
        let all: Busy<'_> = &|_| true;
        let refused = pool.try_reserve(&"new".into(), weight(30 * KIB), Instant::now(), all).err();
        let no_room = NoRoom { need: 30 * KIB, free: 0, evictable: 0, pinned: 100 * KIB };
        assert_eq!(refused, Some(Refusal::NoRoom(no_room)));
        let spare_one: Busy<'_> = &|name| &**name == "one";
        let reserved = pool.try_reserve(&"new".into(), weight(30 * KIB), Instant::now(), spare_one).unwrap();
        assert_eq!(&*reserved.eviction.victims[0].key, "two");
        assert!(!pool.is_clear() && pool.is_leaving(&"two".into()));
        assert!(matches!(
            pool.try_reserve(&"two".into(), weight(KIB), Instant::now(), NOBODY).err(),
            Some(Refusal::Present)
        ));
        drop(two);
        assert!(pool.is_clear());
        drop((one, reserved));
        assert_eq!(pool.book(Instant::now(), NOBODY).booked, 0);
    }

    #[test]
    fn a_measurement_takes_the_place_of_what_was_booked() {
        let pool = pool(100 * KIB);
        let other = load(&pool, "other", 30 * KIB);
        let mut lease = load(&pool, "a", 50 * KIB);
        let evicted = lease.correct(80 * KIB, Instant::now(), NOBODY).unwrap();
        assert_eq!(&*evicted.victims[0].key, "other");
        drop(other);
        assert!(matches!(lease.correct(120 * KIB, Instant::now(), NOBODY), Err(Refusal::NoRoom(_))));
        assert_eq!(pool.book(Instant::now(), NOBODY).booked, 120 * KIB);
    }

    #[test]
    fn uses_are_counted_once_and_lead_to_the_right_victim() {
        let pool = pool(100 * KIB);
        let (cold, hot) = (load(&pool, "cold", 50 * KIB), load(&pool, "hot", 50 * KIB));
        let uses = pool.uses(&"hot".into());
        for _ in 0..3 {
            uses.count();
        }
        assert_eq!((pool.take_uses(Instant::now()), pool.take_uses(Instant::now()), uses.total()), (3, 0, 3));
        assert_eq!(pool.line(Instant::now(), NOBODY), ["cold".into(), "hot".into()] as [Name; 2]);
        drop((cold, hot));
    }

    #[test]
    fn what_is_over_the_limit_is_relieved_once_somebody_may_leave() {
        let pool = pool(100 * KIB);
        let other = load(&pool, "other", 30 * KIB);
        let mut lease = load(&pool, "a", 50 * KIB);
        let all: Busy<'_> = &|_| true;
        assert!(lease.correct(90 * KIB, Instant::now(), all).is_err());
        assert!(pool.relieve(Instant::now(), all).victims.is_empty() && !pool.is_clear());
        let spare_a: Busy<'_> = &|name| &**name == "a";
        assert_eq!(&*pool.relieve(Instant::now(), spare_a).victims[0].key, "other");
        drop(other);
        assert!(pool.is_clear() && pool.relieve(Instant::now(), NOBODY).victims.is_empty());
    }

    #[test]
    fn a_copy_leaves_first_only_where_that_makes_room() {
        let pool = pool(100 * KIB);
        let (_a, _b) = (load(&pool, "a", 40 * KIB), load(&pool, "b", 50 * KIB));
        let fits = |bytes, busy| pool.would_fit_without(&"a".into(), bytes, Instant::now(), busy);
        let all: Busy<'_> = &|_| true;
        assert!(fits(50 * KIB, all) && !fits(51 * KIB, all));
        assert!(fits(100 * KIB, NOBODY) && !fits(101 * KIB, NOBODY));
        pool.set_pinned(&"b".into(), true);
        assert!(!fits(51 * KIB, NOBODY));
    }

    #[tokio::test]
    async fn room_is_heard_of_when_bytes_come_back_and_when_a_model_falls_idle() {
        let pool = pool(100 * KIB);
        let lease = load(&pool, "a", 50 * KIB);
        let uses = pool.uses(&"a".into());
        let long = Duration::from_secs(3600);
        let mut waiter = pool.wait_for_room();
        uses.idle();
        waiter.heard(long).await;
        drop(lease);
        waiter.heard(long).await;
        drop(waiter);
        let before = *pool.0.room.borrow();
        uses.idle();
        assert_eq!(*pool.0.room.borrow(), before, "nobody waits, nothing is said");
    }

    proptest! {
        #[test]
        fn the_book_is_the_sum_of_its_leases(steps in prop::collection::vec((0_u8..6, 16_u64..60, 0_u8..4), 1..80)) {
            let pool = pool(200 * KIB);
            let mut leases: Vec<MemoryLease> = Vec::new();
            for (model, kib, what) in steps {
                let name: Name = format!("m{model}").into();
                let now = Instant::now();
                match what {
                    0 | 1 => {
                        if let Ok(reservation) = pool.try_reserve(&name, weight(kib * KIB), now, NOBODY) {
                            for victim in reservation.eviction.victims {
                                leases.retain(|lease| lease.name != victim.key);
                            }
                            prop_assert!(pool.is_clear());
                            reservation.lease.ready(1.0, now);
                            leases.push(reservation.lease);
                        }
                    }
                    2 => {
                        if let Some(lease) = leases.iter_mut().find(|lease| lease.name == name)
                            && let Ok(eviction) = lease.correct(kib * KIB, now, NOBODY)
                        {
                            for victim in eviction.victims {
                                leases.retain(|lease| lease.name != victim.key);
                            }
                        }
                    }
                    _ => {
                        leases.pop();
                    }
                }
                let sum: u64 = leases.iter().map(|lease| lease.bytes).sum();
                prop_assert_eq!(pool.book(now, NOBODY).booked, sum);
            }
            leases.clear();
            prop_assert_eq!(pool.book(Instant::now(), NOBODY).booked, 0);
        }
    }
}

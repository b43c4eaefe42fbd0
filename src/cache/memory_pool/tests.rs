//! The promises of the pool, by example and by property.

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

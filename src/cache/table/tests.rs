//! The table's promises, by example and by property.

use proptest::prelude::*;

use super::*;
use crate::cache::cost_aware::CostAware;

const SECOND: Duration = Duration::from_secs(1);

fn weight(bytes: u64) -> Weight {
    Weight { bytes, seconds: 1.0 }
}

fn table(limit: u64, min_residency: Duration) -> (CacheTable<&'static str>, Instant) {
    (CacheTable::new(limit, min_residency, Box::new(CostAware::default())), Instant::now())
}

fn load(table: &mut CacheTable<&'static str>, key: &'static str, bytes: u64, now: Instant) {
    assert_eq!(table.reserve(&key, weight(bytes), now).unwrap().victims, []);
    table.ready(&key, 1.0, now);
}

fn no_room(need: u64, free: u64, evictable: u64, pinned: u64) -> Refusal {
    Refusal::NoRoom(NoRoom { need, free, evictable, pinned })
}

#[test]
fn a_victim_keeps_its_bytes_until_it_is_gone_and_nobody_counts_on_them_twice() {
    let (mut table, now) = table(100, Duration::ZERO);
    load(&mut table, "a", 80, now);
    let eviction = table.reserve(&"b", weight(60), now + SECOND).unwrap();
    assert_eq!(eviction.victims, [Victim { key: "a", bytes: 80, age: SECOND, idle: SECOND }]);
    assert_eq!((table.booked(), table.free(), table.overhang()), (60, 40, 40));
    assert_eq!(table.reserve(&"a", weight(1), now), Err(Refusal::Present));
    assert_eq!(table.reserve(&"c", weight(50), now), Err(no_room(50, 40, 0, 60)));
    assert!(!table.begin_use(&"a"));
    table.remove(&"a");
    assert_eq!(table.overhang(), 0);
}

#[test]
fn nothing_in_use_pinned_or_young_leaves_and_an_eviction_in_vain_does_not_happen() {
    let (mut table, now) = table(100, SECOND * 10);
    load(&mut table, "used", 30, now);
    load(&mut table, "pinned", 30, now);
    load(&mut table, "old", 20, now);
    assert!(table.begin_use(&"used"));
    assert!(table.set_pinned(&"pinned", true));
    let later = now + SECOND * 10;
    load(&mut table, "young", 20, later);
    assert_eq!(table.reserve(&"new", weight(21), later), Err(no_room(21, 0, 20, 80)));
    assert_eq!(table.get(&"old").map(|entry| entry.stage), Some(Stage::Resident));
    table.end_use(&"used");
    let eviction = table.reserve(&"new", weight(50), later).unwrap();
    assert_eq!(eviction.victims.len(), 2);
}

#[test]
fn what_is_larger_than_the_tier_is_refused_for_good_and_evicts_nobody() {
    let (mut table, now) = table(100, Duration::ZERO);
    load(&mut table, "a", 100, now);
    let refusal = table.reserve(&"b", weight(101), now).unwrap_err();
    assert_eq!(refusal, Refusal::NeverFits { need: 101, limit: 100 });
    assert!(!refusal.into_error(ErrorKind::OutOfDeviceMemory).is_retryable());
    assert!(no_room(1, 0, 0, 1).into_error(ErrorKind::OutOfDisk).is_retryable());
    assert_eq!(table.booked(), 100);
}

#[test]
fn a_measurement_above_the_reservation_evicts_others_and_never_the_measured() {
    let (mut table, now) = table(100, Duration::ZERO);
    load(&mut table, "a", 50, now);
    load(&mut table, "b", 50, now);
    let eviction = table.correct(&"a", weight(60), now).unwrap();
    assert_eq!(eviction.victims.iter().map(|victim| victim.key).collect::<Vec<_>>(), ["b"]);
    assert_eq!(table.correct(&"a", weight(101), now), Err(no_room(0, 0, 0, 101)));
    assert_eq!(table.booked(), 101);
    table.remove(&"a");
    table.remove(&"b");
    assert_eq!((table.booked(), table.free(), table.overhang()), (0, 100, 0));
}

#[derive(Clone, Debug)]
enum Op {
    Touch(u8),
    Reserve(u8, u64),
    Ready(u8),
    Correct(u8, u64),
    Use(u8),
    Unuse(u8),
    Pin(u8, bool),
    Remove(u8),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0_u8..12;
    prop_oneof![
        4 => key.clone().prop_map(Op::Touch),
        6 => (key.clone(), 0_u64..70).prop_map(|(key, bytes)| Op::Reserve(key, bytes)),
        6 => key.clone().prop_map(Op::Ready),
        2 => (key.clone(), 0_u64..70).prop_map(|(key, bytes)| Op::Correct(key, bytes)),
        2 => key.clone().prop_map(Op::Use),
        2 => key.clone().prop_map(Op::Unuse),
        1 => (key.clone(), any::<bool>()).prop_map(|(key, pinned)| Op::Pin(key, pinned)),
        3 => key.prop_map(Op::Remove),
        2 => (0_u64..4).prop_map(Op::Wait),
    ]
}

/// What a decision must keep, by the entries as they were before it.
fn check_decision(
    before: &HashMap<u8, Entry>,
    decision: &Result<Eviction<u8>, Refusal>,
    missing: u64,
    min_residency: Duration,
    now: Instant,
) -> Result<(), TestCaseError> {
    let may_go = |entry: &Entry| entry.may_go(min_residency, now);
    match decision {
        Ok(eviction) => {
            let sum: u64 = eviction.victims.iter().map(|victim| victim.bytes).sum();
            prop_assert!(sum >= missing);
            for victim in &eviction.victims {
                prop_assert!(may_go(&before[&victim.key]), "{victim:?} may not go");
                prop_assert!(sum - victim.bytes < missing, "{victim:?} goes in vain");
            }
        }
        Err(Refusal::NoRoom(no_room)) => {
            let evictable: u64 = before.values().filter(|entry| may_go(entry)).map(|entry| entry.weight.bytes).sum();
            prop_assert!(evictable < missing);
            prop_assert_eq!(no_room.evictable, evictable);
        }
        Err(_) => {}
    }
    Ok(())
}

proptest! {
    #[test]
    fn sums_stay_true_and_every_decision_keeps_its_promises(
        cost_aware: bool,
        min_residency in 0_u64..3,
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let policy: Box<dyn EvictionPolicy<u8>> =
            if cost_aware { Box::new(CostAware::default()) } else { Box::new(Lru::default()) };
        let min_residency = SECOND * u32::try_from(min_residency).unwrap();
        let mut table = CacheTable::new(100, min_residency, policy);
        let mut now = Instant::now();
        for op in ops {
            let mut before = table.entries.clone();
            let booked = table.booked;
            match op {
                Op::Touch(key) => table.touch(&key, now),
                Op::Reserve(key, bytes) => {
                    let decision = table.reserve(&key, weight(bytes), now);
                    check_decision(&before, &decision, (booked + bytes).saturating_sub(100), min_residency, now)?;
                    prop_assert!(decision.is_err() || table.booked <= 100);
                    if decision.is_err() {
                        prop_assert_eq!(&table.entries, &before);
                    } else if !cost_aware {
                        prop_assert_eq!(decision.map(|eviction| eviction.unlike_lru), Ok(0));
                    }
                }
                Op::Ready(key) => table.ready(&key, 0.5, now),
                Op::Correct(key, bytes) => {
                    let decision = table.correct(&key, weight(bytes), now);
                    if let Some(entry) = before.remove(&key)
                        && entry.stage != Stage::Leaving
                    {
                        let missing = (booked + bytes).saturating_sub(entry.weight.bytes + 100);
                        check_decision(&before, &decision, missing, min_residency, now)?;
                    }
                }
                Op::Use(key) => {
                    let resident = before.get(&key).is_some_and(|entry| entry.stage == Stage::Resident);
                    prop_assert_eq!(table.begin_use(&key), resident);
                }
                Op::Unuse(key) => table.end_use(&key),
                Op::Pin(key, pinned) => {
                    table.set_pinned(&key, pinned);
                }
                Op::Remove(key) => {
                    prop_assert_eq!(table.remove(&key), before.get(&key).copied());
                }
                Op::Wait(seconds) => now += SECOND * u32::try_from(seconds).unwrap(),
            }
            let sum = |wanted: &dyn Fn(&Entry) -> bool| -> u64 {
                table.iter().map(|(_, entry)| entry).filter(|entry| wanted(entry)).map(|entry| entry.weight.bytes).sum()
            };
            prop_assert_eq!(table.booked, sum(&|entry| entry.stage != Stage::Leaving));
            prop_assert_eq!(table.leaving, sum(&|entry| entry.stage == Stage::Leaving));
            prop_assert_eq!(table.held, sum(&CacheTable::<u8>::is_held));
        }
    }
}

//! What becomes known, what is forgotten, and who is picked by it; and that nothing is left of any request.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::picker::hash::xxh64;

const SECOND: Duration = Duration::from_secs(1);

fn hash(model: &u32) -> u64 {
    xxh64(format!("m{model}").as_bytes())
}

fn row(model: u32, held: Held) -> Row<u32> {
    Row { model, held, in_use: 0, parallel: 1, load_seconds: 1.0, uses: 0 }
}

fn digest(rows: Vec<Row<u32>>) -> Digest<u32> {
    Digest { rows, ..Digest::idle(2, 1) }
}

/// Three instances whose digests came just now.
fn three(now: Instant) -> Fleet<u32> {
    let mut fleet = Fleet::new(FleetOptions::default());
    let ids = fleet.set_members(&["a:1", "b:1", "c:1"].map(str::to_owned));
    for id in ids {
        fleet.hear(id, &digest(Vec::new()), now, now);
    }
    fleet
}

fn pick(fleet: &mut Fleet<u32>, model: u32, now: Instant) -> (Reason, Id, Ticket<u32>) {
    let picked = fleet.pick(&model, hash(&model), now, |_| true).unwrap();
    (picked.choice.reason, picked.choice.order[0], picked.ticket)
}

#[test]
fn a_cold_model_goes_home_and_whoever_comes_next_waits_for_the_same_load() {
    let now = Instant::now();
    let mut fleet = three(now);
    let home = fleet.ring.walk(hash(&7), 1)[0];
    let (reason, id, first) = pick(&mut fleet, 7, now);
    assert_eq!((reason, id), (Reason::Home, home));
    let (reason, id, second) = pick(&mut fleet, 7, now);
    assert_eq!((reason, id), (Reason::Loading, home));
    fleet.answered(&first, Some(home), false, now + SECOND);
    let (reason, id, third) = pick(&mut fleet, 7, now + SECOND);
    assert_eq!((reason, id), (Reason::Warm, home), "an answer is word of a copy, without a digest");
    for ticket in [first, second, third] {
        fleet.finish(&ticket, now + SECOND);
    }
    assert!(fleet.members.iter().flatten().all(|member| (member.in_flight, member.waiting) == (0, 0)));
}

#[test]
fn what_is_warm_is_told_of_those_that_are_believed_alone() {
    let now = Instant::now();
    let mut fleet = three(now);
    let ids: Vec<_> = ["a:1", "b:1", "c:1"].iter().map(|name| fleet.find(name).unwrap()).collect();
    let used = |model, held, uses| Row { uses, ..row(model, held) };
    fleet.hear(ids[0], &digest(vec![used(1, Held::Ready, 5), used(2, Held::Loading, 9)]), now, now);
    fleet.hear(ids[1], &digest(vec![used(1, Held::Ready, u64::MAX), used(3, Held::Ready, 2)]), now, now);
    fleet.hear(ids[2], &digest(vec![used(4, Held::Ready, 7)]), now, now);
    fleet.refused(ids[2]);
    let mut warm = fleet.warm(now);
    warm.models.sort_unstable();
    assert_eq!(warm.models, [(1, u64::MAX), (3, 2)], "not what is loading, nor what is on one that is down");
    assert_eq!((warm.names.len(), warm.ring_size), (3, 1024), "the ring is that of all");
    assert!(fleet.warm(now + 60 * SECOND).models.is_empty());
}

#[test]
fn a_copy_anywhere_goes_before_the_ring_and_a_digest_of_before_does_not_undo_an_answer() {
    let now = Instant::now();
    let mut fleet = three(now);
    let [home, other] = fleet.ring.walk(hash(&7), 2)[..] else { panic!("three instances") };
    fleet.hear(other, &digest(vec![row(7, Held::Ready)]), now, now);
    let (reason, id, ticket) = pick(&mut fleet, 7, now);
    assert_eq!((reason, id), (Reason::Warm, other));
    fleet.finish(&ticket, now);
    fleet.hear(other, &digest(Vec::new()), now, now);
    let (reason, id, ticket) = pick(&mut fleet, 7, now);
    assert_eq!((reason, id), (Reason::Home, home));
    fleet.answered(&ticket, Some(home), false, now + SECOND);
    fleet.finish(&ticket, now + SECOND);
    // Asked for before the answer, and came after it.
    fleet.hear(home, &digest(vec![row(7, Held::Loading)]), now, now + SECOND);
    assert_eq!(pick(&mut fleet, 7, now + SECOND).0, Reason::Warm);
    fleet.hear(home, &digest(Vec::new()), now + 3 * SECOND, now + 3 * SECOND);
    assert_eq!(pick(&mut fleet, 7, now + 3 * SECOND).0, Reason::Home, "a later digest is right");
}

#[test]
fn a_load_that_never_began_is_forgotten() {
    let now = Instant::now();
    let mut fleet = three(now);
    let (_, home, ticket) = pick(&mut fleet, 7, now);
    fleet.finish(&ticket, now);
    let delta = Digest { complete: false, ..digest(Vec::new()) };
    fleet.hear(home, &delta, now + SECOND / 2, now + SECOND / 2);
    assert_eq!(fleet.members[home as usize].as_ref().unwrap().guesses.len(), 1, "it may be on its way");
    fleet.hear(home, &delta, now + 2 * SECOND, now + 2 * SECOND);
    assert!(fleet.models.is_empty());
    assert!(fleet.members.iter().flatten().all(|member| member.held.is_empty() && member.guesses.is_empty()));
}

#[test]
fn waiting_that_costs_more_than_a_load_opens_a_second_copy_within_two_load_times() {
    let now = Instant::now();
    let mut fleet = three(now);
    let home = fleet.ring.walk(hash(&7), 1)[0];
    fleet.hear(home, &digest(vec![row(7, Held::Ready)]), now, now);
    // Twelve clients that each ask again at once: eleven wait, always. A load takes a second.
    let tickets: Vec<_> = (0..12).map(|_| pick(&mut fleet, 7, now)).collect();
    assert!(tickets.iter().all(|(reason, ..)| *reason == Reason::Warm));
    let mut at = now;
    let opened = loop {
        at += SECOND / 100;
        let (reason, id, ticket) = pick(&mut fleet, 7, at);
        fleet.finish(&ticket, at);
        if reason == Reason::Copy {
            assert_ne!(id, home);
            break at;
        }
    };
    assert!(opened - now < SECOND, "{:?}", opened - now);
    assert_eq!(pick(&mut fleet, 7, opened).0, Reason::Warm, "one at a time");
}

#[test]
fn stale_digests_leave_the_choice_to_the_ring_and_the_bound() {
    let now = Instant::now();
    let mut fleet = three(now);
    let order = fleet.ring.walk(hash(&7), 3);
    fleet.hear(order[2], &digest(vec![row(7, Held::Ready)]), now, now);
    let late = now + 60 * SECOND;
    assert!(!fleet.knows_anybody(late));
    // At most twice its share of all: with no others, 2, 2, 3 of three, of four, of five.
    let picks: Vec<_> = (0..4).map(|_| pick(&mut fleet, 7, late)).map(|(reason, id, _)| (reason, id)).collect();
    assert_eq!(picks[0], (Reason::Ring, order[0]));
    assert!(picks.iter().all(|(reason, _)| *reason == Reason::Ring));
    assert!(picks.iter().any(|(_, id)| *id == order[1]), "{picks:?}");
}

#[test]
fn an_instance_that_lies_is_taken_at_its_place_on_the_ring() {
    let now = Instant::now();
    let mut fleet = three(now);
    let liar = 0;
    let models: Vec<u32> = (0..20).filter(|model| fleet.ring.walk(hash(model), 1)[0] != liar).collect();
    fleet.hear(liar, &digest(models.iter().map(|model| row(*model, Held::Ready)).collect()), now, now);
    let mut deceived = 0;
    for model in &models {
        let (_, id, ticket) = pick(&mut fleet, *model, now);
        deceived += u32::from(id == liar);
        fleet.answered(&ticket, Some(id), false, now);
        fleet.finish(&ticket, now);
    }
    assert_eq!(deceived, 4);
    assert_eq!(fleet.overview(now)[0].standing, Standing::Stale);
    assert_eq!(fleet.overview(now)[1].standing, Standing::Fresh);
}

#[test]
fn who_is_down_is_passed_over_until_it_is_heard_again() {
    let now = Instant::now();
    let mut fleet = three(now);
    let order = fleet.ring.walk(hash(&7), 3);
    fleet.refused(order[0]);
    let (reason, id, ticket) = pick(&mut fleet, 7, now);
    assert_eq!((reason, id), (Reason::Next, order[1]));
    fleet.finish(&ticket, now);
    fleet.hear(order[0], &digest(Vec::new()), now, now);
    fleet.hear(order[1], &digest(Vec::new()), now + 2 * SECOND, now + 2 * SECOND);
    assert_eq!(pick(&mut fleet, 7, now + 2 * SECOND).1, order[0]);
}

#[test]
fn loads_that_were_picked_take_places_before_any_digest_knows_them() {
    let now = Instant::now();
    let mut fleet = three(now);
    let of_first: Vec<u32> = (0..100).filter(|model| fleet.ring.walk(hash(model), 1)[0] == 0).take(3).collect();
    let reasons: Vec<_> = of_first.iter().map(|model| pick(&mut fleet, *model, now).0).collect();
    assert_eq!(reasons, [Reason::Home, Reason::Home, Reason::Next], "it has two places");
}

#[test]
fn loads_that_a_digest_told_of_take_places_for_as_long_as_loads_take() {
    let begin = Instant::now();
    // Both places of the first on the ring are taken, by loads that take so long; then a model is asked for.
    let reason = |seconds, after_ms| {
        let mut fleet = three(begin);
        let home = fleet.candidates(&8, hash(&8), begin, |_| true)[0].id;
        let rows = vec![Row { load_seconds: seconds, ..row(1, Held::Ready) }];
        fleet.hear(home, &Digest { loads: 2, ..digest(rows) }, begin, begin);
        pick(&mut fleet, 8, begin + Duration::from_millis(after_ms)).0
    };
    assert_eq!(reason(0.05, 40), Reason::Next);
    assert_eq!(reason(0.05, 60), Reason::Home, "they are over by now");
    assert_eq!(reason(0.0, 200), Reason::Next, "how long they take is not known");
}

#[test]
fn heirs_are_the_next_on_the_ring_for_what_nobody_else_has() {
    let now = Instant::now();
    let mut fleet = three(now);
    let rows = (0..4).map(|model| Row { uses: u64::from(model), ..row(model, Held::Ready) }).collect();
    fleet.hear(0, &Digest { draining: true, ..digest(rows) }, now, now);
    fleet.hear(1, &digest(vec![row(2, Held::Ready)]), now, now);
    let heirs = fleet.heirs(0, hash, 2, now);
    let expected = |model: u32| (model, fleet.ring.walk(hash(&model), 3).into_iter().find(|id| *id != 0).unwrap());
    assert_eq!(heirs, [expected(3), expected(1)]);
    assert!(fleet.heirs(9, hash, 2, now).is_empty());
}

#[test]
fn who_is_removed_leaves_nothing_and_its_id_is_nobody_elses() {
    let now = Instant::now();
    let mut fleet = three(now);
    fleet.hear(1, &digest(vec![row(7, Held::Ready)]), now, now);
    let (_, _, ticket) = pick(&mut fleet, 7, now);
    let ids = fleet.set_members(&["a:1", "c:1", "d:1"].map(str::to_owned));
    assert_eq!(ids, [0, 2, 3]);
    assert!(fleet.models.is_empty());
    fleet.finish(&ticket, now);
    fleet.answered(&ticket, Some(1), true, now);
    fleet.hear(1, &digest(vec![row(7, Held::Ready)]), now, now);
    assert!(fleet.models.is_empty());
    assert_eq!((fleet.find("b:1"), fleet.find("d:1"), fleet.name(3)), (None, Some(3), Some("d:1")));
    assert_eq!(fleet.set_members(&["b:1".to_owned()]), [4]);
}

#[derive(Clone, Debug)]
enum Step {
    Hear { id: Id, complete: bool, rows: BTreeMap<u32, u8> },
    Pick { model: u32 },
    Answer { which: usize, warm: bool },
    Finish { which: usize },
    Wait { tenths: u32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let rows = prop::collection::btree_map(0_u32..6, 0_u8..3, 0..5);
    let step = prop_oneof![
        (0_u32..3, any::<bool>(), rows).prop_map(|(id, complete, rows)| Step::Hear { id, complete, rows }),
        (0_u32..6).prop_map(|model| Step::Pick { model }),
        (0_usize..8, any::<bool>()).prop_map(|(which, warm)| Step::Answer { which, warm }),
        (0_usize..8).prop_map(|which| Step::Finish { which }),
        (1_u32..30).prop_map(|tenths| Step::Wait { tenths }),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn what_is_known_is_what_the_digests_said_and_nothing_is_left_of_requests(steps in steps()) {
        let mut now = Instant::now();
        let mut fleet = three(now);
        let mut tickets: Vec<Ticket<u32>> = Vec::new();
        // What the digests said, one row each.
        let mut said: BTreeMap<(Id, u32), Held> = BTreeMap::new();
        let mut last_guess = now;
        for step in steps {
            match step {
                Step::Hear { id, complete, rows } => {
                    if complete {
                        said.retain(|(of, _), _| *of != id);
                    }
                    let rows: Vec<_> = rows
                        .into_iter()
                        .map(|(model, held)| row(model, [Held::Ready, Held::Loading, Held::Gone][held as usize]))
                        .collect();
                    for row in &rows {
                        match row.held {
                            Held::Gone => said.remove(&(id, row.model)),
                            held => said.insert((id, row.model), held),
                        };
                    }
                    fleet.hear(id, &Digest { complete, ..digest(rows) }, now, now);
                }
                Step::Pick { model } => {
                    tickets.push(pick(&mut fleet, model, now).2);
                    last_guess = now;
                }
                Step::Answer { which, warm } => {
                    if let Some(ticket) = tickets.get(which).cloned() {
                        fleet.answered(&ticket, Some(ticket.id), warm, now);
                        last_guess = now;
                    }
                }
                Step::Finish { which } => {
                    if which < tickets.len() {
                        fleet.finish(&tickets.swap_remove(which), now);
                    }
                }
                Step::Wait { tenths } => now += Duration::from_millis(100) * tenths,
            }
            for (id, member) in fleet.members.iter().enumerate() {
                let of = tickets.iter().filter(|ticket| ticket.id as usize == id).count();
                prop_assert_eq!(member.as_ref().unwrap().in_flight as usize, of);
            }
            let executing: u32 = fleet.members.iter().flatten().map(Member::executing).sum();
            prop_assert_eq!(fleet.executing, executing);
        }
        // Once no guess is young enough to count, an empty delta from each leaves what was said.
        now = now.max(last_guess) + 2 * GRACE;
        for id in 0..3 {
            fleet.hear(id, &Digest { complete: false, ..digest(Vec::new()) }, now, now);
        }
        for ticket in tickets.drain(..) {
            fleet.finish(&ticket, now);
        }
        let known: BTreeMap<(Id, u32), Held> = fleet
            .models
            .iter()
            .flat_map(|(key, model)| model.holders.iter().map(|holder| (holder.id, *key, holder.copy)))
            .map(|(id, key, copy)| ((id, key), if copy == Copy::Warm { Held::Ready } else { Held::Loading }))
            .collect();
        for (place, held) in &known {
            // An answer that came after a digest said otherwise and that no digest spoke of since does not count.
            prop_assert_eq!(said.get(place), Some(held));
        }
        for (id, member) in fleet.members.iter().enumerate() {
            let member = member.as_ref().unwrap();
            prop_assert_eq!((member.in_flight, member.waiting, member.guesses.len()), (0, 0, 0));
            let held = known.keys().filter(|(of, _)| *of as usize == id).count();
            prop_assert_eq!(member.held.len(), held);
        }
    }
}

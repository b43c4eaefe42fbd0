//! The rules one by one, and all of them against a slow reading of the same rules.

use proptest::prelude::*;

use super::*;

const FRESH: Candidate = Candidate {
    id: 0,
    standing: Standing::Fresh,
    closed: false,
    copy: Copy::Absent,
    queue: 0.0,
    has_load_place: true,
    over_share: false,
};

fn candidates<const N: usize>(change: [fn(&mut Candidate); N]) -> Vec<Candidate> {
    let numbered = change.into_iter().enumerate().map(|(id, change)| {
        let mut candidate = Candidate { id: id as Id, ..FRESH };
        change(&mut candidate);
        candidate
    });
    numbered.collect()
}

fn told(candidates: &[Candidate], pays: bool) -> (Reason, Vec<Id>) {
    let choice = choose(candidates, pays).unwrap();
    (choice.reason, choice.order.to_vec())
}

#[test]
fn a_model_nobody_has_is_brought_by_the_first_on_the_ring() {
    assert_eq!(told(&candidates([|_| (), |_| (), |_| ()]), true), (Reason::Home, vec![0, 1, 2]));
    assert_eq!(choose(&[], false), None);
}

#[test]
fn a_warm_copy_goes_before_the_ring() {
    let found = candidates([|_| (), |_| (), |c| c.copy = Copy::Warm]);
    assert_eq!(told(&found, false), (Reason::Warm, vec![2, 0, 1]));
}

#[test]
fn of_warm_copies_the_first_that_has_no_queue_is_asked_and_else_the_shortest() {
    let found = candidates([
        |c| (c.copy, c.queue) = (Copy::Warm, 3.0),
        |c| (c.copy, c.queue) = (Copy::Warm, 0.5),
        |c| c.copy = Copy::Warm,
    ]);
    assert_eq!(told(&found, false), (Reason::Warm, vec![1, 2, 0]));
    let found = candidates([|c| (c.copy, c.queue) = (Copy::Warm, 3.0), |c| (c.copy, c.queue) = (Copy::Warm, 2.0)]);
    assert_eq!(told(&found, false), (Reason::Warm, vec![1, 0]));
}

#[test]
fn a_copy_that_is_loading_is_waited_for() {
    let found = candidates([|_| (), |c| c.copy = Copy::Loading]);
    assert_eq!(told(&found, true), (Reason::Loading, vec![1, 0]));
}

#[test]
fn another_copy_is_opened_where_waiting_costs_more_than_a_load_and_none_is_on_its_way() {
    let busy: fn(&mut Candidate) = |c| (c.copy, c.queue) = (Copy::Warm, 4.0);
    assert_eq!(told(&candidates([busy, |_| ()]), false), (Reason::Warm, vec![0, 1]));
    assert_eq!(told(&candidates([busy, |_| ()]), true), (Reason::Copy, vec![1, 0]));
    assert_eq!(told(&candidates([busy, |c| c.has_load_place = false, |_| ()]), true).1[0], 2);
    assert_eq!(told(&candidates([busy, |c| c.copy = Copy::Loading, |_| ()]), true).0, Reason::Warm);
    let idle: fn(&mut Candidate) = |c| (c.copy, c.queue) = (Copy::Warm, 0.5);
    assert_eq!(told(&candidates([idle, |_| ()]), true).0, Reason::Warm);
    assert_eq!(told(&candidates([busy, |c| c.standing = Standing::Stale]), true).0, Reason::Warm);
}

#[test]
fn whoever_has_loads_waiting_or_too_much_to_do_is_passed_over() {
    let found = candidates([|c| c.has_load_place = false, |c| c.over_share = true, |_| ()]);
    assert_eq!(told(&found, false), (Reason::Next, vec![2, 0, 1]));
    let all = candidates([|c| c.has_load_place = false, |c| c.over_share = true]);
    assert_eq!(told(&all, false), (Reason::Home, vec![0, 1]));
}

#[test]
fn of_whom_nothing_is_known_the_ring_decides() {
    let stale: fn(&mut Candidate) = |c| (c.standing, c.has_load_place) = (Standing::Stale, false);
    assert_eq!(told(&candidates([stale, stale, stale]), false), (Reason::Ring, vec![0, 1, 2]));
    // What it said long ago does not count.
    let was_warm: fn(&mut Candidate) = |c| (c.standing, c.copy) = (Standing::Stale, Copy::Absent);
    assert_eq!(told(&candidates([stale, was_warm]), false).1[0], 0);
    assert_eq!(told(&candidates([stale, |c| c.over_share = true]), false).1[0], 0);
    let over: fn(&mut Candidate) = |c| (c.standing, c.over_share) = (Standing::Stale, true);
    assert_eq!(told(&candidates([over, stale]), false), (Reason::Ring, vec![1, 0]));
}

#[test]
fn who_is_on_its_way_out_answers_what_nobody_else_has_and_loads_nothing() {
    let leaving: fn(&mut Candidate) = |c| (c.copy, c.closed) = (Copy::Warm, true);
    assert_eq!(told(&candidates([leaving, |_| ()]), false), (Reason::Warm, vec![0, 1]));
    assert_eq!(
        told(&candidates([leaving, |c| (c.copy, c.queue) = (Copy::Warm, 9.0)]), false),
        (Reason::Warm, vec![1, 0])
    );
    assert_eq!(told(&candidates([|c| c.closed = true, |_| ()]), false), (Reason::Next, vec![1, 0]));
}

#[test]
fn where_all_are_out_somebody_is_asked_all_the_same() {
    let down: fn(&mut Candidate) = |c| c.standing = Standing::Down;
    assert_eq!(told(&candidates([down, |c| c.closed = true]), false), (Reason::Last, vec![1, 0]));
    assert_eq!(told(&candidates([down, down]), false), (Reason::Last, vec![0, 1]));
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let standing = prop_oneof![4 => Just(Standing::Fresh), 1 => Just(Standing::Stale), 1 => Just(Standing::Down)];
    let copy = prop_oneof![2 => Just(Copy::Absent), 1 => Just(Copy::Warm), 1 => Just(Copy::Loading)];
    let flags = (prop::bool::weighted(0.2), prop::bool::weighted(0.7), prop::bool::weighted(0.2));
    (standing, copy, 0_u8..5, flags).prop_map(|(standing, copy, queue, (closed, has_load_place, over_share))| {
        let queue = f64::from(queue) / 2.0;
        Candidate { id: 0, standing, closed, copy, queue, has_load_place, over_share }
    })
}

/// The same rules as a list, each with all who fit it: the first rule that anybody fits decides, and of those who fit it
/// the one with the shortest queue where that counts, the first on the ring else.
fn slow(candidates: &[Candidate], pays: bool) -> Option<(Id, Reason)> {
    let is = |c: &Candidate, standing, copy| c.standing == standing && c.copy == copy;
    let warm = |c: &Candidate| is(c, Standing::Fresh, Copy::Warm);
    let loading = |c: &Candidate| is(c, Standing::Fresh, Copy::Loading) && !c.closed;
    let place = |c: &Candidate| {
        !c.closed
            && !c.over_share
            && c.copy == Copy::Absent
            && (c.standing == Standing::Stale || c.standing == Standing::Fresh && c.has_load_place)
    };
    let has_open = candidates.iter().any(|c| warm(c) && !c.closed && c.queue < 1.0);
    let has_staying = candidates.iter().any(|c| warm(c) && !c.closed);
    let has_idle_leaver = !has_staying && candidates.iter().any(|c| warm(c) && c.queue < 1.0);
    let has_loading = candidates.iter().any(loading);
    let has_warm = candidates.iter().any(warm);
    type Rule<'a> = (bool, Box<dyn Fn(&Candidate) -> bool + 'a>, Option<Reason>);
    let rules: [Rule<'_>; 9] = [
        (false, Box::new(|c| warm(c) && !c.closed && c.queue < 1.0), Some(Reason::Warm)),
        (
            false,
            Box::new(|c| {
                pays && has_warm
                    && !has_open
                    && !has_idle_leaver
                    && !has_loading
                    && c.standing == Standing::Fresh
                    && place(c)
            }),
            Some(Reason::Copy),
        ),
        (true, Box::new(|c| warm(c) && !c.closed), Some(Reason::Warm)),
        (true, Box::new(warm), Some(Reason::Warm)),
        (false, Box::new(loading), Some(Reason::Loading)),
        (false, Box::new(place), None),
        (false, Box::new(|c| !c.closed && c.standing != Standing::Down), None),
        (false, Box::new(|c| c.standing != Standing::Down), Some(Reason::Last)),
        (false, Box::new(|_| true), Some(Reason::Last)),
    ];
    for (index, (by_queue, fits, reason)) in rules.iter().enumerate() {
        let mut fitting: Vec<(usize, &Candidate)> = candidates.iter().enumerate().filter(|(_, c)| fits(c)).collect();
        if *by_queue {
            fitting.sort_by(|(_, one), (_, other)| one.queue.total_cmp(&other.queue));
        }
        if let Some((at, found)) = fitting.first() {
            let told = reason.unwrap_or(match (index, found.standing, at) {
                (5, Standing::Stale, _) => Reason::Ring,
                (_, _, 0) => Reason::Home,
                _ => Reason::Next,
            });
            return Some((found.id, told));
        }
    }
    None
}

proptest! {
    #[test]
    fn the_choice_is_that_of_the_rules_read_one_by_one(
        mut candidates in prop::collection::vec(any_candidate(), 0..8),
        pays: bool,
    ) {
        for (id, candidate) in candidates.iter_mut().enumerate() {
            candidate.id = id as Id;
        }
        let choice = choose(&candidates, pays);
        prop_assert_eq!(choice.as_ref().map(|choice| (choice.order[0], choice.reason)), slow(&candidates, pays));
        if let Some(choice) = choice {
            let mut distinct = choice.order.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), candidates.len().min(MOST_ENDPOINTS), "each once");
            // Nobody is asked to load who takes nothing, where anybody does.
            let first = candidates[choice.order[0] as usize];
            let anybody = candidates.iter().any(|c| !c.closed && c.standing != Standing::Down);
            prop_assert!(!anybody || first.copy == Copy::Warm || !first.closed && first.standing != Standing::Down);
        }
    }
}

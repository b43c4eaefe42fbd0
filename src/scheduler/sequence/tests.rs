//! The sequencer against one that is slow and plain, and what each rule says by itself.

mod slow;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use self::slow::Slow;
use super::*;
use crate::scheduler::batcher::Rules;

/// A request: its number, its place, what it must share with others of its batch.
#[derive(Debug)]
struct Asked {
    number: usize,
    sequence: Sequence,
    kind: u8,
    gone: Cell<bool>,
}

type Ask = Rc<Asked>;

impl Batched for Ask {
    fn items(&self) -> u32 {
        1
    }

    fn is_gone(&self) -> bool {
        self.gone.get()
    }

    fn fits(&self, first: &Self) -> bool {
        self.kind == first.kind
    }
}

impl Sequenced for Ask {
    fn sequence(&self) -> &Sequence {
        &self.sequence
    }
}

const IDLE: Duration = Duration::from_millis(100);

fn ask(number: usize, id: u64, start: bool, end: bool) -> Ask {
    let sequence = Sequence { id: SequenceId::Number(id), start, end };
    Rc::new(Asked { number, sequence, kind: 0, gone: Cell::new(false) })
}

fn direct(slots: u32) -> SequenceRules {
    let choice = Choice::Direct { enough: 0, delay: Duration::ZERO };
    SequenceRules { slots, choice, idle: IDLE, capacity: 12 }
}

fn oldest(slots: u32, max_items: u32) -> SequenceRules {
    let preferred = if max_items > 0 { vec![max_items] } else { Vec::new() };
    let rules = Rules { max_items, preferred, capacity: usize::MAX, ..Rules::default() };
    SequenceRules { slots, choice: Choice::Oldest(rules), idle: IDLE, capacity: 12 }
}

type Picked = Vec<(u32, Option<usize>, Option<u32>)>;

fn seen(rows: &[Row<Ask, u32>]) -> Picked {
    rows.iter().map(|row| (row.slot, row.queued.as_ref().map(|queued| queued.request.number), row.state)).collect()
}

fn pick(sequencer: &mut Sequencer<Ask, u32>, lane: usize, now: Instant) -> Vec<Row<Ask, u32>> {
    match sequencer.next(lane, now) {
        Pick::Batch(rows) => rows,
        Pick::Wait(_) => panic!("nothing waits for company"),
        Pick::Nothing => Vec::new(),
    }
}

/// Answers the rows of a batch: each sequence counts its answers.
fn finish(sequencer: &mut Sequencer<Ask, u32>, lane: usize, rows: Vec<Row<Ask, u32>>, now: Instant) {
    let done = rows.into_iter().filter_map(|row| {
        let ask = row.queued?.request;
        Some((row.slot, ask.sequence.end, Some(row.state.unwrap_or(0) + 1)))
    });
    sequencer.done(lane, done, now);
}

#[derive(Clone, Debug)]
enum Event {
    Push { id: u64, start: bool, end: bool, kind: u8 },
    Next { lane: usize },
    Done { lane: usize },
    Leave { at: prop::sample::Index },
    Advance { milliseconds: u64 },
    Lose { lane: usize },
}

fn event() -> impl Strategy<Value = Event> {
    let lane = || 0..2_usize;
    prop_oneof![
        12 => (1..7_u64, any::<bool>(), prop::bool::weighted(0.3), 0..8_u8)
            .prop_map(|(id, start, end, kind)| Event::Push { id, start, end, kind: u8::from(kind == 0) }),
        6 => lane().prop_map(|lane| Event::Next { lane }),
        6 => lane().prop_map(|lane| Event::Done { lane }),
        2 => any::<prop::sample::Index>().prop_map(|at| Event::Leave { at }),
        2 => (1..120_u64).prop_map(|milliseconds| Event::Advance { milliseconds }),
        1 => prop::bool::weighted(0.05).prop_map(|lose| if lose { Event::Lose { lane: 0 } } else { Event::Next { lane: 1 } }),
    ]
}

fn numbers(asks: &[Ask]) -> Vec<usize> {
    let mut numbers: Vec<_> = asks.iter().map(|ask| ask.number).collect();
    numbers.sort_unstable();
    numbers
}

fn check(rules: &SequenceRules, events: &[Event]) -> Result<(), TestCaseError> {
    let mut now = Instant::now();
    let mut sequencer = Sequencer::<Ask, u32>::new(rules.clone(), 2);
    let mut slow = Slow::new(rules, 2);
    let mut asks: Vec<Ask> = Vec::new();
    let mut running: [Vec<Row<Ask, u32>>; 2] = [Vec::new(), Vec::new()];
    for event in events {
        sequencer.expire(now);
        slow.expire(now);
        match event {
            Event::Push { id, start, end, kind } => {
                let sequence = Sequence { id: SequenceId::Number(*id), start: *start, end: *end };
                let ask = Rc::new(Asked { number: asks.len(), sequence, kind: *kind, gone: Cell::new(false) });
                asks.push(Rc::clone(&ask));
                let pushed = sequencer.push(Rc::clone(&ask), now).map_err(|(refused, _)| refused);
                prop_assert_eq!(pushed, slow.push(ask, now));
            }
            Event::Next { lane } if running[*lane].is_empty() => {
                running[*lane] = pick(&mut sequencer, *lane, now);
                prop_assert_eq!(seen(&running[*lane]), slow.next(*lane, now));
            }
            Event::Done { lane } => {
                let rows = std::mem::take(&mut running[*lane]);
                let slots: Vec<_> = rows.iter().map(|row| row.slot).collect();
                finish(&mut sequencer, *lane, rows, now);
                slow.done(*lane, &slots, now);
            }
            Event::Leave { at } if !asks.is_empty() => at.get(&asks).gone.set(true),
            Event::Advance { milliseconds } => now += Duration::from_millis(*milliseconds),
            Event::Lose { lane } => {
                running[*lane].clear();
                sequencer.lose(*lane);
                slow.lose(*lane);
            }
            Event::Next { .. } | Event::Leave { .. } => {}
        }
        prop_assert_eq!(numbers(&sequencer.take_ended()), numbers(&std::mem::take(&mut slow.ended)));
        prop_assert_eq!(sequencer.len(), slow.len());
        prop_assert_eq!((sequencer.live(), sequencer.backlog()), (slow.live(), slow.waiting.len()));
    }
    // Whatever is left runs, and then all of it is silent.
    for _ in 0..2 * asks.len() + 2 {
        for (lane, running) in running.iter_mut().enumerate() {
            let rows = std::mem::take(running);
            finish(&mut sequencer, lane, rows, now);
            *running = pick(&mut sequencer, lane, now);
        }
        now += IDLE;
        sequencer.expire(now);
    }
    prop_assert_eq!((sequencer.len(), sequencer.live(), sequencer.backlog()), (0, 0, 0));
    prop_assert!(sequencer.homes.is_empty(), "{:?}", sequencer.homes);
    prop_assert!(sequencer.lanes.iter().flat_map(|lane| &lane.slots).all(|slot| slot.state.is_none()));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn sequences_are_as_the_slow_one_has_them(
        choice in prop::sample::select(vec![direct(1), direct(3), oldest(1, 0), oldest(2, 4), oldest(4, 2)]),
        events in prop::collection::vec(event(), 1..120),
    ) {
        check(&choice, &events)?;
    }
}

#[test]
fn a_sequence_keeps_its_row_and_empty_rows_before_it_are_there() {
    let now = Instant::now();
    let mut sequencer = Sequencer::new(direct(4), 1);
    for id in 1..=3 {
        assert_eq!(sequencer.push(ask(0, id, true, false), now).unwrap(), Some(0));
    }
    let rows = pick(&mut sequencer, 0, now);
    finish(&mut sequencer, 0, rows, now);
    sequencer.push(ask(1, 3, false, true), now).unwrap();
    let rows = pick(&mut sequencer, 0, now);
    assert_eq!(seen(&rows), [(0, None, None), (1, None, None), (2, Some(1), Some(1))]);
    finish(&mut sequencer, 0, rows, now);
    assert_eq!(sequencer.live(), 2);
    sequencer.push(ask(2, 9, true, true), now).unwrap();
    assert_eq!(seen(&pick(&mut sequencer, 0, now)).last(), Some(&(2, Some(2), None)), "and nothing is left in it");
}

#[test]
fn direct_batches_wait_for_enough_slots_and_not_for_ever() {
    let now = Instant::now();
    let choice = Choice::Direct { enough: 2, delay: Duration::from_millis(5) };
    let mut sequencer = Sequencer::<Ask, u32>::new(SequenceRules { choice, ..direct(4) }, 1);
    sequencer.push(ask(0, 1, true, false), now).unwrap();
    let due = now + Duration::from_millis(5);
    assert_eq!(sequencer.due(0, now), Due::At(due));
    assert!(matches!(sequencer.next(0, now), Pick::Wait(at) if at == due));
    assert_eq!(sequencer.due(0, due), Due::Now);
    sequencer.push(ask(1, 2, true, false), now).unwrap();
    assert_eq!(sequencer.due(0, now), Due::Now);
    assert_eq!(pick(&mut sequencer, 0, now).len(), 2);
}

#[test]
fn one_request_of_a_sequence_runs_at_a_time() {
    let now = Instant::now();
    let mut sequencer = Sequencer::new(oldest(4, 4), 1);
    for number in 0..3 {
        sequencer.push(ask(number, 1, number == 0, false), now).unwrap();
    }
    for number in 0..3_u32 {
        let rows = pick(&mut sequencer, 0, now);
        assert_eq!(seen(&rows), [(0, Some(number as usize), (number > 0).then_some(number))]);
        assert!(pick(&mut sequencer, 0, now).is_empty());
        finish(&mut sequencer, 0, rows, now);
    }
}

#[test]
fn a_silent_sequence_is_over_and_one_that_runs_is_not_silent() {
    let now = Instant::now();
    let mut sequencer = Sequencer::new(direct(1), 1);
    sequencer.push(ask(0, 1, true, false), now).unwrap();
    let rows = pick(&mut sequencer, 0, now);
    sequencer.expire(now + 3 * IDLE);
    assert_eq!(sequencer.live(), 1);
    let later = now + 3 * IDLE;
    finish(&mut sequencer, 0, rows, later);
    sequencer.push(ask(1, 2, true, false), later).unwrap();
    assert_eq!((sequencer.live(), sequencer.backlog()), (1, 1));
    assert!(sequencer.expire(later + IDLE / 2).is_empty());
    assert_eq!(sequencer.expire(later + 2 * IDLE).as_slice(), [0], "the slot goes to the one that waits");
    assert_eq!((sequencer.live(), sequencer.backlog()), (1, 0));
    let refused = sequencer.push(ask(2, 1, false, false), later + 2 * IDLE).unwrap_err();
    assert_eq!(refused.0, Refused::NotStarted);
}

#[test]
fn what_is_remembered_of_ended_sequences_is_bounded() {
    let now = Instant::now();
    let mut sequencer = Sequencer::new(direct(2), 1);
    for number in 0..10_000 {
        sequencer.push(ask(number, 1 + number as u64, true, true), now).unwrap();
        let rows = pick(&mut sequencer, 0, now);
        finish(&mut sequencer, 0, rows, now);
    }
    assert!(sequencer.expiries.len() <= STALE + 4, "{}", sequencer.expiries.len());
    assert!(sequencer.homes.is_empty() && sequencer.lanes[0].slots.len() <= 2);
}

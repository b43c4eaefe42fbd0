//! The batcher against a slow model of itself: one list, looked through anew for every question.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::{Batcher, Entry, Next, Rejected, Rules};
use super::{MS, Request, policy, request};
use crate::model_config::{QueuePolicy, TimeoutAction};

/// A request of the model, with its times as of the start.
#[derive(Clone, Debug)]
struct Waiting {
    request: Request,
    level: u64,
    queued: Duration,
    over: Option<Duration>,
    /// The number of its delay: delayed ones go in the order in which that was noticed.
    late: Option<u64>,
    number: u64,
}

#[derive(Debug, Default)]
struct Reference {
    waiting: Vec<Waiting>,
    expired: Vec<u32>,
    numbers: u64,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Batch(Vec<u32>),
    Wait(Duration),
    Nothing,
}

impl Reference {
    fn policy(rules: &Rules, level: u64) -> &QueuePolicy {
        rules.policies.get(&level).unwrap_or(&rules.default_policy)
    }

    fn push(&mut self, rules: &Rules, request: Request, priority: u64, own: Option<Duration>, now: Duration) -> bool {
        let level = if priority == 0 || priority > rules.levels { rules.default_level } else { priority };
        let policy = Self::policy(rules, level);
        self.waiting.retain(|waiting| !waiting.request.gone.get());
        let in_level = self.waiting.iter().filter(|waiting| waiting.level == level).count();
        let limit = policy.max_queue_size as usize;
        if self.waiting.len() >= rules.capacity || (limit > 0 && in_level >= limit) {
            return false;
        }
        let mut timeout = policy.default_timeout;
        if policy.allow_timeout_override
            && let Some(own) = own
            && (timeout.is_zero() || own < timeout)
        {
            timeout = own;
        }
        let over = (!timeout.is_zero()).then_some(now + timeout);
        self.numbers += 1;
        self.waiting.push(Waiting { request, level, queued: now, over, late: None, number: self.numbers });
        true
    }

    fn next(&mut self, rules: &Rules, now: Duration, delay: Duration) -> Answer {
        self.waiting.retain(|waiting| !waiting.request.gone.get());
        let (pending, cut) = loop {
            self.waiting.sort_by_key(|waiting| (waiting.level, waiting.late, waiting.number));
            let mut pending: Vec<Waiting> = Vec::new();
            let (mut cut, mut found) = (None, None);
            for (index, waiting) in self.waiting.iter().enumerate() {
                if waiting.late.is_none() && waiting.over.is_some_and(|over| over <= now) {
                    found = Some(index);
                    break;
                }
                let items: u32 = pending.iter().map(|waiting| waiting.request.items).sum();
                if let Some(first) = pending.first()
                    && (rules.max_items == 0
                        || items + waiting.request.items > rules.max_items
                        || waiting.request.shape != first.request.shape)
                {
                    cut = Some(waiting.request.items);
                    break;
                }
                pending.push(waiting.clone());
            }
            // The first whose time is over leaves its place, and all begins anew.
            let Some(index) = found else { break (pending, cut) };
            if Self::policy(rules, self.waiting[index].level).timeout_action == TimeoutAction::Delay {
                self.numbers += 1;
                self.waiting[index].late = Some(self.numbers);
            } else {
                self.expired.push(self.waiting.remove(index).request.id);
            }
        };
        let Some(oldest) = pending.iter().map(|waiting| waiting.queued).min() else { return Answer::Nothing };
        let delay = if rules.max_items == 0 { Duration::ZERO } else { delay };
        let largest = rules.preferred.iter().max().copied().unwrap_or(rules.max_items);
        let aged = !delay.is_zero() && now - oldest >= delay;
        let (mut marked, mut items) = (None, 0);
        let sizes = pending.iter().map(|waiting| waiting.request.items).chain(cut);
        for (index, size) in sizes.enumerate() {
            if index > 0 && items + size > largest && marked.is_none() && !rules.preferred.is_empty() {
                marked = Some(index);
            }
            if index == pending.len() {
                break;
            }
            items += size;
            if rules.preferred.contains(&items) {
                marked = Some(index + 1);
            }
        }
        let count = match marked {
            Some(count) if !aged => count,
            _ if cut.is_some() || items >= largest || delay.is_zero() || aged => pending.len(),
            _ => {
                let over = pending.iter().filter(|waiting| waiting.late.is_none()).filter_map(|waiting| waiting.over);
                return Answer::Wait(over.chain([oldest + delay]).min().unwrap_or_default());
            }
        };
        let batch = self.waiting.drain(..count).map(|waiting| waiting.request.id).collect();
        Answer::Batch(batch)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push { items: u32, shape: u8, priority: u64, own: Option<u64> },
    Gone(prop::sample::Index),
    Advance(u64),
    Next,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let push = (1_u32..6, 0_u8..12, 0_u64..5, prop::option::of(1_u64..12)).prop_map(|(items, shape, priority, own)| {
        // Mostly small ones of one shape.
        Step::Push { items: if items > 3 { 1 } else { items }, shape: shape / 11, priority, own }
    });
    let step = prop_oneof![
        6 => push,
        1 => any::<prop::sample::Index>().prop_map(Step::Gone),
        2 => (0_u64..6).prop_map(Step::Advance),
        4 => Just(Step::Next),
    ];
    prop::collection::vec(step, 1..120)
}

fn policies() -> impl Strategy<Value = QueuePolicy> {
    (any::<bool>(), prop_oneof![Just(0_u64), 1_u64..15], any::<bool>(), prop_oneof![Just(0_u32), 1_u32..8]).prop_map(
        |(delays, timeout, allow_timeout_override, size)| {
            let action = if delays { TimeoutAction::Delay } else { TimeoutAction::Reject };
            QueuePolicy { allow_timeout_override, ..policy(action, MS * u32::try_from(timeout).unwrap(), size) }
        },
    )
}

fn all_rules() -> impl Strategy<Value = Rules> {
    let sizes = (0_u32..9, prop::collection::btree_set(1_u32..9, 0..4), 0_u64..8);
    let levels = (0_u64..4, policies(), prop::collection::btree_map(1_u64..4, policies(), 0..3), 1_usize..40);
    (sizes, levels).prop_map(|((max_items, preferred, delay), (levels, default_policy, policies, capacity))| {
        let mut preferred: Vec<u32> = preferred.into_iter().filter(|size| *size <= max_items).collect();
        if preferred.is_empty() && max_items > 0 {
            preferred.push(max_items);
        }
        let policies: BTreeMap<_, _> = policies.into_iter().filter(|(level, _)| *level <= levels).collect();
        let delay = MS * u32::try_from(delay).unwrap();
        let default_level = levels.min(2);
        Rules { max_items, preferred, delay, budget: None, levels, default_level, default_policy, policies, capacity }
    })
}

fn run(rules: &Rules, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let start = Instant::now();
    let (mut batcher, mut reference) = (Batcher::new(rules.clone()), Reference::default());
    let mut now = Duration::ZERO;
    let mut requests: Vec<Request> = Vec::new();
    // What may make the batcher look at its pending batch again, and how often.
    let (mut again, mut batches) = (0_u64, 0_u64);
    for step in steps {
        match step {
            Step::Push { items, shape, priority, own } => {
                let request = Request { shape, ..request(u32::try_from(requests.len()).unwrap(), items) };
                requests.push(request.clone());
                let own = own.map(Duration::from_millis);
                let admission = rules.admit(priority, own, start + now);
                let pushed = batcher.push(Entry { request: request.clone(), admission, queued: start + now });
                let expected = reference.push(rules, request, priority, own, now);
                prop_assert_eq!(pushed.is_ok(), expected);
                if let Err((Rejected::Full { limit, .. }, _)) = pushed {
                    prop_assert!(limit > 0);
                    again += 1;
                }
                again += u64::from(rules.levels > 0 || rules.default_policy.timeout_action == TimeoutAction::Delay);
            }
            Step::Gone(index) => {
                let Some(request) = requests.get(index.index(requests.len().max(1))) else { continue };
                if !request.gone.replace(true) {
                    batcher.given_up(1);
                    again += 1;
                }
            }
            Step::Advance(by) => now += Duration::from_millis(by),
            Step::Next => {
                let expired = reference.expired.len();
                let found = match batcher.next(start + now, rules.delay) {
                    Next::Batch(batch) => Answer::Batch(batch.iter().map(|entry| entry.request.id).collect()),
                    Next::Wait(until) => Answer::Wait(until - start),
                    Next::Nothing => Answer::Nothing,
                };
                let answer = reference.next(rules, now, rules.delay);
                prop_assert_eq!(&found, &answer);
                batches += u64::from(matches!(found, Answer::Batch(_)));
                let found: Vec<_> = batcher.take_expired().iter().map(|entry| entry.request.id).collect();
                prop_assert_eq!(&found, &reference.expired[expired..]);
                again += 2 * requests.len() as u64 * u64::from(rules.has_timeouts());
                // Gone ones behind the pending batch count until they are found.
                let gone = requests.iter().filter(|request| request.gone.get()).count();
                let live = reference.waiting.len();
                prop_assert!((live..=live + gone).contains(&batcher.len()));
                if gone == 0 {
                    let items = reference.waiting.iter().map(|waiting| u64::from(waiting.request.items));
                    prop_assert_eq!(batcher.items(), items.sum::<u64>());
                }
            }
        }
    }
    // Each request is looked at once, the one that cuts a batch once more, and the pending batch again for each cause.
    let largest = u64::from(rules.max_items.max(1)) + 1;
    prop_assert!(batcher.visits <= requests.len() as u64 + batches + again * largest);
    let mut left = batcher.drain();
    left.retain(|entry| !entry.request.gone.get());
    let left: Vec<_> = left.iter().map(|entry| entry.request.id).collect();
    let mut expected = std::mem::take(&mut reference.waiting);
    expected.retain(|waiting| !waiting.request.gone.get());
    expected.sort_by_key(|waiting| (waiting.level, waiting.late, waiting.number));
    prop_assert_eq!(left, expected.iter().map(|waiting| waiting.request.id).collect::<Vec<_>>());
    Ok(())
}

impl Rules {
    fn has_timeouts(&self) -> bool {
        let has = |policy: &QueuePolicy| !policy.default_timeout.is_zero() || policy.allow_timeout_override;
        has(&self.default_policy) || self.policies.values().any(has)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_batcher_decides_as_one_that_looks_at_everything_each_time(rules in all_rules(), steps in steps()) {
        run(&rules, steps)?;
    }
}

#[test]
fn a_waiter_that_wakes_for_every_request_looks_at_each_of_them_once() {
    let rules = Rules { max_items: 4096, preferred: vec![4096], delay: MS, capacity: 5000, ..Rules::default() };
    let now = Instant::now();
    let mut batcher = Batcher::new(rules);
    for id in 0..4095 {
        let admission = batcher.rules().admit(0, None, now);
        batcher.push(Entry { request: request(id, 1), admission, queued: now }).unwrap();
        assert!(matches!(batcher.next(now, MS), Next::Wait(_)));
    }
    assert_eq!(batcher.visits, 4095);
}

#[test]
fn small_preferred_batches_cut_off_a_long_pending_one_cost_no_second_look() {
    let rules = Rules { max_items: 4096, preferred: vec![1, 4096], delay: MS, capacity: 5000, ..Rules::default() };
    let now = Instant::now();
    let mut batcher = Batcher::new(rules);
    for id in 0..4000 {
        let admission = batcher.rules().admit(0, None, now);
        batcher.push(Entry { request: request(id, 1), admission, queued: now }).unwrap();
    }
    for id in 0..4000 {
        let Next::Batch(batch) = batcher.next(now, MS) else { panic!("a batch of one is preferred") };
        assert_eq!((batch.len(), batch[0].request.id), (1, id));
    }
    assert_eq!(batcher.visits, 4000);
}

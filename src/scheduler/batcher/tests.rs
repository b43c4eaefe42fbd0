//! The batcher's rules, by example; by property in `reference`.

mod reference;
mod rules;

use std::cell::Cell;
use std::rc::Rc;

use super::*;
use crate::model_config::{QueuePolicy, TimeoutAction};

const MS: Duration = Duration::from_millis(1);

/// A request of a shape, by name.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) id: u32,
    pub(super) items: u32,
    pub(super) shape: u8,
    pub(super) gone: Rc<Cell<bool>>,
}

impl Batched for Request {
    fn items(&self) -> u32 {
        self.items
    }

    fn is_gone(&self) -> bool {
        self.gone.get()
    }

    fn fits(&self, first: &Self) -> bool {
        self.shape == first.shape
    }
}

pub(super) fn request(id: u32, items: u32) -> Request {
    Request { id, items, shape: 0, gone: Rc::default() }
}

fn rules(max_items: u32, preferred: &[u32], delay: Duration) -> Rules {
    let preferred = if preferred.is_empty() { vec![max_items] } else { preferred.to_vec() };
    Rules { max_items, preferred, delay, capacity: 1000, ..Rules::default() }
}

/// A batcher and its clock; requests are numbered as they come.
struct Queue {
    batcher: Batcher<Request>,
    delay: Duration,
    start: Instant,
    now: Instant,
    pushed: u32,
}

impl Queue {
    fn new(rules: Rules) -> Self {
        let now = Instant::now();
        Self { delay: rules.delay, batcher: Batcher::new(rules), start: now, now, pushed: 0 }
    }

    fn try_push(&mut self, priority: u64, request: Request) -> Result<Rc<Cell<bool>>, Rejected> {
        let admission = self.batcher.rules().admit(priority, None, self.now);
        let gone = Rc::clone(&request.gone);
        self.batcher
            .push(Entry { request, admission, queued: self.now })
            .map(|()| gone)
            .map_err(|(rejected, _request)| rejected)
    }

    /// Pushes requests of so many items at the default priority.
    fn push(&mut self, items: &[u32]) {
        for items in items {
            let request = request(self.pushed, *items);
            self.pushed += 1;
            self.try_push(0, request).unwrap();
        }
    }

    fn push_at(&mut self, priority: u64) -> Result<Rc<Cell<bool>>, Rejected> {
        let request = request(self.pushed, 1);
        self.pushed += 1;
        self.try_push(priority, request)
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
    }

    /// The ids of the next batch, or how long after the start to ask again.
    fn next(&mut self) -> Result<Vec<u32>, Option<Duration>> {
        match self.batcher.next(self.now, self.delay) {
            Next::Batch(batch) => Ok(batch.iter().map(|entry| entry.request.id).collect()),
            Next::Wait(until) => Err(Some(until - self.start)),
            Next::Nothing => Err(None),
        }
    }

    fn expired(&mut self) -> Vec<u32> {
        self.batcher.take_expired().iter().map(|entry| entry.request.id).collect()
    }
}

fn policy(timeout_action: TimeoutAction, default_timeout: Duration, max_queue_size: u32) -> QueuePolicy {
    QueuePolicy { timeout_action, default_timeout, allow_timeout_override: false, max_queue_size }
}

#[test]
fn without_a_delay_whatever_is_queued_runs_at_once_up_to_the_largest_batch() {
    let mut queue = Queue::new(rules(4, &[], Duration::ZERO));
    assert_eq!(queue.next(), Err(None));
    queue.push(&[1]);
    assert_eq!(queue.next(), Ok(vec![0]));
    queue.push(&[1, 2, 1, 1]);
    assert_eq!(queue.next(), Ok(vec![1, 2, 3]));
    assert_eq!(queue.next(), Ok(vec![4]));
    assert_eq!(queue.next(), Err(None));
}

#[test]
fn a_model_without_batching_runs_each_request_alone_whatever_the_delay() {
    let mut queue = Queue::new(Rules { capacity: 10, ..Rules::default() });
    queue.delay = MS;
    queue.push(&[3, 1]);
    assert_eq!(queue.next(), Ok(vec![0]));
    assert_eq!(queue.next(), Ok(vec![1]));
}

#[test]
fn a_batch_waits_for_others_until_the_oldest_has_waited_the_delay_out() {
    let mut queue = Queue::new(rules(4, &[], MS * 10));
    queue.push(&[1]);
    assert_eq!(queue.next(), Err(Some(MS * 10)));
    queue.advance(MS * 4);
    queue.push(&[1]);
    assert_eq!(queue.next(), Err(Some(MS * 10)));
    queue.advance(MS * 6);
    assert_eq!(queue.next(), Ok(vec![0, 1]));
}

#[test]
fn a_full_batch_does_not_wait() {
    let mut queue = Queue::new(rules(4, &[], MS * 10));
    queue.push(&[1, 1, 2]);
    assert_eq!(queue.next(), Ok(vec![0, 1, 2]));
    queue.push(&[3, 2]);
    assert_eq!(queue.next(), Ok(vec![3]), "the next would make it too large");
    assert_eq!(queue.next(), Err(Some(MS * 10)));
}

#[test]
fn a_preferred_size_is_cut_and_the_rest_waits() {
    let mut queue = Queue::new(rules(8, &[2, 4], MS * 10));
    queue.push(&[1, 1, 1]);
    assert_eq!(queue.next(), Ok(vec![0, 1]));
    assert_eq!(queue.next(), Err(Some(MS * 10)));
    queue.push(&[1, 1, 1, 1, 1]);
    assert_eq!(queue.next(), Ok(vec![2, 3, 4, 5]), "the largest that can be cut");
    assert_eq!(queue.next(), Ok(vec![6, 7]));
}

#[test]
fn once_the_delay_is_over_all_that_fits_runs_preferred_or_not() {
    let mut queue = Queue::new(rules(8, &[2, 4], MS * 10));
    queue.push(&[1, 1, 1]);
    queue.advance(MS * 10);
    assert_eq!(queue.next(), Ok(vec![0, 1, 2]));
}

#[test]
fn without_a_preferred_size_a_batch_is_cut_before_it_would_pass_the_largest_one() {
    let mut queue = Queue::new(rules(16, &[8], MS * 10));
    queue.push(&[3, 3, 3]);
    assert_eq!(queue.next(), Ok(vec![0, 1]));
    assert_eq!(queue.next(), Err(Some(MS * 10)));
}

#[test]
fn a_request_of_the_largest_size_or_above_runs_alone() {
    let mut queue = Queue::new(rules(4, &[], MS * 10));
    queue.push(&[1, 9, 4, 1]);
    assert_eq!(queue.next(), Ok(vec![0]), "what would be too large cuts the batch");
    assert_eq!(queue.next(), Ok(vec![1]));
    assert_eq!(queue.next(), Ok(vec![2]));
    assert_eq!(queue.next(), Err(Some(MS * 10)));
}

#[test]
fn another_shape_cuts_the_batch_and_is_not_overtaken() {
    let mut queue = Queue::new(rules(8, &[], MS * 10));
    queue.push(&[1, 1]);
    queue.try_push(0, Request { shape: 1, ..request(2, 1) }).unwrap();
    queue.pushed = 3;
    queue.push(&[1]);
    assert_eq!(queue.next(), Ok(vec![0, 1]));
    assert_eq!(queue.next(), Ok(vec![2]));
    assert_eq!(queue.next(), Err(Some(MS * 10)));
}

#[test]
fn higher_levels_go_first_even_if_a_lower_one_was_about_to_run() {
    let mut queue = Queue::new(Rules { levels: 3, default_level: 2, ..rules(2, &[], MS * 10) });
    queue.push_at(3).unwrap();
    assert_eq!(queue.next(), Err(Some(MS * 10)));
    queue.advance(MS);
    queue.push_at(1).unwrap();
    queue.push_at(0).unwrap();
    queue.push_at(77).unwrap();
    assert_eq!(queue.next(), Ok(vec![1, 2]), "no such level and none are the default, 2");
    assert_eq!(queue.next(), Ok(vec![3, 0]));
}

#[test]
fn a_request_whose_time_is_over_is_handed_out_and_the_wait_ends_with_the_first_such_time() {
    let rules = Rules { default_policy: policy(TimeoutAction::Reject, MS * 3, 0), ..rules(4, &[], MS * 10) };
    let mut queue = Queue::new(rules);
    queue.push(&[1]);
    queue.advance(MS);
    queue.push(&[1]);
    assert_eq!(queue.next(), Err(Some(MS * 3)));
    queue.advance(MS * 2);
    assert_eq!(queue.next(), Err(Some(MS * 4)));
    assert_eq!((queue.expired(), queue.batcher.len()), (vec![0], 1));
    assert!(queue.expired().is_empty());
}

#[test]
fn a_delayed_request_goes_behind_all_of_its_level_that_are_in_time_and_is_never_refused() {
    let rules = Rules { default_policy: policy(TimeoutAction::Delay, MS * 3, 0), ..rules(1, &[], Duration::ZERO) };
    let mut queue = Queue::new(rules);
    queue.push(&[1, 1]);
    queue.advance(MS * 3);
    queue.push(&[1]);
    assert_eq!(queue.next(), Ok(vec![2]));
    queue.push(&[1]);
    assert_eq!(queue.next(), Ok(vec![3]));
    queue.advance(MS * 1000);
    assert_eq!(queue.next(), Ok(vec![0]));
    assert_eq!(queue.next(), Ok(vec![1]));
    assert!(queue.expired().is_empty());
}

#[test]
fn a_gone_request_is_dropped_without_a_word() {
    let mut queue = Queue::new(rules(4, &[], MS * 10));
    let gone = queue.push_at(0).unwrap();
    queue.advance(MS);
    queue.push_at(0).unwrap();
    assert_eq!(queue.next(), Err(Some(MS * 10)));
    gone.set(true);
    queue.batcher.given_up(1);
    assert_eq!(queue.next(), Err(Some(MS * 11)));
    assert_eq!((queue.batcher.len(), queue.batcher.items(), queue.expired()), (1, 1, vec![]));
}

#[test]
fn a_level_and_the_whole_queue_have_their_bounds_and_gone_requests_do_not_count() {
    let policies = [(1, policy(TimeoutAction::Reject, Duration::ZERO, 1))].into();
    let mut queue = Queue::new(Rules { levels: 2, default_level: 2, policies, capacity: 3, ..rules(4, &[], MS) });
    let gone = queue.push_at(1).unwrap();
    assert_eq!(queue.push_at(1).unwrap_err(), Rejected::Full { level: Some(1), limit: 1 });
    queue.push(&[1, 1]);
    assert_eq!(queue.push_at(2).unwrap_err(), Rejected::Full { level: None, limit: 3 });
    gone.set(true);
    assert!(queue.push_at(1).is_err(), "nobody said that one is gone, so none is looked for");
    queue.batcher.given_up(1);
    queue.push_at(1).unwrap();
    assert_eq!((queue.batcher.len(), queue.batcher.items()), (3, 3));
}

#[test]
fn what_is_drained_comes_in_order_and_leaves_nothing() {
    let mut queue = Queue::new(Rules { levels: 2, default_level: 2, ..rules(8, &[], MS) });
    queue.push(&[1, 1]);
    assert!(queue.next().is_err());
    queue.push_at(1).unwrap();
    let ids: Vec<_> = queue.batcher.drain().iter().map(|entry| entry.request.id).collect();
    assert_eq!(ids, [2, 0, 1]);
    assert!(queue.batcher.is_empty() && queue.batcher.items() == 0 && queue.batcher.oldest().is_none());
}

#[test]
fn a_delay_beyond_all_clocks_waits_and_does_not_panic() {
    let mut queue = Queue::new(rules(4, &[], Duration::MAX));
    queue.push(&[1]);
    assert_eq!(queue.next(), Err(Some(FAR)));
}

#[test]
fn levels_without_requests_are_forgotten() {
    let mut queue = Queue::new(Rules { levels: u64::MAX, default_level: 1, ..rules(1, &[], Duration::ZERO) });
    for priority in 1..1000 {
        queue.push_at(priority * 1_000_003).unwrap();
        queue.next().unwrap();
    }
    assert!(queue.batcher.levels.len() <= EMPTY_LEVELS);
}

//! The slots of one instance, and which of them run together.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::{Choice, Queued, Sequenced};
use crate::scheduler::batcher::{Admission, Batched, Batcher, Due, Entry, Next};

/// A place that a sequence holds.
#[derive(Debug)]
pub(super) struct Slot<T, S> {
    /// Whose it is, 0 for nobody's.
    pub(super) tenant: u64,
    /// The id under which more of the sequence may come.
    pub(super) open: Option<crate::inference::SequenceId>,
    pub(super) waits: VecDeque<Queued<T>>,
    /// Whether a request of it is a candidate or runs.
    pub(super) is_out: bool,
    pub(super) last_used: Instant,
    /// What the sequence carries on; none before its first request was answered.
    pub(super) state: Option<S>,
}

impl<T, S> Default for Slot<T, S> {
    fn default() -> Self {
        Self { tenant: 0, open: None, waits: VecDeque::new(), is_out: false, last_used: Instant::now(), state: None }
    }
}

/// A row of a batch.
#[derive(Debug)]
pub struct Row<T, S> {
    /// The slot.
    pub slot: u32,
    /// Its request; none in a slot that has nothing to run and stands before one that has.
    pub queued: Option<Queued<T>>,
    /// What the sequence carries; none at its start.
    pub state: Option<S>,
    /// Whether its place in the batch must be its slot.
    pub is_placed: bool,
}

impl<T: Batched, S> Row<T, S> {
    pub(super) fn is_gone(&self) -> bool {
        self.queued.as_ref().is_some_and(|queued| queued.request.is_gone())
    }
}

/// What an idle instance should do.
#[derive(Debug)]
pub enum Pick<T, S> {
    /// Run these together; with the direct strategy a row's place is its slot. Never without a request.
    Batch(Vec<Row<T, S>>),
    /// Ask again at this time, or when a request was pushed.
    Wait(Instant),
    /// Ask again when a request was pushed.
    Nothing,
}

/// The first request of a slot among those of others.
#[derive(Debug)]
struct Candidate<T> {
    slot: u32,
    queued: Queued<T>,
}

impl<T: Batched> Batched for Candidate<T> {
    fn items(&self) -> u32 {
        self.queued.request.items()
    }

    fn is_gone(&self) -> bool {
        // It must come out, for its slot to be told of it.
        false
    }

    fn fits(&self, first: &Self) -> bool {
        self.queued.request.fits(&first.queued.request)
    }
}

#[derive(Debug)]
enum Ready<T> {
    /// Slots with a waiting request.
    Direct {
        slots: BTreeSet<u32>,
        enough: usize,
        delay: Duration,
    },
    Oldest {
        candidates: Box<Batcher<Candidate<T>>>,
        delay: Duration,
    },
}

/// The slots of one instance.
#[derive(Debug)]
pub(super) struct Lane<T, S> {
    pub(super) slots: Vec<Slot<T, S>>,
    pub(super) alive: bool,
    ready: Ready<T>,
}

impl<T: Sequenced, S> Lane<T, S> {
    pub(super) fn new(choice: &Choice) -> Self {
        let ready = match choice {
            Choice::Direct { enough, delay } => {
                Ready::Direct { slots: BTreeSet::new(), enough: *enough, delay: *delay }
            }
            Choice::Oldest(rules) => {
                Ready::Oldest { candidates: Box::new(Batcher::new(rules.clone())), delay: rules.delay }
            }
        };
        Self { slots: Vec::new(), alive: true, ready }
    }

    /// Queues a request behind those of its slot.
    pub(super) fn push(&mut self, slot: u32, queued: Queued<T>, now: Instant) {
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.waits.push_back(queued);
        }
        self.offer(slot, now);
    }

    /// Makes the first waiting request of a slot a candidate, if none is.
    pub(super) fn offer(&mut self, slot: u32, now: Instant) {
        let Some(place) = self.slots.get_mut(slot as usize).filter(|place| !place.is_out) else { return };
        match &mut self.ready {
            Ready::Direct { slots, .. } => {
                if place.waits.is_empty() {
                    slots.remove(&slot)
                } else {
                    slots.insert(slot)
                };
            }
            Ready::Oldest { candidates, .. } => {
                let Some(queued) = place.waits.pop_front() else { return };
                place.is_out = true;
                let entry = Entry { request: Candidate { slot, queued }, admission: Admission::default(), queued: now };
                // It has no bound of its own, so nothing is refused.
                if let Err((_, candidate)) = candidates.push(entry) {
                    place.waits.push_front(candidate.queued);
                    place.is_out = false;
                }
            }
        }
    }

    /// A slot that was freed has nothing to run.
    pub(super) fn withdraw(&mut self, slot: u32) {
        if let Ready::Direct { slots, .. } = &mut self.ready {
            slots.remove(&slot);
        }
    }

    /// Slots whose first waiting request was given up.
    pub(super) fn gone(&self) -> Vec<u32> {
        let Ready::Direct { slots, .. } = &self.ready else { return Vec::new() };
        let is_gone = |slot: &&u32| {
            self.slots
                .get(**slot as usize)
                .and_then(|place| place.waits.front())
                .is_some_and(|first| first.request.is_gone())
        };
        slots.iter().filter(is_gone).copied().collect()
    }

    pub(super) fn due(&mut self, now: Instant) -> Due {
        match &mut self.ready {
            Ready::Oldest { candidates, delay } => candidates.due(now, *delay),
            Ready::Direct { slots, .. } if slots.is_empty() => Due::Never,
            Ready::Direct { .. } => match self.waits_until(now) {
                None => Due::Now,
                Some(at) => Due::At(at),
            },
        }
    }

    /// Until when the ready slots wait for others, if they do.
    fn waits_until(&self, now: Instant) -> Option<Instant> {
        let Ready::Direct { slots, enough, delay } = &self.ready else { return None };
        if delay.is_zero() || slots.len() >= *enough {
            return None;
        }
        let first = |slot: &u32| self.slots.get(*slot as usize)?.waits.front().map(|first| first.queued);
        let due = slots.iter().filter_map(first).min()?.checked_add(*delay)?;
        (due > now).then_some(due)
    }

    /// What runs now.
    pub(super) fn next(&mut self, now: Instant) -> Pick<T, S> {
        if let Some(at) = self.waits_until(now) {
            return Pick::Wait(at);
        }
        match &mut self.ready {
            Ready::Oldest { candidates, delay } => match candidates.next(now, *delay) {
                Next::Wait(at) => Pick::Wait(at),
                Next::Nothing => Pick::Nothing,
                Next::Batch(batch) => {
                    let rows = batch.into_iter().map(|entry| {
                        let Candidate { slot, queued } = entry.request;
                        let state = self.slots.get_mut(slot as usize).and_then(|place| place.state.take());
                        row(slot, queued, state, false)
                    });
                    Pick::Batch(rows.collect())
                }
            },
            Ready::Direct { slots, .. } => {
                let mut rows: Vec<Row<T, S>> = Vec::new();
                let mut representative: Option<usize> = None;
                for slot in std::mem::take(slots) {
                    let Some(place) = self.slots.get_mut(slot as usize) else { continue };
                    let first = representative.and_then(|at| rows.get(at)?.queued.as_ref());
                    let runs =
                        place.waits.pop_front_if(|next| first.is_none_or(|first| next.request.fits(&first.request)));
                    let Some(queued) = runs else {
                        // Of another shape than the others: the next batch has it.
                        slots.insert(slot);
                        continue;
                    };
                    let before = rows.len()..slot as usize;
                    rows.extend(before.map(|empty| Row {
                        slot: u32::try_from(empty).unwrap_or(u32::MAX),
                        queued: None,
                        state: None,
                        is_placed: true,
                    }));
                    place.is_out = true;
                    representative = representative.or(Some(rows.len()));
                    let state = place.state.take();
                    rows.push(row(slot, queued, state, true));
                }
                if rows.is_empty() { Pick::Nothing } else { Pick::Batch(rows) }
            }
        }
    }

    /// Leaves out rows without a request, as far as those that have one keep their places.
    pub(super) fn close_up(&self, rows: &mut Vec<Row<T, S>>) {
        match &self.ready {
            Ready::Oldest { .. } => rows.retain(|row| row.queued.is_some()),
            Ready::Direct { .. } => while rows.pop_if(|row| row.queued.is_none()).is_some() {},
        }
    }

    /// Every candidate, which leaves none.
    pub(super) fn drain(&mut self) -> Vec<T> {
        match &mut self.ready {
            Ready::Direct { slots, .. } => {
                slots.clear();
                Vec::new()
            }
            Ready::Oldest { candidates, .. } => {
                candidates.drain().into_iter().map(|entry| entry.request.queued.request).collect()
            }
        }
    }
}

fn row<T: Sequenced, S>(slot: u32, queued: Queued<T>, state: Option<S>, is_placed: bool) -> Row<T, S> {
    // One that begins a sequence anew finds nothing of the one before.
    let state = state.filter(|_| !queued.request.sequence().start);
    Row { slot, queued: Some(queued), state, is_placed }
}

//! Which request of which sequence runs where, and when: Triton's sequence batching as a plain structure without a clock,
//! a lock or a thread.
//!
//! Each instance has a lane of slots. A sequence holds one slot from its first request to its last, or until it was
//! silent for too long; sequences that find none free wait in the backlog, in the order in which they began. The requests
//! of a slot run one after the other. Which slots of a lane run together is its strategy's to say: a row of the batch for
//! each slot (direct), or whoever waits longest (oldest), which is a [`Batcher`](super::batcher::Batcher)'s work.
//!
//! What a sequence carries from request to request, of type `S`, goes out with each of its requests and comes back with
//! [`Sequencer::done`]. After `sequence_batch_scheduler.cc` of Triton's core, without its threads.

pub mod feed;
mod lane;
pub mod line;
mod rules;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Instant;

use smallvec::SmallVec;

use self::lane::{Lane, Slot};
pub use self::lane::{Pick, Row};
pub use self::rules::{Choice, SequenceRules};
use super::batcher::{Batched, Due};
use crate::inference::{Sequence, SequenceId};

/// Expiries of slots that have another tenant by now, kept until there are so many more of them than of others.
const STALE: usize = 64;

/// What the sequencer asks of a request.
pub trait Sequenced: Batched {
    /// Its place in a sequence. Must not change.
    fn sequence(&self) -> &Sequence;
}

/// A request that waits.
#[derive(Debug)]
pub struct Queued<T> {
    /// The request.
    pub request: T,
    /// When it was queued.
    pub queued: Instant,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It begins no sequence, and there is none of its id.
    NotStarted,
    /// As many wait as may.
    Full,
    /// There is no instance left.
    NoInstance,
}

/// Where an open sequence is: one whose last request has not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    Slot {
        lane: usize,
        slot: u32,
    },
    /// By its number since the beginning.
    Backlog(u64),
}

/// A sequence without a slot. Empty if it was given up.
#[derive(Debug)]
struct Waiting<T> {
    queue: VecDeque<Queued<T>>,
}

/// When a tenant of a slot may have been silent for too long.
type Expiry = Reverse<(Instant, usize, u32, u64)>;

/// Lanes whose instances may have something to do now.
pub type Woken = SmallVec<[usize; 2]>;

/// The sequences of a model: who holds which slot, who waits. Everything is O(1) amortised, but for a heap's logarithm.
#[derive(Debug)]
pub struct Sequencer<T, S> {
    rules: SequenceRules,
    lanes: Vec<Lane<T, S>>,
    homes: HashMap<SequenceId, Home>,
    /// The free slots that were used before, and the next fresh one of each lane; the lowest first, over all lanes.
    free: BinaryHeap<Reverse<(u32, usize)>>,
    backlog: VecDeque<Waiting<T>>,
    /// The number of the first of `backlog`.
    first: u64,
    expiries: BinaryHeap<Expiry>,
    /// Slots that are taken.
    taken: usize,
    tenants: u64,
    /// Requests that wait.
    len: usize,
    /// Requests whose sequence was given up.
    ended: Vec<T>,
}

impl<T: Sequenced, S> Sequencer<T, S> {
    /// No sequence yet, for so many instances.
    #[must_use]
    pub fn new(rules: SequenceRules, instances: usize) -> Self {
        Self {
            lanes: (0..instances).map(|_| Lane::new(&rules.choice)).collect(),
            free: (0..instances).map(|lane| Reverse((0, lane))).collect(),
            rules,
            homes: HashMap::new(),
            backlog: VecDeque::new(),
            first: 0,
            expiries: BinaryHeap::new(),
            taken: 0,
            tenants: 0,
            len: 0,
            ended: Vec::new(),
        }
    }

    /// Requests that wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sequences that hold a slot.
    #[must_use]
    pub const fn live(&self) -> usize {
        self.taken
    }

    /// Sequences that wait for one.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.backlog.iter().filter(|waiting| !waiting.queue.is_empty()).count()
    }

    /// Queues a request, and says whose instance has it; none if its sequence waits for a slot.
    ///
    /// # Errors
    /// Why it is not taken, with the request.
    pub fn push(&mut self, request: T, now: Instant) -> Result<Option<usize>, (Refused, T)> {
        let Sequence { id, start, end } = request.sequence().clone();
        let home = self.homes.get(&id).copied();
        if home.is_none() && !start {
            return Err((Refused::NotStarted, request));
        }
        if self.len >= self.rules.capacity {
            self.give_up_gone(now);
        }
        if self.len >= self.rules.capacity {
            return Err((Refused::Full, request));
        }
        if !self.lanes.iter().any(|lane| lane.alive) {
            return Err((Refused::NoInstance, request));
        }
        // Looking for the gone may have ended the very sequence.
        let home = home.and_then(|_| self.homes.get(&id).copied());
        if home.is_none() && !start {
            return Err((Refused::NotStarted, request));
        }
        let queued = Queued { request, queued: now };
        self.len += 1;
        let is_new = home.is_none();
        let home = match home {
            Some(home) => home,
            None => match self.free_slot() {
                Some((lane, slot)) => {
                    self.settle(lane, slot, (!end).then(|| id.clone()), now);
                    Home::Slot { lane, slot }
                }
                None => {
                    self.backlog.push_back(Waiting { queue: VecDeque::new() });
                    Home::Backlog(self.first + self.backlog.len() as u64 - 1)
                }
            },
        };
        match (end, is_new) {
            // Whoever begins with the same id is another sequence.
            (true, _) => drop(self.homes.remove(&id)),
            (false, true) => drop(self.homes.insert(id, home)),
            (false, false) => {}
        }
        match home {
            Home::Slot { lane, slot } => {
                let Some(own) = self.lanes.get_mut(lane) else { return Ok(None) };
                if let Some(slot) = own.slots.get_mut(slot as usize) {
                    slot.last_used = now;
                    if end {
                        slot.open = None;
                    }
                }
                own.push(slot, queued, now);
                Ok(Some(lane))
            }
            Home::Backlog(number) => {
                if let Some(waiting) = self.waiting(number) {
                    waiting.queue.push_back(queued);
                }
                Ok(None)
            }
        }
    }

    fn waiting(&mut self, number: u64) -> Option<&mut Waiting<T>> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.backlog.get_mut(index)
    }

    /// The lowest free slot of a living instance.
    fn free_slot(&mut self) -> Option<(usize, u32)> {
        while let Some(Reverse((slot, lane))) = self.free.pop() {
            let Some(own) = self.lanes.get_mut(lane).filter(|own| own.alive) else { continue };
            if own.slots.len() == slot as usize {
                own.slots.push(Slot::default());
                if slot + 1 < self.rules.slots {
                    self.free.push(Reverse((slot + 1, lane)));
                }
            }
            return Some((lane, slot));
        }
        None
    }

    /// Gives a slot to a sequence, which is open if it has an id.
    fn settle(&mut self, lane: usize, slot: u32, open: Option<SequenceId>, now: Instant) {
        self.tenants += 1;
        self.taken += 1;
        let tenant = self.tenants;
        if let Some(own) = self.lanes.get_mut(lane).and_then(|own| own.slots.get_mut(slot as usize)) {
            own.tenant = tenant;
            own.open = open;
            own.last_used = now;
        }
        if let Some(at) = now.checked_add(self.rules.idle) {
            self.expiries.push(Reverse((at, lane, slot, tenant)));
        }
        if self.expiries.len() > 2 * self.taken + STALE {
            let lanes = &self.lanes;
            self.expiries.retain(|Reverse((_, lane, slot, tenant))| {
                lanes.get(*lane).and_then(|own| own.slots.get(*slot as usize)).is_some_and(|own| own.tenant == *tenant)
            });
        }
    }

    /// When the instance of a lane would have something to run.
    pub fn due(&mut self, lane: usize, now: Instant) -> Due {
        self.lanes.get_mut(lane).map_or(Due::Never, |lane| lane.due(now))
    }

    /// What the instance of a lane, which is idle, is to run now. A row that is to be run is out until [`Sequencer::done`].
    pub fn next(&mut self, lane: usize, now: Instant) -> Pick<T, S> {
        loop {
            let Some(own) = self.lanes.get_mut(lane) else { return Pick::Nothing };
            let gone = own.gone();
            for slot in &gone {
                self.give_up(lane, *slot, true, now);
            }
            if !gone.is_empty() {
                continue;
            }
            let Some(own) = self.lanes.get_mut(lane) else { return Pick::Nothing };
            let pick = own.next(now);
            let Pick::Batch(mut rows) = pick else { return pick };
            // A candidate is looked at when it is taken.
            let left: Vec<u32> = rows.iter().filter(|row| row.is_gone()).map(|row| row.slot).collect();
            self.len -= rows.iter().filter(|row| row.queued.is_some()).count();
            for row in rows.iter_mut().filter(|row| row.is_gone()) {
                self.ended.extend(row.queued.take().map(|queued| queued.request));
            }
            own.close_up(&mut rows);
            for slot in left {
                if let Some(own) = self.lanes.get_mut(lane).and_then(|own| own.slots.get_mut(slot as usize)) {
                    own.is_out = false;
                }
                self.give_up(lane, slot, false, now);
            }
            if rows.is_empty() {
                continue;
            }
            return Pick::Batch(rows);
        }
    }

    /// The requests of these slots have been answered; what each sequence carries on comes back.
    pub fn done(&mut self, lane: usize, rows: impl IntoIterator<Item = (u32, bool, Option<S>)>, now: Instant) {
        for (slot, was_last, state) in rows {
            let Some(own) = self.lanes.get_mut(lane).filter(|own| own.alive) else { return };
            let Some(place) = own.slots.get_mut(slot as usize) else { continue };
            place.is_out = false;
            place.last_used = now;
            if was_last {
                self.release(lane, slot, now);
            } else {
                place.state = state;
                own.offer(slot, now);
            }
        }
    }

    /// Ends the sequence of a slot of which a request was given up, the first that waits or the one before: what follows it
    /// makes no sense without it, unless it begins the sequence anew.
    fn give_up(&mut self, lane: usize, slot: u32, is_first: bool, now: Instant) {
        let Some(own) = self.lanes.get_mut(lane) else { return };
        let Some(place) = own.slots.get_mut(slot as usize) else { return };
        let mut goes = is_first;
        while let Some(queued) =
            place.waits.pop_front_if(|queued| std::mem::take(&mut goes) || !queued.request.sequence().start)
        {
            self.len -= 1;
            self.ended.push(queued.request);
        }
        if place.waits.is_empty() {
            self.release(lane, slot, now);
        } else {
            own.offer(slot, now);
        }
    }

    /// Frees a slot, which goes to the sequence that waits longest.
    fn release(&mut self, lane: usize, slot: u32, now: Instant) {
        let Some(own) = self.lanes.get_mut(lane) else { return };
        let Some(place) = own.slots.get_mut(slot as usize) else { return };
        // There is nothing of one sequence that another could find.
        place.state = None;
        place.tenant = 0;
        if let Some(id) = place.open.take() {
            self.homes.remove(&id);
        }
        own.withdraw(slot);
        self.taken -= 1;
        while let Some(Waiting { queue }) = self.backlog.pop_front() {
            let number = self.first;
            self.first += 1;
            let Some(last) = queue.back() else { continue };
            let Sequence { id, end, .. } = last.request.sequence().clone();
            if queue.iter().any(|queued| queued.request.is_gone()) {
                self.forget_waiting(&id, number);
                self.len -= queue.len();
                self.ended.extend(queue.into_iter().map(|queued| queued.request));
                continue;
            }
            if !end {
                self.homes.insert(id.clone(), Home::Slot { lane, slot });
            }
            self.settle(lane, slot, (!end).then_some(id), now);
            if let Some(own) = self.lanes.get_mut(lane) {
                for queued in queue {
                    own.push(slot, queued, now);
                }
            }
            return;
        }
        self.free.push(Reverse((slot, lane)));
    }

    fn forget_waiting(&mut self, id: &SequenceId, number: u64) {
        if self.homes.get(id) == Some(&Home::Backlog(number)) {
            self.homes.remove(id);
        }
    }

    /// Frees the slots of sequences that were silent for too long, and says whose instances have work by that.
    pub fn expire(&mut self, now: Instant) -> Woken {
        let mut woken = Woken::new();
        while self.expiries.peek().is_some_and(|Reverse((at, ..))| *at <= now) {
            let Some(Reverse((at, lane, slot, tenant))) = self.expiries.pop() else { break };
            let Some(own) = self.lanes.get(lane).and_then(|own| own.slots.get(slot as usize)) else { continue };
            if own.tenant != tenant {
                continue;
            }
            let silent_since = if own.is_out || !own.waits.is_empty() { now } else { own.last_used };
            match silent_since.checked_add(self.rules.idle) {
                Some(due) if due > at => self.expiries.push(Reverse((due, lane, slot, tenant))),
                Some(_) => {
                    self.release(lane, slot, now);
                    woken.push(lane);
                }
                None => {}
            }
        }
        woken
    }

    /// When [`Sequencer::expire`] may have something to do.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.expiries.peek().map(|Reverse((at, ..))| *at)
    }

    /// Ends the sequences of requests that were given up, wherever these stand, for the room of those behind them. O(n).
    fn give_up_gone(&mut self, now: Instant) {
        for index in 0..self.backlog.len() {
            let number = self.first + index as u64;
            let Some(waiting) = self.backlog.get_mut(index) else { break };
            if waiting.queue.iter().any(|queued| queued.request.is_gone()) {
                let queue = std::mem::take(&mut waiting.queue);
                if let Some(last) = queue.back() {
                    let id = last.request.sequence().id.clone();
                    self.forget_waiting(&id, number);
                }
                self.len -= queue.len();
                self.ended.extend(queue.into_iter().map(|queued| queued.request));
            }
        }
        for lane in 0..self.lanes.len() {
            let gone = self.lanes.get(lane).map(Lane::gone).unwrap_or_default();
            for slot in gone {
                self.give_up(lane, slot, true, now);
            }
        }
    }

    /// The instance of a lane is lost: its sequences are over.
    pub fn lose(&mut self, lane: usize) {
        let Some(own) = self.lanes.get_mut(lane) else { return };
        own.alive = false;
        let slots = std::mem::take(&mut own.slots);
        self.taken -= slots.iter().filter(|slot| slot.tenant != 0).count();
        let waited = own.drain();
        self.len -= waited.len();
        self.ended.extend(waited);
        for slot in slots {
            self.len -= slot.waits.len();
            self.ended.extend(slot.waits.into_iter().map(|queued| queued.request));
            if let Some(id) = slot.open {
                self.homes.remove(&id);
            }
        }
        if !self.lanes.iter().any(|lane| lane.alive) {
            for Waiting { queue } in std::mem::take(&mut self.backlog) {
                self.len -= queue.len();
                self.ended.extend(queue.into_iter().map(|queued| queued.request));
            }
            self.homes.clear();
        }
    }

    /// Requests whose sequence was given up, for the caller to refuse. They do not count as waiting.
    #[must_use]
    pub fn take_ended(&mut self) -> Vec<T> {
        std::mem::take(&mut self.ended)
    }
}

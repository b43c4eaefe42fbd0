//! Which waiting requests run together, and when: Triton's dynamic batching as a plain structure without a clock, a lock
//! or a thread.
//!
//! Requests wait by level of priority. When an instance is idle, [`Batcher::next`] moves those that fit together, in the
//! order of their levels, into the pending batch (`pending`), which stays there between calls, so that a waker that
//! finds it too small has looked at nothing twice. Then it decides as Triton does (`dynamic_batch_scheduler.cc` of its
//! core, `GetDynamicBatch`):
//!
//! 1. a preferred size can be cut exactly, and the oldest is within the delay: that many run;
//! 2. the next request does not fit, or the largest preferred size is reached: all of them run;
//! 3. there is no delay, or the oldest has waited it out: all of them run;
//! 4. else wait, until the oldest has waited it out or the time of one of them is over.
//!
//! What makes the pending batch another one puts it back and begins anew: a request of a higher level, a time that is
//! over, a caller that went away.

mod pending;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use self::pending::Pending;
pub use self::rules::{Admission, Rules};

/// Levels that are kept though nothing waits in them, so that a quiet model allocates nothing for each request.
const EMPTY_LEVELS: usize = 8;

/// How far ahead a wait is set whose end no clock can show.
const FAR: Duration = Duration::from_secs(3600);

/// What the batcher asks of a request.
pub trait Batched {
    /// The batch dimension, at least 1. Must not change.
    fn items(&self) -> u32;
    /// Whether nobody waits for its answer any more.
    fn is_gone(&self) -> bool;
    /// Whether it may share a batch with `first`: what must be equal, such as shapes, is. Must be an equivalence: of
    /// requests that fit the same one, each fits each.
    fn fits(&self, first: &Self) -> bool;
}

/// A request that waits.
#[derive(Debug)]
pub struct Entry<T> {
    /// The request.
    pub request: T,
    /// Its level and its times.
    pub admission: Admission,
    /// When it was queued.
    pub queued: Instant,
}

impl<T> Entry<T> {
    /// When its time is over, if that still means something.
    fn times_out(&self) -> Option<Instant> {
        self.admission.reject_at.or(self.admission.delay_at)
    }
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// As many wait as may.
    Full {
        /// The level whose `max_queue_size` it is; none if it is the bound over all levels.
        level: Option<u64>,
        /// How many may wait.
        limit: usize,
    },
}

/// What an idle instance should do.
#[derive(Debug)]
pub enum Next<T> {
    /// Run these together. Never empty.
    Batch(Vec<Entry<T>>),
    /// Ask again at this time, or when a request was pushed.
    Wait(Instant),
    /// Ask again when a request was pushed.
    Nothing,
}

/// What [`Batcher::next`] is to do.
enum Decision {
    /// Take so many of the pending batch.
    Take(usize),
    /// Give nothing before then.
    Wait(Instant),
    /// There is nothing.
    Nothing,
}

/// When something is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Now.
    Now,
    /// Then, if nothing comes before.
    At(Instant),
    /// When a request was pushed.
    Never,
}

/// The requests of one level, without those in the pending batch.
#[derive(Debug)]
struct Level<T> {
    /// In the order they came.
    fresh: VecDeque<Entry<T>>,
    /// Those whose time is over and whose policy is to delay them, behind all the others.
    late: VecDeque<Entry<T>>,
    /// All of the level, with those in the pending batch.
    len: usize,
}

impl<T> Default for Level<T> {
    fn default() -> Self {
        Self { fresh: VecDeque::new(), late: VecDeque::new(), len: 0 }
    }
}

/// The waiting requests of a model, and the decision which of them run together.
#[derive(Debug)]
pub struct Batcher<T> {
    rules: Rules,
    levels: BTreeMap<u64, Level<T>>,
    pending: Pending<T>,
    expired: Vec<Entry<T>>,
    /// Requests in the levels and in the pending batch.
    len: usize,
    /// Their items.
    items: u64,
    /// Requests given up and not yet found: while there are none, what looks full is full of wanted ones.
    given_up: usize,
    /// Whether one in the pending batch may have been given up since that was last put together.
    doubtful: bool,
    #[cfg(test)]
    visits: u64,
}

impl<T: Batched> Batcher<T> {
    /// An empty queue under these rules.
    #[must_use]
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            levels: BTreeMap::new(),
            pending: Pending::default(),
            expired: Vec::new(),
            len: 0,
            items: 0,
            given_up: 0,
            doubtful: false,
            #[cfg(test)]
            visits: 0,
        }
    }

    /// The rules it keeps.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Requests that wait, with those given up that were not found yet.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The items of all that wait.
    #[must_use]
    pub const fn items(&self) -> u64 {
        self.items
    }

    /// When the request was queued that waits longest; delayed ones do not count as long as there are others.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        let front = |level: &Level<T>| level.fresh.front().or(level.late.front()).map(|entry| entry.queued);
        self.levels.values().filter_map(front).chain(self.pending.oldest()).min()
    }

    /// Tells that so many more requests are gone. To be said before a call of `push` or `next` that should know: gone
    /// requests are looked for only as far as some were told of, and run with the rest if not.
    pub fn given_up(&mut self, count: usize) {
        self.given_up = self.given_up.saturating_add(count);
        self.doubtful |= count > 0;
    }

    /// Queues a request at the end of its level. O(1) amortised.
    ///
    /// # Errors
    /// `Full`, with the request, if as many wait in its level or over all levels as may.
    pub fn push(&mut self, entry: Entry<T>) -> Result<(), (Rejected, T)> {
        let number = entry.admission.level;
        if self.full(number).is_some() && self.given_up > 0 {
            self.clear_gone();
        }
        if let Some(rejected) = self.full(number) {
            return Err((rejected, entry.request));
        }
        // A pending batch holds the first of all; one that comes before its last makes it another batch.
        if self.pending.back().is_some_and(|last| (number, false) < (last.admission.level, last.admission.late)) {
            self.put_back();
        }
        self.len += 1;
        self.items += items_of(&entry.request);
        let level = self.levels.entry(number).or_default();
        level.len += 1;
        level.fresh.push_back(entry);
        Ok(())
    }

    fn full(&self, number: u64) -> Option<Rejected> {
        let limit = self.rules.policy(number).max_queue_size as usize;
        if limit > 0 && self.levels.get(&number).is_some_and(|level| level.len >= limit) {
            return Some(Rejected::Full { level: Some(number), limit });
        }
        let limit = self.rules.capacity;
        (self.len >= limit).then_some(Rejected::Full { level: None, limit })
    }

    /// Drops every gone request of the queue.
    fn clear_gone(&mut self) {
        self.put_back();
        (self.len, self.items, self.given_up) = (0, 0, 0);
        for level in self.levels.values_mut() {
            for entries in [&mut level.fresh, &mut level.late] {
                entries.retain(|entry| !entry.request.is_gone());
                self.items += entries.iter().map(|entry| items_of(&entry.request)).sum::<u64>();
            }
            level.len = level.fresh.len() + level.late.len();
            self.len += level.len;
        }
        if self.levels.len() > EMPTY_LEVELS {
            self.levels.retain(|_, level| level.len > 0);
        }
    }

    /// What to do at `now`, with an idle instance. `delay` is how long a request may wait for others: that of the rules,
    /// or what a budget says.
    ///
    /// Those whose time is over are moved behind the others of their level or to [`Batcher::take_expired`], as their
    /// policies say; those gone are dropped.
    pub fn next(&mut self, now: Instant, delay: Duration) -> Next<T> {
        match self.decide(now, delay) {
            Decision::Take(count) => Next::Batch(self.take(count)),
            Decision::Wait(at) => Next::Wait(at),
            Decision::Nothing => Next::Nothing,
        }
    }

    /// When [`Batcher::next`] would give a batch: what wakes an instance.
    pub fn due(&mut self, now: Instant, delay: Duration) -> Due {
        if self.len > 0 && (self.rules.is_alone() || delay.is_zero()) {
            // Whatever waits then runs; who comes meanwhile may run with it.
            return Due::Now;
        }
        match self.decide(now, delay) {
            Decision::Take(_) => Due::Now,
            Decision::Wait(at) => Due::At(at),
            Decision::Nothing => Due::Never,
        }
    }

    /// How many batches wait, were each as large as it may be: instances beyond that would find nothing.
    #[must_use]
    pub fn batches(&self) -> usize {
        match self.rules.max_items {
            0 => self.len,
            most => usize::try_from(self.items.div_ceil(u64::from(most))).unwrap_or(usize::MAX).min(self.len),
        }
    }

    fn decide(&mut self, now: Instant, delay: Duration) -> Decision {
        if self.doubtful || self.pending.closest_timeout().is_some_and(|at| at <= now) {
            self.put_back();
        }
        let next_items = self.gather(now);
        let Some(oldest) = self.pending.oldest() else { return Decision::Nothing };
        let delay = if self.rules.is_alone() { Duration::ZERO } else { delay };
        let due = oldest.checked_add(delay);
        let is_aged = !delay.is_zero() && due.is_some_and(|due| due <= now);
        let largest = self.rules.largest_preferred();
        if !is_aged && let Some(count) = self.pending.mark(&self.rules.preferred, next_items) {
            return Decision::Take(count);
        }
        if next_items.is_some() || self.pending.items() >= largest || delay.is_zero() || is_aged {
            return Decision::Take(self.pending.len());
        }
        let until = due.into_iter().chain(self.pending.closest_timeout()).min();
        Decision::Wait(until.or_else(|| now.checked_add(FAR)).unwrap_or(now))
    }

    /// Moves requests into the pending batch as long as they fit, and gives the items of the first that does not.
    fn gather(&mut self, now: Instant) -> Option<u64> {
        while self.pending.len() < self.len {
            // Levels in which nothing waits are few.
            let (number, level) =
                self.levels.iter_mut().find(|(_, level)| !(level.fresh.is_empty() && level.late.is_empty()))?;
            let number = *number;
            #[cfg(test)]
            {
                self.visits += 1;
            }
            let queue = if level.fresh.is_empty() { &mut level.late } else { &mut level.fresh };
            let Some(front) = queue.front_mut() else { break };
            let items = items_of(&front.request);
            let is_over = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            let is_gone = front.request.is_gone();
            if is_gone || is_over(front.admission.reject_at) {
                let entry = queue.pop_front();
                self.count_out(number, items);
                if is_gone {
                    self.given_up = self.given_up.saturating_sub(1);
                } else {
                    self.expired.extend(entry);
                }
                continue;
            }
            if is_over(front.admission.delay_at) {
                let entry = queue.pop_front();
                level.late.extend(entry.map(|mut entry| {
                    entry.admission.delay_at = None;
                    entry.admission.late = true;
                    entry
                }));
                continue;
            }
            if let Some(first) = self.pending.front() {
                let is_over_size = self.pending.items() + items > u64::from(self.rules.max_items);
                if self.rules.is_alone() || is_over_size || !front.request.fits(&first.request) {
                    return Some(items);
                }
            }
            let Some(entry) = queue.pop_front() else { break };
            self.pending.push(entry, items);
        }
        None
    }

    /// The first `count` requests of the pending batch, which leave the queue.
    fn take(&mut self, count: usize) -> Vec<Entry<T>> {
        let batch = self.pending.take(count);
        for entry in &batch {
            self.count_out(entry.admission.level, items_of(&entry.request));
        }
        batch
    }

    /// Counts one request less in a level, and forgets the level if it was the last and there are many.
    fn count_out(&mut self, number: u64, items: u64) {
        self.len -= 1;
        self.items -= items;
        if let Some(level) = self.levels.get_mut(&number) {
            level.len -= 1;
            if level.len == 0 && self.levels.len() > EMPTY_LEVELS {
                self.levels.remove(&number);
            }
        }
    }

    /// Puts the pending batch back where it came from.
    fn put_back(&mut self) {
        self.doubtful = false;
        while let Some(entry) = self.pending.pop_back() {
            let level = self.levels.entry(entry.admission.level).or_default();
            if entry.admission.late { level.late.push_front(entry) } else { level.fresh.push_front(entry) }
        }
    }

    /// Those whose time was found over, for the caller to refuse. They do not count as waiting.
    #[must_use]
    pub fn take_expired(&mut self) -> Vec<Entry<T>> {
        std::mem::take(&mut self.expired)
    }

    /// Every request that waits, in order, which empties the queue.
    #[must_use]
    pub fn drain(&mut self) -> Vec<Entry<T>> {
        self.put_back();
        (self.len, self.items, self.given_up) = (0, 0, 0);
        std::mem::take(&mut self.levels)
            .into_values()
            .flat_map(|level| level.fresh.into_iter().chain(level.late))
            .collect()
    }
}

fn items_of(request: &impl Batched) -> u64 {
    u64::from(request.items().max(1))
}

//! The batch that is being put together, with what a decision needs known without a look at its requests.

use std::collections::VecDeque;
use std::time::Instant;

use super::Entry;

/// Requests that fit together, from the front of the queue on. Positions and sums count from the first request ever, so
/// that nothing is computed anew when some are taken.
#[derive(Debug)]
pub(super) struct Pending<T> {
    entries: VecDeque<Entry<T>>,
    /// The items up to and with each of `entries`.
    ends: VecDeque<u64>,
    /// The items before the first of `entries`.
    base: u64,
    /// The position of the first of `entries`.
    position: u64,
    queued: Lowest,
    timeouts: Lowest,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            ends: VecDeque::new(),
            base: 0,
            position: 0,
            queued: Lowest::default(),
            timeouts: Lowest::default(),
        }
    }
}

impl<T> Pending<T> {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn front(&self) -> Option<&Entry<T>> {
        self.entries.front()
    }

    pub(super) fn back(&self) -> Option<&Entry<T>> {
        self.entries.back()
    }

    /// The items in it.
    pub(super) fn items(&self) -> u64 {
        self.end() - self.base
    }

    fn end(&self) -> u64 {
        self.ends.back().copied().unwrap_or(self.base)
    }

    /// When the one was queued that waits longest.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.queued.get()
    }

    /// When the first of its requests has its time over.
    pub(super) fn closest_timeout(&self) -> Option<Instant> {
        self.timeouts.get()
    }

    pub(super) fn push(&mut self, entry: Entry<T>, items: u64) {
        let position = self.position + self.entries.len() as u64;
        self.ends.push_back(self.end() + items);
        self.queued.push(position, entry.queued);
        if let Some(at) = entry.times_out() {
            self.timeouts.push(position, at);
        }
        self.entries.push_back(entry);
    }

    /// How many requests make the largest preferred size that can be cut exactly. If none can, and these or the one that
    /// did not fit, of `next_items`, go beyond the largest size: as many as stay below it, at least one.
    ///
    /// `preferred` is in ascending order. O(p log n) for p sizes.
    pub(super) fn mark(&self, preferred: &[u32], next_items: Option<u64>) -> Option<usize> {
        let exact = |size: &u32| self.ends.binary_search(&(self.base + u64::from(*size))).ok();
        if let Some(index) = preferred.iter().rev().find_map(exact) {
            return Some(index + 1);
        }
        let limit = self.base + u64::from(*preferred.last()?);
        let within = self.ends.partition_point(|end| *end <= limit).max(1);
        let goes_beyond = within < self.ends.len() || next_items.is_some_and(|items| self.end() + items > limit);
        goes_beyond.then_some(within)
    }

    /// The first `count` requests.
    pub(super) fn take(&mut self, count: usize) -> Vec<Entry<T>> {
        let batch: Vec<_> = self.entries.drain(..count.min(self.entries.len())).collect();
        self.base = self.ends.drain(..batch.len()).next_back().unwrap_or(self.base);
        self.position += batch.len() as u64;
        self.queued.forget_before(self.position);
        self.timeouts.forget_before(self.position);
        batch
    }

    /// Takes the last request, to put it back. All of them must be before another comes, for the other figures to hold.
    pub(super) fn pop_back(&mut self) -> Option<Entry<T>> {
        let entry = self.entries.pop_back();
        if self.entries.is_empty() {
            self.ends.clear();
            self.queued.0.clear();
            self.timeouts.0.clear();
        }
        entry
    }
}

/// The lowest of the instants of a line that grows at its end and shrinks at its front; O(1) amortised.
#[derive(Debug, Default)]
struct Lowest(VecDeque<(u64, Instant)>);

impl Lowest {
    fn push(&mut self, position: u64, at: Instant) {
        // What is not lower than a later one will never be the lowest again.
        while self.0.pop_back_if(|(_, last)| *last >= at).is_some() {}
        self.0.push_back((position, at));
    }

    fn forget_before(&mut self, position: u64) {
        while self.0.pop_front_if(|(first, _)| *first < position).is_some() {}
    }

    fn get(&self) -> Option<Instant> {
        self.0.front().map(|(_, at)| *at)
    }
}

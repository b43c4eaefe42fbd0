//! Best fit over a stretch of addresses: which parts are taken and which are free. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Free and taken parts of `0..len`. Every part begins and ends at a multiple of the unit. A part costs the logarithm of
/// the number of parts.
#[derive(Debug)]
pub struct Ranges {
    unit: u64,
    /// Free parts, start to length; no two of them touch.
    free: BTreeMap<u64, u64>,
    /// The same by length, the smallest first.
    by_len: BTreeSet<(u64, u64)>,
    /// Taken parts, start to length.
    taken: BTreeMap<u64, u64>,
    taken_bytes: u64,
}

impl Ranges {
    /// All of `0..len` free, but for what is left of it beyond a multiple of `unit`, which is a power of two.
    #[must_use]
    pub fn new(len: u64, unit: u64) -> Self {
        let len = len & !(unit - 1);
        let mut ranges =
            Self { unit, free: BTreeMap::new(), by_len: BTreeSet::new(), taken: BTreeMap::new(), taken_bytes: 0 };
        if len > 0 {
            ranges.insert_free(0, len);
        }
        ranges
    }

    /// What `bytes` take: a multiple of the unit, one at least; `None` beyond all numbers.
    #[must_use]
    pub fn rounded(&self, bytes: u64) -> Option<u64> {
        bytes.max(1).checked_next_multiple_of(self.unit)
    }

    /// Where `bytes` would fit, the tightest part first and the lowest of equals.
    pub fn candidates(&self, bytes: u64) -> impl Iterator<Item = u64> + '_ {
        let from = self.rounded(bytes).map(|len| (len, 0));
        from.into_iter().flat_map(|from| self.by_len.range(from..)).map(|(_, start)| *start)
    }

    /// Takes `bytes` at the start of the free part that begins at `start`, and says how many were taken. `None` where
    /// there is no such part or it is too small.
    pub fn take_at(&mut self, start: u64, bytes: u64) -> Option<u64> {
        let len = self.rounded(bytes)?;
        let room = *self.free.get(&start).filter(|room| **room >= len)?;
        self.remove_free(start, room);
        if room > len {
            self.insert_free(start + len, room - len);
        }
        self.taken.insert(start, len);
        self.taken_bytes += len;
        Some(len)
    }

    /// Frees what was taken at `start`, and says how much that was. `None` where nothing was.
    pub fn give_back(&mut self, start: u64) -> Option<u64> {
        let len = self.taken.remove(&start)?;
        self.taken_bytes -= len;
        let (mut from, mut until) = (start, start + len);
        if let Some((&before, &room)) = self.free.range(..start).next_back().filter(|(at, room)| *at + *room == start) {
            self.remove_free(before, room);
            from = before;
        }
        if let Some(&room) = self.free.get(&until) {
            self.remove_free(until, room);
            until += room;
        }
        self.insert_free(from, until - from);
        Some(len)
    }

    /// Where the largest free part begins.
    #[must_use]
    pub fn largest(&self) -> Option<u64> {
        self.by_len.last().map(|(_, start)| *start)
    }

    /// How large the free part is that begins at `start`.
    #[must_use]
    pub fn free_at(&self, start: u64) -> Option<u64> {
        self.free.get(&start).copied()
    }

    /// How much is taken, in bytes.
    #[must_use]
    pub const fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    /// What is taken, start and length, in order.
    pub fn taken(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.taken.iter().map(|(start, len)| (*start, *len))
    }

    /// How many parts are free: one where nothing is scattered.
    #[must_use]
    pub fn free_parts(&self) -> usize {
        self.free.len()
    }

    fn insert_free(&mut self, start: u64, len: u64) {
        self.free.insert(start, len);
        self.by_len.insert((len, start));
    }

    fn remove_free(&mut self, start: u64, len: u64) {
        self.free.remove(&start);
        self.by_len.remove(&(len, start));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UNIT: u64 = 8;

    /// The same with a flag a unit.
    struct Slow {
        taken: Vec<bool>,
        parts: BTreeMap<u64, u64>,
    }

    impl Slow {
        /// The tightest free part that holds `units`, the lowest of equals.
        fn best(&self, units: usize) -> Option<usize> {
            let (mut best, mut at) = (None, 0);
            while at < self.taken.len() {
                let room = self.taken[at..].iter().take_while(|taken| !**taken).count();
                if room >= units && best.is_none_or(|(least, _)| room < least) {
                    best = Some((room, at));
                }
                at += room.max(1);
            }
            best.map(|(_, at)| at)
        }
    }

    proptest! {
        #[test]
        fn it_is_best_fit_without_overlap_and_what_is_free_is_one_again_at_the_end(
            steps in prop::collection::vec((any::<bool>(), 0_u64..200, any::<prop::sample::Index>()), 1..120),
        ) {
            let mut ranges = Ranges::new(100 * UNIT + 3, UNIT);
            let mut slow = Slow { taken: vec![false; 100], parts: BTreeMap::new() };
            for (takes, bytes, which) in steps {
                if takes {
                    let units = bytes.div_ceil(UNIT).max(1);
                    let start = ranges.candidates(bytes).next();
                    prop_assert_eq!(start, slow.best(units as usize).map(|at| at as u64 * UNIT));
                    let Some(start) = start else { continue };
                    prop_assert_eq!(ranges.take_at(start, bytes), Some(units * UNIT));
                    slow.taken[(start / UNIT) as usize..][..units as usize].fill(true);
                    slow.parts.insert(start, units * UNIT);
                } else if !slow.parts.is_empty() {
                    let start = *slow.parts.keys().nth(which.index(slow.parts.len())).unwrap();
                    let len = slow.parts.remove(&start).unwrap();
                    prop_assert_eq!(ranges.give_back(start), Some(len));
                    prop_assert_eq!(ranges.give_back(start), None);
                    slow.taken[(start / UNIT) as usize..][..(len / UNIT) as usize].fill(false);
                }
                prop_assert_eq!(ranges.taken_bytes(), slow.parts.values().sum::<u64>());
                prop_assert_eq!(ranges.taken().collect::<BTreeMap<_, _>>(), slow.parts.clone());
            }
            for start in slow.parts.keys() {
                ranges.give_back(*start);
            }
            prop_assert_eq!((ranges.free_parts(), ranges.taken_bytes()), (1, 0));
            prop_assert_eq!(ranges.take_at(0, 100 * UNIT), Some(100 * UNIT));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_nothing_takes_a_unit() {
        let mut ranges = Ranges::new(4 * UNIT, UNIT);
        assert_eq!(ranges.candidates(u64::MAX).next(), None);
        assert_eq!(ranges.candidates(5 * UNIT).next(), None);
        assert_eq!(ranges.take_at(0, 5 * UNIT), None);
        assert_eq!(ranges.take_at(0, 0), Some(UNIT));
        assert_eq!(ranges.take_at(0, 1), None, "it is taken");
        assert_eq!(Ranges::new(3, UNIT).candidates(1).next(), None);
    }
}

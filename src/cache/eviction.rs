//! Which models go first when room is needed. Pure, and as fast for ten thousand models as for ten.
//!
//! A policy keeps its models in an order, cheapest to lose first. The one walk over that order, `Ranking::victims`, is
//! shared, so every policy keeps the same two promises: nothing excluded is chosen, and nothing is chosen in vain. The
//! default policy is [`CostAware`](super::cost_aware::CostAware).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;

/// What names an entry: `ModelId`, an `Arc<str>`, a number. Cloned freely.
pub trait Key: Clone + Eq + Hash + fmt::Debug + Send {}

impl<T: Clone + Eq + Hash + fmt::Debug + Send> Key for T {}

/// What a model takes and what it saves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weight {
    /// Its bytes on this tier.
    pub bytes: u64,
    /// Seconds to bring it back from the tier it would fall to, measured where it was loaded before.
    pub seconds: f64,
}

/// There is not enough that may go; nothing was chosen. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// What was asked for.
    pub need: u64,
    /// What is free already.
    pub free: u64,
    /// What could have been evicted.
    pub evictable: u64,
    /// What may not go now: in use, pinned, too young, or still being loaded.
    pub pinned: u64,
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { need, free, evictable, pinned } = self;
        write!(f, "no room for {need} bytes: {free} free, {evictable} evictable, {pinned} in use or pinned")
    }
}

impl std::error::Error for NoRoom {}

/// Which of the models on a tier are worth least.
///
/// [`EvictionPolicy::touch`] is told every request once, whether its model is on the tier or not: demand for a model
/// that was evicted is what a policy learns most from.
pub trait EvictionPolicy<K: Key>: fmt::Debug + Send {
    /// One request for `key`.
    fn touch(&mut self, key: &K);

    /// `key` is on the tier from now on, or its weight has changed. Counts as no request.
    fn insert(&mut self, key: &K, weight: Weight);

    /// `key` has left, for a reason that says nothing of its worth: unloaded by hand, changed, failed.
    fn remove(&mut self, key: &K);

    /// `key` has left to make room.
    fn evict(&mut self, key: &K);

    /// Models whose bytes add up to `need` or more, in the order they should go; were any of them spared, the rest
    /// would not do.
    ///
    /// Takes O((v + x) log n) for v victims and x excluded models that stand before the last of them.
    ///
    /// # Errors
    /// [`NoRoom`] where all that is not `excluded` would not do. Its `free` is 0: a policy knows no limit.
    fn victims(&self, need: u64, excluded: &dyn Fn(&K) -> bool) -> Result<Vec<K>, NoRoom>;
}

/// A place in the order: the priority, and a running number that lets the older go first among equals.
pub(super) type Rank = (u64, u64);

/// Models in the order in which they should go.
#[derive(Debug)]
pub(super) struct Ranking<K> {
    order: BTreeMap<Rank, (K, u64)>,
    places: HashMap<K, (Rank, Weight)>,
    bytes: u64,
}

impl<K> Default for Ranking<K> {
    fn default() -> Self {
        Self { order: BTreeMap::new(), places: HashMap::new(), bytes: 0 }
    }
}

impl<K: Key> Ranking<K> {
    pub(super) fn place(&mut self, key: &K, rank: Rank, weight: Weight) {
        self.remove(key);
        self.places.insert(key.clone(), (rank, weight));
        self.order.insert(rank, (key.clone(), weight.bytes));
        self.bytes = self.bytes.saturating_add(weight.bytes);
    }

    pub(super) fn get(&self, key: &K) -> Option<(Rank, Weight)> {
        self.places.get(key).copied()
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<Rank> {
        let (rank, weight) = self.places.remove(key)?;
        self.order.remove(&rank);
        self.bytes = self.bytes.saturating_sub(weight.bytes);
        Some(rank)
    }

    /// Takes out whoever should go first.
    pub(super) fn pop(&mut self) -> Option<Rank> {
        let key = self.order.first_key_value().map(|(_, (key, _))| key.clone())?;
        self.remove(&key)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The sum over all models.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn victims(&self, need: u64, excluded: &dyn Fn(&K) -> bool) -> Result<Vec<K>, NoRoom> {
        let (mut chosen, mut evictable, mut pinned) = (Vec::new(), 0_u64, 0_u64);
        for (key, bytes) in self.order.values() {
            if evictable >= need {
                break;
            }
            if excluded(key) {
                pinned = pinned.saturating_add(*bytes);
            } else {
                evictable = evictable.saturating_add(*bytes);
                chosen.push((key, *bytes));
            }
        }
        if evictable < need {
            return Err(NoRoom { need, free: 0, evictable, pinned });
        }
        // A large model late in the order may make up for small ones before it: spare what is not needed after all,
        // the most worthy first.
        let mut surplus = evictable - need;
        let mut victims = Vec::with_capacity(chosen.len());
        for (key, bytes) in chosen.into_iter().rev() {
            if bytes <= surplus {
                surplus -= bytes;
            } else {
                victims.push(key.clone());
            }
        }
        victims.reverse();
        Ok(victims)
    }
}

/// The least recently used first.
#[derive(Debug)]
pub struct Lru<K> {
    ranking: Ranking<K>,
    clock: u64,
}

impl<K> Default for Lru<K> {
    fn default() -> Self {
        Self { ranking: Ranking::default(), clock: 0 }
    }
}

impl<K: Key> Lru<K> {
    fn front(&mut self, key: &K, weight: Weight) {
        self.clock += 1;
        self.ranking.place(key, (self.clock, 0), weight);
    }
}

impl<K: Key> EvictionPolicy<K> for Lru<K> {
    fn touch(&mut self, key: &K) {
        if let Some((_, weight)) = self.ranking.get(key) {
            self.front(key, weight);
        }
    }

    fn insert(&mut self, key: &K, weight: Weight) {
        match self.ranking.get(key) {
            Some((rank, _)) => self.ranking.place(key, rank, weight),
            None => self.front(key, weight),
        }
    }

    fn remove(&mut self, key: &K) {
        self.ranking.remove(key);
    }

    fn evict(&mut self, key: &K) {
        self.ranking.remove(key);
    }

    fn victims(&self, need: u64, excluded: &dyn Fn(&K) -> bool) -> Result<Vec<K>, NoRoom> {
        self.ranking.victims(need, excluded)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn victims_of(order: &[(u8, u64)], need: u64, excluded: &dyn Fn(&u8) -> bool) -> Option<Vec<u8>> {
        let mut chosen = Vec::new();
        for &(key, bytes) in order {
            if chosen.iter().map(|&(_, bytes)| bytes).sum::<u64>() < need && !excluded(&key) {
                chosen.push((key, bytes));
            }
        }
        let mut sum: u64 = chosen.iter().map(|&(_, bytes)| bytes).sum();
        if sum < need {
            return None;
        }
        for at in (0..chosen.len()).rev() {
            if sum - chosen[at].1 >= need {
                sum -= chosen.remove(at).1;
            }
        }
        Some(chosen.into_iter().map(|(key, _)| key).collect())
    }

    proptest! {
        #[test]
        fn lru_decides_as_a_slow_model_of_it_does(
            operations in prop::collection::vec((0_u8..4, 0_u8..20, 0_u64..50), 1..200),
        ) {
            let mut policy = Lru::default();
            let mut order: Vec<(u8, u64)> = Vec::new();
            for (operation, key, bytes) in operations {
                let at = order.iter().position(|&(other, _)| other == key);
                match (operation, at) {
                    (0, _) => {
                        policy.insert(&key, Weight { bytes, seconds: 1.0 });
                        match at {
                            Some(at) => order[at].1 = bytes,
                            None => order.push((key, bytes)),
                        }
                    }
                    (1, _) => {
                        policy.touch(&key);
                        if let Some(at) = at {
                            let entry = order.remove(at);
                            order.push(entry);
                        }
                    }
                    (2, _) => {
                        policy.remove(&key);
                        order.retain(|&(other, _)| other != key);
                    }
                    _ => {
                        let excluded = |other: &u8| other % 7 == key % 7;
                        let victims = policy.victims(bytes * 3, &excluded);
                        prop_assert_eq!(victims.clone().ok(), victims_of(&order, bytes * 3, &excluded));
                        if let Err(no_room) = victims {
                            let sum = |pinned| order.iter().filter(|(key, _)| excluded(key) == pinned).map(|e| e.1).sum();
                            prop_assert_eq!((no_room.evictable, no_room.pinned), (sum(false), sum(true)));
                        }
                    }
                }
                prop_assert_eq!(policy.ranking.bytes(), order.iter().map(|&(_, bytes)| bytes).sum::<u64>());
                prop_assert_eq!(policy.ranking.len(), order.len());
            }
        }
    }

    #[test]
    fn small_models_are_spared_where_a_large_one_must_go_anyway() {
        let mut policy = Lru::default();
        for (key, bytes) in [("small", 1), ("smaller", 2), ("large", 100)] {
            policy.insert(&key, Weight { bytes, seconds: 1.0 });
        }
        assert_eq!(policy.victims(100, &|_| false).unwrap(), ["large"]);
        assert_eq!(policy.victims(101, &|_| false).unwrap(), ["small", "large"]);
    }
}

//! What would be an instance's, of what a fleet has in memory: for one that starts, and is to be warm before it answers.

use std::collections::HashSet;
use std::hash::Hash;

use super::ring::{Id, Ring};

/// The models that are warm somewhere, and what it takes to say whose they are.
#[derive(Clone, Debug)]
pub struct Warm<K> {
    /// The models with the requests that they answered.
    pub models: Vec<(K, u64)>,
    /// The instances there are.
    pub names: Vec<String>,
    /// Points of the ring at least.
    pub ring_size: usize,
}

impl<K: Ord> Warm<K> {
    /// The models that the ring has at `name` first, whether or not it is among the instances yet: `most` of them, those that
    /// answered most first.
    #[must_use]
    pub fn share_of(self, name: &str, hash: impl Fn(&K) -> u64, most: usize) -> Vec<(K, u64)> {
        /// No instance's, since ids are handed out from 0 on.
        const ASKER: Id = Id::MAX;
        let others = (0..).zip(self.names.iter().map(String::as_str)).filter(|(_, other)| *other != name);
        let members: Vec<_> = others.chain([(ASKER, name)]).collect();
        let ring = Ring::new(&members, self.ring_size);
        let is_its_own = |(model, _): &(K, u64)| ring.walk(hash(model), 1).first() == Some(&ASKER);
        let mut share: Vec<_> = self.models.into_iter().filter(is_its_own).collect();
        share.sort_unstable_by(|(one, uses), (other, more)| more.cmp(uses).then(one.cmp(other)));
        share.truncate(most);
        share
    }
}

/// `most` of what the lists hold, each once: the first of each list, then the second of each, and so on. So the word of one
/// that exaggerates counts for no more than its part.
#[must_use]
pub fn in_turn<K: Eq + Hash + Clone>(lists: &[Vec<K>], most: usize) -> Vec<K> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or_default();
    let mut seen = HashSet::new();
    let turns = (0..longest).flat_map(|turn| lists.iter().filter_map(move |list| list.get(turn)));
    turns.filter(|item| seen.insert((*item).clone())).take(most).cloned().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::hash::xxh64;
    use super::*;

    fn hash(model: &u32) -> u64 {
        xxh64(format!("m{model}").as_bytes())
    }

    fn warm(models: u32, names: &[&str]) -> Warm<u32> {
        Warm {
            models: (0..models).map(|model| (model, u64::from(model % 7))).collect(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ring_size: 1024,
        }
    }

    #[test]
    fn a_share_begins_with_what_is_used_most() {
        let all = warm(100, &["a:1"]).share_of("a:1", hash, 1000);
        assert_eq!(all.len(), 100, "one that is alone has the whole ring");
        let some = warm(100, &["a:1", "b:1"]).share_of("c:1", hash, 5);
        assert_eq!(some.len(), 5);
        assert!(some.is_sorted_by_key(|(_, uses)| std::cmp::Reverse(*uses)), "{some:?}");
        assert!(warm(0, &[]).share_of("a:1", hash, 5).is_empty());
    }

    #[test]
    fn lists_take_turns_and_nothing_comes_twice() {
        assert_eq!(in_turn(&[vec![1, 2, 3, 4], vec![2, 5], vec![]], 10), [1, 2, 5, 3, 4]);
        assert_eq!(in_turn(&[vec![1, 2, 3, 4], vec![9, 8, 7]], 3), [1, 9, 2]);
        assert!(in_turn::<u32>(&[], 3).is_empty() && in_turn(&[vec![1]], 0).is_empty());
    }

    proptest! {
        #[test]
        fn every_model_is_in_the_share_of_one_and_it_is_the_first_on_the_ring(models in 0_u32..60, count in 1_usize..6) {
            let names: Vec<_> = (0..count).map(|number| format!("10.0.0.{number}:8000")).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let members: Vec<_> = (0..).zip(names.iter().copied()).collect();
            let ring = Ring::new(&members, 1024);
            let mut there = 0;
            for (place, name) in (0..).zip(&names) {
                // With it among the instances, and as one that they do not know yet.
                let share = warm(models, &names).share_of(name, hash, usize::MAX);
                let others: Vec<_> = names.iter().copied().filter(|other| other != name).collect();
                prop_assert_eq!(&share, &warm(models, &others).share_of(name, hash, usize::MAX));
                prop_assert!(share.iter().all(|(model, _)| ring.walk(hash(model), 1)[..] == [place]));
                there += share.len();
            }
            prop_assert_eq!(there, models as usize);
        }
    }
}

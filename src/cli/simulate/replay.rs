//! Runs traffic through the server's own table and policies, and finds what no policy can beat.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::workload::Model;
use crate::cache::cost_aware::CostAware;
use crate::cache::eviction::{EvictionPolicy, Lru, Weight};
use crate::cache::table::{CacheTable, Refusal};
use crate::error::{Error, Result};

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Policy {
    /// GreedyDual-Size-Frequency over measured load seconds, with LRU as a rival
    CostAware,
    /// Least recently used first
    Lru,
}

impl Policy {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::CostAware => "cost-aware",
            Self::Lru => "lru",
        }
    }

    fn build(self) -> Box<dyn EvictionPolicy<usize>> {
        match self {
            Self::CostAware => Box::new(CostAware::default()),
            Self::Lru => Box::new(Lru::default()),
        }
    }
}

/// What a replay came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub(super) requests: u64,
    pub(super) loads: u64,
    pub(super) evictions: u64,
    /// Requests whose model could not be let in; their load counts as waited for all the same.
    pub(super) refused: u64,
    /// Seconds of load that requests waited for.
    pub(super) wait: f64,
}

impl Outcome {
    pub(super) fn wait_per_thousand(&self) -> f64 {
        self.wait * 1_000.0 / self.requests.max(1) as f64
    }
}

/// Replays `requests` (seconds, model), one after the other, over a tier of `capacity` bytes. A load is waited for by
/// the one request that began it.
pub(super) fn replay(
    requests: &[(f64, usize)],
    models: &[Model],
    capacity: u64,
    policy: Policy,
    tick: &dyn Fn(),
) -> Result<Outcome> {
    let start = Instant::now();
    let mut table = CacheTable::new(capacity, Duration::ZERO, policy.build());
    let mut outcome = Outcome { requests: requests.len() as u64, ..Outcome::default() };
    for (index, &(time, key)) in requests.iter().enumerate() {
        if index % 1_024 == 0 {
            tick();
        }
        let now = start + Duration::try_from_secs_f64(time).unwrap_or_default();
        table.touch(&key, now);
        if table.get(&key).is_some() {
            continue;
        }
        let Model { bytes, seconds } = models[key];
        outcome.loads += 1;
        outcome.wait += seconds;
        match table.reserve(&key, Weight { bytes, seconds }, now) {
            Ok(eviction) => {
                outcome.evictions += eviction.victims.len() as u64;
                for victim in eviction.victims {
                    table.remove(&victim.key);
                }
                table.ready(&key, seconds, now);
            }
            Err(Refusal::NeverFits { .. }) => outcome.refused += 1,
            Err(refusal) => return Err(Error::internal(format!("model {key}: {refusal}"))),
        }
        if table.booked() > capacity || table.overhang() > 0 {
            return Err(Error::internal("the table booked more than its limit"));
        }
    }
    Ok(outcome)
}

/// A stay of a model between two requests for it, which would save the second one its load.
struct Stay {
    from: usize,
    bytes: u64,
    seconds: f64,
    /// Bytes times requests.
    area: f64,
}

/// Seconds that no policy can go below, with all requests known beforehand.
///
/// Each stay costs bytes times its length, and all of them together cannot cost more than the capacity times the
/// length of the trace. The best stays per cost are bought until that is spent, the last in part. Whether they fit
/// together at each moment is not asked, so the truth lies above (the resource relaxation of Berger, Beckmann and
/// Harchol-Balter, "Practical Bounds on Optimal Caching with Variable Object Sizes", 2018).
pub(super) fn lower_bound(requests: &[(f64, usize)], models: &[Model], capacity: u64) -> f64 {
    let mut last: HashMap<usize, usize> = HashMap::new();
    let mut stays = Vec::new();
    let mut wait = 0.0;
    for (index, &(_, key)) in requests.iter().enumerate() {
        let Model { bytes, seconds } = models[key];
        wait += seconds;
        if let Some(from) = last.insert(key, index)
            && bytes <= capacity
        {
            stays.push(Stay { from, bytes, seconds, area: bytes as f64 * (index - from) as f64 });
        }
    }
    stays.sort_by(|a, b| (b.seconds / b.area).total_cmp(&(a.seconds / a.area)).then(a.from.cmp(&b.from)));
    let mut budget = capacity as f64 * requests.len() as f64;
    for stay in &stays {
        let share = (budget / stay.area.max(stay.bytes as f64)).min(1.0);
        wait -= stay.seconds * share;
        budget -= stay.area * share;
        if share < 1.0 {
            break;
        }
    }
    wait
}

/// Seconds of a policy that knows the next request of every model: whoever would save the fewest seconds for the bytes
/// and the time until then goes first, and a newcomer that would save fewer still is not kept. Greedy, so a better
/// order may exist; but this one can be had.
pub(super) fn clairvoyant(requests: &[(f64, usize)], models: &[Model], capacity: u64) -> f64 {
    let mut next = vec![usize::MAX; requests.len()];
    let mut seen: HashMap<usize, usize> = HashMap::new();
    for (index, &(_, key)) in requests.iter().enumerate().rev() {
        if let Some(later) = seen.insert(key, index) {
            next[index] = later;
        }
    }
    // Resident models by their next request; a walk finds the least worthy, which changes as time passes.
    let mut resident: BTreeMap<usize, usize> = BTreeMap::new();
    let mut at: HashMap<usize, usize> = HashMap::new();
    let (mut used, mut wait) = (0_u64, 0.0);
    for (index, &(_, key)) in requests.iter().enumerate() {
        if let Some(place) = at.remove(&key) {
            resident.remove(&place);
            used -= models[key].bytes;
        } else {
            wait += models[key].seconds;
        }
        if next[index] == usize::MAX || models[key].bytes > capacity {
            continue;
        }
        resident.insert(next[index], key);
        at.insert(key, next[index]);
        used += models[key].bytes;
        while used > capacity {
            let worth = |(&later, &key): (&usize, &usize)| {
                models[key].seconds / (models[key].bytes as f64 * (later - index) as f64)
            };
            let Some((&later, &key)) = resident.iter().min_by(|a, b| worth(*a).total_cmp(&worth(*b))) else { break };
            resident.remove(&later);
            at.remove(&key);
            used -= models[key].bytes;
        }
    }
    wait
}

#[cfg(test)]
mod tests {
    use super::super::workload::{Random, Synthetic, models, synthesize};
    use super::*;

    fn at_once(keys: &[usize]) -> Vec<(f64, usize)> {
        keys.iter().enumerate().map(|(index, &key)| (index as f64, key)).collect()
    }

    #[test]
    fn a_tier_that_holds_everything_loads_each_model_once() {
        let models = [Model { bytes: 10, seconds: 1.0 }, Model { bytes: 20, seconds: 2.0 }];
        let requests = at_once(&[0, 1, 0, 1, 1, 0]);
        for policy in [Policy::CostAware, Policy::Lru] {
            let outcome = replay(&requests, &models, 30, policy, &|| ()).unwrap();
            assert_eq!((outcome.loads, outcome.evictions, outcome.wait), (2, 0, 3.0));
        }
        assert_eq!(lower_bound(&requests, &models, 30), 3.0);
        assert_eq!(clairvoyant(&requests, &models, 30), 3.0);
    }

    #[test]
    fn a_model_larger_than_the_tier_is_waited_for_each_time() {
        let models = [Model { bytes: 10, seconds: 1.0 }];
        let outcome = replay(&at_once(&[0, 0]), &models, 9, Policy::CostAware, &|| ()).unwrap();
        assert_eq!((outcome.refused, outcome.wait), (2, 2.0));
        assert_eq!(lower_bound(&at_once(&[0, 0]), &models, 9), 2.0);
    }

    #[test]
    fn nothing_beats_the_lower_bound() {
        for (seed, kind) in [(1, Synthetic::Zipf), (2, Synthetic::Drift), (3, Synthetic::Scan), (4, Synthetic::Bursty)]
        {
            let mut random = Random::new(seed);
            let models = models(100, &mut random);
            let requests = at_once(&synthesize(kind, 0.9, 100, 5_000, &mut random));
            let capacity = models.iter().map(|model| model.bytes).sum::<u64>() / 5;
            let bound = lower_bound(&requests, &models, capacity);
            assert!(bound > 0.0);
            assert!(clairvoyant(&requests, &models, capacity) >= bound, "{kind:?}");
            for policy in [Policy::CostAware, Policy::Lru] {
                let outcome = replay(&requests, &models, capacity, policy, &|| ()).unwrap();
                assert!(outcome.wait >= bound, "{kind:?} {policy:?}");
            }
        }
    }
}

//! What is known of one model: who has it, and what waiting for those has cost.

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::choice::Copy;
use super::ring::Id;

/// How long it takes until two thirds of what was waited are forgotten.
const MEMORY: Duration = Duration::from_secs(10);

/// What opening another copy costs, as a multiple of its load: that, and the load of what leaves for it.
const COST: f64 = 2.0;

/// The least that it costs, in seconds: less is not told from chance, and a copy takes memory from others.
const LEAST_COST: f64 = 1.0;

/// The cost of a load of which nothing is known, in seconds.
const UNKNOWN_LOAD: f64 = 1.0;

/// A copy of a model, or requests for it on their way to where none is known.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) id: Id,
    pub(super) copy: Copy,
    /// When that was learnt, where it was not from a digest.
    pub(super) guessed: Option<Instant>,
    pub(super) parallel: u32,
    pub(super) uses: u64,
    /// Requests sent there by us that are not answered.
    pub(super) own: u32,
    /// Those of others, by the digest.
    pub(super) others: u32,
}

impl Holder {
    pub(super) const fn new(id: Id) -> Self {
        Self { id, copy: Copy::Absent, guessed: None, parallel: 1, uses: 0, own: 0, others: 0 }
    }

    pub(super) const fn in_flight(&self) -> u32 {
        self.own.saturating_add(self.others)
    }

    /// Requests over those that run at once.
    pub(super) fn queue(&self) -> f64 {
        f64::from(self.in_flight()) / f64::from(self.parallel.max(1))
    }
}

/// A model that somebody has, or that is asked for.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) holders: SmallVec<[Holder; 2]>,
    pub(super) load_seconds: f64,
    /// Seconds that requests waited at warm copies, less what is forgotten.
    waited: f64,
    seen: Instant,
}

impl Model {
    pub(super) fn new(now: Instant) -> Self {
        Self { holders: SmallVec::new(), load_seconds: 0.0, waited: 0.0, seen: now }
    }

    pub(super) fn holder(&self, id: Id) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.id == id)
    }

    pub(super) fn holder_mut(&mut self, id: Id) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|holder| holder.id == id)
    }

    /// The holder of an instance, made if it is not there.
    pub(super) fn enter(&mut self, id: Id) -> &mut Holder {
        let at = self.holders.iter().position(|holder| holder.id == id).unwrap_or_else(|| {
            self.holders.push(Holder::new(id));
            self.holders.len() - 1
        });
        &mut self.holders[at]
    }

    /// Adds what was waited until now; to be called before anything changes.
    pub(super) fn advance(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.seen).as_secs_f64();
        self.seen = self.seen.max(now);
        let warm = self.holders.iter().filter(|holder| holder.copy == Copy::Warm);
        let waiting: u32 = warm.map(|holder| holder.in_flight().saturating_sub(holder.parallel)).sum();
        self.waited = self.waited.mul_add((-since / MEMORY.as_secs_f64()).exp(), f64::from(waiting) * since);
    }

    /// Whether waiting has cost more than another copy.
    pub(super) fn pays(&self) -> bool {
        let load = if self.load_seconds > 0.0 { self.load_seconds } else { UNKNOWN_LOAD };
        self.waited >= (load * COST).max(LEAST_COST)
    }

    /// Another copy is on its way: what was waited is what it cost.
    pub(super) const fn pay(&mut self) {
        self.waited = 0.0;
    }

    /// Whether nothing would be lost with it.
    pub(super) fn is_over(&self) -> bool {
        self.holders.is_empty()
    }
}

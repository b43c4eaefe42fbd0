//! What is known of one instance.

use std::collections::HashSet;
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::choice::Standing;
use super::digest::Digest;

/// How many answers that give a digest the lie take its word away.
const MOST_LIES: f64 = 4.0;

/// How much one load's time counts in their mean.
const NEWS: f64 = 0.1;

/// For how long.
const DOUBT: Duration = Duration::from_secs(10);

/// Something that a pick or an answer lets one take for true, until a digest was asked for later.
#[derive(Clone, Debug)]
pub(super) struct Guess<K> {
    pub(super) model: K,
    pub(super) at: Instant,
    /// Whether it is a load that has begun.
    pub(super) loads: bool,
}

/// An instance of the fleet.
#[derive(Debug)]
pub(super) struct Member<K> {
    /// Its address, which is its place on the ring.
    pub(super) name: String,
    /// When its last digest came.
    pub(super) heard: Option<Instant>,
    pub(super) down: bool,
    pub(super) ready: bool,
    pub(super) draining: bool,
    pub(super) load_places: u32,
    /// Loads by its digest.
    pub(super) loads: u32,
    /// How long loads take there: a mean that forgets, in seconds; 0 where that is not known.
    load_seconds: f64,
    pub(super) executors: u32,
    /// Requests sent there that are not answered, and those of them that wait for a load.
    pub(super) in_flight: u32,
    pub(super) waiting: u32,
    /// Models with a holder here.
    pub(super) held: HashSet<K>,
    /// Those of them that are guesses.
    pub(super) guesses: Vec<Guess<K>>,
    /// Those of them that others use.
    pub(super) busy: Vec<K>,
    lies: f64,
    doubted_until: Option<Instant>,
}

impl<K: Eq + Hash> Member<K> {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            heard: None,
            down: false,
            ready: true,
            draining: false,
            load_places: 1,
            loads: 0,
            load_seconds: 0.0,
            executors: 1,
            in_flight: 0,
            waiting: 0,
            held: HashSet::new(),
            guesses: Vec::new(),
            busy: Vec::new(),
            lies: 0.0,
            doubted_until: None,
        }
    }

    pub(super) fn standing(&self, now: Instant, stale_after: Duration) -> Standing {
        if self.down {
            return Standing::Down;
        }
        let is_fresh = self.heard.is_some_and(|heard| now.saturating_duration_since(heard) <= stale_after);
        let is_doubted = self.doubted_until.is_some_and(|until| now < until);
        if is_fresh && !is_doubted { Standing::Fresh } else { Standing::Stale }
    }

    /// Takes over what a digest says of the instance as a whole.
    pub(super) const fn hear(&mut self, digest: &Digest<K>, now: Instant) {
        self.heard = Some(now);
        self.down = false;
        self.ready = digest.ready;
        self.draining = digest.draining;
        self.load_places = if digest.load_places == 0 { 1 } else { digest.load_places };
        self.loads = digest.loads;
        self.executors = if digest.executors == 0 { 1 } else { digest.executors };
    }

    /// An answer showed whether a model was where the digest had it.
    pub(super) fn proved(&mut self, right: bool, now: Instant) {
        if right {
            self.lies /= 2.0;
            return;
        }
        self.lies += 1.0;
        if self.lies >= MOST_LIES {
            self.lies = 0.0;
            self.doubted_until = Some(now + DOUBT);
        }
    }

    /// Hears how long a load took.
    pub(super) fn hear_load(&mut self, seconds: f64) {
        if seconds > 0.0 {
            let known = if self.load_seconds > 0.0 { self.load_seconds } else { seconds };
            self.load_seconds = (seconds - known).mul_add(NEWS, known);
        }
    }

    /// Whether a load would begin at once: by the digest, and by what was picked since. Loads that the digest told of are over
    /// once it is as old as loads take: where they are quick, it would else be wrong of most instances most of the time.
    pub(super) fn has_load_place(&self, now: Instant) -> bool {
        let begun = self.guesses.iter().filter(|guess| guess.loads).count();
        let age = self.heard.map_or(0.0, |heard| now.saturating_duration_since(heard).as_secs_f64());
        let are_over = self.load_seconds > 0.0 && age > self.load_seconds;
        let told = if are_over { 0 } else { self.loads as usize };
        told.saturating_add(begun) < self.load_places as usize
    }

    /// Requests that run there or wait for their turn.
    pub(super) const fn executing(&self) -> u32 {
        self.in_flight.saturating_sub(self.waiting)
    }
}

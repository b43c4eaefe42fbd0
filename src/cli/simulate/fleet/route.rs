//! Who sends a request where.

use std::time::{Duration, Instant};

use crate::picker::fleet::{Fleet, FleetOptions, Ticket};
use crate::picker::hash::xxh64;
use crate::picker::ring::{Id, Ring};

/// A way to choose an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Way {
    /// `roundhouse picker`
    Picker,
    /// A consistent hash of the model, with at most twice the share of requests in flight, as in docker/envoy.yaml
    Hash,
    /// Whoever has the fewest requests in flight
    LeastOutstanding,
    /// One after the other
    RoundRobin,
}

impl Way {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Picker => "picker",
            Self::Hash => "hash",
            Self::LeastOutstanding => "least-outstanding",
            Self::RoundRobin => "round-robin",
        }
    }
}

/// Points of the ring for each instance.
const POINTS: usize = 128;

/// The most that one instance may have, as a multiple of its share.
const BOUND: usize = 2;

/// Requests in flight, at each instance and at all.
#[derive(Debug, Default)]
pub(super) struct Loads {
    pub(super) each: Vec<usize>,
    pub(super) all: usize,
}

/// A way, and what it knows.
pub(super) struct Router {
    way: Way,
    fleet: Fleet<usize>,
    ring: Ring,
    turn: usize,
    hashes: Vec<u64>,
}

impl Router {
    pub(super) fn new(way: Way, models: usize) -> Self {
        let hashes = (0..models).map(|model| xxh64(format!("m{model}").as_bytes())).collect();
        let fleet = Fleet::new(FleetOptions { stale_after: Duration::from_secs(5), ring_size: POINTS });
        Self { way, fleet, ring: Ring::default(), turn: 0, hashes }
    }

    /// The instances that there are, by their numbers, from now on. Those that leave are still known to the picker.
    pub(super) fn set_members(&mut self, open: &[usize], there: &[usize]) {
        let name = |number: &usize| format!("i{number}:8000");
        let names: Vec<_> = there.iter().map(name).collect();
        // Ids are given in the order of the numbers, which is that in which instances come.
        self.fleet.set_ring_size(POINTS * there.len());
        self.fleet.set_members(&names);
        let names: Vec<_> = open.iter().map(|number| (*number as Id, name(number))).collect();
        let members: Vec<_> = names.iter().map(|(id, name)| (*id, name.as_str())).collect();
        self.ring = Ring::new(&members, POINTS * members.len());
    }

    /// The instance for a request. `open` are those that take new work.
    pub(super) fn route(
        &mut self,
        model: usize,
        loads: &Loads,
        open: &[usize],
        now: Instant,
    ) -> (usize, Option<Ticket<usize>>) {
        let load = |number: usize| loads.each[number];
        match self.way {
            Way::Picker => match self.fleet.pick(&model, self.hashes[model], now, |_| true) {
                Some(picked) => (picked.choice.order[0] as usize, Some(picked.ticket)),
                None => (open[0], None),
            },
            Way::Hash => {
                let bound = (BOUND * (loads.all + 1)).div_ceil(open.len());
                let walk = self.ring.walk(self.hashes[model], 8);
                let within = walk.iter().find(|id| load(**id as usize) < bound);
                (within.or(walk.first()).map_or(open[0], |id| *id as usize), None)
            }
            Way::LeastOutstanding => {
                // Of equals another one each time.
                self.turn = (self.turn + 1) % open.len();
                let turned = open[self.turn..].iter().chain(&open[..self.turn]);
                (turned.copied().min_by_key(|number| load(*number)).unwrap_or(open[0]), None)
            }
            Way::RoundRobin => {
                self.turn = (self.turn + 1) % open.len();
                (open[self.turn], None)
            }
        }
    }

    /// A request with a ticket is answered.
    pub(super) fn answered(&mut self, ticket: &Ticket<usize>, number: usize, was_warm: bool, now: Instant) {
        self.fleet.answered(ticket, Some(number as Id), was_warm, now);
        self.fleet.finish(ticket, now);
    }

    /// An instance tells what it has.
    pub(super) fn hear(&mut self, number: usize, digest: &crate::picker::digest::Digest<usize>, now: Instant) {
        self.fleet.hear(number as Id, digest, now, now);
    }

    /// What the neighbours of one that leaves are to bring.
    pub(super) fn heirs(&self, number: usize, most: usize, now: Instant) -> Vec<(usize, usize)> {
        let heirs = self.fleet.heirs(number as Id, |model| self.hashes[*model], most, now);
        heirs.into_iter().map(|(model, id)| (model, id as usize)).collect()
    }

    pub(super) const fn hears(&self) -> bool {
        matches!(self.way, Way::Picker)
    }
}

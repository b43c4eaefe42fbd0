//! The clock of the simulation: requests, loads and runs in the order of time, and instances that come and go.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::instance::{Instance, Next};
use super::route::{Loads, Router, Way};
use super::{Outcome, Setting, Work};
use crate::error::{Error, Result};
use crate::picker::fleet::Ticket;

/// How often instances are asked for their digests, in seconds.
const POLL: f64 = 0.25;

/// Polls of which one asks those too that have nothing new.
const QUIET: u64 = 8;

/// How often it is looked whether there are enough instances, in seconds.
const LOOK: f64 = 30.0;

/// An instance is added above so many requests that wait a thread or place, and one goes below.
const CROWDED: f64 = 0.5;
const IDLE: f64 = 0.1;

/// Looks in a row that must find too many before one goes.
const PATIENCE: u32 = 10;

/// How long one that leaves answers yet, in seconds, and what its neighbours bring meanwhile.
const NOTICE: f64 = 15.0;
const HANDOVER: usize = 64;

/// The part of the requests that only fills memory.
const WARM_UP: f64 = 0.25;

enum What {
    Happens { instance: usize, next: Next },
    Polls,
    Looks,
    Leaves { instance: usize },
}

struct Event {
    at: f64,
    /// Of those at one time, in the order they were made.
    number: u64,
    what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.number.cmp(&other.number))
    }
}

/// A request under way.
struct Sent {
    at: f64,
    was_warm: bool,
    ticket: Option<Ticket<usize>>,
}

struct World<'a> {
    work: &'a Work,
    setting: &'a Setting,
    start: Instant,
    now: f64,
    events: BinaryHeap<Reverse<Event>>,
    made: u64,
    polls: u64,
    instances: Vec<Option<Instance>>,
    /// Those that take new work, ascending.
    open: Vec<usize>,
    loads: Loads,
    router: Router,
    sent: Vec<Option<Sent>>,
    next: Vec<Next>,
    idle_looks: u32,
    outcome: Outcome,
    latencies: Vec<f32>,
}

/// Runs all requests through a fleet.
pub(super) fn run(work: &Work, setting: &Setting, way: Way, tick: &dyn Fn()) -> Result<Outcome> {
    let mut world = World {
        work,
        setting,
        start: Instant::now(),
        now: 0.0,
        events: BinaryHeap::new(),
        made: 0,
        polls: 0,
        instances: Vec::new(),
        open: Vec::new(),
        loads: Loads::default(),
        router: Router::new(way, work.models.len()),
        sent: Vec::with_capacity(work.requests.len()),
        next: Vec::new(),
        idle_looks: 0,
        outcome: Outcome::default(),
        latencies: Vec::with_capacity(work.requests.len()),
    };
    for _ in 0..setting.instances {
        world.add();
    }
    world.told_members();
    world.at(0.0, What::Polls);
    world.at(LOOK, What::Looks);
    for (number, &(at, model)) in work.requests.iter().enumerate() {
        if number % 1_024 == 0 {
            tick();
        }
        world.until(at);
        world.now = at;
        world.arrive(number, model);
    }
    world.until(f64::INFINITY);
    world.finish()
}

impl World<'_> {
    fn instant(&self) -> Instant {
        self.start + Duration::try_from_secs_f64(self.now).unwrap_or_default()
    }

    fn at(&mut self, at: f64, what: What) {
        self.made += 1;
        self.events.push(Reverse(Event { at, number: self.made, what }));
    }

    fn add(&mut self) {
        let Setting { bytes, load_places, executors, .. } = *self.setting;
        self.open.push(self.instances.len());
        self.loads.each.push(0);
        self.instances.push(Some(Instance::new(bytes, load_places, executors)));
    }

    fn told_members(&mut self) {
        let there: Vec<_> = (0..self.instances.len()).filter(|number| self.instances[*number].is_some()).collect();
        self.router.set_members(&self.open, &there);
    }

    /// All that happens up to then. Polls and looks end with the last request.
    fn until(&mut self, end: f64) {
        while self.events.peek().is_some_and(|Reverse(event)| event.at <= end) {
            let Some(Reverse(Event { at, what, .. })) = self.events.pop() else { return };
            // What comes after the last request is nobody's.
            if end.is_finite() {
                self.outcome.instance_seconds += (at - self.now).max(0.0) * self.there() as f64;
            }
            self.now = at;
            match what {
                What::Happens { instance, next } => self.happen(instance, next),
                What::Polls => {
                    self.poll();
                    if end.is_finite() {
                        self.at(at + POLL, What::Polls);
                    }
                }
                What::Looks if end.is_finite() => {
                    self.look();
                    self.at(at + LOOK, What::Looks);
                }
                What::Looks => {}
                What::Leaves { instance } => self.leave(instance),
            }
        }
        if end.is_finite() {
            self.outcome.instance_seconds += (end - self.now).max(0.0) * self.there() as f64;
            self.now = end;
        }
    }

    fn there(&self) -> usize {
        self.instances.iter().flatten().count()
    }

    fn arrive(&mut self, number: usize, model: usize) {
        let now = self.instant();
        let (to, ticket) = self.router.route(model, &self.loads, &self.open, now);
        let counts = number as f64 >= self.work.requests.len() as f64 * WARM_UP;
        self.outcome.requests += u64::from(counts);
        let Some(instance) = self.instances[to].as_mut() else {
            self.outcome.refused += 1;
            self.sent.push(None);
            return;
        };
        let Some(was_warm) = instance.arrive(model, number, self.work, now, &mut self.next) else {
            self.outcome.refused += 1;
            if let Some(ticket) = ticket {
                self.router.answered(&ticket, to, true, now);
            }
            self.sent.push(None);
            return;
        };
        self.outcome.cold += u64::from(counts && !was_warm);
        self.loads.each[to] += 1;
        self.loads.all += 1;
        self.sent.push(Some(Sent { at: self.now, was_warm, ticket }));
        self.plan(to);
    }

    /// Puts what an instance says will happen into the calendar.
    fn plan(&mut self, instance: usize) {
        for next in std::mem::take(&mut self.next) {
            let (Next::Loaded { after, .. } | Next::Ran { after, .. }) = next;
            self.at(self.now + after, What::Happens { instance, next });
        }
    }

    fn happen(&mut self, number: usize, next: Next) {
        let now = self.instant();
        let Some(instance) = self.instances[number].as_mut() else { return };
        match next {
            Next::Loaded { model, .. } => instance.loaded(model, self.work, now, &mut self.next),
            Next::Ran { model, request, .. } => {
                instance.ran(model, self.work, now, &mut self.next);
                self.loads.each[number] -= 1;
                self.loads.all -= 1;
                if let Some(Sent { at, was_warm, ticket }) = self.sent[request].take() {
                    if request as f64 >= self.work.requests.len() as f64 * WARM_UP {
                        self.latencies.push((self.now - at) as f32);
                    }
                    if let Some(ticket) = ticket {
                        self.router.answered(&ticket, number, was_warm, now);
                    }
                }
            }
        }
        self.plan(number);
    }

    fn poll(&mut self) {
        if !self.router.hears() {
            return;
        }
        let now = self.instant();
        self.polls += 1;
        for (number, instance) in self.instances.iter_mut().enumerate() {
            let Some(instance) = instance else { continue };
            // Where there is nothing new, now and then is enough to be believed.
            if instance.has_news() || self.polls.is_multiple_of(QUIET) {
                self.router.hear(number, &instance.digest(self.work), now);
            }
        }
    }

    /// As an autoscaler does it: by what waits, never by memory.
    fn look(&mut self) {
        let held: usize =
            self.open.iter().filter_map(|number| self.instances[*number].as_ref()).map(Instance::held_up).sum();
        let crowd = held as f64 / (self.open.len() * (self.setting.executors + self.setting.load_places)) as f64;
        self.idle_looks = if crowd < IDLE { self.idle_looks + 1 } else { 0 };
        if crowd > CROWDED && self.open.len() < self.setting.most {
            for _ in 0..(self.open.len() / 10).max(1).min(self.setting.most - self.open.len()) {
                self.add();
                self.outcome.scale_outs += 1;
            }
            self.told_members();
        } else if self.idle_looks >= PATIENCE && self.open.len() > self.setting.least {
            self.idle_looks = 0;
            let Some(leaver) = self.open.pop() else { return };
            self.outcome.scale_ins += 1;
            if let Some(instance) = self.instances[leaver].as_mut() {
                instance.draining = true;
            }
            self.poll();
            self.told_members();
            if self.router.hears() {
                let now = self.instant();
                for (model, heir) in self.router.heirs(leaver, HANDOVER, now) {
                    if let Some(instance) = self.instances[heir].as_mut() {
                        instance.prefetch(model, self.work, now, &mut self.next);
                    }
                    self.plan(heir);
                }
            }
            self.at(self.now + NOTICE, What::Leaves { instance: leaver });
        }
    }

    /// One that is on its way out ends, once it has answered all.
    fn leave(&mut self, number: usize) {
        match &self.instances[number] {
            Some(instance) if instance.in_flight > 0 => self.at(self.now + 1.0, What::Leaves { instance: number }),
            Some(instance) => {
                self.outcome.loads += instance.loads;
                self.outcome.evictions += instance.evictions;
                self.instances[number] = None;
                self.told_members();
            }
            None => {}
        }
    }

    fn finish(mut self) -> Result<Outcome> {
        if self.sent.iter().any(Option::is_some) {
            return Err(Error::internal("a request was never answered"));
        }
        for instance in self.instances.iter().flatten() {
            self.outcome.loads += instance.loads;
            self.outcome.evictions += instance.evictions;
        }
        self.outcome.instances_at_end = self.open.len();
        self.latencies.sort_unstable_by(f32::total_cmp);
        let at = |part: f64| {
            let place = (self.latencies.len() as f64 * part) as usize;
            self.latencies.get(place.min(self.latencies.len().saturating_sub(1))).map_or(0.0, |ms| f64::from(*ms) * 1e3)
        };
        (self.outcome.p50_ms, self.outcome.p99_ms) = (at(0.5), at(0.99));
        Ok(self.outcome)
    }
}

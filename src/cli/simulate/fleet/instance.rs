//! An instance of the simulation: a tier of memory under the server's own book and policy, places for loads, and threads
//! that run one model at a time each, every model's requests one after the other.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::Work;
use crate::cache::cost_aware::{Ageing, CostAware};
use crate::cache::eviction::Weight;
use crate::cache::table::{CacheTable, Refusal};
use crate::picker::digest::{Digest, Held, Row};

/// Models whose demand each instance remembers: less than the server does, since there are a thousand of them.
const REMEMBERED: usize = 8_192;

/// A request's number.
pub(super) type Request = usize;

/// Something that will happen to an instance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Next {
    /// The load of a model ends.
    Loaded { model: usize, after: f64 },
    /// A run of a request ends.
    Ran { model: usize, request: Request, after: f64 },
}

/// See the module.
pub(super) struct Instance {
    table: CacheTable<usize>,
    /// Requests for models that are not there yet.
    waiting: HashMap<usize, Vec<Request>>,
    /// Loads that wait for a place or for room.
    to_load: VecDeque<usize>,
    loading: usize,
    load_places: usize,
    /// Requests of models in memory, and the models that run now.
    queues: HashMap<usize, VecDeque<Request>>,
    running: HashSet<usize>,
    turns: VecDeque<usize>,
    executors: usize,
    /// What the next digest has to tell.
    changed: HashSet<usize>,
    uses: HashMap<usize, u64>,
    is_new: bool,
    pub(super) draining: bool,
    pub(super) loads: u64,
    pub(super) evictions: u64,
    /// Requests that are not answered.
    pub(super) in_flight: usize,
}

impl Instance {
    pub(super) fn new(bytes: u64, load_places: usize, executors: usize) -> Self {
        let policy = CostAware::new(Ageing { remembered: REMEMBERED, ..Ageing::default() });
        Self {
            table: CacheTable::new(bytes, Duration::ZERO, Box::new(policy)),
            waiting: HashMap::new(),
            to_load: VecDeque::new(),
            loading: 0,
            load_places,
            queues: HashMap::new(),
            running: HashSet::new(),
            turns: VecDeque::new(),
            executors,
            changed: HashSet::new(),
            uses: HashMap::new(),
            is_new: true,
            draining: false,
            loads: 0,
            evictions: 0,
            in_flight: 0,
        }
    }

    pub(super) fn is_warm(&self, model: usize) -> bool {
        self.table.get(&model).is_some() && !self.waiting.contains_key(&model)
    }

    /// Requests that wait for a load or for their turn.
    pub(super) fn held_up(&self) -> usize {
        self.in_flight - self.running.len()
    }

    /// A request comes. Whether its model was in memory; `None` where it never fits.
    pub(super) fn arrive(
        &mut self,
        model: usize,
        request: Request,
        work: &Work,
        now: Instant,
        next: &mut Vec<Next>,
    ) -> Option<bool> {
        self.table.touch(&model, now);
        if work.models[model].bytes > self.table.limit() {
            return None;
        }
        self.in_flight += 1;
        if self.is_warm(model) {
            self.enqueue(model, request, work, next);
            return Some(true);
        }
        self.want(model, Some(request));
        self.begin_loads(work, now, next);
        Some(false)
    }

    /// Brings a model without a request.
    pub(super) fn prefetch(&mut self, model: usize, work: &Work, now: Instant, next: &mut Vec<Next>) {
        if !self.is_warm(model) && work.models[model].bytes <= self.table.limit() {
            self.want(model, None);
            self.begin_loads(work, now, next);
        }
    }

    fn want(&mut self, model: usize, request: Option<Request>) {
        let waiting = self.waiting.entry(model).or_insert_with(|| {
            self.to_load.push_back(model);
            Vec::new()
        });
        waiting.extend(request);
        self.changed.insert(model);
    }

    fn begin_loads(&mut self, work: &Work, now: Instant, next: &mut Vec<Next>) {
        while self.loading < self.load_places {
            let Some(&model) = self.to_load.front() else { return };
            let is = work.models[model];
            let weight = Weight { bytes: is.bytes, seconds: is.seconds };
            match self.table.reserve(&model, weight, now) {
                Ok(eviction) => {
                    self.evictions += eviction.victims.len() as u64;
                    for victim in eviction.victims {
                        self.table.remove(&victim.key);
                        self.queues.remove(&victim.key);
                        self.uses.remove(&victim.key);
                        self.changed.insert(victim.key);
                    }
                    self.to_load.pop_front();
                    self.loading += 1;
                    self.loads += 1;
                    next.push(Next::Loaded { model, after: is.seconds });
                }
                // All that could leave is in use: a run that ends makes room.
                Err(Refusal::NoRoom(_)) => return,
                Err(Refusal::NeverFits { .. } | Refusal::Present) => {
                    self.to_load.pop_front();
                }
            }
        }
    }

    /// The load of a model has ended.
    pub(super) fn loaded(&mut self, model: usize, work: &Work, now: Instant, next: &mut Vec<Next>) {
        self.loading -= 1;
        self.table.ready(&model, work.models[model].seconds, now);
        self.changed.insert(model);
        for request in self.waiting.remove(&model).unwrap_or_default() {
            self.enqueue(model, request, work, next);
        }
        self.begin_loads(work, now, next);
    }

    fn enqueue(&mut self, model: usize, request: Request, work: &Work, next: &mut Vec<Next>) {
        // In use from here to its end: it is not evicted meanwhile.
        let _resident = self.table.begin_use(&model);
        self.queues.entry(model).or_default().push_back(request);
        *self.uses.entry(model).or_default() += 1;
        self.ask_turn(model);
        self.run(work, next);
    }

    fn ask_turn(&mut self, model: usize) {
        let has_work = self.queues.get(&model).is_some_and(|queue| !queue.is_empty());
        if has_work && !self.running.contains(&model) && !self.turns.contains(&model) {
            self.turns.push_back(model);
        }
    }

    fn run(&mut self, work: &Work, next: &mut Vec<Next>) {
        while self.running.len() < self.executors {
            let Some(model) = self.turns.pop_front() else { return };
            let Some(request) = self.queues.get_mut(&model).and_then(VecDeque::pop_front) else { continue };
            self.running.insert(model);
            next.push(Next::Ran { model, request, after: work.runs[model] });
        }
    }

    /// A run has ended.
    pub(super) fn ran(&mut self, model: usize, work: &Work, now: Instant, next: &mut Vec<Next>) {
        self.in_flight -= 1;
        self.running.remove(&model);
        self.table.end_use(&model);
        self.ask_turn(model);
        self.run(work, next);
        self.begin_loads(work, now, next);
    }

    /// Whether its next digest would say anything new.
    pub(super) fn has_news(&self) -> bool {
        self.is_new || self.draining || !self.changed.is_empty()
    }

    /// What it tells the picker: all at first, then what changed.
    pub(super) fn digest(&mut self, work: &Work) -> Digest<usize> {
        let changed = std::mem::take(&mut self.changed);
        let row = |model: usize| Row {
            model,
            held: match (self.waiting.contains_key(&model), self.table.get(&model)) {
                (true, _) => Held::Loading,
                (false, Some(_)) => Held::Ready,
                (false, None) => Held::Gone,
            },
            // There is one picker, which knows those itself.
            in_use: 0,
            parallel: 1,
            load_seconds: work.models[model].seconds,
            uses: self.uses.get(&model).copied().unwrap_or(0),
        };
        let mut rows: Vec<_> = changed.into_iter().map(row).collect();
        // Sets have no order, and the same seed is to give the same figures.
        rows.sort_unstable_by_key(|row| row.model);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Digest {
            complete: std::mem::take(&mut self.is_new),
            draining: self.draining,
            loads: count(self.loading + self.to_load.len()),
            rows,
            ..Digest::idle(count(self.load_places), count(self.executors))
        }
    }
}

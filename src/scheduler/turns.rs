//! Whose turn it is: fair shares of a device's time between models, in proportion to their weights, after start-time
//! fair queueing (Goyal, Vin, Cheng 1996).
//!
//! Each model has a virtual time, which grows with the time its turns take over its weight; the one that is furthest
//! behind goes next. A model that was idle begins where the clock stands, so that it neither goes without nor catches up
//! on what it did not ask for. So a model with many requests waits behind one with a single, after the turn that runs.
//!
//! How long a turn takes is known when it ends. Until then it counts as long as those before it, and so do turns of the same
//! model that stand in line: or all that a model has instances for would begin at one time, before anybody who comes then.
//!
//! Turns that name resources (Triton's rate limiter) wait until there are enough of them, and others go past.
//!
//! Pure but for the counters that devices share: no clock, no thread.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::inference::DeviceId;

/// A resource that instances take while they run: by name, for one device or for all together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceName {
    /// Its name in `rate_limiter`.
    pub name: String,
    /// The device whose it is; `None` for one that all devices share.
    pub device: Option<DeviceId>,
}

/// How much there is of each resource, on all devices. One lock, held for a comparison.
///
/// What is not given is as much as the largest need of any instance there was, as in Triton: enough for each, and for one
/// at a time of those.
#[derive(Debug, Default)]
pub struct Resources {
    stocks: Mutex<BTreeMap<ResourceName, Stock>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stock {
    total: u64,
    taken: u64,
    /// Whether its total was given, and does not grow.
    is_given: bool,
}

impl Resources {
    /// So much of each resource.
    #[must_use]
    pub fn of(amounts: impl IntoIterator<Item = (ResourceName, u64)>) -> Self {
        let stock = |(name, total)| (name, Stock { total, taken: 0, is_given: true });
        Self { stocks: Mutex::new(amounts.into_iter().map(stock).collect()) }
    }

    /// Sees to it that there is enough for one that needs `needs`.
    ///
    /// # Errors
    /// `InvalidArgument` where more is needed than was given, naming both.
    pub fn admit(&self, needs: &[(ResourceName, u64)]) -> Result<()> {
        let mut stocks = self.stocks.lock();
        for (name, need) in needs {
            let stock = stocks.entry(name.clone()).or_default();
            if stock.is_given && stock.total < *need {
                return Err(Error::invalid(format!(
                    "instance_group: rate_limiter asks for {need} of resource '{}', of which there are {} \
                     (--rate-limit-resource)",
                    name.name, stock.total
                )));
            }
            stock.total = stock.total.max(*need);
        }
        Ok(())
    }

    fn take(&self, needs: &[(ResourceName, u64)]) -> bool {
        if needs.is_empty() {
            return true;
        }
        let mut stocks = self.stocks.lock();
        let is_there = |(name, count): &(ResourceName, u64)| {
            stocks.get(name).is_some_and(|stock| stock.total.saturating_sub(stock.taken) >= *count)
        };
        let enough = needs.iter().all(is_there);
        if enough {
            for (name, count) in needs {
                if let Some(stock) = stocks.get_mut(name) {
                    stock.taken += count;
                }
            }
        }
        enough
    }

    fn give_back(&self, needs: &[(ResourceName, u64)]) {
        let mut stocks = self.stocks.lock();
        for (name, count) in needs {
            if let Some(stock) = stocks.get_mut(name) {
                stock.taken = stock.taken.saturating_sub(*count);
            }
        }
    }
}

/// A model's part of a device's time.
#[derive(Debug)]
pub struct Share {
    /// Virtual nanoseconds.
    behind: AtomicU64,
    /// What a turn takes, in virtual nanoseconds, from the last ones. Like the others, changed under the lock of one device.
    expected: AtomicU64,
    /// Its turns that stand in line.
    standing: AtomicU64,
    /// Its turns count so many times over: 1 is an ordinary share, 2 half of one.
    cost: u32,
    /// What a turn needs.
    needs: Vec<(ResourceName, u64)>,
}

impl Default for Share {
    fn default() -> Self {
        Self::new(1, Vec::new())
    }
}

impl Share {
    /// A share of one `cost`th of an ordinary one, whose turns need resources.
    #[must_use]
    pub fn new(cost: u32, needs: Vec<(ResourceName, u64)>) -> Self {
        Self {
            behind: AtomicU64::new(0),
            expected: AtomicU64::new(0),
            standing: AtomicU64::new(0),
            cost: cost.max(1),
            needs,
        }
    }

    /// Whether its turns take no resources.
    #[must_use]
    pub const fn needs_nothing(&self) -> bool {
        self.needs.is_empty()
    }
}

/// A turn that is under way, and what it was counted as.
pub(super) struct Held {
    share: Arc<Share>,
    charged: u64,
}

impl Deref for Held {
    type Target = Arc<Share>;

    fn deref(&self) -> &Arc<Share> {
        &self.share
    }
}

/// What a thread is to do.
pub(super) enum Next<E, L> {
    /// This turn, and whose share it is of.
    Turn(E, Held),
    /// Look at this one again.
    Reminder(L),
    /// Nothing until then, or until something comes.
    Wait(Option<Instant>),
}

struct Reminder<L> {
    at: Instant,
    number: u64,
    later: L,
}

impl<L> PartialEq for Reminder<L> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl<L> Eq for Reminder<L> {}

impl<L> PartialOrd for Reminder<L> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<L> Ord for Reminder<L> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// A device's line.
pub(super) struct Turns<E, L> {
    resources: Arc<Resources>,
    /// By virtual start, then by arrival.
    line: BTreeMap<(u64, u64), (E, Arc<Share>)>,
    reminders: BinaryHeap<Reverse<Reminder<L>>>,
    /// The virtual start of the turn that began last.
    clock: u64,
    number: u64,
}

impl<E, L> Turns<E, L> {
    pub(super) fn new(resources: Arc<Resources>) -> Self {
        Self { resources, line: BTreeMap::new(), reminders: BinaryHeap::new(), clock: 0, number: 0 }
    }

    /// Stands in line.
    pub(super) fn enter(&mut self, entry: E, share: &Arc<Share>) {
        let before = share.standing.fetch_add(1, Ordering::Relaxed) * share.expected.load(Ordering::Relaxed);
        let start = share.behind.load(Ordering::Relaxed).max(self.clock).saturating_add(before);
        self.number += 1;
        self.line.insert((start, self.number), (entry, Arc::clone(share)));
    }

    /// Asks to be reminded at `at`; whether that is sooner than anything else.
    pub(super) fn remind(&mut self, later: L, at: Instant) -> bool {
        let sooner = self.reminders.peek().is_none_or(|Reverse(first)| at < first.at);
        self.number += 1;
        self.reminders.push(Reverse(Reminder { at, number: self.number, later }));
        sooner
    }

    /// What to do at `now`; a turn that is given out holds its resources.
    pub(super) fn next(&mut self, now: Instant) -> Next<E, L> {
        if self.reminders.peek().is_some_and(|Reverse(first)| first.at <= now)
            && let Some(Reverse(reminder)) = self.reminders.pop()
        {
            return Next::Reminder(reminder.later);
        }
        let resources = &self.resources;
        let found = self.line.iter().find(|(_, (_, share))| resources.take(&share.needs)).map(|(key, _)| *key);
        if let Some(key) = found
            && let Some((entry, share)) = self.line.remove(&key)
        {
            self.clock = self.clock.max(key.0);
            share.standing.fetch_sub(1, Ordering::Relaxed);
            return Next::Turn(entry, begin(share, key.0));
        }
        Next::Wait(self.reminders.peek().map(|Reverse(first)| first.at))
    }

    /// A turn out of line, if there is what it needs.
    pub(super) fn hold(&self, share: &Arc<Share>) -> Option<Held> {
        self.resources.take(&share.needs).then(|| begin(Arc::clone(share), self.clock))
    }

    /// A turn took `ran`; whether something it held is free again.
    pub(super) fn leave(&mut self, held: &Held, ran: Duration) -> bool {
        let Held { share, charged } = held;
        let ran = u64::try_from(ran.as_nanos()).unwrap_or(u64::MAX).saturating_mul(u64::from(share.cost)).max(1);
        let behind = share.behind.load(Ordering::Relaxed);
        share.behind.store(behind.saturating_add(ran).saturating_sub(*charged), Ordering::Relaxed);
        let expected = share.expected.load(Ordering::Relaxed);
        share.expected.store(if expected == 0 { ran } else { expected.midpoint(ran) }, Ordering::Relaxed);
        if share.needs.is_empty() {
            return false;
        }
        self.resources.give_back(&share.needs);
        true
    }
}

/// A turn that began at `start`, in virtual nanoseconds.
fn begin(share: Arc<Share>, start: u64) -> Held {
    let charged = share.expected.load(Ordering::Relaxed);
    let behind = share.behind.load(Ordering::Relaxed).max(start);
    share.behind.store(behind.saturating_add(charged), Ordering::Relaxed);
    Held { share, charged }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Line = Turns<&'static str, &'static str>;

    fn line() -> Line {
        Turns::new(Arc::default())
    }

    fn take(line: &mut Line, now: Instant) -> Option<(&'static str, Held)> {
        match line.next(now) {
            Next::Turn(entry, share) => Some((entry, share)),
            Next::Reminder(_) | Next::Wait(_) => None,
        }
    }

    #[test]
    fn a_model_with_one_request_goes_before_the_second_of_a_model_with_many() {
        let (mut line, now) = (line(), Instant::now());
        let (many, single) = (Arc::default(), Arc::default());
        line.enter("many", &many);
        let (first, share) = take(&mut line, now).unwrap();
        assert_eq!(first, "many");
        line.enter("single", &single);
        line.leave(&share, Duration::from_millis(5));
        line.enter("many", &many);
        assert_eq!(take(&mut line, now).unwrap().0, "single");
    }

    #[test]
    fn time_is_shared_by_weight_however_long_the_turns_are() {
        let (mut line, now) = (line(), Instant::now());
        let shares = [("long", 1, 10), ("short", 1, 1), ("half", 2, 1)]
            .map(|(name, cost, ms)| (name, Arc::new(Share::new(cost, Vec::new())), Duration::from_millis(ms)));
        for (name, share, _) in &shares {
            line.enter(name, share);
        }
        let mut time = BTreeMap::new();
        for _ in 0..2000 {
            let (name, share) = take(&mut line, now).unwrap();
            let ran = shares.iter().find(|(other, _, _)| *other == name).unwrap().2;
            *time.entry(name).or_insert(Duration::ZERO) += ran;
            line.leave(&share, ran);
            line.enter(name, &share);
        }
        let ratio = |one: &str, other: &str| time[one].as_secs_f64() / time[other].as_secs_f64();
        assert!((ratio("long", "short") - 1.0).abs() < 0.05, "{time:?}");
        assert!((ratio("short", "half") - 2.0).abs() < 0.05, "{time:?}");
    }

    #[test]
    fn who_was_idle_does_not_catch_up_on_the_time_it_did_not_ask_for() {
        let (mut line, now) = (line(), Instant::now());
        let (busy, idle) = (Arc::default(), Arc::default());
        for _ in 0..100 {
            line.enter("busy", &busy);
            let (_, share) = take(&mut line, now).unwrap();
            line.leave(&share, Duration::from_millis(1));
        }
        let mut order = Vec::new();
        line.enter("busy", &busy);
        line.enter("idle", &idle);
        for _ in 0..6 {
            let (name, share) = take(&mut line, now).unwrap();
            order.push(name);
            line.leave(&share, Duration::from_millis(1));
            line.enter(name, &share);
        }
        assert_eq!(order.iter().filter(|name| **name == "busy").count(), 3, "{order:?}");
    }

    #[test]
    fn a_turn_without_its_resources_waits_and_others_go_past_it() {
        let name = |name: &str| ResourceName { name: name.to_owned(), device: None };
        let resources = Arc::new(Resources::of([(name("r"), 1)]));
        let (mut line, now): (Line, _) = (Turns::new(resources), Instant::now());
        let needy = Arc::new(Share::new(1, vec![(name("r"), 1)]));
        let plain = Arc::default();
        line.enter("needy", &needy);
        line.enter("needy", &needy);
        line.enter("plain", &plain);
        let (first, held) = take(&mut line, now).unwrap();
        assert_eq!(first, "needy");
        assert_eq!(take(&mut line, now).unwrap().0, "plain");
        assert!(take(&mut line, now).is_none());
        assert!(line.leave(&held, Duration::from_millis(1)));
        assert_eq!(take(&mut line, now).unwrap().0, "needy");
    }

    #[test]
    fn what_is_not_given_is_as_much_as_the_largest_need_and_what_is_given_must_be_enough() {
        let name = |name: &str| ResourceName { name: name.to_owned(), device: Some(DeviceId::Cpu) };
        let resources = Resources::of([(name("given"), 2)]);
        resources.admit(&[(name("grown"), 3)]).unwrap();
        resources.admit(&[(name("grown"), 1), (name("given"), 2)]).unwrap();
        assert!(resources.take(&[(name("grown"), 3)]));
        assert!(!resources.take(&[(name("grown"), 1)]));
        resources.give_back(&[(name("grown"), 3)]);
        assert!(resources.take(&[(name("grown"), 1)]));
        let error = resources.admit(&[(name("given"), 3)]).unwrap_err().to_string();
        assert!(error.contains("asks for 3 of resource 'given', of which there are 2"), "{error}");
    }

    #[test]
    fn reminders_come_when_they_are_due_and_in_order() {
        let (mut line, now) = (line(), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        assert!(line.remind("second", at(20)));
        assert!(line.remind("first", at(10)));
        assert!(!line.remind("third", at(30)));
        assert!(matches!(line.next(now), Next::Wait(Some(until)) if until == at(10)));
        assert!(matches!(line.next(at(25)), Next::Reminder("first")));
        assert!(matches!(line.next(at(25)), Next::Reminder("second")));
        assert!(matches!(line.next(at(25)), Next::Wait(Some(until)) if until == at(30)));
    }

    /// How long each request of one model takes, in turns, on so many threads: beside another model that always has work
    /// for all its instances, or alone. Requests come at these times, every turn takes one.
    fn times_beside(busy: usize, threads: usize, arrivals: &[u64]) -> Vec<u64> {
        const TURN: u64 = 1_000;
        let now = Instant::now();
        let (mut line, hot, cold) = (line(), Arc::default(), Arc::default());
        // It has run before: how long it takes is known.
        line.enter("hot", &hot);
        let (_, held) = take(&mut line, now).unwrap();
        line.leave(&held, Duration::from_nanos(TURN));
        (0..busy).for_each(|_| line.enter("hot", &hot));
        let mut running: Vec<(u64, &str, Held)> = Vec::new();
        let (mut arrivals, mut waiting, mut times) =
            (arrivals.iter().peekable(), std::collections::VecDeque::new(), Vec::new());
        let mut begun = std::collections::VecDeque::new();
        let mut clock = 0;
        while arrivals.peek().is_some() || !waiting.is_empty() || !begun.is_empty() {
            while arrivals.peek().is_some_and(|at| **at <= clock) {
                waiting.push_back(*arrivals.next().unwrap());
                line.enter("cold", &cold);
            }
            while running.len() < threads
                && let Some((name, share)) = take(&mut line, now)
            {
                if name == "cold" {
                    begun.push_back(waiting.pop_front().unwrap());
                }
                running.push((clock + TURN, name, share));
            }
            let ends = running.iter().map(|(end, _, _)| *end).chain(arrivals.peek().map(|at| **at)).min();
            let Some(next) = ends else { break };
            clock = clock.max(next);
            let (ended, rest): (Vec<_>, Vec<_>) = running.into_iter().partition(|(end, _, _)| *end <= clock);
            running = rest;
            for (_, name, share) in ended {
                line.leave(&share, Duration::from_nanos(TURN));
                match name {
                    "hot" => line.enter("hot", &hot),
                    _ => times.push(clock - begun.pop_front().unwrap()),
                }
            }
        }
        times.into_iter().map(|time| time.div_ceil(TURN)).collect()
    }

    proptest::proptest! {
        /// A model that asks for no more than its part of the device waits for at most the turn that runs, however much
        /// another asks for: two turns where it would take one.
        #[test]
        fn a_hot_model_costs_a_cold_one_at_most_the_turn_that_runs(
            threads in 1_usize..4,
            busy in 10_usize..40,
            gaps in proptest::collection::vec(2_000_u64..9_000, 1..60),
        ) {
            let arrivals: Vec<u64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
            let alone = times_beside(0, threads, &arrivals);
            proptest::prop_assert!(alone.iter().all(|turns| *turns == 1));
            let beside = times_beside(busy, threads, &arrivals);
            proptest::prop_assert_eq!(beside.len(), arrivals.len());
            proptest::prop_assert!(beside.iter().all(|turns| *turns <= 2), "{:?}", beside);
        }
    }
}

//! When a model is worth another copy on another device, and when no longer. Pure.
//!
//! Both sides are in one unit, seconds of waiting. What requests wait in the queue of a model whose instances are all busy
//! adds up: with `n` of them waiting, `n` seconds a second, which is what each expects to wait (the work ahead over the
//! throughput of the copies there are) times how many come. A copy costs the seconds that its load takes, and those that
//! models which leave for it are expected to take when they come back. It is opened once as much has been waited as it
//! costs: whoever has waited that long would have been better off with it, and whoever stops asking then has lost no more
//! than twice what could not be helped. What was waited is forgotten in time, so that short queues now and then never add up
//! to a copy.
//!
//! It goes when, for a long while, nobody waited and the others would have had time to spare for its work. Between both lies
//! so much that the two cannot take turns: a copy that went has to be paid for again, from nothing.

use std::time::{Duration, Instant};

/// How long it takes until two thirds of what was waited are forgotten.
pub const MEMORY: Duration = Duration::from_secs(10);

/// The least that a copy costs, in seconds: less is not told from chance by a look a second.
pub const LEAST_COST: f64 = 2.0;

/// The least time without need after which a copy goes.
pub const REST: Duration = Duration::from_secs(60);

/// The same as a multiple of what another load would cost.
pub const REST_LOADS: f64 = 20.0;

/// How busy the instances of the others may be for it to go.
pub const SPARE: f64 = 0.5;

/// The longest that is taken for one look: what nobody watched nobody knows.
const MOST_BETWEEN: Duration = Duration::from_secs(5);

/// What is seen of a model at one look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seen {
    /// Requests that wait although all instances are busy.
    pub waiting: usize,
    /// Instances that were busy since the last look, on average.
    pub busy: f64,
    /// Instances that it would have without one of the copies that were added.
    pub others: usize,
    /// Copies that were added.
    pub extra: usize,
    /// What the cheapest copy more would cost, in seconds of waiting; `None` where there is no place for one.
    pub cost: Option<f64>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Nothing.
    Stay,
    /// A copy more.
    Add,
    /// One of the added ones is to go.
    Remove,
}

/// What is remembered of a model that waits, or has copies more than it was placed with.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    seen: Instant,
    /// Seconds that requests waited, less what is forgotten.
    waited: f64,
    /// Since when it has more copies than it takes.
    resting: Option<Instant>,
}

impl Watch {
    /// Nothing was waited yet.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { seen: now, waited: 0.0, resting: None }
    }

    /// Seconds that requests waited lately.
    #[must_use]
    pub const fn waited(&self) -> f64 {
        self.waited
    }

    /// Whether there is nothing to remember.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.waited < 0.01 && self.resting.is_none()
    }

    /// A copy is begun: what was waited is what it cost.
    pub const fn pay(&mut self) {
        self.waited = 0.0;
    }

    /// Takes a look into account, and decides.
    #[expect(clippy::cast_precision_loss, reason = "counts of instances and requests")]
    pub fn look(&mut self, now: Instant, seen: &Seen) -> Choice {
        let since = now.saturating_duration_since(self.seen).min(MOST_BETWEEN).as_secs_f64();
        self.seen = self.seen.max(now);
        self.waited = self.waited.mul_add((-since / MEMORY.as_secs_f64()).exp(), seen.waiting as f64 * since);
        let is_rest = seen.extra > 0 && seen.waiting == 0 && seen.busy <= SPARE * seen.others as f64;
        self.resting = if is_rest { Some(self.resting.unwrap_or(now)) } else { None };
        if let Some(cost) = seen.cost
            && seen.waiting > 0
            && self.waited >= cost.max(LEAST_COST)
        {
            return Choice::Add;
        }
        let rest = REST.max(Duration::try_from_secs_f64(seen.cost.unwrap_or(0.0) * REST_LOADS).unwrap_or(REST));
        if self.resting.is_some_and(|since| now.saturating_duration_since(since) >= rest) {
            self.resting = None;
            return Choice::Remove;
        }
        Choice::Stay
    }
}

/// A model that would leave for a copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leaver {
    /// Seconds that bringing it back takes.
    pub seconds: f64,
    /// How long it has not been asked for.
    pub idle: Duration,
}

/// What a copy costs on a device, in seconds of waiting: its load, and the loads of those that leave for it, each by how
/// likely it is to be asked for again as soon as a copy has to pay. `None` where one of them has been asked for so lately that
/// its place is its own.
#[must_use]
pub fn cost(load: f64, leavers: &[Leaver]) -> Option<f64> {
    leavers.iter().try_fold(load, |sum, leaver| {
        let again = MEMORY.as_secs_f64() / leaver.idle.as_secs_f64().max(f64::EPSILON);
        (again < 1.0).then(|| leaver.seconds.mul_add(again, sum))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_secs(1);

    fn seen(waiting: usize, cost: Option<f64>) -> Seen {
        Seen { waiting, busy: 1.0, others: 1, extra: 0, cost }
    }

    /// The look at which it is opened, a second apart, of at most a thousand.
    fn opened(waiting: usize, cost: f64) -> Option<usize> {
        let mut now = Instant::now();
        let mut watch = Watch::new(now);
        (1..1_000).find(|_| {
            now += TICK;
            watch.look(now, &seen(waiting, Some(cost))) == Choice::Add
        })
    }

    #[test]
    fn a_copy_is_opened_when_as_much_was_waited_as_it_costs() {
        assert_eq!(opened(10, 10.0), Some(1));
        assert_eq!(opened(10, 18.0), Some(2));
        assert_eq!(opened(1, 5.0), Some(7));
        assert_eq!(opened(1, 20.0), None, "one that waits now and then is forgotten sooner than a load takes");
        assert_eq!(opened(1, 0.001), Some(3), "a blip opens none, however cheap");
        assert_eq!(opened(0, 0.0), None);
    }

    #[test]
    fn a_copy_goes_after_a_long_rest_only_and_a_queue_begins_it_anew() {
        let mut now = Instant::now();
        let mut watch = Watch::new(now);
        let idle = Seen { waiting: 0, busy: 0.4, others: 1, extra: 1, cost: Some(1.0) };
        let look = |watch: &mut Watch, seconds: u64, seen: &Seen, now: &mut Instant| {
            (0..seconds)
                .map(|_| {
                    *now += TICK;
                    watch.look(*now, seen)
                })
                .filter(|choice| *choice == Choice::Remove)
                .count()
        };
        assert_eq!(look(&mut watch, 59, &idle, &mut now), 0);
        assert_eq!(look(&mut watch, 1, &Seen { waiting: 1, ..idle }, &mut now), 0);
        assert_eq!(look(&mut watch, 60, &idle, &mut now), 0);
        assert_eq!(look(&mut watch, 1, &idle, &mut now), 1);
        assert_eq!(look(&mut watch, 200, &Seen { busy: 0.6, ..idle }, &mut now), 0, "the others have no time to spare");
        assert_eq!(look(&mut watch, 200, &Seen { extra: 0, ..idle }, &mut now), 0, "what was placed stays");
        assert_eq!(look(&mut watch, 100, &Seen { cost: Some(10.0), ..idle }, &mut now), 0, "dear ones stay for longer");
    }

    #[test]
    fn models_that_leave_count_by_how_likely_they_come_back_and_busy_ones_do_not_leave() {
        let leaver = |seconds, idle| Leaver { seconds, idle: Duration::from_secs(idle) };
        assert_eq!(cost(2.0, &[]), Some(2.0));
        let sum = cost(2.0, &[leaver(4.0, 20), leaver(10.0, 1_000)]).unwrap();
        assert!((sum - 4.1).abs() < 1e-9, "{sum}");
        assert_eq!(cost(2.0, &[leaver(0.1, 10)]), None);
        assert_eq!(cost(2.0, &[leaver(4.0, 2_000), leaver(0.0, 0)]), None);
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        (0_usize..6, 0.0..4.0, 1_usize..4, 0_usize..3, prop::option::of(0.0..30.0))
            .prop_map(|(waiting, busy, others, extra, cost)| Seen { waiting, busy, others, extra, cost })
    }

    proptest! {
        /// Whatever happens, every copy was paid for by waiting before it came, none comes where there is no place or
        /// nobody waits, and none goes but after a rest without a queue.
        #[test]
        fn copies_are_paid_for_and_go_after_a_rest(looks in prop::collection::vec((any_seen(), 0_u64..8_000), 1..300)) {
            let mut now = Instant::now();
            let mut watch = Watch::new(now);
            let (mut waited, mut paid) = (0.0, 0.0);
            let mut quiet_since = None;
            for (seen, millis) in looks {
                now += Duration::from_millis(millis);
                waited += seen.waiting as f64 * (millis as f64 / 1e3);
                let is_quiet = seen.waiting == 0 && seen.extra > 0;
                quiet_since = if is_quiet { Some(quiet_since.unwrap_or(now)) } else { None };
                match watch.look(now, &seen) {
                    Choice::Stay => {}
                    Choice::Add => {
                        prop_assert!(seen.waiting > 0);
                        paid += seen.cost.unwrap().max(LEAST_COST);
                        watch.pay();
                        prop_assert!(waited >= paid - 1e-6, "{waited} waited, {paid} paid");
                    }
                    Choice::Remove => {
                        prop_assert!(quiet_since.is_some_and(|since| now - since >= REST));
                        quiet_since = None;
                    }
                }
            }
        }

        /// More that waits opens no later, more that it costs no sooner.
        #[test]
        fn the_choice_is_monotone(waiting in 1_usize..20, cost in 0.0..100.0) {
            let at = |waiting, cost| opened(waiting, cost).unwrap_or(usize::MAX);
            prop_assert!(at(waiting + 1, cost) <= at(waiting, cost));
            prop_assert!(at(waiting, cost + 1.0) >= at(waiting, cost));
        }
    }
}

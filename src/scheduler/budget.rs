//! A delay that is learned: how long a batch should wait for more, so that answers come within a budget from their
//! requests' arrival, and as early as they can on average.
//!
//! Two things are learned. How long a batch of each size runs (`RunTimes`), from which follows what is saved if one more
//! request joins a batch that waits, in place of waiting for its end: `run(n) + run(1) - run(n + 1)`, a model's fixed cost,
//! which is nothing if the time is linear in the size; and what it costs the others, whose run is longer by it. And how
//! long it is until the next request comes, given how long it was to the last one (`Gaps`): short gaps follow each other
//! within a burst. The delay is the one that, on the average of what was seen, saves most: the next request's saving if it
//! comes in time, less the wait of all that are there.
//!
//! A constant delay has to be as long as a burst and is paid by each lone request; this one ends soon after the last of a
//! burst.

use std::time::{Duration, Instant};

/// Batch sizes share a bucket with those of the same power of two.
const SIZES: usize = 32;
/// The weight of a new time in the mean of its bucket, once there are a few.
const NEWEST: f64 = 1.0 / 8.0;
/// A saving of less than this part of the run is noise.
const WORTH_IT: f64 = 0.05;

/// Learns a model's times and picks the delay of its batches. Same observations, same delays.
#[derive(Clone, Debug)]
pub struct Budget {
    budget: Duration,
    max_items: u32,
    runs: RunTimes,
    gaps: Gaps,
    last_arrival: Option<Instant>,
    /// The part of a run that a request loses by not joining.
    share: f64,
    /// Items of a request, on average.
    items: Mean,
}

impl Budget {
    /// A budget from arrival to answer, for batches of at most `max_items`.
    #[must_use]
    pub fn new(budget: Duration, max_items: u32) -> Self {
        Self {
            budget,
            max_items,
            runs: RunTimes::default(),
            gaps: Gaps::default(),
            last_arrival: None,
            share: 1.0,
            items: Mean::default(),
        }
    }

    /// How many batches can run at a time; one, unless said. With more, a request that does not join has a shorter wait
    /// for the next instance, though not by as much as there are more: it takes that instance from those behind it. The
    /// part is the chance that of two requests one finds every instance busy, where each is with equal chance the next
    /// to be free; `benches/batching.rs` shows how it does.
    pub fn set_instances(&mut self, instances: usize) {
        let others = 1.0 - 1.0 / instances.max(1) as f64;
        self.share = 1.0 - others * others;
    }

    /// A batch of so many items ran for so long, gathering and splitting included.
    pub fn observe_run(&mut self, items: u32, run: Duration) {
        self.runs.add(items, run.as_secs_f64());
    }

    /// A request of so many items came in.
    pub fn observe_arrival(&mut self, now: Instant, items: u32) {
        if let Some(last) = self.last_arrival {
            self.gaps.add(now.saturating_duration_since(last));
        }
        self.last_arrival = Some(self.last_arrival.map_or(now, |last| last.max(now)));
        self.items.add(f64::from(items.max(1)));
    }

    /// How long, from `oldest_queued` on, a batch may wait for more than the `waiting_items` there are. The time may be
    /// over already. It is asked for anew after each arrival.
    #[must_use]
    pub fn delay(&self, now: Instant, waiting_items: u64, oldest_queued: Instant) -> Duration {
        let Some(last) = self.last_arrival else { return Duration::ZERO };
        let joining = self.items.get().max(1.0);
        let waiting = waiting_items as f64;
        let together = waiting + joining;
        if waiting_items == 0 || together > f64::from(self.max_items) {
            return Duration::ZERO;
        }
        let Some((saving, longer)) = self.runs.joined(waiting, joining) else { return Duration::ZERO };
        // Until when the batch must have begun, with the one that joins.
        let Some(slack) = self.runs.at_most(together).and_then(|run| self.budget.checked_sub(run)) else {
            return Duration::ZERO;
        };
        let elapsed = now.saturating_duration_since(last);
        let requests = waiting / joining;
        let wait = self.gaps.best_wait(elapsed, saving * self.share - longer * requests, requests);
        let until = last + wait;
        until.saturating_duration_since(oldest_queued).min(slack)
    }
}

/// A mean that follows changes.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    value: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.weight += 1.0;
        self.value += (value - self.value) * (1.0 / self.weight).max(NEWEST);
    }

    const fn get(self) -> f64 {
        self.value
    }

    fn is_known(self) -> bool {
        self.weight > 0.0
    }
}

/// Times of batches of about one size.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    items: Mean,
    seconds: Mean,
    /// The longest of late: a longer one counts at once, and is forgotten slowly.
    longest: f64,
}

/// How long batches run, by their size.
#[derive(Clone, Debug, Default)]
struct RunTimes {
    sizes: [Size; SIZES],
}

impl RunTimes {
    fn add(&mut self, items: u32, seconds: f64) {
        let items = items.max(1);
        if let Some(size) = self.sizes.get_mut(items.ilog2() as usize) {
            size.items.add(f64::from(items));
            size.seconds.add(seconds);
            size.longest = seconds.max(size.longest + (seconds - size.longest) * NEWEST);
        }
    }

    /// What is saved, in seconds, by running `joining` items with `waiting` ones in place of after them, and by how much
    /// that is longer than running the waiting ones alone. Where no batch was as large yet, it is hoped that one takes no
    /// longer, which the first will tell.
    fn joined(&self, waiting: f64, joining: f64) -> Option<(f64, f64)> {
        let (alone, together) = (self.expected(waiting)?, self.expected(waiting + joining)?);
        let saving = alone + self.expected(joining)? - together;
        (saving > together * WORTH_IT).then_some((saving, together - alone))
    }

    /// The mean time of a size: between those of the known sizes around it, and no less than that of a smaller one.
    fn expected(&self, items: f64) -> Option<f64> {
        let mut below: Option<(f64, f64)> = None;
        for size in self.sizes.iter().filter(|size| size.seconds.is_known()) {
            let at = size.items.get();
            let seconds = below.map_or(size.seconds.get(), |(_, least)| size.seconds.get().max(least));
            if at >= items {
                return Some(match below {
                    Some((from, least)) => least + (seconds - least) * (items - from) / (at - from),
                    // Nothing smaller is known: no saving is seen where there may be none.
                    None => seconds * items / at,
                });
            }
            below = Some((at, seconds));
        }
        below.map(|(_, seconds)| seconds)
    }

    /// A time within which a size should be done: the longest of late of its size or smaller ones; of a larger one than
    /// was seen, as if time were linear.
    fn at_most(&self, items: f64) -> Option<Duration> {
        let mut longest = 0.0_f64;
        let mut from = 0.0_f64;
        for size in self.sizes.iter().filter(|size| size.seconds.is_known()) {
            longest = longest.max(size.longest);
            from = size.items.get();
            if from >= items {
                break;
            }
        }
        let seconds = if from >= items || from == 0.0 { longest } else { longest * items / from };
        Duration::try_from_secs_f64(seconds).ok().filter(|run| !run.is_zero())
    }
}

/// Gaps are counted in steps of the square root of two, from a microsecond to about a second.
const STEPS: usize = 42;
/// A gap's class is four octaves wide.
const CLASS: usize = 8;
const CLASSES: usize = STEPS / CLASS + 1;
/// So many gaps of a class are remembered with their full weight.
const MEMORY: f32 = 256.0;

/// How long it was from one arrival to the next, by the class of the gap before that.
#[derive(Clone, Debug)]
struct Gaps {
    counts: [[f32; STEPS]; CLASSES],
    /// The class of the last gap.
    class: usize,
}

impl Default for Gaps {
    fn default() -> Self {
        // Before anything was seen, nothing is expected.
        Self { counts: [[0.0; STEPS]; CLASSES], class: CLASSES - 1 }
    }
}

impl Gaps {
    fn add(&mut self, gap: Duration) {
        let step = step_of(gap);
        if let Some(counts) = self.counts.get_mut(self.class) {
            if counts.iter().sum::<f32>() >= MEMORY {
                counts.iter_mut().for_each(|count| *count *= 0.5);
            }
            if let Some(count) = counts.get_mut(step) {
                *count += 1.0;
            }
        }
        self.class = step / CLASS;
    }

    /// How long after the last arrival to wait for the next, of which `elapsed` is over: as long as, on average, is best
    /// for `waiting` requests that wait and for the next, which saves `saving` seconds, less its own wait, if it comes
    /// before the end. The time that is over if that is not to wait any more.
    fn best_wait(&self, elapsed: Duration, saving: f64, waiting: f64) -> Duration {
        let over = elapsed.as_secs_f64();
        let Some(counts) = self.counts.get(self.class) else { return elapsed };
        // Gaps longer than what is over, from the shortest up. A wait ends at the end of a step.
        let step = |index: usize| (seconds_of(index), seconds_of(index + 1));
        let ahead = |index: usize| step(index).1 > over;
        let mut left: f64 =
            counts.iter().enumerate().filter(|(index, _)| ahead(*index)).map(|(_, n)| f64::from(*n)).sum();
        let (mut gain, mut best, mut best_until) = (0.0, 0.0, None);
        for (index, count) in counts.iter().enumerate().filter(|(index, _)| ahead(*index)) {
            let count = f64::from(*count);
            let (begin, end) = step(index);
            let (begin, middle) = (begin.max(over), f64::midpoint(begin.max(over), end));
            // Those that come in this step save, and end the wait, in its middle; the others wait it out.
            gain += count * (saving - (middle - over) - waiting * (middle - begin));
            left -= count;
            gain -= left * waiting * (end - begin);
            if gain > best {
                (best, best_until) = (gain, Some(end));
            }
        }
        best_until.and_then(|until| Duration::try_from_secs_f64(until).ok()).unwrap_or(elapsed)
    }
}

/// Two steps an octave; the first ends at a microsecond, the last has no end.
fn step_of(gap: Duration) -> usize {
    let squared = gap.as_micros().saturating_mul(gap.as_micros()).max(1);
    (squared.ilog2() as usize + usize::from(!gap.is_zero())).min(STEPS - 1)
}

/// Where a step begins, in seconds.
fn seconds_of(step: usize) -> f64 {
    match step {
        0 => 0.0,
        _ => ((step - 1) as f64 / 2.0).exp2() * 1e-6,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const US: Duration = Duration::from_micros(1);

    /// A budget that saw runs of all sizes up to 16, and bursts of requests 100 microseconds apart, with 50 ms between
    /// two bursts; and when the last request came, the first of a new burst.
    fn learned(budget: Duration, run: impl Fn(u32) -> Duration) -> (Budget, Instant) {
        let mut learned = Budget::new(budget, 16);
        for items in 1..=16 {
            (0..8).for_each(|_| learned.observe_run(items, run(items)));
        }
        let mut now = Instant::now();
        for _ in 0..20 {
            for _ in 0..10 {
                now += US * 100;
                learned.observe_arrival(now, 1);
            }
            now += MS * 50;
            learned.observe_arrival(now, 1);
        }
        (learned, now)
    }

    #[test]
    fn a_batch_waits_while_the_next_request_of_a_burst_may_come_and_no_longer() {
        let (mut learned, now) = learned(MS * 20, |_| MS * 5);
        let first = learned.delay(now, 1, now);
        assert!((US * 100..US * 200).contains(&first), "{first:?}");
        assert_eq!(learned.delay(now + first, 1, now), first, "asked at its end it says the same");
        let second = now + US * 100;
        learned.observe_arrival(second, 1);
        let both = learned.delay(second, 2, now);
        assert!((US * 200..US * 300).contains(&both), "{both:?}");
    }

    #[test]
    fn nothing_is_known_at_first_so_nothing_waits() {
        let mut budget = Budget::new(MS * 20, 16);
        let now = Instant::now();
        assert_eq!(budget.delay(now, 1, now), Duration::ZERO);
        budget.observe_arrival(now, 1);
        assert_eq!(budget.delay(now, 1, now), Duration::ZERO);
    }

    #[test]
    fn a_run_time_that_is_linear_in_the_size_is_never_waited_for() {
        let (learned, now) = learned(MS * 1000, |items| MS * items);
        for waiting in 1..16 {
            assert_eq!(learned.delay(now, waiting, now), Duration::ZERO);
        }
    }

    #[test]
    fn requests_that_come_far_apart_are_not_waited_for() {
        let mut budget = Budget::new(MS * 1000, 16);
        (1..=16).for_each(|items| budget.observe_run(items, MS * 5));
        let mut now = Instant::now();
        for _ in 0..100 {
            now += MS * 50;
            budget.observe_arrival(now, 1);
        }
        assert_eq!(budget.delay(now, 1, now), Duration::ZERO);
    }

    #[test]
    fn a_full_batch_and_one_that_the_next_request_would_overfill_do_not_wait() {
        let (mut learned, now) = learned(MS * 20, |_| MS * 5);
        assert_eq!(learned.delay(now, 16, now), Duration::ZERO);
        (0..100).for_each(|_| learned.observe_arrival(now, 8));
        assert!(!learned.delay(now, 8, now).is_zero());
        assert_eq!(learned.delay(now, 9, now), Duration::ZERO);
    }

    #[test]
    fn a_budget_that_is_nearly_used_up_by_the_run_shortens_the_wait_to_what_is_left() {
        let (tight, now) = learned(MS * 5 + US * 50, |_| MS * 5);
        assert_eq!(tight.delay(now, 1, now), US * 50);
        let (hopeless, now) = learned(MS * 4, |_| MS * 5);
        assert_eq!(hopeless.delay(now, 1, now), Duration::ZERO);
    }

    #[test]
    fn more_instances_make_the_wait_worth_less() {
        let (mut learned, now) = learned(MS * 20, |_| US * 300);
        assert!(!learned.delay(now, 1, now).is_zero());
        learned.set_instances(64);
        assert!(learned.delay(now, 1, now).is_zero());
    }

    #[test]
    fn every_gap_has_the_step_it_lies_in() {
        for micros in (0..2000).chain([10_000, 123_456, 999_999]) {
            let (step, gap) = (step_of(US * micros), f64::from(micros) * 1e-6);
            assert!(seconds_of(step) <= gap + 1e-12 && gap < seconds_of(step + 1), "{micros} in {step}");
        }
        assert_eq!(step_of(Duration::MAX), STEPS - 1);
    }

    proptest! {
        #[test]
        fn no_delay_and_no_run_that_was_seen_go_beyond_the_budget_together(
            runs in prop::collection::vec((1_u32..40, 0_u64..50_000), 0..60),
            gaps in prop::collection::vec((0_u64..3_000_000, 1_u32..9), 1..60),
            (waiting, age, budget) in (0_u64..20, 0_u64..40_000, 1_u64..60_000),
        ) {
            let mut learned = Budget::new(Duration::from_micros(budget), 16);
            for (items, micros) in &runs {
                learned.observe_run(*items, Duration::from_micros(*micros));
            }
            let mut now = Instant::now();
            for (gap, items) in gaps {
                now += Duration::from_micros(gap);
                learned.observe_arrival(now, items);
            }
            let now = now + Duration::from_micros(age);
            let delay = learned.delay(now, waiting, now - Duration::from_micros(age));
            prop_assert!(delay <= Duration::from_micros(budget));
            if let Some(run) = learned.runs.at_most(waiting as f64) && !delay.is_zero() {
                prop_assert!(delay + run <= Duration::from_micros(budget));
            }
        }
    }
}

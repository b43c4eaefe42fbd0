//! A server of one model, simulated: requests that come in bursts, instances with a fixed cost and a cost for each item,
//! and the real batcher between them. For tests and benches; it knows no clock but its own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use super::batcher::{Batched, Batcher, Entry, Next, Rules};
use super::budget::Budget;

/// Requests that come alone now and then, and many together in bursts, one item each.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests a second between the bursts.
    pub quiet: f64,
    /// Requests a second in a burst.
    pub burst: f64,
    /// The mean length of the time between two bursts, in seconds.
    pub quiet_seconds: f64,
    /// The mean length of a burst, in seconds.
    pub burst_seconds: f64,
}

/// A model's times and its instances.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// How many batches can run at a time.
    pub instances: usize,
    /// The time of every run.
    pub fixed: Duration,
    /// The time that each item adds.
    pub item: Duration,
    /// The largest batch.
    pub max_items: u32,
    /// The time from arrival to answer that is wanted.
    pub budget: Duration,
}

/// How the delay is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Always the same.
    Constant(Duration),
    /// By a [`Budget`].
    Learned,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The part of all requests that was answered within the budget, from 0 to 1.
    pub within: f64,
    /// From arrival to answer, on average.
    pub mean: Duration,
    /// From arrival to answer, of all but one in a hundred.
    pub p99: Duration,
    /// Answers a second, from the first arrival to the last answer.
    pub throughput: f64,
    /// Requests in a batch, on average.
    pub batch: f64,
    /// The part of the instances' time in which they ran, from 0 to 1.
    pub busy: f64,
}

/// A request of one item that fits every other.
struct Single(Instant);

impl Batched for Single {
    fn items(&self) -> u32 {
        1
    }

    fn is_gone(&self) -> bool {
        false
    }

    fn fits(&self, _first: &Self) -> bool {
        true
    }
}

/// Numbers in (0, 1), the same for the same seed (Steele, Lea and Flood's SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^= word >> 31;
        ((word >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// A time of this mean, without memory.
    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.next().ln()
    }
}

impl Load {
    /// The times of `count` arrivals, from 0, in seconds.
    #[must_use]
    pub fn arrivals(&self, seed: u64, count: usize) -> Vec<Duration> {
        let mut random = Random(seed);
        let mut arrivals = Vec::with_capacity(count);
        let (mut now, mut in_burst) = (0.0, false);
        let mut phase_ends = random.exponential(self.quiet_seconds);
        while arrivals.len() < count {
            let rate = if in_burst { self.burst } else { self.quiet };
            let next = now + random.exponential(1.0 / rate);
            // Without memory, the rest of a gap that crosses the end of its phase may be drawn anew.
            if next > phase_ends {
                now = phase_ends;
                in_burst = !in_burst;
                phase_ends += random.exponential(if in_burst { self.burst_seconds } else { self.quiet_seconds });
            } else {
                now = next;
                arrivals.push(Duration::from_secs_f64(now));
            }
        }
        arrivals
    }
}

impl Machine {
    /// How long a batch runs.
    #[must_use]
    pub fn run(&self, items: u32) -> Duration {
        self.fixed + self.item * items
    }

    /// Serves the arrivals.
    #[must_use]
    pub fn serve(&self, arrivals: &[Duration], policy: Policy) -> Outcome {
        let start = Instant::now();
        let rules = Rules {
            max_items: self.max_items,
            preferred: vec![self.max_items],
            capacity: usize::MAX,
            ..Rules::default()
        };
        let mut batcher = Batcher::new(rules);
        let mut budget = Budget::new(self.budget, self.max_items);
        budget.set_instances(self.instances);
        let mut running: BinaryHeap<Reverse<(Instant, u32)>> = BinaryHeap::new();
        let mut latencies = Vec::with_capacity(arrivals.len());
        let mut coming = arrivals.iter().map(|at| start + *at).peekable();
        let (mut batches, mut ran, mut last) = (0_u32, Duration::ZERO, start);
        let mut wake: Option<Instant> = None;
        loop {
            let ends = running.peek().map(|Reverse((end, _))| *end);
            let Some(now) = coming.peek().copied().into_iter().chain(ends).chain(wake).min() else { break };
            if coming.next_if_eq(&now).is_some() {
                let admission = batcher.rules().admit(0, None, now);
                // The queue has no bound.
                let _pushed = batcher.push(Entry { request: Single(now), admission, queued: now });
                budget.observe_arrival(now, 1);
            }
            if ends == Some(now)
                && let Some(Reverse((_, items))) = running.pop()
            {
                budget.observe_run(items, self.run(items));
                last = now;
            }
            wake = None;
            while running.len() < self.instances
                && let Some(oldest) = batcher.oldest()
            {
                let delay = match policy {
                    Policy::Constant(delay) => delay,
                    Policy::Learned => budget.delay(now, batcher.items(), oldest),
                };
                match batcher.next(now, delay) {
                    Next::Batch(batch) => {
                        let items = u32::try_from(batch.len()).unwrap_or(u32::MAX);
                        let end = now + self.run(items);
                        latencies.extend(batch.iter().map(|entry| end - entry.request.0));
                        running.push(Reverse((end, items)));
                        batches += 1;
                        ran += self.run(items);
                    }
                    Next::Wait(until) => {
                        wake = Some(until);
                        break;
                    }
                    Next::Nothing => break,
                }
            }
        }
        latencies.sort_unstable();
        let within = latencies.partition_point(|latency| *latency <= self.budget);
        let count = latencies.len().max(1) as f64;
        let seconds = last.duration_since(start).as_secs_f64();
        Outcome {
            within: within as f64 / count,
            mean: latencies.iter().sum::<Duration>().div_f64(count),
            p99: latencies.get(latencies.len() * 99 / 100).copied().unwrap_or_default(),
            throughput: count / seconds,
            batch: count / f64::from(batches.max(1)),
            busy: ran.as_secs_f64() / (seconds * self.instances as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bursts of twenty requests on average, and a tenth of them alone.
    const LOAD: Load = Load { quiet: 20.0, burst: 4000.0, quiet_seconds: 0.2, burst_seconds: 0.005 };

    const fn machine(instances: usize) -> Machine {
        Machine {
            instances,
            fixed: Duration::from_millis(5),
            item: Duration::from_micros(100),
            max_items: 64,
            budget: Duration::from_millis(20),
        }
    }

    #[test]
    fn a_learned_delay_beats_every_constant_one_on_bursts() {
        for instances in [1, 2, 4] {
            for seed in [7, 8] {
                let arrivals = LOAD.arrivals(seed, 6000);
                let learned = machine(instances).serve(&arrivals, Policy::Learned);
                for micros in (0..4000).step_by(250) {
                    let constant = machine(instances).serve(&arrivals, Policy::Constant(Duration::from_micros(micros)));
                    assert!(learned.within >= constant.within, "{instances}: {learned:?} {micros} us: {constant:?}");
                    assert!(learned.mean < constant.mean, "{instances}: {learned:?} {micros} us: {constant:?}");
                }
            }
        }
    }

    #[test]
    fn the_same_arrivals_are_served_the_same_way_and_each_is_answered() {
        let arrivals = LOAD.arrivals(3, 1000);
        let first = machine(2).serve(&arrivals, Policy::Learned);
        assert_eq!(first, machine(2).serve(&arrivals, Policy::Learned));
        let alone = machine(2).serve(&[Duration::ZERO], Policy::Constant(Duration::from_millis(3)));
        assert_eq!((alone.mean, alone.batch), (Duration::from_micros(8100), 1.0));
    }
}

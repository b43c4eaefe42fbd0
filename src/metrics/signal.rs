//! What autoscalers are told: how much waits, how busy the devices are, how fast models come and go. Pure: readings in, taken
//! once a second with their times, signals of the last minute out.
//!
//! The one number to scale by is the pressure:
//!
//! ```text
//! pressure = requests that wait for a load   / loads that may run at once
//!          + requests that wait for a thread / requests that run at once
//! ```
//!
//! both as means over the last minute. At 1 there stands one request behind each place that could serve it. What is not in
//! it is as much part of it: no memory, since a cache is always full, and no waiting that is wanted, of a batch for company.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::inference::DeviceId;

/// What signals look back on.
pub const SPAN: Duration = Duration::from_secs(60);

/// How long an eviction counts for the churn age.
pub const CHURN_SPAN: Duration = Duration::from_secs(600);

/// The most evictions that are remembered.
const MOST_EVICTIONS: usize = 1024;

/// What has been counted since the server started, and what waits at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// Seconds that requests have waited for loads, all together.
    pub load_waited: Duration,
    /// Requests that wait for an instance or a thread at this moment.
    pub held_up: usize,
    /// Loads that may run at once.
    pub load_places: usize,
    /// Requests for a model that was in memory.
    pub hits: u64,
    /// Requests for a model that had to be loaded.
    pub misses: u64,
    /// Executions of models.
    pub executions: u64,
    /// Requests that these answered.
    pub requests: u64,
    /// The devices.
    pub devices: Vec<DeviceReading>,
    /// The host's processors, where they can be asked.
    pub processors: Option<ProcessorReading>,
}

/// What one device has done since the server started.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceReading {
    /// Which.
    pub device: DeviceId,
    /// Its threads.
    pub threads: usize,
    /// How long they ran models, all together.
    pub busy: Duration,
}

/// What the host's processors have done since the machine, or the container, started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessorReading {
    /// How long they worked, all cores together.
    pub worked: Duration,
    /// How many cores there are for us.
    pub cores: usize,
}

/// What the last minute says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signals {
    /// How much waits for each place that could serve it; see the head of this file.
    pub pressure: f64,
    /// The part of each device's threads that ran models, 0 to 1.
    pub busy: Vec<(DeviceId, f64)>,
    /// The part of the requests whose model was in memory, 0 to 1; `None` where there was no request.
    pub hit_ratio: Option<f64>,
    /// How busy the host's processors were between the last two readings; `None` where they cannot be asked.
    pub cores: Option<Cores>,
}

/// How busy the host's processors were, with whatever they did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cores {
    /// Cores' worth of work: 1.5 is a core and a half.
    pub busy: f64,
    /// How many there are for us.
    pub all: f64,
}

/// What waits, as means.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waits {
    /// Requests that wait for a load.
    pub for_loads: f64,
    /// Loads that may run at once.
    pub load_places: f64,
    /// Requests that wait for an instance or a thread.
    pub for_turns: f64,
    /// Requests that run at once: threads, times the requests that one run answers.
    pub turn_places: f64,
}

impl Waits {
    /// How much waits for each place that could serve it.
    #[must_use]
    pub fn pressure(&self) -> f64 {
        // Fewer than one place there is nowhere, and a division by nothing would be no number.
        self.for_loads.max(0.0) / self.load_places.max(1.0) + self.for_turns.max(0.0) / self.turn_places.max(1.0)
    }
}

/// The readings of the last minute.
#[derive(Debug, Default)]
pub struct Window {
    readings: VecDeque<(Instant, Reading)>,
}

impl Window {
    /// Takes a reading of `now`. Those older than the span go, but for the last that is at its edge.
    pub fn observe(&mut self, now: Instant, reading: Reading) {
        self.readings.push_back((now, reading));
        while self.readings.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= SPAN) {
            self.readings.pop_front();
        }
    }

    /// What they say; nothing waits and nobody is busy where there are fewer than two.
    #[must_use]
    pub fn signals(&self) -> Signals {
        let (Some((begin, first)), Some((end, last))) = (self.readings.front(), self.readings.back()) else {
            return Signals::default();
        };
        let seconds = end.saturating_duration_since(*begin).as_secs_f64();
        if seconds <= 0.0 {
            return Signals::default();
        }
        let busy = last.devices.iter().map(|device| {
            let before = first.devices.iter().find(|other| other.device == device.device);
            let ran = device.busy.saturating_sub(before.map_or(Duration::ZERO, |before| before.busy));
            (device.device, (ran.as_secs_f64() / seconds / real(device.threads.max(1))).min(1.0))
        });
        let (hits, misses) = (last.hits.saturating_sub(first.hits), last.misses.saturating_sub(first.misses));
        Signals {
            pressure: self.waits(first, last, seconds).pressure(),
            busy: busy.collect(),
            hit_ratio: ratio(hits, hits.saturating_add(misses)),
            cores: self.cores(),
        }
    }

    /// Of the last two readings alone: what scaling goes by is a mean over its own time already.
    fn cores(&self) -> Option<Cores> {
        let mut latest = self.readings.iter().rev();
        let ((end, last), (begin, before)) = (latest.next()?, latest.next()?);
        let (now, then) = (last.processors?, before.processors?);
        let seconds = end.saturating_duration_since(*begin).as_secs_f64();
        let all = real(now.cores);
        let worked = now.worked.saturating_sub(then.worked).as_secs_f64();
        // Clocks that tick, and times that are read one after the other: a little more than all is all.
        (seconds > 0.0).then(|| Cores { busy: (worked / seconds).min(all), all })
    }

    fn waits(&self, first: &Reading, last: &Reading, seconds: f64) -> Waits {
        let held_up: usize = self.readings.iter().map(|(_, reading)| reading.held_up).sum();
        let executions = last.executions.saturating_sub(first.executions);
        let requests = last.requests.saturating_sub(first.requests);
        let threads: usize = last.devices.iter().map(|device| device.threads).sum();
        Waits {
            for_loads: last.load_waited.saturating_sub(first.load_waited).as_secs_f64() / seconds,
            load_places: real(last.load_places),
            for_turns: real(held_up) / real(self.readings.len()),
            turn_places: real(threads) * ratio(requests, executions).unwrap_or(1.0).max(1.0),
        }
    }
}

/// Evictions for room, of the last ten minutes.
#[derive(Debug, Default)]
pub struct Churn {
    evictions: VecDeque<(Instant, Duration)>,
}

impl Churn {
    /// Something left at `now` for want of room, after `age`.
    pub fn left(&mut self, now: Instant, age: Duration) {
        self.forget(now);
        if self.evictions.len() == MOST_EVICTIONS {
            self.evictions.pop_front();
        }
        self.evictions.push_back((now, age));
    }

    /// The mean age of what left, in seconds; `None` where nothing did: the tier is large enough.
    pub fn age(&mut self, now: Instant) -> Option<f64> {
        self.forget(now);
        let sum: f64 = self.evictions.iter().map(|(_, age)| age.as_secs_f64()).sum();
        (!self.evictions.is_empty()).then(|| sum / real(self.evictions.len()))
    }

    fn forget(&mut self, now: Instant) {
        while self.evictions.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > CHURN_SPAN) {
            self.evictions.pop_front();
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "signals are rough")]
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[expect(clippy::cast_precision_loss, reason = "signals are rough")]
fn real(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reading(seconds: u64, waiting: u64, held_up: usize, batch: u64) -> Reading {
        Reading {
            load_waited: Duration::from_secs(seconds * waiting),
            held_up,
            load_places: 4,
            hits: seconds * 9,
            misses: seconds,
            executions: seconds * 10,
            requests: seconds * 10 * batch,
            devices: vec![DeviceReading {
                device: DeviceId::Cpu,
                threads: 2,
                busy: Duration::from_millis(seconds * 500),
            }],
            processors: Some(ProcessorReading { worked: Duration::from_millis(seconds * 1500), cores: 2 }),
        }
    }

    fn window(seconds: u64, waiting: u64, held_up: usize, batch: u64) -> Window {
        let (mut window, start) = (Window::default(), Instant::now());
        for second in 0..=seconds {
            window.observe(start + Duration::from_secs(second), reading(second, waiting, held_up, batch));
        }
        window
    }

    #[test]
    fn one_that_waits_for_each_place_is_a_pressure_of_one() {
        assert_eq!(window(60, 4, 0, 1).signals().pressure, 1.0);
        assert_eq!(window(60, 0, 2, 1).signals().pressure, 1.0);
        assert_eq!(window(60, 0, 16, 8).signals().pressure, 1.0, "two threads answer eight requests a run");
        assert_eq!(window(60, 8, 4, 1).signals().pressure, 4.0);
    }

    #[test]
    fn a_window_tells_of_busy_threads_and_of_hits() {
        let signals = window(200, 0, 0, 1).signals();
        assert_eq!(signals.busy, [(DeviceId::Cpu, 0.25)]);
        assert_eq!(signals.hit_ratio, Some(0.9));
        assert_eq!(signals.pressure, 0.0, "busy threads that nobody waits for press nobody");
    }

    #[test]
    fn a_window_tells_how_busy_the_processors_were_in_its_last_second() {
        let (mut window, start) = (Window::default(), Instant::now());
        let mut observe = |second: u64, worked: Option<u64>| {
            let processors = worked.map(|worked| ProcessorReading { worked: Duration::from_millis(worked), cores: 4 });
            let reading = Reading { processors, ..Reading::default() };
            window.observe(start + Duration::from_secs(second), reading);
            window.signals().cores
        };
        assert_eq!(observe(0, Some(100_000)), None);
        assert_eq!(observe(1, Some(100_500)), Some(Cores { busy: 0.5, all: 4.0 }));
        assert_eq!(observe(3, Some(105_500)), Some(Cores { busy: 2.5, all: 4.0 }));
        assert_eq!(observe(4, Some(109_600)), Some(Cores { busy: 4.0, all: 4.0 }), "not more than there are");
        assert_eq!(observe(5, Some(7)), Some(Cores { busy: 0.0, all: 4.0 }), "another container's clock");
        assert_eq!(observe(6, None), None);
        assert_eq!(observe(7, Some(9)), None);
        assert_eq!(observe(7, Some(9)), None, "no time between them");
    }

    #[test]
    fn what_was_before_the_window_is_forgotten() {
        let (mut window, start) = (Window::default(), Instant::now());
        for second in 0..400_u64 {
            let waited = if second < 300 { second * 4 } else { 300 * 4 };
            let reading = Reading { load_waited: Duration::from_secs(waited), load_places: 4, ..Reading::default() };
            window.observe(start + Duration::from_secs(second), reading);
        }
        assert_eq!(window.signals().pressure, 0.0);
        assert!(window.readings.len() <= 62, "{} readings are kept", window.readings.len());
    }

    #[test]
    fn a_window_without_time_in_it_says_nothing() {
        assert_eq!(Window::default().signals(), Signals::default());
        assert_eq!(window(0, 5, 5, 1).signals(), Signals::default());
    }

    #[test]
    fn the_churn_age_is_of_what_left_lately() {
        let (mut churn, start) = (Churn::default(), Instant::now());
        assert_eq!(churn.age(start), None);
        churn.left(start, Duration::from_secs(10));
        churn.left(start + Duration::from_secs(300), Duration::from_secs(30));
        assert_eq!(churn.age(start + Duration::from_secs(300)), Some(20.0));
        assert_eq!(churn.age(start + Duration::from_secs(700)), Some(30.0));
        assert_eq!(churn.age(start + Duration::from_secs(901)), None);
        for _ in 0..5000 {
            churn.left(start, Duration::from_secs(1));
        }
        assert_eq!(churn.evictions.len(), MOST_EVICTIONS);
    }

    fn amount() -> impl Strategy<Value = f64> {
        0.0..1e9_f64
    }

    proptest! {
        #[test]
        fn pressure_is_never_less_where_more_waits(
            for_loads in amount(), for_turns in amount(), load_places in amount(), turn_places in amount(),
            more in amount(),
        ) {
            let waits = Waits { for_loads, load_places, for_turns, turn_places };
            let pressure = waits.pressure();
            prop_assert!(pressure.is_finite() && pressure >= 0.0);
            let worse = [
                Waits { for_loads: for_loads + more, ..waits },
                Waits { for_turns: for_turns + more, ..waits },
            ];
            let better = [
                Waits { load_places: load_places + more, ..waits },
                Waits { turn_places: turn_places + more, ..waits },
            ];
            prop_assert!(worse.iter().all(|waits| waits.pressure() >= pressure));
            prop_assert!(better.iter().all(|waits| waits.pressure() <= pressure));
            let idle = Waits { for_loads: 0.0, for_turns: 0.0, ..waits };
            prop_assert_eq!(idle.pressure(), 0.0);
        }

        #[test]
        fn readings_in_any_order_break_nothing(
            readings in prop::collection::vec((0..200_u64, 0..50_u64, 0..50_usize, 0..9_u64), 0..80),
        ) {
            let (mut window, start) = (Window::default(), Instant::now());
            for (second, waiting, held_up, batch) in readings {
                window.observe(start + Duration::from_secs(second), reading(second, waiting, held_up, batch));
                let signals = window.signals();
                prop_assert!(signals.pressure.is_finite() && signals.pressure >= 0.0);
                prop_assert!(signals.busy.iter().all(|(_, share)| (0.0..=1.0).contains(share)));
                prop_assert!(signals.cores.is_none_or(|cores| (0.0..=cores.all).contains(&cores.busy)));
                prop_assert!(signals.hit_ratio.is_none_or(|ratio| (0.0..=1.0).contains(&ratio)));
            }
        }
    }
}

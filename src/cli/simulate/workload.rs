//! What is replayed: models with their sizes and load times, and who is asked for when. Deterministic by the seed.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// SplitMix64: small, quick, and the same everywhere.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    /// In [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// In 0..limit, where `limit` is above 0.
    fn below(&mut self, limit: usize) -> usize {
        (self.unit() * limit as f64) as usize
    }

    /// With this median, where one standard deviation is a factor of e to the `sigma`.
    pub(super) fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        // Box and Muller; 1 - unit is never 0.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        median * (sigma * radius * (std::f64::consts::TAU * self.unit()).cos()).exp()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// A model of the simulation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Model {
    pub(super) bytes: u64,
    /// Seconds from asking for it to its first answer, where it is not there.
    pub(super) seconds: f64,
}

/// Bytes a second from the tier below: one NVMe drive or a 10 Gbit/s link to S3 with some room.
const BANDWIDTH: f64 = 1e9;

/// `count` models: log-normal sizes with a median of 60 MB between 1 MB and 2 GB; a load takes its bytes over the
/// bandwidth and a time to build the session, log-normal too with a median of 0.2 s between 0.01 and 5 s.
pub(super) fn models(count: usize, random: &mut Random) -> Vec<Model> {
    (0..count)
        .map(|_| {
            let bytes = random.log_normal(60e6, 1.5).clamp(1e6, 2e9);
            let build = random.log_normal(0.2, 0.8).clamp(0.01, 5.0);
            Model { bytes: bytes as u64, seconds: bytes / BANDWIDTH + build }
        })
        .collect()
}

/// A kind of made-up traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Synthetic {
    /// Popularity by Zipf's law, the same all the time
    Zipf,
    /// Zipf whose ranks change: each model trades places with another ten times
    Drift,
    /// Zipf, and ten times in between every model is asked for once, one after the other
    Scan,
    /// Sessions of 50 requests on average for one model, then another; a tenth of the models at a time
    Bursty,
}

impl Synthetic {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Zipf => "zipf",
            Self::Drift => "drift",
            Self::Scan => "scan",
            Self::Bursty => "bursty",
        }
    }
}

/// Draws ranks by Zipf's law.
struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    fn new(count: usize, alpha: f64) -> Self {
        let mut sum = 0.0;
        let cumulative = (1..=count)
            .map(|rank| {
                sum += (rank as f64).powf(-alpha);
                sum
            })
            .collect();
        Self { cumulative }
    }

    fn draw(&self, random: &mut Random) -> usize {
        let target = random.unit() * self.cumulative.last().copied().unwrap_or_default();
        self.cumulative.partition_point(|&sum| sum <= target).min(self.cumulative.len().saturating_sub(1))
    }
}

/// Models for each session that goes on in [`Synthetic::Bursty`]: with room for a tenth of the bytes, LRU just holds
/// them, which makes this the hardest number to follow it at.
const MODELS_A_SESSION: usize = 10;
/// Mean length of a session, in requests.
const SESSION_LENGTH: f64 = 50.0;
/// Full scans in [`Synthetic::Scan`].
const SCANS: usize = 10;
/// How often each model trades its rank in [`Synthetic::Drift`].
const TRADES: usize = 10;

/// `requests` requests for models 0..`models`, both above 0.
pub(super) fn synthesize(
    kind: Synthetic,
    alpha: f64,
    models: usize,
    requests: usize,
    random: &mut Random,
) -> Vec<usize> {
    let zipf = Zipf::new(models, alpha);
    let mut by_rank: Vec<usize> = (0..models).collect();
    random.shuffle(&mut by_rank);
    let mut sessions = vec![0; (models / MODELS_A_SESSION).max(1)];
    for session in &mut sessions {
        *session = by_rank[zipf.draw(random)];
    }
    // Two models change places in one trade.
    let trades = models * TRADES / 2;
    let scan_every = (requests / SCANS).max(1);
    (0..requests)
        .map(|index| match kind {
            Synthetic::Zipf => by_rank[zipf.draw(random)],
            Synthetic::Drift => {
                for _ in (index * trades / requests)..((index + 1) * trades / requests) {
                    let (one, other) = (random.below(models), random.below(models));
                    by_rank.swap(one, other);
                }
                by_rank[zipf.draw(random)]
            }
            Synthetic::Scan if index % scan_every < models.min(scan_every / 2) => index % scan_every,
            Synthetic::Scan => by_rank[zipf.draw(random)],
            Synthetic::Bursty => {
                let session = random.below(sessions.len());
                if random.unit() * SESSION_LENGTH < 1.0 {
                    sessions[session] = by_rank[zipf.draw(random)];
                }
                sessions[session]
            }
        })
        .collect()
}

/// A trace: when, and for which model; models are numbered in the order of their first request.
#[derive(Debug)]
pub(super) struct Trace {
    /// Seconds and number of the model.
    pub(super) requests: Vec<(f64, usize)>,
    /// How many models occur.
    pub(super) models: usize,
}

/// Reads `time_s,model` lines. Blank lines, `#` lines and a first line without a number are passed over.
pub(super) fn parse(text: &str) -> Result<Trace> {
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut requests = Vec::new();
    let mut latest = f64::NEG_INFINITY;
    for (index, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fault = |what: &str| Error::invalid(format!("line {}: {what}, expected time_s,model: {line:?}", index + 1));
        let (time, model) = line.split_once(',').ok_or_else(|| fault("no comma"))?;
        let model = model.trim();
        let time = match time.trim().parse::<f64>() {
            Ok(time) if time.is_finite() => time,
            Err(_) if index == 0 => continue,
            _ => return Err(fault("no time in seconds")),
        };
        if time < latest {
            return Err(fault("earlier than the line before"));
        }
        if model.is_empty() {
            return Err(fault("no model"));
        }
        latest = time;
        let next = numbers.len();
        requests.push((time, *numbers.entry(model).or_insert(next)));
    }
    if requests.is_empty() {
        return Err(Error::invalid("the trace holds no request"));
    }
    let first = requests[0].0;
    for request in &mut requests {
        request.0 -= first;
    }
    Ok(Trace { requests, models: numbers.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_makes_one_trace_and_another_seed_another() {
        for kind in [Synthetic::Zipf, Synthetic::Drift, Synthetic::Scan, Synthetic::Bursty] {
            let make = |seed| synthesize(kind, 0.9, 50, 2_000, &mut Random::new(seed));
            assert_eq!(make(1), make(1));
            assert_ne!(make(1), make(2));
            assert!(make(1).iter().all(|&model| model < 50));
        }
    }

    #[test]
    fn the_most_popular_of_zipf_gets_its_share() {
        let mut counts = [0_usize; 100];
        for model in synthesize(Synthetic::Zipf, 1.0, 100, 100_000, &mut Random::new(7)) {
            counts[model] += 1;
        }
        counts.sort_unstable_by(|a, b| b.cmp(a));
        // One over the hundredth harmonic number is 0.193.
        assert!((18_500..20_100).contains(&counts[0]), "{}", counts[0]);
    }

    #[test]
    fn a_scan_asks_for_every_model() {
        let trace = synthesize(Synthetic::Scan, 1.2, 100, 10_000, &mut Random::new(3));
        assert_eq!(trace[..100], (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn sizes_stay_within_a_megabyte_and_two_gigabytes() {
        let models = models(10_000, &mut Random::new(1));
        assert!(models.iter().all(|model| (1_000_000..=2_000_000_000).contains(&model.bytes) && model.seconds > 0.01));
    }

    #[test]
    fn a_trace_is_read_with_its_header_and_its_comments() {
        let trace = parse("time_s,model\n# a comment\n\n5,a\n 5.5 , b/c \n7,a\n").unwrap();
        assert_eq!(trace.requests, [(0.0, 0), (0.5, 1), (2.0, 0)]);
        assert_eq!(trace.models, 2);
    }

    #[test]
    fn a_bad_line_of_a_trace_is_named() {
        for (text, fault) in [
            ("1,a\nx,b", "line 2: no time in seconds"),
            ("1,a\n0,b", "line 2: earlier"),
            ("1", "line 1: no comma"),
            ("1,", "line 1: no model"),
            ("inf,a", "line 1: no time"),
            ("", "no request"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(fault), "{text:?}: {error}");
        }
    }
}

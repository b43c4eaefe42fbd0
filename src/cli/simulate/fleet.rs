//! `roundhouse simulate --instances`: a fleet of instances with the server's own cache and policy, behind the picker and what
//! stands in its place elsewhere. Pure but for the picture: the same seed gives the same figures.

mod instance;
mod report;
mod route;
mod world;

use indicatif::ProgressBar;

use self::route::Way;
use super::workload::{self, Model, Random, Synthetic};
use crate::error::{Error, Result};

/// The fleet, and what it costs.
#[derive(Debug, clap::Args)]
pub(super) struct FleetArgs {
    /// Simulate fleets of so many instances; --capacity is then what all of them hold together
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "Fleets")]
    pub(super) instances: Vec<u32>,
    /// Models for each instance there is at first, in the place of --models
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Fleets")]
    models_each: Option<u32>,
    /// Let an autoscaler add instances up to as many times as there are at first, and take them away again
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = factor, help_heading = "Fleets")]
    scale: f64,
    /// Ways to choose an instance
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "WAY",
        default_value = "picker,hash,least-outstanding,round-robin",
        help_heading = "Fleets"
    )]
    route: Vec<Way>,
    /// Requests a second for each instance there is at first
    #[arg(long, value_name = "N", default_value_t = 10.0, value_parser = positive, help_heading = "Fleets")]
    rate: f64,
    /// How far the rate goes up and down, once in a run, as a part of itself
    #[arg(long, value_name = "PART", default_value_t = 0.0, value_parser = part, help_heading = "Fleets")]
    swing: f64,
    /// Loads at a time on each instance
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64), help_heading = "Fleets")]
    load_places: u32,
    /// Models that run at a time on each instance
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256), help_heading = "Fleets")]
    executors: u32,
    /// What an instance costs an hour
    #[arg(long, value_name = "PRICE", default_value_t = 1.0, value_parser = positive, help_heading = "Fleets")]
    price: f64,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e9 => Ok(number),
        _ => Err("expected a number above 0".to_owned()),
    }
}

fn factor(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(number) if (1.0..=100.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 1 to 100".to_owned()),
    }
}

fn part(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(number) if (0.0..1.0).contains(&number) => Ok(number),
        _ => Err("expected a number from 0, below 1".to_owned()),
    }
}

/// What is asked for, and how long it takes.
struct Work {
    models: Vec<Model>,
    /// Seconds of one run of each model.
    runs: Vec<f64>,
    requests: Vec<(f64, usize)>,
}

/// One fleet.
#[derive(Clone, Copy, Debug)]
struct Setting {
    instances: usize,
    least: usize,
    most: usize,
    /// Bytes of models that each holds.
    bytes: u64,
    load_places: usize,
    executors: usize,
}

/// What a run came to; of requests those after the first quarter, which fills memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Outcome {
    requests: u64,
    /// Requests whose model was not in memory where they came.
    cold: u64,
    loads: u64,
    evictions: u64,
    /// Requests for models larger than an instance.
    refused: u64,
    p50_ms: f64,
    p99_ms: f64,
    scale_outs: u64,
    scale_ins: u64,
    instances_at_end: usize,
    instance_seconds: f64,
}

impl Outcome {
    fn cold_share(&self) -> f64 {
        self.cold as f64 / self.requests.max(1) as f64
    }
}

/// A fleet's figures.
pub(super) struct Row {
    traffic: String,
    instances: usize,
    models: usize,
    requests: usize,
    seconds: f64,
    outcomes: Vec<(Way, Outcome)>,
    /// Instances of a fleet that has one for each model, and more for those that take more.
    endpoints: f64,
    price: f64,
}

impl Row {
    /// What a million requests cost on instances for so many seconds.
    fn cost(&self, instance_seconds: f64) -> f64 {
        instance_seconds / 3600.0 * self.price / self.requests.max(1) as f64 * 1e6
    }
}

/// What fleets of each size come to.
pub(super) fn simulate(args: &super::SimulateArgs, bar: &ProgressBar) -> Result<Vec<Row>> {
    if args.trace.is_some() {
        return Err(Error::invalid("--instances goes with made-up traffic: leave --trace out"));
    }
    let fleet = &args.fleet;
    bar.set_length((fleet.instances.len() * args.synthetic.len() * args.alpha.len() * fleet.route.len()) as u64);
    let mut rows = Vec::new();
    for &kind in &args.synthetic {
        for &alpha in &args.alpha {
            for &instances in &fleet.instances {
                rows.push(measure(args, kind, alpha, instances as usize, bar)?);
            }
        }
    }
    Ok(rows)
}

fn measure(
    args: &super::SimulateArgs,
    kind: Synthetic,
    alpha: f64,
    instances: usize,
    bar: &ProgressBar,
) -> Result<Row> {
    let fleet = &args.fleet;
    let count = fleet.models_each.map_or(args.models as usize, |each| each as usize * instances);
    let work = work(args, kind, alpha, count, fleet.rate * instances as f64);
    let all: u64 = work.models.iter().map(|model| model.bytes).sum();
    let setting = Setting {
        instances,
        least: instances,
        most: (instances as f64 * fleet.scale) as usize,
        bytes: (all as f64 * args.capacity / 100.0 / instances as f64) as u64,
        load_places: fleet.load_places as usize,
        executors: fleet.executors as usize,
    };
    let traffic = format!("{} {alpha}", kind.name());
    let mut outcomes = Vec::new();
    for &way in &fleet.route {
        bar.set_message(format!("{traffic}, {instances}, {}", way.name()));
        outcomes.push((way, world::run(&work, &setting, way, &|| bar.tick())?));
        bar.inc(1);
    }
    let seconds = work.requests.last().map_or(0.0, |(at, _)| *at);
    let endpoints = endpoints(&work, seconds);
    Ok(Row {
        traffic,
        instances,
        models: work.models.len(),
        requests: work.requests.len(),
        seconds,
        outcomes,
        endpoints,
        price: fleet.price,
    })
}

/// Requests at random times, whose rate goes up and down once.
fn work(args: &super::SimulateArgs, kind: Synthetic, alpha: f64, count: usize, rate: f64) -> Work {
    let mut random = Random::new(args.seed);
    let models = workload::models(count, &mut random);
    // From a millisecond to a fifth of a second.
    let runs = models.iter().map(|_| random.log_normal(0.01, 0.8).clamp(0.001, 0.2)).collect();
    let keys = workload::synthesize(kind, alpha, models.len(), args.requests as usize, &mut random);
    let length = f64::from(args.requests) / rate;
    let mut at = 0.0;
    let requests = keys
        .into_iter()
        .map(|key| {
            let now = rate * (1.0 - args.fleet.swing * (std::f64::consts::TAU * at / length).cos());
            at -= (1.0 - random.unit()).ln() / now;
            (at, key)
        })
        .collect();
    Work { models, runs, requests }
}

/// Instances where each model has its own: one, or as many as its busiest tenth of the time takes at two thirds of what they
/// can do.
fn endpoints(work: &Work, seconds: f64) -> f64 {
    const PARTS: usize = 10;
    let mut busy = vec![[0.0_f64; PARTS]; work.models.len()];
    for (at, model) in &work.requests {
        let part = ((at / seconds * PARTS as f64) as usize).min(PARTS - 1);
        busy[*model][part] += work.runs[*model];
    }
    let length = seconds / PARTS as f64;
    busy.iter().map(|parts| (parts.iter().copied().fold(0.0, f64::max) / length / (2.0 / 3.0)).ceil().max(1.0)).sum()
}

pub(super) use self::report::{draw, print_json, print_table};

#[cfg(test)]
mod tests;

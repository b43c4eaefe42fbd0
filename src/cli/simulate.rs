//! `roundhouse simulate`: how long requests would wait for loads under each eviction policy.

mod fleet;
mod plot;
mod replay;
mod workload;

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};

use self::fleet::FleetArgs;
use self::plot::Group;
use self::replay::{Outcome, Policy};
use self::workload::{Model, Random, Synthetic};
use crate::error::{Error, ErrorKind, Result};

/// A made-up trace asks a hundred times a second; only the order matters to the policies of today.
const SECONDS_BETWEEN_REQUESTS: f64 = 0.01;

/// What to replay, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = "A trace is a text file with one request a line, in the order of time:\n  \
    time_s,model\n  0.00,resnet\n  0.35,team/bert.tar.gz\nTimes are seconds from any start. A header, blank lines \
    and lines that begin with # are passed over.\nSizes and load times are drawn by --seed: sizes log-normal from 1 MB \
    to 2 GB, a load takes bytes / 1 GB/s\nand a time to build the session.\n\nTwo bounds stand beside the policies, \
    both with all requests known beforehand: 'clairvoyant' is a greedy\norder by next use, size and load time, which \
    could be had; 'bound' cannot be beaten, nor always be had.\n\nExample:\n  \
    roundhouse simulate --synthetic zipf,drift --alpha 0.9,1.2 --svg eviction.svg")]
pub struct SimulateArgs {
    /// File of recorded requests, one `time_s,model` a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["synthetic", "alpha", "models", "requests"])]
    trace: Option<PathBuf>,
    /// Made-up traffic
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND", default_value = "zipf,drift,scan,bursty")]
    synthetic: Vec<Synthetic>,
    /// Models of made-up traffic
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    models: u32,
    /// Requests of made-up traffic
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    requests: u32,
    /// Bytes of the tier, in percent of the bytes of all models
    #[arg(long, value_name = "PERCENT", default_value_t = 10.0, value_parser = percent)]
    capacity: f64,
    /// Policies to compare; lru is always run, since it is the measure
    #[arg(long, value_enum, value_delimiter = ',', value_name = "POLICY", default_value = "cost-aware,lru")]
    policy: Vec<Policy>,
    /// Exponents of Zipf's law; each kind of traffic runs with each
    #[arg(long, value_delimiter = ',', value_name = "ALPHA", default_value = "0.9,1.2", value_parser = alpha)]
    alpha: Vec<f64>,
    /// The same seed gives the same figures
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Draw the figures into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    fleet: FleetArgs,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').trim().parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("expected a number above 0, at most 100".to_owned()),
    }
}

fn alpha(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(alpha) if (0.0..=5.0).contains(&alpha) => Ok(alpha),
        _ => Err("expected a number from 0 to 5".to_owned()),
    }
}

/// One run of traffic.
struct Scenario {
    name: String,
    requests: Vec<(f64, usize)>,
    models: Vec<Model>,
    capacity: u64,
}

/// A scenario's figures.
struct Row {
    name: String,
    requests: usize,
    models: usize,
    capacity: u64,
    outcomes: Vec<(Policy, Outcome)>,
    lru: Outcome,
    clairvoyant: f64,
    bound: f64,
}

impl Row {
    /// `wait` as a multiple of what LRU came to; 1 where neither waits.
    fn relative(&self, wait: f64) -> f64 {
        if self.lru.wait > 0.0 { wait / self.lru.wait } else { 1.0 }
    }

    fn per_thousand(&self, wait: f64) -> f64 {
        wait * 1_000.0 / self.requests.max(1) as f64
    }
}

/// Replays, and prints a table.
///
/// # Errors
/// `InvalidArgument` with the line for a trace that cannot be read; `Internal` where the table broke its own promise.
pub fn run(args: &SimulateArgs) -> Result<()> {
    if !args.fleet.instances.is_empty() {
        return run_fleets(args);
    }
    let rows = simulate(args)?;
    write_svg(args, || draw(&rows, args.capacity))?;
    let mut out = io::stdout().lock();
    printed(if args.json { print_json(&mut out, &rows) } else { print_table(&mut out, &rows, args.capacity) })
}

fn run_fleets(args: &SimulateArgs) -> Result<()> {
    let bar = progress(0);
    let rows = fleet::simulate(args, &bar)?;
    bar.finish_and_clear();
    write_svg(args, || fleet::draw(&rows, args.capacity))?;
    let mut out = io::stdout().lock();
    printed(match args.json {
        true => fleet::print_json(&mut out, &rows),
        false => fleet::print_table(&mut out, &rows, args.capacity),
    })
}

fn write_svg(args: &SimulateArgs, picture: impl FnOnce() -> String) -> Result<()> {
    let Some(path) = &args.svg else { return Ok(()) };
    std::fs::write(path, picture())
        .map_err(|error| Error::invalid(format!("cannot write {}", path.display())).with_source(error))
}

fn printed(printed: io::Result<()>) -> Result<()> {
    match printed {
        // Whoever read our output has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Error::new(ErrorKind::Internal, "cannot write the answer").with_source(error)),
        Ok(()) => Ok(()),
    }
}

fn simulate(args: &SimulateArgs) -> Result<Vec<Row>> {
    let mut policies: Vec<Policy> = Vec::new();
    for &policy in args.policy.iter().chain(&[Policy::Lru]) {
        if !policies.contains(&policy) {
            policies.push(policy);
        }
    }
    let jobs: Vec<(Synthetic, f64)> =
        args.synthetic.iter().flat_map(|&kind| args.alpha.iter().map(move |&alpha| (kind, alpha))).collect();
    let scenarios = if args.trace.is_some() { 1 } else { jobs.len() };
    let bar = progress((scenarios * (policies.len() + 2)) as u64);
    let mut rows = Vec::new();
    if let Some(path) = &args.trace {
        rows.push(measure(recorded(path, args)?, &policies, &bar)?);
    } else {
        for (kind, alpha) in jobs {
            rows.push(measure(synthetic(kind, alpha, args), &policies, &bar)?);
        }
    }
    bar.finish_and_clear();
    Ok(rows)
}

fn recorded(path: &Path, args: &SimulateArgs) -> Result<Scenario> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::invalid(format!("cannot read trace {}", path.display())).with_source(error))?;
    let trace = workload::parse(&text).map_err(|error| error.wrap(format!("in trace {}", path.display())))?;
    let models = workload::models(trace.models, &mut Random::new(args.seed));
    let name = path.file_stem().map_or_else(|| "trace".to_owned(), |stem| stem.to_string_lossy().into_owned());
    Ok(Scenario { name, capacity: capacity(&models, args.capacity), requests: trace.requests, models })
}

fn synthetic(kind: Synthetic, alpha: f64, args: &SimulateArgs) -> Scenario {
    let mut random = Random::new(args.seed);
    let models = workload::models(args.models as usize, &mut random);
    let keys = workload::synthesize(kind, alpha, models.len(), args.requests as usize, &mut random);
    let requests =
        keys.into_iter().enumerate().map(|(index, key)| (index as f64 * SECONDS_BETWEEN_REQUESTS, key)).collect();
    let name = format!("{} {alpha}", kind.name());
    Scenario { name, requests, capacity: capacity(&models, args.capacity), models }
}

fn capacity(models: &[Model], percent: f64) -> u64 {
    let all: u64 = models.iter().map(|model| model.bytes).sum();
    (all as f64 * percent / 100.0) as u64
}

fn measure(scenario: Scenario, policies: &[Policy], bar: &ProgressBar) -> Result<Row> {
    let Scenario { name, requests, models, capacity } = scenario;
    let mut outcomes = Vec::new();
    let mut lru = Outcome::default();
    for &policy in policies {
        bar.set_message(format!("{name}, {}", policy.name()));
        let outcome = replay::replay(&requests, &models, capacity, policy, &|| bar.tick())?;
        if policy == Policy::Lru {
            lru = outcome;
        }
        outcomes.push((policy, outcome));
        bar.inc(1);
    }
    bar.set_message(format!("{name}, bounds"));
    let clairvoyant = replay::clairvoyant(&requests, &models, capacity);
    bar.inc(1);
    let bound = replay::lower_bound(&requests, &models, capacity);
    bar.inc(1);
    Ok(Row { name, requests: requests.len(), models: models.len(), capacity, outcomes, lru, clairvoyant, bound })
}

fn progress(steps: u64) -> ProgressBar {
    let bar = if io::stderr().is_terminal() { ProgressBar::new(steps) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{msg:28} [{bar:30}] {pos}/{len}, {eta} left") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn print_table(out: &mut impl Write, rows: &[Row], percent: f64) -> io::Result<()> {
    writeln!(
        out,
        "Load wait in seconds per 1,000 requests, and relative to lru; the tier holds {percent} % of all bytes"
    )?;
    writeln!(
        out,
        "{:<16} {:<12} {:>10} {:>9} {:>10} {:>10}",
        "traffic", "policy", "wait", "relative", "loads", "evictions"
    )?;
    for row in rows {
        for (policy, outcome) in &row.outcomes {
            let (wait, relative) = (outcome.wait_per_thousand(), row.relative(outcome.wait));
            let (loads, evictions) = (outcome.loads, outcome.evictions);
            let policy = policy.name();
            writeln!(out, "{:<16} {policy:<12} {wait:>10.2} {relative:>9.3} {loads:>10} {evictions:>10}", row.name)?;
        }
        for (bound, wait) in [("clairvoyant", row.clairvoyant), ("bound", row.bound)] {
            let (wait, relative) = (row.per_thousand(wait), row.relative(wait));
            writeln!(out, "{:<16} {bound:<12} {wait:>10.2} {relative:>9.3}", row.name)?;
        }
    }
    Ok(())
}

fn print_json(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let policies: Vec<_> = row
                .outcomes
                .iter()
                .map(|(policy, outcome)| {
                    serde_json::json!({
                        "policy": policy.name(),
                        "wait_s_per_1000": outcome.wait_per_thousand(),
                        "relative_to_lru": row.relative(outcome.wait),
                        "loads": outcome.loads,
                        "evictions": outcome.evictions,
                        "refused": outcome.refused,
                    })
                })
                .collect();
            serde_json::json!({
                "traffic": row.name,
                "requests": row.requests,
                "models": row.models,
                "capacity_bytes": row.capacity,
                "policies": policies,
                "clairvoyant_wait_s_per_1000": row.per_thousand(row.clairvoyant),
                "bound_wait_s_per_1000": row.per_thousand(row.bound),
            })
        })
        .collect();
    writeln!(out, "{}", serde_json::json!({ "scenarios": rows }))
}

fn draw(rows: &[Row], percent: f64) -> String {
    let mut legend: Vec<String> = Vec::new();
    if let Some(row) = rows.first() {
        legend.extend(row.outcomes.iter().map(|(policy, _)| policy.name().to_owned()));
    }
    legend.extend(["clairvoyant".to_owned(), "bound".to_owned()]);
    let groups: Vec<Group> = rows
        .iter()
        .map(|row| {
            let waits = row.outcomes.iter().map(|(_, outcome)| outcome.wait).chain([row.clairvoyant, row.bound]);
            Group { name: row.name.clone(), bars: waits.map(|wait| row.relative(wait)).collect() }
        })
        .collect();
    plot::bars(&format!("Load wait relative to lru, tier of {percent} % of all bytes"), &legend, &groups)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: SimulateArgs,
    }

    fn args(words: &[&str]) -> SimulateArgs {
        Cli::try_parse_from(["simulate"].iter().chain(words)).unwrap().args
    }

    #[test]
    fn the_cost_aware_policy_keeps_its_targets_against_lru() {
        let rows = simulate(&args(&["--models", "300", "--requests", "30000"])).unwrap();
        assert_eq!(rows.len(), 8);
        for row in rows {
            let (policy, outcome) = row.outcomes[0];
            assert_eq!(policy, Policy::CostAware);
            let target = if row.name.starts_with("bursty") { 1.05 } else { 0.80 };
            assert!(row.relative(outcome.wait) <= target, "{}: {}", row.name, row.relative(outcome.wait));
            assert!(row.bound <= outcome.wait && row.bound <= row.lru.wait);
        }
    }

    #[test]
    fn the_same_seed_prints_the_same_and_both_forms_name_every_scenario() {
        let words = ["--synthetic", "zipf", "--models", "50", "--requests", "2000", "--seed", "9"];
        let print = || {
            let rows = simulate(&args(&words)).unwrap();
            let (mut table, mut json) = (Vec::new(), Vec::new());
            print_table(&mut table, &rows, 10.0).unwrap();
            print_json(&mut json, &rows).unwrap();
            (String::from_utf8(table).unwrap(), String::from_utf8(json).unwrap())
        };
        let (table, json) = print();
        assert_eq!(print(), (table.clone(), json.clone()));
        assert!(table.contains("zipf 1.2"));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["scenarios"][1]["policies"][1]["relative_to_lru"], 1.0);
    }

    #[test]
    fn a_recorded_trace_is_replayed_and_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("day.csv");
        std::fs::write(&path, "time_s,model\n0,a\n1,b\n2,a\n3,c\n4,a\n").unwrap();
        let rows = simulate(&args(&["--trace", path.to_str().unwrap(), "--capacity", "60"])).unwrap();
        assert_eq!((rows[0].name.as_str(), rows[0].requests, rows[0].models), ("day", 5, 3));
        assert!(draw(&rows, 60.0).contains(">day<"));
        std::fs::write(&path, "0,a\nnonsense\n").unwrap();
        let error = simulate(&args(&["--trace", path.to_str().unwrap()])).map(|_| ()).unwrap_err();
        assert!(error.report().contains("day.csv") && error.report().contains("line 2"), "{}", error.report());
    }

    #[test]
    fn capacities_and_exponents_out_of_range_are_refused() {
        for words in [["--capacity", "0"], ["--capacity", "101"], ["--alpha", "-1"], ["--alpha", "nan"]] {
            assert!(Cli::try_parse_from(["simulate"].iter().chain(&words)).is_err(), "{words:?}");
        }
        assert_eq!(args(&["--capacity", "5%"]).capacity, 5.0);
    }
}

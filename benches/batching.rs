//! The batcher: what it costs to queue a request and to take it in a batch, and what a learned delay is worth on a bursty
//! load beside every constant one, in a simulation with the real batcher.
//!
//! `cargo bench --bench batching`

#![expect(clippy::print_stdout, reason = "a benchmark prints what it found")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use roundhouse::scheduler::batcher::{Batched, Batcher, Entry, Next, Rules};
use roundhouse::scheduler::budget::Budget;
use roundhouse::scheduler::bursts::{Load, Machine, Outcome, Policy};

const REQUESTS: usize = 50_000;
const SEED: u64 = 7;

/// As large as a real request's place in the queue.
struct Request([u64; 32]);

impl Batched for Request {
    fn items(&self) -> u32 {
        1
    }

    fn is_gone(&self) -> bool {
        false
    }

    fn fits(&self, first: &Self) -> bool {
        self.0[0] == first.0[0]
    }
}

fn per_request(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batcher");
    for batch in [1_u32, 8, 64] {
        let rules = Rules { max_items: batch, preferred: vec![batch], capacity: 1000, ..Rules::default() };
        let mut batcher = Batcher::new(rules);
        group.throughput(Throughput::Elements(u64::from(batch)));
        group.bench_function(format!("push and next, batches of {batch}"), |bencher| {
            let now = Instant::now();
            bencher.iter(|| {
                for _ in 0..batch {
                    let admission = batcher.rules().admit(0, None, now);
                    let entry = Entry { request: Request(black_box([0; 32])), admission, queued: now };
                    assert!(batcher.push(entry).is_ok(), "the queue has room");
                }
                assert!(matches!(black_box(batcher.next(now, Duration::ZERO)), Next::Batch(_)), "a batch is full");
            });
        });
    }
    group.throughput(Throughput::Elements(1));
    let mut budget = Budget::new(Duration::from_millis(20), 64);
    (1..=64).for_each(|items| budget.observe_run(items, Duration::from_millis(5) + Duration::from_micros(100) * items));
    let mut now = Instant::now();
    group.bench_function("a budget's arrival and delay", |bencher| {
        bencher.iter(|| {
            now += Duration::from_micros(250);
            budget.observe_arrival(now, 1);
            black_box(budget.delay(now, 3, now))
        });
    });
    group.finish();
}

/// Every constant delay up to 4 ms in steps of 100 us, then to 14 ms in steps of 1 ms.
fn grid() -> impl Iterator<Item = Duration> {
    (0..40).map(|step| step * 100).chain((4..15).map(|step| step * 1000)).map(Duration::from_micros)
}

fn show(name: &str, outcome: &Outcome) {
    println!(
        "  {name:<26} within {:6.2} %  mean {:>6} us  p99 {:>6} us  {:>5.0}/s  batch {:5.2}  busy {:4.1} %",
        outcome.within * 100.0,
        outcome.mean.as_micros(),
        outcome.p99.as_micros(),
        outcome.throughput,
        outcome.batch,
        outcome.busy * 100.0
    );
}

fn table() {
    let loads = [
        ("bursts of 20, few alone", Load { quiet: 20.0, burst: 4000.0, quiet_seconds: 0.2, burst_seconds: 0.005 }),
        ("bursts of 20, a third alone", Load { quiet: 100.0, burst: 4000.0, quiet_seconds: 0.1, burst_seconds: 0.005 }),
        ("long bursts of 40", Load { quiet: 20.0, burst: 2000.0, quiet_seconds: 0.1, burst_seconds: 0.02 }),
        ("sharp bursts of 20", Load { quiet: 50.0, burst: 10_000.0, quiet_seconds: 0.05, burst_seconds: 0.002 }),
        ("hardly bursts at all", Load { quiet: 100.0, burst: 400.0, quiet_seconds: 0.5, burst_seconds: 0.5 }),
    ];
    println!("runs of 5 ms + 0.1 ms an item, batches up to 64, a budget of 20 ms, {REQUESTS} requests");
    for instances in [1, 2] {
        for (name, load) in &loads {
            let machine = Machine {
                instances,
                fixed: Duration::from_millis(5),
                item: Duration::from_micros(100),
                max_items: 64,
                budget: Duration::from_millis(20),
            };
            let arrivals = load.arrivals(SEED, REQUESTS);
            println!("{name}, {instances} instances");
            show("no delay", &machine.serve(&arrivals, Policy::Constant(Duration::ZERO)));
            let outcomes = grid().map(|delay| (delay, machine.serve(&arrivals, Policy::Constant(delay))));
            if let Some((delay, best)) = outcomes.min_by_key(|(_, outcome)| outcome.mean) {
                show(&format!("best constant, {} us", delay.as_micros()), &best);
            }
            show("learned", &machine.serve(&arrivals, Policy::Learned));
        }
    }
}

criterion_group!(benches, per_request);

fn main() {
    table();
    benches();
    Criterion::default().configure_from_args().final_summary();
}

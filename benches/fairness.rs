//! What a hot model costs a cold one on the same device, through the real executor: the times of the cold model's requests
//! alone, and with ten times its load on the hot one. The target is a p99 of at most twice that alone.
//!
//! `cargo bench --bench fairness`

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a benchmark prints what it found, or fails")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse::backend::identity::Identity;
use roundhouse::backend::placement::Placement;
use roundhouse::backend::{Backend, Model, ModelFiles};
use roundhouse::inference::{DeviceId, NamedTensor};
use roundhouse::metrics::statistics::ModelStatistics;
use roundhouse::model_config::{UnknownFields, parse};
use roundhouse::scheduler::executor::Executor;
use roundhouse::scheduler::queue::{Member, ModelQueue, Scheduling};
use roundhouse::scheduler::work::Work;
use roundhouse::tensor::{Shape, Tensor};

/// How long a run takes: the thread sleeps, as one that waits for a GPU does.
const RUN_MS: u64 = 4;

/// The cold model's part of the device's time; the hot one has ten times as much.
const PARTS: [f64; 2] = [0.05, 0.08];

/// Requests of the cold model in each measurement.
const REQUESTS: usize = 400;

fn queue(executor: &Executor, name: &str, instances: usize) -> Arc<ModelQueue> {
    let tensor = "[ { name: 'x' data_type: TYPE_INT32 dims: [ 1 ] } ]";
    let text = format!(
        "name: '{name}' backend: 'identity' input {tensor} output {tensor}
         parameters {{ key: 'execute_delay_ms' value {{ string_value: '{RUN_MS}' }} }}"
    );
    let config = parse(&text, UnknownFields::Deny).expect("the configuration is right").config;
    let files = ModelFiles {
        directory: ".".into(),
        version_directory: ".".into(),
        version: 1,
        model_file: None,
        derived: None,
    };
    let model: Arc<dyn Model> =
        Identity.load(&files, &config, &Placement::of(DeviceId::Cpu)).expect("identity loads").into();
    let member = Member { model, instances, executor: executor.handle(), share: Arc::default() };
    ModelQueue::new(vec![member], Scheduling::one_by_one(100_000), Arc::new(ModelStatistics::default()))
        .expect("instances of identity can be made")
}

fn work() -> Work {
    let tensor = Tensor::from_vec(Shape::new(&[1]), vec![1_i32]).expect("one number is a tensor");
    Work {
        inputs: std::iter::once(NamedTensor { name: "x".into(), tensor }).collect(),
        outputs: std::iter::once(0).collect(),
        batch_size: 1,
        deadline: None,
        priority: 0,
        arrived: Instant::now(),
        trace: None,
        sequence: None,
        id: "".into(),
    }
}

/// Gaps between requests that know nothing of each other, always the same.
struct Gaps {
    state: u64,
    mean: Duration,
}

impl Gaps {
    #[expect(clippy::cast_precision_loss, reason = "53 random bits")]
    fn next(&mut self) -> Duration {
        // xorshift64* (Vigna 2016).
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let unit = (self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64;
        self.mean.mul_f64(-(1.0 - unit).ln())
    }
}

/// Requests at a rate, whether answered or not, until so many were asked; how long each took.
async fn load(queue: &Arc<ModelQueue>, rate: f64, requests: usize, seed: u64) -> Vec<Duration> {
    let mut gaps = Gaps { state: seed, mean: Duration::from_secs_f64(1.0 / rate) };
    let mut at = tokio::time::Instant::now();
    let mut answers = Vec::with_capacity(requests);
    for _ in 0..requests {
        at += gaps.next();
        tokio::time::sleep_until(at).await;
        let queue = Arc::clone(queue);
        answers.push(tokio::spawn(async move {
            let began = Instant::now();
            queue.infer(work()).await.expect("an answer");
            began.elapsed()
        }));
    }
    let mut times = Vec::with_capacity(requests);
    for answer in answers {
        times.push(answer.await.expect("no request panics"));
    }
    times.sort_unstable();
    times
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime can be started");
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    println!("a thread, {RUN_MS} ms a run, {REQUESTS} requests of the cold model; the hot one has ten times as many");
    for part in PARTS {
        let rate = part * 1e3 / RUN_MS as f64;
        let mut ratios = Vec::new();
        for seed in [3, 17, 41] {
            let measured = |hot: bool| {
                let executor = Executor::start(DeviceId::Cpu, 1, 1).expect("a thread can be started");
                let (cold_queue, hot_queue) = (queue(&executor, "cold", 4), queue(&executor, "hot", 4));
                let times = runtime.block_on(async {
                    let heating = hot.then(|| {
                        let hot_queue = Arc::clone(&hot_queue);
                        tokio::spawn(async move { load(&hot_queue, rate * 10.0, REQUESTS * 10, seed + 1).await })
                    });
                    let times = load(&cold_queue, rate, REQUESTS, seed).await;
                    if let Some(heating) = heating {
                        heating.abort();
                    }
                    times
                });
                runtime.block_on(async {
                    drop(cold_queue.close().await);
                    drop(hot_queue.close().await);
                });
                times
            };
            let (alone, beside) = (measured(false), measured(true));
            let ratio = milliseconds(percentile(&beside, 99)) / milliseconds(percentile(&alone, 99));
            println!(
                "cold has {:4.0} % of the device: p50 {:5.2} -> {:5.2} ms, p99 {:5.2} -> {:5.2} ms, {ratio:.2}x",
                part * 100.0,
                milliseconds(percentile(&alone, 50)),
                milliseconds(percentile(&beside, 50)),
                milliseconds(percentile(&alone, 99)),
                milliseconds(percentile(&beside, 99)),
            );
            ratios.push(ratio);
        }
        ratios.sort_by(f64::total_cmp);
        println!("  median of the p99s {:.2}x", ratios.get(ratios.len() / 2).copied().unwrap_or_default());
    }
}

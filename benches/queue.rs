//! What the scheduler itself costs: a request through a model's queue and a device's thread, and the short way that quick
//! models earn.
//!
//! `cargo bench --bench queue`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use criterion::{Criterion, criterion_group, criterion_main};
use roundhouse::backend::{Batch, Execution, Model, ModelInstance};
use roundhouse::error::Result;
use roundhouse::inference::{DeviceId, NamedTensor, NamedTensors};
use roundhouse::metrics::statistics::ModelStatistics;
use roundhouse::model_config::complete::RuntimeSignature;
use roundhouse::scheduler::executor::Executor;
use roundhouse::scheduler::prompt::LIMIT;
use roundhouse::scheduler::queue::{Member, ModelQueue, Scheduling};
use roundhouse::scheduler::work::Work;
use roundhouse::tensor::{Shape, Tensor};

/// Gives back its input; a slow one says that it took long, so that it never earns the short way.
struct Copies {
    slow: bool,
    signature: RuntimeSignature,
}

impl Model for Copies {
    fn signature(&self) -> &RuntimeSignature {
        &self.signature
    }

    fn instance(&self) -> Result<Box<dyn ModelInstance>> {
        Ok(Box::new(Instance { slow: self.slow, runs: 0 }))
    }
}

struct Instance {
    slow: bool,
    runs: u64,
}

impl ModelInstance for Instance {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<Execution> {
        self.runs += 1;
        // One long run in eight keeps the model from the short way at an eighth of its cost; the figure is of the others.
        if self.slow && self.runs.is_multiple_of(8) {
            let end = Instant::now() + LIMIT;
            while Instant::now() <= end {
                std::hint::spin_loop();
            }
        }
        let now = Instant::now();
        Ok(Execution { outputs: batch.inputs.iter().cloned().collect(), compute_start: now, compute_end: now })
    }
}

fn work() -> Work {
    let tensor = Tensor::from_vec(Shape::new(&[1, 16]), vec![1.0_f32; 16]);
    let inputs: NamedTensors = tensor.into_iter().map(|tensor| NamedTensor { name: "INPUT0".into(), tensor }).collect();
    Work {
        inputs,
        outputs: [0].into_iter().collect(),
        batch_size: 1,
        deadline: None,
        priority: 0,
        arrived: Instant::now(),
        sequence: None,
        id: "".into(),
        trace: None,
    }
}

#[expect(clippy::expect_used, reason = "a bench that cannot start has nothing to measure")]
fn hand_over(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().expect("a runtime");
    let executor = Executor::start(DeviceId::Cpu, 1, 1).expect("an executor");
    let queue = |slow| {
        let model = Arc::new(Copies { slow, signature: RuntimeSignature::default() });
        let member = Member { model, instances: 1, executor: executor.handle(), share: Arc::default() };
        ModelQueue::new(vec![member], Scheduling::one_by_one(64), Arc::new(ModelStatistics::default()))
            .expect("a queue")
    };
    let (short, long) = (queue(false), queue(true));
    let mut group = criterion.benchmark_group("queue");
    group.bench_function("short way", |bencher| {
        bencher.iter(|| runtime.block_on(short.infer(black_box(work()))));
    });
    group.bench_function("through the device's thread, one run in eight of 100 us", |bencher| {
        bencher.iter(|| runtime.block_on(long.infer(black_box(work()))));
    });
    group.finish();
}

criterion_group!(benches, hand_over);
criterion_main!(benches);

//! Batches of a real model.

use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use roundhouse::backend::onnxruntime::OnnxRuntime;
use roundhouse::backend::placement::Placement;
use roundhouse::backend::runtime_paths::onnxruntime_path;
use roundhouse::backend::{Backend, Batch, Model, ModelFiles};
use roundhouse::config::default_runtime_dir;
use roundhouse::inference::{DeviceId, NamedTensor, NamedTensors};
use roundhouse::metrics::statistics::ModelStatistics;
use roundhouse::model_config::{UnknownFields, parse};
use roundhouse::scheduler::executor::Executor;
use roundhouse::scheduler::queue::{Member, ModelQueue, Scheduling};
use roundhouse::scheduler::work::Work;
use roundhouse::tensor::{Shape, Tensor};

use super::AN_HOUR;
use crate::support::server::all;

fn example(model: &str, batching: &str) -> (OnnxRuntime, Arc<dyn Model>, Scheduling) {
    let library = onnxruntime_path(&default_runtime_dir().unwrap());
    let runtime = OnnxRuntime::open(&library, 1).unwrap_or_else(|error| panic!("{}", error.report()));
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models-examples").join(model);
    let text = std::fs::read_to_string(directory.join("config.pbtxt")).unwrap();
    let config = parse(&format!("{text} {batching}"), UnknownFields::Deny).unwrap().config;
    let version_directory = directory.join("1");
    let files = ModelFiles { directory, version_directory, version: 1, model_file: None, derived: None };
    let model = runtime.load(&files, &config, &Placement::of(DeviceId::Cpu)).unwrap().into();
    (runtime, model, Scheduling::of(&config, 64).unwrap())
}

/// Rows of `add_sub`, from a seed.
fn add_sub(rows: i64, seed: u32) -> NamedTensors {
    let tensor = |name: &str, salt: u32| {
        let element =
            |at: u32| f32::from_bits((at ^ seed).wrapping_mul(2_654_435_761).wrapping_add(salt) & 0x7f3f_ffff);
        let elements = (0..u32::try_from(rows).unwrap() * 16).map(element).collect();
        NamedTensor { name: name.into(), tensor: Tensor::from_vec(Shape::new(&[rows, 16]), elements).unwrap() }
    };
    [tensor("INPUT0", 1), tensor("INPUT1", 77)].into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// All requests in one batch: it is full when the last of them is there, and waits for that.
    #[test]
    fn answers_are_bit_by_bit_those_of_requests_that_run_alone(
        requests in prop::collection::vec((1_i64..4, any::<u32>()), 2..5)
            .prop_filter("they fit one batch", |requests| requests.iter().map(|(rows, _)| rows).sum::<i64>() <= 8),
    ) {
        let total: i64 = requests.iter().map(|(rows, _)| rows).sum();
        let delay = format!("dynamic_batching {{ preferred_batch_size: {total} max_queue_delay_microseconds: {AN_HOUR} }}");
        let (_runtime, model, scheduling) = example("add_sub", &delay);
        let mut alone = model.instance().unwrap();
        let statistics = Arc::new(ModelStatistics::default());
        let executor = Executor::start(DeviceId::Cpu, 1, 1).unwrap();
        let member = Member { model, instances: 1, executor: executor.handle(), share: Arc::default() };
        let queue = ModelQueue::new(vec![member], scheduling, Arc::clone(&statistics)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let together = runtime.block_on(all(requests.iter().map(|(rows, seed)| {
            let work = Work {
                inputs: add_sub(*rows, *seed),
                outputs: [0, 1].into_iter().collect(),
                batch_size: rows.unsigned_abs(),
                deadline: None,
                priority: 0,
                arrived: Instant::now(),
                sequence: None,
 id: "".into(),
 trace: None,
            };
            queue.infer(work)
        })));
        prop_assert_eq!(statistics.executions(), 1);
        for ((rows, seed), together) in requests.iter().zip(together) {
            let inputs = add_sub(*rows, *seed);
            let alone = alone.execute(&Batch { inputs: &inputs, outputs: &[0, 1] }).unwrap().outputs;
            for (one, other) in alone.iter().zip(&together.unwrap()) {
                prop_assert_eq!(&one.name, &other.name);
                prop_assert_eq!(one.tensor.shape(), other.tensor.shape());
                prop_assert_eq!(one.tensor.data(), other.tensor.data());
            }
        }
        drop(runtime.block_on(queue.close()));
    }
}

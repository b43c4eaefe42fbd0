//! Sessions of ONNX Runtime as they are on a GPU, but for the kernels: memory is handed out by us, inputs and outputs go by
//! streams through locked memory. The CPU computes, in the double's memory, which is the host's; the double does what a
//! stream was asked for when it is waited for, so that a missing wait gives wrong numbers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use roundhouse::backend::onnxruntime::{NAME, OnnxRuntime, encode};
use roundhouse::backend::placement::{GpuShare, Placement};
use roundhouse::backend::runtime_paths::onnxruntime_path;
use roundhouse::backend::{Backend, Batch, Model, ModelFiles};
use roundhouse::config::default_runtime_dir;
use roundhouse::device::cuda::gpu::Gpu;
use roundhouse::device::cuda::pinned::PinnedPool;
use roundhouse::error::{ErrorKind, Result};
use roundhouse::inference::NamedTensor;
use roundhouse::model_config::ModelConfig;
use roundhouse::tensor::{DataType, Shape, Tensor};

use crate::support::{MIB, assert_nothing_is_left, context};

const MACHINE: &str = "device 1073741824";

/// Numbers a row.
const SIDE: u32 = 256;

fn backend() -> OnnxRuntime {
    OnnxRuntime::open(&onnxruntime_path(&default_runtime_dir().unwrap()), 2).unwrap().with_stand_in()
}

fn gpu(memory: u64) -> Arc<Gpu> {
    let context = context();
    Gpu::open(&context, &PinnedPool::new(&context, 64 * MIB, MIB), memory, 2).unwrap()
}

fn share(gpu: &Arc<Gpu>, name: &str, limit: u64) -> GpuShare {
    GpuShare { owner: gpu.pool().owner(name, limit).unwrap(), gpu: Arc::clone(gpu) }
}

fn load(file: &Path, share: &GpuShare) -> Result<Box<dyn Model>> {
    let directory = file.parent().unwrap().to_owned();
    let files = ModelFiles {
        version_directory: directory.clone(),
        directory,
        version: 1,
        model_file: Some(file.to_owned()),
        derived: None,
    };
    backend().load(&files, &ModelConfig::minimal("m", NAME), &Placement::on(share.clone()))
}

/// A model of so many MiB of weights, which gives back rows whose numbers are equal.
fn products(folder: &Path, quarters: u32) -> PathBuf {
    let file = folder.join("model.onnx");
    std::fs::write(&file, encode::products(SIDE, quarters)).unwrap();
    file
}

fn rows(count: u16, first: f32) -> Tensor {
    let values = (0..count).flat_map(|row| vec![first + f32::from(row); SIDE as usize]).collect::<Vec<f32>>();
    Tensor::from_vec(Shape::new(&[i64::from(count), i64::from(SIDE)]), values).unwrap()
}

fn run(model: &dyn Model, tensor: Tensor) -> Result<Tensor> {
    let inputs = [NamedTensor { name: "x".into(), tensor }];
    let execution = model.instance()?.execute(&Batch { inputs: &inputs, outputs: &[0] })?;
    Ok(execution.outputs.into_iter().next().unwrap().tensor)
}

alone! {
    on MACHINE;
    fn a_session_takes_its_memory_from_its_owner_and_answers_from_many_threads() {
        let place = tempfile::tempdir().unwrap();
        let gpu = gpu(200 * MIB);
        let share = share(&gpu, "m", 100 * MIB);
        let model = load(&products(place.path(), 8), &share).unwrap();
        let loaded = share.owner.usage();
        assert!(loaded.weights >= 2 * MIB && loaded.activations == 0, "{loaded:?}");
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let model = &*model;
                scope.spawn(move || {
                    let mut instance = model.instance().unwrap();
                    for round in 0..50_u16 {
                        let given = rows(1 + round % 7, f32::from(thread) * 100.0);
                        let inputs = [NamedTensor { name: "x".into(), tensor: given.clone() }];
                        let execution = instance.execute(&Batch { inputs: &inputs, outputs: &[0] }).unwrap();
                        assert!(execution.compute_start <= execution.compute_end);
                        assert_eq!(execution.outputs[0].tensor, given);
                    }
                });
            }
        });
        let ran = share.owner.usage();
        assert!(ran.activations_peak > 0 && ran.activations == 0 && ran.weights == loaded.weights, "{ran:?}");
        assert_eq!(run(&*model, rows(0, 0.0)).unwrap(), rows(0, 0.0), "no rows are no fault");
        drop(model);
        assert_eq!(share.owner.usage().weights, 0);
        drop((share, gpu));
        assert_nothing_is_left();
    }
}

alone! {
    on MACHINE;
    fn memory_that_is_refused_fails_the_load_or_the_run_and_the_session_goes_on() {
        let place = tempfile::tempdir().unwrap();
        let gpu = gpu(200 * MIB);
        let file = products(place.path(), 16);
        let small = share(&gpu, "small", 2 * MIB);
        let error = load(&file, &small).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::OutOfDeviceMemory, "{}", error.report());
        assert_eq!(small.owner.usage().weights, 0, "a load that failed holds nothing");
        let share = share(&gpu, "m", 16 * MIB);
        let model = load(&file, &share).unwrap();
        for _ in 0..3 {
            let error = run(&*model, rows(10_000, 1.0)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfDeviceMemory, "{}", error.report());
            assert_eq!(share.owner.usage().activations, 0, "a run that failed holds nothing");
            assert_eq!(run(&*model, rows(3, 1.0)).unwrap(), rows(3, 1.0));
        }
        drop(model);
        drop((small, share, gpu));
        assert_nothing_is_left();
    }
}

alone! {
    on MACHINE;
    fn every_type_goes_there_and_back_and_strings_stay() {
        let gpu = gpu(200 * MIB);
        let share = share(&gpu, "m", 50 * MIB);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models-examples/every_type/1/model.onnx");
        let model = load(&file, &share).unwrap();
        let signature = model.signature().clone();
        let mut inputs: Vec<NamedTensor> = Vec::new();
        for input in &signature.inputs {
            let tensor = match input.data_type {
                DataType::Bytes => Tensor::from_strings(Shape::new(&[2]), &[&b"\xff\0\xfe"[..], b""]).unwrap(),
                data_type => {
                    let bytes = vec![1_u8; 2 * data_type.size().unwrap()];
                    Tensor::new(data_type, Shape::new(&[2]), bytes.into()).unwrap()
                }
            };
            inputs.push(NamedTensor { name: input.name.as_str().into(), tensor });
        }
        let wanted: Vec<usize> = (0..signature.outputs.len()).collect();
        let mut instance = model.instance().unwrap();
        for _ in 0..2 {
            let outputs = instance.execute(&Batch { inputs: &inputs, outputs: &wanted }).unwrap().outputs;
            for (input, output) in inputs.iter().zip(&outputs) {
                assert_eq!(input.tensor, output.tensor, "{}", input.name);
            }
        }
        let wrong = signature.inputs.iter().position(|input| input.data_type == DataType::Bool).unwrap();
        inputs[wrong].tensor = Tensor::new(DataType::Bool, Shape::new(&[2]), vec![1, 2].into()).unwrap();
        let error = instance.execute(&Batch { inputs: &inputs, outputs: &wanted }).unwrap_err();
        assert!(error.report().contains("BOOL element 1 is 2"), "{}", error.report());
        drop((instance, model));
        drop((share, gpu));
        assert_nothing_is_left();
    }
}

alone! {
    on MACHINE;
    fn a_session_whose_model_slept_goes_on_with_the_very_same_weights() {
        let place = tempfile::tempdir().unwrap();
        let gpu = gpu(200 * MIB);
        let sleeper = share(&gpu, "m", 100 * MIB);
        let model = load(&products(place.path(), 24), &sleeper).unwrap();
        assert_eq!(run(&*model, rows(5, 1.0)).unwrap(), rows(5, 1.0));
        let awake = sleeper.owner.usage();
        for _ in 0..3 {
            let slept = gpu.sleeper().sleep(&sleeper.owner).unwrap();
            assert_eq!((slept.bytes, sleeper.owner.usage().weight_memory), (awake.weights, 0));
            // What was its memory is another's meanwhile.
            let other = share(&gpu, "other", 100 * MIB);
            let else_model = load(&products(place.path(), 16), &other).unwrap();
            assert_eq!(run(&*else_model, rows(9, 3.0)).unwrap(), rows(9, 3.0));
            drop(else_model);
            gpu.sleeper().wake(&sleeper.owner).unwrap();
            assert_eq!(run(&*model, rows(5, 2.0)).unwrap(), rows(5, 2.0));
        }
        assert_eq!(sleeper.owner.usage().weights, awake.weights);
        drop(model);
        drop((sleeper, gpu));
        assert_nothing_is_left();
    }
}

//! Memory of this process, in a process of its own: what a dropped model held goes back to the system.

#![cfg(target_env = "gnu")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

use bytes::Bytes;
use roundhouse::backend::onnxruntime::{NAME, OnnxRuntime, encode};
use roundhouse::backend::placement::Placement;
use roundhouse::backend::runtime_paths::{ONNXRUNTIME_INSTALL, onnxruntime_path};
use roundhouse::backend::{Backend, Batch, Model, ModelFiles, ModelMemory};
use roundhouse::config::default_runtime_dir;
use roundhouse::device::allocator::{Meter, Trimmer, in_use};
use roundhouse::device::host::Host;
use roundhouse::device::monitor::DeviceMonitor;
use roundhouse::inference::{DeviceId, NamedTensor};
use roundhouse::model_config::ModelConfig;
use roundhouse::tensor::{DataType, Shape, Tensor};

const MIB: u64 = 1 << 20;

/// What lies between two rounds that are the same.
const SLACK: u64 = 8 * MIB;

fn resident() -> u64 {
    Host::default().memory(DeviceId::Cpu).unwrap().ours
}

/// Loads a model of 64 weights, 1 MiB each: small enough that malloc keeps them when they are freed.
fn load(backend: &OnnxRuntime, folder: &std::path::Path) -> Box<dyn Model> {
    let files = ModelFiles {
        directory: folder.to_owned(),
        version_directory: folder.to_owned(),
        version: 1,
        model_file: None,
        derived: None,
    };
    backend.load(&files, &ModelConfig::minimal("m", NAME), &Placement::of(DeviceId::Cpu)).unwrap()
}

#[test]
fn ten_rounds_of_loading_and_dropping_a_model_leave_the_process_as_it_was() {
    let library = onnxruntime_path(&default_runtime_dir().unwrap());
    let backend = OnnxRuntime::open(&library, 2)
        .unwrap_or_else(|error| panic!("{}: run `{ONNXRUNTIME_INSTALL}`", error.report()));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.onnx"), encode::products(512, 64)).unwrap();
    let (trimmer, meter) = (Trimmer::default(), Meter::default());
    let values: Bytes = bytemuck::cast_slice::<f32, u8>(&vec![2.5; 64 * 512]).to_vec().into();
    let x =
        NamedTensor { name: "x".into(), tensor: Tensor::new(DataType::Fp32, Shape::new(&[64, 512]), values).unwrap() };
    let mut rounds = Vec::new();
    for _ in 0..10 {
        let (model, grown) = meter.measure(|| load(&backend, folder.path()));
        let loaded = resident();
        // The weights once, as they are packed for the processor.
        let grown = grown.unwrap();
        assert!((64 * MIB..72 * MIB).contains(&grown), "{grown}");
        let batch = Batch { inputs: std::slice::from_ref(&x), outputs: &[0] };
        let outputs = model.instance().unwrap().execute(&batch).unwrap().outputs;
        assert_eq!(outputs.first().unwrap().tensor, x.tensor);
        let ModelMemory::Runs(runs) = model.memory() else { panic!("the arena counts runs alone") };
        drop(outputs);
        drop(model);
        assert!(trimmer.trim(grown + runs));
        rounds.push((loaded, resident(), in_use()));
    }
    let (_, first_resident, first_in_use) = rounds[0];
    for (loaded, resident, in_use) in &rounds {
        assert!(loaded - resident > 64 * MIB - SLACK, "not given back: {rounds:?}");
        assert!(resident.abs_diff(first_resident) < SLACK, "resident memory drifts: {rounds:?}");
        assert!(in_use.abs_diff(first_in_use) < MIB, "memory in use drifts: {rounds:?}");
    }
}

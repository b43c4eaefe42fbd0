//! A backend of its own library takes memory of a GPU through its table: whose it is, what it does while the model sleeps, and that
//! all of it comes back.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use roundhouse::backend::placement::{GpuShare, Placement};
use roundhouse::backend::plugin::{Opening, Plugin};
use roundhouse::backend::{Backend, Batch, Model, ModelFiles};
use roundhouse::device::cuda::gpu::Gpu;
use roundhouse::device::cuda::hooks::stray_frees;
use roundhouse::device::cuda::owner::Residence;
use roundhouse::device::cuda::pinned::PinnedPool;
use roundhouse::error::{ErrorKind, Result};
use roundhouse::inference::NamedTensor;
use roundhouse::model_config::{UnknownFields, parse};
use roundhouse::tensor::{Shape, Tensor};

use crate::support::{MIB, assert_nothing_is_left, context, count};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Builds the echo backend into the folder this test was built to: cargo builds no shared library for a test by itself.
fn echo() -> Plugin {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline", "--locked", "--package", "echo-backend", "--target-dir"]);
    cargo.arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.current_dir(ROOT).status().unwrap().success(), "the echo backend cannot be built");
    let path: PathBuf = profile.join("libroundhouse_echo.so");
    Plugin::open(&path, &Opening { executor_threads: 2, ..Opening::default() }).unwrap()
}

/// A model of so many MiB, on a share that may hold `limit` of them.
fn load(echo: &Plugin, gpu: &Arc<Gpu>, name: &str, mib: u64, limit: u64) -> Result<(Box<dyn Model>, GpuShare)> {
    let directory = Path::new(ROOT).join("models-examples/identity");
    let files =
        ModelFiles { version_directory: directory.join("1"), directory, version: 1, model_file: None, derived: None };
    let text = format!(
        "name: '{name}' backend: 'echo' input {{ name: 'x' data_type: TYPE_FP32 dims: -1 }} \
         output {{ name: 'y' data_type: TYPE_FP32 dims: -1 }} \
         parameters {{ key: 'device_bytes' value {{ string_value: '{}' }} }}",
        mib * MIB
    );
    let config = parse(&text, UnknownFields::Deny).unwrap().config;
    let share = GpuShare { owner: gpu.pool().owner(name, limit * MIB)?, gpu: Arc::clone(gpu) };
    Ok((echo.load(&files, &config, &Placement::on(share.clone()))?, share))
}

fn answers(model: &dyn Model) -> Result<()> {
    let tensor = Tensor::from_vec(Shape::new(&[2]), vec![1.5_f32, -2.0]).unwrap();
    let inputs = [NamedTensor { name: "x".into(), tensor: tensor.clone() }];
    let outputs = model.instance()?.execute(&Batch { inputs: &inputs, outputs: &[0] })?.outputs;
    assert_eq!(outputs[0].tensor, tensor);
    Ok(())
}

alone! {
    on "device 1073741824";
    fn a_backend_that_takes_memory_through_its_table_sleeps_wakes_and_gives_it_back() {
        let context = context();
        let pinned = PinnedPool::new(&context, 256 * MIB, 16 * MIB);
        let gpu = Gpu::open(&context, &pinned, 512 * MIB, 2).unwrap();
        let echo = echo();
        echo.on_gpu().unwrap();
        let (model, share) = load(&echo, &gpu, "m", 40, 200).unwrap();
        assert_eq!(share.owner.usage().weight_memory, 40 * MIB, "counted for its model, to the page");
        answers(&*model).unwrap();
        assert_eq!(share.owner.usage().activations, 0, "a run gives its own back");

        assert_eq!(gpu.sleeper().sleep(&share.owner).unwrap().bytes, 40 * MIB);
        assert_eq!(gpu.pool().usage().weights, 0, "what it wrote there is in host memory alone");
        gpu.sleeper().wake(&share.owner).unwrap();
        assert_eq!(share.owner.residence(), Residence::Awake);
        answers(&*model).unwrap();

        drop((model, share));
        assert_eq!((gpu.pool().usage().weights, gpu.others().usage().weights, stray_frees()), (0, 0, 0));
        gpu.pool().trim().unwrap();
        assert_eq!(count("physical"), 0);
        drop((gpu, pinned, context));
        assert_nothing_is_left();
    }
}

alone! {
    on "device 1073741824";
    fn what_the_allocator_refused_a_backend_is_the_reason_of_its_failure() {
        let context = context();
        let pinned = PinnedPool::new(&context, 64 * MIB, 16 * MIB);
        let gpu = Gpu::open(&context, &pinned, 100 * MIB, 1).unwrap();
        let echo = echo();
        let error = load(&echo, &gpu, "large", 40, 30).err().unwrap();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::OutOfDeviceMemory, false));
        assert!(error.report().starts_with("model 'large' gets no 41943040 bytes of gpu:0"), "{}", error.report());
        // Its weights fit, and a run's scratch does not beside them.
        let (model, _share) = load(&echo, &gpu, "half", 60, 200).unwrap();
        let error = answers(&*model).unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::OutOfDeviceMemory, true));
        let (small, _small_share) = load(&echo, &gpu, "small", 10, 200).unwrap();
        answers(&*small).unwrap();
        let error = answers(&*model).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfDeviceMemory, "it fails as before, and nothing of it was kept: {error}");
        answers(&*small).unwrap();
    }
}

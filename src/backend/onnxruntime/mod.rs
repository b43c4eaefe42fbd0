//! The `onnxruntime` backend: ONNX models through ONNX Runtime, loaded at run time.
//!
//! One environment with one thread pool serves every session, and threads do not spin while idle: in a server with many
//! models a spinning pool burned twenty times the CPU of the work itself. The instances of a model on the CPU share one
//! session, so that weights are in memory once however many instances there are.

mod allocator;
mod arena;
mod binding;
mod cuda;
#[cfg(any(test, feature = "test-util"))]
pub mod encode;
mod external;
mod ffi;
mod gpu;
mod optimised;
mod provider;
mod session;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::session::builder::GraphOptimizationLevel;

use super::placement::{GpuShare, Placement};
use super::{Backend, Model, ModelFiles};
use crate::device::cuda::hooks::{OwnerScope, take_refusal};
use crate::device::cuda::owner::Kind;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::DeviceId;
use crate::model_config::ModelConfig;

/// Its name in `config.pbtxt`.
pub const NAME: &str = "onnxruntime";

/// The oldest library that can be loaded: 1.26 still exists for CUDA 12.
const OLDEST_MINOR: u32 = 26;

const MEND: &str =
    "run `roundhouse runtime install onnxruntime`, or name a libonnxruntime.so with --onnxruntime-library";

/// The backend. There is one environment in a process, whatever the number of servers in it.
pub struct OnnxRuntime {
    environment: &'static Environment,
    /// Which library it is.
    library: PathBuf,
    /// Whether models can be on GPUs.
    cuda: OnceLock<Result<()>>,
    has_tensorrt: OnceLock<bool>,
    /// Whether the CPU and its memory stand in for GPUs, as in tests.
    has_stand_in: bool,
}

static ENVIRONMENT: OnceLock<Result<(PathBuf, Environment)>> = OnceLock::new();

impl OnnxRuntime {
    /// Loads the library and makes the environment, with `threads` for the work inside one operator.
    ///
    /// # Errors
    /// `NotReady` with the reason and the mend if the library is missing, too old or broken.
    pub fn open(library: &Path, threads: usize) -> Result<Self> {
        // ort's own search panics where there is no library, so everything is checked before it is asked.
        if !library.is_file() {
            return Err(Error::new(ErrorKind::NotReady, format!("there is no {}: {MEND}", library.display())));
        }
        let opened = ENVIRONMENT.get_or_init(|| {
            let environment = open_environment(library, threads)?;
            Ok((library.to_owned(), environment))
        });
        match opened {
            Ok((path, environment)) => {
                if path != library {
                    tracing::warn!(loaded = %path.display(), asked = %library.display(),
                        "this process has another ONNX Runtime loaded already and goes on with it");
                }
                let (cuda, has_tensorrt) = (OnceLock::new(), OnceLock::new());
                Ok(Self { environment, library: path.clone(), cuda, has_tensorrt, has_stand_in: false })
            }
            Err(error) => Err(error.clone()),
        }
    }

    /// The backend with the CPU and its memory in the place of GPUs, so that all but the kernels is what it is there.
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    pub fn with_stand_in(mut self) -> Self {
        self.has_stand_in = true;
        self
    }

    fn load_on_gpu(
        &self,
        source: session::Source<'_>,
        config: &ModelConfig,
        share: &GpuShare,
    ) -> Result<Box<dyn Model>> {
        self.on_gpu()?;
        let (compute, ordinal) = (share.stream(), share.ordinal());
        let engines = source.derived.map(|folder| folder.join("tensorrt"));
        let wants_tensorrt = config.optimization.gpu_accelerators.iter().any(|asked| asked.name == provider::TENSORRT);
        let target = provider::Target {
            ordinal,
            stream: compute.handle(),
            engines: engines.as_deref(),
            has_tensorrt: wants_tensorrt && *self.has_tensorrt.get_or_init(|| cuda::has_tensorrt(&self.library)),
        };
        let (providers, remarks) = provider::choose(&config.optimization, &target)?;
        remarks.iter().for_each(|remark| tracing::warn!(model = config.name, "{remark}"));
        if let (Some(_), Some(folder)) = (&providers.tensorrt, &engines)
            && let Err(error) = std::fs::create_dir_all(folder)
        {
            tracing::warn!(model = config.name, %error, "engines of TensorRT cannot be kept: each load builds them anew");
        }
        let (name, id) = if self.has_stand_in { (allocator::HOST, 0) } else { (allocator::CUDA, ordinal) };
        let memory = allocator::serve(self.environment, name, id)?;
        let gpu = session::Gpu { providers: (!self.has_stand_in).then_some(&providers) };
        let source = session::Source { derived: None, gpu: Some(gpu), ..source };
        let _earlier = take_refusal();
        let made = {
            let _scope = OwnerScope::enter(&share.owner, Kind::Weights);
            session::commit_on_gpu(&source)
        };
        // A runtime that gets no memory says no more than that; why is the allocator's to say.
        let (session, interface) = made.map_err(|error| take_refusal().unwrap_or(error))?;
        Ok(Box::new(gpu::GpuModel::new(session, interface, memory, compute, share.clone())?))
    }
}

fn open_environment(library: &Path, threads: usize) -> Result<Environment> {
    let unusable = |why: String| Error::new(ErrorKind::NotReady, format!("{} {why}: {MEND}", library.display()));
    match ort::util::probe(library) {
        None => return Err(unusable("cannot be loaded as ONNX Runtime 1.x".to_owned())),
        Some(minor) if minor < OLDEST_MINOR => {
            return Err(unusable(format!("is ONNX Runtime 1.{minor}, older than 1.{OLDEST_MINOR}")));
        }
        Some(_) => {}
    }
    let failed = |error: ort::Error| unusable("does not start".to_owned()).with_source(error);
    let builder =
        ort::init_from(library).map_err(|error| unusable("cannot be loaded".to_owned()).with_source(error))?;
    let pool = GlobalThreadPoolOptions::default()
        .with_intra_threads(threads)
        .and_then(|pool| pool.with_inter_threads(1))
        .and_then(|pool| pool.with_spin_control(false))
        .map_err(failed)?;
    builder.with_name("roundhouse").with_telemetry(false).with_global_thread_pool(pool).build().map_err(failed)
}

impl Backend for OnnxRuntime {
    fn name(&self) -> &'static str {
        NAME
    }

    fn known_parameters(&self) -> &'static [&'static str] {
        &[INTRA_OP_THREADS]
    }

    fn starts_threads(&self, config: &ModelConfig) -> bool {
        config.parameters.contains_key(INTRA_OP_THREADS)
    }

    fn default_model_file(&self) -> &'static str {
        "model.onnx"
    }

    fn on_gpu(&self) -> Result<()> {
        match self.has_stand_in {
            true => Ok(()),
            false => self.cuda.get_or_init(|| cuda::find(&self.library)).clone(),
        }
    }

    fn load(&self, files: &ModelFiles, config: &ModelConfig, placement: &Placement) -> Result<Box<dyn Model>> {
        let file = files.find(config, self.default_model_file())?;
        let threads = config.parameters.get(INTRA_OP_THREADS).map(|text| thread_count(text)).transpose()?;
        let source = session::Source {
            environment: self.environment,
            file: &file,
            version: files.version,
            threads: threads.flatten(),
            level: level(config.optimization.graph_level),
            derived: files.derived.as_deref(),
            gpu: None,
        };
        match (placement.share(), placement.device()) {
            (Some(share), _) => self.load_on_gpu(source, config, share),
            (None, DeviceId::Cpu) => Ok(Box::new(session::OnnxModel::load(&source)?)),
            (None, device) => Err(Error::unsupported(format!(
                "the onnxruntime backend cannot run on {device}, whose memory the server does not hand out"
            ))),
        }
    }
}

/// How far a graph is rewritten, by the number that Triton's backend of the same name takes (its `onnxruntime.cc`); others are 0.
const fn level(number: i64) -> GraphOptimizationLevel {
    match number {
        -1 => GraphOptimizationLevel::Level1,
        1 => GraphOptimizationLevel::Level2,
        2 => GraphOptimizationLevel::Disable,
        _ => GraphOptimizationLevel::All,
    }
}

/// Triton's name for the number of threads inside one operator; 0 leaves it to the server.
const INTRA_OP_THREADS: &str = "intra_op_thread_count";

/// More threads than this inside one operator help no model.
const MAX_INTRA_OP_THREADS: usize = 256;

fn thread_count(text: &str) -> Result<Option<NonZeroUsize>> {
    match text.parse() {
        Ok(count @ 0..=MAX_INTRA_OP_THREADS) => Ok(NonZeroUsize::new(count)),
        _ => Err(Error::invalid(format!(
            "parameter {INTRA_OP_THREADS} is '{text}', expected a whole number up to {MAX_INTRA_OP_THREADS}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::backend::runtime_paths::{ONNXRUNTIME_INSTALL, onnxruntime_path};
    use crate::backend::{Batch, Execution, ModelMemory};
    use crate::config::default_runtime_dir;
    use crate::inference::NamedTensor;
    use crate::tensor::{DataType, Shape, Tensor};

    pub(super) fn backend() -> OnnxRuntime {
        let library = onnxruntime_path(&default_runtime_dir().unwrap());
        OnnxRuntime::open(&library, 2).unwrap_or_else(|error| panic!("{}: run `{ONNXRUNTIME_INSTALL}`", error.report()))
    }

    fn load(file: &str) -> Result<Box<dyn Model>> {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let files = ModelFiles {
            directory: file.parent().unwrap().to_owned(),
            version_directory: file.parent().unwrap().to_owned(),
            version: 1,
            model_file: Some(file),
            derived: None,
        };
        backend().load(&files, &ModelConfig::minimal("test", NAME), &Placement::of(DeviceId::Cpu))
    }

    pub(super) fn named(name: &str, tensor: Tensor) -> NamedTensor {
        NamedTensor { name: name.into(), tensor }
    }

    pub(super) fn run(model: &dyn Model, inputs: &[NamedTensor], outputs: &[usize]) -> Result<Execution> {
        model.instance()?.execute(&Batch { inputs, outputs })
    }

    #[test]
    fn an_output_that_is_the_input_outlives_the_request() {
        let model = load("tests/fixtures/passthrough.onnx").unwrap();
        // Past the size from which outputs are taken without a copy; at an odd address, so that an aligned copy is made.
        let values: Vec<f32> = (0..20_000_u16).map(f32::from).collect();
        for skip in [0, 1] {
            let mut body = vec![0_u8; skip];
            body.extend_from_slice(bytemuck::cast_slice(&values));
            let tensor = Tensor::new(DataType::Fp32, Shape::new(&[20_000]), Bytes::from(body).slice(skip..)).unwrap();
            let mut outputs = run(&*model, &[named("x", tensor)], &[0, 1]).unwrap().outputs;
            // What was freed is used again.
            let noise: Vec<Vec<f32>> = (0..8).map(|_| vec![-1.0; 20_000]).collect();
            let negated: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(outputs.pop().unwrap().tensor.data());
            let same: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(outputs.pop().unwrap().tensor.data());
            drop(noise);
            assert_eq!(same, values);
            assert!(negated.iter().zip(&values).all(|(negated, value)| *negated == -value));
        }
    }

    #[test]
    fn instances_run_at_the_same_time_over_one_session() {
        let model = load("models-examples/iris/1/model.onnx").unwrap();
        let input = named("x", Tensor::from_vec(Shape::new(&[1, 4]), vec![5.1_f32, 3.5, 1.4, 0.2]).unwrap());
        let expected = run(&*model, std::slice::from_ref(&input), &[0]).unwrap().outputs;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut instance = model.instance().unwrap();
                    for _ in 0..500 {
                        let batch = Batch { inputs: std::slice::from_ref(&input), outputs: &[0] };
                        assert_eq!(instance.execute(&batch).unwrap().outputs, expected);
                    }
                });
            }
        });
    }

    #[test]
    fn strings_of_any_bytes_pass_and_a_bool_must_be_one() {
        let model = load("models-examples/every_type/1/model.onnx").unwrap();
        let signature = model.signature().clone();
        let mut inputs: Vec<NamedTensor> = signature
            .inputs
            .iter()
            .map(|input| {
                let size = input.data_type.size().unwrap_or(0);
                let tensor = match input.data_type {
                    DataType::Bytes => Tensor::from_strings(Shape::new(&[2]), &[&b"\xff\0\xfe"[..], b""]).unwrap(),
                    data_type => Tensor::new(data_type, Shape::new(&[2]), vec![1_u8; 2 * size].into()).unwrap(),
                };
                named(&input.name, tensor)
            })
            .collect();
        let all: Vec<usize> = (0..signature.outputs.len()).collect();
        let outputs = run(&*model, &inputs, &all).unwrap().outputs;
        for (input, output) in inputs.iter().zip(&outputs) {
            assert_eq!(input.tensor, output.tensor, "{}", input.name);
        }
        let bool_at = signature.inputs.iter().position(|input| input.data_type == DataType::Bool).unwrap();
        inputs[bool_at].tensor = Tensor::new(DataType::Bool, Shape::new(&[2]), Bytes::from_static(&[1, 2])).unwrap();
        let error = run(&*model, &inputs, &all).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.report().contains("BOOL element 1 is 2"), "{}", error.report());
    }

    #[test]
    fn runs_that_keep_memory_are_told_apart_from_the_load() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("model.onnx");
        std::fs::write(&file, encode::products(1024, 1)).unwrap();
        let model = load(file.to_str().unwrap()).unwrap();
        assert_eq!(model.memory(), ModelMemory::Runs(0));
        assert!(!model.keeps_files());
        let rows = |count: u32| {
            let values = vec![1.0_f32; count as usize * 1024];
            named("x", Tensor::from_vec(Shape::new(&[i64::from(count), 1024]), values).unwrap())
        };
        drop(run(&*model, &[rows(4096)], &[0]).unwrap());
        let ModelMemory::Runs(after) = model.memory() else { panic!("the arena counts runs alone") };
        // The answer alone is 16 MiB; the arena grows in powers of two.
        assert!((16 << 20..=64 << 20).contains(&after), "{after}");
        drop(run(&*model, &[rows(1)], &[0]).unwrap());
        assert_eq!(model.memory(), ModelMemory::Runs(after), "what was taken is kept");
        // Asked while it runs.
        std::thread::scope(|scope| {
            let runs = scope.spawn(|| (0..20).for_each(|_| drop(run(&*model, &[rows(64)], &[0]).unwrap())));
            while !runs.is_finished() {
                assert_eq!(model.memory(), ModelMemory::Runs(after));
            }
        });
    }

    #[test]
    fn weights_beside_the_model_keep_its_files() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("model.onnx");
        let graph = |location: &str| {
            let weight = encode::external_tensor("w", &[512, 512], location);
            let graph = encode::Graph::default().weight(&weight).input("x", &[-1, 512]).output("y", &[-1, 512]);
            graph.node("MatMul", &["x", "w"], &["y"]).model()
        };
        std::fs::write(place.path().join("weights"), bytemuck::cast_slice::<f32, u8>(&vec![1.0; 512 * 512])).unwrap();
        std::fs::write(&file, graph("weights")).unwrap();
        let model = load(file.to_str().unwrap()).unwrap();
        assert!(model.keeps_files());
        let ones = named("x", Tensor::from_vec(Shape::new(&[1, 512]), vec![1.0_f32; 512]).unwrap());
        let sums = run(&*model, &[ones], &[0]).unwrap().outputs.pop().unwrap().tensor;
        assert_eq!(sums.data().as_ref(), bytemuck::cast_slice::<f32, u8>(&[512.0; 512]));
        std::fs::write(&file, graph("../weights")).unwrap();
        assert_eq!(load(file.to_str().unwrap()).err().unwrap().kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn what_is_no_model_is_named_without_the_servers_folders() {
        let error = load("Cargo.toml").err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{}", error.report());
        assert!(!error.report().contains(env!("CARGO_MANIFEST_DIR")), "{}", error.report());
        assert_eq!(load("models-examples/nothing.onnx").err().unwrap().kind(), ErrorKind::NotFound);
    }
}

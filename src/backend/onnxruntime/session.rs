//! A session as a `Model`: its signature, and instances that share it.

use std::ffi::CString;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{Outlet, TensorElementType, ValueType};
use smallvec::SmallVec;

use super::super::{Batch, Execution, Model, ModelInstance, ModelMemory};
use super::external::Contents;
use super::optimised::OptimisedCopy;
use super::provider::Providers;
use super::{arena, cuda, external, ffi};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{NamedTensor, NamedTensors, Version};
use crate::model_config::complete::{RuntimeSignature, TensorSignature};
use crate::tensor::DataType;

/// A model to be loaded, and how.
pub(super) struct Source<'a> {
    pub(super) environment: &'a Environment,
    pub(super) file: &'a Path,
    pub(super) version: Version,
    /// With a number the model has a thread pool of its own, of that many.
    pub(super) threads: Option<NonZeroUsize>,
    /// How far the graph is rewritten.
    pub(super) level: GraphOptimizationLevel,
    /// Where what is made of the model may be kept.
    pub(super) derived: Option<&'a Path>,
    /// What computes it where that is not the CPU alone, in memory that is handed out by us.
    pub(super) gpu: Option<Gpu<'a>>,
}

/// What a session is made with for a GPU.
#[derive(Clone, Copy)]
pub(super) struct Gpu<'a> {
    /// `None` where the CPU stands in for the device.
    pub(super) providers: Option<&'a Providers>,
}

/// What is done with the graph before it runs.
#[derive(Clone, Copy)]
pub(super) enum Rewriting<'a> {
    /// It is rewritten for this machine.
    Yes,
    /// It is, and written to this file.
    Kept(&'a Path),
    /// This other file is loaded as it is, since it was rewritten before.
    Done(&'a Path),
}

impl Source<'_> {
    /// Makes the session.
    pub(super) fn commit(&self, rewriting: Rewriting<'_>) -> ort::Result<Session> {
        // Patterns plan memory for the largest shape seen and keep it: off halves what a session holds on to.
        let mut builder = Session::builder(self.environment)?.with_memory_pattern(false)?;
        builder = builder.with_optimization_level(self.level)?;
        if let Some(threads) = self.threads {
            builder = builder
                .with_independent_thread_pool()?
                .with_intra_threads(threads.get())?
                .with_intra_op_spinning(false)?;
        }
        if let Some(Gpu { providers }) = self.gpu {
            builder = builder.with_config_entry("session.use_env_allocators", "1")?;
            if let Some(providers) = providers {
                cuda::append(&builder, providers).map_err(|error| ort::Error::new(error.report()))?;
            }
        }
        match rewriting {
            Rewriting::Yes => builder.commit_from_file(self.file),
            // It warns that the copy is good for this machine alone, which its name sees to.
            Rewriting::Kept(copy) => {
                builder.with_optimized_model_path(copy)?.with_log_level(LogLevel::Error)?.commit_from_file(self.file)
            }
            Rewriting::Done(copy) => {
                builder.with_optimization_level(GraphOptimizationLevel::Disable)?.commit_from_file(copy)
            }
        }
    }
}

/// A loaded ONNX model.
pub(super) struct OnnxModel {
    shared: Arc<Shared>,
}

struct Shared {
    session: Session,
    /// What the arena held once the session was made: prepacked weights, which belong to the load.
    arena_at_load: u64,
    /// Whether weights lie in files beside the model, which ONNX Runtime maps.
    maps_files: bool,
    interface: Interface,
}

/// The inputs and outputs of a session.
pub(super) struct Interface {
    pub(super) signature: RuntimeSignature,
    pub(super) input_names: Vec<CString>,
    pub(super) output_names: Vec<CString>,
}

impl Interface {
    /// What a session says of itself.
    pub(super) fn of(session: &Session) -> Result<Self> {
        let signature = RuntimeSignature {
            inputs: session.inputs().iter().map(|input| describe("input", input)).collect::<Result<_>>()?,
            outputs: session.outputs().iter().map(|output| describe("output", output)).collect::<Result<_>>()?,
            optional_inputs: Vec::new(),
        };
        let names = |tensors: &[TensorSignature]| {
            tensors
                .iter()
                .map(|tensor| CString::new(tensor.name.as_str()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| Error::invalid("a tensor of the model has a NUL in its name").with_source(error))
        };
        let (input_names, output_names) = (names(&signature.inputs)?, names(&signature.outputs)?);
        Ok(Self { signature, input_names, output_names })
    }

    /// Which input is called so.
    pub(super) fn input(&self, name: &str) -> Result<usize> {
        let found = self.signature.inputs.iter().position(|known| known.name == name);
        found.ok_or_else(|| Error::internal(format!("input '{name}' came to the runtime unchecked")))
    }
}

impl OnnxModel {
    /// Loads a model.
    pub(super) fn load(source: &Source<'_>) -> Result<Self> {
        let file = source.file;
        // A file in ONNX Runtime's own format is no protobuf; its weights lie within.
        let is_onnx = file.extension().is_none_or(|extension| extension != "ort");
        let contents = if is_onnx { external::check(file)? } else { Contents::default() };
        let copy = source.derived.and_then(|folder| OptimisedCopy::of(folder, source, contents));
        let session = match copy {
            Some(copy) => copy.session(source),
            None => source.commit(Rewriting::Yes),
        };
        Self::of(session.map_err(|error| load_error(file, &error))?, contents)
    }

    /// The model of a session.
    pub(super) fn of(session: Session, contents: Contents) -> Result<Self> {
        let interface = Interface::of(&session)?;
        let arena_at_load = arena::total_allocated(&session)?;
        let maps_files = contents.has_external_data;
        let shared = Shared { session, arena_at_load, maps_files, interface };
        Ok(Self { shared: Arc::new(shared) })
    }
}

/// The session of a model on a GPU, and what it says of itself. Nothing of it is kept for the next load: what is rewritten
/// for a GPU is rewritten quickly, and engines of TensorRT are kept by itself.
pub(super) fn commit_on_gpu(source: &Source<'_>) -> Result<(Session, Interface)> {
    let is_onnx = source.file.extension().is_none_or(|extension| extension != "ort");
    if is_onnx {
        external::check(source.file)?;
    }
    let session = source.commit(Rewriting::Yes).map_err(|error| load_error(source.file, &error))?;
    let interface = Interface::of(&session)?;
    Ok((session, interface))
}

/// A model file that cannot be read is the model's fault, not the server's.
pub(super) fn load_error(file: &Path, error: &ort::Error) -> Error {
    let name = file.file_name().unwrap_or_default().display().to_string();
    let kind = match error.code() {
        ort::ErrorCode::NoSuchFile => ErrorKind::NotFound,
        ort::ErrorCode::InvalidProtobuf
        | ort::ErrorCode::InvalidGraph
        | ort::ErrorCode::InvalidArgument
        | ort::ErrorCode::NoModel => ErrorKind::InvalidArgument,
        ort::ErrorCode::NotImplemented => ErrorKind::Unsupported,
        _ => ErrorKind::BackendFailed,
    };
    // Its messages carry the whole path, which is nothing for callers from outside.
    let folder = file.parent().map(|folder| format!("{}/", folder.display())).unwrap_or_default();
    let message = error.message().replace(&folder, "");
    Error::new(kind, format!("ONNX Runtime cannot load {name}: {message}"))
}

fn describe(what: &str, outlet: &Outlet) -> Result<TensorSignature> {
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
        return Err(Error::unsupported(format!(
            "{what} '{}' of the model is a {}: only tensors can be served",
            outlet.name(),
            outlet.dtype()
        )));
    };
    let data_type = data_type(*ty).ok_or_else(|| {
        Error::unsupported(format!("{what} '{}' of the model has elements of type {ty}", outlet.name()))
    })?;
    Ok(TensorSignature { name: outlet.name().to_owned(), data_type, dims: shape.iter().copied().collect() })
}

fn data_type(element: TensorElementType) -> Option<DataType> {
    Some(match element {
        TensorElementType::Bool => DataType::Bool,
        TensorElementType::Uint8 => DataType::Uint8,
        TensorElementType::Uint16 => DataType::Uint16,
        TensorElementType::Uint32 => DataType::Uint32,
        TensorElementType::Uint64 => DataType::Uint64,
        TensorElementType::Int8 => DataType::Int8,
        TensorElementType::Int16 => DataType::Int16,
        TensorElementType::Int32 => DataType::Int32,
        TensorElementType::Int64 => DataType::Int64,
        TensorElementType::Float16 => DataType::Fp16,
        TensorElementType::Bfloat16 => DataType::Bf16,
        TensorElementType::Float32 => DataType::Fp32,
        TensorElementType::Float64 => DataType::Fp64,
        TensorElementType::String => DataType::Bytes,
        _ => return None,
    })
}

impl Model for OnnxModel {
    fn signature(&self) -> &RuntimeSignature {
        &self.shared.interface.signature
    }

    fn instance(&self) -> Result<Box<dyn ModelInstance>> {
        Ok(Box::new(OnnxInstance { shared: Arc::clone(&self.shared) }))
    }

    fn memory(&self) -> ModelMemory {
        // That it cannot be told is no reason to stop serving: the load's own cost is on the book all the same.
        let now = arena::total_allocated(&self.shared.session).unwrap_or(self.shared.arena_at_load);
        ModelMemory::Runs(now.saturating_sub(self.shared.arena_at_load))
    }

    fn keeps_files(&self) -> bool {
        self.shared.maps_files
    }
}

struct OnnxInstance {
    shared: Arc<Shared>,
}

impl ModelInstance for OnnxInstance {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<Execution> {
        let shared = &*self.shared;
        let mut values = SmallVec::<[ffi::Value<'_>; 4]>::new();
        let mut names = SmallVec::<[_; 4]>::new();
        for input in batch.inputs {
            let index = shared.interface.input(&input.name)?;
            names.push(shared.interface.input_names[index].as_ptr());
            values.push(
                ffi::Value::of(&input.tensor)
                    .map_err(|error| error.wrap(format!("input '{}' cannot be given to ONNX Runtime", input.name)))?,
            );
        }
        let wanted: SmallVec<[_; 4]> =
            batch.outputs.iter().map(|&index| shared.interface.output_names[index].as_ptr()).collect();
        let compute_start = Instant::now();
        let results = ffi::run(&shared.session, &names, &values, &wanted)?;
        let compute_end = Instant::now();
        let given: SmallVec<[_; 4]> = values.iter().map(ffi::Value::borrowed).collect();
        let mut outputs = NamedTensors::new();
        for (&index, value) in batch.outputs.iter().zip(results) {
            let name = &shared.interface.signature.outputs[index].name;
            let tensor =
                value.into_tensor(&given).map_err(|error| error.wrap(format!("output '{name}' cannot be read")))?;
            outputs.push(NamedTensor { name: name.as_str().into(), tensor });
        }
        Ok(Execution { outputs, compute_start, compute_end })
    }
}

//! `Backend` -> `Model` -> `ModelInstance`: what a runtime must be able to do for us.
//!
//! *Architecture invariant:* only this folder (and the plugin crates in `backends/`) knows a runtime.

#[cfg(any(test, feature = "test-util"))]
pub mod conformance;
#[cfg(any(test, feature = "test-util"))]
pub mod gated;
pub mod identity;
pub mod onnxruntime;
pub mod placement;
pub mod plugin;
pub mod registry;
pub mod repeat;
pub mod runtime_paths;
#[cfg(any(test, feature = "test-util"))]
pub mod weights;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use self::placement::Placement;
use crate::error::{Error, Result};
use crate::inference::{NamedTensor, NamedTensors, Version};
use crate::model_config::ModelConfig;
use crate::model_config::complete::RuntimeSignature;

/// Where the files of one version of a model are.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// The model's folder, which holds labels and the version folders; for a bare file the folder it lies in.
    pub directory: PathBuf,
    /// The folder of this version.
    pub version_directory: PathBuf,
    /// The version.
    pub version: Version,
    /// The file to load where it is known already (a bare `model.onnx`); else the backend's default name in the version
    /// folder, or `default_model_filename`.
    pub model_file: Option<PathBuf>,
    /// A folder where the backend may keep what it made of the model's files, to load faster the next time: made if it
    /// is not there, deleted with the files. `None` where there is none to write to.
    pub derived: Option<PathBuf>,
}

impl ModelFiles {
    /// The file to load: the bare one, else `default_model_filename`, else the backend's `usual` one, in the version's
    /// folder.
    ///
    /// # Errors
    /// `NotFound` where it is not there.
    pub fn find(&self, config: &ModelConfig, usual: &str) -> Result<PathBuf> {
        let file = match &self.model_file {
            Some(file) => file.clone(),
            None if config.default_model_filename.is_empty() => self.version_directory.join(usual),
            None => self.version_directory.join(&config.default_model_filename),
        };
        if file.exists() {
            Ok(file)
        } else {
            Err(Error::not_found(format!(
                "version {} has no file {}: put the model there or name it in default_model_filename",
                self.version,
                file.file_name().unwrap_or_default().display()
            )))
        }
    }
}

/// The memory a loaded model holds on its device, in bytes, as its runtime counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelMemory {
    /// All of it.
    Exact(u64),
    /// What runs have taken and keep beyond what the load took: activations.
    Runs(u64),
}

/// A runtime: finds its library, loads models. One a process, shared by all models.
pub trait Backend: Send + Sync {
    /// The name in `config.pbtxt`'s `backend` field.
    fn name(&self) -> &'static str;

    /// The keys of `parameters` in a configuration that mean something to this backend.
    fn known_parameters(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether its models can give any number of answers to a request.
    fn streams(&self) -> bool {
        false
    }

    /// Whether a model of this configuration has threads of its own, which its load starts.
    fn starts_threads(&self, _config: &ModelConfig) -> bool {
        false
    }

    /// The file in a version folder that is loaded where `default_model_filename` is not set; empty for none.
    fn default_model_file(&self) -> &'static str;

    /// Whether its models can be on GPUs. Where they cannot, models that name no device are on the CPU.
    ///
    /// # Errors
    /// Why not, and the mend.
    fn on_gpu(&self) -> Result<()> {
        Err(Error::unsupported(format!("the {} backend runs on the cpu alone", self.name())))
    }

    /// Loads one version of a model onto a device. Blocking: minutes are possible.
    ///
    /// # Errors
    /// `InvalidArgument` if the files are not what this runtime reads, `NotFound` if they are missing, `Unsupported` for
    /// what the runtime lacks, `OutOfDeviceMemory` where the placement's share of memory does not do, `BackendFailed` for the
    /// rest.
    fn load(&self, files: &ModelFiles, config: &ModelConfig, placement: &Placement) -> Result<Box<dyn Model>>;
}

/// A loaded version of a model: its weights.
pub trait Model: Send + Sync {
    /// The inputs and outputs, as the runtime has them.
    fn signature(&self) -> &RuntimeSignature;

    /// Something that can run the model, beside others that do; they share the weights where the runtime can.
    ///
    /// # Errors
    /// `BackendFailed` if the runtime refuses.
    fn instance(&self) -> Result<Box<dyn ModelInstance>>;

    /// What it holds now. Cheap: asked after the load, after the warm-up, and now and then.
    fn memory(&self) -> ModelMemory {
        ModelMemory::Runs(0)
    }

    /// Whether it reads or maps its files while it lives, so that they must stay.
    fn keeps_files(&self) -> bool {
        false
    }
}

/// Runs a model, one batch at a time, on whatever thread holds it.
pub trait ModelInstance: Send {
    /// Runs a batch. Blocking for as long as the model computes.
    ///
    /// # Errors
    /// `InvalidArgument` if the runtime finds fault with the tensors, `OutOfDeviceMemory`, or `BackendFailed`.
    fn execute(&mut self, batch: &Batch<'_>) -> Result<Execution>;

    /// Runs a request of a decoupled model (`model_transaction_policy`): `answer` takes the wanted outputs, in the order
    /// they were wanted, of each answer as it is there, any number of times; where it breaks off nobody reads any more.
    /// Blocking, also for as long as the reader is behind.
    ///
    /// # Errors
    /// As [`ModelInstance::execute`]; `Unsupported` where every request has exactly one answer.
    fn execute_stream(
        &mut self,
        _batch: &Batch<'_>,
        _answer: &mut dyn FnMut(NamedTensors) -> ControlFlow<()>,
    ) -> Result<Streamed> {
        Err(Error::unsupported("the model's backend gives exactly one answer to a request"))
    }
}

/// When a run of many answers began and ended.
#[derive(Clone, Copy, Debug)]
pub struct Streamed {
    /// When inputs were ready and the model began.
    pub compute_start: Instant,
    /// When the model was done.
    pub compute_end: Instant,
}

/// The work of one execution.
#[derive(Debug)]
pub struct Batch<'a> {
    /// The inputs in the order of the configuration, names and types checked; optional ones may be missing.
    pub inputs: &'a [NamedTensor],
    /// Which outputs are wanted, as indexes into the signature.
    pub outputs: &'a [usize],
}

/// What an execution gave.
#[derive(Debug)]
pub struct Execution {
    /// The wanted outputs, in the order they were wanted.
    pub outputs: NamedTensors,
    /// When inputs were ready and the model began.
    pub compute_start: Instant,
    /// When the model was done and outputs began to be taken.
    pub compute_end: Instant,
}

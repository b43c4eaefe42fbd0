//! The `onnxruntime` backend: ONNX models through ONNX Runtime, loaded at run time.
//!
//! One environment with one thread pool serves every session, and threads do not spin while idle: in a server with many
//! models a spinning pool burned twenty times the CPU of the work itself. The instances of a model on the CPU share one
//! session, so that weights are in memory once however many instances there are.

mod ffi;
mod session;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ort::environment::{Environment, GlobalThreadPoolOptions};

use super::{Backend, Model, ModelFiles};
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
                Ok(Self { environment })
            }
            Err(error) => Err(error.clone()),
        }
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

    fn default_model_file(&self) -> &'static str {
        "model.onnx"
    }

    fn load(&self, files: &ModelFiles, config: &ModelConfig, device: DeviceId) -> Result<Box<dyn Model>> {
        if device != DeviceId::Cpu {
            return Err(Error::unsupported(format!("the onnxruntime backend cannot run on {device} in this version")));
        }
        let file = model_file(files, config)?;
        let threads = config.parameters.get(INTRA_OP_THREADS).map(|text| thread_count(text)).transpose()?;
        Ok(Box::new(session::OnnxModel::load(self.environment, &file, threads.flatten())?))
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

/// The file to load: the bare one, else `default_model_filename`, else `model.onnx`, in the version's folder.
fn model_file(files: &ModelFiles, config: &ModelConfig) -> Result<PathBuf> {
    let file = match &files.model_file {
        Some(file) => file.clone(),
        None if config.default_model_filename.is_empty() => files.version_directory.join("model.onnx"),
        None => files.version_directory.join(&config.default_model_filename),
    };
    if file.exists() {
        Ok(file)
    } else {
        Err(Error::not_found(format!(
            "version {} has no file {}: put the model there or name it in default_model_filename",
            files.version,
            file.file_name().unwrap_or_default().display()
        )))
    }
}

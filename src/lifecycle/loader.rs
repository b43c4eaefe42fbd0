//! From a name to loaded versions: resolve, read the configuration, choose versions, load, complete, make instances.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use smallvec::SmallVec;
use tokio::sync::Semaphore;

use super::handle::{LoadedVersion, TensorMetadata};
use crate::backend::registry::BackendRegistry;
use crate::backend::{Backend, Model, ModelFiles};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::DeviceId;
use crate::inference::{ModelId, Version};
use crate::metrics::statistics::ModelStatistics;
use crate::model_config::complete::RuntimeSignature;
use crate::model_config::{self, InstanceKind, ModelConfig, UnknownFields, VersionPolicy};
use crate::repository::tree::ModelTree;
use crate::repository::{ModelRepository, layout};
use crate::scheduler::executor::ExecutorHandle;
use crate::scheduler::queue::ModelQueue;
use crate::sync::PinCount;

/// The largest file of class names, in bytes.
const MAX_LABEL_BYTES: u64 = 16 << 20;

/// The most instances of one version.
const MAX_INSTANCES: usize = 1024;

/// A device and the threads that run on it.
#[derive(Clone)]
pub struct DeviceExecutor {
    /// The device.
    pub device: DeviceId,
    /// Its threads.
    pub executor: ExecutorHandle,
    /// How many threads: the number of instances where the configuration names none.
    pub threads: usize,
}

/// What loading needs to know.
pub struct Loader {
    /// Where models come from.
    pub repository: Arc<dyn ModelRepository>,
    /// What runs them.
    pub backends: Arc<BackendRegistry>,
    /// Where they run, the default first; at least one.
    pub devices: Vec<DeviceExecutor>,
    /// Requests that may wait for one model where its configuration does not say.
    pub queue_capacity: usize,
    /// What a configuration field outside the schema is.
    pub unknown_fields: UnknownFields,
}

/// Why a load ended without a model.
pub(super) enum LoadError {
    /// It failed; `versions` are those that were to be loaded, as far as they were known.
    Failed { versions: Vec<Version>, error: Error },
    /// Nobody wanted it any more.
    Abandoned,
}

pub(super) type Versions = SmallVec<[Arc<LoadedVersion>; 1]>;

/// Everything that is known before a runtime is asked.
struct Plan {
    name: Arc<str>,
    tree: ModelTree,
    config: ModelConfig,
    backend: Arc<dyn Backend>,
    place: DeviceExecutor,
    queue_capacity: usize,
}

impl Loader {
    /// Loads `name`, with the repository's configuration or the given one. `wanted` is asked between steps.
    pub(super) async fn load(
        self: &Arc<Self>,
        name: &Arc<str>,
        given: Option<ModelConfig>,
        wanted: &(dyn Fn() -> bool + Sync),
        permits: &Semaphore,
    ) -> Result<Versions, LoadError> {
        let began = Instant::now();
        let failed = |versions: &[Version]| {
            let versions = versions.to_vec();
            move |error| LoadError::Failed { versions, error }
        };
        let manifest = self.repository.resolve(name).await.map_err(failed(&[]))?;
        let read = tokio::task::spawn_blocking(move || ModelTree::of(&manifest)).await;
        let tree = read.unwrap_or_else(|panic| Err(panicked(panic))).map_err(failed(&[]))?;
        let known = tree.versions.clone();
        let planned = {
            let (loader, name) = (Arc::clone(self), Arc::clone(name));
            tokio::task::spawn_blocking(move || loader.plan(&name, tree, given)).await
        };
        let planned = planned.unwrap_or_else(|panic| Err(panicked(panic)));
        let (plan, versions) = planned.map_err(failed(&known))?;
        // Many may look a name up at once; this many may load. Closed only with the process.
        let _permit = permits.acquire().await;
        let plan = Arc::new(plan);
        let mut loaded = Versions::new();
        for &version in &versions {
            if !wanted() {
                discard(loaded).await;
                return Err(LoadError::Abandoned);
            }
            let plan = Arc::clone(&plan);
            let result = tokio::task::spawn_blocking(move || load_version(&plan, version, began)).await;
            match result.unwrap_or_else(|panic| Err(panicked(panic))) {
                Ok(version) => loaded.push(Arc::new(version)),
                Err(error) => {
                    discard(loaded).await;
                    return Err(LoadError::Failed { versions, error });
                }
            }
        }
        // What is loaded is kept, whoever left meanwhile: the next caller finds it.
        Ok(loaded)
    }

    fn plan(&self, name: &Arc<str>, tree: ModelTree, given: Option<ModelConfig>) -> Result<(Plan, Vec<Version>)> {
        let mut config = match (given, &tree.config) {
            (Some(config), _) => config,
            (None, Some(text)) => {
                let parsed = model_config::parse(text, self.unknown_fields)?;
                for warning in &parsed.warnings {
                    tracing::warn!(model = %name, "{warning}");
                }
                parsed.config
            }
            (None, None) => ModelConfig::minimal(name, ""),
        };
        if config.backend.is_empty() {
            let backend = guess_backend(&tree, &config).ok_or_else(|| {
                Error::invalid(format!(
                    "model '{name}' names no backend and has no model.onnx to tell it by: set `backend` in config.pbtxt"
                ))
            })?;
            config.set_backend(backend);
        }
        config.set_name_if_empty(name);
        let versions = choose_versions(&config.version_policy, &tree.versions);
        if versions.is_empty() {
            return Err(Error::invalid(format!(
                "at least one version must be available under the version policy of model '{name}'"
            )));
        }
        let backend = Arc::clone(self.backends.get(&config.backend)?);
        for key in config.parameters.keys().filter(|key| !backend.known_parameters().contains(&key.as_str())) {
            tracing::warn!(model = %name, "parameter '{key}' means nothing to the {} backend and has no effect", config.backend);
        }
        let place = self.place(name, &config)?;
        let policy = config.dynamic_batching.as_ref().map(|batching| &batching.default_queue_policy);
        let queue_capacity = match policy.map_or(0, |policy| policy.max_queue_size) {
            0 => self.queue_capacity,
            size => size as usize,
        };
        Ok((Plan { name: Arc::clone(name), tree, config, backend, place, queue_capacity }, versions))
    }

    /// Where the model runs: on the default device, or on the CPU where its configuration says so.
    fn place(&self, name: &str, config: &ModelConfig) -> Result<DeviceExecutor> {
        let kind = config.instance_groups.first().map_or(InstanceKind::Auto, |group| group.kind);
        let is_gpu = |place: &&DeviceExecutor| matches!(place.device, DeviceId::Gpu(_));
        let is_cpu = |place: &&DeviceExecutor| place.device == DeviceId::Cpu;
        let found = match kind {
            InstanceKind::Cpu => self.devices.iter().find(is_cpu),
            InstanceKind::Gpu => self.devices.iter().find(is_gpu).or_else(|| {
                tracing::warn!(model = %name, "instance_group asks for a GPU and none is in use: running on the cpu");
                self.devices.iter().find(is_cpu)
            }),
            InstanceKind::Auto | InstanceKind::Model => self.devices.first(),
        };
        found
            .cloned()
            .ok_or_else(|| Error::invalid(format!("model '{name}' asks for a device that --device does not allow")))
    }
}

/// Frees what was loaded of a model that does not come to be: it comes as a whole or not at all.
async fn discard(loaded: Versions) {
    // It is gone either way.
    let _freed = tokio::task::spawn_blocking(move || drop(loaded)).await;
}

fn panicked(panic: tokio::task::JoinError) -> Error {
    Error::internal("loading the model panicked").with_source(panic)
}

/// The backend that reads the model's file, where the configuration names none.
#[must_use]
pub fn guess_backend(tree: &ModelTree, config: &ModelConfig) -> Option<&'static str> {
    let bare = tree.bare_file.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    if let Some(file) = bare {
        return layout::backend_of(file);
    }
    if !config.default_model_filename.is_empty() {
        return layout::backend_of(&config.default_model_filename);
    }
    let latest = tree.directory.join(tree.versions.last()?.to_string());
    layout::MODEL_FILES.iter().find(|(file, _, _)| latest.join(file).exists()).map(|(_, _, backend)| *backend)
}

/// The versions of `available` (ascending) that a policy serves.
#[must_use]
pub fn choose_versions(policy: &VersionPolicy, available: &[Version]) -> Vec<Version> {
    match policy {
        VersionPolicy::All => available.to_vec(),
        VersionPolicy::Latest(count) => {
            let skip = available.len().saturating_sub(*count as usize);
            available.get(skip..).unwrap_or_default().to_vec()
        }
        VersionPolicy::Specific(wanted) => {
            available.iter().copied().filter(|version| wanted.contains(version)).collect()
        }
    }
}

/// Loads one version. Blocking.
fn load_version(plan: &Plan, version: Version, began: Instant) -> Result<LoadedVersion> {
    let directory = plan.tree.directory.clone();
    let version_directory = match &plan.tree.bare_file {
        Some(_) => directory.clone(),
        None => directory.join(version.to_string()),
    };
    let files =
        ModelFiles { directory, version_directory, version, model_file: plan.tree.bare_file.clone(), derived: None };
    let model: Arc<dyn Model> = plan.backend.load(&files, &plan.config, plan.place.device)?.into();
    let mut config = plan.config.clone();
    let kind = match plan.place.device {
        DeviceId::Cpu => InstanceKind::Cpu,
        DeviceId::Gpu(_) => InstanceKind::Gpu,
    };
    let instances = config.instance_groups.iter().map(|group| group.count as usize).sum();
    let instances = if instances == 0 { plan.place.threads.min(MAX_INSTANCES) } else { instances };
    if instances > MAX_INSTANCES {
        return Err(Error::invalid(format!(
            "instance_group asks for {instances} instances, at most {MAX_INSTANCES} are made"
        )));
    }
    config.complete(model.signature())?;
    let count = u32::try_from(instances).unwrap_or(u32::MAX);
    config.normalize(plan.backend.default_model_file(), kind, count)?;
    // A bare file in the repository's root has the whole repository for its folder.
    let folder = plan.tree.owns_directory.then_some(files.directory.as_path());
    let (inputs, outputs, output_indexes) = describe(&config, model.signature(), folder)?;
    let statistics = Arc::new(ModelStatistics::default());
    let executor = plan.place.executor.clone();
    let queue = ModelQueue::new(model, instances, plan.queue_capacity, executor, Arc::clone(&statistics))?;
    Ok(LoadedVersion {
        id: ModelId { name: Arc::clone(&plan.name), version },
        default_timeout: config
            .dynamic_batching
            .as_ref()
            .map_or(Duration::ZERO, |batching| batching.default_queue_policy.default_timeout),
        max_batch_size: u64::from(config.max_batch_size),
        config: Arc::new(config),
        inputs,
        outputs,
        output_indexes,
        device: plan.place.device,
        queue,
        statistics,
        load_duration: began.elapsed(),
        loaded_at: SystemTime::now(),
        pins: PinCount::default(),
    })
}

type Described = (Vec<TensorMetadata>, Vec<TensorMetadata>, SmallVec<[usize; 4]>);

fn describe(config: &ModelConfig, signature: &RuntimeSignature, directory: Option<&Path>) -> Result<Described> {
    let inputs = config
        .inputs
        .iter()
        .map(|input| TensorMetadata {
            name: input.name.as_str().into(),
            data_type: input.data_type,
            dims: config.metadata_dims(&input.dims),
            reshape: input.reshape.clone(),
            optional: input.optional || signature.optional_inputs.contains(&input.name),
            labels: Vec::new(),
        })
        .collect();
    let mut outputs = Vec::with_capacity(config.outputs.len());
    let mut indexes = SmallVec::new();
    for output in &config.outputs {
        let index = signature.outputs.iter().position(|known| known.name == output.name);
        indexes.push(index.ok_or_else(|| {
            Error::invalid(format!("output '{}' of the configuration is not in the model", output.name))
        })?);
        outputs.push(TensorMetadata {
            name: output.name.as_str().into(),
            data_type: output.data_type,
            dims: config.metadata_dims(&output.dims),
            reshape: output.reshape.clone(),
            optional: false,
            labels: if output.label_filename.is_empty() {
                Vec::new()
            } else {
                read_labels(directory, &output.label_filename)?
            },
        });
    }
    Ok((inputs, outputs, indexes))
}

/// The lines of a file of class names, which must lie in the model's folder, links followed.
fn read_labels(folder: Option<&Path>, name: &str) -> Result<Vec<String>> {
    let failed = |error: std::io::Error| {
        let kind = if error.kind() == std::io::ErrorKind::NotFound {
            ErrorKind::InvalidArgument
        } else {
            ErrorKind::RepositoryFailed
        };
        Error::new(kind, format!("cannot read label_filename '{name}'")).with_source(error)
    };
    let Some(folder) = folder else {
        return Err(Error::invalid(format!("label_filename '{name}': a bare model file has no folder to look in")));
    };
    let folder = folder.canonicalize().map_err(failed)?;
    let path = folder.join(name).canonicalize().map_err(failed)?;
    if !path.starts_with(&folder) || !path.is_file() {
        return Err(Error::invalid(format!("label_filename '{name}' is no file in the model's folder")));
    }
    let mut text = String::new();
    let file = std::fs::File::open(&path).map_err(failed)?;
    file.take(MAX_LABEL_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_LABEL_BYTES {
        return Err(Error::too_large(format!("label_filename '{name}' is larger than {MAX_LABEL_BYTES} bytes")));
    }
    Ok(text.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_policy_chooses() {
        let available = [1, 2, 5, 9];
        assert_eq!(choose_versions(&VersionPolicy::Latest(2), &available), [5, 9]);
        assert_eq!(choose_versions(&VersionPolicy::Latest(9), &available), available);
        assert_eq!(choose_versions(&VersionPolicy::All, &available), available);
        assert_eq!(choose_versions(&VersionPolicy::Specific(vec![9, 1, 4]), &available), [1, 9]);
        assert!(choose_versions(&VersionPolicy::Latest(1), &[]).is_empty());
    }
}

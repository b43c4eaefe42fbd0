//! What is to be loaded, and how: decided from the files and the configuration before a runtime is asked.

use std::path::Path;
use std::sync::Arc;

use super::compose::EnsemblePlan;
use super::loader::{DevicePlace, Loader};
use super::members::{check_count, unwritten};
use super::placement::{Candidate, Placement, Site};
use super::residency::Retention;
use crate::backend::Backend;
use crate::cache::response::ResponseCache;
use crate::config::sagemaker::InferenceType;
use crate::error::{Error, Result};
use crate::inference::{DeviceId, Version};
use crate::model_config::complete::RuntimeSignature;
use crate::model_config::{self, InstanceKind, ModelConfig, UnknownFields, VersionPolicy};
use crate::repository::layout;
use crate::repository::tree::ModelTree;

/// Parameters of a model that mean something to the server, whatever its backend.
const KNOWN_PARAMETERS: [&str; 4] = [RETAIN, MEMORY_BYTES, INFERENCE_TYPE, LATENCY_BUDGET];

/// `false`: the model leaves when its requests are answered.
const RETAIN: &str = "retain";

/// What the model needs on its device, where its owner knows better than its files.
const MEMORY_BYTES: &str = "memory_bytes";

/// By when a model that batches is to answer, from which it finds its delay; the scheduler reads it.
const LATENCY_BUDGET: &str = "latency_budget_us";

/// How the bodies of the model's invocations are read on SageMaker's port.
const INFERENCE_TYPE: &str = "inference_type";

/// What is to be loaded.
pub(super) enum Planned {
    /// A model of a backend.
    Model(Box<Plan>),
    /// A model made of others.
    Ensemble(Box<EnsemblePlan>),
}

/// Everything that is known before a runtime is asked.
pub(super) struct Plan {
    pub(super) name: Arc<str>,
    pub(super) tree: ModelTree,
    pub(super) config: ModelConfig,
    pub(super) backend: Arc<dyn Backend>,
    /// The devices, with the groups that run on each; none until they are chosen.
    pub(super) sites: Vec<(Site, DevicePlace)>,
    pub(super) placement: Placement,
    pub(super) queue_capacity: usize,
    pub(super) versions: Vec<Version>,
    pub(super) retention: Retention,
    /// What the configuration declares it to need, in bytes.
    pub(super) declared_bytes: Option<u64>,
    /// How the bodies of its invocations are read, where its configuration says so.
    pub(super) inference_type: Option<InferenceType>,
    /// The bytes of the files that are loaded.
    pub(super) file_bytes: u64,
    /// Where the backend may keep what it made of the files.
    pub(super) derived: Option<std::path::PathBuf>,
    /// Where its answers are kept, where they are.
    pub(super) responses: Option<Arc<ResponseCache>>,
}

impl Loader {
    /// Reads the configuration, chooses backend, versions and device. Blocking.
    pub(super) fn plan(&self, name: &Arc<str>, tree: ModelTree, given: Option<ModelConfig>) -> Result<Planned> {
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
        let scheduling = config.ensemble.clone();
        if config.backend.is_empty() && scheduling.is_none() {
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
        let retain = parameter(&config, RETAIN, "true or false", |text| text.parse().ok())?.unwrap_or(self.retain);
        let retention = if retain { Retention::Cached } else { Retention::Transient };
        let types = "infer, generate or generate_stream";
        let inference_type = parameter(&config, INFERENCE_TYPE, types, InferenceType::named)?;
        if let Some(scheduling) = scheduling {
            let kept = (retention, inference_type);
            return EnsemblePlan::new(name, &tree, config, scheduling, versions, kept)
                .map(|plan| Planned::Ensemble(Box::new(plan)));
        }
        let backend = Arc::clone(self.backends.get(&config.backend)?);
        let is_known = |key: &str| {
            backend.known_parameters().contains(&key)
                || KNOWN_PARAMETERS.contains(&key)
                || model_config::image::PARAMETERS.contains(&key)
        };
        for key in config.parameters.keys().filter(|key| !is_known(key)) {
            tracing::warn!(model = %name, "parameter '{key}' means nothing to the {} backend and has no effect", config.backend);
        }
        if config.decoupled && !backend.streams() {
            return Err(Error::unsupported(format!(
                "model_transaction_policy: the {} backend gives exactly one answer to a request",
                config.backend
            )));
        }
        let responses = self.responses.as_ref().filter(|_| config.response_cache).cloned();
        if config.response_cache && responses.is_none() {
            tracing::warn!(model = %name, "response_cache has no effect: the server has none without --response-cache-bytes");
        }
        let declared_bytes = parameter(&config, MEMORY_BYTES, "a number of bytes", |text| text.parse().ok())?;
        let file_bytes = match &tree.bare_file {
            Some(file) => file.metadata().map_or(0, |metadata| metadata.len()),
            None => versions.iter().map(|version| bytes_below(&tree.directory.join(version.to_string()), 4)).sum(),
        };
        Ok(Planned::Model(Box::new(Plan {
            name: Arc::clone(name),
            tree,
            config,
            backend,
            sites: Vec::new(),
            placement: Placement::default(),
            queue_capacity: self.queue_capacity,
            versions,
            retention,
            declared_bytes,
            inference_type,
            file_bytes,
            derived: None,
            responses,
        })))
    }

    /// Chooses the devices of a model.
    ///
    /// # Errors
    /// As [`Placement::of`], for more instances than are made, or why the backend has no use for the GPUs there are.
    pub(super) fn choose_devices(&self, plan: &mut Plan, candidates: &[Candidate]) -> Result<()> {
        let groups = &plan.config.instance_groups;
        let names_none = groups.iter().all(|group| group.kind != InstanceKind::Gpu && group.gpus.is_empty());
        let has_gpus = candidates.iter().any(|candidate| matches!(candidate.device, DeviceId::Gpu(_)));
        let without_gpus: Vec<Candidate>;
        // Asked only where it matters: the answer may open CUDA's libraries.
        let candidates = match (names_none && has_gpus).then(|| plan.backend.on_gpu()) {
            Some(Err(why)) => {
                tracing::info!(model = %plan.name, reason = %why.report(), "on the cpu");
                let is_cpu = |candidate: &&Candidate| candidate.device == DeviceId::Cpu;
                without_gpus = candidates.iter().filter(is_cpu).cloned().collect();
                if without_gpus.is_empty() {
                    return Err(why.wrap("--device allows GPUs alone: add cpu to it"));
                }
                without_gpus.as_slice()
            }
            _ => candidates,
        };
        let placement = Placement::of(groups, candidates).map_err(|error| {
            let sick: Vec<_> = self.devices.iter().filter_map(|place| Some((place.device(), place.sick()?))).collect();
            // What names a device that was there when the server started is no fault of the configuration.
            match sick.first() {
                Some((device, why)) => {
                    let text = format!("{device} is lost and the model can be nowhere else: {why}");
                    Error::not_ready(text).with_retryable(false).with_source(error)
                }
                None => error,
            }
        })?;
        for warning in &placement.warnings {
            tracing::warn!(model = %plan.name, "{warning}");
        }
        let place_of = |site: Site| {
            self.devices.iter().find(|place| place.device() == site.device).map(|place| (site, place.clone()))
        };
        plan.sites = placement.sites.iter().cloned().filter_map(place_of).collect();
        let most = plan.sites.iter().map(|(_, place)| unwritten(place)).max().unwrap_or(0);
        check_count(&plan.config.instance_groups, &placement, most)?;
        plan.placement = placement;
        Ok(())
    }
}

impl Plan {
    /// The configuration with everything written out that was left to the server.
    ///
    /// # Errors
    /// What does not fit the model.
    pub(super) fn complete(&self, signature: &RuntimeSignature) -> Result<ModelConfig> {
        let mut config = self.config.clone();
        config.complete(signature)?;
        let first = self.sites.first().map(|(_, place)| place);
        let instances = u32::try_from(first.map_or(1, unwritten)).unwrap_or(u32::MAX);
        if !self.placement.groups.is_empty() {
            config.place_groups(&self.placement.groups, instances)?;
        }
        let kind = match first.map(DevicePlace::device) {
            Some(DeviceId::Gpu(_)) => InstanceKind::Gpu,
            Some(DeviceId::Cpu) | None => InstanceKind::Cpu,
        };
        config.normalize(self.backend.default_model_file(), kind, instances)?;
        Ok(config)
    }
}

/// The versions that a configuration's text, or the given configuration, wants of those there are.
///
/// # Errors
/// `InvalidArgument` for a text that is no configuration.
pub fn wanted_versions(
    given: Option<&ModelConfig>,
    text: Option<&str>,
    available: &[Version],
    unknown: UnknownFields,
) -> Result<Vec<Version>> {
    let policy = match (given, text) {
        (Some(config), _) => config.version_policy.clone(),
        (None, Some(text)) => model_config::parse(text, unknown)?.config.version_policy,
        (None, None) => VersionPolicy::Latest(1),
    };
    Ok(choose_versions(&policy, available))
}

/// A parameter of a model that is read here.
fn parameter<T>(
    config: &ModelConfig,
    key: &str,
    expected: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>> {
    let Some(text) = config.parameters.get(key) else { return Ok(None) };
    read(text.trim()).map(Some).ok_or_else(|| {
        Error::invalid(format!("parameter '{key}' of the configuration is '{text}', expected {expected}"))
    })
}

/// The bytes of the files in a folder, to a depth that no model exceeds.
fn bytes_below(folder: &Path, depth: usize) -> u64 {
    let Ok(entries) = folder.read_dir() else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.path().metadata() {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(metadata) if metadata.is_dir() && depth > 0 => bytes_below(&entry.path(), depth - 1),
        _ => 0,
    });
    bytes.fold(0, u64::saturating_add)
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

    #[test]
    fn the_bytes_of_a_folder_are_those_of_its_files() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("a/b")).unwrap();
        std::fs::write(root.path().join("a/b/x"), [0; 5]).unwrap();
        std::fs::write(root.path().join("y"), [0; 7]).unwrap();
        assert_eq!((bytes_below(root.path(), 4), bytes_below(root.path(), 1)), (12, 7));
        assert_eq!(bytes_below(&root.path().join("none"), 4), 0);
    }
}

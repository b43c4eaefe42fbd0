//! A loaded version from its files: the runtime's model, its instances, and what callers are told of it.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use smallvec::SmallVec;

use super::flight::Flight;
use super::handle::{Engine, Home, LoadedVersion, TensorMetadata};
use super::initial_state::initial_states;
use super::members::{count, members};
use super::plan::Plan;
use super::warm_up::WarmUp;
use crate::backend::{Model, ModelFiles};
use crate::cache::response::ResponseCache;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{DeviceId, ModelId, Version};
use crate::metrics::statistics::ModelStatistics;
use crate::model_config::complete::RuntimeSignature;
use crate::model_config::{InstanceKind, ModelConfig};
use crate::scheduler::queue::{ModelQueue, Scheduling};
use crate::scheduler::sequence::feed::Feed;
use crate::scheduler::sequence::line::Sequencing;
use crate::sync::PinCount;
use crate::tensor::DataType;

/// The largest file of class names, in bytes.
const MAX_LABEL_BYTES: u64 = 16 << 20;

/// Loads one version and warms it up; `None` where nobody waits for it any more. Blocking.
pub(super) fn load_version(
    plan: &Plan,
    version: Version,
    began: Instant,
    home: &Arc<Home>,
    flight: &Arc<Flight>,
) -> Result<Option<LoadedVersion>> {
    let directory = plan.tree.directory.clone();
    let version_directory = match &plan.tree.bare_file {
        Some(_) => directory.clone(),
        None => directory.join(version.to_string()),
    };
    let files = ModelFiles {
        directory,
        version_directory,
        version,
        model_file: plan.tree.bare_file.clone(),
        derived: plan.derived.clone(),
    };
    let model: Arc<dyn Model> = plan.backend.load(&files, &plan.config, plan.place.device())?.into();
    let mut config = plan.config.clone();
    let kind = match plan.place.device() {
        DeviceId::Cpu => InstanceKind::Cpu,
        DeviceId::Gpu(_) => InstanceKind::Gpu,
    };
    let instances = count(&config, &plan.place)?;
    config.complete(model.signature())?;
    let instances = u32::try_from(instances).unwrap_or(u32::MAX);
    config.normalize(plan.backend.default_model_file(), kind, instances)?;
    // A bare file in the repository's root has the whole repository for its folder.
    let folder = plan.tree.owns_directory.then_some(files.directory.as_path());
    let (inputs, outputs, output_indexes) = describe(&config, model.signature(), folder)?;
    let feed = match &config.sequence_batching {
        None => None,
        Some(batching) => Some(Feed::of(&config, model.signature(), initial_states(batching, folder)?)?),
    };
    let warm_up = WarmUp::prepare(&config, folder, &output_indexes, feed.as_ref(), flight)?;
    let model = warm_up.around(model);
    let statistics = Arc::new(ModelStatistics::default());
    let members = members(&config, &plan.place, &model)?;
    let mut scheduling = Scheduling::of(&config, plan.queue_capacity)?;
    scheduling.sequences = feed.and_then(|feed| Sequencing::of(&plan.name, &config, feed, plan.queue_capacity));
    let queue = ModelQueue::new(members, scheduling, Arc::clone(&statistics));
    if warm_up.was_abandoned() {
        return Ok(None);
    }
    let queue = queue?;
    Ok(Some(LoadedVersion {
        id: ModelId { name: Arc::clone(&plan.name), version },
        max_batch_size: u64::from(config.max_batch_size),
        inference_type: plan.inference_type,
        config: Arc::new(config),
        inputs,
        outputs,
        output_indexes,
        device: plan.place.device(),
        engine: Engine::Queue(queue),
        model: Some(Arc::downgrade(&model)),
        statistics,
        responses: plan.responses.as_ref().map(ResponseCache::responses),
        warm_up: warm_up.finish(),
        load_duration: began.elapsed(),
        loaded_at: SystemTime::now(),
        pins: PinCount::default(),
        home: Arc::clone(home),
    }))
}

type Described = (Vec<TensorMetadata>, Vec<TensorMetadata>, SmallVec<[usize; 4]>);

fn describe(config: &ModelConfig, signature: &RuntimeSignature, directory: Option<&Path>) -> Result<Described> {
    let inputs = config
        .inputs
        .iter()
        .map(|input| {
            let image = config.image_input.as_ref().filter(|image| image.name == input.name);
            let (data_type, dims, reshape) = match image {
                Some(image) => (DataType::Uint8, image.dims(config.max_batch_size > 0), None),
                None => (input.data_type, config.metadata_dims(&input.dims), input.reshape.clone()),
            };
            TensorMetadata {
                name: input.name.as_str().into(),
                data_type,
                dims,
                reshape,
                optional: input.optional || signature.optional_inputs.contains(&input.name),
                labels: Vec::new(),
            }
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
pub(super) fn read_labels(folder: Option<&Path>, name: &str) -> Result<Vec<String>> {
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

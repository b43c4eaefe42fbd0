//! A loaded version from its files: the runtime's model, its instances, and what callers are told of it.

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use super::copies::Models;
use super::flight::Flight;
use super::handle::{Engine, Home, LoadedVersion, TensorMetadata};
use super::initial_state::initial_states;
use super::loader::DevicePlace;
use super::members::{member, members as members_of};
use super::plan::Plan;
use super::warm_up::WarmUp;
use crate::backend::placement::Placement;
use crate::backend::{Model, ModelFiles};
use crate::cache::response::ResponseCache;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{ModelId, Version};
use crate::metrics::statistics::ModelStatistics;
use crate::model_config::complete::RuntimeSignature;
use crate::model_config::{InstanceGroup, ModelConfig};
use crate::scheduler::queue::{MemberId, ModelQueue, Scheduling};
use crate::scheduler::sequence::feed::Feed;
use crate::scheduler::sequence::line::Sequencing;
use crate::sync::PinCount;

/// The largest file of class names, in bytes.
const MAX_LABEL_BYTES: u64 = 16 << 20;

/// Loads one version on each of its devices, which are `placements` in their order, and warms it up; `None` where nobody
/// waits for it any more. Gives the runtime's models in the order of the devices. Blocking.
pub(super) fn load_version(
    (plan, version): (&Plan, Version),
    placements: &[Placement],
    began: Instant,
    home: &Arc<Home>,
    flight: &Arc<Flight>,
) -> Result<Option<(LoadedVersion, Models)>> {
    let files = files_of(plan, version);
    let mut models: SmallVec<[Arc<dyn Model>; 1]> = SmallVec::new();
    for placement in placements {
        if !flight.is_wanted() {
            return Ok(None);
        }
        models.push(plan.backend.load(&files, &plan.config, placement)?.into());
    }
    let first = models.first().ok_or_else(|| Error::internal("a model without a device"))?;
    let config = plan.complete(first.signature())?;
    // A bare file in the repository's root has the whole repository for its folder.
    let folder = plan.tree.owns_directory.then_some(files.directory.as_path());
    let (inputs, outputs, output_indexes) = describe(&config, first.signature(), folder)?;
    let feed = match &config.sequence_batching {
        None => None,
        Some(batching) => Some(Feed::of(&config, first.signature(), initial_states(batching, folder)?)?),
    };
    let warm_up = WarmUp::prepare(&config, folder, &output_indexes, feed.as_ref(), flight)?;
    let statistics = Arc::new(ModelStatistics::default());
    let (mut members, mut weak) = (Vec::new(), Models::new());
    for ((site, place), model) in plan.sites.iter().zip(models) {
        let model = warm_up.around(model);
        weak.push(Arc::downgrade(&model));
        members.extend(members_of(&config, site, place, &model)?);
    }
    let mut scheduling = Scheduling::of(&config, plan.queue_capacity)?;
    scheduling.sequences = feed.and_then(|feed| Sequencing::of(&plan.name, &config, feed, plan.queue_capacity));
    let queue = ModelQueue::new(members, scheduling, Arc::clone(&statistics));
    if warm_up.was_abandoned() {
        return Ok(None);
    }
    let queue = queue?;
    let config = Arc::new(config);
    let loaded = LoadedVersion {
        id: ModelId { name: Arc::clone(&plan.name), version },
        max_batch_size: u64::from(config.max_batch_size),
        inference_type: plan.inference_type,
        now: ArcSwap::new(Arc::clone(&config)),
        config,
        inputs,
        outputs,
        output_indexes,
        engine: Engine::Queue(queue),
        statistics,
        responses: plan.responses.as_ref().map(ResponseCache::responses),
        warm_up: warm_up.finish(),
        load_duration: began.elapsed(),
        loaded_at: SystemTime::now(),
        pins: PinCount::default(),
        home: Arc::clone(home),
    };
    Ok(Some((loaded, weak)))
}

/// The runtime's model of a version on one device, and the names of its members by group.
pub(super) type Joined = (Weak<dyn Model>, Vec<MemberId>);

/// Instances for a version that answers already.
pub(super) struct Another<'a> {
    pub(super) plan: &'a Plan,
    pub(super) loaded: &'a LoadedVersion,
    pub(super) flight: &'a Arc<Flight>,
}

impl Another<'_> {
    /// Loads the version on another device and has its groups there take work; `None` where nobody waits for it any
    /// more. Gives the names of the members, by group. Blocking.
    pub(super) fn copy(
        &self,
        groups: &[InstanceGroup],
        place: &DevicePlace,
        placement: &Placement,
    ) -> Result<Option<Joined>> {
        let files = files_of(self.plan, self.loaded.id.version);
        let model: Arc<dyn Model> = self.plan.backend.load(&files, &self.plan.config, placement)?.into();
        let warm_up = self.warm_up()?;
        let model = warm_up.around(model);
        let members = groups.iter().map(|group| member(group, place, &model)).collect::<Result<Vec<_>>>()?;
        let added = self.queue()?.add(members);
        if warm_up.was_abandoned() {
            return Ok(None);
        }
        let added = added?;
        let _ran_for = warm_up.finish();
        Ok(Some((Arc::downgrade(&model), added)))
    }

    /// Has another group take work beside those that run a model. Blocking.
    pub(super) fn group(&self, group: &InstanceGroup, place: &DevicePlace, model: Arc<dyn Model>) -> Result<MemberId> {
        let warm_up = self.warm_up()?;
        let added = self.queue()?.add(vec![member(group, place, &warm_up.around(model))?])?;
        let _ran_for = warm_up.finish();
        added.first().copied().ok_or_else(|| Error::internal("a member came without a name"))
    }

    /// More instances for a group. Blocking.
    pub(super) fn grow(&self, id: MemberId, count: usize, model: Arc<dyn Model>) -> Result<()> {
        let warm_up = self.warm_up()?;
        let model = warm_up.around(model);
        let fresh = (0..count).map(|_| model.instance()).collect::<Result<Vec<_>>>()?;
        self.queue()?.grow(id, fresh)?;
        let _ran_for = warm_up.finish();
        Ok(())
    }

    fn queue(&self) -> Result<&Arc<ModelQueue>> {
        self.loaded.queue().ok_or_else(|| Error::internal("an ensemble has no instances"))
    }

    fn warm_up(&self) -> Result<WarmUp> {
        let folder = self.plan.tree.owns_directory.then_some(self.plan.tree.directory.as_path());
        let (config, outputs) = (&self.loaded.config, &self.loaded.output_indexes);
        WarmUp::prepare(config, folder, outputs, None, self.flight)
    }
}

fn files_of(plan: &Plan, version: Version) -> ModelFiles {
    let directory = plan.tree.directory.clone();
    let version_directory = match &plan.tree.bare_file {
        Some(_) => directory.clone(),
        None => directory.join(version.to_string()),
    };
    ModelFiles {
        directory,
        version_directory,
        version,
        model_file: plan.tree.bare_file.clone(),
        derived: plan.derived.clone(),
    }
}

type Described = (Vec<TensorMetadata>, Vec<TensorMetadata>, SmallVec<[usize; 4]>);

fn describe(config: &ModelConfig, signature: &RuntimeSignature, directory: Option<&Path>) -> Result<Described> {
    let inputs = config
        .inputs
        .iter()
        .map(|input| {
            let is_pixels = config.image_input.as_ref().is_some_and(|image| image.name == input.name);
            let (data_type, dims) = config.sent(input);
            TensorMetadata {
                name: input.name.as_str().into(),
                data_type,
                dims,
                reshape: if is_pixels { None } else { input.reshape.clone() },
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

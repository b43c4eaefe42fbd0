//! Loading an ensemble: its steps are loaded, held against each other, and let go. It holds none of them, so that all of
//! them never have to be in memory at once; a request brings back what has left meanwhile.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use futures_util::future::{BoxFuture, try_join_all};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::acquire::Asker;
use super::assemble::read_labels;
use super::composition::Composition;
use super::copies::DeviceCopy;
use super::files::Found;
use super::flight::{Flight, Urgency};
use super::handle::{Engine, Home, LoadedVersion, Resident, TensorMetadata, Versions};
use super::loader::{LoadError, Loader};
use super::residency::{EvictionReason, LastLoad, Phases, Retention};
use super::slot::{Departure, Slot};
use super::{ModelManager, Name, parts};
use crate::cache::eviction::Weight;
use crate::cache::memory_pool::LEAST_BYTES;
use crate::config::sagemaker::InferenceType;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{ModelId, Version};
use crate::metrics::statistics::ModelStatistics;
use crate::model_config::ModelConfig;
use crate::model_config::ensemble::EnsembleScheduling;
use crate::repository::check_name;
use crate::repository::manifest::Fingerprint;
use crate::repository::tree::ModelTree;
use crate::sync::PinCount;

/// Everything that an ensemble's files say.
pub(super) struct EnsemblePlan {
    name: Name,
    config: ModelConfig,
    scheduling: EnsembleScheduling,
    versions: Vec<Version>,
    retention: Retention,
    inference_type: Option<InferenceType>,
    /// The name by which each step's model is asked for.
    models: Vec<Name>,
    /// The classes of each output that names a file of them.
    labels: Vec<Vec<String>>,
}

/// What a step says of its model.
struct StepModel {
    config: Arc<ModelConfig>,
    /// The classes of its outputs.
    labels: HashMap<String, Vec<String>>,
}

/// Which ensembles that are being loaded wait for which models.
#[derive(Default)]
pub(super) struct Nesting(Mutex<HashMap<Name, Vec<Name>>>);

/// An ensemble that waits for its steps.
struct Waits<'a> {
    nesting: &'a Nesting,
    name: Name,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.nesting.0.lock().remove(&self.name);
    }
}

impl EnsemblePlan {
    /// Reads what the ensemble's own files say. Blocking.
    pub(super) fn new(
        name: &Name,
        tree: &ModelTree,
        config: ModelConfig,
        scheduling: EnsembleScheduling,
        versions: Vec<Version>,
        (retention, inference_type): (Retention, Option<InferenceType>),
    ) -> Result<Self> {
        let mut models = Vec::with_capacity(scheduling.steps.len());
        for step in &scheduling.steps {
            check_name(&step.model).map_err(|error| error.wrap(format!("a step of ensemble '{name}'")))?;
            models.push(match &tree.bundle {
                None => step.model.as_str().into(),
                Some(_) if tree.part(&step.model)?.is_some() => parts::name_of(parts::split(name).0, &step.model),
                Some(_) => {
                    return Err(Error::invalid(format!(
                        "step '{}' of ensemble '{name}' is not in its archive: pack the models of all steps with it",
                        step.model
                    )));
                }
            });
        }
        let folder = tree.owns_directory.then_some(tree.directory.as_path());
        let of_output = |file: &String| if file.is_empty() { Ok(Vec::new()) } else { read_labels(folder, file) };
        let labels = config.outputs.iter().map(|output| of_output(&output.label_filename)).collect::<Result<_>>()?;
        let name = Arc::clone(name);
        Ok(Self { name, config, scheduling, versions, retention, inference_type, models, labels })
    }

    /// The versions, which differ in their numbers alone.
    fn assemble(
        &self,
        config: Arc<ModelConfig>,
        composition: Arc<Composition>,
        (models, home): (&[Arc<StepModel>], &Arc<Home>),
        began: Instant,
    ) -> Versions {
        let inputs = config.inputs.iter().map(|input| TensorMetadata {
            name: input.name.as_str().into(),
            data_type: input.data_type,
            dims: config.metadata_dims(&input.dims),
            reshape: None,
            optional: input.optional,
            labels: Vec::new(),
        });
        let inputs: Vec<_> = inputs.collect();
        let outputs = config.outputs.iter().zip(&self.labels).map(|(output, labels)| TensorMetadata {
            name: output.name.as_str().into(),
            data_type: output.data_type,
            dims: config.metadata_dims(&output.dims),
            reshape: None,
            optional: false,
            labels: if labels.is_empty() { labels_of(&output.name, &self.scheduling, models) } else { labels.clone() },
        });
        let outputs: Vec<_> = outputs.collect();
        let version = |&version| {
            Arc::new(LoadedVersion {
                id: ModelId { name: Arc::clone(&self.name), version },
                config: Arc::clone(&config),
                inputs: inputs.clone(),
                outputs: outputs.clone(),
                output_indexes: (0..outputs.len()).collect::<SmallVec<_>>(),
                max_batch_size: u64::from(config.max_batch_size),
                inference_type: self.inference_type,
                now: ArcSwap::new(Arc::clone(&config)),
                engine: Engine::Ensemble(Arc::clone(&composition)),
                statistics: Arc::new(ModelStatistics::default()),
                responses: None,
                load_duration: began.elapsed(),
                warm_up: Duration::ZERO,
                loaded_at: SystemTime::now(),
                pins: PinCount::default(),
                home: Arc::clone(home),
            })
        };
        self.versions.iter().map(version).collect()
    }
}

impl Nesting {
    /// Notes that an ensemble is about to wait for its steps' models. `resident` gives those of an ensemble in memory.
    ///
    /// # Errors
    /// `InvalidArgument` where it would wait for itself, through whatever other ensembles.
    fn enter(&self, name: &Name, models: &[Name], resident: &dyn Fn(&Name) -> BTreeSet<Name>) -> Result<Waits<'_>> {
        let mut waiting = self.0.lock();
        // Depth first, with the way there.
        let mut ways: Vec<Vec<Name>> = models.iter().map(|model| vec![Arc::clone(model)]).collect();
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop() {
            let Some(last) = way.last() else { continue };
            if last == name {
                let shown: Vec<_> = way.iter().map(|model| format!("'{model}'")).collect();
                return Err(Error::invalid(format!(
                    "ensemble '{name}' contains itself: '{name}' -> {}",
                    shown.join(" -> ")
                )));
            }
            if !seen.insert(Arc::clone(last)) {
                continue;
            }
            let next = waiting.get(last).map_or_else(|| resident(last), |models| models.iter().cloned().collect());
            ways.extend(next.into_iter().map(|model| [way.as_slice(), &[model]].concat()));
        }
        waiting.insert(Arc::clone(name), models.to_vec());
        Ok(Waits { nesting: self, name: Arc::clone(name) })
    }
}

impl Loader {
    /// Loads an ensemble. Where nobody wants it any more the future is dropped, and with it every wait for a step.
    pub(super) async fn compose(
        &self,
        manager: &ModelManager,
        slot: &Arc<Slot>,
        flight: &Arc<Flight>,
        (plan, files): (EnsemblePlan, Found),
        (began, mut phases, given_config): (Instant, Phases, bool),
    ) -> Result<(Resident, LastLoad), LoadError> {
        let name = &slot.name;
        let (fingerprint, content, from) = (files.fingerprint, files.content, files.from);
        // Files that were fetched are let go before others are waited for. The parts of an archive lie in the same entry.
        let files = plan.models.iter().any(|model| parts::is_part(model)).then_some(files);
        let waited = Instant::now();
        let composing = self.composition(manager, flight, &plan, content);
        let (composition, models) = match composing.await {
            Ok(Some(composed)) => composed,
            Ok(None) => return Err(LoadError::OnDisk),
            Err(error) => {
                if slot.resident().is_none() {
                    manager.discard_parts(plan.models.iter().filter(|model| parts::is_part(model)).cloned());
                }
                return Err(LoadError::Failed { versions: plan.versions, error });
            }
        };
        drop(files);
        phases.wait = waited.elapsed();
        let initialising = Instant::now();
        let failed = |error| LoadError::Failed { versions: plan.versions.clone(), error };
        let mut config = plan.config.clone();
        config.normalize_ensemble(composition.graph.is_decoupled()).map_err(failed)?;
        let pool = &manager.0.ensembles;
        if pool.is_leaving(name) {
            self.drain(manager, slot).await;
        }
        let weight = Weight { bytes: LEAST_BYTES, seconds: 0.0 };
        let reserved = pool.try_reserve(name, weight, Instant::now(), &|_| true);
        let lease = reserved.map_err(|refusal| failed(refusal.into_error(ErrorKind::OutOfDeviceMemory)))?.lease;
        let retention = plan.retention;
        let dismiss = (retention == Retention::Transient).then(|| (Arc::clone(name), manager.0.dismissed.clone()));
        let home = Arc::new(Home { uses: pool.uses(name), dismiss });
        let versions = plan.assemble(Arc::new(config), Arc::new(composition), (&models, &home), began);
        phases.initialise = initialising.elapsed();
        lease.ready(phases.total().as_secs_f64(), Instant::now());
        let bytes = lease.bytes();
        let resident = Resident {
            versions,
            copies: vec![Arc::new(DeviceCopy::of_ensemble(lease, phases.total()))],
            source: Arc::new(plan.config),
            fingerprint,
            weights: None,
            retention,
            given_config,
            is_free: false,
            files: Arc::default(),
        };
        let last = LastLoad { at: SystemTime::now(), from, phases, bytes };
        Ok((resident, last))
    }

    /// Loads those steps of an ensemble in memory that have left: its own files are what they were, and whoever asks for a
    /// load wants to ask it.
    pub(super) async fn complete(
        &self,
        manager: &ModelManager,
        slot: &Slot,
        flight: &Arc<Flight>,
    ) -> Result<(), LoadError> {
        let Some(resident) = slot.resident() else { return Ok(()) };
        let (name, content) = (&slot.name, resident.fingerprint);
        let steps: BTreeSet<_> = resident.compositions().flat_map(Composition::asked).collect();
        let loads = steps.iter().map(|(model, version)| async move {
            let loaded = manager.load_step(flight, (model, *version), content).await;
            loaded.map(drop).map_err(|error| of_step(error, shown_step(model, name)))
        });
        let versions = || resident.versions().iter().map(|version| version.id.version).collect();
        let loaded = try_join_all(loads).await;
        loaded.map(drop).map_err(|error| LoadError::Failed { versions: versions(), error })
    }

    /// Loads the steps and holds them against each other; `None` where a prefetch ends with a step on the disk.
    async fn composition(
        &self,
        manager: &ModelManager,
        flight: &Arc<Flight>,
        plan: &EnsemblePlan,
        content: Fingerprint,
    ) -> Result<Option<(Composition, Vec<Arc<StepModel>>)>> {
        let name = &plan.name;
        let resident = |model: &Name| manager.models_of(model);
        let _waits = manager.0.nesting.enter(name, &plan.models, &resident)?;
        let mut asked: HashMap<(Name, Option<Version>), Arc<StepModel>> = HashMap::new();
        let steps: BTreeSet<_> =
            plan.models.iter().cloned().zip(plan.scheduling.steps.iter().map(|step| step.version)).collect();
        let loads = steps.into_iter().map(|(model, version)| async move {
            let loaded = manager.load_step(flight, (&model, version), content).await;
            let loaded = loaded.map_err(|error| of_step(error, shown_step(&model, name)))?;
            Ok::<_, Error>(((model, version), loaded))
        });
        for (step, loaded) in try_join_all(loads).await? {
            match loaded {
                Some(loaded) => drop(asked.insert(step, Arc::new(loaded))),
                None => return Ok(None),
            }
        }
        let models = plan.models.iter().zip(&plan.scheduling.steps);
        let models: Vec<_> = models
            .filter_map(|(model, step)| {
                asked.get(&(Arc::clone(model), step.version)).map(|known| (Arc::clone(model), Arc::clone(known)))
            })
            .collect();
        let configs = models.iter().map(|(name, known)| (Arc::clone(name), Arc::clone(&known.config))).collect();
        let composition = Composition::new(&plan.config, plan.scheduling.clone(), configs)
            .map_err(|error| error.wrap(format!("ensemble '{name}'")))?;
        Ok(Some((composition, models.into_iter().map(|(_, known)| known).collect())))
    }
}

fn shown_step(model: &str, ensemble: &str) -> String {
    format!("step '{}' of ensemble '{ensemble}'", parts::split(model).1.unwrap_or(model))
}

/// An error of a step's load, as one of the ensemble's: the ensemble is there, whatever is missing below it.
fn of_step(error: Error, shown: String) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::invalid(shown).with_source(error),
        _ => error.wrap(shown),
    }
}

/// The classes of an output of the ensemble where it names none: those of the step's output that it is.
fn labels_of(tensor: &str, scheduling: &EnsembleScheduling, models: &[Arc<StepModel>]) -> Vec<String> {
    let mut found = scheduling.steps.iter().zip(models).filter_map(|(step, model)| {
        let (output, _) = step.outputs.iter().find(|(_, written)| *written == tensor)?;
        model.labels.get(output).cloned()
    });
    found.next().unwrap_or_default()
}

impl ModelManager {
    /// The models that an ensemble in memory asks; none for any other.
    pub(super) fn models_of(&self, name: &str) -> BTreeSet<Name> {
        let resident = self.resident_model(name);
        resident.iter().flat_map(|resident| resident.compositions().flat_map(Composition::models)).collect()
    }

    /// A step's model for an ensemble that is being loaded from `content`; `None` where nobody waits for it and the step
    /// went no further than the disk.
    async fn load_step(
        &self,
        flight: &Arc<Flight>,
        (model, version): (&Name, Option<Version>),
        content: Fingerprint,
    ) -> Result<Option<StepModel>> {
        let is_other = |part: &str, resident: &Resident| resident.fingerprint != content.of_part(part);
        if let (_, Some(part)) = parts::split(model)
            && self.resident_model(model).is_some_and(|resident| is_other(part, &resident))
        {
            // It came with another content of the archive.
            self.load_known(model, None).await?;
        }
        if flight.urgency() == Urgency::Prefetch && self.resident_model(model).is_none() {
            self.prefetch_known(model).await?;
            if self.resident_model(model).is_none() {
                return Ok(None);
            }
        }
        let until = match flight.urgency() {
            Urgency::Until(until) => Some(until),
            Urgency::Wanted | Urgency::Prefetch => None,
        };
        let handle = self.acquire_as(Asker::Composing, model, version, until).await?;
        let labels = handle.outputs.iter().filter(|output| !output.labels.is_empty());
        let labels = labels.map(|output| (output.name.to_string(), output.labels.clone())).collect();
        Ok(Some(StepModel { config: Arc::clone(&handle.config), labels }))
    }

    /// Unloads models that came with an ensemble that did not come to be.
    fn discard_parts(&self, parts: impl Iterator<Item = Name>) {
        for part in parts {
            let manager = self.clone();
            drop(tokio::spawn(async move { manager.unload_part(&part).await }));
        }
    }

    /// Unloads a model that came with an ensemble, and forgets it.
    pub(super) fn unload_part<'a>(&'a self, part: &'a Name) -> BoxFuture<'a, ()> {
        // Boxed: an unload of an ensemble comes to unloads of others.
        Box::pin(async move {
            if let Err(error) = self.unload_because(part, Departure::because(EvictionReason::Unload)).await {
                tracing::warn!(model = %part, error = %error.report(), "cannot unload a model that came with another");
            }
            self.forget(part);
        })
    }

    /// Unloads a model, and with an ensemble the models of its steps that no other ensemble in memory asks.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no name.
    pub async fn unload_with_dependents(&self, name: &str) -> Result<()> {
        let mut names = vec![Name::from(name)];
        while let Some(name) = names.pop() {
            let models = self.models_of(&name);
            self.unload(&name).await?;
            // Those that came with it went with it.
            let own = models.into_iter().filter(|model| !parts::is_part(model));
            let is_asked = |model: &Name| {
                let all = self.all_resident();
                all.iter().flat_map(|resident| resident.compositions()).any(|known| known.models().contains(model))
            };
            names.extend(own.filter(|model| !is_asked(model)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<Name> {
        names.iter().map(|name| Name::from(*name)).collect()
    }

    #[test]
    fn an_ensemble_that_waits_for_itself_is_told_so_whoever_asked_first() {
        let nesting = Nesting::default();
        let nothing = |_: &Name| BTreeSet::new();
        let enter = |name: &str, models: &[&str]| nesting.enter(&name.into(), &names(models), &nothing);
        assert!(enter("a", &["a"]).is_err());
        let (a, b) = (enter("a", &["x", "b"]).unwrap(), enter("b", &["y", "c"]).unwrap());
        let error = enter("c", &["a"]).map(drop).unwrap_err();
        assert_eq!(error.to_string(), "ensemble 'c' contains itself: 'c' -> 'a' -> 'b' -> 'c'");
        drop((a, b));
        assert!(enter("c", &["a"]).is_ok());
    }

    #[test]
    fn an_ensemble_in_memory_is_part_of_the_way_round() {
        let nesting = Nesting::default();
        let resident = |name: &Name| if **name == *"a" { names(&["b"]).into_iter().collect() } else { BTreeSet::new() };
        assert!(nesting.enter(&"b".into(), &names(&["a"]), &resident).is_err());
        assert!(nesting.enter(&"c".into(), &names(&["a", "b"]), &resident).is_ok());
    }
}

//! What a loaded ensemble knows of its steps: which model each is, and whether that is still the one it was held against.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use compact_str::CompactString;
use smallvec::SmallVec;

use super::handle::LoadedVersion;
use super::{Name, parts};
use crate::error::{Error, Result};
use crate::inference::Version;
use crate::model_config::ModelConfig;
use crate::model_config::ensemble::{EnsembleScheduling, types};
use crate::scheduler::ensemble::Graph;

/// Answers of a decoupled step that may be under way below it where the configuration does not say: enough to keep the
/// steps below busy, and a bound on what a fast step heaps up before slow ones.
const MOST_BELOW: usize = 64;

/// The steps of a loaded ensemble.
pub struct Composition {
    /// What waits for what.
    pub graph: Arc<Graph>,
    /// The steps, in the order of the configuration.
    pub steps: Vec<ComposedStep>,
    /// How many answers of a decoupled step may be under way below it.
    pub most_below: usize,
    scheduling: EnsembleScheduling,
}

/// A step of a loaded ensemble.
pub struct ComposedStep {
    /// The name by which its model is asked for.
    pub model: Name,
    /// The version that answers; the latest if `None`.
    pub version: Option<Version>,
    /// The model's inputs that are fed, in the order of the graph.
    pub inputs: SmallVec<[CompactString; 4]>,
    /// The model's outputs that are taken, in the order of the graph.
    pub outputs: SmallVec<[CompactString; 4]>,
    /// The model's configuration that was found to fit, last.
    fits: ArcSwap<ModelConfig>,
}

impl Composition {
    /// Puts the steps together and checks that they fit: `models` has the name and the configuration of each step's model.
    ///
    /// # Errors
    /// `InvalidArgument` naming the step and the tensor that do not fit.
    pub(super) fn new(
        config: &ModelConfig,
        scheduling: EnsembleScheduling,
        models: Vec<(Name, Arc<ModelConfig>)>,
    ) -> Result<Self> {
        let configs: Vec<_> = models.iter().map(|(_, config)| Some(&**config)).collect();
        types::check(config, &scheduling, &configs).map_err(Error::invalid)?;
        let inputs: Vec<_> = config.inputs.iter().map(|input| input.name.as_str()).collect();
        let outputs: Vec<_> = config.outputs.iter().map(|output| output.name.as_str()).collect();
        let decoupled: Vec<_> = models.iter().map(|(_, config)| config.decoupled).collect();
        let graph = Arc::new(Graph::new(&scheduling, &inputs, &outputs, &decoupled)?);
        let steps = scheduling.steps.iter().zip(models).map(|(step, (model, config))| ComposedStep {
            model,
            version: step.version,
            inputs: step.inputs.keys().map(|name| name.as_str().into()).collect(),
            outputs: step.outputs.keys().map(|name| name.as_str().into()).collect(),
            fits: ArcSwap::new(config),
        });
        let most_below = match scheduling.max_inflight_requests {
            0 => MOST_BELOW,
            most => most as usize,
        };
        Ok(Self { graph, steps: steps.collect(), most_below, scheduling })
    }

    /// Checks that a step's model is still one that fits: it may have been loaded anew since.
    ///
    /// # Errors
    /// `NotReady` naming what does not fit any more.
    pub fn check(&self, config: &ModelConfig, step: usize, loaded: &LoadedVersion) -> Result<()> {
        let Some(own) = self.steps.get(step) else { return Ok(()) };
        if Arc::ptr_eq(&own.fits.load(), &loaded.config) {
            return Ok(());
        }
        let known: Vec<_> = self.steps.iter().map(|step| step.fits.load_full()).collect();
        let now = |(index, known): (usize, &Arc<ModelConfig>)| {
            if index == step { Arc::clone(&loaded.config) } else { Arc::clone(known) }
        };
        let now: Vec<_> = known.iter().enumerate().map(now).collect();
        let changed = |text: String| {
            let text = format!(
                "a model of the ensemble was loaded anew and does not fit any more: {text}; load the ensemble anew"
            );
            Err(Error::not_ready(text).with_retryable(false))
        };
        let configs: Vec<_> = now.iter().map(|config| Some(&**config)).collect();
        if let Err(text) = types::check(config, &self.scheduling, &configs) {
            return changed(text);
        }
        if loaded.config.decoupled != self.graph.splits(step) {
            let now = if loaded.config.decoupled { "may answer more than once" } else { "gives exactly one answer" };
            return changed(format!("the model of step '{}' {now} now", own.model));
        }
        own.fits.store(Arc::clone(&loaded.config));
        Ok(())
    }

    /// The models of the steps and the versions that are asked of each, each once.
    pub(super) fn asked(&self) -> BTreeSet<(Name, Option<Version>)> {
        self.steps.iter().map(|step| (Arc::clone(&step.model), step.version)).collect()
    }

    /// The models of the steps, each once.
    #[must_use]
    pub fn models(&self) -> BTreeSet<Name> {
        self.steps.iter().map(|step| Arc::clone(&step.model)).collect()
    }

    /// Those of them that came with the ensemble.
    pub(super) fn parts(&self) -> impl Iterator<Item = Name> {
        self.models().into_iter().filter(|name| parts::is_part(name))
    }
}

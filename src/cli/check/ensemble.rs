//! What `roundhouse check` says of an ensemble: whether its steps are there and fit, as far as files tell.

use std::path::Path;

use crate::model_config::ensemble::{EnsembleScheduling, types};
use crate::model_config::{self, ModelConfig, UnknownFields};
use crate::repository::tree::ModelTree;
use crate::scheduler::ensemble::Graph;

/// What is wrong with an ensemble, and what could not be looked at.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) faults: Vec<String>,
    pub(super) notes: Vec<String>,
}

/// Looks at the models of the steps: in the same archive, or in the folder that holds the ensemble's own.
pub(super) fn check(name: &str, tree: &ModelTree, config: &ModelConfig, scheduling: &EnsembleScheduling) -> Findings {
    let mut found = Findings::default();
    let mut models = Vec::new();
    for step in &scheduling.steps {
        let model = match step_tree(name, tree, &step.model) {
            Ok(Some(tree)) => described(&tree),
            Ok(None) if tree.bundle.is_some() => {
                found.faults.push(format!("step '{}' is not in the archive: pack the models of all steps", step.model));
                None
            }
            Ok(None) => {
                found.notes.push(format!("step '{}' is no folder of the same repository: not looked at", step.model));
                None
            }
            Err(text) => {
                found.faults.push(format!("step '{}': {text}", step.model));
                None
            }
        };
        models.push(model);
    }
    let known: Vec<_> = models.iter().map(Option::as_ref).collect();
    if let Err(text) = types::check(config, scheduling, &known) {
        found.faults.push(text);
    }
    let inputs: Vec<_> = config.inputs.iter().map(|input| input.name.as_str()).collect();
    let outputs: Vec<_> = config.outputs.iter().map(|output| output.name.as_str()).collect();
    let decoupled: Vec<_> = models.iter().map(|model| model.as_ref().is_some_and(|model| model.decoupled)).collect();
    if let Err(error) = Graph::new(scheduling, &inputs, &outputs, &decoupled) {
        found.faults.push(error.to_string());
    }
    found
}

/// The model of a step, where it lies beside the ensemble.
fn step_tree(name: &str, tree: &ModelTree, step: &str) -> Result<Option<ModelTree>, String> {
    if tree.bundle.is_some() {
        return tree.part(step).map_err(|error| error.report());
    }
    // A name has a folder a part.
    let root = tree.directory.ancestors().nth(name.split('/').count());
    if crate::repository::check_name(step).is_err() {
        return Ok(None);
    }
    let read = |root: &Path| ModelTree::read(step, &root.join(step)).map_err(|error| error.report());
    root.map_or(Ok(None), read)
}

/// What a model's configuration says of its tensors, where it lists them; what is left out is the runtime's to say.
fn described(tree: &ModelTree) -> Option<ModelConfig> {
    let config = model_config::parse(tree.config.as_deref()?, UnknownFields::Warn).ok()?.config;
    (!config.inputs.is_empty() && !config.outputs.is_empty()).then_some(config)
}

/// The models in an archive beside the ensemble that is its entry, by their names.
pub(super) fn parts(tree: &ModelTree, scheduling: &EnsembleScheduling) -> Vec<(String, ModelTree)> {
    let mut steps: Vec<_> = scheduling.steps.iter().map(|step| step.model.as_str()).collect();
    steps.sort_unstable();
    steps.dedup();
    // One that cannot be read is a fault of the ensemble's.
    let part = |step: &str| tree.part(step).ok().flatten().map(|tree| (step.to_owned(), tree));
    steps.into_iter().filter_map(part).collect()
}

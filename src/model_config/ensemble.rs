//! `ensemble_scheduling`: a model made of other models, whose outputs are the inputs of the next. Source: the schema's
//! `ModelEnsembling` and Triton's documentation of it.
//!
//! What the configuration alone can have wrong is found here, with its place; what depends on the models of the steps is
//! the business of [`types`].

pub mod types;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::ModelConfig;
use super::complete::child;
use super::diagnostic::{ConfigError, ConfigWarning, Position, nearest, quoted};
use super::message::{Item, Message, Value};
use super::schema::MODEL_CONFIG;
use crate::error::Error;
use crate::inference::Version;

/// The platform of an ensemble, which has no backend.
pub const PLATFORM: &str = "ensemble";

/// The most steps of an ensemble.
const MAX_STEPS: usize = 1024;

/// How the models of an ensemble hang together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnsembleScheduling {
    /// The steps, in the order written, which says nothing of the order in which they run.
    pub steps: Vec<EnsembleStep>,
    /// How many answers of a decoupled step may be under way below it at a time; 0 where the configuration does not say.
    pub max_inflight_requests: u32,
}

/// A model of an ensemble, and where its tensors come from and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnsembleStep {
    /// The model's name as it is written.
    pub model: String,
    /// The version that answers; the latest where none is named.
    pub version: Option<Version>,
    /// The ensemble's tensor for each input of the model, by the input's name.
    pub inputs: BTreeMap<String, String>,
    /// The ensemble's tensor for outputs of the model, by the output's name.
    pub outputs: BTreeMap<String, String>,
}

impl ModelConfig {
    /// Writes out the defaults of an ensemble, as Triton's answer to `GET .../config` has them, and whether a request may
    /// have any number of answers, which its steps decide.
    ///
    /// # Errors
    /// `Internal` if the result is no configuration, which would be a fault of ours.
    pub fn normalize_ensemble(&mut self, decoupled: bool) -> Result<(), Error> {
        self.normalize_version_policy();
        self.normalize_optimization();
        if decoupled {
            let mut policy = child(&MODEL_CONFIG, "model_transaction_policy");
            policy.set_one("decoupled", Value::Bool(true));
            self.message.set_one("model_transaction_policy", Value::Message(policy));
        }
        self.reread().map_err(|error| Error::internal("the defaults make no configuration").with_source(error))
    }
}

/// Whether the tree is that of an ensemble.
pub(super) fn is_ensemble(config: &Message) -> bool {
    config.get("ensemble_scheduling").is_some() || config.text("platform") == PLATFORM
}

pub(super) fn read(config: &Message) -> Result<Option<EnsembleScheduling>, ConfigError> {
    let Some(written) = config.message("ensemble_scheduling") else { return Ok(None) };
    let mut steps = Vec::new();
    for (step, at) in written.messages("step") {
        if steps.len() == MAX_STEPS {
            return Err(wrong(at, format!("an ensemble has at most {MAX_STEPS} steps")));
        }
        let version = match step.int("model_version") {
            // A number that is not given is 0 in the schema; no version has it.
            -1 | 0 => None,
            number @ 1.. => Some(number.unsigned_abs()),
            number => {
                let text =
                    format!("{}: model_version must be -1 for the latest or a version, got {number}", shown(step));
                return Err(wrong(step.position_of("model_version"), text));
            }
        };
        let map = |field| step.entries(field).filter_map(|(key, item)| Some((key.to_string(), text(item)?.to_owned())));
        steps.push(EnsembleStep {
            model: step.text("model_name").to_owned(),
            version,
            inputs: map("input_map").collect(),
            outputs: map("output_map").collect(),
        });
    }
    // Of 32 bits by its schema.
    let max_inflight_requests = u32::try_from(written.uint("max_inflight_requests")).unwrap_or(u32::MAX);
    Ok(Some(EnsembleScheduling { steps, max_inflight_requests }))
}

fn text(item: &Item) -> Option<&str> {
    if let Value::String(text) = &item.value { Some(text) } else { None }
}

fn shown(step: &Message) -> String {
    format!("step {}", quoted(step.text("model_name")))
}

fn wrong(position: Position, text: impl std::fmt::Display) -> ConfigError {
    ConfigError::invalid(position, format!("ensemble_scheduling: {text}"))
}

/// Checks what the configuration alone can have wrong: contradictions with other fields, and whether the data flows.
pub(super) fn validate(config: &ModelConfig) -> Result<(), ConfigError> {
    let message = config.message();
    let Some(written) = message.message("ensemble_scheduling") else {
        if config.platform == PLATFORM {
            let text = "platform 'ensemble' needs ensemble_scheduling with the steps";
            return Err(ConfigError::invalid(message.position_of("platform"), text));
        }
        return Ok(());
    };
    if !matches!(config.platform.as_str(), "" | PLATFORM) {
        let text = format!("an ensemble has platform 'ensemble', got {}", quoted(&config.platform));
        return Err(ConfigError::invalid(message.position_of("platform"), text));
    }
    if !config.backend.is_empty() {
        let text = "an ensemble has no backend: leave it out, or leave out ensemble_scheduling";
        return Err(ConfigError::invalid(message.position_of("backend"), text));
    }
    for (field, why) in [
        ("instance_group", "its steps have instances"),
        ("batch_input", "its steps have batch inputs"),
        ("batch_output", "its steps have batch outputs"),
    ] {
        if message.items(field).next().is_some() {
            let text = format!("{field} must not be given for an ensemble: {why}");
            return Err(ConfigError::invalid(message.position_of(field), text));
        }
    }
    for role in ["input", "output"] {
        if message.items(role).next().is_none() {
            let text = format!("an ensemble must list its {role}s: they are those of no one model");
            return Err(ConfigError::invalid(message.position_of("ensemble_scheduling"), text));
        }
        for (tensor, _) in message.messages(role) {
            if tensor.get("reshape").is_some() {
                let name = quoted(tensor.text("name"));
                let text =
                    format!("{role} {name}: reshape means nothing to an ensemble, give it to the model of a step");
                return Err(ConfigError::invalid(tensor.position_of("reshape"), text));
            }
        }
    }
    Flow::of(config, written)?.check(config, message)
}

/// What is accepted and has no effect.
pub(super) fn warnings(config: &Message) -> Vec<ConfigWarning> {
    let fields = [
        ("model_warmup", "'model_warmup' has no effect on an ensemble: give it to the models of its steps"),
        ("optimization", "'optimization' has no effect on an ensemble: give it to the models of its steps"),
    ];
    let given = fields.into_iter().filter(|(field, _)| is_ensemble(config) && config.items(field).next().is_some());
    given.map(|(field, text)| ConfigWarning::new(config.position_of(field), text)).collect()
}

/// Who makes each tensor, and who takes it, with the places where that is written.
struct Flow<'a> {
    /// The step that makes a tensor; `None` for the ensemble's inputs.
    makers: HashMap<&'a str, Option<usize>>,
    /// For each step its model, where it is written, and what it takes.
    steps: Vec<Written<'a>>,
}

/// A step as it is written.
struct Written<'a> {
    model: &'a str,
    at: Position,
    /// The tensors that it takes, and where that is written.
    takes: Vec<(&'a str, Position)>,
}

impl<'a> Flow<'a> {
    fn of(config: &'a ModelConfig, written: &'a Message) -> Result<Self, ConfigError> {
        let mut makers: HashMap<&str, Option<usize>> =
            config.inputs.iter().map(|input| (input.name.as_str(), None)).collect();
        let mut steps = Vec::new();
        for (index, (step, at)) in written.messages("step").enumerate() {
            let model = step.text("model_name");
            if model.is_empty() {
                return Err(wrong(at, format!("step {} has no model_name", index + 1)));
            }
            for field in ["input_map", "output_map"] {
                if step.entries(field).next().is_none() {
                    return Err(wrong(at, format!("{} has no {field}", shown(step))));
                }
            }
            for (key, item) in step.entries("output_map") {
                let Some(tensor) = text(item) else { continue };
                match makers.insert(tensor, Some(index)) {
                    None => {}
                    Some(None) => {
                        let text = format!(
                            "{}: output {} is written to tensor {}, which is an input of the ensemble",
                            shown(step),
                            quoted(&key.to_string()),
                            quoted(tensor)
                        );
                        return Err(wrong(item.position, text));
                    }
                    Some(Some(other)) => {
                        let other = steps.get(other).map_or(model, |step: &Written<'_>| step.model);
                        let text = format!(
                            "{}: tensor {} is written twice, also by step {}: each tensor has one maker",
                            shown(step),
                            quoted(tensor),
                            quoted(other)
                        );
                        return Err(wrong(item.position, text));
                    }
                }
            }
            let takes = step.entries("input_map").filter_map(|(_, item)| Some((text(item)?, item.position)));
            steps.push(Written { model, at, takes: takes.collect() });
        }
        if steps.is_empty() {
            let position = config.message().position_of("ensemble_scheduling");
            return Err(wrong(position, "an ensemble needs at least one step"));
        }
        Ok(Self { makers, steps })
    }

    fn check(&self, config: &ModelConfig, message: &Message) -> Result<(), ConfigError> {
        for Written { model, takes, .. } in &self.steps {
            for (tensor, at) in takes {
                if !self.makers.contains_key(tensor) {
                    let near = nearest(tensor, self.makers.keys().copied());
                    let near = near.map(|near| format!("; did you mean {}?", quoted(near))).unwrap_or_default();
                    let text = format!(
                        "step {}: tensor {} is neither an input of the ensemble nor an output of a step{near}",
                        quoted(model),
                        quoted(tensor)
                    );
                    return Err(wrong(*at, text));
                }
            }
        }
        for ((written, position), output) in message.messages("output").zip(&config.outputs) {
            let position = if written.get("name").is_some() { written.position_of("name") } else { position };
            match self.makers.get(output.name.as_str()) {
                Some(Some(_)) => {}
                Some(None) => {
                    let text = format!(
                        "output {} is an input of the ensemble too: a step must write it",
                        quoted(&output.name)
                    );
                    return Err(wrong(position, text));
                }
                None => {
                    let text =
                        format!("output {} is written by no step: name it in an output_map", quoted(&output.name));
                    return Err(wrong(position, text));
                }
            }
        }
        match self.cycle() {
            None => Ok(()),
            Some(cycle) => {
                let position =
                    cycle.first().and_then(|step| self.steps.get(*step)).map_or(Position::UNKNOWN, |step| step.at);
                let mut names: Vec<_> =
                    cycle.iter().filter_map(|step| self.steps.get(*step)).map(|step| quoted(step.model)).collect();
                names.extend(names.first().cloned());
                let text = format!("the steps wait for each other in a circle: {}", names.join(" -> "));
                Err(wrong(position, text))
            }
        }
    }

    /// Steps that wait for each other, each for the tensors of the one before it.
    fn cycle(&self) -> Option<Vec<usize>> {
        let maker = |tensor: &str| self.makers.get(tensor).copied().flatten();
        let before: Vec<BTreeSet<usize>> =
            self.steps.iter().map(|step| step.takes.iter().filter_map(|(tensor, _)| maker(tensor)).collect()).collect();
        let mut after: Vec<Vec<usize>> = vec![Vec::new(); before.len()];
        let mut waits: Vec<usize> = before.iter().map(BTreeSet::len).collect();
        for (step, others) in before.iter().enumerate() {
            for other in others {
                if let Some(after) = after.get_mut(*other) {
                    after.push(step);
                }
            }
        }
        let mut free: Vec<usize> = (0..waits.len()).filter(|step| waits.get(*step) == Some(&0)).collect();
        while let Some(step) = free.pop() {
            for &next in after.get(step).into_iter().flatten() {
                if let Some(waits) = waits.get_mut(next) {
                    *waits -= 1;
                    if *waits == 0 {
                        free.push(next);
                    }
                }
            }
        }
        let is_left = |step: usize| waits.get(step).is_some_and(|waits| *waits > 0);
        // Of those that are left each waits for one that is left: going back long enough is going round.
        let mut path = vec![(0..waits.len()).find(|step| is_left(*step))?];
        loop {
            let last = *path.last()?;
            let next = before.get(last)?.iter().copied().find(|other| is_left(*other))?;
            if let Some(begin) = path.iter().position(|step| *step == next) {
                let mut cycle = path.split_off(begin);
                cycle.reverse();
                return Some(cycle);
            }
            path.push(next);
        }
    }
}

#[cfg(test)]
mod tests;

//! An ensemble's steps and tensors: what waits for what. Pure; `run` decides with it what may run.
//!
//! ## Levels
//! Each answer of a decoupled step flows down by itself, beside what was there before it. What lies below no decoupled step
//! is on level 0, what lies below the first on level 1, and so on: a tensor is on the level of its step, one further down
//! where that step is decoupled. The decoupled steps stand in one line, each below the one before it: of two that do not,
//! nobody could say which of their answers belong together.

pub mod run;

use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::model_config::ensemble::EnsembleScheduling;

/// The steps and tensors of an ensemble.
#[derive(Debug)]
pub struct Graph {
    tensors: Vec<Node>,
    steps: Vec<StepNode>,
    /// The tensors that callers give, in the order of the configuration.
    inputs: Vec<usize>,
    /// The tensors that callers get, in the order of the configuration.
    outputs: Vec<usize>,
    /// How many decoupled steps stand above the answers.
    depth: usize,
    /// The decoupled step of each level above the last, if there is one.
    splitters: Vec<usize>,
}

/// A tensor.
#[derive(Debug)]
struct Node {
    level: usize,
    /// The steps that take it, each once.
    readers: SmallVec<[usize; 2]>,
    is_output: bool,
}

/// A step, its tensors in the order of its maps.
#[derive(Debug)]
struct StepNode {
    level: usize,
    is_decoupled: bool,
    inputs: SmallVec<[usize; 4]>,
    /// The same, each once.
    waits_for: SmallVec<[usize; 4]>,
    outputs: SmallVec<[usize; 4]>,
}

impl Graph {
    /// The graph of a configuration that was checked: every tensor is made once and the steps stand in no circle.
    /// `is_decoupled` says so of each step's model.
    ///
    /// # Errors
    /// `InvalidArgument` for two decoupled steps of which neither lies below the other.
    pub fn new(
        scheduling: &EnsembleScheduling,
        inputs: &[&str],
        outputs: &[&str],
        is_decoupled: &[bool],
    ) -> Result<Self> {
        let mut names: Vec<&str> = inputs.to_vec();
        names.extend(scheduling.steps.iter().flat_map(|step| step.outputs.values().map(String::as_str)));
        let index_of: std::collections::HashMap<&str, usize> =
            names.iter().enumerate().map(|(index, name)| (*name, index)).collect();
        let find = |name: &str| {
            let unknown = || Error::internal(format!("tensor '{name}' of a checked ensemble is made by nobody"));
            index_of.get(name).copied().ok_or_else(unknown)
        };
        let mut graph = Self {
            tensors: names.iter().map(|_| Node { level: 0, readers: SmallVec::new(), is_output: false }).collect(),
            steps: Vec::with_capacity(scheduling.steps.len()),
            inputs: (0..inputs.len()).collect(),
            outputs: outputs.iter().map(|name| find(name)).collect::<Result<_>>()?,
            depth: 0,
            splitters: Vec::new(),
        };
        for (step, decoupled) in scheduling.steps.iter().zip(is_decoupled) {
            let inputs: SmallVec<[usize; 4]> = step.inputs.values().map(|name| find(name)).collect::<Result<_>>()?;
            let mut waits_for = inputs.clone();
            waits_for.sort_unstable();
            waits_for.dedup();
            let outputs = step.outputs.values().map(|name| find(name)).collect::<Result<_>>()?;
            graph.steps.push(StepNode { level: 0, is_decoupled: *decoupled, inputs, waits_for, outputs });
        }
        graph.connect()?;
        Ok(graph)
    }

    /// Finds readers, levels and the line of decoupled steps.
    fn connect(&mut self) -> Result<()> {
        for (index, step) in self.steps.iter().enumerate() {
            for tensor in &step.waits_for {
                if let Some(node) = self.tensors.get_mut(*tensor) {
                    node.readers.push(index);
                }
            }
        }
        for output in &self.outputs {
            if let Some(node) = self.tensors.get_mut(*output) {
                node.is_output = true;
            }
        }
        let mut missing: Vec<usize> = self.steps.iter().map(|step| step.waits_for.len()).collect();
        let mut made = self.inputs.clone();
        let mut splitters = std::collections::BTreeMap::new();
        while let Some(tensor) = made.pop() {
            let readers = self.tensors.get(tensor).map(|node| node.readers.clone()).unwrap_or_default();
            for reader in readers {
                let Some(left) = missing.get_mut(reader) else { continue };
                *left -= 1;
                if *left > 0 {
                    continue;
                }
                let level_of = |tensor: &usize| self.tensors.get(*tensor).map_or(0, |node| node.level);
                let Some(step) = self.steps.get_mut(reader) else { continue };
                step.level = step.waits_for.iter().map(level_of).max().unwrap_or(0);
                if step.is_decoupled && splitters.insert(step.level, reader).is_some() {
                    return Err(Error::invalid(
                        "two decoupled steps stand side by side: of their answers nobody can say which belong together; \
                         have one of them take a tensor of the other",
                    ));
                }
                let level = step.level + usize::from(step.is_decoupled);
                made.extend(step.outputs.iter().copied());
                for output in &step.outputs {
                    if let Some(node) = self.tensors.get_mut(*output) {
                        node.level = level;
                    }
                }
            }
        }
        self.depth = self
            .outputs
            .iter()
            .filter_map(|output| self.tensors.get(*output))
            .map(|node| node.level)
            .max()
            .unwrap_or(0);
        self.splitters = splitters.into_values().collect();
        Ok(())
    }

    /// Whether a request may have any number of answers.
    #[must_use]
    pub fn is_decoupled(&self) -> bool {
        !self.splitters.is_empty()
    }

    /// How many steps there are.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// Whether a step may have any number of answers.
    #[must_use]
    pub fn splits(&self, step: usize) -> bool {
        self.steps.get(step).is_some_and(|step| step.is_decoupled)
    }

    /// Whether a step stands below a decoupled one.
    #[must_use]
    pub fn is_below(&self, step: usize) -> bool {
        self.steps.get(step).is_some_and(|step| step.level > 0)
    }

    /// The readers of a tensor on a level, and whether anything further down needs it.
    fn claims(&self, tensor: usize, level: usize) -> (usize, bool) {
        let Some(node) = self.tensors.get(tensor) else { return (0, false) };
        let on = |reader: &&usize| self.steps.get(**reader).is_some_and(|step| step.level == level);
        let below = |reader: &usize| self.steps.get(*reader).is_some_and(|step| step.level > level);
        let is_answer = node.is_output && level == self.depth;
        let here = node.readers.iter().filter(on).count() + usize::from(is_answer);
        (here, node.readers.iter().any(below) || (node.is_output && self.depth > level))
    }
}

#[cfg(test)]
mod tests;

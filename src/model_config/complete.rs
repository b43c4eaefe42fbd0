//! What a configuration leaves open, filled in from what the runtime says of the model; and what it says, held against
//! that.

use super::diagnostic::{ConfigError, quoted};
use super::message::{Message, Value};
use super::schema::{FieldType, MODEL_CONFIG, MessageSchema};
use super::sequence::SequenceBatching;
use super::{InstanceKind, ModelConfig, VersionPolicy, image};
use crate::error::{Error, Result};
use crate::tensor::{DataType, Shape};

/// A tensor as the runtime knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSignature {
    /// The name in the model.
    pub name: String,
    /// The element type.
    pub data_type: DataType,
    /// The whole shape, a batch dimension included; -1 for any size.
    pub dims: Vec<i64>,
}

/// A model's inputs and outputs as the runtime knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeSignature {
    /// The inputs in the model's order.
    pub inputs: Vec<TensorSignature>,
    /// The outputs in the model's order.
    pub outputs: Vec<TensorSignature>,
    /// The names of inputs that the runtime can do without.
    pub optional_inputs: Vec<String>,
}

/// A configured tensor, input or output.
struct Configured<'a> {
    role: &'static str,
    name: &'a str,
    data_type: DataType,
    runtime_dims: &'a [i64],
}

impl ModelConfig {
    /// Fills in the inputs and outputs where the configuration has none, and holds those it has against the model.
    ///
    /// `max_batch_size` is never guessed. A bare model keeps 0 and the dims exactly as the runtime reports them, so
    /// that clients send the whole shape, with a batch of any size where the model has one. Under a `max_batch_size`
    /// above 0 the leading -1 of each tensor is left out of its dims; a tensor that is nothing else gets dims `[1]`
    /// with a reshape to `[]`, as Triton writes it.
    ///
    /// A configuration may leave out outputs, and inputs that the runtime can do without. It may fix a dimension that
    /// the model leaves open, not the other way round.
    ///
    /// # Errors
    /// `InvalidArgument` naming the tensor, what the configuration says and what the model has.
    pub fn complete(&mut self, signature: &RuntimeSignature) -> Result<()> {
        if self.inputs.is_empty() {
            self.fill("input", signature)?;
        }
        if self.outputs.is_empty() {
            self.fill("output", signature)?;
        }
        self.reread()
            .map_err(|error| Error::from(error).wrap("the model's own inputs and outputs cannot be served"))?;
        if image::is_left_over(self) {
            return Err(Error::invalid("parameter 'image_input' names an input, and the model has none"));
        }
        self.compare(signature)
    }

    /// Writes out the defaults, so that the configuration reads as Triton's answer to `GET .../config`: the version
    /// policy, one instance group if none is written, the names of groups, the file's name, pinned memory and the
    /// preferred batch size. `kind` is what `KIND_AUTO` comes to on this machine, `instances` the
    /// count where no group is written.
    ///
    /// # Errors
    /// `Internal` if the result is no configuration, which would be a fault of ours.
    pub fn normalize(&mut self, default_model_filename: &str, kind: InstanceKind, instances: u32) -> Result<()> {
        let name = self.name.clone();
        let preferred = i64::from(self.max_batch_size);
        self.normalize_version_policy();
        if self.default_model_filename.is_empty() && !default_model_filename.is_empty() {
            self.message.set_one("default_model_filename", Value::String(default_model_filename.to_owned()));
        }
        self.normalize_optimization();
        if let Some(mut batching) = self.message.message("dynamic_batching").cloned()
            && batching.ints("preferred_batch_size").next().is_none()
            && preferred > 0
        {
            batching.set_many("preferred_batch_size", [Value::Int(preferred)]);
            self.message.set_one("dynamic_batching", Value::Message(batching));
        }
        if let Some(mut sequences) = self.message.message("sequence_batching").cloned() {
            if sequences.uint("max_sequence_idle_microseconds") == 0
                && let Some(idle) = self.sequence_batching.as_ref().map(|sequences| sequences.max_idle)
            {
                let idle = u64::try_from(idle.as_micros()).unwrap_or(u64::MAX);
                sequences.set_one("max_sequence_idle_microseconds", Value::Uint(idle));
            }
            if sequences.get("direct").is_none() && sequences.get("oldest").is_none() {
                let direct = child(sequences.schema(), "direct");
                sequences.set_one("direct", Value::Message(direct));
            }
            if let Some(mut oldest) = sequences.message("oldest").cloned()
                && oldest.ints("preferred_batch_size").next().is_none()
                && preferred > 0
            {
                oldest.set_many("preferred_batch_size", [Value::Int(preferred)]);
                sequences.set_one("oldest", Value::Message(oldest));
            }
            self.message.set_one("sequence_batching", Value::Message(sequences));
        }
        let mut groups: Vec<Message> =
            self.message.messages("instance_group").map(|(group, _)| group.clone()).collect();
        let unwritten = groups.is_empty();
        if unwritten {
            groups.push(child(&MODEL_CONFIG, "instance_group"));
        }
        for (index, group) in groups.iter_mut().enumerate() {
            if group.text("name").is_empty() {
                group.set_one("name", Value::String(format!("{name}_{index}")));
            }
            if group.get("count").is_none() {
                group.set_one("count", Value::Int(i64::from(if unwritten { instances } else { 1 })));
            }
            if group.text("kind") == InstanceKind::Auto.config_name() {
                set_enum(group, "kind", kind.config_name());
                if kind == InstanceKind::Cpu && group.get("gpus").is_some() {
                    // The GPUs were for the case that there are some.
                    group.set_many("gpus", []);
                }
            }
        }
        self.message.set_many("instance_group", groups.into_iter().map(Value::Message));
        self.reread().map_err(|error| Error::internal("the defaults make no configuration").with_source(error))
    }

    pub(super) fn normalize_version_policy(&mut self) {
        if self.message.get("version_policy").is_none() || self.version_policy == VersionPolicy::Latest(1) {
            let mut policy = child(&MODEL_CONFIG, "version_policy");
            let mut latest = child(policy.schema(), "latest");
            latest.set_one("num_versions", Value::Uint(1));
            policy.set_one("latest", Value::Message(latest));
            self.message.set_one("version_policy", Value::Message(policy));
        }
    }

    /// Changes the groups one by one: those that are written, or the first `least` of which none is.
    pub(super) fn write_groups(
        &mut self,
        least: usize,
        mut change: impl FnMut(usize, &mut Message, bool),
    ) -> Result<()> {
        let mut groups: Vec<Message> =
            self.message.messages("instance_group").map(|(group, _)| group.clone()).collect();
        let written = groups.len();
        groups.resize_with(written.max(least), || child(&MODEL_CONFIG, "instance_group"));
        for (index, group) in groups.iter_mut().enumerate() {
            change(index, group, index < written);
        }
        self.message.set_many("instance_group", groups.into_iter().map(Value::Message));
        self.reread().map_err(|error| Error::internal("the groups make no configuration").with_source(error))
    }

    /// Pinned memory is on in Triton unless a configuration says otherwise.
    pub(super) fn normalize_optimization(&mut self) {
        let mut optimization =
            self.message.message("optimization").cloned().unwrap_or_else(|| child(&MODEL_CONFIG, "optimization"));
        for side in ["input_pinned_memory", "output_pinned_memory"] {
            if optimization.get(side).is_none() {
                let mut memory = child(optimization.schema(), side);
                memory.set_one("enable", Value::Bool(true));
                optimization.set_one(side, Value::Message(memory));
            }
        }
        self.message.set_one("optimization", Value::Message(optimization));
    }

    /// Reads the typed fields anew after a change of the tree.
    pub(super) fn reread(&mut self) -> Result<(), ConfigError> {
        *self = Self::read(self.message.clone())?;
        Ok(())
    }

    /// Sets the inputs or outputs to the runtime's.
    fn fill(&mut self, role: &'static str, signature: &RuntimeSignature) -> Result<()> {
        let tensors = if role == "input" { &signature.inputs } else { &signature.outputs };
        let is_servers = |name: &str| match &self.sequence_batching {
            Some(sequences) if role == "input" => sequences.makes(name),
            Some(sequences) => sequences.outputs().any(|(state, ..)| state == name),
            None => false,
        };
        let mut messages = Vec::with_capacity(tensors.len());
        for tensor in tensors.iter().filter(|tensor| !is_servers(&tensor.name)) {
            let mut message = child(&MODEL_CONFIG, role);
            message.set_one("name", Value::String(tensor.name.clone()));
            set_enum(&mut message, "data_type", tensor.data_type.config_name());
            let dims = self.dims_without_batch(role, tensor)?;
            if dims.is_empty() && self.max_batch_size > 0 {
                message.set_many("dims", [Value::Int(1)]);
                let mut reshape = child(message.schema(), "reshape");
                reshape.set_many("shape", []);
                message.set_one("reshape", Value::Message(reshape));
            } else {
                message.set_many("dims", dims.iter().map(|dim| Value::Int(*dim)));
            }
            if role == "input" && signature.optional_inputs.contains(&tensor.name) {
                message.set_one("optional", Value::Bool(true));
            }
            messages.push(Value::Message(message));
        }
        self.message.set_many(role, messages);
        Ok(())
    }

    /// The model's dims as a configuration writes them.
    fn dims_without_batch<'a>(&self, role: &str, tensor: &'a TensorSignature) -> Result<&'a [i64]> {
        match tensor.dims.as_slice() {
            dims if self.max_batch_size == 0 => Ok(dims),
            [-1, rest @ ..] => Ok(rest),
            dims => Err(Error::invalid(format!(
                "max_batch_size is {}, but the model's {role} {} has shape {}, whose first dimension is not of any \
                 size; set max_batch_size to 0",
                self.max_batch_size,
                quoted(&tensor.name),
                Shape::new(dims)
            ))),
        }
    }

    fn compare(&self, signature: &RuntimeSignature) -> Result<()> {
        for input in &self.inputs {
            self.compare_tensor(
                &Configured {
                    role: "input",
                    name: &input.name,
                    data_type: input.data_type,
                    runtime_dims: input.runtime_dims(),
                },
                &signature.inputs,
            )?;
        }
        for output in &self.outputs {
            self.compare_tensor(
                &Configured {
                    role: "output",
                    name: &output.name,
                    data_type: output.data_type,
                    runtime_dims: output.runtime_dims(),
                },
                &signature.outputs,
            )?;
        }
        let is_made_here = |name: &String| self.batch_inputs.iter().any(|input| input.targets.contains(name));
        let sequences = self.sequence_batching.as_ref();
        for (name, data_type, runtime_dims) in sequences.into_iter().flat_map(SequenceBatching::inputs) {
            let configured = Configured { role: "input", name, data_type, runtime_dims };
            self.compare_tensor(&configured, &signature.inputs)?;
        }
        for (name, data_type, runtime_dims) in sequences.into_iter().flat_map(SequenceBatching::outputs) {
            let configured = Configured { role: "output", name, data_type, runtime_dims };
            self.compare_tensor(&configured, &signature.outputs)?;
        }
        let is_left_out = |name: &String| {
            !signature.optional_inputs.contains(name)
                && !is_made_here(name)
                && !sequences.is_some_and(|sequences| sequences.makes(name))
                && self.inputs.iter().find(|input| input.name == *name).is_none_or(|input| input.optional)
        };
        match signature.inputs.iter().map(|input| &input.name).find(|name| is_left_out(name)) {
            Some(name) if self.inputs.iter().any(|input| input.name == *name) => Err(Error::invalid(format!(
                "the configuration says that input {} is optional, but the model cannot do without it",
                quoted(name)
            ))),
            Some(name) => Err(Error::invalid(format!(
                "the model needs input {}, which the configuration does not have; it has {}",
                quoted(name),
                list(self.inputs.iter().map(|input| input.name.as_str()))
            ))),
            None => Ok(()),
        }
    }

    /// Whether the tensors of several requests are laid end to end in it.
    fn lies_end_to_end(&self, role: &str, name: &str) -> bool {
        match role {
            "input" => self.inputs.iter().any(|input| input.name == name && input.allow_ragged_batch),
            _ => self.batch_outputs.iter().any(|output| output.targets.iter().any(|target| target == name)),
        }
    }

    fn compare_tensor(&self, configured: &Configured<'_>, tensors: &[TensorSignature]) -> Result<()> {
        let Configured { role, name, data_type, runtime_dims } = *configured;
        let name_shown = quoted(name);
        let Some(tensor) = tensors.iter().find(|tensor| tensor.name == name) else {
            return Err(Error::invalid(format!(
                "the configuration has {role} {name_shown}, which the model does not have; its {role}s are {}",
                list(tensors.iter().map(|tensor| tensor.name.as_str()))
            )));
        };
        if tensor.data_type != data_type {
            return Err(Error::invalid(format!(
                "{role} {name_shown}: the configuration says {}, the model has {}",
                data_type.config_name(),
                tensor.data_type.config_name()
            )));
        }
        if self.lies_end_to_end(role, name) {
            return match tensor.dims.as_slice() {
                [_] => Ok(()),
                dims => Err(Error::invalid(format!(
                    "{role} {name_shown}: what is ragged reaches the model in one dimension, but it has {}",
                    Shape::new(dims)
                ))),
            };
        }
        self.dims_without_batch(role, tensor)?;
        let shape: Shape = self.metadata_dims(runtime_dims).into_iter().collect();
        if !shape.matches(&tensor.dims) {
            let batch = if self.max_batch_size > 0 { ", the batch dimension included" } else { "" };
            return Err(Error::invalid(format!(
                "{role} {name_shown}: the configuration says shape {shape}{batch}, the model has {}",
                Shape::new(&tensor.dims)
            )));
        }
        Ok(())
    }
}

/// An empty message for a field of `schema`.
pub(super) fn child(schema: &'static MessageSchema, field: &str) -> Message {
    match schema.field(field).map(|field| field.field_type) {
        Some(FieldType::Message(inner)) => Message::new(inner),
        _ => {
            debug_assert!(false, "{} has no message '{field}'", schema.name);
            Message::new(schema)
        }
    }
}

pub(super) fn set_enum(message: &mut Message, field: &str, name: &str) {
    if let Some(FieldType::Enum(schema)) = message.schema().field(field).map(|field| field.field_type)
        && let Ok(value) = Value::of_enum(schema, name)
    {
        message.set_one(field, value);
    }
}

/// Names for an error message, not more than it can bear.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const MOST: usize = 16;
    let names: Vec<_> = names.collect();
    let mut shown: Vec<_> = names.iter().take(MOST).map(|name| quoted(name)).collect();
    if names.len() > MOST {
        shown.push(format!("and {} more", names.len() - MOST));
    }
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests;

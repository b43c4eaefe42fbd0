//! A `ModelInferRequest` from the wire into an [`InferenceRequest`], in one pass and without a struct in between. Raw
//! tensors are slices of the message.

use std::time::Duration;

use bytes::Bytes;
use compact_str::CompactString;
use smallvec::SmallVec;

use super::super::tensor_json::shared::{SharedParameters, check_size, is_shared};
use super::super::tensor_json::{Limits, OutputFormat, ResponseFormat, SharedInput};
use super::contents::{self, Place};
use super::parameters::{self, Understood};
use super::wire::{Fields, Value, wrong_type};
use crate::error::{Error, Result};
use crate::inference::{InferenceRequest, NamedTensor, Version};
use crate::server::shared_memory::RegionSpec;
use crate::tensor::{DataType, Shape, Tensor};

/// A request as it came, with what concerns the front end alone beside it.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// The model asked for.
    pub model: CompactString,
    /// Its version; the latest if `None`.
    pub version: Option<Version>,
    /// What is handed down. Its deadline is unset.
    pub request: InferenceRequest,
    /// The `timeout` parameter; `None` if absent or 0.
    pub timeout: Option<Duration>,
    /// The outputs that are to be reduced to their top classes, or written to shared memory.
    pub format: ResponseFormat,
    /// The inputs that lie in shared memory; not among the request's until somebody has read them.
    pub shared_inputs: Vec<SharedInput>,
    /// Whether a decoupled model's end without more to say is to be a message of its own.
    pub empty_final: bool,
}

/// An input whose tensor is made once everything is read: fields come in any order.
struct Input<'a> {
    name: &'a str,
    data_type: &'a str,
    shape: Shape,
    contents: SmallVec<[&'a [u8]; 1]>,
    /// Where in shared memory it lies, if it does.
    place: Option<RegionSpec>,
}

/// Reads a message.
///
/// # Errors
/// `InvalidArgument` naming the input or parameter that is wrong, `TooLarge` naming the limit.
pub fn decode(message: &Bytes, limits: &Limits) -> Result<Decoded> {
    let mut decoded = Decoded::default();
    let mut understood = Understood::default();
    let mut inputs = SmallVec::<[Input<'_>; 2]>::new();
    let mut raw = SmallVec::<[&[u8]; 2]>::new();
    let mut parameters = 0;
    let mut fields = Fields(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => decoded.model = value.text("model_name")?.into(),
            2 => decoded.version = parameters::version(value.text("model_version")?)?,
            3 => decoded.request.id = parameters::name(value.text("id")?, "the request", limits)?.into(),
            4 => {
                parameters::count(&mut parameters, limits)?;
                let (key, value) = parameters::read_entry(value.bytes("parameters")?, limits)?;
                parameters::take(key, value, &mut decoded.request, &mut understood)?;
            }
            5 => {
                check_count(inputs.len(), "inputs", limits)?;
                inputs.push(read_input(value.bytes("inputs")?, limits)?);
            }
            6 => {
                check_count(decoded.request.outputs.len(), "requested outputs", limits)?;
                read_output(value.bytes("outputs")?, limits, &mut decoded)?;
            }
            7 => {
                check_count(raw.len(), "raw_input_contents", limits)?;
                raw.push(value.bytes("raw_input_contents")?);
            }
            _ => {}
        }
    }
    decoded.timeout = understood.timeout;
    decoded.empty_final = understood.empty_final;
    let model = decoded.model.as_str();
    let in_message = inputs.iter().filter(|input| input.place.is_none());
    if !raw.is_empty() && raw.len() != in_message.clone().count() {
        // Triton's text where there is too little; it lets too much pass.
        return Err(match in_message.clone().nth(raw.len()) {
            Some(input) => no_data(input.name, model),
            None => Error::invalid(format!(
                "expected one of raw_input_contents for each of the {} inputs of a request for model '{model}', got {}",
                in_message.count(),
                raw.len()
            )),
        });
    }
    let mut raw = raw.into_iter();
    for mut input in inputs {
        match input.place.take() {
            Some(place) => decoded.shared_inputs.push(shared_input(place, input, model)?),
            None => {
                let tensor = tensor(message, &input, raw.next(), model, limits)?;
                decoded.request.inputs.push(NamedTensor { name: input.name.into(), tensor });
            }
        }
    }
    Ok(decoded)
}

/// The id of a request that cannot be read, where that can be.
pub(super) fn id_of(message: &[u8]) -> CompactString {
    let mut fields = Fields(message);
    let mut id = CompactString::default();
    while let Ok(Some((number, value))) = fields.next() {
        if number == 3
            && let Ok(text) = value.text("id")
        {
            id = text.chars().take(256).collect();
        }
    }
    id
}

fn read_input<'a>(message: &'a [u8], limits: &Limits) -> Result<Input<'a>> {
    let mut input = Input { name: "", data_type: "", shape: Shape::default(), contents: SmallVec::new(), place: None };
    let mut shared = SharedParameters::default();
    let mut parameters = 0;
    let mut fields = Fields(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => input.name = parameters::name(value.text("inputs.name")?, "an input", limits)?,
            2 => input.data_type = value.text("inputs.datatype")?,
            3 => match value {
                Value::Varint(dim) => push_dim(&mut input, dim, limits)?,
                Value::Bytes(packed) => {
                    let mut rest = Fields(packed);
                    while !rest.0.is_empty() {
                        let dim = rest.varint()?;
                        push_dim(&mut input, dim, limits)?;
                    }
                }
                Value::Fixed32(_) | Value::Fixed64(_) => return Err(wrong_type("inputs.shape")),
            },
            4 => {
                parameters::count(&mut parameters, limits)?;
                let (key, value) = parameters::read_entry(value.bytes("inputs.parameters")?, limits)?;
                if is_shared(key) {
                    parameters::take_shared(key, value, &mut shared, limits)?;
                }
            }
            5 => {
                check_count(input.contents.len(), "parts of contents", limits)?;
                input.contents.push(value.bytes("inputs.contents")?);
            }
            _ => {}
        }
    }
    input.place = shared.finish(input.name)?;
    Ok(input)
}

fn push_dim(input: &mut Input<'_>, dim: u64, limits: &Limits) -> Result<()> {
    if input.shape.rank() == limits.rank {
        return Err(Error::too_large(format!("an input has more dimensions than the limit of {} (rank)", limits.rank)));
    }
    input.shape.push(dim as i64);
    Ok(())
}

fn read_output(message: &[u8], limits: &Limits, decoded: &mut Decoded) -> Result<()> {
    let (mut name, mut classification, mut parameters) = ("", None, 0);
    let mut shared = SharedParameters::default();
    let mut fields = Fields(message);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => name = parameters::name(value.text("outputs.name")?, "a requested output", limits)?,
            2 => {
                parameters::count(&mut parameters, limits)?;
                let (key, value) = parameters::read_entry(value.bytes("outputs.parameters")?, limits)?;
                if is_shared(key) {
                    parameters::take_shared(key, value, &mut shared, limits)?;
                } else if key == "classification" {
                    let count = parameters::unsigned(&value).and_then(|count| u32::try_from(count).ok());
                    classification = Some(count.filter(|count| *count > 0).ok_or_else(|| {
                        Error::invalid(
                            "invalid value type for 'classification' parameter, expected int64_param. It is to be at \
                             least 1",
                        )
                    })?);
                }
            }
            _ => {}
        }
    }
    let name = CompactString::new(name);
    if decoded.request.outputs.len() < SHORT && decoded.request.outputs.contains(&name) {
        return Err(Error::invalid(format!("requested output '{name}' is given twice")));
    }
    let shared = shared.finish(&name)?;
    if shared.is_some() && classification.is_some() {
        // Triton's text over HTTP.
        return Err(Error::invalid("Output can't set both 'shared_memory_region' and 'classification'"));
    }
    if classification.is_some() || shared.is_some() {
        decoded.format.outputs.push(OutputFormat { name: name.clone(), binary: None, classification, shared });
    }
    decoded.request.outputs.push(name);
    Ok(())
}

/// Up to this many requested outputs, each is compared with each; a longer list with repetitions is no wrong request.
const SHORT: usize = 64;

fn tensor(message: &Bytes, input: &Input<'_>, raw: Option<&[u8]>, model: &str, limits: &Limits) -> Result<Tensor> {
    let name = input.name;
    let within = |error: Error| Error::new(error.kind(), format!("input '{name}': {error}"));
    let data_type: DataType = input.data_type.parse().map_err(within)?;
    let data = match (raw, input.contents.is_empty()) {
        (Some(raw), true) => message.slice_ref(raw),
        (Some(_), false) => {
            return Err(Error::invalid(format!(
                "contents field must not be specified when using raw_input_contents for '{name}' for model '{model}'"
            )));
        }
        (None, false) => {
            contents::read(message, &input.contents, data_type, Place { input: name, model }, limits.elements)?
        }
        (None, true) => return Err(no_data(name, model)),
    };
    Tensor::new(data_type, input.shape.clone(), data)
        .map_err(|error| Error::new(error.kind(), format!("unexpected size for input '{name}': {error}")))
}

/// An input that lies in shared memory.
fn shared_input(place: RegionSpec, input: Input<'_>, model: &str) -> Result<SharedInput> {
    let Input { name, data_type, shape, contents, .. } = input;
    let within = |error: Error| Error::new(error.kind(), format!("input '{name}': {error}"));
    if !contents.is_empty() {
        return Err(Error::invalid(format!(
            "unexpected 'content' provided when using shared memory for input tensor '{name}' for model '{model}'"
        )));
    }
    let data_type: DataType = data_type.parse().map_err(within)?;
    check_size(name, data_type, &shape, place.byte_size)?;
    Ok(SharedInput { name: name.into(), data_type, shape, place })
}

#[cold]
fn no_data(input: &str, model: &str) -> Error {
    Error::invalid(format!("unable to find data for input tensor '{input}' for model '{model}' in request."))
}

fn check_count(count: usize, what: &str, limits: &Limits) -> Result<()> {
    if count == limits.inputs {
        return Err(Error::too_large(format!("more {what} than the limit of {} (inputs)", limits.inputs)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

//! A request against its model: checked, put in order, reshaped; and outputs in the shapes that callers were promised.

use std::time::Instant;

use compact_str::CompactString;
use smallvec::SmallVec;

use crate::error::{Error, ErrorKind, Result};
use crate::inference::{InferenceRequest, NamedTensor, NamedTensors, Parameters, Sequence, SequenceId};
use crate::lifecycle::handle::{LoadedVersion, TensorMetadata};
use crate::scheduler::work::Work;
use crate::tensor::Shape;

/// The longest id of a sequence in bytes, as in Triton.
const MAX_SEQUENCE_ID: usize = 128;

/// Checks a request against a model and puts its tensors in order. The texts are Triton's where its clients' tests pin
/// them.
pub(super) fn prepare(model: &LoadedVersion, request: InferenceRequest, arrived: Instant) -> Result<Work> {
    let shown = request.id.clone();
    let wrong = |text: String| wrong_request(&shown, &text);
    let name = &model.id.name;
    let mut given = request.inputs;
    let mut inputs = NamedTensors::new();
    let mut batch_size = None;
    for metadata in &model.inputs {
        let Some(at) = given.iter().position(|input| input.name == metadata.name) else {
            if metadata.optional {
                continue;
            }
            let unknown = given.iter().find(|input| model.inputs.iter().all(|known| known.name != input.name));
            return Err(match unknown {
                // With as many inputs as the model has, one is misnamed rather than missing.
                Some(unknown) if given.len() + inputs.len() >= model.inputs.len() => {
                    wrong(format!("unexpected inference input '{}' for model '{name}'", unknown.name))
                }
                _ => wrong(missing_input(model, &given, &inputs)),
            });
        };
        let input = given.remove(at);
        let tensor = input.tensor;
        if tensor.data_type() != metadata.data_type {
            return Err(wrong(format!(
                "inference input '{}' data-type is '{}', but model '{name}' expects '{}'",
                metadata.name,
                tensor.data_type(),
                metadata.data_type
            )));
        }
        if model.max_batch_size > 0 {
            check_batch(model, &metadata.name, tensor.shape(), &mut batch_size).map_err(wrong)?;
        }
        if !tensor.shape().matches(&metadata.dims) {
            let note = if model.max_batch_size > 0 {
                "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to \
                 each input shape. If you want to specify the full shape including the batch dim in your input dims config, \
                 try setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
            } else {
                ""
            };
            return Err(wrong(format!(
                "unexpected shape for input '{}' for model '{name}'. Expected {}, got {}. {note}",
                metadata.name,
                Shape::new(&metadata.dims),
                tensor.shape(),
            )));
        }
        if let Some(image) = model.config.image_input.as_ref().filter(|image| metadata.name == image.name) {
            image.pictures(tensor.shape()).map_err(|text| wrong(format!("input '{}': {text}", metadata.name)))?;
        }
        let tensor = match &metadata.reshape {
            None => tensor,
            Some(reshape) => {
                let shape = tensor
                    .shape()
                    .through_reshape(&metadata.dims, reshape, model.max_batch_size > 0)
                    .ok_or_else(|| Error::internal(format!("reshape of input '{}' does not fit", metadata.name)))?;
                tensor.reshaped(shape)?
            }
        };
        inputs.push(NamedTensor { name: input.name, tensor });
    }
    if let Some(extra) = given.first() {
        let known = model.inputs.iter().any(|metadata| metadata.name == extra.name);
        return Err(wrong(if known {
            format!("input '{}' already exists in request", extra.name)
        } else {
            format!("unexpected inference input '{}' for model '{name}'", extra.name)
        }));
    }
    let outputs = wanted_outputs(model, &request.outputs).map_err(wrong)?;
    let batch_size = batch_size.unwrap_or(1).max(1);
    let sequence = match &model.config.sequence_batching {
        None => None,
        Some(_) => Some(place_in_sequence(name, &request.parameters, batch_size).map_err(wrong)?),
    };
    let InferenceRequest { id, deadline, priority, trace, .. } = request;
    Ok(Work { inputs, outputs, batch_size, deadline, priority, arrived, sequence, id, trace })
}

/// A request that is wrong, with its id as Triton shows it.
fn wrong_request(id: &str, text: &str) -> Error {
    Error::invalid(format!("[request id: {}] {text}", if id.is_empty() { "<id_unknown>" } else { id }))
}

/// Which request of which sequence it is.
fn place_in_sequence(model: &str, parameters: &Parameters, batch_size: u64) -> Result<Sequence, String> {
    if batch_size > 1 {
        return Err(format!(
            "inference request to model '{model}' must specify batch-size 1 due to requirements of sequence batcher"
        ));
    }
    let sequence = Sequence::of(parameters).ok_or_else(|| {
        format!("inference request to model '{model}' must specify a non-zero or non-empty correlation ID")
    })?;
    match &sequence.id {
        SequenceId::Text(text) if text.len() > MAX_SEQUENCE_ID => Err(format!(
            "inference request to model '{model}' has a correlation ID of {} bytes, at most {MAX_SEQUENCE_ID} are taken",
            text.len()
        )),
        _ => Ok(sequence),
    }
}

/// The batch size of an input: at most the model's, and the same for all inputs.
fn check_batch(model: &LoadedVersion, input: &str, shape: &Shape, batch_size: &mut Option<u64>) -> Result<(), String> {
    let name = &model.id.name;
    let Some(&size) = shape.dims().first() else {
        return Err(format!("input '{input}' has no shape but model requires batch dimension for '{name}'"));
    };
    let size = u64::try_from(size).unwrap_or(0);
    if size > model.max_batch_size {
        return Err(format!("inference request batch-size must be <= {} for '{name}'", model.max_batch_size));
    }
    if batch_size.is_some_and(|first| first != size) {
        return Err(format!("input '{input}' batch size does not match other inputs for '{name}'"));
    }
    *batch_size = Some(size);
    Ok(())
}

/// The outputs asked for, all where none is named, in the model's order whatever the request's.
fn wanted_outputs(model: &LoadedVersion, named: &[CompactString]) -> Result<SmallVec<[usize; 4]>, String> {
    if let Some(unknown) = named.iter().find(|name| model.outputs.iter().all(|output| output.name != **name)) {
        return Err(format!("unexpected inference output '{unknown}' for model '{}'", model.id.name));
    }
    let indexes = model.outputs.iter().zip(&model.output_indexes);
    let wanted = indexes.filter(|(output, _)| named.is_empty() || named.contains(&output.name));
    Ok(wanted.map(|(_, index)| *index).collect())
}

fn missing_input(model: &LoadedVersion, rest: &[NamedTensor], taken: &[NamedTensor]) -> String {
    let list = |names: Vec<&str>| names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(",");
    let got: Vec<&str> = taken.iter().chain(rest).map(|input| input.name.as_str()).collect();
    let missing: Vec<&str> = model
        .inputs
        .iter()
        .filter(|metadata| !metadata.optional)
        .map(|metadata| metadata.name.as_str())
        .filter(|name| !got.contains(name))
        .collect();
    format!(
        "expected {} inputs but got {} inputs for model '{}'. Got input(s) [{}], but missing required input(s) [{}]. \
         Please provide all required input(s).",
        model.inputs.len(),
        got.len(),
        model.id.name,
        list(got),
        list(missing)
    )
}

/// Gives outputs the shapes that callers were promised, where the configuration reshapes.
pub(super) fn restore_shapes(model: &LoadedVersion, outputs: &mut NamedTensors) -> Result<()> {
    for output in outputs {
        let metadata = model.outputs.iter().find(|metadata| metadata.name == output.name);
        if let Some(TensorMetadata { reshape: Some(reshape), dims, .. }) = metadata {
            restore_shape(output, dims, reshape, model.max_batch_size > 0)?;
        }
    }
    Ok(())
}

/// Gives an output the shape its configuration promises: the batch dimension, then `dims` with each -1 taking, in order,
/// what the runtime gave at the -1s of `reshape`.
fn restore_shape(output: &mut NamedTensor, dims: &[i64], reshape: &[i64], batched: bool) -> Result<()> {
    let skip = usize::from(batched);
    let runtime = output.tensor.shape().dims();
    let given = runtime.iter().skip(skip).zip(reshape).filter(|(_, dim)| **dim == -1).map(|(size, _)| *size);
    let mut free = runtime.iter().take(skip).copied().chain(given);
    let shape: Option<Shape> = dims.iter().map(|&dim| if dim == -1 { free.next() } else { Some(dim) }).collect();
    let restored = shape.and_then(|shape| output.tensor.clone().reshaped(shape).ok());
    output.tensor = restored.ok_or_else(|| {
        Error::new(
            ErrorKind::BackendFailed,
            format!(
                "output '{}' came out of the model in shape {}, not in its reshape",
                output.name,
                output.tensor.shape()
            ),
        )
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_gets_its_configured_shape_back_wherever_the_reshape_put_the_free_dimension() {
        let output = |shape: &[i64]| {
            let elements = usize::try_from(shape.iter().product::<i64>()).unwrap();
            let tensor = crate::tensor::Tensor::from_vec(Shape::new(shape), vec![0_u8; elements]).unwrap();
            NamedTensor { name: "y".into(), tensor }
        };
        let mut moved = output(&[1, 2, 3, 2]);
        restore_shape(&mut moved, &[-1, -1, 4], &[2, -1, 2], true).unwrap();
        assert_eq!(moved.tensor.shape().dims(), [1, 3, 4]);
        let mut scalar = output(&[5]);
        restore_shape(&mut scalar, &[-1, 1], &[], true).unwrap();
        assert_eq!(scalar.tensor.shape().dims(), [5, 1]);
        let mut wrong = output(&[7]);
        assert!(restore_shape(&mut wrong, &[6], &[2, 3], false).is_err());
    }
}

//! Whether the models of an ensemble's steps fit together: names, types, shapes and batches, as Triton compares them.

use std::collections::HashMap;

use super::super::ModelConfig;
use super::super::diagnostic::quoted;
use super::{EnsembleScheduling, EnsembleStep};
use crate::tensor::{DataType, Shape};

/// What is known of a tensor between steps, and who says so.
struct Known {
    who: String,
    data_type: DataType,
    /// The whole shape, a batch dimension included.
    dims: Vec<i64>,
}

/// Holds an ensemble against the complete configurations of the models of its steps, one a step in their order; `None`
/// leaves one out that is not known.
///
/// A step's batch must be as large as the ensemble's. Between two tensors that are one, types are equal and shapes have as
/// many dimensions, the batch dimension included, each equal or of any size on one side.
///
/// # Errors
/// What does not fit, naming the step and the tensor.
pub fn check(
    config: &ModelConfig,
    scheduling: &EnsembleScheduling,
    models: &[Option<&ModelConfig>],
) -> Result<(), String> {
    let of_ensemble = |role: &str, name: &str, data_type, dims: &[i64]| {
        let known = Known {
            who: format!("the ensemble's {role} {}", quoted(name)),
            data_type,
            dims: config.metadata_dims(dims),
        };
        (name.to_owned(), known)
    };
    let mut tensors: HashMap<String, Known> =
        config.inputs.iter().map(|input| of_ensemble("input", &input.name, input.data_type, &input.dims)).collect();
    tensors.extend(
        config.outputs.iter().map(|output| of_ensemble("output", &output.name, output.data_type, &output.dims)),
    );
    let optional = |tensor: &String| config.inputs.iter().any(|input| input.name == *tensor && input.optional);
    for (step, model) in scheduling.steps.iter().zip(models) {
        let Some(model) = model else { continue };
        let shown = format!("step {}", quoted(&step.model));
        if config.max_batch_size > model.max_batch_size {
            return Err(format!(
                "the ensemble allows batches of {}, but {shown} only of {}: lower the ensemble's max_batch_size",
                config.max_batch_size, model.max_batch_size
            ));
        }
        check_names(step, model, &shown)?;
        for input in &model.inputs {
            let Some(tensor) = step.inputs.get(&input.name) else { continue };
            if optional(tensor) && !input.optional {
                return Err(format!(
                    "{shown}: input {} cannot be left out, but input {} of the ensemble may be: make that one required",
                    quoted(&input.name),
                    quoted(tensor)
                ));
            }
            let who = format!("input {} of {shown}", quoted(&input.name));
            let (data_type, dims) = model.sent(input);
            compare(&mut tensors, tensor, Known { who, data_type, dims })?;
        }
        for output in &model.outputs {
            let Some(tensor) = step.outputs.get(&output.name) else { continue };
            let who = format!("output {} of {shown}", quoted(&output.name));
            let known = Known { who, data_type: output.data_type, dims: model.metadata_dims(&output.dims) };
            compare(&mut tensors, tensor, known)?;
        }
    }
    Ok(())
}

fn check_names(step: &EnsembleStep, model: &ModelConfig, shown: &str) -> Result<(), String> {
    let list = |names: Vec<&str>| names.into_iter().map(quoted).collect::<Vec<_>>().join(", ");
    let is_input = |name: &&String| model.inputs.iter().any(|input| input.name == **name);
    if let Some(name) = step.inputs.keys().find(|name| !is_input(name)) {
        let known = list(model.inputs.iter().map(|input| input.name.as_str()).collect());
        return Err(format!("{shown}: input_map has {}, but the model's inputs are {known}", quoted(name)));
    }
    let is_output = |name: &&String| model.outputs.iter().any(|output| output.name == **name);
    if let Some(name) = step.outputs.keys().find(|name| !is_output(name)) {
        let known = list(model.outputs.iter().map(|output| output.name.as_str()).collect());
        return Err(format!("{shown}: output_map has {}, but the model's outputs are {known}", quoted(name)));
    }
    match model.inputs.iter().find(|input| !input.optional && !step.inputs.contains_key(&input.name)) {
        Some(missing) => Err(format!("{shown}: input_map lacks input {} of the model", quoted(&missing.name))),
        None => Ok(()),
    }
}

/// Compares what one says of a tensor with what another said, and keeps the more exact of the two.
fn compare(tensors: &mut HashMap<String, Known>, tensor: &str, one: Known) -> Result<(), String> {
    let Some(other) = tensors.get(tensor) else {
        tensors.insert(tensor.to_owned(), one);
        return Ok(());
    };
    if one.data_type != other.data_type {
        return Err(format!(
            "tensor {} is {} for {}, but {} for {}",
            quoted(tensor),
            one.data_type.config_name(),
            one.who,
            other.data_type.config_name(),
            other.who
        ));
    }
    let fits = |(one, other): (&i64, &i64)| one == other || *one == -1 || *other == -1;
    if one.dims.len() != other.dims.len() || !one.dims.iter().zip(&other.dims).all(fits) {
        return Err(format!(
            "tensor {} has shape {} for {}, but {} for {}, batch dimensions included",
            quoted(tensor),
            Shape::new(&one.dims),
            one.who,
            Shape::new(&other.dims),
            other.who
        ));
    }
    let known = |dims: &[i64]| dims.iter().filter(|dim| **dim != -1).count();
    if known(&one.dims) > known(&other.dims) {
        tensors.insert(tensor.to_owned(), one);
    }
    Ok(())
}

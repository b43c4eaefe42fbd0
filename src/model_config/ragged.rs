//! `batch_input` and `batch_output`: tensors that a model of ragged batches gets beside its inputs, made of the whole
//! batch, and outputs that are split by the shapes of inputs. Source: the schema's `BatchInput` and `BatchOutput`.

use super::ModelConfig;
use super::diagnostic::{ConfigError, Position, quoted};
use super::message::{Message, Value};
use crate::tensor::DataType;

/// A tensor made of the whole batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchInput {
    /// What is in it.
    pub kind: BatchInputKind,
    /// The names under which the model gets it.
    pub targets: Vec<String>,
    /// INT32 or FP32.
    pub data_type: DataType,
    /// The input that is counted or measured.
    pub source: String,
}

/// What a batch input holds. An item is one element of the batch dimension; a request may bring several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchInputKind {
    /// For each request how many elements its source has: `[requests]`.
    ElementCount,
    /// The running sum of those: `[requests]`.
    AccumulatedElementCount,
    /// The running sum, with a zero before it: `[requests + 1]`.
    AccumulatedElementCountWithZero,
    /// Nothing, in a shape that says the largest count: `[largest]`.
    MaxElementCountAsShape,
    /// For each item the shape of its source without the batch dimension: `[items, rank]`.
    ItemShape,
    /// The same in one row: `[items * rank]`.
    ItemShapeFlatten,
}

/// Outputs that hold the answers of all requests one after the other, as long each as its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchOutput {
    /// The outputs.
    pub targets: Vec<String>,
    /// The input whose shape an answer has.
    pub source: String,
}

fn kind(name: &str) -> BatchInputKind {
    match name {
        "BATCH_ACCUMULATED_ELEMENT_COUNT" => BatchInputKind::AccumulatedElementCount,
        "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO" => BatchInputKind::AccumulatedElementCountWithZero,
        "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE" => BatchInputKind::MaxElementCountAsShape,
        "BATCH_ITEM_SHAPE" => BatchInputKind::ItemShape,
        "BATCH_ITEM_SHAPE_FLATTEN" => BatchInputKind::ItemShapeFlatten,
        // The first is what an enum is where nothing is written.
        _ => BatchInputKind::ElementCount,
    }
}

pub(super) fn read_batch_input(input: &Message, position: Position) -> Result<BatchInput, ConfigError> {
    let data_type = DataType::from_config_name(input.text("data_type"));
    let Some(data_type @ (DataType::Int32 | DataType::Fp32)) = data_type else {
        let position = if input.get("data_type").is_some() { input.position_of("data_type") } else { position };
        return Err(ConfigError::invalid(position, "batch_input: data_type must be TYPE_INT32 or TYPE_FP32"));
    };
    let (targets, source) = names("batch_input", input, position)?;
    Ok(BatchInput { kind: kind(input.text("kind")), targets, data_type, source })
}

pub(super) fn read_batch_output(output: &Message, position: Position) -> Result<BatchOutput, ConfigError> {
    let (targets, source) = names("batch_output", output, position)?;
    Ok(BatchOutput { targets, source })
}

/// The target names, at least one, and the one source.
fn names(role: &str, message: &Message, position: Position) -> Result<(Vec<String>, String), ConfigError> {
    let texts = |field: &'static str| {
        let text = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            _ => None,
        };
        message.items(field).filter_map(|item| text(&item.value)).collect::<Vec<_>>()
    };
    let targets = texts("target_name");
    if targets.is_empty() {
        return Err(ConfigError::invalid(position, format!("{role}: target_name is missing")));
    }
    match <[String; 1]>::try_from(texts("source_input")) {
        Ok([source]) => Ok((targets, source)),
        Err(other) => {
            let text = format!("{role}: source_input must name one input, got {}", other.len());
            Err(ConfigError::invalid(position, text))
        }
    }
}

/// Checks that sources are inputs, that targets are not made twice, and that there is a batch at all.
pub(super) fn validate(config: &ModelConfig) -> Result<(), ConfigError> {
    let message = config.message();
    let is_input = |name: &str| config.inputs.iter().any(|input| input.name == name);
    let written = message.messages("batch_input").map(|(_, at)| at);
    for (at, input) in written.zip(&config.batch_inputs) {
        check_source("batch_input", at, &input.source, is_input(&input.source), config.max_batch_size)?;
        if let Some(target) = input.targets.iter().find(|target| is_input(target)) {
            let text = format!("batch_input: target_name {} is an input of callers already", quoted(target));
            return Err(ConfigError::invalid(at, text));
        }
    }
    let written = message.messages("batch_output").map(|(_, at)| at);
    for (at, output) in written.zip(&config.batch_outputs) {
        check_source("batch_output", at, &output.source, is_input(&output.source), config.max_batch_size)?;
        let is_output = |name: &&String| config.outputs.iter().any(|output| output.name == **name);
        if let Some(target) = output.targets.iter().find(|target| !is_output(target)) {
            let text = format!("batch_output: target_name {} is no output of the configuration", quoted(target));
            return Err(ConfigError::invalid(at, text));
        }
    }
    let ragged = message.messages("input").zip(&config.inputs).find(|(_, input)| input.allow_ragged_batch);
    match ragged {
        Some(((written, _), input)) if config.max_batch_size == 0 => {
            let text = format!("input {}: allow_ragged_batch needs a max_batch_size above 0", quoted(&input.name));
            Err(ConfigError::invalid(written.position_of("allow_ragged_batch"), text))
        }
        Some(((written, _), input)) if input.data_type == DataType::Bytes => {
            let text = format!("input {}: allow_ragged_batch is for numbers, not for TYPE_STRING", quoted(&input.name));
            Err(ConfigError::invalid(written.position_of("allow_ragged_batch"), text))
        }
        _ => Ok(()),
    }
}

fn check_source(role: &str, at: Position, source: &str, known: bool, max_batch_size: u32) -> Result<(), ConfigError> {
    if !known {
        let text = format!("{role}: source_input {} is no input of the configuration", quoted(source));
        return Err(ConfigError::invalid(at, text));
    }
    if max_batch_size == 0 {
        return Err(ConfigError::invalid(at, format!("{role} needs a max_batch_size above 0")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_config::{UnknownFields, parse};

    const X: &str = "max_batch_size: 4 input { name: 'x' data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true } \
                     output { name: 'y' data_type: TYPE_FP32 dims: -1 }";

    #[test]
    fn batch_inputs_and_outputs_are_read() {
        let text = format!(
            "{X} batch_input {{ kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: 'n' data_type: TYPE_FP32 \
             source_input: 'x' }} batch_output {{ target_name: 'y' source_input: 'x' }}"
        );
        let config = parse(&text, UnknownFields::Deny).unwrap().config;
        let input = &config.batch_inputs[0];
        assert_eq!(input.kind, BatchInputKind::AccumulatedElementCount);
        assert_eq!((input.targets.as_slice(), input.source.as_str()), (&["n".to_owned()][..], "x"));
        assert_eq!(input.data_type, DataType::Fp32);
        assert_eq!(config.batch_outputs, [BatchOutput { targets: vec!["y".to_owned()], source: "x".to_owned() }]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let cases = [
            (
                "batch_input { target_name: 'n' source_input: 'x' }",
                "batch_input: data_type must be TYPE_INT32 or TYPE_FP32",
            ),
            ("batch_input { data_type: TYPE_INT32 source_input: 'x' }", "batch_input: target_name is missing"),
            (
                "batch_input { data_type: TYPE_INT32 target_name: 'n' }",
                "batch_input: source_input must name one input, got 0",
            ),
            (
                "batch_input { data_type: TYPE_INT32 target_name: 'n' source_input: 'z' }",
                "batch_input: source_input 'z' is no input of the configuration",
            ),
            (
                "batch_input { data_type: TYPE_INT32 target_name: 'x' source_input: 'x' }",
                "batch_input: target_name 'x' is an input of callers already",
            ),
            (
                "batch_output { target_name: 'z' source_input: 'x' }",
                "batch_output: target_name 'z' is no output of the configuration",
            ),
        ];
        for (fields, expected) in cases {
            let found = parse(&format!("{X} {fields}"), UnknownFields::Deny).unwrap_err().to_string();
            assert!(found.ends_with(expected), "{found}");
        }
        let alone = "input { name: 'x' data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true }";
        let found = parse(alone, UnknownFields::Deny).unwrap_err().to_string();
        assert!(found.ends_with("input 'x': allow_ragged_batch needs a max_batch_size above 0"), "{found}");
    }
}

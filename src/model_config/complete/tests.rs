//! Completing a configuration by what the runtime says, against it, and with defaults.

use super::*;
use crate::error::ErrorKind;
use crate::model_config::{UnknownFields, parse};

fn tensor(name: &str, data_type: DataType, dims: &[i64]) -> TensorSignature {
    TensorSignature { name: name.to_owned(), data_type, dims: dims.to_vec() }
}

fn signature() -> RuntimeSignature {
    RuntimeSignature {
        inputs: vec![tensor("x", DataType::Fp32, &[-1, 3, -1]), tensor("mask", DataType::Bool, &[-1])],
        outputs: vec![tensor("y", DataType::Fp32, &[-1, 10]), tensor("z", DataType::Int64, &[-1])],
        optional_inputs: vec!["mask".to_owned()],
    }
}

fn complete(text: &str) -> Result<ModelConfig> {
    let mut config = parse(text, UnknownFields::Deny)?.config;
    config.complete(&signature())?;
    Ok(config)
}

fn error(text: &str) -> String {
    let error = complete(text).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    error.to_string()
}

#[test]
fn a_bare_model_has_the_dims_the_runtime_reports() {
    let mut config = ModelConfig::minimal("m", "onnxruntime");
    config.complete(&signature()).unwrap();
    assert_eq!(config.max_batch_size, 0);
    assert_eq!(config.inputs[0].dims, [-1, 3, -1]);
    assert!(!config.inputs[0].optional && config.inputs[1].optional);
    assert_eq!(config.metadata_dims(&config.outputs[0].dims), [-1, 10]);
}

#[test]
fn a_scalar_and_a_tensor_that_is_all_batch_have_dims_of_their_own() {
    let mut config = ModelConfig::default();
    let outputs = vec![tensor("s", DataType::Fp32, &[])];
    config.complete(&RuntimeSignature { outputs, ..RuntimeSignature::default() }).unwrap();
    assert_eq!((config.outputs[0].dims.as_slice(), &config.outputs[0].reshape), (&[][..], &None));

    let config = complete("max_batch_size: 8").unwrap();
    assert_eq!((config.outputs[1].dims.as_slice(), config.outputs[1].runtime_dims()), (&[1][..], &[][..]));
}

#[test]
fn under_a_batch_size_the_batch_dimension_is_left_out() {
    let config = complete("max_batch_size: 8 output { name: 'y' data_type: TYPE_FP32 dims: 10 }").unwrap();
    assert_eq!(config.inputs[0].dims, [3, -1]);
    assert_eq!(config.metadata_dims(&config.inputs[0].dims), [-1, 3, -1]);
    assert_eq!(config.outputs.len(), 1);
}

#[test]
fn a_configuration_may_fix_and_reshape_what_the_model_leaves_open() {
    complete("input { name: 'x' data_type: TYPE_FP32 dims: [2, 3, 224] }").unwrap();
    complete("max_batch_size: 2 input { name: 'x' data_type: TYPE_FP32 dims: [6] reshape { shape: [3, 2] } }").unwrap();
}

#[test]
fn a_contradiction_names_both_sides() {
    let cases = [
        (
            "input { name: 'w' data_type: TYPE_FP32 dims: 1 }",
            "the configuration has input 'w', which the model does not have; its inputs are 'x', 'mask'",
        ),
        (
            "input { name: 'x' data_type: TYPE_FP16 dims: [-1, 3, -1] }",
            "input 'x': the configuration says TYPE_FP16, the model has TYPE_FP32",
        ),
        (
            "input { name: 'x' data_type: TYPE_FP32 dims: [-1, -1, -1] }",
            "input 'x': the configuration says shape [-1,-1,-1], the model has [-1,3,-1]",
        ),
        (
            "max_batch_size: 4 input { name: 'x' data_type: TYPE_FP32 dims: [3] }",
            "input 'x': the configuration says shape [-1,3], the batch dimension included, the model has [-1,3,-1]",
        ),
        (
            "output { name: 'y' data_type: TYPE_FP32 dims: [-1, 11] }",
            "output 'y': the configuration says shape [-1,11], the model has [-1,10]",
        ),
        (
            "input { name: 'mask' data_type: TYPE_BOOL dims: -1 }",
            "the model needs input 'x', which the configuration does not have; it has 'mask'",
        ),
        (
            "input { name: 'x' data_type: TYPE_FP32 dims: [-1, 3, -1] optional: true }",
            "the configuration says that input 'x' is optional, but the model cannot do without it",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(error(text), expected);
    }
}

#[test]
fn a_model_of_fixed_batch_takes_no_batch_size() {
    let fixed = RuntimeSignature { inputs: vec![tensor("x", DataType::Fp32, &[1, 4])], ..RuntimeSignature::default() };
    for text in ["max_batch_size: 4", "max_batch_size: 4 input { name: 'x' data_type: TYPE_FP32 dims: 4 }"] {
        let mut config = parse(text, UnknownFields::Deny).unwrap().config;
        let expected = "max_batch_size is 4, but the model's input 'x' has shape [1,4], whose first dimension is \
                        not of any size; set max_batch_size to 0";
        assert_eq!(config.complete(&fixed).unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_model_that_cannot_be_described_is_the_models_fault() {
    let odd = RuntimeSignature { inputs: vec![tensor("", DataType::Fp32, &[1])], ..RuntimeSignature::default() };
    let error = ModelConfig::default().complete(&odd).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn defaults_are_written_out_and_what_was_written_stays() {
    let text = "name: 'm' max_batch_size: 4 dynamic_batching { }
        instance_group [ { gpus: [0] }, { name: 'g' kind: KIND_GPU count: 2 } ]";
    let mut config = parse(text, UnknownFields::Deny).unwrap().config;
    config.normalize("model.onnx", InstanceKind::Cpu, 1).unwrap();
    let groups: Vec<_> =
        config.instance_groups.iter().map(|group| (group.name.as_str(), group.kind, group.count)).collect();
    assert_eq!(groups, [("m_0", InstanceKind::Cpu, 1), ("g", InstanceKind::Gpu, 2)]);
    assert!(config.instance_groups[0].gpus.is_empty());
    assert_eq!(config.dynamic_batching.as_ref().unwrap().preferred_batch_sizes, [4]);
    assert_eq!(config.default_model_filename, "model.onnx");
    let once = config.clone();
    config.normalize("other.onnx", InstanceKind::Gpu, 1).unwrap();
    assert_eq!(config, once);
}

#[test]
fn sequences_of_the_oldest_strategy_prefer_the_largest_batch() {
    for (written, preferred) in [("", 4), ("preferred_batch_size: [ 2 ]", 2)] {
        let text = format!(
            "name: 'm' max_batch_size: 4 sequence_batching {{ oldest {{ max_candidate_sequences: 4 {written} }} }}"
        );
        let mut config = parse(&text, UnknownFields::Deny).unwrap().config;
        config.normalize("", InstanceKind::Cpu, 1).unwrap();
        let sequences = config.message.message("sequence_batching").unwrap();
        let oldest = sequences.message("oldest").unwrap();
        assert_eq!(oldest.ints("preferred_batch_size").collect::<Vec<_>>(), [preferred]);
    }
}

#[test]
fn a_minimal_configuration_reads_as_if_it_were_written() {
    let written = parse("name: 'm' backend: 'b'", UnknownFields::Deny).unwrap().config;
    assert_eq!(ModelConfig::minimal("m", "b"), written);
}

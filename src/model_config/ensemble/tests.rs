//! What is wrong with an ensemble, each with its place; and what fits together.

use super::types;
use crate::error::ErrorKind;
use crate::model_config::{ModelConfig, UnknownFields, parse};

fn tensor(role: &str, name: &str, data_type: &str, dims: &str) -> String {
    format!("{role} {{ name: '{name}' data_type: TYPE_{data_type} dims: [{dims}] }}\n")
}

fn step(model: &str, inputs: &[(&str, &str)], outputs: &[(&str, &str)]) -> String {
    let map = |field: &str, pairs: &[(&str, &str)]| -> String {
        pairs.iter().map(|(key, value)| format!("  {field} {{ key: '{key}' value: '{value}' }}\n")).collect()
    };
    format!(
        " step {{ model_name: '{model}' model_version: -1\n{}{} }}\n",
        map("input_map", inputs),
        map("output_map", outputs)
    )
}

/// An ensemble from `x` to `y`, INT32 of any length.
fn ensemble(more: &str, steps: &[String]) -> String {
    let (x, y) = (tensor("input", "x", "INT32", "-1"), tensor("output", "y", "INT32", "-1"));
    format!("platform: 'ensemble'\n{x}{y}{more}\nensemble_scheduling {{\n{} }}\n", steps.concat())
}

fn two() -> [String; 2] {
    [step("a", &[("x", "x")], &[("y", "between")]), step("b", &[("x", "between")], &[("y", "y")])]
}

fn parsed(text: &str) -> ModelConfig {
    parse(text, UnknownFields::Deny).unwrap().config
}

fn error(text: &str) -> String {
    parse(text, UnknownFields::Deny).unwrap_err().to_string()
}

#[test]
fn an_ensemble_is_read_with_its_steps() {
    let text = ensemble("", &two()).replace(
        "step { model_name: 'b' model_version: -1",
        "max_inflight_requests: 7 step { model_name: 'b' model_version: 3",
    );
    let config = parsed(&text);
    let ensemble = config.ensemble.as_ref().unwrap();
    assert_eq!((config.platform.as_str(), config.backend.as_str()), ("ensemble", ""));
    assert_eq!((ensemble.steps.len(), ensemble.max_inflight_requests), (2, 7));
    assert_eq!((ensemble.steps[0].version, ensemble.steps[1].version), (None, Some(3)));
    assert_eq!(ensemble.steps[0].inputs["x"], "x");
    assert_eq!(ensemble.steps[1].outputs["y"], "y");
}

#[test]
fn a_platform_that_is_left_out_follows_from_the_steps() {
    assert_eq!(parsed(&ensemble("", &two()).replace("platform: 'ensemble'", "")).platform, "ensemble");
}

#[test]
fn every_fault_has_its_place_and_names_step_and_tensor() {
    let [a, b] = two();
    let cases = [
        ("platform: 'ensemble'".to_owned(), "1:1: platform 'ensemble' needs ensemble_scheduling with the steps"),
        (ensemble("backend: 'identity'", &two()), "4:1: an ensemble has no backend"),
        (
            ensemble("", &two()).replace("'ensemble'", "'onnxruntime_onnx'"),
            "1:1: an ensemble has platform 'ensemble', got",
        ),
        (ensemble("instance_group { count: 1 }", &two()), "4:1: instance_group must not be given for an ensemble"),
        (ensemble("", &[]), "5:1: ensemble_scheduling: an ensemble needs at least one step"),
        (ensemble("", &[step("", &[("x", "x")], &[("y", "y")])]), "6:2: ensemble_scheduling: step 1 has no model_name"),
        (ensemble("", &[step("a", &[], &[("y", "y")])]), "6:2: ensemble_scheduling: step 'a' has no input_map"),
        (ensemble("", &[step("a", &[("x", "x")], &[])]), "6:2: ensemble_scheduling: step 'a' has no output_map"),
        (
            ensemble("", &[a.replace("-1", "-2")]),
            "6:25: ensemble_scheduling: step 'a': model_version must be -1 for the latest or a version, got -2",
        ),
        (
            ensemble("", &[a.clone(), step("b", &[("x", "betwen")], &[("y", "y")])]),
            "11:3: ensemble_scheduling: step 'b': tensor 'betwen' is neither an input of the ensemble nor an output of a \
             step; did you mean 'between'?",
        ),
        (
            ensemble("", &[a.clone(), b.clone(), step("c", &[("x", "x")], &[("y", "y")])]),
            "16:3: ensemble_scheduling: step 'c': tensor 'y' is written twice, also by step 'b'",
        ),
        (
            ensemble("", &[step("a", &[("x", "x")], &[("y", "x")])]),
            "8:3: ensemble_scheduling: step 'a': output 'y' is written to tensor 'x', which is an input of the ensemble",
        ),
        (
            ensemble("", std::slice::from_ref(&a)),
            "3:10: ensemble_scheduling: output 'y' is written by no step: name it in an output_map",
        ),
        (
            ensemble(&tensor("output", "x", "INT32", "-1"), &two()),
            "4:10: ensemble_scheduling: output 'x' is an input of the ensemble too: a step must write it",
        ),
        (
            ensemble(
                "",
                &[
                    step("a", &[("x", "c")], &[("y", "a")]),
                    step("b", &[("x", "a")], &[("y", "y")]),
                    step("c", &[("x", "y")], &[("y", "c")]),
                ],
            ),
            "6:2: ensemble_scheduling: the steps wait for each other in a circle: 'b' -> 'c' -> 'a' -> 'b'",
        ),
        (
            ensemble("", &[step("a", &[("x", "y")], &[("y", "y")])]),
            "6:2: ensemble_scheduling: the steps wait for each other in a \
             circle: 'a' -> 'a'",
        ),
        (
            "platform: 'ensemble' output { name: 'y' data_type: TYPE_INT32 dims: 1 } ensemble_scheduling { }"
                .to_owned(),
            "1:73: an ensemble must list its inputs",
        ),
    ];
    for (text, expected) in cases {
        let found = error(&text);
        let at = found.strip_prefix("config.pbtxt:").unwrap();
        // The place of a circle is that of whichever step is named first.
        let at = if at.contains("circle") { at.split_once(": ").unwrap().1 } else { at };
        let expected = if expected.contains("circle") { expected.split_once(": ").unwrap().1 } else { expected };
        assert!(at.starts_with(expected), "{text}\n found {at}\n  want {expected}");
    }
}

#[test]
fn contradictions_are_refused() {
    for more in ["dynamic_batching { }", "sequence_batching { }"] {
        assert_eq!(parse(&ensemble(more, &two()), UnknownFields::Deny).unwrap_err().kind, ErrorKind::InvalidArgument);
    }
    let reshaped = ensemble("", &two()).replacen("dims: [-1]", "dims: [-1] reshape { shape: [-1] }", 1);
    assert!(error(&reshaped).contains("input 'x': reshape means nothing to an ensemble"), "{}", error(&reshaped));
    let namespaced = ensemble("", &two()).replacen("model_name: 'a'", "model_name: 'a' model_namespace: 'n'", 1);
    assert_eq!(parse(&namespaced, UnknownFields::Deny).unwrap_err().kind, ErrorKind::Unsupported);
}

#[test]
fn what_belongs_to_the_steps_is_warned_about() {
    let more = "model_warmup { name: 'w' inputs { key: 'x' value { data_type: TYPE_INT32 dims: 1 zero_data: true } } } \
                response_cache { enable: true }";
    let warnings = parse(&ensemble(more, &two()), UnknownFields::Deny).unwrap().warnings;
    let texts: Vec<_> = warnings.iter().map(|warning| warning.message.as_str()).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts.iter().all(|text| text.contains("no effect on an ensemble")), "{texts:?}");
}

/// A model from `x` to `y`.
fn model(batch: u32, input: (&str, &str), output: (&str, &str)) -> ModelConfig {
    let (x, y) = (tensor("input", "x", input.0, input.1), tensor("output", "y", output.0, output.1));
    parsed(&format!("backend: 'identity' max_batch_size: {batch} {x}{y}"))
}

#[test]
fn types_and_shapes_must_agree_and_any_size_agrees_with_each() {
    let plain = || model(0, ("INT32", "-1"), ("INT32", "-1"));
    let check = |more: &str, a: ModelConfig, b: ModelConfig| {
        let config = parsed(&ensemble(more, &two()));
        types::check(&config, config.ensemble.as_ref().unwrap(), &[Some(&a), Some(&b)])
    };
    assert_eq!(check("", plain(), plain()), Ok(()));
    // A fixed dimension between two of any size; and a batch of one model for a dimension of another.
    assert_eq!(check("", model(0, ("INT32", "-1"), ("INT32", "4")), model(0, ("INT32", "-1"), ("INT32", "7"))), Ok(()));
    assert_eq!(
        check("", model(0, ("INT32", "-1"), ("INT32", "-1, 4")), model(8, ("INT32", "4"), ("INT32", ""))),
        Ok(())
    );
    let batched = || model(4, ("INT32", "-1"), ("INT32", "-1"));
    assert_eq!(check("max_batch_size: 4", batched(), batched()), Ok(()));
    let cases = [
        (check("max_batch_size: 8", batched(), batched()), "the ensemble allows batches of 8, but step 'a' only of 4"),
        (
            check("", plain(), model(0, ("FP32", "-1"), ("INT32", "-1"))),
            "tensor 'between' is TYPE_FP32 for input 'x' of step 'b', but TYPE_INT32 for output 'y' of step 'a'",
        ),
        (
            check("", model(0, ("INT32", "-1"), ("INT32", "3")), model(0, ("INT32", "4"), ("INT32", "-1"))),
            "tensor 'between' has shape [4] for input 'x' of step 'b', but [3] for output 'y' of step 'a'",
        ),
        (
            check("", plain(), batched()),
            "tensor 'between' has shape [-1,-1] for input 'x' of step 'b', but [-1] for output 'y' of step 'a'",
        ),
        (
            check("", model(0, ("UINT8", "-1"), ("INT32", "-1")), plain()),
            "tensor 'x' is TYPE_UINT8 for input 'x' of step 'a', but TYPE_INT32 for the ensemble's input 'x'",
        ),
    ];
    for (found, expected) in cases {
        let found = found.unwrap_err();
        assert!(found.starts_with(expected), "{found}\n want {expected}");
    }
}

#[test]
fn the_maps_must_know_the_models_tensors_and_feed_all_that_cannot_be_left_out() {
    let plain = model(0, ("INT32", "-1"), ("INT32", "-1"));
    let check = |input: &str, output: &str, model: &ModelConfig| {
        let config = parsed(&ensemble("", &[step("a", &[(input, "x")], &[(output, "y")])]));
        types::check(&config, config.ensemble.as_ref().unwrap(), &[Some(model)])
    };
    assert_eq!(check("x", "y", &plain), Ok(()));
    assert_eq!(check("z", "y", &plain).unwrap_err(), "step 'a': input_map has 'z', but the model's inputs are 'x'");
    assert_eq!(check("x", "z", &plain).unwrap_err(), "step 'a': output_map has 'z', but the model's outputs are 'y'");
    let second = |optional: &str| {
        let more = tensor("input", "z", "INT32", "-1").replace("dims", &format!("{optional} dims"));
        parsed(&format!(
            "backend: 'identity' {}{more}{}",
            tensor("input", "x", "INT32", "-1"),
            tensor("output", "y", "INT32", "-1")
        ))
    };
    assert_eq!(check("x", "y", &second("")).unwrap_err(), "step 'a': input_map lacks input 'z' of the model");
    assert_eq!(check("x", "y", &second("optional: true")), Ok(()));
}

#[test]
fn an_input_that_may_be_left_out_feeds_only_inputs_that_may() {
    let text = ensemble("", &[step("a", &[("x", "x")], &[("y", "y")])]).replacen("dims", "optional: true dims", 1);
    let config = parsed(&text);
    let required = model(0, ("INT32", "-1"), ("INT32", "-1"));
    let found = types::check(&config, config.ensemble.as_ref().unwrap(), &[Some(&required)]).unwrap_err();
    assert!(
        found.starts_with("step 'a': input 'x' cannot be left out, but input 'x' of the ensemble may be"),
        "{found}"
    );
}

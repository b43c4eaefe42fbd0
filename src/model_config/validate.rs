//! How the values of a configuration fit together.

use std::collections::HashSet;

use super::diagnostic::{ConfigError, Position, quoted};
use super::ensemble;
use super::message::{MapKey, Message};
use super::read::{PLATFORMS, backend_of_platform};
use super::{DynamicBatching, ModelConfig, QueuePolicy, TimeoutAction};

/// Checks a configuration as it was written; what only the model itself can tell is `complete`'s.
pub(super) fn validate(config: &ModelConfig) -> Result<(), ConfigError> {
    let message = config.message();
    ensemble::validate(config)?;
    validate_backend(config)?;
    let inputs = config.inputs.iter().map(|input| (&input.name, &input.dims, &input.reshape));
    validate_tensors("input", message, inputs)?;
    let outputs = config.outputs.iter().map(|output| (&output.name, &output.dims, &output.reshape));
    validate_tensors("output", message, outputs)?;
    for ((output, _), typed) in message.messages("output").zip(&config.outputs) {
        if !stays_inside(&typed.label_filename) {
            let text = format!(
                "output {}: label_filename {} must name a file in the model's folder",
                quoted(&typed.name),
                quoted(&typed.label_filename)
            );
            return Err(ConfigError::invalid(output.position_of("label_filename"), text));
        }
    }
    let filename = &config.default_model_filename;
    if filename.contains(['/', '\\']) || !stays_inside(filename) {
        let text = format!("default_model_filename {} must be a name without folders", quoted(filename));
        return Err(ConfigError::invalid(message.position_of("default_model_filename"), text));
    }
    super::ragged::validate(config)?;
    super::sequence::validate(config)?;
    match (&config.dynamic_batching, message.message("dynamic_batching")) {
        (Some(batching), Some(written)) => validate_batching(batching, written, config.max_batch_size),
        _ => Ok(()),
    }
}

fn validate_backend(config: &ModelConfig) -> Result<(), ConfigError> {
    let (platform, backend) = (config.platform.as_str(), config.backend.as_str());
    let position = config.message().position_of("platform");
    match backend_of_platform(platform) {
        Some(expected) if expected != backend => {
            let text = format!(
                "platform {} belongs to backend '{expected}', but backend is {}; leave the platform out",
                quoted(platform),
                quoted(backend)
            );
            Err(ConfigError::invalid(position, text))
        }
        None if !platform.is_empty() && backend.is_empty() && platform != ensemble::PLATFORM => {
            let known: Vec<_> = PLATFORMS.iter().map(|(name, _)| *name).collect();
            let text = format!(
                "unknown platform {}, expected one of {}; or name the backend instead",
                quoted(platform),
                known.join(", ")
            );
            Err(ConfigError::invalid(position, text))
        }
        _ if backend.contains(['/', '\\', '\0']) || backend == ".." => {
            let text = format!("backend {} must be a name without folders", quoted(backend));
            Err(ConfigError::invalid(config.message().position_of("backend"), text))
        }
        _ => Ok(()),
    }
}

fn validate_tensors<'a>(
    role: &str,
    config: &Message,
    tensors: impl Iterator<Item = (&'a String, &'a Vec<i64>, &'a Option<Vec<i64>>)>,
) -> Result<(), ConfigError> {
    let mut names = HashSet::new();
    for ((written, position), (name, dims, reshape)) in config.messages(role).zip(tensors) {
        if !names.insert(name) {
            return Err(ConfigError::invalid(position, format!("{role} {} is given twice", quoted(name))));
        }
        if let Some(reshape) = reshape
            && !has_same_elements(dims, reshape)
        {
            let text = format!(
                "{role} {}: reshape {reshape:?} must have as many elements, and as many dimensions of any size, as \
                 dims {dims:?}",
                quoted(name)
            );
            return Err(ConfigError::invalid(written.position_of("reshape"), text));
        }
    }
    Ok(())
}

/// Whether two shapes have as many elements, whatever their dimensions of -1 turn out to be, these taken in order.
fn has_same_elements(left: &[i64], right: &[i64]) -> bool {
    let variable = |dims: &[i64]| dims.iter().filter(|dim| **dim == -1).count();
    let fixed =
        |dims: &[i64]| dims.iter().filter(|dim| **dim != -1).try_fold(1_i64, |product, dim| product.checked_mul(*dim));
    variable(left) == variable(right) && fixed(left).is_some() && fixed(left) == fixed(right)
}

/// Whether a relative path, taken from a folder, stays in it. An empty one does.
pub(super) fn stays_inside(path: &str) -> bool {
    !path.starts_with('/') && !path.contains(['\\', '\0']) && path.split('/').all(|part| part != "..")
}

fn validate_batching(batching: &DynamicBatching, written: &Message, max_batch_size: u32) -> Result<(), ConfigError> {
    let wrong =
        |position: Position, text: String| Err(ConfigError::invalid(position, format!("dynamic_batching: {text}")));
    for (size, item) in batching.preferred_batch_sizes.iter().zip(written.items("preferred_batch_size")) {
        if *size > max_batch_size {
            let text = format!("preferred_batch_size {size} is above max_batch_size {max_batch_size}");
            return wrong(item.position, text);
        }
    }
    let levels = batching.priority_levels;
    let default = batching.default_priority_level;
    if levels == 0 && default != 0 {
        let position = written.position_of("default_priority_level");
        return wrong(position, "default_priority_level needs priority_levels".to_owned());
    }
    if levels > 0 && !(1..=levels).contains(&default) {
        let field =
            if written.get("default_priority_level").is_some() { "default_priority_level" } else { "priority_levels" };
        let text = format!("default_priority_level must be from 1 to {levels} (priority_levels), got {default}");
        return wrong(written.position_of(field), text);
    }
    for (level, policy) in written.entries("priority_queue_policy") {
        let MapKey::Uint(level) = level else { continue };
        if !(1..=levels).contains(level) {
            let text = format!("priority_queue_policy is for levels 1 to {levels} (priority_levels), got {level}");
            return wrong(policy.position, text);
        }
    }
    if !batching.preserve_ordering {
        return Ok(());
    }
    let ordering = written.position_of("preserve_ordering");
    if levels > 1 {
        return wrong(ordering, "preserve_ordering and more than one of priority_levels exclude each other".to_owned());
    }
    // Without a time that can be over, the action is never taken.
    let delays = |policy: &QueuePolicy| {
        policy.timeout_action == TimeoutAction::Delay
            && (!policy.default_timeout.is_zero() || policy.allow_timeout_override)
    };
    if delays(&batching.default_queue_policy) || batching.priority_queue_policies.values().any(delays) {
        return wrong(ordering, "preserve_ordering and timeout_action DELAY exclude each other".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::model_config::{UnknownFields, parse};

    fn error(text: &str) -> String {
        parse(text, UnknownFields::Deny).unwrap_err().to_string()
    }

    fn tensor(rest: &str) -> String {
        format!("input {{ name: 'x' data_type: TYPE_FP32 {rest} }}")
    }

    #[test]
    fn every_fault_has_its_place_and_its_text() {
        let cases = [
            ("max_batch_size: -1".to_owned(), "1:1: max_batch_size must not be negative, got -1"),
            ("input { }".to_owned(), "1:1: an input has no name"),
            ("input { name: 'x' }".to_owned(), "1:1: input 'x' must have a data_type such as TYPE_FP32"),
            (
                "input { name: 'x' data_type: TYPE_INVALID }".to_owned(),
                "1:19: input 'x' must have a data_type such as TYPE_FP32",
            ),
            (tensor(""), "1:1: input 'x' must have dims"),
            (tensor("dims: [1, 0]"), "1:50: input 'x': dimension 0 must be at least 1, or -1 for any size"),
            (tensor("dims: -2"), "1:40: input 'x': dimension -2 must be at least 1, or -1 for any size"),
            (tensor("dims: 4 reshape { shape: [2, 3] }"), "1:48: input 'x': reshape [2, 3] must have as many elements"),
            (tensor("dims: [-1, 4] reshape { shape: [4] }"), "1:54: input 'x': reshape [4] must have as many elements"),
            (tensor("dims: 1") + &tensor("dims: 1"), "1:49: input 'x' is given twice"),
            (
                "output { name: 'x' data_type: TYPE_BOOL dims: 1 label_filename: '../l' }".to_owned(),
                "1:49: output 'x': label_filename '../l' must name a file in the model's folder",
            ),
            (
                "default_model_filename: 'a/b'".to_owned(),
                "1:1: default_model_filename 'a/b' must be a name without folders",
            ),
            (
                "default_model_filename: '..'".to_owned(),
                "1:1: default_model_filename '..' must be a name without folders",
            ),
            ("version_policy { }".to_owned(), "1:1: version_policy must have one of latest, all and specific"),
            (
                "version_policy { latest { num_versions: 0 } }".to_owned(),
                "1:27: version_policy: num_versions must be at least 1",
            ),
            (
                "version_policy { specific { } }".to_owned(),
                "1:18: version_policy: specific must list at least one version",
            ),
            (
                "version_policy { specific { versions: [1, 0] } }".to_owned(),
                "1:43: version_policy: a version is a number from 1",
            ),
            ("instance_group { count: 0 }".to_owned(), "1:18: instance_group: count must be at least 1"),
            ("instance_group { count: -1 }".to_owned(), "1:18: instance_group: count must not be negative, got -1"),
            ("instance_group { gpus: -1 }".to_owned(), "1:18: instance_group: a GPU is a number from 0"),
            ("instance_group { gpus: [1, 1] }".to_owned(), "1:1: instance_group: a GPU is listed twice"),
            (
                "instance_group { kind: KIND_CPU gpus: 0 }".to_owned(),
                "1:33: instance_group: gpus must not be given with KIND_CPU",
            ),
            (
                "platform: 'onnxruntime_onnx' backend: 'pytorch'".to_owned(),
                "1:1: platform 'onnxruntime_onnx' belongs to backend 'onnxruntime', but backend is 'pytorch'; \
                 leave the platform out",
            ),
            ("platform: 'caffe'".to_owned(), "1:1: unknown platform 'caffe', expected one of onnxruntime_onnx, "),
            ("backend: '../b'".to_owned(), "1:1: backend '../b' must be a name without folders"),
        ];
        for (text, expected) in cases {
            let found = error(&text);
            assert!(
                found.starts_with(&format!("config.pbtxt:{expected}")),
                "{text}\n found {found}\n  want {expected}"
            );
        }
    }

    #[test]
    fn batching_must_make_sense() {
        let cases = [
            ("preferred_batch_size: [4, 16]", "preferred_batch_size 16 is above max_batch_size 8"),
            ("preferred_batch_size: 0", "a preferred_batch_size must be at least 1"),
            ("default_priority_level: 1", "default_priority_level needs priority_levels"),
            ("priority_levels: 2", "default_priority_level must be from 1 to 2 (priority_levels), got 0"),
            (
                "priority_levels: 2 default_priority_level: 3",
                "default_priority_level must be from 1 to 2 (priority_levels), got 3",
            ),
            (
                "priority_queue_policy { key: 1 value { } }",
                "priority_queue_policy is for levels 1 to 0 (priority_levels), got 1",
            ),
            (
                "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
                "preserve_ordering and more than one of priority_levels exclude each other",
            ),
            (
                "preserve_ordering: true default_queue_policy { timeout_action: DELAY allow_timeout_override: true }",
                "preserve_ordering and timeout_action DELAY exclude each other",
            ),
            (
                "preserve_ordering: true priority_levels: 1 default_priority_level: 1 priority_queue_policy { key: 1
                 value { timeout_action: DELAY default_timeout_microseconds: 5 } }",
                "preserve_ordering and timeout_action DELAY exclude each other",
            ),
        ];
        for (fields, expected) in cases {
            let found = error(&format!("max_batch_size: 8 dynamic_batching {{ {fields} }}"));
            assert!(found.ends_with(&format!(": dynamic_batching: {expected}")), "{found}");
        }
    }

    #[test]
    fn a_contradiction_in_batching_has_the_place_of_its_field() {
        let policy = |key| format!("  priority_queue_policy {{ key: {key} value {{ max_queue_size: 1 }} }}\n");
        let levels = "dynamic_batching {\n priority_levels: 2\n";
        let cases = [
            ("dynamic_batching {\n preferred_batch_size: [4,\n  16] }".to_owned(), "3:3"),
            ("dynamic_batching {\n   default_priority_level: 1 }".to_owned(), "2:4"),
            (format!("{levels}  default_priority_level: 3 }}"), "3:3"),
            (format!("{levels}}}"), "2:2"),
            (format!("{levels} default_priority_level: 1\n{}{} }}", policy(1), policy(7)), "5:3"),
            (format!("{levels} default_priority_level: 1\n    preserve_ordering: true }}"), "4:5"),
        ];
        for (text, place) in cases {
            let found = error(&format!("max_batch_size: 8 {text}"));
            assert!(found.starts_with(&format!("config.pbtxt:{place}: dynamic_batching: ")), "{text}\n{found}");
        }
    }

    #[test]
    fn what_is_right_passes() {
        for text in [
            tensor("dims: []"),
            tensor("dims: 1 reshape { shape: [] }"),
            tensor("dims: [2, -1, 3] reshape { shape: [-1, 6] }"),
            "platform: 'anything' backend: 'mine'".to_owned(),
            "output { name: 'x' data_type: TYPE_BOOL dims: 1 label_filename: 'labels/a..b.txt' }".to_owned(),
            "version_policy { latest { } }".to_owned(),
        ] {
            parse(&text, UnknownFields::Deny).unwrap();
        }
    }
}

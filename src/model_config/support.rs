//! Fields of the schema that the server knows but does not offer: one table, so that none is silently ignored.
//!
//! A field that would change answers is refused; one whose absence costs at most speed or a label is warned about. A
//! test walks the schema: each field stands either here or in the list of those that work.

use super::diagnostic::{ConfigError, ConfigWarning, Position};
use super::message::{FieldValue, Item, Message, Value};

#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    /// The model is not loaded: without the field its answers would be other than meant.
    Refused,
    /// The model is loaded and the field has no effect.
    Ignored,
}

use Verdict::{Ignored, Refused};

/// Which values of a field are meant.
#[derive(Clone, Copy, PartialEq)]
enum When {
    /// Any but the default; for messages, lists and maps, any that is not empty.
    Set,
    /// The default, written out. For settings that are on in Triton unless switched off.
    Default,
}

struct Rule {
    path: &'static str,
    verdict: Verdict,
    when: When,
    why: &'static str,
}

const fn rule(path: &'static str, verdict: Verdict, why: &'static str) -> Rule {
    Rule { path, verdict, when: When::Set, why }
}

const RULES: &[Rule] = &[
    // Answers depend on these.
    rule("ensemble_scheduling.step.model_namespace", Refused, "a model is known by its name in the repository alone"),
    rule("sequence_batching.iterative_sequence", Refused, "a request is answered once and not scheduled again"),
    rule("model_operations", Refused, "libraries with custom operations are not loaded"),
    rule("model_repository_agents", Refused, "agents are not run, so what they verify or change would not be"),
    rule("input.is_shape_tensor", Refused, "shape tensors exist in TensorRT alone"),
    rule("output.is_shape_tensor", Refused, "shape tensors exist in TensorRT alone"),
    rule("input.is_non_linear_format_io", Refused, "tensors are passed in row-major order only"),
    rule("output.is_non_linear_format_io", Refused, "tensors are passed in row-major order only"),
    rule("instance_group.passive", Refused, "every instance takes requests"),
    rule("instance_group.secondary_devices", Refused, "instances run on the CPU or a GPU only"),
    // Answers are the same without these.
    rule(
        "sequence_batching.state.use_same_buffer_for_input_output",
        Ignored,
        "a state is kept as the output it came in, without a copy",
    ),
    rule("sequence_batching.state.use_growable_memory", Ignored, "a state is as large as the model makes it"),
    rule("runtime", Ignored, "the server chooses the runtime library itself"),
    rule("input.format", Ignored, "the dims alone describe the tensor"),
    rule("optimization.priority", Ignored, "the shares of a device are the rate_limiter's"),
    rule(
        "optimization.cuda.graphs",
        Ignored,
        "a recorded graph writes to memory that was given back since, and memory of models that sleep is somebody else's",
    ),
    rule("optimization.cuda.busy_wait_events", Ignored, "threads never spin while a GPU works"),
    rule("optimization.cuda.graph_spec", Ignored, "graphs are not recorded"),
    rule("optimization.cuda.output_copy_stream", Ignored, "copies always have streams of their own"),
    rule(
        "optimization.execution_accelerators.cpu_execution_accelerator",
        Ignored,
        "on the CPU ONNX Runtime's own provider computes",
    ),
    Rule {
        path: "optimization.input_pinned_memory.enable",
        verdict: Ignored,
        when: When::Default,
        why: "the server decides which memory is pinned",
    },
    Rule {
        path: "optimization.output_pinned_memory.enable",
        verdict: Ignored,
        when: When::Default,
        why: "the server decides which memory is pinned",
    },
    rule("optimization.gather_kernel_buffer_threshold", Ignored, "inputs are gathered as the server sees fit"),
    rule("optimization.eager_batching", Ignored, "a batch is gathered when an instance takes it"),
    rule("instance_group.profile", Ignored, "optimization profiles exist in TensorRT alone"),
    rule("instance_group.host_policy", Ignored, "threads are not bound to cores or memory nodes"),
    rule("cc_model_filenames", Ignored, "the default model file is used on every GPU"),
    rule("metric_tags", Ignored, "metrics carry the model's name and version only"),
    rule("model_metrics", Ignored, "histograms have the server's own buckets"),
];

/// Compares a configuration with the table.
///
/// # Errors
/// `Unsupported` for the first field, in the order of the table, that is refused.
pub(super) fn check(config: &Message) -> Result<Vec<ConfigWarning>, ConfigError> {
    let mut warnings = Vec::new();
    for rule in RULES {
        let Some(position) = find(config, rule.path, rule.when) else { continue };
        match rule.verdict {
            Refused => {
                let text = format!("'{}' is not supported yet: {}", rule.path, rule.why);
                return Err(ConfigError::unsupported(position, text));
            }
            Ignored => {
                let text = format!("'{}' has no effect yet: {}", rule.path, rule.why);
                warnings.push(ConfigWarning::new(position, text));
            }
        }
    }
    Ok(warnings)
}

/// Where the field at `path` is first given with a value that is meant.
fn find(message: &Message, path: &str, when: When) -> Option<Position> {
    match path.split_once('.') {
        Some((field, rest)) => {
            let mut items = message.get(field)?.items();
            items.find_map(|item| match &item.value {
                Value::Message(inner) => find(inner, rest, when),
                _ => None,
            })
        }
        None => {
            let value = message.get(path)?;
            let is_meant = |item: &&Item| match (when, value) {
                (When::Set, FieldValue::One(_)) => !item.value.is_default(),
                (When::Set, FieldValue::Many(_) | FieldValue::Map(_)) => true,
                (When::Default, _) => item.value.is_default(),
            };
            value.items().find(is_meant).map(|item| item.position)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::error::ErrorKind;
    use crate::model_config::schema::{FieldType, MODEL_CONFIG, MessageSchema};
    use crate::model_config::{UnknownFields, parse};

    /// Fields that do what they say.
    const WORKING: &[&str] = &[
        "name",
        "platform",
        "backend",
        "version_policy",
        "max_batch_size",
        "input.name",
        "input.data_type",
        "input.dims",
        "input.reshape",
        "input.optional",
        "input.allow_ragged_batch",
        "batch_input",
        "batch_output",
        "dynamic_batching",
        "ensemble_scheduling.step.model_name",
        "ensemble_scheduling.step.model_version",
        "ensemble_scheduling.step.input_map",
        "ensemble_scheduling.step.output_map",
        "ensemble_scheduling.max_inflight_requests",
        "sequence_batching.direct",
        "sequence_batching.oldest",
        "sequence_batching.max_sequence_idle_microseconds",
        "sequence_batching.control_input",
        "sequence_batching.state.input_name",
        "sequence_batching.state.output_name",
        "sequence_batching.state.data_type",
        "sequence_batching.state.dims",
        "sequence_batching.state.initial_state",
        "model_transaction_policy.decoupled",
        "output.name",
        "output.data_type",
        "output.dims",
        "output.reshape",
        "output.label_filename",
        "instance_group.name",
        "instance_group.kind",
        "instance_group.count",
        "instance_group.gpus",
        "instance_group.rate_limiter",
        "default_model_filename",
        "parameters",
        "model_warmup",
        "optimization.execution_accelerators.gpu_execution_accelerator",
        "optimization.graph",
        "response_cache.enable",
    ];

    fn leaves(schema: &'static MessageSchema, prefix: &str, stop: &HashSet<&str>, missing: &mut Vec<String>) {
        for field in schema.fields {
            let path = format!("{prefix}{}", field.name);
            match field.field_type {
                _ if stop.contains(path.as_str()) => {}
                FieldType::Message(inner) if !inner.fields.is_empty() => {
                    leaves(inner, &format!("{path}."), stop, missing);
                }
                _ => missing.push(path),
            }
        }
    }

    fn exists(path: &str) -> bool {
        let mut schema = &MODEL_CONFIG;
        path.split('.').all(|name| match schema.field(name) {
            Some(field) => {
                if let FieldType::Message(inner) = field.field_type {
                    schema = inner;
                }
                true
            }
            None => false,
        })
    }

    #[test]
    fn every_field_of_the_schema_works_or_stands_in_the_table() {
        let stop = RULES.iter().map(|rule| rule.path).chain(WORKING.iter().copied()).collect();
        let mut missing = Vec::new();
        leaves(&MODEL_CONFIG, "", &stop, &mut missing);
        assert_eq!(missing, Vec::<String>::new());
    }

    #[test]
    fn every_path_of_the_table_exists() {
        for path in RULES.iter().map(|rule| rule.path).chain(WORKING.iter().copied()) {
            assert!(exists(path), "{path}");
        }
    }

    #[test]
    fn what_would_change_answers_is_refused_by_name() {
        let tensor = "name: 'x' data_type: TYPE_FP32 dims: 1";
        let cases = [
            ("sequence_batching { iterative_sequence: true }".to_owned(), "sequence_batching.iterative_sequence"),
            ("model_operations { op_library_filename: 'a.so' }".to_owned(), "model_operations"),
            ("model_repository_agents { agents { name: 'checksum' } }".to_owned(), "model_repository_agents"),
            (
                format!(
                    "input {{ {tensor} }} input {{ name: 'y' data_type: TYPE_BOOL dims: 1 is_shape_tensor: true }}"
                ),
                "input.is_shape_tensor",
            ),
            ("instance_group { } instance_group { passive: true }".to_owned(), "instance_group.passive"),
        ];
        for (text, path) in cases {
            let error = parse(&text, UnknownFields::Deny).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported, "{text}");
            assert!(error.message.starts_with(&format!("'{path}' is not supported yet: ")), "{}", error.message);
            assert!(error.line == 1 && error.column > 0);
        }
    }

    #[test]
    fn what_costs_no_answer_is_warned_about_by_name() {
        let cases = [
            ("metric_tags { key: 'a' value: 'b' }", "metric_tags"),
            ("optimization { input_pinned_memory { enable: false } }", "optimization.input_pinned_memory.enable"),
            ("optimization { priority: PRIORITY_MAX }", "optimization.priority"),
            ("instance_group { host_policy: 'a' }", "instance_group.host_policy"),
            ("cc_model_filenames { key: '8.0' value: 'a' }", "cc_model_filenames"),
            ("runtime: 'x.so'", "runtime"),
        ];
        for (text, path) in cases {
            let warnings = parse(text, UnknownFields::Deny).unwrap().warnings;
            let texts: Vec<_> = warnings.iter().map(|warning| warning.message.as_str()).collect();
            assert_eq!(texts.len(), 1, "{text}: {texts:?}");
            assert!(texts[0].starts_with(&format!("'{path}' has no effect yet: ")), "{texts:?}");
        }
    }

    #[test]
    fn defaults_written_out_are_nothing_to_speak_of() {
        let text = "response_cache { enable: false } model_transaction_policy { decoupled: false } batch_input []
            optimization { priority: PRIORITY_DEFAULT input_pinned_memory { enable: true } } metric_tags []
            input { name: 'x' data_type: TYPE_FP32 dims: 1 allow_ragged_batch: false format: FORMAT_NONE }";
        assert_eq!(parse(text, UnknownFields::Deny).unwrap().warnings, []);
    }
}

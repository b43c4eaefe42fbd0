//! `optimization`: what a runtime is asked to do for speed.

use super::diagnostic::{ConfigError, quoted};
use super::message::{Message, Value};

/// The fields of `optimization` that have an effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Optimization {
    /// `execution_accelerators.gpu_execution_accelerator`, in order: what computes on GPUs.
    pub gpu_accelerators: Vec<Accelerator>,
    /// `graph.level`: how far the runtime rewrites a graph, in Triton's numbers for ONNX Runtime; 0 for as far as it can.
    pub graph_level: i64,
}

/// One accelerator, by the runtime's name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accelerator {
    /// Its name, such as `tensorrt`.
    pub name: String,
    /// What it is told, by name.
    pub parameters: Vec<(String, String)>,
}

/// Reads `optimization` out of a configuration.
pub(super) fn read(config: &Message) -> Result<Optimization, ConfigError> {
    let Some(optimization) = config.message("optimization") else { return Ok(Optimization::default()) };
    let graph_level = optimization.message("graph").map_or(0, |graph| graph.int("level"));
    let mut read = Optimization { graph_level, ..Optimization::default() };
    let Some(accelerators) = optimization.message("execution_accelerators") else { return Ok(read) };
    for (accelerator, position) in accelerators.messages("gpu_execution_accelerator") {
        let name = accelerator.text("name").to_owned();
        if name.is_empty() {
            return Err(ConfigError::invalid(position, "gpu_execution_accelerator needs a name: cuda or tensorrt"));
        }
        if read.gpu_accelerators.iter().any(|known| known.name == name) {
            return Err(ConfigError::invalid(
                position,
                format!("gpu_execution_accelerator {} is there twice", quoted(&name)),
            ));
        }
        let parameters = accelerator.entries("parameters").map(|(key, item)| {
            let value = match &item.value {
                Value::String(value) => value.clone(),
                _ => String::new(),
            };
            (key.to_string(), value)
        });
        read.gpu_accelerators.push(Accelerator { name, parameters: parameters.collect() });
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use crate::model_config::{UnknownFields, parse};

    #[test]
    fn the_level_of_rewriting_is_read() {
        for (text, level) in
            [("", 0), ("optimization { graph { level: -1 } }", -1), ("optimization { graph { level: 2 } }", 2)]
        {
            let parsed = parse(text, UnknownFields::Deny).unwrap();
            assert_eq!((parsed.config.optimization.graph_level, parsed.warnings), (level, vec![]));
        }
    }

    #[test]
    fn accelerators_are_read_as_triton_writes_them() {
        let text = "optimization { execution_accelerators { gpu_execution_accelerator : [ {
            name : 'tensorrt' parameters { key: 'precision_mode' value: 'FP16' } parameters { key: 'max_workspace_size_bytes' value: '1' } },
            { name: 'cuda' } ] } }";
        let parsed = parse(text, UnknownFields::Deny).unwrap();
        assert_eq!(parsed.warnings, []);
        let [tensorrt, cuda] = &parsed.config.optimization.gpu_accelerators[..] else { panic!("two accelerators") };
        assert_eq!((tensorrt.name.as_str(), cuda.name.as_str()), ("tensorrt", "cuda"));
        assert_eq!(tensorrt.parameters[1], ("precision_mode".to_owned(), "FP16".to_owned()));
        for (text, what) in [
            ("gpu_execution_accelerator { }", "needs a name"),
            ("gpu_execution_accelerator [ { name: 'cuda' }, { name: 'cuda' } ]", "is there twice"),
        ] {
            let text = format!("optimization {{ execution_accelerators {{ {text} }} }}");
            let error = parse(&text, UnknownFields::Deny).unwrap_err();
            assert!(error.message.contains(what), "{}", error.message);
        }
    }
}

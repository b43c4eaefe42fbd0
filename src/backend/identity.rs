//! The `identity` backend: every output is the input at the same place. For tests and for measuring what the server
//! itself costs. Of sequences it can show what a model is told: the outputs may go on with the control inputs and the
//! states, in that order, and what it gives as state is its first input. After Triton's identity backend, whose `execute_delay_ms` parameter it knows too.

use std::time::{Duration, Instant};

use super::placement::Placement;
use super::{Backend, Batch, Execution, Model, ModelFiles, ModelInstance};
use crate::error::{Error, Result};
use crate::inference::NamedTensor;
use crate::model_config::ModelConfig;
use crate::model_config::complete::{RuntimeSignature, TensorSignature};
use crate::model_config::sequence::SequenceBatching;
use crate::tensor::DataType;

/// The backend.
#[derive(Debug, Default)]
pub struct Identity;

/// The longest delay: it holds a thread of the device.
const MAX_DELAY_MS: u64 = 60_000;

/// Its name in `config.pbtxt`.
pub const NAME: &str = "identity";

#[derive(Clone, Debug)]
struct IdentityModel {
    signature: RuntimeSignature,
    /// The outputs that are inputs; those after them are states.
    plain: usize,
    delay: Duration,
}

impl Backend for Identity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn known_parameters(&self) -> &'static [&'static str] {
        &["execute_delay_ms"]
    }

    fn default_model_file(&self) -> &'static str {
        ""
    }

    fn on_gpu(&self) -> Result<()> {
        Ok(())
    }

    fn load(&self, _files: &ModelFiles, config: &ModelConfig, _placement: &Placement) -> Result<Box<dyn Model>> {
        let signature = signature(config);
        let known = config.sequence_batching.as_ref();
        let more = known.map_or(0, |sequences| sequences.inputs().count());
        let (inputs, outputs) = (config.inputs.len(), config.outputs.len());
        if inputs == 0 || !(inputs..=inputs + more).contains(&outputs) {
            return Err(Error::invalid(format!(
                "the identity backend needs as many outputs as inputs, at least one: the configuration has {inputs} inputs \
                 and {outputs} outputs"
            )));
        }
        for (input, output) in signature.inputs.iter().zip(signature.outputs.iter().take(outputs)) {
            if input.data_type != output.data_type {
                return Err(Error::invalid(format!(
                    "the identity backend copies input '{}' to output '{}', but their types are {} and {}",
                    input.name, output.name, input.data_type, output.data_type
                )));
            }
        }
        let delay = match config.parameters.get("execute_delay_ms") {
            None => Duration::ZERO,
            Some(text) => match text.parse() {
                Ok(delay @ 0..=MAX_DELAY_MS) => Duration::from_millis(delay),
                _ => {
                    return Err(Error::invalid(format!(
                        "parameter execute_delay_ms is '{text}', expected whole milliseconds up to {MAX_DELAY_MS}"
                    )));
                }
            },
        };
        Ok(Box::new(IdentityModel { signature, plain: outputs, delay }))
    }
}

/// The tensors of the configuration, then those of sequences.
fn signature(config: &ModelConfig) -> RuntimeSignature {
    // What is ragged lies end to end, in one dimension.
    let is_ragged = |name: &str| {
        config.inputs.iter().any(|input| input.name == name && input.allow_ragged_batch)
            || config.batch_outputs.iter().any(|output| output.targets.iter().any(|target| target == name))
    };
    let tensor = |(name, data_type, dims): (&str, DataType, &[i64])| TensorSignature {
        name: name.to_owned(),
        data_type,
        dims: if is_ragged(name) { vec![-1] } else { config.metadata_dims(dims) },
    };
    let sequences = || config.sequence_batching.iter();
    let inputs = config.inputs.iter().map(|input| (input.name.as_str(), input.data_type, input.runtime_dims()));
    let outputs = config.outputs.iter().map(|output| (output.name.as_str(), output.data_type, output.runtime_dims()));
    RuntimeSignature {
        inputs: inputs.chain(sequences().flat_map(SequenceBatching::inputs)).map(tensor).collect(),
        outputs: outputs.chain(sequences().flat_map(SequenceBatching::outputs)).map(tensor).collect(),
        optional_inputs: config.inputs.iter().filter(|input| input.optional).map(|input| input.name.clone()).collect(),
    }
}

impl Model for IdentityModel {
    fn signature(&self) -> &RuntimeSignature {
        &self.signature
    }

    fn instance(&self) -> Result<Box<dyn ModelInstance>> {
        Ok(Box::new(self.clone()))
    }
}

impl ModelInstance for IdentityModel {
    fn execute(&mut self, batch: &Batch<'_>) -> Result<Execution> {
        let compute_start = Instant::now();
        if !self.delay.is_zero() {
            #[expect(clippy::disallowed_methods, reason = "the delay is what this parameter asks for")]
            std::thread::sleep(self.delay);
        }
        let compute_end = if self.delay.is_zero() { compute_start } else { Instant::now() };
        let mut outputs = crate::inference::NamedTensors::new();
        for &index in batch.outputs {
            let place = if index < self.plain { index } else { 0 };
            let (Some(output), Some(source)) = (self.signature.outputs.get(index), self.signature.inputs.get(place))
            else {
                return Err(Error::internal(format!("output {index} is not in the signature")));
            };
            // Inputs come in order, so the place is right unless an optional one before it was left out.
            let input = match batch.inputs.get(place) {
                Some(input) if input.name == source.name => Some(input),
                _ => batch.inputs.iter().find(|input| input.name == source.name),
            };
            let input = input.ok_or_else(|| {
                Error::invalid(format!("output '{}' is input '{}', which was left out", output.name, source.name))
            })?;
            outputs.push(NamedTensor { name: output.name.as_str().into(), tensor: input.tensor.clone() });
        }
        Ok(Execution { outputs, compute_start, compute_end })
    }
}

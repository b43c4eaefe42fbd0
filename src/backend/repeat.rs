//! The `repeat` backend: gives the elements of its input one by one, each as an answer of its own. For trying and testing
//! decoupled models. After Triton's repeat backend, whose inputs and outputs it has; beyond that backend `IN` may be of any
//! type of fixed size.
//!
//! | tensor | | |
//! |---|---|---|
//! | `IN` | any fixed-size type, `[-1]` | what is given back |
//! | `DELAY` | UINT32, as long as `IN` | how long to wait before each answer, in ms |
//! | `WAIT` | UINT32 `[1]` | how long the instance takes no other request, in ms from the start; longer where the answers take longer |
//! | `OUT` | as `IN`, `[1]` | one element |
//! | `IDX` | UINT32 `[1]` | its place |

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::placement::Placement;
use super::{Backend, Batch, Execution, Model, ModelFiles, ModelInstance, Streamed};
use crate::error::{Error, Result};
use crate::inference::{NamedTensor, NamedTensors};
use crate::model_config::ModelConfig;
use crate::model_config::complete::{RuntimeSignature, TensorSignature};
use crate::tensor::{DataType, Shape, Tensor};

/// The backend.
#[derive(Debug, Default)]
pub struct Repeat;

/// Its name in `config.pbtxt`.
pub const NAME: &str = "repeat";

/// The longest `DELAY` and `WAIT`, in ms: a reader that leaves is noticed at the next answer.
const LONGEST_MS: u32 = 60_000;

#[derive(Clone, Debug)]
struct RepeatModel {
    signature: RuntimeSignature,
}

impl Backend for Repeat {
    fn name(&self) -> &'static str {
        NAME
    }

    fn streams(&self) -> bool {
        true
    }

    fn default_model_file(&self) -> &'static str {
        ""
    }

    fn on_gpu(&self) -> Result<()> {
        Ok(())
    }

    fn load(&self, _files: &ModelFiles, config: &ModelConfig, _placement: &Placement) -> Result<Box<dyn Model>> {
        if !config.decoupled {
            return Err(Error::invalid(
                "the repeat backend gives many answers to a request: set model_transaction_policy { decoupled: true }",
            ));
        }
        if config.max_batch_size > 0 {
            return Err(Error::invalid("the repeat backend has no batches: set max_batch_size to 0"));
        }
        let tensor = |name: &str, data_type, dims: &[i64]| TensorSignature {
            name: name.to_owned(),
            data_type,
            dims: config.metadata_dims(dims),
        };
        let signature = RuntimeSignature {
            inputs: config.inputs.iter().map(|it| tensor(&it.name, it.data_type, it.runtime_dims())).collect(),
            outputs: config.outputs.iter().map(|it| tensor(&it.name, it.data_type, it.runtime_dims())).collect(),
            optional_inputs: Vec::new(),
        };
        check(&signature)?;
        Ok(Box::new(RepeatModel { signature }))
    }
}

/// Whether the tensors are those of the table above.
fn check(signature: &RuntimeSignature) -> Result<()> {
    let known = |tensors: &[TensorSignature], what: &str, names: &[&str]| {
        let right = tensors.len() == names.len() && names.iter().all(|name| tensors.iter().any(|it| it.name == *name));
        right.then_some(()).ok_or_else(|| {
            Error::invalid(format!("the repeat backend needs the {what}s {}, no more and no less", names.join(", ")))
        })
    };
    known(&signature.inputs, "input", &["IN", "DELAY", "WAIT"])?;
    known(&signature.outputs, "output", &["OUT", "IDX"])?;
    let all = || signature.inputs.iter().chain(&signature.outputs);
    let data_type = |name: &str| all().find(|it| it.name == name).map(|it| it.data_type);
    if data_type("IN") != data_type("OUT") || data_type("IN") == Some(DataType::Bytes) {
        return Err(Error::invalid("the repeat backend needs one data type for IN and OUT, other than TYPE_STRING"));
    }
    for name in ["DELAY", "WAIT", "IDX"] {
        if data_type(name) != Some(DataType::Uint32) {
            return Err(Error::invalid(format!("the repeat backend needs data_type TYPE_UINT32 for {name}")));
        }
    }
    for tensor in all().filter(|it| matches!(it.name.as_str(), "WAIT" | "OUT" | "IDX")) {
        if tensor.dims != [1] {
            let text = format!("the repeat backend needs dims [ 1 ] for {}, got {:?}", tensor.name, tensor.dims);
            return Err(Error::invalid(text));
        }
    }
    Ok(())
}

impl Model for RepeatModel {
    fn signature(&self) -> &RuntimeSignature {
        &self.signature
    }

    fn instance(&self) -> Result<Box<dyn ModelInstance>> {
        Ok(Box::new(self.clone()))
    }
}

/// One element of a tensor of a fixed-size type, a slice of it, in as many dimensions; `None` beyond its end.
#[must_use]
pub fn element(tensor: &Tensor, at: usize) -> Option<Tensor> {
    let size = tensor.data_type().size()?;
    let begin = at.checked_mul(size)?;
    let end = begin.checked_add(size).filter(|end| *end <= tensor.data().len())?;
    let shape = std::iter::repeat_n(1, tensor.shape().rank()).collect();
    Tensor::new(tensor.data_type(), shape, tensor.data().slice(begin..end)).ok()
}

/// The milliseconds of an input, which may lie at any address: tensors are slices of messages.
fn times(batch: &Batch<'_>, name: &str) -> Result<Vec<u32>> {
    let tensor = input(batch, name)?;
    if tensor.data_type() != DataType::Uint32 {
        return Err(Error::internal(format!("{name} is not UINT32")));
    }
    let times: Vec<u32> = tensor.data().as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    match times.iter().find(|time| **time > LONGEST_MS) {
        None => Ok(times),
        Some(time) => Err(Error::invalid(format!("{name} is {time} ms, and at most {LONGEST_MS} ms are allowed"))),
    }
}

fn input<'a>(batch: &'a Batch<'_>, name: &str) -> Result<&'a Tensor> {
    let found = batch.inputs.iter().find(|input| input.name == name);
    found.map(|input| &input.tensor).ok_or_else(|| Error::invalid(format!("input '{name}' is missing")))
}

#[expect(clippy::disallowed_methods, reason = "the delay is what the request asks for")]
fn sleep(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}

impl ModelInstance for RepeatModel {
    fn execute(&mut self, _batch: &Batch<'_>) -> Result<Execution> {
        Err(Error::unsupported("the repeat backend gives many answers to a request"))
    }

    fn execute_stream(
        &mut self,
        batch: &Batch<'_>,
        answer: &mut dyn FnMut(NamedTensors) -> ControlFlow<()>,
    ) -> Result<Streamed> {
        let compute_start = Instant::now();
        let values = input(batch, "IN")?;
        let delays = times(batch, "DELAY")?;
        let wait = times(batch, "WAIT")?.first().copied().unwrap_or(0);
        let delay_shape = input(batch, "DELAY")?.shape();
        if values.shape() != delay_shape {
            return Err(Error::invalid(format!(
                "expected IN and DELAY shape to match, got {} and {delay_shape}",
                values.shape()
            )));
        }
        for (index, delay) in delays.iter().enumerate() {
            sleep(Duration::from_millis(u64::from(*delay)));
            let mut outputs = NamedTensors::new();
            for &output in batch.outputs {
                let name = self.signature.outputs.get(output).map_or("", |output| output.name.as_str());
                let tensor = match name {
                    "OUT" => element(values, index),
                    _ => Tensor::from_vec(Shape::new(&[1]), vec![u32::try_from(index).unwrap_or(u32::MAX)]).ok(),
                };
                let tensor = tensor.ok_or_else(|| Error::internal("an element is outside its tensor"))?;
                outputs.push(NamedTensor { name: name.into(), tensor: tensor.reshaped(Shape::new(&[1]))? });
            }
            if answer(outputs).is_break() {
                return Ok(Streamed { compute_start, compute_end: Instant::now() });
            }
        }
        sleep(Duration::from_millis(u64::from(wait)).saturating_sub(compute_start.elapsed()));
        Ok(Streamed { compute_start, compute_end: Instant::now() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::DeviceId;
    use crate::model_config::{UnknownFields, parse};

    const GOOD: &str = "name: 'm' backend: 'repeat' model_transaction_policy { decoupled: true }
        input [ { name: 'IN' data_type: TYPE_FP64 dims: -1 }, { name: 'DELAY' data_type: TYPE_UINT32 dims: -1 },
                { name: 'WAIT' data_type: TYPE_UINT32 dims: 1 } ]
        output [ { name: 'OUT' data_type: TYPE_FP64 dims: 1 }, { name: 'IDX' data_type: TYPE_UINT32 dims: 1 } ]";

    fn load(text: &str) -> Result<Box<dyn Model>> {
        let config = parse(text, UnknownFields::Deny).unwrap().config;
        let files = ModelFiles {
            directory: ".".into(),
            version_directory: ".".into(),
            version: 1,
            model_file: None,
            derived: None,
        };
        Repeat.load(&files, &config, &Placement::of(DeviceId::Cpu))
    }

    fn named(name: &str, tensor: Tensor) -> NamedTensor {
        NamedTensor { name: name.into(), tensor }
    }

    #[test]
    fn inputs_may_lie_anywhere_in_a_message() {
        let message = bytes::Bytes::from(vec![0; 32]);
        let at = |from: usize| message.slice(from..from + 4);
        let tensor = |data_type, data| Tensor::new(data_type, Shape::new(&[1]), data).unwrap();
        for shift in 0..4 {
            let inputs = [
                named("IN", tensor(DataType::Fp64, message.slice(shift..shift + 8))),
                named("DELAY", tensor(DataType::Uint32, at(8 + shift))),
                named("WAIT", tensor(DataType::Uint32, at(12 + shift))),
            ];
            let batch = Batch { inputs: &inputs, outputs: &[1] };
            let mut answers = 0;
            let ended = load(GOOD).unwrap().instance().unwrap().execute_stream(&batch, &mut |_| {
                answers += 1;
                ControlFlow::Continue(())
            });
            assert!(ended.is_ok() && answers == 1, "at {shift}");
        }
    }

    fn ask(values: Vec<f64>, delays: Vec<u32>, wait: u32) -> Result<Vec<NamedTensors>> {
        let shape = |length: usize| Shape::new(&[i64::try_from(length).unwrap()]);
        let inputs = [
            named("IN", Tensor::from_vec(shape(values.len()), values).unwrap()),
            named("DELAY", Tensor::from_vec(shape(delays.len()), delays).unwrap()),
            named("WAIT", Tensor::from_vec(shape(1), vec![wait]).unwrap()),
        ];
        let mut answers = Vec::new();
        let batch = Batch { inputs: &inputs, outputs: &[0, 1] };
        load(GOOD).unwrap().instance().unwrap().execute_stream(&batch, &mut |outputs| {
            answers.push(outputs);
            ControlFlow::Continue(())
        })?;
        Ok(answers)
    }

    #[test]
    fn each_element_is_an_answer_with_its_place() {
        let answers = ask(vec![1.5, -0.0, f64::INFINITY], vec![0, 0, 0], 0).unwrap();
        let values: Vec<_> = answers.iter().map(|outputs| outputs[0].tensor.elements::<f64>().unwrap()[0]).collect();
        assert_eq!(values, [1.5, -0.0, f64::INFINITY]);
        let places: Vec<_> = answers.iter().map(|outputs| outputs[1].tensor.elements::<u32>().unwrap()[0]).collect();
        assert_eq!(places, [0, 1, 2]);
        assert_eq!(ask(Vec::new(), Vec::new(), 0).unwrap().len(), 0);
    }

    #[test]
    fn times_are_kept_and_have_a_limit() {
        let begun = Instant::now();
        ask(vec![1.0], vec![2], 5).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(5));
        let too_long = ask(vec![1.0], vec![60_001], 0).unwrap_err();
        assert_eq!(too_long.to_string(), "DELAY is 60001 ms, and at most 60000 ms are allowed");
        let uneven = ask(vec![1.0], vec![0, 0], 0).unwrap_err();
        assert_eq!(uneven.to_string(), "expected IN and DELAY shape to match, got [1] and [2]");
    }

    #[test]
    fn a_configuration_that_is_none_of_a_repeat_model_is_refused() {
        let cases = [
            ("decoupled: true", "decoupled: false", "decoupled: true"),
            ("name: 'OUT' data_type: TYPE_FP64", "name: 'OUT' data_type: TYPE_FP32", "one data type"),
            ("'DELAY' data_type: TYPE_UINT32", "'DELAY' data_type: TYPE_INT32", "TYPE_UINT32 for DELAY"),
            ("'WAIT' data_type: TYPE_UINT32 dims: 1", "'WAIT' data_type: TYPE_UINT32 dims: 2", "[ 1 ] for WAIT"),
            ("name: 'IDX'", "name: 'INDEX'", "outputs OUT, IDX"),
            ("backend: 'repeat'", "backend: 'repeat' max_batch_size: 4", "max_batch_size to 0"),
        ];
        for (from, to, text) in cases {
            assert!(GOOD.contains(from), "{from}");
            let error = load(&GOOD.replace(from, to)).err().unwrap().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}

//! What a model of sequences gets beside the inputs of callers: control inputs, and the states that its own outputs were.

use bytes::Bytes;
use compact_str::CompactString;
use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::inference::{NamedTensor, NamedTensors, Sequence, SequenceId};
use crate::model_config::ModelConfig;
use crate::model_config::complete::RuntimeSignature;
use crate::model_config::sequence::{ControlKind, Flag};
use crate::scheduler::work::Work;
use crate::tensor::{DataType, Shape, Tensor};

/// What a sequence carries from one request to the next: its state tensors, in the order of the configuration.
pub type States = SmallVec<[Tensor; 2]>;

/// What a control input says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Start,
    Ready,
    End,
}

/// A flag's input, and its tensor for false and for true.
#[derive(Debug)]
struct FlagInput {
    name: CompactString,
    says: Says,
    values: [Tensor; 2],
}

/// A state's input, and what the first request of a sequence gets there.
#[derive(Debug)]
struct StateInput {
    name: CompactString,
    /// The index of its output in the signature.
    output: usize,
    initial: Tensor,
}

/// Makes the inputs that callers do not send, and takes the outputs that are not theirs.
#[derive(Debug)]
pub struct Feed {
    flags: Vec<FlagInput>,
    /// The input with the sequence's id.
    correlation: Option<(CompactString, DataType)>,
    states: Vec<StateInput>,
    /// Of the tensors of flags and ids.
    shape: Shape,
    /// Whether states of two sequences can differ in shape.
    varies: bool,
}

impl Feed {
    /// The feed of a complete configuration; `initial` has the state of a new sequence, one item each without the batch
    /// dimension, in the order of the configuration.
    ///
    /// # Errors
    /// `InvalidArgument` if the model has not the output of a state.
    pub fn of(config: &ModelConfig, signature: &RuntimeSignature, initial: Vec<Tensor>) -> Result<Self> {
        let batched = config.max_batch_size > 0;
        let shape = if batched { Shape::new(&[1, 1]) } else { Shape::new(&[1]) };
        let mut feed = Self { flags: Vec::new(), correlation: None, states: Vec::new(), shape, varies: false };
        let Some(sequences) = &config.sequence_batching else { return Ok(feed) };
        for control in &sequences.controls {
            let name = CompactString::from(control.name.as_str());
            let (says, flag) = match control.kind {
                ControlKind::Start(flag) => (Says::Start, flag),
                ControlKind::Ready(flag) => (Says::Ready, flag),
                ControlKind::End(flag) => (Says::End, flag),
                ControlKind::CorrelationId(data_type) => {
                    feed.correlation = Some((name, data_type));
                    continue;
                }
            };
            feed.flags.push(FlagInput { name, says, values: values(flag, &feed.shape)? });
        }
        for (state, item) in sequences.states.iter().zip(initial) {
            let output = signature.outputs.iter().position(|output| output.name == state.output);
            let output = output.ok_or_else(|| {
                Error::invalid(format!("sequence_batching: state output_name '{}' is not in the model", state.output))
            })?;
            let initial = if batched {
                let dims: Shape = std::iter::once(1).chain(item.shape().dims().iter().copied()).collect();
                item.reshaped(dims)?
            } else {
                item
            };
            feed.varies |= state.dims.contains(&-1);
            feed.states.push(StateInput { name: state.input.as_str().into(), output, initial });
        }
        Ok(feed)
    }

    /// Adds to the inputs of a request what the model is told of its sequence, and the states; and to its outputs those
    /// that are states. Gives the places of the states among the outputs.
    ///
    /// # Errors
    /// `InvalidArgument` for an id that the model's input cannot hold.
    pub fn add(&self, work: &mut Work, sequence: &Sequence, states: Option<&States>) -> Result<SmallVec<[usize; 2]>> {
        let correlation = match &self.correlation {
            None => None,
            Some((name, data_type)) => {
                let tensor = correlation(&sequence.id, *data_type, &self.shape)?;
                Some(NamedTensor { name: name.clone(), tensor })
            }
        };
        for flag in &self.flags {
            let is_set = match flag.says {
                Says::Start => sequence.start,
                Says::Ready => true,
                Says::End => sequence.end,
            };
            work.inputs.push(flag.input(is_set));
        }
        work.inputs.extend(correlation);
        for (index, state) in self.states.iter().enumerate() {
            let tensor = states.and_then(|states| states.get(index)).unwrap_or(&state.initial).clone();
            work.inputs.push(NamedTensor { name: state.name.clone(), tensor });
        }
        let places = self.states.iter().map(|state| {
            work.outputs.iter().position(|output| *output == state.output).unwrap_or_else(|| {
                work.outputs.push(state.output);
                work.outputs.len() - 1
            })
        });
        Ok(places.collect())
    }

    /// A row without a request, for a batch whose other rows are like `like`: zeros, and every flag false.
    ///
    /// # Errors
    /// `Internal` if zeros cannot be made, which would be a fault of ours.
    pub fn filler(&self, like: &Work) -> Result<Work> {
        let mut inputs = NamedTensors::new();
        for input in &like.inputs {
            inputs.push(match self.flags.iter().find(|flag| flag.name == input.name) {
                Some(flag) => flag.input(false),
                None => NamedTensor { name: input.name.clone(), tensor: zeros(&input.tensor)? },
            });
        }
        Ok(Work {
            inputs,
            outputs: SmallVec::new(),
            batch_size: 0,
            deadline: None,
            priority: 0,
            arrived: like.arrived,
            sequence: None,
            id: CompactString::default(),
            trace: None,
        })
    }

    /// What the first and only request of a sequence gets, `rows` times along the batch dimension: what a model is warmed
    /// up with.
    ///
    /// # Errors
    /// `TooLarge` if the rows are more than memory can hold.
    pub fn warm_up(&self, rows: u32) -> Result<Vec<NamedTensor>> {
        let id = SequenceId::Number(1);
        let correlation = match &self.correlation {
            Some((name, data_type)) => {
                let text = SequenceId::Text("1".into());
                let id = if *data_type == DataType::Bytes { text } else { id };
                Some(NamedTensor { name: name.clone(), tensor: correlation(&id, *data_type, &self.shape)? })
            }
            None => None,
        };
        let flags = self.flags.iter().map(|flag| flag.input(true));
        let states =
            self.states.iter().map(|state| NamedTensor { name: state.name.clone(), tensor: state.initial.clone() });
        flags
            .chain(correlation)
            .chain(states)
            .map(|input| Ok(NamedTensor { tensor: repeated(&input.tensor, rows)?, name: input.name }))
            .collect()
    }

    /// Whether states of two sequences can differ in shape, so that their requests may not fit one batch.
    #[must_use]
    pub const fn varies(&self) -> bool {
        self.varies
    }

    /// Takes the states, which stand at `places`, out of the outputs, of which the first `wanted` are the caller's.
    pub fn take(&self, outputs: &mut NamedTensors, places: &[usize], wanted: usize) -> Option<States> {
        if self.states.is_empty() {
            return None;
        }
        let states =
            places.iter().filter_map(|place| outputs.get(*place).map(|output| output.tensor.clone())).collect();
        outputs.truncate(wanted);
        Some(states)
    }
}

impl FlagInput {
    fn input(&self, is_set: bool) -> NamedTensor {
        let [no, yes] = &self.values;
        NamedTensor { name: self.name.clone(), tensor: if is_set { yes } else { no }.clone() }
    }
}

fn values(flag: Flag, shape: &Shape) -> Result<[Tensor; 2]> {
    let [no, yes] = match flag {
        Flag::Int32(values) => values.map(|value| Tensor::from_vec(shape.clone(), vec![value])),
        Flag::Fp32(values) => values.map(|value| Tensor::from_vec(shape.clone(), vec![value])),
        Flag::Bool(values) => {
            values.map(|value| Tensor::new(DataType::Bool, shape.clone(), Bytes::from(vec![u8::from(value)])))
        }
    };
    Ok([no?, yes?])
}

fn correlation(id: &SequenceId, data_type: DataType, shape: &Shape) -> Result<Tensor> {
    let number = match (id, data_type) {
        (SequenceId::Text(text), DataType::Bytes) => return Tensor::from_strings(shape.clone(), &[text.as_bytes()]),
        (SequenceId::Number(number), DataType::Bytes) => {
            return Err(Error::invalid(format!(
                "sequence_id {number} is a number, but the model takes correlation IDs of TYPE_STRING: send a string"
            )));
        }
        (SequenceId::Text(_), other) => {
            return Err(Error::invalid(format!(
                "sequence_id is a string, but the model takes correlation IDs of {}: send a number",
                other.config_name()
            )));
        }
        (SequenceId::Number(number), _) => *number,
    };
    let too_large = || {
        let wanted = data_type.config_name();
        Error::invalid(format!("sequence_id {number} does not fit the model's correlation IDs of {wanted}"))
    };
    let shape = shape.clone();
    match data_type {
        DataType::Int32 => Tensor::from_vec(shape, vec![i32::try_from(number).map_err(|_| too_large())?]),
        DataType::Uint32 => Tensor::from_vec(shape, vec![u32::try_from(number).map_err(|_| too_large())?]),
        DataType::Int64 => Tensor::from_vec(shape, vec![i64::try_from(number).map_err(|_| too_large())?]),
        _ => Tensor::from_vec(shape, vec![number]),
    }
}

/// Zeros in the shape of another tensor; empty strings for BYTES.
fn zeros(like: &Tensor) -> Result<Tensor> {
    let bytes = like.data_type().size().unwrap_or(4) * like.element_count();
    Tensor::new(like.data_type(), like.shape().clone(), Bytes::from(vec![0; bytes]))
}

fn repeated(item: &Tensor, rows: u32) -> Result<Tensor> {
    if rows <= 1 {
        return Ok(item.clone());
    }
    let bytes = item.data().len().checked_mul(rows as usize).filter(|bytes| *bytes <= 1 << 30);
    if bytes.is_none() {
        return Err(Error::too_large(format!("the states of {rows} rows take more than 1 GiB")));
    }
    let dims: Shape = std::iter::once(i64::from(rows)).chain(item.shape().dims().iter().skip(1).copied()).collect();
    Tensor::new(item.data_type(), dims, Bytes::from(item.data().repeat(rows as usize)))
}

//! What goes in and what comes out: requests and responses, below every protocol and every runtime.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use smallvec::SmallVec;

use crate::telemetry::trace::record::Trace;
use crate::tensor::Tensor;

/// A version of a model: the number of its folder.
pub type Version = u64;

/// A model and one of its versions.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId {
    /// The model's key below the repository prefix.
    pub name: Arc<str>,
    /// The number of its version folder.
    pub version: Version,
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} version {}", self.name, self.version)
    }
}

impl fmt::Debug for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.name, self.version)
    }
}

/// A place where models run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceId {
    /// The host's processors and RAM.
    Cpu,
    /// A GPU by its index.
    Gpu(u32),
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(index) => write!(f, "gpu:{index}"),
        }
    }
}

/// A tensor with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTensor {
    /// The input's or output's name in the model.
    pub name: CompactString,
    /// Its value.
    pub tensor: Tensor,
}

/// Inputs or outputs: most models have one or two of each.
pub type NamedTensors = SmallVec<[NamedTensor; 2]>;

/// A scalar parameter of a request or response.
#[derive(Clone, Debug, PartialEq)]
pub enum ParameterValue {
    /// `true` or `false`.
    Bool(bool),
    /// An integer that fits 64 bits signed.
    Int(i64),
    /// An integer above that, up to 64 bits unsigned.
    Uint(u64),
    /// Any other number.
    Double(f64),
    /// A text.
    String(CompactString),
}

/// Request or response parameters in the order they came.
pub type Parameters = Vec<(CompactString, ParameterValue)>;

/// The moment by which an answer must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// `timeout` from `now`; a timeout too long to be represented is no deadline.
    #[must_use]
    pub fn after(now: Instant, timeout: Duration) -> Option<Self> {
        now.checked_add(timeout).map(Self)
    }

    /// The moment.
    #[must_use]
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// Whether it has passed.
    #[must_use]
    pub fn is_past(self, now: Instant) -> bool {
        now >= self.0
    }
}

/// An inference request, whatever protocol it came by.
#[derive(Clone, Debug, Default)]
pub struct InferenceRequest {
    /// The caller's id, echoed in the response; empty if none was given.
    pub id: CompactString,
    /// Parameters for the backend, without those the front end understood itself.
    pub parameters: Parameters,
    /// The input tensors.
    pub inputs: NamedTensors,
    /// The outputs wanted; empty for all.
    pub outputs: SmallVec<[CompactString; 2]>,
    /// When the answer is worth nothing any more.
    pub deadline: Option<Deadline>,
    /// Triton's priority: 1 is the highest, 0 the model's default.
    pub priority: u64,
    /// Where what happens to it is written down; `None` for most.
    pub trace: Option<Arc<Trace>>,
}

/// A place in a sequence of requests that one instance answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Which sequence.
    pub id: SequenceId,
    /// Whether the request is its first.
    pub start: bool,
    /// Whether the request is its last.
    pub end: bool,
}

impl Sequence {
    /// The place that a request's parameters name (`sequence_id`, `sequence_start`, `sequence_end`, Triton's sequence
    /// extension), whose types the front end has checked. `None` where there is no id, or it is 0 or empty.
    #[must_use]
    pub fn of(parameters: &Parameters) -> Option<Self> {
        let find = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let id = match find("sequence_id")? {
            ParameterValue::Int(0) | ParameterValue::Uint(0) => return None,
            ParameterValue::Int(number) => SequenceId::Number(number.unsigned_abs()),
            ParameterValue::Uint(number) => SequenceId::Number(*number),
            ParameterValue::String(text) if !text.is_empty() => SequenceId::Text(text.clone()),
            _ => return None,
        };
        let flag = |name| matches!(find(name), Some(ParameterValue::Bool(true)));
        Some(Self { id, start: flag("sequence_start"), end: flag("sequence_end") })
    }
}

/// What tells a sequence from others of the same model; Triton's correlation id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SequenceId {
    /// A number, never 0.
    Number(u64),
    /// A text, never empty.
    Text(CompactString),
}

/// The answer to an inference request.
#[derive(Clone, Debug, PartialEq)]
pub struct InferenceResponse {
    /// Which model and version answered.
    pub model: ModelId,
    /// The request's id.
    pub id: CompactString,
    /// Parameters set by the backend.
    pub parameters: Parameters,
    /// The output tensors in the model's order.
    pub outputs: NamedTensors,
    /// Whether no other answer to the same request follows: `false` only from decoupled models.
    pub last: bool,
}

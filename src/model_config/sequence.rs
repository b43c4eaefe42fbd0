//! `sequence_batching`: requests of one sequence go to one instance, in order; what that instance is told of them, and
//! what it carries from one to the next. Source: the schema's `ModelSequenceBatching` and Triton's documentation of it.

use std::collections::HashSet;
use std::time::Duration;

use super::ModelConfig;
use super::diagnostic::{ConfigError, Position, quoted};
use super::message::{Message, Value};
use super::validate::stays_inside;
use crate::tensor::DataType;

/// The folder in the model's own that holds the files of initial states.
pub const FOLDER: &str = "initial_state";

/// How long a sequence may be silent where the configuration does not say, as in Triton.
const IDLE: Duration = Duration::from_secs(1);

/// The most state tensors of a model.
const MAX_STATES: usize = 1024;

/// How requests of sequences are scheduled.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceBatching {
    /// Which requests share a batch.
    pub strategy: Strategy,
    /// How long a sequence keeps its slot without a request.
    pub max_idle: Duration,
    /// What the model is told beside the inputs of callers.
    pub controls: Vec<Control>,
    /// What the server carries from one request of a sequence to the next.
    pub states: Vec<State>,
}

/// Which requests share a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Strategy {
    /// A sequence has a row of the batch to itself until it ends.
    Direct {
        /// How long a batch waits for more slots to be ready.
        max_queue_delay: Duration,
        /// The share of an instance's slots, 0 to 1, that must be ready for a batch to run before the delay is over; at 0
        /// there is no delay.
        minimum_slot_utilization: f32,
    },
    /// Batches of the requests that wait longest, at most one of each sequence.
    Oldest {
        /// How many sequences an instance has at a time; at least 1.
        max_candidate_sequences: u32,
        /// Batch sizes that run as soon as they can be formed; empty for the largest alone.
        preferred_batch_sizes: Vec<u32>,
        /// How long a request may wait for others.
        max_queue_delay: Duration,
        /// Whether answers leave in the order of their requests.
        preserve_ordering: bool,
    },
}

/// An input that the server makes.
#[derive(Clone, Debug, PartialEq)]
pub struct Control {
    /// The model's name for it.
    pub name: String,
    /// What is in it.
    pub kind: ControlKind,
}

/// What a control input says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ControlKind {
    /// Whether the request is the first of its sequence.
    Start(Flag),
    /// Whether there is a request in this row of the batch.
    Ready(Flag),
    /// Whether the request is the last of its sequence.
    End(Flag),
    /// Which sequence: one of the integers of 32 and 64 bits, or a string.
    CorrelationId(DataType),
}

/// The two values of a flag.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Flag {
    /// INT32: false, true.
    Int32([i32; 2]),
    /// FP32: false, true.
    Fp32([f32; 2]),
    /// BOOL: false, true.
    Bool([bool; 2]),
}

impl Flag {
    /// The element type.
    #[must_use]
    pub const fn data_type(self) -> DataType {
        match self {
            Self::Int32(_) => DataType::Int32,
            Self::Fp32(_) => DataType::Fp32,
            Self::Bool(_) => DataType::Bool,
        }
    }
}

impl ControlKind {
    /// The element type of the input.
    #[must_use]
    pub const fn data_type(self) -> DataType {
        match self {
            Self::Start(flag) | Self::Ready(flag) | Self::End(flag) => flag.data_type(),
            Self::CorrelationId(data_type) => data_type,
        }
    }
}

/// A tensor that the model gives with one request of a sequence and gets with the next.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The model's input.
    pub input: String,
    /// The model's output.
    pub output: String,
    /// The element type of both.
    pub data_type: DataType,
    /// The shape without the batch dimension; -1 for any size.
    pub dims: Vec<i64>,
    /// The shape of what the first request gets, every dimension known: 1 where nothing says more.
    pub initial_dims: Vec<i64>,
    /// The file in the `initial_state` folder with its elements; zeros where there is none.
    pub initial_file: Option<String>,
}

impl SequenceBatching {
    /// The inputs that the model has beside those of callers: name, type, and dims without the batch dimension.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, DataType, &[i64])> {
        let controls =
            self.controls.iter().map(|control| (control.name.as_str(), control.kind.data_type(), [1_i64].as_slice()));
        controls.chain(self.states.iter().map(|state| (state.input.as_str(), state.data_type, state.dims.as_slice())))
    }

    /// The outputs that are states: name, type, and dims without the batch dimension.
    pub fn outputs(&self) -> impl Iterator<Item = (&str, DataType, &[i64])> {
        self.states.iter().map(|state| (state.output.as_str(), state.data_type, state.dims.as_slice()))
    }

    /// Whether the server makes the input of this name.
    #[must_use]
    pub fn makes(&self, input: &str) -> bool {
        self.inputs().any(|(name, ..)| name == input)
    }
}

fn wrong<T>(position: Position, text: impl std::fmt::Display) -> Result<T, ConfigError> {
    Err(ConfigError::invalid(position, format!("sequence_batching: {text}")))
}

pub(super) fn read(config: &Message) -> Result<Option<SequenceBatching>, ConfigError> {
    let Some(written) = config.message("sequence_batching") else { return Ok(None) };
    let idle = Duration::from_micros(written.uint("max_sequence_idle_microseconds"));
    let states: Vec<_> = written
        .messages("state")
        .take(MAX_STATES + 1)
        .map(|(state, at)| read_state(state, at))
        .collect::<Result<_, _>>()?;
    if states.len() > MAX_STATES {
        return wrong(written.position_of("state"), format_args!("a model has at most {MAX_STATES} states"));
    }
    Ok(Some(SequenceBatching {
        strategy: strategy(written)?,
        max_idle: if idle.is_zero() { IDLE } else { idle },
        controls: written.messages("control_input").map(|(input, at)| control(input, at)).collect::<Result<_, _>>()?,
        states,
    }))
}

fn strategy(written: &Message) -> Result<Strategy, ConfigError> {
    let delay = |strategy: &Message| Duration::from_micros(strategy.uint("max_queue_delay_microseconds"));
    let Some(oldest) = written.message("oldest") else {
        let direct = written.message("direct");
        let utilization = direct.and_then(|direct| direct.items("minimum_slot_utilization").next());
        let (minimum, position) = match utilization.map(|item| (&item.value, item.position)) {
            Some((Value::Float(share), position)) => (*share, position),
            _ => (0.0, Position::UNKNOWN),
        };
        if !(0.0..=1.0).contains(&minimum) {
            return wrong(position, format_args!("minimum_slot_utilization must be from 0 to 1, got {minimum}"));
        }
        return Ok(Strategy::Direct {
            max_queue_delay: direct.map(delay).unwrap_or_default(),
            minimum_slot_utilization: minimum,
        });
    };
    let candidates = oldest.int("max_candidate_sequences");
    let Ok(max_candidate_sequences) = u32::try_from(candidates) else {
        let position = oldest.position_of("max_candidate_sequences");
        return wrong(position, format_args!("max_candidate_sequences must not be negative, got {candidates}"));
    };
    let mut preferred_batch_sizes = Vec::new();
    for item in oldest.items("preferred_batch_size") {
        match item.value {
            Value::Int(size)
                if size >= 1
                    && let Ok(size) = u32::try_from(size) =>
            {
                preferred_batch_sizes.push(size)
            }
            _ => return wrong(item.position, "a preferred_batch_size must be at least 1"),
        }
    }
    Ok(Strategy::Oldest {
        max_candidate_sequences: max_candidate_sequences.max(1),
        preferred_batch_sizes,
        max_queue_delay: delay(oldest),
        preserve_ordering: oldest.flag("preserve_ordering"),
    })
}

fn control(input: &Message, position: Position) -> Result<Control, ConfigError> {
    let name = input.text("name").to_owned();
    if name.is_empty() {
        return wrong(position, "a control_input must have a name");
    }
    let mut kinds = input.messages("control");
    let Some((control, at)) = kinds.next() else {
        return wrong(position, format_args!("control_input {} has no control", quoted(&name)));
    };
    if let Some((_, at)) = kinds.next() {
        return wrong(at, format_args!("control_input {} is specified for more than one control kind", quoted(&name)));
    }
    let kind = match control.text("kind") {
        "CONTROL_SEQUENCE_CORRID" => ControlKind::CorrelationId(correlation_type(&name, control, at)?),
        "CONTROL_SEQUENCE_READY" => ControlKind::Ready(flag(&name, control, at)?),
        "CONTROL_SEQUENCE_END" => ControlKind::End(flag(&name, control, at)?),
        // The first is what an enum is where nothing is written.
        _ => ControlKind::Start(flag(&name, control, at)?),
    };
    Ok(Control { name, kind })
}

fn correlation_type(name: &str, control: &Message, position: Position) -> Result<DataType, ConfigError> {
    for field in ["int32_false_true", "fp32_false_true", "bool_false_true"] {
        if control.get(field).is_some() {
            let text = format!("control_input {}: {field} is not for CONTROL_SEQUENCE_CORRID", quoted(name));
            return wrong(control.position_of(field), text);
        }
    }
    match DataType::from_config_name(control.text("data_type")) {
        Some(known @ (DataType::Uint64 | DataType::Int64 | DataType::Uint32 | DataType::Int32 | DataType::Bytes)) => {
            Ok(known)
        }
        _ => {
            let position = if control.get("data_type").is_some() { control.position_of("data_type") } else { position };
            let text = format!(
                "control_input {}: unexpected data type for control CONTROL_SEQUENCE_CORRID. Allowed data types are \
                 TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING",
                quoted(name)
            );
            wrong(position, text)
        }
    }
}

fn flag(name: &str, control: &Message, position: Position) -> Result<Flag, ConfigError> {
    let kind = control.text("kind");
    let of = |text: std::fmt::Arguments<'_>| format!("control_input {}: {text}", quoted(name));
    if control.get("data_type").is_some() {
        let text = of(format_args!("data_type is for CONTROL_SEQUENCE_CORRID, not for {kind}"));
        return wrong(control.position_of("data_type"), text);
    }
    let fields = ["int32_false_true", "fp32_false_true", "bool_false_true"];
    let mut given = fields.into_iter().filter(|field| control.items(field).next().is_some());
    let Some(field) = given.next() else {
        let text = "must specify one of 'int32_false_true', 'fp32_false_true' and 'bool_false_true' for";
        return wrong(position, of(format_args!("{text} {kind}")));
    };
    if given.next().is_some() {
        let text = "specifies more than one of 'int32_false_true', 'fp32_false_true' and 'bool_false_true' for";
        return wrong(position, of(format_args!("{text} {kind}")));
    }
    let mut values = control.items(field).map(|item| &item.value);
    match (values.next(), values.next(), values.next()) {
        (Some(Value::Int(no)), Some(Value::Int(yes)), None) => {
            // Of 32 bits by the schema.
            let narrow = |number: i64| i32::try_from(number).unwrap_or_default();
            Ok(Flag::Int32([narrow(*no), narrow(*yes)]))
        }
        (Some(Value::Float(no)), Some(Value::Float(yes)), None) => Ok(Flag::Fp32([*no, *yes])),
        (Some(Value::Bool(no)), Some(Value::Bool(yes)), None) => Ok(Flag::Bool([*no, *yes])),
        _ => {
            let text = of(format_args!("'{field}' must have exactly 2 entries for {kind}"));
            wrong(control.position_of(field), text)
        }
    }
}

fn read_state(state: &Message, position: Position) -> Result<State, ConfigError> {
    let (input, output) = (state.text("input_name").to_owned(), state.text("output_name").to_owned());
    for (field, name) in [("input_name", &input), ("output_name", &output)] {
        if name.is_empty() {
            return wrong(position, format_args!("a state must have an {field}"));
        }
    }
    let shown = format!("state {}", quoted(&input));
    let Some(data_type) = DataType::from_config_name(state.text("data_type")) else {
        let position = if state.get("data_type").is_some() { state.position_of("data_type") } else { position };
        return wrong(position, format_args!("{shown} must have a data_type such as TYPE_FP32"));
    };
    let dims = dims(state, &shown, -1)?;
    let mut initials = state.messages("initial_state");
    let unknown_is_one = || dims.iter().map(|dim| if *dim == -1 { 1 } else { *dim }).collect();
    let Some((initial, at)) = initials.next() else {
        return Ok(State { input, output, data_type, initial_dims: unknown_is_one(), dims, initial_file: None });
    };
    if let Some((_, at)) = initials.next() {
        return wrong(at, format_args!("{shown} has more than one initial_state"));
    }
    if initial.text("name").is_empty() {
        return wrong(at, format_args!("{shown}: field 'name' must be set when using initial_state"));
    }
    if DataType::from_config_name(initial.text("data_type")) != Some(data_type) {
        let position = if initial.get("data_type").is_some() { initial.position_of("data_type") } else { at };
        let text =
            format!("{shown}: the data type of initial_state does not match the state's {}", data_type.config_name());
        return wrong(position, text);
    }
    let shown_initial = format!("{shown}: initial_state");
    let initial_dims = self::dims(initial, &shown_initial, 1)?;
    let fits = |(given, wanted): (&i64, &i64)| *wanted == -1 || given == wanted;
    if initial_dims.len() != dims.len() || !initial_dims.iter().zip(&dims).all(fits) {
        let text = format!("{shown_initial} has dims {initial_dims:?}, but the state's are {dims:?}");
        return wrong(initial.position_of("dims"), text);
    }
    let initial_file = match (initial.get("zero_data").is_some(), initial.get("data_file").is_some()) {
        (true, _) => None,
        (_, true) => {
            let file = initial.text("data_file");
            if file.is_empty() || !stays_inside(file) {
                let text =
                    format!("{shown}: data_file {} must name a file in the model's {FOLDER} folder", quoted(file));
                return wrong(initial.position_of("data_file"), text);
            }
            Some(file.to_owned())
        }
        _ => return wrong(at, format_args!("{shown_initial} must have one of zero_data and data_file")),
    };
    Ok(State { input, output, data_type, dims, initial_dims, initial_file })
}

/// Dims that are all at least 1, or -1 where that is the `least`.
fn dims(message: &Message, shown: &str, least: i64) -> Result<Vec<i64>, ConfigError> {
    for item in message.items("dims") {
        match item.value {
            Value::Int(dim) if dim < 1 && (dim != -1 || least > 0) => {
                let or_any = if least > 0 { "" } else { ", or -1 for any size" };
                return wrong(item.position, format_args!("{shown}: dimension {dim} must be at least 1{or_any}"));
            }
            _ => {}
        }
    }
    Ok(message.ints("dims").collect())
}

/// Checks that names and kinds are given once, and sizes fit the batch.
pub(super) fn validate(config: &ModelConfig) -> Result<(), ConfigError> {
    let (Some(batching), Some(written)) = (&config.sequence_batching, config.message().message("sequence_batching"))
    else {
        return Ok(());
    };
    let mut inputs: HashSet<&str> = config.inputs.iter().map(|input| input.name.as_str()).collect();
    let mut kinds = HashSet::new();
    for ((_, at), control) in written.messages("control_input").zip(&batching.controls) {
        if !inputs.insert(&control.name) {
            let text = "is given twice, or is an input of callers";
            return wrong(at, format_args!("control_input {} {text}", quoted(&control.name)));
        }
        if !kinds.insert(std::mem::discriminant(&control.kind)) {
            let text = "is of a control kind that another one has already";
            return wrong(at, format_args!("control_input {} {text}", quoted(&control.name)));
        }
    }
    let mut outputs = HashSet::new();
    for ((_, at), state) in written.messages("state").zip(&batching.states) {
        if !inputs.insert(&state.input) {
            let text = "is given twice, or is an input of callers or a control_input";
            return wrong(at, format_args!("state input_name {} {text}", quoted(&state.input)));
        }
        if !outputs.insert(&state.output) {
            return wrong(at, format_args!("state output_name {} is given twice", quoted(&state.output)));
        }
        let shared = config.outputs.iter().find(|output| output.name == state.output);
        if let Some(output) = shared
            && (output.data_type != state.data_type || output.runtime_dims() != state.dims)
        {
            let text = "is an output of callers too, with another data_type or other dims";
            return wrong(at, format_args!("state output_name {} {text}", quoted(&state.output)));
        }
    }
    if config.decoupled && !batching.states.is_empty() {
        let text = "a decoupled model has no one answer to take the state from";
        return Err(ConfigError::unsupported(written.position_of("state"), format!("sequence_batching: {text}")));
    }
    if let Some(input) = config.inputs.iter().find(|input| input.allow_ragged_batch) {
        let text = format!("sequence_batching: input {}: allow_ragged_batch is not for sequences", quoted(&input.name));
        return Err(ConfigError::unsupported(written.position_of("direct"), text));
    }
    let Strategy::Oldest { preferred_batch_sizes, .. } = &batching.strategy else { return Ok(()) };
    let Some(oldest) = written.message("oldest") else { return Ok(()) };
    for (size, item) in preferred_batch_sizes.iter().zip(oldest.items("preferred_batch_size")) {
        if *size > config.max_batch_size {
            let text = format!("preferred_batch_size {size} is above max_batch_size {}", config.max_batch_size);
            return wrong(item.position, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

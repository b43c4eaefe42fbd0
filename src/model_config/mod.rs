//! The configuration of a model: Triton's `config.pbtxt`, read against the whole public schema, checked, and completed
//! from what the runtime says of the model.
//!
//! A text becomes a [`message::Message`] (`text`), which is checked (`validate`, `support`) and read into the typed
//! [`ModelConfig`] (`read`); `complete` adds what the configuration leaves open. JSON enters at [`from_message`].
//!
//! *Architecture invariant:* the tree is the truth and the typed fields are read from it, so nothing that was written
//! is lost; and no field of the schema is silently without effect: `support` names each that is not offered.

#[cfg(test)]
pub(crate) mod arbitrary;
pub mod complete;
pub mod diagnostic;
pub mod ensemble;
pub mod image;
pub mod message;
pub mod optimization;
pub mod ragged;
mod read;
mod response_cache;
mod same;
pub mod schema;
pub mod sequence;
mod support;
pub mod text;
mod validate;
pub mod warm_up;

use std::collections::BTreeMap;
use std::time::Duration;

use self::diagnostic::{ConfigError, ConfigWarning};
use self::ensemble::EnsembleScheduling;
use self::image::ImageInput;
use self::message::{Message, Value};
use self::optimization::Optimization;
use self::ragged::{BatchInput, BatchOutput};
use self::sequence::SequenceBatching;
use self::warm_up::WarmUp;
use crate::inference::Version;
use crate::tensor::DataType;

/// What to do with fields outside the schema, such as those of a release newer than it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// They are an error.
    #[default]
    Deny,
    /// They are skipped with a warning.
    Warn,
}

/// A configuration that passed the checks.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The configuration.
    pub config: ModelConfig,
    /// What in it is accepted but has no effect, in the order of the text.
    pub warnings: Vec<ConfigWarning>,
}

/// Reads and checks the text of a `config.pbtxt`.
///
/// # Errors
/// The first fault, with its place: `InvalidArgument` for text that is wrong, `Unsupported` for fields that ask for
/// what is not offered, `TooLarge` over a limit of [`text`].
pub fn parse(text: &str, unknown: UnknownFields) -> Result<Parsed, ConfigError> {
    let (message, mut warnings) = text::read(text, &schema::MODEL_CONFIG, unknown)?;
    let mut parsed = from_message(message)?;
    warnings.append(&mut parsed.warnings);
    warnings.sort_by_key(|warning| (warning.line, warning.column));
    Ok(Parsed { warnings, ..parsed })
}

/// Checks a configuration that came as a tree of [`schema::MODEL_CONFIG`], from JSON for instance.
///
/// # Errors
/// As [`parse`].
pub fn from_message(message: Message) -> Result<Parsed, ConfigError> {
    let config = ModelConfig::read(message)?;
    validate::validate(&config)?;
    warm_up::validate(&config)?;
    let mut warnings = support::check(config.message())?;
    warnings.extend(response_cache::warning(config.message()));
    warnings.extend(ensemble::warnings(config.message()));
    Ok(Parsed { config, warnings })
}

/// A model's configuration. The fields are those the server acts on; [`ModelConfig::message`] has all of them.
///
/// The fields are read from the tree and change only with it, through [`ModelConfig::complete`] and
/// [`ModelConfig::normalize`].
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The model's name; may be empty, and is not what the model is known by (that is its key in the repository).
    pub name: String,
    /// The older way to name the backend, kept for the metadata; may be empty.
    pub platform: String,
    /// The backend, derived from the platform where only that is given; empty where neither is.
    pub backend: String,
    /// Which versions are served.
    pub version_policy: VersionPolicy,
    /// The largest batch, in items. Above 0 every tensor has a leading batch dimension that `dims` leaves out; at 0 the
    /// dims are the whole shape.
    pub max_batch_size: u32,
    /// The inputs, in the order written.
    pub inputs: Vec<ModelInput>,
    /// The outputs, in the order written.
    pub outputs: Vec<ModelOutput>,
    /// Tensors that the model gets beside its inputs, made of the whole batch.
    pub batch_inputs: Vec<BatchInput>,
    /// Outputs that are split by the shapes of inputs.
    pub batch_outputs: Vec<BatchOutput>,
    /// The groups of instances; empty until [`ModelConfig::normalize`] if none is written.
    pub instance_groups: Vec<InstanceGroup>,
    /// How requests are batched, if they are to be.
    pub dynamic_batching: Option<DynamicBatching>,
    /// How requests of sequences are kept together, if they are to be.
    pub sequence_batching: Option<SequenceBatching>,
    /// The models it is made of, if it is an ensemble.
    pub ensemble: Option<EnsembleScheduling>,
    /// The model's file in a version folder; empty for the backend's usual one.
    pub default_model_filename: String,
    /// Parameters for the backend.
    pub parameters: BTreeMap<String, String>,
    /// Whether a request may have any number of answers.
    pub decoupled: bool,
    /// What the runtime is asked to do for speed.
    pub optimization: Optimization,
    /// Requests that each instance answers before the model is ready.
    pub warm_ups: Vec<WarmUp>,
    /// Whether answers are kept and given again to the same question.
    pub response_cache: bool,
    /// The input for which clients send pixels, once the inputs are known.
    pub image_input: Option<ImageInput>,
    message: Message,
}

impl ModelConfig {
    /// A configuration that names the model and its backend, and leaves the rest to [`ModelConfig::complete`].
    #[must_use]
    pub fn minimal(name: &str, backend: &str) -> Self {
        let mut config = Self::default();
        config.message.set_one("name", Value::String(name.to_owned()));
        config.message.set_one("backend", Value::String(backend.to_owned()));
        config.name = name.to_owned();
        config.backend = backend.to_owned();
        config
    }

    /// Names the backend, where the configuration did not.
    pub fn set_backend(&mut self, backend: &str) {
        self.message.set_one("backend", Value::String(backend.to_owned()));
        backend.clone_into(&mut self.backend);
    }

    /// Names the model after its key, where the configuration did not.
    pub fn set_name_if_empty(&mut self, name: &str) {
        if self.name.is_empty() {
            self.message.set_one("name", Value::String(name.to_owned()));
            name.clone_into(&mut self.name);
        }
    }

    /// Every field as it was written or filled in.
    #[must_use]
    pub const fn message(&self) -> &Message {
        &self.message
    }

    /// Whether answers leave in the order of their requests.
    #[must_use]
    pub fn preserves_ordering(&self) -> bool {
        let of_sequences = self.sequence_batching.as_ref().is_some_and(|batching| {
            matches!(batching.strategy, sequence::Strategy::Oldest { preserve_ordering: true, .. })
        });
        of_sequences || self.dynamic_batching.as_ref().is_some_and(|batching| batching.preserve_ordering)
    }

    /// The shape that clients send or get for a tensor of these dims: with the batch dimension, if there is one.
    #[must_use]
    pub fn metadata_dims(&self, dims: &[i64]) -> Vec<i64> {
        let batch = (self.max_batch_size > 0).then_some(-1);
        batch.into_iter().chain(dims.iter().copied()).collect()
    }

    /// The type and the shape that clients send for an input: what the model takes, or the pixels that it is made of.
    #[must_use]
    pub fn sent(&self, input: &ModelInput) -> (DataType, Vec<i64>) {
        match self.image_input.as_ref().filter(|image| image.name == input.name) {
            Some(image) => (DataType::Uint8, image.dims(self.max_batch_size > 0)),
            None => (input.data_type, self.metadata_dims(&input.dims)),
        }
    }
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            platform: String::new(),
            backend: String::new(),
            version_policy: VersionPolicy::default(),
            max_batch_size: 0,
            inputs: Vec::new(),
            outputs: Vec::new(),
            batch_inputs: Vec::new(),
            batch_outputs: Vec::new(),
            instance_groups: Vec::new(),
            dynamic_batching: None,
            sequence_batching: None,
            ensemble: None,
            default_model_filename: String::new(),
            parameters: BTreeMap::new(),
            decoupled: false,
            optimization: Optimization::default(),
            warm_ups: Vec::new(),
            response_cache: false,
            image_input: None,
            message: Message::new(&schema::MODEL_CONFIG),
        }
    }
}

/// An input of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInput {
    /// The name.
    pub name: String,
    /// The element type.
    pub data_type: DataType,
    /// The shape without the batch dimension; -1 for any size.
    pub dims: Vec<i64>,
    /// The shape the runtime is given instead, of as many elements.
    pub reshape: Option<Vec<i64>>,
    /// Whether requests may leave it out.
    pub optional: bool,
    /// Whether requests of different shapes may share a batch.
    pub allow_ragged_batch: bool,
}

impl ModelInput {
    /// The shape at the runtime, without the batch dimension.
    #[must_use]
    pub fn runtime_dims(&self) -> &[i64] {
        self.reshape.as_deref().unwrap_or(&self.dims)
    }
}

/// An output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOutput {
    /// The name.
    pub name: String,
    /// The element type.
    pub data_type: DataType,
    /// The shape without the batch dimension; -1 for any size.
    pub dims: Vec<i64>,
    /// The shape the runtime gives instead, of as many elements.
    pub reshape: Option<Vec<i64>>,
    /// A file in the model's folder with one class name a line; empty for none.
    pub label_filename: String,
}

impl ModelOutput {
    /// The shape at the runtime, without the batch dimension.
    #[must_use]
    pub fn runtime_dims(&self) -> &[i64] {
        self.reshape.as_deref().unwrap_or(&self.dims)
    }
}

/// Which versions of a model are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VersionPolicy {
    /// So many of the highest numbers.
    Latest(u32),
    /// All of them.
    All,
    /// These.
    Specific(Vec<Version>),
}

impl Default for VersionPolicy {
    fn default() -> Self {
        Self::Latest(1)
    }
}

/// Instances of a model that share a kind of device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceGroup {
    /// The name; may be empty until [`ModelConfig::normalize`].
    pub name: String,
    /// The kind of device.
    pub kind: InstanceKind,
    /// How many instances: on each GPU, or in all on the CPU. At least 1.
    pub count: u32,
    /// The GPUs by number; empty for all.
    pub gpus: Vec<u32>,
    /// What its runs take of what others want too.
    pub rate_limiter: RateLimiter,
}

/// What an instance's runs take while they last, and how they count (`ModelRateLimiter`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RateLimiter {
    /// What a run needs; counted where the server limits rates.
    pub resources: Vec<RateLimiterResource>,
    /// A share of one `priority`th of an ordinary one; 0 is as good as 1.
    pub priority: u32,
}

/// Something that runs take of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimiterResource {
    /// Its name.
    pub name: String,
    /// Whether all devices share it; each has its own otherwise.
    pub global: bool,
    /// How much a run takes.
    pub count: u32,
}

/// Where instances run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum InstanceKind {
    /// On GPUs if those asked for are there, else on the CPU.
    #[default]
    Auto,
    /// On GPUs.
    Gpu,
    /// On the CPU.
    Cpu,
    /// Where the model or its backend says.
    Model,
}

impl InstanceKind {
    /// The name in `config.pbtxt`.
    #[must_use]
    pub const fn config_name(self) -> &'static str {
        match self {
            Self::Auto => "KIND_AUTO",
            Self::Gpu => "KIND_GPU",
            Self::Cpu => "KIND_CPU",
            Self::Model => "KIND_MODEL",
        }
    }
}

/// How requests are gathered into batches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DynamicBatching {
    /// Batch sizes, in items, that run as soon as they can be formed; empty for the largest alone.
    pub preferred_batch_sizes: Vec<u32>,
    /// How long a request may wait for others.
    pub max_queue_delay: Duration,
    /// Whether answers leave in the order of their requests.
    pub preserve_ordering: bool,
    /// How many priorities there are, 1 being the highest; 0 for none.
    pub priority_levels: u64,
    /// The priority of a request that names none.
    pub default_priority_level: u64,
    /// The queue of requests without a priority, and of priorities without a policy of their own.
    pub default_queue_policy: QueuePolicy,
    /// Policies by priority.
    pub priority_queue_policies: BTreeMap<u64, QueuePolicy>,
}

/// How a queue of requests is bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuePolicy {
    /// What becomes of a request whose time is over.
    pub timeout_action: TimeoutAction,
    /// How long a request may wait; zero for no limit.
    pub default_timeout: Duration,
    /// Whether a request may ask for a shorter time.
    pub allow_timeout_override: bool,
    /// How many requests may wait; 0 for no limit of the model's own.
    pub max_queue_size: u32,
}

/// What becomes of a request that waited too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeoutAction {
    /// It is answered with an error.
    #[default]
    Reject,
    /// It goes behind all requests that are still in time.
    Delay,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const EVERYTHING_SUPPORTED: &str = r#"
        name: "resnet"  # the folder's name counts
        platform: "onnxruntime_onnx"
        max_batch_size: 8
        input [ { name: "data", data_type: TYPE_FP32, dims: [ 3, -1 ], optional: true } ]
        output { name: "prob" data_type: TYPE_FP32 dims: 1000 reshape { shape: [ 10, 100 ] }
                 label_filename: "labels.txt" }
        version_policy: { specific { versions: [ 3, 1, 3 ] } }
        instance_group [ { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] } ]
        default_model_filename: "net.onnx"
        parameters { key: "intra_op_thread_count" value { string_value: "4" } }
    "#;

    #[test]
    fn a_whole_configuration_is_read() {
        let parsed = parse(EVERYTHING_SUPPORTED, UnknownFields::Deny).unwrap();
        assert_eq!(parsed.warnings, []);
        let config = parsed.config;
        assert_eq!((config.backend.as_str(), config.max_batch_size), ("onnxruntime", 8));
        assert_eq!(config.version_policy, VersionPolicy::Specific(vec![1, 3]));
        let group = InstanceGroup {
            name: String::new(),
            kind: InstanceKind::Gpu,
            count: 2,
            gpus: vec![0, 1],
            rate_limiter: RateLimiter::default(),
        };
        assert_eq!(config.instance_groups, [group]);
        assert_eq!(config.parameters["intra_op_thread_count"], "4");
        assert_eq!(config.inputs[0].dims, [3, -1]);
        assert!(config.inputs[0].optional);
        assert_eq!(config.outputs[0].runtime_dims(), [10, 100]);
        assert_eq!(config.outputs[0].label_filename, "labels.txt");
        assert_eq!(config.default_model_filename, "net.onnx");
    }

    #[test]
    fn batching_is_read() {
        let text = "max_batch_size: 8
            dynamic_batching { preferred_batch_size: [4, 8] max_queue_delay_microseconds: 100
            default_queue_policy { max_queue_size: 5 default_timeout_microseconds: 1000 timeout_action: DELAY }
            priority_levels: 2 default_priority_level: 1
            priority_queue_policy { key: 2 value { max_queue_size: 1 } } }";
        let parsed = parse(text, UnknownFields::Deny).unwrap();
        let batching = parsed.config.dynamic_batching.unwrap();
        assert_eq!(batching.preferred_batch_sizes, [4, 8]);
        assert_eq!(batching.max_queue_delay, Duration::from_micros(100));
        assert_eq!(batching.default_queue_policy.max_queue_size, 5);
        assert_eq!(batching.default_queue_policy.default_timeout, Duration::from_millis(1));
        assert_eq!(batching.default_queue_policy.timeout_action, TimeoutAction::Delay);
        assert_eq!(batching.priority_queue_policies[&2].max_queue_size, 1);
        assert_eq!(parsed.warnings, []);
    }

    #[test]
    fn an_empty_text_is_an_empty_configuration() {
        let parsed = parse(" # nothing\n", UnknownFields::Deny).unwrap();
        assert_eq!(parsed.config, ModelConfig::default());
    }

    #[test]
    fn unknown_fields_are_an_error_or_a_warning_as_asked() {
        let text = "name: 'a' brand_new { x: 1 }";
        assert_eq!(parse(text, UnknownFields::Deny).unwrap_err().kind, ErrorKind::InvalidArgument);
        assert_eq!(parse(text, UnknownFields::Warn).unwrap().warnings.len(), 1);
    }
}

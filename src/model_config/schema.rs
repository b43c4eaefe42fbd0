//! The model configuration schema of Triton as static tables, in the order in which Triton prints the fields.
//!
//! Source: the published descriptor of package `inference` (`model_config.proto`) as the 2.73 release has it.

use std::fmt;

use self::FieldType::{Bool, Double, Enum, Float, Int32, Int64, String as Text, Uint32, Uint64};
use super::diagnostic::{nearest, quoted};

/// A message: a name and its fields.
pub struct MessageSchema {
    /// The name in the schema, without the package (`ModelVersionPolicy.Latest`).
    pub name: &'static str,
    /// The fields in declared order.
    pub fields: &'static [FieldSchema],
}

impl MessageSchema {
    /// The field of that name.
    #[must_use]
    pub fn field(&'static self, name: &str) -> Option<&'static FieldSchema> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// What to say of a field that the message does not have.
    #[must_use]
    pub fn unknown_field(&self, name: &str) -> String {
        let mut text = format!("unknown field {} in {}", quoted(name), self.name);
        if let Some(near) = nearest(name, self.fields.iter().map(|field| field.name)) {
            text.push_str(&format!(", did you mean '{near}'?"));
        }
        text
    }
}

/// The name alone: the whole would be printed with every message of a tree.
impl fmt::Debug for MessageSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for MessageSchema {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// A field of a message.
#[derive(Debug)]
pub struct FieldSchema {
    /// The name in configurations.
    pub name: &'static str,
    /// The type of its value, of each value if repeated, of the values if a map.
    pub field_type: FieldType,
    /// How many values it takes.
    pub cardinality: Cardinality,
    /// The group of fields of which at most one may be given.
    pub oneof: Option<&'static str>,
}

impl FieldSchema {
    const fn new(name: &'static str, field_type: FieldType, cardinality: Cardinality) -> Self {
        Self { name, field_type, cardinality, oneof: None }
    }

    const fn of(self, oneof: &'static str) -> Self {
        Self { oneof: Some(oneof), ..self }
    }
}

/// How many values a field takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cardinality {
    /// At most one.
    Singular,
    /// Any number, in order.
    Repeated,
    /// Any number under distinct keys.
    Map(KeyType),
}

/// The type of a map's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// A text.
    String,
    /// An unsigned integer of 64 bits.
    Uint64,
}

/// The type of a value. The default of each is zero, empty, false, or the first name of an enum.
#[derive(Clone, Copy, Debug)]
pub enum FieldType {
    /// `true` or `false`.
    Bool,
    /// 32 bits signed.
    Int32,
    /// 64 bits signed.
    Int64,
    /// 32 bits unsigned.
    Uint32,
    /// 64 bits unsigned.
    Uint64,
    /// IEEE single precision.
    Float,
    /// IEEE double precision.
    Double,
    /// A text.
    String,
    /// One of a list of names.
    Enum(&'static EnumSchema),
    /// Fields of its own.
    Message(&'static MessageSchema),
}

impl FieldType {
    /// The name of the type as the schema writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Bool => "bool",
            Int32 => "int32",
            Int64 => "int64",
            Uint32 => "uint32",
            Uint64 => "uint64",
            Float => "float",
            Double => "double",
            Text => "string",
            Enum(schema) => schema.name,
            Self::Message(schema) => schema.name,
        }
    }
}

/// An enum: the names in the order of their numbers, which count from 0 without a gap.
pub struct EnumSchema {
    /// The name in the schema.
    pub name: &'static str,
    /// The names of its values; the index is the number.
    pub values: &'static [&'static str],
}

impl fmt::Debug for EnumSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const fn one(name: &'static str, field_type: FieldType) -> FieldSchema {
    FieldSchema::new(name, field_type, Cardinality::Singular)
}

const fn many(name: &'static str, field_type: FieldType) -> FieldSchema {
    FieldSchema::new(name, field_type, Cardinality::Repeated)
}

const fn map(name: &'static str, field_type: FieldType) -> FieldSchema {
    FieldSchema::new(name, field_type, Cardinality::Map(KeyType::String))
}

const fn message(name: &'static str, schema: &'static MessageSchema) -> FieldSchema {
    one(name, FieldType::Message(schema))
}

const fn messages(name: &'static str, schema: &'static MessageSchema) -> FieldSchema {
    many(name, FieldType::Message(schema))
}

macro_rules! message_schemas {
    ($($(#[$attribute:meta])* $visibility:vis $ident:ident = $name:literal [ $($field:expr),* $(,)? ];)*) => {
        $($(#[$attribute])* $visibility static $ident: MessageSchema =
            MessageSchema { name: $name, fields: &[$($field),*] };)*
    };
}

macro_rules! enum_schemas {
    ($($ident:ident = $name:literal [ $($value:literal),* $(,)? ];)*) => {
        $(static $ident: EnumSchema = EnumSchema { name: $name, values: &[$($value),*] };)*
    };
}

enum_schemas! {
    DATA_TYPE = "DataType" [
        "TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8",
        "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16",
    ];
    INSTANCE_KIND = "ModelInstanceGroup.Kind" ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"];
    SECONDARY_DEVICE_KIND = "ModelInstanceGroup.SecondaryDevice.SecondaryDeviceKind" ["KIND_NVDLA"];
    FORMAT = "ModelInput.Format" ["FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW"];
    BATCH_INPUT_KIND = "BatchInput.Kind" [
        "BATCH_ELEMENT_COUNT", "BATCH_ACCUMULATED_ELEMENT_COUNT", "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
        "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", "BATCH_ITEM_SHAPE", "BATCH_ITEM_SHAPE_FLATTEN",
    ];
    BATCH_OUTPUT_KIND = "BatchOutput.Kind" ["BATCH_SCATTER_WITH_INPUT_SHAPE"];
    MODEL_PRIORITY = "ModelOptimizationPolicy.ModelPriority" ["PRIORITY_DEFAULT", "PRIORITY_MAX", "PRIORITY_MIN"];
    TIMEOUT_ACTION = "ModelQueuePolicy.TimeoutAction" ["REJECT", "DELAY"];
    CONTROL_KIND = "ModelSequenceBatching.Control.Kind" [
        "CONTROL_SEQUENCE_START", "CONTROL_SEQUENCE_READY", "CONTROL_SEQUENCE_END", "CONTROL_SEQUENCE_CORRID",
    ];
}

message_schemas! {
    /// The root: a model's configuration.
    pub MODEL_CONFIG = "ModelConfig" [
        one("name", Text),
        one("platform", Text),
        one("backend", Text),
        one("runtime", Text),
        message("version_policy", &VERSION_POLICY),
        one("max_batch_size", Int32),
        messages("input", &INPUT),
        messages("output", &OUTPUT),
        messages("batch_input", &BATCH_INPUT),
        messages("batch_output", &BATCH_OUTPUT),
        message("optimization", &OPTIMIZATION),
        message("dynamic_batching", &DYNAMIC_BATCHING).of("scheduling_choice"),
        message("sequence_batching", &SEQUENCE_BATCHING).of("scheduling_choice"),
        message("ensemble_scheduling", &ENSEMBLE).of("scheduling_choice"),
        messages("instance_group", &INSTANCE_GROUP),
        one("default_model_filename", Text),
        map("cc_model_filenames", Text),
        map("metric_tags", Text),
        map("parameters", FieldType::Message(&PARAMETER)),
        messages("model_warmup", &WARMUP),
        message("model_operations", &OPERATIONS),
        message("model_transaction_policy", &TRANSACTION_POLICY),
        message("model_repository_agents", &REPOSITORY_AGENTS),
        message("response_cache", &RESPONSE_CACHE),
        message("model_metrics", &METRICS),
    ];

    VERSION_POLICY = "ModelVersionPolicy" [
        message("latest", &LATEST).of("policy_choice"),
        message("all", &ALL).of("policy_choice"),
        message("specific", &SPECIFIC).of("policy_choice"),
    ];
    LATEST = "ModelVersionPolicy.Latest" [one("num_versions", Uint32)];
    ALL = "ModelVersionPolicy.All" [];
    SPECIFIC = "ModelVersionPolicy.Specific" [many("versions", Int64)];

    INPUT = "ModelInput" [
        one("name", Text),
        one("data_type", Enum(&DATA_TYPE)),
        one("format", Enum(&FORMAT)),
        many("dims", Int64),
        message("reshape", &RESHAPE),
        one("is_shape_tensor", Bool),
        one("allow_ragged_batch", Bool),
        one("optional", Bool),
        one("is_non_linear_format_io", Bool),
    ];
    OUTPUT = "ModelOutput" [
        one("name", Text),
        one("data_type", Enum(&DATA_TYPE)),
        many("dims", Int64),
        message("reshape", &RESHAPE),
        one("label_filename", Text),
        one("is_shape_tensor", Bool),
        one("is_non_linear_format_io", Bool),
    ];
    RESHAPE = "ModelTensorReshape" [many("shape", Int64)];
    BATCH_INPUT = "BatchInput" [
        one("kind", Enum(&BATCH_INPUT_KIND)),
        many("target_name", Text),
        one("data_type", Enum(&DATA_TYPE)),
        many("source_input", Text),
    ];
    BATCH_OUTPUT = "BatchOutput" [
        many("target_name", Text),
        one("kind", Enum(&BATCH_OUTPUT_KIND)),
        many("source_input", Text),
    ];

    OPTIMIZATION = "ModelOptimizationPolicy" [
        message("graph", &GRAPH),
        one("priority", Enum(&MODEL_PRIORITY)),
        message("cuda", &CUDA),
        message("execution_accelerators", &EXECUTION_ACCELERATORS),
        message("input_pinned_memory", &PINNED_MEMORY),
        message("output_pinned_memory", &PINNED_MEMORY),
        one("gather_kernel_buffer_threshold", Uint32),
        one("eager_batching", Bool),
    ];
    GRAPH = "ModelOptimizationPolicy.Graph" [one("level", Int32)];
    CUDA = "ModelOptimizationPolicy.Cuda" [
        one("graphs", Bool),
        one("busy_wait_events", Bool),
        messages("graph_spec", &GRAPH_SPEC),
        one("output_copy_stream", Bool),
    ];
    GRAPH_SPEC = "ModelOptimizationPolicy.Cuda.GraphSpec" [
        one("batch_size", Int32),
        map("input", FieldType::Message(&GRAPH_SHAPE)),
        message("graph_lower_bound", &GRAPH_LOWER_BOUND),
    ];
    GRAPH_SHAPE = "ModelOptimizationPolicy.Cuda.GraphSpec.Shape" [many("dim", Int64)];
    GRAPH_LOWER_BOUND = "ModelOptimizationPolicy.Cuda.GraphSpec.LowerBound" [
        one("batch_size", Int32),
        map("input", FieldType::Message(&GRAPH_SHAPE)),
    ];
    EXECUTION_ACCELERATORS = "ModelOptimizationPolicy.ExecutionAccelerators" [
        messages("gpu_execution_accelerator", &ACCELERATOR),
        messages("cpu_execution_accelerator", &ACCELERATOR),
    ];
    ACCELERATOR = "ModelOptimizationPolicy.ExecutionAccelerators.Accelerator" [
        one("name", Text),
        map("parameters", Text),
    ];
    PINNED_MEMORY = "ModelOptimizationPolicy.PinnedMemoryBuffer" [one("enable", Bool)];

    DYNAMIC_BATCHING = "ModelDynamicBatching" [
        many("preferred_batch_size", Int32),
        one("max_queue_delay_microseconds", Uint64),
        one("preserve_ordering", Bool),
        one("priority_levels", Uint64),
        one("default_priority_level", Uint64),
        message("default_queue_policy", &QUEUE_POLICY),
        FieldSchema::new(
            "priority_queue_policy",
            FieldType::Message(&QUEUE_POLICY),
            Cardinality::Map(KeyType::Uint64),
        ),
    ];
    QUEUE_POLICY = "ModelQueuePolicy" [
        one("timeout_action", Enum(&TIMEOUT_ACTION)),
        one("default_timeout_microseconds", Uint64),
        one("allow_timeout_override", Bool),
        one("max_queue_size", Uint32),
    ];

    SEQUENCE_BATCHING = "ModelSequenceBatching" [
        message("direct", &STRATEGY_DIRECT).of("strategy_choice"),
        message("oldest", &STRATEGY_OLDEST).of("strategy_choice"),
        one("max_sequence_idle_microseconds", Uint64),
        messages("control_input", &CONTROL_INPUT),
        messages("state", &STATE),
        one("iterative_sequence", Bool),
    ];
    CONTROL_INPUT = "ModelSequenceBatching.ControlInput" [one("name", Text), messages("control", &CONTROL)];
    CONTROL = "ModelSequenceBatching.Control" [
        one("kind", Enum(&CONTROL_KIND)),
        many("int32_false_true", Int32),
        many("fp32_false_true", Float),
        many("bool_false_true", Bool),
        one("data_type", Enum(&DATA_TYPE)),
    ];
    STATE = "ModelSequenceBatching.State" [
        one("input_name", Text),
        one("output_name", Text),
        one("data_type", Enum(&DATA_TYPE)),
        many("dims", Int64),
        messages("initial_state", &INITIAL_STATE),
        one("use_same_buffer_for_input_output", Bool),
        one("use_growable_memory", Bool),
    ];
    INITIAL_STATE = "ModelSequenceBatching.InitialState" [
        one("data_type", Enum(&DATA_TYPE)),
        many("dims", Int64),
        one("zero_data", Bool).of("state_data"),
        one("data_file", Text).of("state_data"),
        one("name", Text),
    ];
    STRATEGY_DIRECT = "ModelSequenceBatching.StrategyDirect" [
        one("max_queue_delay_microseconds", Uint64),
        one("minimum_slot_utilization", Float),
    ];
    STRATEGY_OLDEST = "ModelSequenceBatching.StrategyOldest" [
        one("max_candidate_sequences", Int32),
        many("preferred_batch_size", Int32),
        one("max_queue_delay_microseconds", Uint64),
        one("preserve_ordering", Bool),
    ];

    ENSEMBLE = "ModelEnsembling" [messages("step", &ENSEMBLE_STEP), one("max_inflight_requests", Uint32)];
    ENSEMBLE_STEP = "ModelEnsembling.Step" [
        one("model_name", Text),
        one("model_version", Int64),
        map("input_map", Text),
        map("output_map", Text),
        one("model_namespace", Text),
    ];

    INSTANCE_GROUP = "ModelInstanceGroup" [
        one("name", Text),
        one("kind", Enum(&INSTANCE_KIND)),
        one("count", Int32),
        message("rate_limiter", &RATE_LIMITER),
        many("gpus", Int32),
        messages("secondary_devices", &SECONDARY_DEVICE),
        many("profile", Text),
        one("passive", Bool),
        one("host_policy", Text),
    ];
    SECONDARY_DEVICE = "ModelInstanceGroup.SecondaryDevice" [
        one("kind", Enum(&SECONDARY_DEVICE_KIND)),
        one("device_id", Int64),
    ];
    RATE_LIMITER = "ModelRateLimiter" [messages("resources", &RESOURCE), one("priority", Uint32)];
    RESOURCE = "ModelRateLimiter.Resource" [one("name", Text), one("global", Bool), one("count", Uint32)];

    PARAMETER = "ModelParameter" [one("string_value", Text)];
    WARMUP = "ModelWarmup" [
        one("name", Text),
        one("batch_size", Uint32),
        map("inputs", FieldType::Message(&WARMUP_INPUT)),
        one("count", Uint32),
    ];
    WARMUP_INPUT = "ModelWarmup.Input" [
        one("data_type", Enum(&DATA_TYPE)),
        many("dims", Int64),
        one("zero_data", Bool).of("input_data_type"),
        one("random_data", Bool).of("input_data_type"),
        one("input_data_file", Text).of("input_data_type"),
    ];
    OPERATIONS = "ModelOperations" [many("op_library_filename", Text)];
    TRANSACTION_POLICY = "ModelTransactionPolicy" [one("decoupled", Bool)];
    REPOSITORY_AGENTS = "ModelRepositoryAgents" [messages("agents", &AGENT)];
    AGENT = "ModelRepositoryAgents.Agent" [one("name", Text), map("parameters", Text)];
    RESPONSE_CACHE = "ModelResponseCache" [one("enable", Bool)];
    METRICS = "ModelMetrics" [messages("metric_control", &METRIC_CONTROL)];
    METRIC_CONTROL = "ModelMetrics.MetricControl" [
        message("metric_identifier", &METRIC_IDENTIFIER),
        message("histogram_options", &HISTOGRAM_OPTIONS).of("metric_options"),
    ];
    METRIC_IDENTIFIER = "ModelMetrics.MetricControl.MetricIdentifier" [one("family", Text)];
    HISTOGRAM_OPTIONS = "ModelMetrics.MetricControl.HistogramOptions" [many("buckets", Double)];
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::tensor::DataType;

    fn visit(schema: &'static MessageSchema, seen: &mut HashSet<&'static str>) {
        if !seen.insert(schema.name) {
            return;
        }
        let names: HashSet<_> = schema.fields.iter().map(|field| field.name).collect();
        assert_eq!(names.len(), schema.fields.len(), "a field of {} stands twice", schema.name);
        for field in schema.fields {
            if let FieldType::Message(inner) = field.field_type {
                visit(inner, seen);
            }
        }
    }

    #[test]
    fn the_schema_has_every_message_and_no_field_twice() {
        let mut seen = HashSet::new();
        visit(&MODEL_CONFIG, &mut seen);
        assert_eq!(seen.len(), 46);
    }

    #[test]
    fn every_data_type_has_its_name_in_the_schema() {
        for data_type in DataType::ALL {
            assert!(DATA_TYPE.values.contains(&data_type.config_name()));
        }
        assert_eq!(DATA_TYPE.values.len(), DataType::ALL.len() + 1);
    }
}

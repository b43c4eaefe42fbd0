//! From the tree to the typed configuration. What a value alone can have wrong is found here; how values fit together
//! is `validate`'s.

use std::time::Duration;

use super::diagnostic::{ConfigError, Position, quoted};
use super::message::{MapKey, Message, Value};
use super::ragged::{read_batch_input, read_batch_output};
use super::{
    DynamicBatching, InstanceGroup, InstanceKind, ModelConfig, ModelInput, ModelOutput, QueuePolicy, RateLimiter,
    RateLimiterResource, TimeoutAction, VersionPolicy, ensemble, image, optimization, response_cache, sequence,
    warm_up,
};
use crate::inference::Version;
use crate::tensor::DataType;

impl ModelConfig {
    /// Reads the typed fields out of a tree of `ModelConfig`.
    pub(super) fn read(message: Message) -> Result<Self, ConfigError> {
        let mut config = Self {
            name: message.text("name").to_owned(),
            platform: message.text("platform").to_owned(),
            backend: message.text("backend").to_owned(),
            version_policy: version_policy(&message)?,
            max_batch_size: natural(&message, "max_batch_size", "max_batch_size")?,
            inputs: message.messages("input").map(|(input, at)| read_input(input, at)).collect::<Result<_, _>>()?,
            outputs: message
                .messages("output")
                .map(|(output, at)| read_output(output, at))
                .collect::<Result<_, _>>()?,
            batch_inputs: message
                .messages("batch_input")
                .map(|(input, at)| read_batch_input(input, at))
                .collect::<Result<_, _>>()?,
            batch_outputs: message
                .messages("batch_output")
                .map(|(output, at)| read_batch_output(output, at))
                .collect::<Result<_, _>>()?,
            instance_groups: message
                .messages("instance_group")
                .map(|(group, at)| instance_group(group, at))
                .collect::<Result<_, _>>()?,
            dynamic_batching: message.message("dynamic_batching").map(dynamic_batching).transpose()?,
            sequence_batching: sequence::read(&message)?,
            ensemble: ensemble::read(&message)?,
            default_model_filename: message.text("default_model_filename").to_owned(),
            parameters: message
                .entries("parameters")
                .filter_map(|(key, item)| match &item.value {
                    Value::Message(parameter) => Some((key.to_string(), parameter.text("string_value").to_owned())),
                    _ => None,
                })
                .collect(),
            decoupled: message.message("model_transaction_policy").is_some_and(|policy| policy.flag("decoupled")),
            optimization: optimization::read(&message)?,
            warm_ups: message
                .messages("model_warmup")
                .map(|(sample, at)| warm_up::read(sample, at))
                .collect::<Result<_, _>>()?,
            response_cache: response_cache::read(&message)?,
            image_input: None,
            message,
        };
        if config.backend.is_empty()
            && let Some(backend) = backend_of_platform(&config.platform)
        {
            config.message.set_one("backend", Value::String(backend.to_owned()));
            config.backend = backend.to_owned();
        }
        if config.ensemble.is_some() && config.platform.is_empty() && config.backend.is_empty() {
            config.message.set_one("platform", Value::String(ensemble::PLATFORM.to_owned()));
            ensemble::PLATFORM.clone_into(&mut config.platform);
        }
        config.image_input = image::read(&config)?;
        Ok(config)
    }
}

/// The platforms by which models named their backend before there was a field for it.
pub(super) const PLATFORMS: [(&str, &str); 5] = [
    ("onnxruntime_onnx", "onnxruntime"),
    ("pytorch_libtorch", "pytorch"),
    ("tensorrt_plan", "tensorrt"),
    ("tensorflow_graphdef", "tensorflow"),
    ("tensorflow_savedmodel", "tensorflow"),
];

/// The backend that a platform stands for.
pub(super) fn backend_of_platform(platform: &str) -> Option<&'static str> {
    PLATFORMS.iter().find(|(name, _)| *name == platform).map(|(_, backend)| *backend)
}

fn version_policy(config: &Message) -> Result<VersionPolicy, ConfigError> {
    let Some(policy) = config.message("version_policy") else { return Ok(VersionPolicy::default()) };
    if let Some(latest) = policy.message("latest") {
        let given = latest.get("num_versions").is_some();
        // Of 32 bits by its schema.
        let count = u32::try_from(latest.uint("num_versions")).unwrap_or(u32::MAX);
        if given && count == 0 {
            let position = latest.position_of("num_versions");
            return Err(ConfigError::invalid(position, "version_policy: num_versions must be at least 1"));
        }
        return Ok(VersionPolicy::Latest(count.max(1)));
    }
    if policy.get("all").is_some() {
        return Ok(VersionPolicy::All);
    }
    let Some(specific) = policy.message("specific") else {
        let position = config.position_of("version_policy");
        return Err(ConfigError::invalid(position, "version_policy must have one of latest, all and specific"));
    };
    let mut versions: Vec<Version> = Vec::new();
    for item in specific.items("versions") {
        match item.value {
            Value::Int(number) if number >= 1 => versions.push(number.unsigned_abs()),
            _ => return Err(ConfigError::invalid(item.position, "version_policy: a version is a number from 1")),
        }
    }
    if versions.is_empty() {
        let position = policy.position_of("specific");
        return Err(ConfigError::invalid(position, "version_policy: specific must list at least one version"));
    }
    versions.sort_unstable();
    versions.dedup();
    Ok(VersionPolicy::Specific(versions))
}

fn read_input(input: &Message, position: Position) -> Result<ModelInput, ConfigError> {
    let (name, data_type, dims, reshape) = read_tensor("input", input, position)?;
    Ok(ModelInput {
        name,
        data_type,
        dims,
        reshape,
        optional: input.flag("optional"),
        allow_ragged_batch: input.flag("allow_ragged_batch"),
    })
}

fn read_output(output: &Message, position: Position) -> Result<ModelOutput, ConfigError> {
    let (name, data_type, dims, reshape) = read_tensor("output", output, position)?;
    Ok(ModelOutput { name, data_type, dims, reshape, label_filename: output.text("label_filename").to_owned() })
}

type TensorFields = (String, DataType, Vec<i64>, Option<Vec<i64>>);

/// What inputs and outputs have in common.
fn read_tensor(role: &str, tensor: &Message, position: Position) -> Result<TensorFields, ConfigError> {
    let name = tensor.text("name").to_owned();
    if name.is_empty() {
        return Err(ConfigError::invalid(position, format!("an {role} has no name")));
    }
    let shown = format!("{role} {}", quoted(&name));
    let Some(data_type) = DataType::from_config_name(tensor.text("data_type")) else {
        let position = if tensor.get("data_type").is_some() { tensor.position_of("data_type") } else { position };
        return Err(ConfigError::invalid(position, format!("{shown} must have a data_type such as TYPE_FP32")));
    };
    // A scalar is written `dims: []`; leaving dims out is more likely a slip.
    if tensor.get("dims").is_none() {
        return Err(ConfigError::invalid(position, format!("{shown} must have dims")));
    }
    let dims = dims(tensor, "dims", &shown)?;
    let reshape = match tensor.message("reshape") {
        Some(reshape) => Some(self::dims(reshape, "shape", &format!("{shown}: reshape"))?),
        None => None,
    };
    Ok((name, data_type, dims, reshape))
}

fn dims(message: &Message, field: &str, shown: &str) -> Result<Vec<i64>, ConfigError> {
    for item in message.items(field) {
        if let Value::Int(dim) = item.value
            && dim != -1
            && dim < 1
        {
            let text = format!("{shown}: dimension {dim} must be at least 1, or -1 for any size");
            return Err(ConfigError::invalid(item.position, text));
        }
    }
    Ok(message.ints(field).collect())
}

fn instance_group(group: &Message, position: Position) -> Result<InstanceGroup, ConfigError> {
    let kind = match group.text("kind") {
        "KIND_GPU" => InstanceKind::Gpu,
        "KIND_CPU" => InstanceKind::Cpu,
        "KIND_MODEL" => InstanceKind::Model,
        _ => InstanceKind::Auto,
    };
    let count = match group.get("count") {
        None => 1,
        Some(_) => natural(group, "count", "instance_group: count")?,
    };
    if count == 0 {
        return Err(ConfigError::invalid(group.position_of("count"), "instance_group: count must be at least 1"));
    }
    let mut gpus = Vec::new();
    for item in group.items("gpus") {
        match item.value {
            Value::Int(number) if let Ok(gpu) = u32::try_from(number) => gpus.push(gpu),
            _ => return Err(ConfigError::invalid(item.position, "instance_group: a GPU is a number from 0")),
        }
    }
    if !gpus.is_empty() && matches!(kind, InstanceKind::Cpu | InstanceKind::Model) {
        let text = format!("instance_group: gpus must not be given with {}", kind.config_name());
        return Err(ConfigError::invalid(group.position_of("gpus"), text));
    }
    let mut sorted = gpus.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| matches!(pair, [left, right] if left == right)) {
        return Err(ConfigError::invalid(position, "instance_group: a GPU is listed twice"));
    }
    let rate_limiter = group.message("rate_limiter").map(rate_limiter).transpose()?.unwrap_or_default();
    Ok(InstanceGroup { name: group.text("name").to_owned(), kind, count, gpus, rate_limiter })
}

fn rate_limiter(limiter: &Message) -> Result<RateLimiter, ConfigError> {
    let mut resources = Vec::new();
    for (resource, position) in limiter.messages("resources") {
        let name = resource.text("name").to_owned();
        if name.is_empty() {
            return Err(ConfigError::invalid(position, "rate_limiter: a resource has no name"));
        }
        // Of 32 bits by its schema.
        let count = u32::try_from(resource.uint("count")).unwrap_or(u32::MAX);
        resources.push(RateLimiterResource { name, global: resource.flag("global"), count });
    }
    Ok(RateLimiter { resources, priority: u32::try_from(limiter.uint("priority")).unwrap_or(u32::MAX) })
}

fn dynamic_batching(batching: &Message) -> Result<DynamicBatching, ConfigError> {
    let mut preferred_batch_sizes = Vec::new();
    for item in batching.items("preferred_batch_size") {
        match item.value {
            Value::Int(size)
                if size >= 1
                    && let Ok(size) = u32::try_from(size) =>
            {
                preferred_batch_sizes.push(size)
            }
            _ => {
                let text = "dynamic_batching: a preferred_batch_size must be at least 1";
                return Err(ConfigError::invalid(item.position, text));
            }
        }
    }
    Ok(DynamicBatching {
        preferred_batch_sizes,
        max_queue_delay: Duration::from_micros(batching.uint("max_queue_delay_microseconds")),
        preserve_ordering: batching.flag("preserve_ordering"),
        priority_levels: batching.uint("priority_levels"),
        default_priority_level: batching.uint("default_priority_level"),
        default_queue_policy: batching.message("default_queue_policy").map(queue_policy).unwrap_or_default(),
        priority_queue_policies: batching
            .entries("priority_queue_policy")
            .filter_map(|(key, item)| match (key, &item.value) {
                (MapKey::Uint(level), Value::Message(policy)) => Some((*level, queue_policy(policy))),
                _ => None,
            })
            .collect(),
    })
}

fn queue_policy(policy: &Message) -> QueuePolicy {
    QueuePolicy {
        timeout_action: match policy.text("timeout_action") {
            "DELAY" => TimeoutAction::Delay,
            _ => TimeoutAction::Reject,
        },
        default_timeout: Duration::from_micros(policy.uint("default_timeout_microseconds")),
        allow_timeout_override: policy.flag("allow_timeout_override"),
        // Of 32 bits by its schema.
        max_queue_size: u32::try_from(policy.uint("max_queue_size")).unwrap_or(u32::MAX),
    }
}

/// An `int32` that must not be negative.
fn natural(message: &Message, field: &str, shown: &str) -> Result<u32, ConfigError> {
    let number = message.int(field);
    u32::try_from(number).map_err(|_| {
        ConfigError::invalid(message.position_of(field), format!("{shown} must not be negative, got {number}"))
    })
}

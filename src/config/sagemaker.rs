//! How the server stands in SageMaker's place: inside as its container, outside as its endpoint.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{Port, ServeOptions};

pub(super) mod environment;
pub(super) mod single_model;
mod words;

/// What the server is to SageMaker's platform.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SageMakerMode {
    /// As SageMaker's variables and folders say: `multi-model` where SAGEMAKER_MULTI_MODEL is true, `single-model` where no
    /// repository is named and /opt/ml/model is there, else off.
    #[default]
    Auto,
    /// A server of its own.
    Off,
    /// The container of an endpoint with one model, which lies in /opt/ml/model.
    SingleModel,
    /// The container of a multi-model endpoint: the platform says what to load and unload.
    MultiModel,
}

impl SageMakerMode {
    /// Whether the platform starts this server.
    #[must_use]
    pub const fn is_container(self) -> bool {
        matches!(self, Self::SingleModel | Self::MultiModel)
    }
}

/// How the body of an invocation is read and answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InferenceType {
    /// KServe v2: tensors by name.
    #[default]
    Infer,
    /// The generate extension: plain JSON members.
    Generate,
    /// The same, answered as server-sent events.
    GenerateStream,
}

impl InferenceType {
    /// By the name that NVIDIA's container and model configurations have for it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "infer" => Some(Self::Infer),
            "generate" => Some(Self::Generate),
            "generate_stream" | "generate-stream" => Some(Self::GenerateStream),
            _ => None,
        }
    }
}

/// What `GET /ping` speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ping {
    /// The process answers.
    Live,
    /// The models asked for at start have been tried, and the single model is in memory.
    Ready,
}

/// What there is to say about the platform's variables and folders; they are read before anything can be logged.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    /// What the operator probably did not mean.
    pub(super) warnings: Vec<String>,
    /// What is worth a line.
    pub(super) notes: Vec<String>,
}

/// SageMaker's port.
#[derive(Clone, Debug)]
pub struct SageMakerConfig {
    /// What the server is; never [`SageMakerMode::Auto`].
    pub mode: SageMakerMode,
    /// The port; `None` where it is not opened.
    pub port: Option<u16>,
    /// The model of invocations that name none.
    pub model: Option<String>,
    /// Folders that `POST /models` may load from.
    pub model_roots: Vec<PathBuf>,
    /// How bodies are read, where the model does not say.
    pub inference_type: InferenceType,
    /// What `GET /ping` speaks of.
    pub ping: Ping,
    /// The runtime API.
    pub endpoint: EndpointConfig,
}

/// The runtime API: `POST /endpoints/NAME/invocations`.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// The endpoint's name; any if `None`.
    pub name: Option<String>,
    /// The file of keys and tokens; everybody may ask if `None`.
    pub keys: Option<PathBuf>,
    /// The largest body, in bytes.
    pub payload_bytes: usize,
    /// How long an invocation waits for its model's load.
    pub load_wait: Duration,
    /// How long a load goes on that invocations have asked for.
    pub load_limit: Duration,
}

/// Where the platform puts a single model.
pub const SINGLE_MODEL: &str = "/opt/ml/model";

/// Where the platform puts the models of a multi-model endpoint.
pub const MODELS: &str = "/opt/ml/models";

/// The port that SageMaker's containers listen on.
const PORT: u16 = 8080;

/// SageMaker's limit on the body of an invocation.
const PAYLOAD_BYTES: usize = 6_291_456;

impl SageMakerConfig {
    /// The part of the options that concerns SageMaker; `mode` is decided already.
    pub(super) fn of(options: &mut ServeOptions, mode: SageMakerMode) -> Self {
        let port = options.sagemaker_port.unwrap_or(if mode.is_container() { Port::At(PORT) } else { Port::Off });
        Self {
            mode,
            port: port.number(),
            model: options.sagemaker_model.take(),
            model_roots: options.sagemaker_model_root.take().unwrap_or_else(|| vec![MODELS.into()]),
            inference_type: options.sagemaker_inference_type.unwrap_or_default(),
            ping: options.sagemaker_ping.unwrap_or(match mode {
                SageMakerMode::SingleModel => Ping::Ready,
                SageMakerMode::Auto | SageMakerMode::Off | SageMakerMode::MultiModel => Ping::Live,
            }),
            endpoint: EndpointConfig {
                name: options.endpoint_name.take(),
                keys: options.endpoint_keys.take(),
                payload_bytes: options.endpoint_max_payload_bytes.map_or(PAYLOAD_BYTES, NonZeroUsize::get),
                load_wait: Duration::from_millis(options.endpoint_load_wait_ms.unwrap_or(60_000)),
                load_limit: Duration::from_millis(options.endpoint_load_limit_ms.unwrap_or(360_000)),
            },
        }
    }
}

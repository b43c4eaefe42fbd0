//! `ServerConfig`: flags over environment over a TOML file over defaults.
//!
//! *Architecture invariant:* this file and those below `config/` are the only readers of the environment.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub mod address;
pub mod amount;
mod folders;
pub mod grpc;
pub mod metrics;
pub mod options;
pub mod rate_limit;
pub mod sagemaker;
pub mod security;
pub mod trace;
pub mod warm;

use self::amount::{Amount, CacheBytes, MemoryLimit};
use self::folders::default_cache_dir;
pub use self::folders::default_runtime_dir;
use self::grpc::GrpcConfig;
use self::metrics::MetricsConfig;
pub use self::options::ServeOptions;
use self::rate_limit::RateLimitConfig;
use self::sagemaker::environment::Platform;
use self::sagemaker::{Remarks, SageMakerConfig, SageMakerMode, single_model};
use self::security::SecurityConfig;
use self::trace::TraceConfig;
use self::warm::WarmConfig;
use crate::error::{Error, Result};

/// Who makes room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Eviction {
    /// The server evicts.
    #[default]
    Automatic,
    /// Whoever operates the server unloads; a load without room fails and says what it lacks.
    External,
}

/// Which models go first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvictionRule {
    /// Those that save the least loading for their bytes.
    #[default]
    CostAware,
    /// The least recently used.
    Lru,
}

/// Which models are in memory when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelControl {
    /// A request for a model loads it.
    #[default]
    OnDemand,
    /// Only `--load-model` and the repository API load and unload.
    Explicit,
    /// Every model of the repository is loaded at start; requests load what was added since.
    All,
}

/// What to do with `config.pbtxt` fields that are not in the schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownConfigFields {
    /// Refuse the model, naming line and column.
    #[default]
    Error,
    /// Log a warning and go on, for configurations written for a newer server.
    Warn,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// One readable line an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// One word of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// Every GPU that can be used, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU with this index; an error where it cannot be used.
    Gpu(u32),
}

impl std::str::FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            other => other
                .strip_prefix("gpu:")
                .and_then(|index| index.parse().ok())
                .map(Self::Gpu)
                .ok_or_else(|| Error::invalid(format!("unknown device '{other}', expected auto, cpu or gpu:N"))),
        }
    }
}

impl<'de> Deserialize<'de> for DeviceChoice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A port, or none: `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Nothing listens.
    Off,
    /// This one; 0 is any free one.
    At(u16),
}

impl Port {
    /// Its number, where it is one.
    #[must_use]
    pub const fn number(self) -> Option<u16> {
        match self {
            Self::Off => None,
            Self::At(number) => Some(number),
        }
    }
}

impl std::str::FromStr for Port {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "off" => Ok(Self::Off),
            number => number
                .parse()
                .map(Self::At)
                .map_err(|_| Error::invalid(format!("'{number}' is no port: a number up to 65535, or off"))),
        }
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u16),
            Word(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Ok(Self::At(number)),
            Written::Word(word) => word.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// Limits on what comes from outside.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Bytes of JSON in a request, and of a decompressed body.
    pub json_bytes: usize,
    /// Bytes of a request body.
    pub body_bytes: usize,
    /// Connections at a time.
    pub connections: usize,
    /// Pieces a body may arrive in (Triton's limit on HTTP chunks).
    pub body_chunks: usize,
    /// How long a request may take when it does not say.
    pub timeout: Option<Duration>,
}

/// The tiers of this machine.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// The folder models are fetched to.
    pub directory: PathBuf,
    /// How much of the disk it may take.
    pub capacity: Amount,
    /// How much of the devices' memory models may take; the default where a device is not named.
    pub memory_limits: Vec<MemoryLimit>,
    /// How much host memory the weights of models that sleep may take, of what is free at start.
    pub host_limit: Amount,
    /// Who makes room.
    pub eviction: Eviction,
    /// Which models go first.
    pub rule: EvictionRule,
    /// How long a model stays at least.
    pub min_residency: Duration,
    /// How long a load waits for room.
    pub room_wait: Duration,
    /// How many bytes of host memory answers may take; 0 for no response cache.
    pub response_bytes: u64,
}

/// How models are fetched.
#[derive(Clone, Debug)]
pub struct FetchConfig {
    /// Models at a time.
    pub concurrency: usize,
    /// Ranges of objects at a time, over all models.
    pub parts: usize,
    /// How long a range may take.
    pub timeout: Duration,
    /// Read S3 without credentials.
    pub s3_anonymous: bool,
    /// The bucket's region.
    pub s3_region: Option<String>,
    /// The store's URL.
    pub s3_endpoint: Option<String>,
    /// Whether the bucket is written in the path.
    pub s3_path_style: Option<bool>,
}

/// Everything the server needs to know, complete and checked.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The model repository's URI; `None` where SageMaker's platform brings the models.
    pub model_repository: Option<String>,
    /// When models are loaded.
    pub model_control: ModelControl,
    /// Models to load at start.
    pub load_model: Vec<String>,
    /// What an unknown `config.pbtxt` field is.
    pub unknown_config_fields: UnknownConfigFields,
    /// How many loads run at once.
    pub load_concurrency: usize,
    /// The most copies of a model that the server places; `None` for as many as there are devices of a kind.
    pub max_copies: Option<usize>,
    /// How long a failed load answers for the next requests.
    pub load_retry: Duration,
    /// How often models in memory are compared with the repository.
    pub repository_poll: Option<Duration>,
    /// Whether models stay in memory after their requests.
    pub retain: bool,
    /// Models to load at start and never to evict.
    pub pin_model: Vec<String>,
    /// Models to bring near after the start.
    pub prefetch_model: Vec<String>,
    /// What to bring near before that, by the word of others.
    pub warm: WarmConfig,
    /// What is kept where, and who leaves.
    pub cache: CacheConfig,
    /// How models are fetched.
    pub fetch: FetchConfig,
    /// The address to listen on.
    pub address: IpAddr,
    /// KServe v2 HTTP; `None` where it is not opened.
    pub http_port: Option<u16>,
    /// KServe v2 over gRPC.
    pub grpc: GrpcConfig,
    /// Prometheus metrics; `None` where they are not served.
    pub metrics_port: Option<u16>,
    /// What is on their page.
    pub metrics: MetricsConfig,
    /// SageMaker's port, and what the server is to its platform.
    pub sagemaker: SageMakerConfig,
    /// TLS and tokens.
    pub security: SecurityConfig,
    /// Where the ports are written once they are open.
    pub port_file: Option<PathBuf>,
    /// Where models may run.
    pub devices: Vec<DeviceChoice>,
    /// Threads that execute models on the CPU.
    pub executor_threads: usize,
    /// Threads that serve connections.
    pub io_threads: usize,
    /// The ONNX Runtime library, where the operator named one.
    pub onnxruntime_library: Option<PathBuf>,
    /// Where backends lie that are libraries of their own, if anywhere.
    pub backend_directory: Option<PathBuf>,
    /// The libtorch folder, where the operator named one.
    pub libtorch_dir: Option<PathBuf>,
    /// Whether packages of AOTInductor, which are native code, are run.
    pub allow_aotinductor: bool,
    /// Where runtimes are installed.
    pub runtime_dir: PathBuf,
    /// Whether clients may use shared memory.
    pub allow_client_shm: bool,
    /// Requests that may wait for one model.
    pub queue_capacity: usize,
    /// What runs may take of what others want too.
    pub rate_limit: RateLimitConfig,
    /// Limits on requests.
    pub limits: RequestLimits,
    /// Time to finish after SIGTERM.
    pub drain_grace: Duration,
    /// How long connections are taken before that.
    pub drain_notice: Duration,
    /// The log filter.
    pub log: String,
    /// The log format.
    pub log_format: LogFormat,
    /// What is traced, and where traces go.
    pub trace: TraceConfig,
    /// What to warn of once lines can be logged.
    pub warnings: Vec<String>,
    /// What else to log then.
    pub notes: Vec<String>,
}

impl ServeOptions {
    /// The complete configuration: these options, then SageMaker's variables where its platform starts the server, then
    /// the `--config` file, then the defaults.
    ///
    /// # Errors
    /// `InvalidArgument` naming the option that is missing or wrong.
    pub fn resolve(self) -> Result<ServerConfig> {
        self.resolve_on(&Platform::of_this_process())
    }

    fn resolve_on(self, platform: &Platform) -> Result<ServerConfig> {
        let file = match &self.config {
            Some(path) => Self::from_file(path)?,
            None => Self::default(),
        };
        let mut remarks = Remarks::default();
        let asked = self.sagemaker.or(file.sagemaker).unwrap_or_default();
        let has_repository = self.model_repository.is_some() || file.model_repository.is_some();
        let mode = platform.mode(asked, has_repository, &mut remarks);
        let from_platform = platform.options(mode, &mut remarks)?;
        let mut options = self.or(from_platform).or(file);
        if mode == SageMakerMode::SingleModel {
            single_model::settle(&mut options, platform.single_model(), &mut remarks)?;
        }
        let config = options.complete(mode, remarks)?;
        platform.check_ports(&config)?;
        Ok(config)
    }

    fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::invalid(format!("cannot read --config {}", path.display())).with_source(error))?;
        toml::from_str(&text)
            .map_err(|error| Error::invalid(format!("in --config {}", path.display())).with_source(error))
    }

    fn or(self, file: Self) -> Self {
        macro_rules! or {
            ($($field:ident),* $(,)?) => { Self { config: self.config, $($field: self.$field.or(file.$field)),* } };
        }
        or! {
            model_repository, model_control, load_model, unknown_config_fields, load_concurrency, max_copies, load_retry_ms,
            repository_poll_s, retain, pin_model, prefetch_model, warm_from, warm_models, warm_limit_s, warm_token_file, cache_dir, cache_capacity, memory_limit, host_memory_limit, eviction,
            eviction_policy, min_residency_ms, room_wait_ms, response_cache_bytes, fetch_concurrency, fetch_parts, fetch_timeout_ms,
            s3_anonymous, s3_region, s3_endpoint, s3_path_style, address, http_port, grpc_port, grpc_max_message_bytes, grpc_max_concurrent_streams,
            grpc_keepalive_time_ms, grpc_keepalive_timeout_ms, grpc_infer_response_compression_level, metrics_port, metrics_models, cloudwatch, cloudwatch_namespace, cloudwatch_variant, cloudwatch_period_s, cloudwatch_region, cloudwatch_endpoint, sagemaker_port,
            sagemaker, sagemaker_model, sagemaker_model_root, sagemaker_inference_type, sagemaker_ping, endpoint_name, endpoint_keys,
            endpoint_max_payload_bytes, endpoint_load_wait_ms, endpoint_load_limit_ms, tls_cert, tls_key,
            tls_client_ca, tls_ports, access_tokens, port_file, device, executor_threads, io_threads, onnxruntime_library,
            backend_directory, libtorch_dir, allow_aotinductor, runtime_dir, allow_client_shm, max_connections, queue_capacity, rate_limit, rate_limit_resource, request_timeout_ms, max_json_bytes, max_body_bytes, drain_grace_s, drain_notice_s, log,
            log_format, trace_config,
        }
    }

    fn complete(mut self, mode: SageMakerMode, remarks: Remarks) -> Result<ServerConfig> {
        let sagemaker = SageMakerConfig::of(&mut self, mode);
        let security = SecurityConfig::of(&mut self, mode.is_container())?;
        let port = |given: Option<Port>, usual: u16| match given {
            Some(port) => port.number(),
            None => (!mode.is_container()).then_some(usual),
        };
        let body_bytes = self.max_body_bytes.unwrap_or(1 << 30);
        let rate_limit = RateLimitConfig::of(&self);
        let metrics = MetricsConfig::of(&mut self)?;
        let warm = WarmConfig::of(&mut self)?;
        let grpc = GrpcConfig::of(&self, port(None, 8001), body_bytes);
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let timeout_ms = self.request_timeout_ms.unwrap_or(60_000);
        let model_repository = match (self.model_repository, mode) {
            (Some(uri), _) => Some(uri),
            (None, SageMakerMode::MultiModel) => None,
            (None, SageMakerMode::Auto | SageMakerMode::Off | SageMakerMode::SingleModel) => {
                return Err(Error::invalid(
                    "--model-repository is missing: give the folder that holds the models, for example models-examples, \
                     or s3://BUCKET/PREFIX",
                ));
            }
        };
        Ok(ServerConfig {
            model_repository,
            model_control: self.model_control.unwrap_or(match mode.is_container() {
                true => ModelControl::Explicit,
                false => ModelControl::default(),
            }),
            load_model: self.load_model.unwrap_or_default(),
            unknown_config_fields: self.unknown_config_fields.unwrap_or_default(),
            load_concurrency: self.load_concurrency.map_or(4, NonZeroUsize::get),
            max_copies: self.max_copies.map(NonZeroUsize::get),
            load_retry: Duration::from_millis(self.load_retry_ms.unwrap_or(1000)),
            repository_poll: self.repository_poll_s.filter(|seconds| *seconds > 0).map(Duration::from_secs),
            retain: self.retain.unwrap_or(true),
            pin_model: self.pin_model.unwrap_or_default(),
            prefetch_model: self.prefetch_model.unwrap_or_default(),
            warm,
            cache: CacheConfig {
                directory: match self.cache_dir {
                    Some(directory) => directory,
                    None => default_cache_dir()?,
                },
                capacity: self.cache_capacity.unwrap_or(Amount::Fraction(0.8)),
                memory_limits: self.memory_limit.unwrap_or_default(),
                host_limit: self.host_memory_limit.unwrap_or(Amount::Fraction(0.5)),
                // The platform chooses who leaves.
                eviction: self.eviction.unwrap_or(match mode {
                    SageMakerMode::MultiModel => Eviction::External,
                    SageMakerMode::Auto | SageMakerMode::Off | SageMakerMode::SingleModel => Eviction::Automatic,
                }),
                rule: self.eviction_policy.unwrap_or_default(),
                min_residency: Duration::from_millis(self.min_residency_ms.unwrap_or(100)),
                room_wait: Duration::from_millis(self.room_wait_ms.unwrap_or(10_000)),
                response_bytes: self.response_cache_bytes.map_or(0, |CacheBytes(bytes)| bytes),
            },
            fetch: FetchConfig {
                concurrency: self.fetch_concurrency.map_or(8, NonZeroUsize::get),
                parts: self.fetch_parts.map_or(16, NonZeroUsize::get),
                timeout: Duration::from_millis(self.fetch_timeout_ms.unwrap_or(30_000)),
                s3_anonymous: self.s3_anonymous.unwrap_or(false),
                s3_region: self.s3_region,
                s3_endpoint: self.s3_endpoint,
                s3_path_style: self.s3_path_style,
            },
            address: self.address.unwrap_or(IpAddr::from(match mode.is_container() {
                true => [0, 0, 0, 0],
                false => [127, 0, 0, 1],
            })),
            http_port: port(self.http_port, 8000),
            grpc,
            metrics_port: port(self.metrics_port, 8002),
            metrics,
            sagemaker,
            security,
            port_file: self.port_file,
            devices: self.device.unwrap_or_else(|| vec![DeviceChoice::Auto]),
            executor_threads: self.executor_threads.map_or(cores, NonZeroUsize::get),
            io_threads: self.io_threads.map_or(cores, NonZeroUsize::get),
            onnxruntime_library: self.onnxruntime_library,
            backend_directory: self.backend_directory.or_else(folders::default_backend_directory),
            libtorch_dir: self.libtorch_dir,
            allow_aotinductor: self.allow_aotinductor.unwrap_or(false),
            runtime_dir: match self.runtime_dir {
                Some(dir) => dir,
                None => default_runtime_dir()?,
            },
            allow_client_shm: self.allow_client_shm.unwrap_or(false),
            rate_limit,
            queue_capacity: self.queue_capacity.map_or(1024, NonZeroUsize::get),
            limits: RequestLimits {
                json_bytes: self.max_json_bytes.unwrap_or(64 << 20),
                body_bytes,
                connections: self.max_connections.map_or(8192, NonZeroUsize::get),
                body_chunks: 65_536,
                timeout: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms)),
            },
            drain_grace: Duration::from_secs(self.drain_grace_s.unwrap_or(match mode.is_container() {
                // The platform kills what is still there 30 seconds after SIGTERM.
                true => 25,
                false => 30,
            })),
            drain_notice: Duration::from_secs(self.drain_notice_s.unwrap_or(0)),
            log: self.log.unwrap_or_else(|| "info".to_owned()),
            log_format: self.log_format.unwrap_or_default(),
            trace: TraceConfig::read(&self.trace_config.unwrap_or_default())?,
            warnings: remarks.warnings,
            notes: remarks.notes,
        })
    }
}

#[cfg(test)]
mod tests;

//! What `roundhouse serve` can be told, with its help texts.

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use serde::Deserialize;

use super::amount::{Amount, CacheBytes, MemoryLimit};
use super::grpc::GrpcCompression;
use super::metrics::CloudWatch;
use super::rate_limit::{RateLimit, RateLimitResource};
use super::sagemaker::{InferenceType, Ping, SageMakerMode};
use super::security::TlsPort;
use super::{DeviceChoice, Eviction, EvictionRule, LogFormat, ModelControl, Port, UnknownConfigFields};

/// What `roundhouse serve` is told, by flags, environment or file; `None` where nothing was said.
///
/// The help texts are written for operators: what it is, what it is when not given, when to change it.
#[derive(Clone, Debug, Default, clap::Args, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServeOptions {
    /// A TOML file with any of these options by their long names; flags and environment win over it.
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Where the models are: a folder in Triton's layout, s3://BUCKET/PREFIX, or s3://http://HOST:PORT/BUCKET/PREFIX for
    /// another store that speaks S3. [default: none; /opt/ml/model in a SageMaker container with one model]
    #[arg(long, value_name = "URI", env = "ROUNDHOUSE_MODEL_REPOSITORY", help_heading = "Models")]
    pub model_repository: Option<String>,

    /// When models are loaded: by the first request, only explicitly, or all at start. [default: on-demand;
    /// explicit in a SageMaker container]
    #[arg(long, value_enum, env = "ROUNDHOUSE_MODEL_CONTROL", help_heading = "Models")]
    pub model_control: Option<ModelControl>,

    /// A model to load at start; may be repeated, `*` stands for all.
    #[arg(long, value_name = "NAME", env = "ROUNDHOUSE_LOAD_MODEL", value_delimiter = ',', help_heading = "Models")]
    pub load_model: Option<Vec<String>>,

    /// What a config.pbtxt field outside the schema is: an error, or a warning. [default: error]
    #[arg(long, value_enum, env = "ROUNDHOUSE_UNKNOWN_CONFIG_FIELDS", help_heading = "Models")]
    pub unknown_config_fields: Option<UnknownConfigFields>,

    /// How many models are loaded at the same time. [default: 4]
    #[arg(long, value_name = "N", env = "ROUNDHOUSE_LOAD_CONCURRENCY", help_heading = "Models")]
    pub load_concurrency: Option<NonZeroUsize>,

    /// The most copies of one model, on devices of one kind, that the server makes where it chose the device itself and the
    /// model's queue costs more than a load; 1 makes none. [default: as many as there are such devices]
    #[arg(long, value_name = "N", env = "ROUNDHOUSE_MAX_COPIES", help_heading = "Models")]
    pub max_copies: Option<NonZeroUsize>,

    /// How long a failed load is remembered before a request tries it again, in milliseconds; an explicit load always
    /// tries. [default: 1000]
    #[arg(long, value_name = "MS", env = "ROUNDHOUSE_LOAD_RETRY_MS", help_heading = "Models")]
    pub load_retry_ms: Option<u64>,

    /// How often models in memory are compared with the repository, in seconds: changed ones are swapped, deleted ones
    /// unloaded; 0 for never. [default: 0]
    #[arg(long, value_name = "S", env = "ROUNDHOUSE_REPOSITORY_POLL_S", help_heading = "Models")]
    pub repository_poll_s: Option<u64>,

    /// Whether a model stays in memory after its requests; false unloads it at once (SageMaker's ModelCacheSetting
    /// Disabled). A model's own parameter `retain` wins. [default: true]
    #[arg(long, value_name = "BOOL", env = "ROUNDHOUSE_RETAIN", help_heading = "Models")]
    pub retain: Option<bool>,

    /// A model to load at start and never to evict; may be repeated.
    #[arg(long, value_name = "NAME", env = "ROUNDHOUSE_PIN_MODEL", value_delimiter = ',', help_heading = "Models")]
    pub pin_model: Option<Vec<String>>,

    /// A model to bring to this machine's disk after the start, and to memory while there is room; may be repeated.
    #[arg(
        long,
        value_name = "NAME",
        env = "ROUNDHOUSE_PREFETCH_MODEL",
        value_delimiter = ',',
        help_heading = "Models"
    )]
    pub prefetch_model: Option<Vec<String>>,

    /// Other instances, or the picker, by HOST:PORT of their inference port: before it is ready the server brings what they
    /// have in memory and use most, or what of it the picker's ring gives to this instance; several with commas, and a name
    /// stands for all its addresses. [default: nobody is asked]
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "ROUNDHOUSE_WARM_FROM",
        value_delimiter = ',',
        help_heading = "Models"
    )]
    pub warm_from: Option<Vec<String>>,

    /// How many models are brought so at most. [default: 64]
    #[arg(long, value_name = "N", env = "ROUNDHOUSE_WARM_MODELS", help_heading = "Models")]
    pub warm_models: Option<usize>,

    /// How long the server may put off being ready for it, in seconds, whatever becomes of those that are asked.
    /// [default: 60]
    #[arg(long, value_name = "S", env = "ROUNDHOUSE_WARM_LIMIT_S", help_heading = "Models")]
    pub warm_limit_s: Option<u64>,

    /// File with the token that they want of whoever asks below /v1 (their --access-tokens, right `operators`).
    /// [default: none]
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_WARM_TOKEN_FILE", help_heading = "Models")]
    pub warm_token_file: Option<PathBuf>,

    /// The folder on a fast disk that models are fetched to; one server a folder.
    /// [default: roundhouse/models on the first NVMe mount, else in ~/.cache]
    #[arg(long, value_name = "DIR", env = "ROUNDHOUSE_CACHE_DIR", help_heading = "Cache and memory")]
    pub cache_dir: Option<PathBuf>,

    /// How much of the disk the cache may take: bytes, a size such as 200GiB, or a fraction of what is free at start.
    /// [default: 0.8]
    #[arg(long, value_name = "SIZE", env = "ROUNDHOUSE_CACHE_CAPACITY", help_heading = "Cache and memory")]
    pub cache_capacity: Option<Amount>,

    /// How much of a device's memory models may take, as DEVICE=SIZE: cpu=16GiB, gpu:0=0.8 (of what is free at start),
    /// gpu=0.8 for each GPU that is not named.
    /// [default: 0.9 of what is free at start]
    #[arg(
        long,
        value_name = "DEVICE=SIZE",
        env = "ROUNDHOUSE_MEMORY_LIMIT",
        value_delimiter = ',',
        help_heading = "Cache and memory"
    )]
    pub memory_limit: Option<Vec<MemoryLimit>>,

    /// How much host memory models may take that had to leave a GPU and sleep: bytes, a size such as 64GiB, or a fraction of
    /// what is free at start; 0 for none. It is locked as it is needed. [default: 0.5]
    #[arg(long, value_name = "SIZE", env = "ROUNDHOUSE_HOST_MEMORY_LIMIT", help_heading = "Cache and memory")]
    pub host_memory_limit: Option<Amount>,

    /// Who makes room: the server (automatic), or whoever operates it (external): then a load without room fails.
    /// [default: automatic; external in a SageMaker container with many models]
    #[arg(long, value_enum, env = "ROUNDHOUSE_EVICTION", help_heading = "Cache and memory")]
    pub eviction: Option<Eviction>,

    /// Which models go first: those that save the least loading for their bytes, or the least recently used.
    /// [default: cost-aware]
    #[arg(long, value_enum, env = "ROUNDHOUSE_EVICTION_POLICY", help_heading = "Cache and memory")]
    pub eviction_policy: Option<EvictionRule>,

    /// How long a model stays at least, in milliseconds, before it may be evicted. [default: 100]
    #[arg(long, value_name = "MS", env = "ROUNDHOUSE_MIN_RESIDENCY_MS", help_heading = "Cache and memory")]
    pub min_residency_ms: Option<u64>,

    /// How long a load waits for room that others are using, in milliseconds, before it fails. [default: 10000]
    #[arg(long, value_name = "MS", env = "ROUNDHOUSE_ROOM_WAIT_MS", help_heading = "Cache and memory")]
    pub room_wait_ms: Option<u64>,

    /// How much host memory the answers of models with `response_cache` may take, beside the models: bytes or a size such as
    /// 1GiB; 0 for none. Triton's way to say it is understood too: `--cache-config local,size=BYTES`. [default: 0]
    #[arg(
        long,
        alias = "cache-config",
        value_name = "SIZE",
        env = "ROUNDHOUSE_RESPONSE_CACHE_BYTES",
        help_heading = "Cache and memory"
    )]
    pub response_cache_bytes: Option<CacheBytes>,

    /// How many models are fetched at the same time. [default: 8]
    #[arg(long, value_name = "N", env = "ROUNDHOUSE_FETCH_CONCURRENCY", help_heading = "Fetching")]
    pub fetch_concurrency: Option<NonZeroUsize>,

    /// How many ranges of objects are fetched at the same time, over all models. [default: 16]
    #[arg(long, value_name = "N", env = "ROUNDHOUSE_FETCH_PARTS", help_heading = "Fetching")]
    pub fetch_parts: Option<NonZeroUsize>,

    /// How long a part of an object may take, in milliseconds, before it is asked for anew. [default: 30000]
    #[arg(long, value_name = "MS", env = "ROUNDHOUSE_FETCH_TIMEOUT_MS", help_heading = "Fetching")]
    pub fetch_timeout_ms: Option<u64>,

    /// Read S3 without credentials: public buckets. [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", env = "ROUNDHOUSE_S3_ANONYMOUS", help_heading = "Fetching")]
    pub s3_anonymous: Option<bool>,

    /// The bucket's region. [default: as AWS_REGION or the profile says]
    #[arg(long, value_name = "REGION", env = "ROUNDHOUSE_S3_REGION", help_heading = "Fetching")]
    pub s3_region: Option<String>,

    /// The store's URL, where it is not AWS. [default: as in --model-repository, or AWS_ENDPOINT_URL]
    #[arg(long, value_name = "URL", env = "ROUNDHOUSE_S3_ENDPOINT", help_heading = "Fetching")]
    pub s3_endpoint: Option<String>,

    /// Whether the bucket is written in the path and not in the host's name. [default: true with an endpoint]
    #[arg(long, value_name = "BOOL", env = "ROUNDHOUSE_S3_PATH_STYLE", help_heading = "Fetching")]
    pub s3_path_style: Option<bool>,

    /// The address to listen on. [default: 127.0.0.1; 0.0.0.0 in a SageMaker container]
    #[arg(long, value_name = "IP", env = "ROUNDHOUSE_ADDRESS", help_heading = "Listening")]
    pub address: Option<IpAddr>,

    /// The port of KServe v2 HTTP; 0 takes any free one, `off` opens none. [default: 8000; off in a SageMaker container]
    #[arg(long, value_name = "PORT", env = "ROUNDHOUSE_HTTP_PORT", help_heading = "Listening")]
    pub http_port: Option<Port>,

    /// The port of KServe v2 over gRPC; 0 takes any free one, `off` opens none. [default: 8001; off in a SageMaker
    /// container]
    #[arg(long, value_name = "PORT", env = "ROUNDHOUSE_GRPC_PORT", help_heading = "gRPC")]
    pub grpc_port: Option<Port>,

    /// The largest message over gRPC, before and after decompression, in bytes. [default: as --max-body-bytes]
    #[arg(long, value_name = "BYTES", env = "ROUNDHOUSE_GRPC_MAX_MESSAGE_BYTES", help_heading = "gRPC")]
    pub grpc_max_message_bytes: Option<NonZeroUsize>,

    /// The most calls of one connection at a time; more wait at the client. [default: 1024]
    #[arg(long, value_name = "N", env = "ROUNDHOUSE_GRPC_MAX_CONCURRENT_STREAMS", help_heading = "gRPC")]
    pub grpc_max_concurrent_streams: Option<NonZeroU32>,

    /// After how long without a sound a connection is asked whether it is alive, in milliseconds; 0 for never.
    /// [default: 60000]
    #[arg(long, value_name = "MS", env = "ROUNDHOUSE_GRPC_KEEPALIVE_TIME_MS", help_heading = "gRPC")]
    pub grpc_keepalive_time_ms: Option<u64>,

    /// How long it has to say so, in milliseconds, before it is closed. [default: 20000]
    #[arg(long, value_name = "MS", env = "ROUNDHOUSE_GRPC_KEEPALIVE_TIMEOUT_MS", help_heading = "gRPC")]
    pub grpc_keepalive_timeout_ms: Option<u64>,

    /// How much answers to inferences are compressed, with gzip or deflate, for callers that read it. [default: none]
    #[arg(
        long,
        value_enum,
        value_name = "LEVEL",
        env = "ROUNDHOUSE_GRPC_INFER_RESPONSE_COMPRESSION_LEVEL",
        help_heading = "gRPC"
    )]
    pub grpc_infer_response_compression_level: Option<GrpcCompression>,

    /// The port of Prometheus metrics; 0 takes any free one, `off` opens none. [default: 8002; off in a SageMaker
    /// container]
    #[arg(long, value_name = "PORT", env = "ROUNDHOUSE_METRICS_PORT", help_heading = "Listening")]
    pub metrics_port: Option<Port>,

    /// How many models have series of their own on the page of metrics, the busiest; the others share one. [default: 100]
    #[arg(long, value_name = "N", env = "ROUNDHOUSE_METRICS_MODELS", help_heading = "Metrics")]
    pub metrics_models: Option<usize>,

    /// How CloudWatch is told of SageMaker's metrics: off, put (by its API), or embedded (lines on standard output).
    /// [default: off]
    #[arg(long, value_enum, env = "ROUNDHOUSE_CLOUDWATCH", help_heading = "Metrics")]
    pub cloudwatch: Option<CloudWatch>,

    /// The namespace of those metrics. [default: Roundhouse]
    #[arg(long, value_name = "NAME", env = "ROUNDHOUSE_CLOUDWATCH_NAMESPACE", help_heading = "Metrics")]
    pub cloudwatch_namespace: Option<String>,

    /// Their dimension VariantName; EndpointName is --endpoint-name, or roundhouse. [default: AllTraffic]
    #[arg(long, value_name = "NAME", env = "ROUNDHOUSE_CLOUDWATCH_VARIANT", help_heading = "Metrics")]
    pub cloudwatch_variant: Option<String>,

    /// How often CloudWatch is told, in seconds. [default: 60]
    #[arg(long, value_name = "S", env = "ROUNDHOUSE_CLOUDWATCH_PERIOD_S", help_heading = "Metrics")]
    pub cloudwatch_period_s: Option<u64>,

    /// CloudWatch's region. [default: as AWS_REGION, the profile or the instance says]
    #[arg(long, value_name = "REGION", env = "ROUNDHOUSE_CLOUDWATCH_REGION", help_heading = "Metrics")]
    pub cloudwatch_region: Option<String>,

    /// CloudWatch's URL, where it is not AWS. [default: AWS's, or AWS_ENDPOINT_URL]
    #[arg(long, value_name = "URL", env = "ROUNDHOUSE_CLOUDWATCH_ENDPOINT", help_heading = "Metrics")]
    pub cloudwatch_endpoint: Option<String>,

    /// The port of SageMaker's container contract and runtime API; 0 takes any free one, `off` opens none.
    /// [default: off; 8080 in a SageMaker container]
    #[arg(long, value_name = "PORT", env = "ROUNDHOUSE_SAGEMAKER_PORT", help_heading = "SageMaker")]
    pub sagemaker_port: Option<Port>,

    /// What the server is to SageMaker's platform; `auto` reads its variables and folders. [default: auto]
    #[arg(long, value_enum, env = "ROUNDHOUSE_SAGEMAKER", help_heading = "SageMaker")]
    pub sagemaker: Option<SageMakerMode>,

    /// The model of invocations that name none. [default: the only one of a SageMaker container
    /// with one model]
    #[arg(long, value_name = "NAME", env = "ROUNDHOUSE_SAGEMAKER_MODEL", help_heading = "SageMaker")]
    pub sagemaker_model: Option<String>,

    /// A folder that the platform may load models from; may be repeated. [default: /opt/ml/models]
    #[arg(
        long,
        value_name = "DIR",
        env = "ROUNDHOUSE_SAGEMAKER_MODEL_ROOT",
        value_delimiter = ',',
        help_heading = "SageMaker"
    )]
    pub sagemaker_model_root: Option<Vec<PathBuf>>,

    /// How the body of an invocation is read; a model's own parameter `inference_type` wins. [default: infer]
    #[arg(long, value_enum, env = "ROUNDHOUSE_SAGEMAKER_INFERENCE_TYPE", help_heading = "SageMaker")]
    pub sagemaker_inference_type: Option<InferenceType>,

    /// What GET /ping speaks of: the process, or its models. [default: ready with a single model, else live]
    #[arg(long, value_enum, env = "ROUNDHOUSE_SAGEMAKER_PING", help_heading = "SageMaker")]
    pub sagemaker_ping: Option<Ping>,

    /// The only endpoint name that the runtime API answers to. [default: any]
    #[arg(long, value_name = "NAME", env = "ROUNDHOUSE_ENDPOINT_NAME", help_heading = "SageMaker")]
    pub endpoint_name: Option<String>,

    /// A TOML file of the keys and tokens that may use the runtime API, and for which models. [default: everybody may]
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_ENDPOINT_KEYS", help_heading = "SageMaker")]
    pub endpoint_keys: Option<PathBuf>,

    /// The largest body of an invocation through the runtime API, in bytes. [default: 6291456, as SageMaker's]
    #[arg(long, value_name = "BYTES", env = "ROUNDHOUSE_ENDPOINT_MAX_PAYLOAD_BYTES", help_heading = "SageMaker")]
    pub endpoint_max_payload_bytes: Option<NonZeroUsize>,

    /// How long an invocation through the runtime API waits for its model's load before it answers 429, in milliseconds.
    /// [default: 60000, as SageMaker's]
    #[arg(long, value_name = "MS", env = "ROUNDHOUSE_ENDPOINT_LOAD_WAIT_MS", help_heading = "SageMaker")]
    pub endpoint_load_wait_ms: Option<u64>,

    /// How long such a load goes on, in milliseconds, also if its callers have left. [default: 360000, as SageMaker's]
    #[arg(long, value_name = "MS", env = "ROUNDHOUSE_ENDPOINT_LOAD_LIMIT_MS", help_heading = "SageMaker")]
    pub endpoint_load_limit_ms: Option<u64>,

    /// The server's certificate in PEM, followed by those between it and a root: the ports of --tls-ports speak TLS then.
    /// Files are read again when they change. [default: none: clear text]
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_TLS_CERT", help_heading = "Security")]
    pub tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert in PEM, without a passphrase.
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_TLS_KEY", help_heading = "Security")]
    pub tls_key: Option<PathBuf>,

    /// The authorities whose certificates clients have to show, in PEM (mutual TLS). [default: none: clients show none]
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_TLS_CLIENT_CA", help_heading = "Security")]
    pub tls_client_ca: Option<PathBuf>,

    /// Which ports speak TLS where --tls-cert is given; the others stay in clear text. [default: http,grpc,sagemaker;
    /// without sagemaker in a SageMaker container]
    #[arg(long, value_enum, env = "ROUNDHOUSE_TLS_PORTS", value_delimiter = ',', help_heading = "Security")]
    pub tls_ports: Option<Vec<TlsPort>>,

    /// A TOML file of bearer tokens (their SHA-256) and what each may ask of which models. [default: none: everybody may
    /// ask everything]
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_ACCESS_TOKENS", help_heading = "Security")]
    pub access_tokens: Option<PathBuf>,

    /// A file that is written once everything listens: {"http": "IP:PORT", "grpc": "IP:PORT", "metrics": "IP:PORT", "sagemaker": "IP:PORT"},
    /// without those that are off.
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_PORT_FILE", help_heading = "Listening")]
    pub port_file: Option<PathBuf>,

    /// Where models run: auto, cpu, gpu:N; several with commas. [default: auto]
    #[arg(long, value_name = "DEVICE", env = "ROUNDHOUSE_DEVICE", value_delimiter = ',', help_heading = "Running")]
    pub device: Option<Vec<DeviceChoice>>,

    /// Threads that execute models on the CPU. [default: one a core]
    #[arg(long, value_name = "N", env = "ROUNDHOUSE_EXECUTOR_THREADS", help_heading = "Running")]
    pub executor_threads: Option<NonZeroUsize>,

    /// Threads that serve connections. [default: one a core]
    #[arg(long, value_name = "N", env = "ROUNDHOUSE_IO_THREADS", help_heading = "Running")]
    pub io_threads: Option<NonZeroUsize>,

    /// The libonnxruntime.so to load. [default: what `roundhouse runtime install onnxruntime` installed]
    #[arg(long, value_name = "FILE", env = "ORT_DYLIB_PATH", help_heading = "Running")]
    pub onnxruntime_library: Option<PathBuf>,

    /// Where backends lie that are libraries of their own: libroundhouse_NAME.so, or the same in a folder NAME.
    /// [default: backends/ beside this program]
    #[arg(long, value_name = "DIR", env = "ROUNDHOUSE_BACKEND_DIRECTORY", help_heading = "Running")]
    pub backend_directory: Option<PathBuf>,

    /// The libtorch that the pytorch backend runs on: the folder of an installed torch 2.11, for the CPU or CUDA, or its lib/.
    /// [default: what `roundhouse runtime install libtorch` installed]
    #[arg(long, value_name = "DIR", env = "ROUNDHOUSE_LIBTORCH_DIR", help_heading = "Running")]
    pub libtorch_dir: Option<PathBuf>,

    /// Whether packages of AOTInductor (.pt2) are run, which are native code: for repositories whose writers are trusted
    /// with this machine. [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", env = "ROUNDHOUSE_ALLOW_AOTINDUCTOR", help_heading = "Running")]
    pub allow_aotinductor: Option<bool>,

    /// Where runtimes are installed. [default: ~/.cache/roundhouse/runtime]
    #[arg(long, value_name = "DIR", env = "ROUNDHOUSE_RUNTIME_DIR", help_heading = "Running")]
    pub runtime_dir: Option<PathBuf>,

    /// Whether clients on this machine may register shared memory and have tensors read from it and written to it.
    /// [default: false]
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", env = "ROUNDHOUSE_ALLOW_CLIENT_SHM", help_heading = "Running")]
    pub allow_client_shm: Option<bool>,

    /// Requests that may wait for one model; a full queue answers 429. [default: 1024]
    #[arg(long, value_name = "N", env = "ROUNDHOUSE_QUEUE_CAPACITY", help_heading = "Limits")]
    pub queue_capacity: Option<NonZeroUsize>,

    /// Whether runs wait for the resources that their model's instance_group names in `rate_limiter`: off or
    /// execution_count. Its priority counts either way. [default: off]
    #[arg(long, value_enum, env = "ROUNDHOUSE_RATE_LIMIT", help_heading = "Limits")]
    pub rate_limit: Option<RateLimit>,

    /// How much there is of such a resource, as NAME:COUNT, NAME:COUNT:global or NAME:COUNT:GPU; may be repeated.
    /// [default: the largest need of any instance]
    #[arg(
        long,
        value_name = "RESOURCE",
        env = "ROUNDHOUSE_RATE_LIMIT_RESOURCE",
        value_delimiter = ',',
        help_heading = "Limits"
    )]
    pub rate_limit_resource: Option<Vec<RateLimitResource>>,

    /// How long a request may take, its model's load included, unless it says less; 0 for ever. [default: 60000]
    #[arg(long, value_name = "MS", env = "ROUNDHOUSE_REQUEST_TIMEOUT_MS", help_heading = "Limits")]
    pub request_timeout_ms: Option<u64>,

    /// The largest JSON in a request or after decompression, in bytes. [default: 67108864]
    #[arg(long, value_name = "BYTES", env = "ROUNDHOUSE_MAX_JSON_BYTES", help_heading = "Limits")]
    pub max_json_bytes: Option<usize>,

    /// The largest request body, in bytes. [default: 1073741824]
    #[arg(long, value_name = "BYTES", env = "ROUNDHOUSE_MAX_BODY_BYTES", help_heading = "Limits")]
    pub max_body_bytes: Option<usize>,

    /// The most connections at a time; more wait to be accepted. [default: 8192]
    #[arg(long, value_name = "N", env = "ROUNDHOUSE_MAX_CONNECTIONS", help_heading = "Limits")]
    pub max_connections: Option<NonZeroUsize>,

    /// How long new connections are still taken after SIGTERM, in seconds, while /v2/health/ready and the digest say that the
    /// server is on its way out: what is in memory is answered, and no model is loaded any more. [default: 0]
    #[arg(long, value_name = "S", env = "ROUNDHOUSE_DRAIN_NOTICE_S", help_heading = "Limits")]
    pub drain_notice_s: Option<u64>,

    /// How long requests in flight may take to finish after SIGTERM and --drain-notice-s, in seconds. [default: 30; 25 in a SageMaker container]
    #[arg(long, value_name = "S", env = "ROUNDHOUSE_DRAIN_GRACE_S", help_heading = "Limits")]
    pub drain_grace_s: Option<u64>,

    /// What is logged: error, warn, info, debug, trace, or a tracing filter. [default: info]
    #[arg(long, value_name = "FILTER", env = "ROUNDHOUSE_LOG", help_heading = "Logging")]
    pub log: Option<String>,

    /// Text or JSON log lines. [default: auto]
    #[arg(long, value_enum, env = "ROUNDHOUSE_LOG_FORMAT", help_heading = "Logging")]
    pub log_format: Option<LogFormat>,

    /// What is traced, in Triton's words; may be repeated: level=TIMESTAMPS, level=TENSORS, rate=N (one request in N),
    /// count=N, mode=triton or mode=opentelemetry, triton,file=PATH, triton,log-frequency=N, opentelemetry,url=URL,
    /// opentelemetry,resource=KEY=VALUE, opentelemetry,bsp_max_queue_size=N, opentelemetry,bsp_schedule_delay=MS,
    /// opentelemetry,bsp_max_export_batch_size=N. Several in one variable have a `;` between them. [default: nothing]
    #[arg(
        long,
        value_name = "SETTING",
        env = "ROUNDHOUSE_TRACE_CONFIG",
        value_delimiter = ';',
        help_heading = "Logging"
    )]
    pub trace_config: Option<Vec<String>>,
}

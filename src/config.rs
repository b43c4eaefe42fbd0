//! `ServerConfig`: flags over environment over a TOML file over defaults.
//!
//! *Architecture invariant:* this file is the only reader of the environment.

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::error::{Error, Result};

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

    /// Where the models are: a folder in Triton's layout.
    #[arg(long, value_name = "URI", env = "ROUNDHOUSE_MODEL_REPOSITORY", help_heading = "Models")]
    pub model_repository: Option<String>,

    /// When models are loaded: by the first request, only explicitly, or all at start. [default: on-demand]
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

    /// How long a failed load is remembered before a request tries it again, in milliseconds; an explicit load always
    /// tries. [default: 1000]
    #[arg(long, value_name = "MS", env = "ROUNDHOUSE_LOAD_RETRY_MS", help_heading = "Models")]
    pub load_retry_ms: Option<u64>,

    /// The address to listen on. [default: 127.0.0.1]
    #[arg(long, value_name = "IP", env = "ROUNDHOUSE_ADDRESS", help_heading = "Listening")]
    pub address: Option<IpAddr>,

    /// The port of KServe v2 HTTP; 0 takes any free one. [default: 8000]
    #[arg(long, value_name = "PORT", env = "ROUNDHOUSE_HTTP_PORT", help_heading = "Listening")]
    pub http_port: Option<u16>,

    /// The port of Prometheus metrics; 0 takes any free one. [default: 8002]
    #[arg(long, value_name = "PORT", env = "ROUNDHOUSE_METRICS_PORT", help_heading = "Listening")]
    pub metrics_port: Option<u16>,

    /// A file that is written once everything listens: {"http": "IP:PORT", "metrics": "IP:PORT"}.
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

    /// Where runtimes are installed. [default: ~/.cache/roundhouse/runtime]
    #[arg(long, value_name = "DIR", env = "ROUNDHOUSE_RUNTIME_DIR", help_heading = "Running")]
    pub runtime_dir: Option<PathBuf>,

    /// Requests that may wait for one model; a full queue answers 429. [default: 1024]
    #[arg(long, value_name = "N", env = "ROUNDHOUSE_QUEUE_CAPACITY", help_heading = "Limits")]
    pub queue_capacity: Option<NonZeroUsize>,

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

    /// How long requests in flight may take to finish after SIGTERM, in seconds. [default: 30]
    #[arg(long, value_name = "S", env = "ROUNDHOUSE_DRAIN_GRACE_S", help_heading = "Limits")]
    pub drain_grace_s: Option<u64>,

    /// What is logged: error, warn, info, debug, trace, or a tracing filter. [default: info]
    #[arg(long, value_name = "FILTER", env = "ROUNDHOUSE_LOG", help_heading = "Logging")]
    pub log: Option<String>,

    /// Text or JSON log lines. [default: auto]
    #[arg(long, value_enum, env = "ROUNDHOUSE_LOG_FORMAT", help_heading = "Logging")]
    pub log_format: Option<LogFormat>,
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

/// Everything the server needs to know, complete and checked.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The model repository's URI.
    pub model_repository: String,
    /// When models are loaded.
    pub model_control: ModelControl,
    /// Models to load at start.
    pub load_model: Vec<String>,
    /// What an unknown `config.pbtxt` field is.
    pub unknown_config_fields: UnknownConfigFields,
    /// How many loads run at once.
    pub load_concurrency: usize,
    /// How long a failed load answers for the next requests.
    pub load_retry: Duration,
    /// The address to listen on.
    pub address: IpAddr,
    /// KServe v2 HTTP.
    pub http_port: u16,
    /// Prometheus metrics.
    pub metrics_port: u16,
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
    /// Where runtimes are installed.
    pub runtime_dir: PathBuf,
    /// Requests that may wait for one model.
    pub queue_capacity: usize,
    /// Limits on requests.
    pub limits: RequestLimits,
    /// Time to finish after SIGTERM.
    pub drain_grace: Duration,
    /// The log filter.
    pub log: String,
    /// The log format.
    pub log_format: LogFormat,
}

impl ServeOptions {
    /// The complete configuration: these options, then those of the `--config` file, then the defaults.
    ///
    /// # Errors
    /// `InvalidArgument` naming the option that is missing or wrong.
    pub fn resolve(self) -> Result<ServerConfig> {
        let file = match &self.config {
            Some(path) => Self::from_file(path)?,
            None => Self::default(),
        };
        self.or(file).complete()
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
            model_repository, model_control, load_model, unknown_config_fields, load_concurrency, load_retry_ms,
            address, http_port, metrics_port, port_file, device, executor_threads, io_threads, onnxruntime_library,
            runtime_dir, max_connections, queue_capacity, request_timeout_ms, max_json_bytes, max_body_bytes, drain_grace_s, log,
            log_format,
        }
    }

    fn complete(self) -> Result<ServerConfig> {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let timeout_ms = self.request_timeout_ms.unwrap_or(60_000);
        let model_repository = self.model_repository.ok_or_else(|| {
            Error::invalid(
                "--model-repository is missing: give the folder that holds the models, for example models-examples",
            )
        })?;
        Ok(ServerConfig {
            model_repository,
            model_control: self.model_control.unwrap_or_default(),
            load_model: self.load_model.unwrap_or_default(),
            unknown_config_fields: self.unknown_config_fields.unwrap_or_default(),
            load_concurrency: self.load_concurrency.map_or(4, NonZeroUsize::get),
            load_retry: Duration::from_millis(self.load_retry_ms.unwrap_or(1000)),
            address: self.address.unwrap_or(IpAddr::from([127, 0, 0, 1])),
            http_port: self.http_port.unwrap_or(8000),
            metrics_port: self.metrics_port.unwrap_or(8002),
            port_file: self.port_file,
            devices: self.device.unwrap_or_else(|| vec![DeviceChoice::Auto]),
            executor_threads: self.executor_threads.map_or(cores, NonZeroUsize::get),
            io_threads: self.io_threads.map_or(cores, NonZeroUsize::get),
            onnxruntime_library: self.onnxruntime_library,
            runtime_dir: match self.runtime_dir {
                Some(dir) => dir,
                None => default_runtime_dir()?,
            },
            queue_capacity: self.queue_capacity.map_or(1024, NonZeroUsize::get),
            limits: RequestLimits {
                json_bytes: self.max_json_bytes.unwrap_or(64 << 20),
                body_bytes: self.max_body_bytes.unwrap_or(1 << 30),
                connections: self.max_connections.map_or(8192, NonZeroUsize::get),
                body_chunks: 65_536,
                timeout: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms)),
            },
            drain_grace: Duration::from_secs(self.drain_grace_s.unwrap_or(30)),
            log: self.log.unwrap_or_else(|| "info".to_owned()),
            log_format: self.log_format.unwrap_or_default(),
        })
    }
}

/// The folder runtimes are installed in: `ROUNDHOUSE_RUNTIME_DIR`, else `roundhouse/runtime` in the user's cache.
///
/// # Errors
/// `InvalidArgument` where neither that nor a home folder is set.
#[expect(clippy::disallowed_methods, reason = "this file is where the environment is read")]
pub fn default_runtime_dir() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("ROUNDHOUSE_RUNTIME_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("roundhouse/runtime")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/roundhouse/runtime")))
        .ok_or_else(|| Error::invalid("neither HOME nor ROUNDHOUSE_RUNTIME_DIR is set: set one, or name the folder with --runtime-dir (serve) or --dir (runtime)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "model-repository = 'from-file'\nhttp-port = 9000\ndevice = ['cpu']\n").unwrap();
        let options = ServeOptions {
            config: Some(file.path().to_owned()),
            http_port: Some(9100),
            runtime_dir: Some("rt".into()),
            ..ServeOptions::default()
        };
        let config = options.resolve().unwrap();
        assert_eq!(config.model_repository, "from-file");
        assert_eq!(config.http_port, 9100);
        assert_eq!(config.metrics_port, 8002);
        assert_eq!(config.devices, [DeviceChoice::Cpu]);
    }

    #[test]
    fn a_misspelt_option_in_the_file_is_named_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "model-repository = 'x'\nhttp-prot = 1\n").unwrap();
        let options = ServeOptions { config: Some(file.path().to_owned()), ..ServeOptions::default() };
        let text = options.resolve().unwrap_err().report();
        assert!(text.contains("http-prot") && text.contains("line 2"), "{text}");
    }

    #[test]
    fn a_missing_repository_says_what_to_give() {
        let text = ServeOptions::default().resolve().unwrap_err().to_string();
        assert!(text.contains("--model-repository"), "{text}");
    }

    #[test]
    fn devices_are_parsed() {
        assert_eq!("gpu:3".parse::<DeviceChoice>().unwrap(), DeviceChoice::Gpu(3));
        assert!("gpu".parse::<DeviceChoice>().is_err());
        assert!("tpu:0".parse::<DeviceChoice>().is_err());
    }
}

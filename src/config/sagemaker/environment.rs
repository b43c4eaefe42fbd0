//! The variables that SageMaker and its users start a container with, as options. They are those of Triton's container.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::{Args, Command, FromArgMatches};

use super::{InferenceType, Ping, Remarks, SINGLE_MODEL, SageMakerMode, words};
use crate::config::amount::{Amount, Limited, MemoryLimit};
use crate::config::{Port, ServeOptions, ServerConfig};
use crate::error::{Error, Result};

const MULTI_MODEL: &str = "SAGEMAKER_MULTI_MODEL";
const BIND_TO_PORT: &str = "SAGEMAKER_BIND_TO_PORT";
const SAFE_PORT_RANGE: &str = "SAGEMAKER_SAFE_PORT_RANGE";

/// What the names of Triton's variables begin with.
const TRITON: &str = "SAGEMAKER_TRITON_";

/// The model of `/invocations`.
pub(super) const DEFAULT_MODEL_NAME: &str = "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME";

const INFERENCE_TYPE: &str = "SAGEMAKER_TRITON_INFERENCE_TYPE";
const OVERRIDE_PING_MODE: &str = "SAGEMAKER_TRITON_OVERRIDE_PING_MODE";
const PING_MODE: &str = "SAGEMAKER_TRITON_PING_MODE";
const ALLOW_METRICS: &str = "SAGEMAKER_TRITON_ALLOW_METRICS";
const METRICS_PORT: &str = "SAGEMAKER_TRITON_METRICS_PORT";
const ALLOW_GRPC: &str = "SAGEMAKER_TRITON_ALLOW_GRPC";
const GRPC_PORT: &str = "SAGEMAKER_TRITON_GRPC_PORT";
const THREAD_COUNT: &str = "SAGEMAKER_TRITON_THREAD_COUNT";
const LOG_VERBOSE: &str = "SAGEMAKER_TRITON_LOG_VERBOSE";
const LOG_INFO: &str = "SAGEMAKER_TRITON_LOG_INFO";
const LOG_WARNING: &str = "SAGEMAKER_TRITON_LOG_WARNING";
const LOG_ERROR: &str = "SAGEMAKER_TRITON_LOG_ERROR";
const MODEL_LOAD_GPU_LIMIT: &str = "SAGEMAKER_TRITON_MODEL_LOAD_GPU_LIMIT";
const ADDITIONAL_ARGS: &str = "SAGEMAKER_TRITON_ADDITIONAL_ARGS";

/// Variables that have a meaning here.
const READ: [&str; 15] = [
    DEFAULT_MODEL_NAME,
    INFERENCE_TYPE,
    OVERRIDE_PING_MODE,
    PING_MODE,
    ALLOW_METRICS,
    METRICS_PORT,
    ALLOW_GRPC,
    GRPC_PORT,
    THREAD_COUNT,
    LOG_VERBOSE,
    LOG_INFO,
    LOG_WARNING,
    LOG_ERROR,
    MODEL_LOAD_GPU_LIMIT,
    ADDITIONAL_ARGS,
];

/// Variables of Triton that say nothing to this server: it keeps models of the same name apart as it is, and has neither Python's nor
/// TensorFlow's backend nor a pool of buffers.
const WITHOUT_EFFECT: [&str; 5] = [
    "SAGEMAKER_TRITON_DISABLE_MODEL_NAMESPACING",
    "SAGEMAKER_TRITON_BUFFER_MANAGER_THREAD_COUNT",
    "SAGEMAKER_TRITON_SHM_DEFAULT_BYTE_SIZE",
    "SAGEMAKER_TRITON_SHM_GROWTH_BYTE_SIZE",
    "SAGEMAKER_TRITON_TENSORFLOW_VERSION",
];

/// The port of metrics where the variables name none, as in Triton.
const USUAL_METRICS_PORT: u16 = 8002;

/// The port of gRPC where the variables name none, as in Triton.
const USUAL_GRPC_PORT: u16 = 8001;

/// What is around the server where SageMaker starts it: the platform's variables and its folder for a single model.
#[derive(Clone, Debug)]
pub(in crate::config) struct Platform {
    /// The variables whose names begin with `SAGEMAKER_`; those that are empty count as not set.
    variables: BTreeMap<String, String>,
    single_model: PathBuf,
}

impl Platform {
    /// What is around this process.
    pub(in crate::config) fn of_this_process() -> Self {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self::new(std::env::vars_os().map(|(name, value)| (text(name), text(value))), SINGLE_MODEL.into())
    }

    /// These variables, and this folder.
    pub(in crate::config) fn new(variables: impl IntoIterator<Item = (String, String)>, single_model: PathBuf) -> Self {
        let is_ours = |(name, value): &(String, String)| name.starts_with("SAGEMAKER_") && !value.is_empty();
        Self { variables: variables.into_iter().filter(is_ours).collect(), single_model }
    }

    /// The folder of a single model.
    pub(in crate::config) fn single_model(&self) -> &Path {
        &self.single_model
    }

    /// What the server is, `asked` being what its operator said; never [`SageMakerMode::Auto`].
    pub(in crate::config) fn mode(
        &self,
        asked: SageMakerMode,
        has_repository: bool,
        remarks: &mut Remarks,
    ) -> SageMakerMode {
        let multi_model = self.get(MULTI_MODEL);
        match asked {
            SageMakerMode::Off | SageMakerMode::SingleModel | SageMakerMode::MultiModel => asked,
            SageMakerMode::Auto if multi_model == Some("true") => {
                remarks.notes.push(format!("the container of a multi-model endpoint, since {MULTI_MODEL} is true"));
                SageMakerMode::MultiModel
            }
            SageMakerMode::Auto => {
                if let Some(other) = multi_model.filter(|value| *value != "false") {
                    remarks
                        .warnings
                        .push(format!("{MULTI_MODEL} is '{other}': only 'true' makes a multi-model container"));
                }
                if has_repository || !self.single_model.is_dir() {
                    return SageMakerMode::Off;
                }
                remarks.notes.push(format!(
                    "the container of an endpoint with one model, since {} is there and no --model-repository is given",
                    self.single_model.display()
                ));
                SageMakerMode::SingleModel
            }
        }
    }

    /// What the variables say; nothing outside a container.
    ///
    /// # Errors
    /// `InvalidArgument` naming the variable whose value is wrong.
    pub(in crate::config) fn options(&self, mode: SageMakerMode, remarks: &mut Remarks) -> Result<ServeOptions> {
        if !mode.is_container() {
            self.remark(
                remarks,
                |name| name.starts_with(TRITON) || name == BIND_TO_PORT,
                |names| format!("{names} does not count: this is no container of SageMaker (--sagemaker)"),
            );
            return Ok(ServeOptions::default());
        }
        self.remark_what_has_no_effect(mode, remarks);
        let ping_mode = if self.get(OVERRIDE_PING_MODE).is_some() { OVERRIDE_PING_MODE } else { PING_MODE };
        let inference_types = [
            ("infer", InferenceType::Infer),
            ("generate", InferenceType::Generate),
            ("generate_stream", InferenceType::GenerateStream),
        ];
        let named = ServeOptions {
            sagemaker_port: self.port(BIND_TO_PORT)?.map(Port::At),
            sagemaker_model: self
                .get(DEFAULT_MODEL_NAME)
                .filter(|_| mode == SageMakerMode::SingleModel)
                .map(str::to_owned),
            sagemaker_inference_type: self.one_of(INFERENCE_TYPE, &inference_types)?,
            sagemaker_ping: self.one_of(ping_mode, &[("live", Ping::Live), ("ready", Ping::Ready)])?,
            metrics_port: self.metrics_port(remarks)?.map(Port::At),
            grpc_port: self.grpc_port(remarks)?.map(Port::At),
            io_threads: self.read(THREAD_COUNT, "a number from 1", |value| value.parse::<NonZeroUsize>().ok())?,
            log: self.log_level()?.map(str::to_owned),
            memory_limit: self.gpu_limit()?,
            ..ServeOptions::default()
        };
        Ok(self.additional_args()?.or(named))
    }

    /// Whether the other ports than SageMaker's are those that the platform allows.
    ///
    /// # Errors
    /// `InvalidArgument` with a port that is not.
    pub(in crate::config) fn check_ports(&self, config: &ServerConfig) -> Result<()> {
        if !config.sagemaker.mode.is_container() {
            return Ok(());
        }
        let Some(range) = self.read(SAFE_PORT_RANGE, "two ports, as in 23000-23999", range)? else { return Ok(()) };
        let http = ("--http-port", "--http-port", config.http_port);
        let metrics = ("--metrics-port", "--metrics-port or SAGEMAKER_TRITON_METRICS_PORT", config.metrics_port);
        let grpc = ("--grpc-port", "--grpc-port or SAGEMAKER_TRITON_GRPC_PORT", config.grpc.port);
        for (flag, mend, port) in [http, grpc, metrics] {
            let lies = match port {
                Some(0) => "takes any free port, which may lie",
                Some(port) if !range.contains(&port) => "lies",
                Some(_) | None => continue,
            };
            return Err(Error::invalid(format!(
                "{flag} {} {lies} outside {SAFE_PORT_RANGE} {}-{}: give {mend} a port in that range, or off",
                port.unwrap_or_default(),
                range.start(),
                range.end()
            )));
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// The value of a variable, `None` where it is not set.
    fn read<T>(&self, name: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>> {
        let read =
            |value| parse(value).ok_or_else(|| Error::invalid(format!("{name} is '{value}', expected {expected}")));
        self.get(name).map(read).transpose()
    }

    fn one_of<T: Copy>(&self, name: &str, values: &[(&str, T)]) -> Result<Option<T>> {
        let expected = format!("one of: {}", values.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", "));
        self.read(name, &expected, |value| values.iter().find(|(word, _)| *word == value).map(|(_, meant)| *meant))
    }

    fn is_true(&self, name: &str) -> Result<Option<bool>> {
        self.read(name, "true or false", truth)
    }

    fn port(&self, name: &str) -> Result<Option<u16>> {
        self.read(name, "a port from 1 to 65535", |value| value.parse().ok().filter(|port| *port != 0))
    }

    fn metrics_port(&self, remarks: &mut Remarks) -> Result<Option<u16>> {
        let (allowed, port) = (self.is_true(ALLOW_METRICS)?.unwrap_or(false), self.port(METRICS_PORT)?);
        if port.is_some() && !allowed {
            remarks.warnings.push(format!("{METRICS_PORT} opens no port without {ALLOW_METRICS}=true"));
        }
        Ok(allowed.then(|| port.unwrap_or(USUAL_METRICS_PORT)))
    }

    fn grpc_port(&self, remarks: &mut Remarks) -> Result<Option<u16>> {
        let (allowed, port) = (self.is_true(ALLOW_GRPC)?.unwrap_or(false), self.port(GRPC_PORT)?);
        if port.is_some() && !allowed {
            remarks.warnings.push(format!("{GRPC_PORT} opens no port without {ALLOW_GRPC}=true"));
        }
        Ok(allowed.then(|| port.unwrap_or(USUAL_GRPC_PORT)))
    }

    /// The most that is logged, `None` where no variable says so. Triton switches each level on its own.
    fn log_level(&self) -> Result<Option<&'static str>> {
        let level = |value: &str| truth(value).or_else(|| value.parse::<u32>().ok().map(|level| level > 0));
        let verbose = self.read(LOG_VERBOSE, "true, false or a level from 0", level)?;
        let [info, warning, error] = [self.is_true(LOG_INFO)?, self.is_true(LOG_WARNING)?, self.is_true(LOG_ERROR)?];
        if [verbose, info, warning, error].iter().all(Option::is_none) {
            return Ok(None);
        }
        let levels = [
            (verbose.unwrap_or(false), "debug"),
            (info.unwrap_or(true), "info"),
            (warning.unwrap_or(true), "warn"),
            (error.unwrap_or(true), "error"),
        ];
        Ok(Some(levels.into_iter().find_map(|(is_on, level)| is_on.then_some(level)).unwrap_or("off")))
    }

    /// Flags of ours in one variable.
    fn additional_args(&self) -> Result<ServeOptions> {
        let Some(text) = self.get(ADDITIONAL_ARGS) else { return Ok(ServeOptions::default()) };
        let wrong = |cause: String| Error::invalid(format!("{ADDITIONAL_ARGS}: {cause}"));
        let words = words::split(text).map_err(|error| wrong(error.to_string()))?;
        // The process's own variables are read already, and win.
        let command = ServeOptions::augment_args(Command::new("serve").no_binary_name(true).disable_help_flag(true))
            .mut_args(|arg| arg.env(None::<&str>));
        let options = command
            .try_get_matches_from(words)
            .and_then(|matches| ServeOptions::from_arg_matches(&matches))
            .map_err(|error| wrong(complaint(&error)))?;
        // What is read before these flags cannot be among them.
        for (is_given, flag, variable) in [
            (options.config.is_some(), "--config", "ROUNDHOUSE_CONFIG"),
            (options.sagemaker.is_some(), "--sagemaker", "ROUNDHOUSE_SAGEMAKER"),
        ] {
            if is_given {
                return Err(wrong(format!("{flag} cannot be given here: set {variable}")));
            }
        }
        Ok(options)
    }

    fn remark_what_has_no_effect(&self, mode: SageMakerMode, remarks: &mut Remarks) {
        let is_idle = |name: &str| {
            WITHOUT_EFFECT.contains(&name) || (name == DEFAULT_MODEL_NAME && mode == SageMakerMode::MultiModel)
        };
        self.remark(remarks, is_idle, |names| format!("accepted without an effect: {names}"));
        let unknown = |name: &&String| {
            name.starts_with(TRITON) && !READ.contains(&name.as_str()) && !WITHOUT_EFFECT.contains(&name.as_str())
        };
        let unknown = self.variables.keys().filter(unknown).cloned().collect::<Vec<_>>();
        if !unknown.is_empty() {
            remarks.warnings.push(format!("unknown variables, which have no effect: {}", unknown.join(", ")));
        }
    }

    /// How much of each GPU models may take. Triton looks at it after a load; here it is the book's limit.
    fn gpu_limit(&self) -> Result<Option<Vec<MemoryLimit>>> {
        let fraction = |value: &str| value.parse::<f64>().ok().filter(|part| (0.0..=1.0).contains(part));
        let limit = self.read(MODEL_LOAD_GPU_LIMIT, "a fraction from 0 to 1", fraction)?;
        Ok(limit.map(|part| vec![MemoryLimit { device: Limited::EveryGpu, amount: Amount::Fraction(part) }]))
    }

    /// One note about the variables of these names, if any of them is set.
    fn remark(&self, remarks: &mut Remarks, about: impl Fn(&str) -> bool, note: impl FnOnce(String) -> String) {
        let names = self.variables.keys().map(String::as_str).filter(|name| about(name)).collect::<Vec<_>>();
        if !names.is_empty() {
            remarks.notes.push(note(names.join(", ")));
        }
    }
}

fn truth(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

fn range(value: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = value.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (0 < first && first <= last).then_some(first..=last)
}

/// What is wrong with a flag, in one line.
fn complaint(error: &clap::Error) -> String {
    match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (clap::error::ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) => format!(
            "there is no flag '{flag}': these are the flags of `roundhouse serve --help`; those of tritonserver are others"
        ),
        _ => {
            let text = error.render().to_string();
            let line = text.lines().next().unwrap_or_default();
            line.strip_prefix("error: ").unwrap_or(line).to_owned()
        }
    }
}

#[cfg(test)]
mod tests;

//! Who may call what: the kind of a call by its path, before anything of its message is read, and the model that a message
//! is about once it is there. The decisions are those of the same questions over HTTP (`kserve_http/rights.rs`).

use http::HeaderMap;
use http::Response;
use tonic::{Code, Status};

use super::proto::health::HealthCheckRequest;
use super::proto::inference as pb;
use super::reply::{self, GrpcBody};
use super::{GrpcService, HEALTH, INFERENCE, log_failure};
use crate::error::Error;
use crate::frontend::access::{Class, Denied, EVERY_MODEL};
use crate::frontend::status::grpc_status;
use crate::telemetry::trace::record::Trace;

/// The right that a call needs. What is no call here needs the least that a token has, so that nobody is told what there
/// is.
pub(super) fn class_of(path: &str) -> Class {
    if path.starts_with(HEALTH) {
        return Class::Health;
    }
    match path.strip_prefix(INFERENCE).unwrap_or_default() {
        "ModelInfer" | "ModelStreamInfer" => Class::Inference,
        "ServerLive" | "ServerReady" => Class::Health,
        "ModelStatistics" => Class::Statistics,
        "RepositoryIndex" | "RepositoryModelLoad" | "RepositoryModelUnload" => Class::ModelRepository,
        "SystemSharedMemoryStatus"
        | "SystemSharedMemoryRegister"
        | "SystemSharedMemoryUnregister"
        | "CudaSharedMemoryStatus"
        | "CudaSharedMemoryRegister"
        | "CudaSharedMemoryUnregister" => Class::SharedMemory,
        "TraceSetting" => Class::Trace,
        "LogSettings" => Class::Logging,
        _ => Class::Metadata,
    }
}

/// What a message is about, as far as rights go.
pub(super) trait Subject {
    /// The right and the model that the message needs beside the right of its call; nothing where the call's is enough.
    /// `class` is the call's.
    fn needed(&self, class: Class) -> Option<(Class, &str)>;
}

macro_rules! subjects {
    ($($message:ty: |$asked:pat_param, $class:pat_param| $needed:expr;)*) => {
        $(impl Subject for $message {
            fn needed(&self, $class: Class) -> Option<(Class, &str)> {
                let $asked = self;
                $needed
            }
        })*
    };
}

subjects! {
    pb::ServerLiveRequest: |_, _| None;
    pb::ServerReadyRequest: |_, _| None;
    pb::ServerMetadataRequest: |_, _| None;
    pb::ModelReadyRequest: |asked, class| Some((class, &asked.name));
    pb::ModelMetadataRequest: |asked, class| Some((class, &asked.name));
    pb::ModelConfigRequest: |asked, class| Some((class, &asked.name));
    pb::ModelStatisticsRequest: |asked, class| Some((class, one_or_all(&asked.name)));
    pb::RepositoryIndexRequest: |_, class| Some((class, EVERY_MODEL));
    pb::RepositoryModelLoadRequest: |asked, class| Some((class, &asked.model_name));
    pb::RepositoryModelUnloadRequest: |asked, class| Some((class, &asked.model_name));
    // A model's health is what a model is, as over HTTP.
    HealthCheckRequest: |asked, _| match asked.service.as_str() {
        "" | "inference.GRPCInferenceService" => None,
        model => Some((Class::Metadata, model)),
    };
    // Without a model it is about the settings of the server.
    pb::TraceSettingRequest: |asked, class| (!asked.model_name.is_empty()).then_some((class, &asked.model_name));
    pb::SystemSharedMemoryStatusRequest: |_, _| None;
    pb::SystemSharedMemoryRegisterRequest: |_, _| None;
    pb::SystemSharedMemoryUnregisterRequest: |_, _| None;
    pb::CudaSharedMemoryStatusRequest: |_, _| None;
    pb::CudaSharedMemoryRegisterRequest: |_, _| None;
    pb::CudaSharedMemoryUnregisterRequest: |_, _| None;
    pb::LogSettingsRequest: |_, _| None;
}

/// A list of all models where no name is given.
fn one_or_all(name: &str) -> &str {
    if name.is_empty() { EVERY_MODEL } else { name }
}

/// Why a call is not answered.
#[derive(Debug)]
pub(super) enum CallError {
    /// Whoever asks may not.
    Denied(Denied),
    /// Anything else.
    Failed(Error),
}

impl From<Denied> for CallError {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl CallError {
    /// The status that says so.
    pub(super) fn status(&self) -> Status {
        match self {
            Self::Failed(error) => grpc_status(error),
            Self::Denied(denied) => {
                let code = if denied.is_forbidden() { Code::PermissionDenied } else { Code::Unauthenticated };
                Status::new(code, denied.to_string())
            }
        }
    }

    /// The whole text, for an item of a stream.
    pub(super) fn text(&self) -> String {
        match self {
            Self::Failed(error) => error.report(),
            Self::Denied(denied) => denied.to_string(),
        }
    }

    /// The answer, after a line in the log.
    pub(super) fn answer(&self, subject: &str, headers: &HeaderMap) -> Response<GrpcBody> {
        self.log(subject, headers);
        match self {
            Self::Failed(error) => reply::error(error),
            Self::Denied(_) => reply::status(&self.status()),
        }
    }

    /// Says in the request's trace that it failed.
    pub(super) fn trace(&self, trace: Option<&Trace>) {
        if let (Self::Failed(error), Some(trace)) = (self, trace) {
            trace.failed(error);
        }
    }

    /// A line in the log.
    pub(super) fn log(&self, subject: &str, headers: &HeaderMap) {
        match self {
            Self::Failed(error) => log_failure(subject, headers, error),
            Self::Denied(denied) => tracing::debug!(subject, %denied, "call refused"),
        }
    }
}

impl GrpcService {
    /// Whether whoever sent these headers may make this call, whatever it is about.
    pub(super) fn check_call(&self, headers: &HeaderMap, path: &str) -> Result<(), Denied> {
        self.0.access.check(headers, class_of(path), None)
    }

    /// Whether they may ask this.
    pub(super) fn check_subject(&self, headers: &HeaderMap, path: &str, asked: &impl Subject) -> Result<(), Denied> {
        match asked.needed(class_of(path)) {
            None => Ok(()),
            Some((class, model)) => self.0.access.check(headers, class, Some(model)),
        }
    }

    /// Whether they may run this model.
    pub(super) fn check_inference(&self, headers: &HeaderMap, model: &str) -> Result<(), Denied> {
        self.0.access.check(headers, Class::Inference, Some(model))
    }
}

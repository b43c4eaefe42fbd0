//! Settings that change while the server runs: what is traced, what is logged.

use std::sync::Arc;
use std::time::Instant;

use super::InferenceServer;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{InferenceRequest, InferenceResponse};
use crate::lifecycle::handle::ModelHandle;
use crate::telemetry::logging::{self, LogSettings, LogUpdate};
use crate::telemetry::trace::activity::Activity;
use crate::telemetry::trace::context::Caller;
use crate::telemetry::trace::record::Trace;
use crate::telemetry::trace::settings::{TraceSettings, TraceUpdate};

impl InferenceServer {
    /// A trace for a request to `model` that arrived at `arrived`, if it is to be traced. `caller` reads who called, and is
    /// asked only where that matters.
    #[must_use]
    pub fn sample(&self, model: &str, caller: impl FnOnce() -> Option<Caller>, arrived: Instant) -> Option<Arc<Trace>> {
        self.0.tracer.sample(model, caller, arrived)
    }

    /// What is traced of a model, or of all without settings of their own.
    ///
    /// # Errors
    /// `InvalidArgument` for a model that there is not, as in Triton.
    pub async fn trace_settings(&self, model: Option<&str>) -> Result<TraceSettings> {
        self.check_is_known(model).await?;
        Ok(self.0.tracer.settings(model))
    }

    /// Changes what is traced, as a whole or not at all, and gives what holds then.
    ///
    /// # Errors
    /// `InvalidArgument` for a model that there is not, or where traces are wanted and cannot be made so.
    pub async fn update_trace_settings(&self, model: Option<&str>, update: &TraceUpdate) -> Result<TraceSettings> {
        self.check_is_known(model).await?;
        self.0.tracer.update(model, update)
    }

    async fn check_is_known(&self, model: Option<&str>) -> Result<()> {
        let Some(name) = model else { return Ok(()) };
        if self.resident_model(name, None).is_ok() || self.model_residency(name).is_some() {
            return Ok(());
        }
        match self.explain(name).await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidArgument) => {
                let shown: String = name.chars().take(256).collect();
                Err(Error::invalid(format!("Request for unknown model : {shown}")))
            }
            Err(error) => Err(error),
        }
    }

    /// What is logged.
    #[must_use]
    pub fn log_settings(&self) -> LogSettings {
        logging::settings()
    }

    /// Changes what is logged, for the whole process, and gives what holds then.
    ///
    /// # Errors
    /// `Internal` where the process's log is not the server's.
    pub fn update_log_settings(&self, update: &LogUpdate) -> Result<LogSettings> {
        logging::update(update)
    }
}

/// Says in the request's trace that the model is asked.
pub(super) fn trace_begin(trace: &Trace, model: &ModelHandle, request: &InferenceRequest) {
    if !model.waited().is_zero() {
        trace.loaded(model.from().name(), model.waited());
    }
    trace.asks(&model.id.name, model.id.version, &request.id, Instant::now());
    for input in &request.inputs {
        trace.tensor(Activity::TensorQueueInput, &input.name, &input.tensor);
    }
}

/// Says in the trace of a request to a decoupled model that an answer is there, and with the last one how it ended.
pub(super) fn trace_answer(trace: &Trace, answered: &Result<InferenceResponse>) {
    match answered {
        Ok(response) if !response.last => trace.mark(Activity::InferResponseComplete, Instant::now()),
        // The end without more to say is no answer.
        Ok(response) if response.outputs.is_empty() => trace.mark(Activity::RequestEnd, Instant::now()),
        last => trace_end(trace, last),
    }
}

/// Says in the request's trace how it ended.
pub(super) fn trace_end(trace: &Trace, answered: &Result<InferenceResponse>) {
    match answered {
        Ok(response) => {
            trace.mark(Activity::InferResponseComplete, Instant::now());
            for output in &response.outputs {
                trace.tensor(Activity::TensorBackendOutput, &output.name, &output.tensor);
            }
        }
        Err(error) => trace.failed(error),
    }
    trace.mark(Activity::RequestEnd, Instant::now());
}

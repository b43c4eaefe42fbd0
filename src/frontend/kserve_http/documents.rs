//! Health, metadata, configuration and statistics as JSON documents.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::super::config_json;
use super::super::metrics_http::readiness;
use super::{Kserve, empty, json as document};
use crate::error::{Error, Result};
use crate::inference::{Deadline, Version};
use crate::lifecycle::handle::{LoadedVersion, TensorMetadata};
use crate::lifecycle::state::ModelState;
use crate::metrics::statistics::DurationSum;
use crate::server;
use crate::server::{BackendStatus, InferenceServer};

use super::super::status::Failure;

/// The extensions of the protocol that are served.
const EXTENSIONS: &[&str] = &[
    "classification",
    "sequence",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
    "generate",
];

/// Those that are served where clients may use shared memory.
const SHARED_MEMORY: &[&str] = &["system_shared_memory", "cuda_shared_memory"];

/// The extensions that this server serves.
pub(in crate::frontend) fn extensions(server: &InferenceServer) -> impl Iterator<Item = &'static str> + use<> {
    let more = if server.shared_memory().is_allowed() { SHARED_MEMORY } else { &[] };
    EXTENSIONS.iter().chain(more).copied()
}

pub(super) async fn live() -> Response {
    empty()
}

pub(super) async fn ready(State(kserve): State<Kserve>) -> Response {
    let server = kserve.server();
    if let Err(error) = readiness(server) {
        return Failure(error).into_response();
    }
    let sick = server.sick_devices();
    if sick.is_empty() {
        return empty();
    }
    let rows = sick.iter().map(|(device, why)| json!({"device": device.to_string(), "reason": why}));
    document(json!({"sick_devices": rows.collect::<Value>()}).to_string())
}

pub(super) async fn server_metadata(State(kserve): State<Kserve>) -> Response {
    let backends: Value = kserve
        .server()
        .backends()
        .into_iter()
        .map(|BackendStatus { name, unavailable }| match unavailable {
            None => json!({"name": name, "available": true}),
            Some(reason) => json!({"name": name, "available": false, "reason": reason}),
        })
        .collect();
    let extensions: Value = extensions(kserve.server()).collect();
    let body = json!({
        "name": server::NAME,
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": extensions,
        "backends": backends,
    });
    document(body.to_string())
}

/// `GET /v2/models`, which the protocol lacks: every model of the repository and the states of its versions.
pub(super) async fn models(State(kserve): State<Kserve>) -> Response {
    match kserve.server().repository_index().await {
        Ok(index) => {
            let models: Value = index
                .into_iter()
                .map(|entry| {
                    let ready = entry.versions.iter().any(|row| row.state == ModelState::Ready);
                    let versions: Value = entry
                        .versions
                        .iter()
                        .map(|row| {
                            json!({
                                "version": row.version.map(|version| version.to_string()),
                                "state": row.state.name(),
                                "reason": row.reason,
                            })
                        })
                        .collect();
                    json!({"name": entry.name, "ready": ready, "versions": versions})
                })
                .collect();
            document(json!({"models": models}).to_string())
        }
        Err(error) => Failure(error).into_response(),
    }
}

/// Loads the model if it must and may: who asks for metadata is about to ask for more.
pub(super) async fn model_metadata(
    kserve: &Kserve,
    name: &str,
    version: Option<Version>,
    deadline: Option<Deadline>,
) -> Result<Response> {
    let handle = kserve.server().model(name, version, deadline).await?;
    let versions: Vec<String> = match version {
        Some(version) => vec![version.to_string()],
        None => {
            kserve.server().versions_of(&handle.id.name).iter().map(|loaded| loaded.id.version.to_string()).collect()
        }
    };
    let platform = if handle.config.platform.is_empty() { &handle.config.backend } else { &handle.config.platform };
    let tensors = |tensors: &[TensorMetadata]| -> Value {
        tensors
            .iter()
            .map(|tensor| json!({"name": tensor.name.as_str(), "datatype": tensor.data_type.name(), "shape": tensor.dims}))
            .collect()
    };
    let body = json!({
        "name": &*handle.id.name,
        "versions": versions,
        "platform": platform,
        "inputs": tensors(&handle.inputs),
        "outputs": tensors(&handle.outputs),
    });
    Ok(document(body.to_string()))
}

/// Whether the model is in memory, or sleeps. Loads nothing: probes ask this.
pub(super) fn model_ready(kserve: &Kserve, name: &str, version: Option<Version>) -> Result<Response> {
    match kserve.server().is_model_ready(name, version) {
        true => Ok(empty()),
        // Triton answers 400 in 2.51 and 404 or 503 since; its clients take anything but 200 as not ready.
        false => Err(Error::invalid("Model version not ready")),
    }
}

pub(super) async fn model_config(
    kserve: &Kserve,
    name: &str,
    version: Option<Version>,
    deadline: Option<Deadline>,
) -> Result<Response> {
    let handle = kserve.server().model(name, version, deadline).await?;
    Ok(document(config_json::to_json(&handle.config_now()).to_string()))
}

pub(super) async fn all_statistics(State(kserve): State<Kserve>) -> Response {
    let rows: Value = kserve.server().resident_versions().iter().map(|loaded| statistics(loaded)).collect();
    document(json!({"model_stats": rows}).to_string())
}

pub(super) fn model_statistics(kserve: &Kserve, name: &str, version: Option<Version>) -> Result<Response> {
    let versions = kserve.server().versions_of(name);
    if versions.is_empty() {
        return Err(Error::invalid(format!("requested model '{name}' is not available")));
    }
    let rows: Vec<Value> = versions
        .iter()
        .filter(|loaded| version.is_none_or(|version| version == loaded.id.version))
        .map(|loaded| statistics(loaded))
        .collect();
    if rows.is_empty() {
        return Err(Error::invalid(format!("requested model version is not available for model '{name}'")));
    }
    Ok(document(json!({"model_stats": rows}).to_string()))
}

/// One row of the statistics extension.
fn statistics(loaded: &LoadedVersion) -> Value {
    let own = &loaded.statistics;
    let sum = |sum: &DurationSum| json!({"count": sum.count(), "ns": sum.nanoseconds()});
    let batches: Value = own
        .batches()
        .into_iter()
        .map(|(batch_size, [count, input, infer, output])| {
            let part = |ns: u64| json!({"count": count, "ns": ns});
            json!({
                "batch_size": batch_size,
                "compute_input": part(input),
                "compute_infer": part(infer),
                "compute_output": part(output),
            })
        })
        .collect();
    json!({
        "name": &*loaded.id.name,
        "version": loaded.id.version.to_string(),
        "last_inference": own.last_inference_ms(),
        "inference_count": own.inferences(),
        "execution_count": own.executions(),
        "inference_stats": {
            "success": sum(&own.success),
            "fail": sum(&own.fail),
            "queue": sum(&own.queue),
            "compute_input": sum(&own.compute_input),
            "compute_infer": sum(&own.compute_infer),
            "compute_output": sum(&own.compute_output),
            "cache_hit": sum(&own.cache_hit),
            "cache_miss": sum(&own.cache_miss),
        },
        "response_stats": {},
        "batch_stats": batches,
        "memory_usage": [],
    })
}

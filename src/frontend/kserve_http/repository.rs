//! The model repository extension: index, load, unload.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::Method;
use serde_json::{Map, Value, json};

use super::super::config_json;
use super::super::percent::decode;
use super::super::status::Failure;
use super::{Kserve, empty, json as document, method_not_allowed, not_found, read_control};
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::state::ModelState;
use crate::model_config::ModelConfig;

/// `POST /v2/repository/index`: `{"ready": true}` for the ready versions alone.
pub(super) async fn index(State(kserve): State<Kserve>, request: Request) -> Response {
    try_index(&kserve, request).await.unwrap_or_else(|error| Failure(error).into_response())
}

async fn try_index(kserve: &Kserve, request: Request) -> Result<Response> {
    let body = read_control(request).await?;
    let only_ready = match body.get("ready") {
        None => false,
        Some(Value::Bool(ready)) => *ready,
        Some(_) => return Err(Error::invalid("'ready' must be true or false")),
    };
    let mut rows = Vec::new();
    for entry in kserve.server().repository_index().await? {
        if entry.versions.is_empty() && !only_ready {
            rows.push(json!({"name": entry.name}));
        }
        for row in entry.versions.iter().filter(|row| !only_ready || row.state == ModelState::Ready) {
            let mut object = Map::new();
            object.insert("name".to_owned(), json!(entry.name));
            if let Some(version) = row.version {
                object.insert("version".to_owned(), json!(version.to_string()));
            }
            object.insert("state".to_owned(), json!(row.state.name()));
            if !row.reason.is_empty() {
                object.insert("reason".to_owned(), json!(row.reason));
            }
            rows.push(Value::Object(object));
        }
    }
    Ok(document(Value::Array(rows).to_string()))
}

/// `POST /v2/repository/models/NAME/load` and `/unload`.
pub(super) async fn model_operation(State(kserve): State<Kserve>, request: Request) -> Response {
    let path = request.uri().path().strip_prefix("/v2/repository/models/").unwrap_or_default().to_owned();
    let Some((name, operation)) = path.rsplit_once('/') else { return not_found() };
    let Some(name) = decode(name).filter(|name| !name.is_empty()) else { return not_found() };
    if !matches!(operation, "load" | "unload") {
        return not_found();
    }
    if request.method() != Method::POST {
        return method_not_allowed();
    }
    let result =
        if operation == "load" { load(&kserve, &name, request).await } else { unload(&kserve, &name, request).await };
    result.unwrap_or_else(|error| Failure(error).into_response())
}

pub(super) async fn named_repository() -> Response {
    Failure(Error::unsupported("'repository_name' specification is not supported")).into_response()
}

async fn load(kserve: &Kserve, name: &str, request: Request) -> Result<Response> {
    let body = read_control(request).await?;
    let config = load_parameters(&body)?;
    kserve.server().load_model(name, config).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => error.wrap(format!("failed to load '{name}', failed to poll from model repository")),
        _ => error.wrap("load failed"),
    })?;
    Ok(empty())
}

/// The `parameters` of a control request.
fn parameters(body: &Map<String, Value>) -> Result<Option<&Map<String, Value>>> {
    match body.get("parameters") {
        None => Ok(None),
        Some(Value::Object(parameters)) => Ok(Some(parameters)),
        Some(_) => Err(Error::invalid("'parameters' must be an object")),
    }
}

/// The configuration a load request brings along.
fn load_parameters(body: &Map<String, Value>) -> Result<Option<ModelConfig>> {
    let mut config = None;
    for (key, value) in parameters(body)?.into_iter().flatten() {
        match (key.as_str(), value) {
            ("config", Value::String(text)) => {
                let parsed =
                    config_json::from_json(text.as_bytes()).map_err(|error| error.wrap("parameter 'config'"))?;
                for warning in &parsed.warnings {
                    tracing::warn!("configuration of a load request: {}", warning.message);
                }
                config = Some(parsed.config);
            }
            ("config", _) => return Err(Error::invalid("parameter 'config' must be a string of JSON")),
            (file, _) if file.starts_with("file:") => {
                return Err(Error::unsupported(
                    "files in a load request are not taken: put them into the model repository",
                ));
            }
            (other, _) => {
                return Err(Error::invalid(format!(
                    "unknown parameter '{other}' of a load request, known is 'config'"
                )));
            }
        }
    }
    Ok(config)
}

async fn unload(kserve: &Kserve, name: &str, request: Request) -> Result<Response> {
    let body = read_control(request).await?;
    let mut dependents = false;
    for (key, value) in parameters(&body)?.into_iter().flatten() {
        match value.as_bool().filter(|_| key == "unload_dependents") {
            Some(given) => dependents = given,
            None => {
                return Err(Error::invalid(format!(
                    "unknown parameter '{key}' of an unload request, known is 'unload_dependents' with true or false"
                )));
            }
        }
    }
    kserve.server().unload_model(name, dependents).await?;
    Ok(empty())
}

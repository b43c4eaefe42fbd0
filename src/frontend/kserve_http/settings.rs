//! The trace and logging extensions: what is traced and logged, read and changed.

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::Method;
use serde_json::{Map, Value, json};

use super::super::status::Failure;
use super::{Kserve, json as document, read_control};
use crate::error::{Error, Result};
use crate::telemetry::logging::{LogSettings, LogUpdate, LogValue};
use crate::telemetry::trace::settings::{TraceSettings, TraceUpdate};

/// `GET /v2/trace/setting` and `POST`.
pub(super) async fn trace(State(kserve): State<Kserve>, request: Request) -> Response {
    model_trace(&kserve, None, request).await.unwrap_or_else(|error| Failure(error).into_response())
}

/// The same of one model.
pub(super) async fn model_trace(kserve: &Kserve, model: Option<&str>, request: Request) -> Result<Response> {
    let settings = if request.method() == Method::GET {
        kserve.server().trace_settings(model).await?
    } else {
        let update = read_trace(&read_control(request).await?)?;
        kserve.server().update_trace_settings(model, &update).await?
    };
    Ok(document(trace_document(&settings).to_string()))
}

fn read_trace(body: &Map<String, Value>) -> Result<TraceUpdate> {
    let wrong =
        |kind: &str, key: &str| Error::invalid(format!("attempt to access JSON non-{kind} as {kind} in '{key}'"));
    let mut update = TraceUpdate::default();
    for (key, value) in body {
        let known = matches!(key.as_str(), "trace_level" | "trace_rate" | "trace_count" | "log_frequency");
        match value {
            Value::Null => update.take::<&str>(key, None)?,
            Value::String(text) if key != "trace_level" => update.take(key, Some(&[text]))?,
            Value::Array(levels) if key == "trace_level" => {
                let levels: Option<Vec<&str>> = levels.iter().map(Value::as_str).collect();
                update.take(key, Some(&levels.ok_or_else(|| wrong("string", key))?))?;
            }
            _ if key == "trace_level" => return Err(wrong("array", key)),
            _ if known => return Err(wrong("string", key)),
            // An unknown key is wrong whatever its value.
            _ => update.take(key, Some(&[""]))?,
        }
    }
    Ok(update)
}

fn trace_document(settings: &TraceSettings) -> Value {
    let rows = settings.rows().into_iter().map(|(name, values)| {
        let value = match name {
            "trace_level" => json!(values),
            _ => json!(values.first()),
        };
        (name.to_owned(), value)
    });
    Value::Object(rows.collect())
}

/// `GET /v2/logging` and `POST`.
pub(super) async fn logging(State(kserve): State<Kserve>, request: Request) -> Response {
    try_logging(&kserve, request).await.unwrap_or_else(|error| Failure(error).into_response())
}

async fn try_logging(kserve: &Kserve, request: Request) -> Result<Response> {
    let settings = if request.method() == Method::GET {
        kserve.server().log_settings()
    } else {
        match read_logging(&read_control(request).await?)? {
            update if update == LogUpdate::default() => kserve.server().log_settings(),
            update => kserve.server().update_log_settings(&update)?,
        }
    };
    Ok(document(log_document(settings).to_string()))
}

fn read_logging(body: &Map<String, Value>) -> Result<LogUpdate> {
    let mut update = LogUpdate::default();
    for (key, value) in body {
        let value = match value {
            // As in Triton: what is null stays.
            Value::Null => continue,
            Value::Bool(value) => LogValue::Bool(*value),
            Value::String(value) => LogValue::Text(value),
            other => other.as_u64().map_or(LogValue::Other, LogValue::Number),
        };
        update.take(key, value)?;
    }
    Ok(update)
}

fn log_document(settings: LogSettings) -> Value {
    json!({
        "log_file": "",
        "log_info": settings.info,
        "log_warning": settings.warning,
        "log_error": settings.error,
        "log_verbose_level": settings.verbose_level,
        "log_format": settings.format.name(),
    })
}

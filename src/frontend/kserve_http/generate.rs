//! The generate extension: tensors as plain JSON members, by name, for models that suit it.

use std::time::Instant;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use compact_str::CompactString;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use serde_json::{Map, Value};

use super::super::json::{Cursor, strings};
use super::super::status::Failure;
use super::super::tensor_json::{self, Limits};
use super::{Kserve, json as document, read_control};
use crate::error::{Error, Result};
use crate::inference::{InferenceRequest, InferenceResponse, NamedTensor, ParameterValue, Version};
use crate::lifecycle::handle::{ModelHandle, TensorMetadata};
use crate::tensor::{Shape, Tensor};

/// `POST .../generate`, or with `stream` `.../generate_stream`, whose one answer comes as a server-sent event.
pub(super) async fn generate(
    kserve: &Kserve,
    name: &str,
    version: Option<Version>,
    request: Request,
    stream: bool,
) -> Result<Response> {
    let arrived = Instant::now();
    let headers = request.headers().clone();
    let members = read_control(kserve, request).await?;
    let timeout = members.get("parameters").and_then(|parameters| parameters.get("timeout")).and_then(Value::as_u64);
    let deadline = kserve.deadline(arrived, timeout.map(std::time::Duration::from_micros), &headers);
    let handle = kserve.server().model(name, version, deadline).await?;
    let mut inference = read_members(&handle, members, &kserve.0.tensor_limits)?;
    inference.deadline = deadline;
    let answered = kserve.server().infer(&handle, inference, arrived).await;
    if !stream {
        return Ok(document(write_members(&answered?)?));
    }
    // An error before the first event keeps its status; only the form is the stream's.
    let (status, event) = match answered.and_then(|response| write_members(&response)) {
        Ok(event) => (http::StatusCode::OK, event),
        Err(error) => {
            let failed = Failure(error.clone()).into_response();
            (failed.status(), tensor_json::encode_error(&error.report(), error.kind().code()).to_vec())
        }
    };
    let text = [b"data: ", event.as_slice(), b"\n\n"].concat();
    let mut response = Response::new(axum::body::Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    Ok(response)
}

/// Members named like an input become that tensor; `id` is the request's; the others, and those of `parameters`, become
/// request parameters.
fn read_members(handle: &ModelHandle, members: Map<String, Value>, limits: &Limits) -> Result<InferenceRequest> {
    let mut request = InferenceRequest::default();
    for (key, value) in members {
        if let Some(input) = handle.inputs.iter().find(|input| *input.name == *key) {
            request.inputs.push(NamedTensor { name: input.name.clone(), tensor: read_tensor(input, &value, limits)? });
        } else if key == "id" {
            let id = value.as_str().ok_or_else(|| Error::invalid("'id' must be a string"))?;
            request.id = id.into();
        } else if let (true, Value::Object(parameters)) = (key == "parameters", &value) {
            for (key, value) in parameters {
                request.parameters.push((key.as_str().into(), parameter(key, value)?));
            }
        } else {
            let value = parameter(&key, &value)?;
            request.parameters.push((CompactString::from(key), value));
        }
    }
    Ok(request)
}

fn parameter(key: &str, value: &Value) -> Result<ParameterValue> {
    if key.starts_with("triton_") {
        return Err(Error::invalid(format!("parameter '{key}' begins with triton_, which is reserved")));
    }
    let number = |number: &serde_json::Number| {
        number
            .as_i64()
            .map(ParameterValue::Int)
            .or_else(|| number.as_u64().map(ParameterValue::Uint))
            .or_else(|| number.as_f64().map(ParameterValue::Double))
    };
    let value = match value {
        Value::Bool(value) => Some(ParameterValue::Bool(*value)),
        Value::String(text) => Some(ParameterValue::String(text.as_str().into())),
        Value::Number(value) => number(value),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    value.ok_or_else(|| {
        Error::invalid(format!(
            "'{key}' is no input of the model, and a parameter must be a number, a text, true or false"
        ))
    })
}

fn read_tensor(input: &TensorMetadata, value: &Value, limits: &Limits) -> Result<Tensor> {
    let text = value.to_string();
    let mut cursor = Cursor::new(text.as_bytes(), limits.json_depth);
    let elements = tensor_json::read_elements(&mut cursor, &input.name, input.data_type, None, limits)?;
    let shape = deduce_shape(&input.dims, elements.count).ok_or_else(|| {
        Error::invalid(format!(
            "input '{}' has {} elements, which do not fit its shape {}",
            input.name,
            elements.count,
            Shape::new(&input.dims)
        ))
    })?;
    Tensor::new(input.data_type, shape, elements.data)
}

/// The shape of `count` elements: fixed dimensions stay, the innermost -1 takes what they leave, other -1s are 1.
fn deduce_shape(dims: &[i64], count: usize) -> Option<Shape> {
    let fixed: i64 = dims.iter().filter(|dim| **dim != -1).product();
    let count = i64::try_from(count).ok()?;
    let rest = if fixed == 0 { 0 } else { count / fixed };
    let innermost = dims.iter().rposition(|dim| *dim == -1);
    let shape: Shape = dims
        .iter()
        .enumerate()
        .map(|(at, &dim)| match dim {
            -1 if Some(at) == innermost => rest,
            -1 => 1,
            fixed => fixed,
        })
        .collect();
    (shape.element_count() == usize::try_from(count).ok()).then_some(shape)
}

/// The answer: outputs by name, one element as a bare value, more as a flat array.
fn write_members(response: &InferenceResponse) -> Result<Vec<u8>> {
    let mut json = Vec::with_capacity(256);
    let key = |json: &mut Vec<u8>, name: &str, first: bool| {
        json.extend_from_slice(if first { b"{" } else { b"," });
        strings::write_string(json, name);
        json.push(b':');
    };
    key(&mut json, "model_name", true);
    strings::write_string(&mut json, &response.model.name);
    key(&mut json, "model_version", false);
    strings::write_string(&mut json, &response.model.version.to_string());
    if !response.id.is_empty() {
        key(&mut json, "id", false);
        strings::write_string(&mut json, &response.id);
    }
    for output in &response.outputs {
        key(&mut json, &output.name, false);
        let bare = output.tensor.element_count() == 1;
        if !bare {
            json.push(b'[');
        }
        tensor_json::write_elements(&mut json, &output.name, &output.tensor)?;
        if !bare {
            json.push(b']');
        }
    }
    json.push(b'}');
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_free_dimension_takes_the_rest() {
        assert_eq!(deduce_shape(&[-1, 4], 8), Some(Shape::new(&[2, 4])));
        assert_eq!(deduce_shape(&[-1, -1], 3), Some(Shape::new(&[1, 3])));
        assert_eq!(deduce_shape(&[2, -1, 3], 12), Some(Shape::new(&[2, 2, 3])));
        assert_eq!(deduce_shape(&[4], 3), None);
        assert_eq!(deduce_shape(&[-1, 4], 6), None);
        assert_eq!(deduce_shape(&[], 1), Some(Shape::default()));
    }
}

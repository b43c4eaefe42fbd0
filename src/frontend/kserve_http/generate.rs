//! The generate extension: tensors as plain JSON members, by name, for models that suit it.

use std::time::Instant;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use http::header::CONTENT_TYPE;

use super::super::generate::{Members, write_members};
use super::super::provenance::Provenance;
use super::super::status::Failure;
use super::super::tensor_body::{LARGE_JSON, off_the_io_threads};
use super::super::tensor_json;
use super::super::trace_headers::caller;
use super::{Kserve, json as document};
use crate::error::{Error, Result};
use crate::inference::Version;
use crate::telemetry::trace::activity::Activity;

/// `POST .../generate`, or with `stream` `.../generate_stream`, whose one answer comes as a server-sent event.
pub(super) async fn generate(
    kserve: &Kserve,
    name: &str,
    version: Option<Version>,
    request: Request,
    arrived: Instant,
    stream: bool,
) -> Result<Response> {
    let headers = request.headers().clone();
    let body = axum::body::to_bytes(request.into_body(), kserve.0.limits.json_bytes)
        .await
        .map_err(|error| Error::internal("reading a body from memory failed").with_source(error))?;
    let trace = kserve.server().sample(name, || caller(&headers), arrived);
    if let Some(trace) = &trace {
        trace.mark(Activity::HttpRecvStart, arrived);
        trace.mark(Activity::HttpRecvEnd, Instant::now());
    }
    let deadline = kserve.deadline(arrived, None, &headers);
    let handle = kserve.server().model(name, version, deadline).await?;
    let provenance = Provenance::of(&handle);
    let members = {
        let inputs = handle.inputs.clone();
        let limits = kserve.0.tensor_limits.clone();
        off_the_io_threads(body.len() >= LARGE_JSON, move || Members::read(&body, &inputs, &limits)).await?
    };
    let mut inference = members.request;
    inference.deadline = kserve.deadline(arrived, members.timeout, &headers);
    inference.trace = trace;
    let answered = kserve.server().infer(&handle, inference, arrived).await;
    if !stream {
        let mut response = document(write_members(&answered?)?);
        provenance.write(response.headers_mut());
        return Ok(response);
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
    provenance.write(response.headers_mut());
    Ok(response)
}

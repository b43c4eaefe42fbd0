//! The generate extension: tensors as plain JSON members, by name, for models that suit it.

use std::time::Instant;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};

use super::super::body::Body;
use super::super::events::{self, Events};
use super::super::generate::{Members, write_members};
use super::super::provenance::Provenance;
use super::super::status::Failure;
use super::super::tensor_body::{LARGE_JSON, off_the_io_threads};
use super::super::trace_headers::caller;
use super::{Kserve, json as document};
use crate::error::{Error, Result};
use crate::inference::Version;
use crate::server::responses::Responses;
use crate::telemetry::trace::activity::Activity;

/// `POST .../generate`, or with `stream` `.../generate_stream`, whose answers come as server-sent events.
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
    let answers = kserve.server().infer_stream(handle, inference, arrived).await;
    let mut response = if stream { as_events(answers).await } else { document(as_one(answers).await?) };
    provenance.write(response.headers_mut());
    Ok(response)
}

async fn as_one(answers: Result<Responses>) -> Result<Vec<u8>> {
    write_members(&events::exactly_one(answers?).await?)
}

async fn as_events(answers: Result<Responses>) -> Response {
    let begun = match answers {
        Ok(answers) => Events::begin(answers).await,
        Err(error) => Err(error),
    };
    let mut response = match begun {
        Ok(events) => Response::new(axum::body::Body::new(Body::streamed(events.into_text()))),
        // An error before the first event keeps its status and headers; only the form is the stream's.
        Err(error) => {
            let mut failed = Failure(error.clone()).into_response();
            failed.headers_mut().remove(CONTENT_LENGTH);
            failed.map(|_| axum::body::Body::from(events::error_event(&error)))
        }
    };
    response.headers_mut().insert(CONTENT_TYPE, events::CONTENT_TYPE);
    response
}

//! `POST .../infer`: read, decode, find the model, run, encode.

use std::sync::Arc;
use std::time::Instant;

use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::Incoming;

use super::super::body::{self, Body, BodyLimits};
use super::super::compression::{self, Encoding};
use super::super::provenance::Provenance;
use super::super::shared_tensors::{self, Most};
use super::super::status::error_response;
use super::super::tensor_body;
use super::super::tensor_json::{DecodedRequest, EncodedResponse};
use super::super::trace_headers::{Sending, caller};
use super::{Kserve, log_failure, micros, request_id};
use crate::error::{Error, Result};
use crate::inference::Version;
use crate::telemetry::trace::activity::Activity;
use crate::telemetry::trace::record::Trace;

/// The length of the JSON in front of binary tensors (binary tensor data extension).
pub(super) const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// When a request came, and its trace if it is traced.
struct Call {
    arrived: Instant,
    trace: Option<Arc<Trace>>,
}

impl Kserve {
    /// Answers an inference request, errors included.
    pub(super) async fn infer(
        &self,
        name: &str,
        version: Option<Version>,
        request: http::Request<Incoming>,
    ) -> http::Response<Body> {
        let arrived = Instant::now();
        let (head, body) = request.into_parts();
        let trace = self.server().sample(name, || caller(&head.headers), arrived);
        if let Some(trace) = &trace {
            trace.mark(Activity::HttpRecvStart, arrived);
        }
        let call = Call { arrived, trace };
        match self.try_infer(name, version, &head.headers, body, &call).await {
            Ok(mut response) => {
                if let Some(trace) = call.trace {
                    response.body_mut().trace(Sending::start(trace));
                }
                response
            }
            Err(error) => {
                if let Some(trace) = &call.trace {
                    trace.failed(&error);
                }
                log_failure(name, &head.headers, &error);
                let mut response = error_response(&error);
                if Encoding::of_request(&head.headers).is_err() {
                    response.headers_mut().insert(ACCEPT_ENCODING, Encoding::offered());
                }
                response
            }
        }
    }

    async fn try_infer(
        &self,
        name: &str,
        version: Option<Version>,
        headers: &HeaderMap,
        body: Incoming,
        call: &Call,
    ) -> Result<http::Response<Body>> {
        let Call { arrived, ref trace } = *call;
        let encoding = Encoding::of_request(headers);
        let announced = header_length(headers);
        let aligned = announced.as_ref().ok().copied().flatten();
        // The body is read whatever else is wrong, so that the connection can go on.
        let limits = BodyLimits {
            bytes: self.0.limits.body_bytes,
            chunks: self.0.limits.body_chunks,
            deadline: self.deadline(arrived, None, headers),
            flag: "--max-body-bytes",
        };
        let body = body::read(body, headers, aligned, &limits).await?;
        if let Some(trace) = trace {
            trace.mark(Activity::HttpRecvEnd, Instant::now());
        }
        let (encoding, announced) = (encoding?, announced?);
        let body = if encoding == Encoding::Identity {
            body
        } else {
            compression::expand(encoding, body, self.0.limits.json_bytes, "--max-json-bytes").await?
        };
        if let Some(length) = announced
            && length > body.len()
        {
            return Err(Error::invalid(format!(
                "inference header size should be in range (0, {}), got: {length}",
                body.len()
            )));
        }
        let (handle, mut decoded) = if announced == Some(0) {
            let deadline = self.deadline(arrived, None, headers);
            let handle = self.server().model(name, version, deadline).await?;
            let decoded = tensor_body::decode_raw(&handle, body)?;
            (
                handle,
                DecodedRequest {
                    request: crate::inference::InferenceRequest { deadline, ..decoded.request },
                    ..decoded
                },
            )
        } else {
            let mut decoded = tensor_body::decode(body, announced, &self.0.tensor_limits).await?;
            let deadline = self.deadline(arrived, decoded.timeout, headers);
            decoded.request.deadline = deadline;
            (self.server().model(name, version, deadline).await?, decoded)
        };
        tensor_body::refuse_decoupled(&handle)?;
        let inputs = std::mem::take(&mut decoded.shared_inputs);
        let most = Most { bytes: self.0.limits.body_bytes, flag: "--max-body-bytes" };
        let memory = self.server().shared_memory();
        let places = shared_tensors::take(memory, &mut decoded.request, inputs, &decoded.format, most).await?;
        decoded.request.trace.clone_from(trace);
        let mut response = self.server().infer(&handle, decoded.request, arrived).await?;
        tensor_body::classify(&mut response, &decoded.format, &handle)?;
        let response = shared_tensors::put(response, places).await?;
        let provenance = Provenance::of(&handle);
        drop(handle);
        tracing::debug!(
            model = name,
            version = response.model.version,
            request_id = request_id(headers).unwrap_or(&response.id),
            us = micros(arrived),
            "inference answered"
        );
        let encoded = tensor_body::encode(response, decoded.format).await?;
        let mut response = answer(encoded, Encoding::for_response(headers)).await?;
        provenance.write(response.headers_mut());
        Ok(response)
    }
}

/// The value of `Inference-Header-Content-Length`.
fn header_length(headers: &HeaderMap) -> Result<Option<usize>> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    text.parse().map(Some).map_err(|_| {
        Error::invalid(format!(
            "Inference-Header-Content-Length is '{}', expected the number of JSON bytes in front of the tensors",
            text.chars().take(32).collect::<String>()
        ))
    })
}

async fn answer(encoded: EncodedResponse, encoding: Encoding) -> Result<http::Response<Body>> {
    let header_length = encoded.header_length;
    let pieces = std::iter::once(encoded.json).chain(encoded.tensors);
    let coding = encoding.header();
    let body = match coding {
        None => Body::pieces(pieces),
        Some(_) => Body::full(compression::compress(encoding, pieces.collect()).await?),
    };
    let mut response = http::Response::new(body);
    let headers = response.headers_mut();
    let content_type = match header_length {
        None => HeaderValue::from_static("application/json"),
        Some(length) => {
            headers.insert(HEADER_LENGTH, HeaderValue::from(length));
            HeaderValue::from_static("application/octet-stream")
        }
    };
    headers.insert(CONTENT_TYPE, content_type);
    if let Some(coding) = coding {
        headers.insert(CONTENT_ENCODING, coding);
    }
    Ok(response)
}

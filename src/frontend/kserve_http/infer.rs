//! `POST .../infer`: read, decode, find the model, run, encode.

use std::time::Instant;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::Incoming;

use super::super::body::{self, Body, BodyLimits};
use super::super::classification;
use super::super::compression::{self, Encoding};
use super::super::provenance::Provenance;
use super::super::status::error_response;
use super::super::tensor_json::{self, DecodedRequest, EncodedResponse, ResponseFormat};
use super::{Kserve, log_failure, micros, request_id};
use crate::error::{Error, Result};
use crate::inference::{InferenceResponse, Version};
use crate::lifecycle::handle::ModelHandle;

/// The length of the JSON in front of binary tensors (binary tensor data extension).
pub(super) const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// JSON from this size on is read and written where it holds up no connection.
pub(super) const LARGE_JSON: usize = 128 << 10;

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
        match self.try_infer(name, version, &head.headers, body, arrived).await {
            Ok(response) => response,
            Err(error) => {
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
        arrived: Instant,
    ) -> Result<http::Response<Body>> {
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
        let (handle, decoded) = if announced == Some(0) {
            let deadline = self.deadline(arrived, None, headers);
            let handle = self.server().model(name, version, deadline).await?;
            let decoded = decode_raw(&handle, body)?;
            (
                handle,
                DecodedRequest {
                    request: crate::inference::InferenceRequest { deadline, ..decoded.request },
                    ..decoded
                },
            )
        } else {
            let mut decoded = self.decode(body, announced).await?;
            let deadline = self.deadline(arrived, decoded.timeout, headers);
            decoded.request.deadline = deadline;
            (self.server().model(name, version, deadline).await?, decoded)
        };
        let mut response = self.server().infer(&handle, decoded.request, arrived).await?;
        classify(&mut response, &decoded.format, &handle)?;
        let provenance = Provenance::of(&handle);
        drop(handle);
        tracing::debug!(
            model = name,
            version = response.model.version,
            request_id = request_id(headers).unwrap_or(&response.id),
            us = micros(arrived),
            "inference answered"
        );
        let encoded = encode(response, decoded.format).await?;
        let mut response = answer(encoded, Encoding::for_response(headers)).await?;
        provenance.write(response.headers_mut());
        Ok(response)
    }

    async fn decode(&self, body: Bytes, header_length: Option<usize>) -> Result<DecodedRequest> {
        let limits = &self.0.tensor_limits;
        if header_length.unwrap_or(body.len()) < LARGE_JSON {
            return tensor_json::decode_request(body, header_length, limits);
        }
        let limits = limits.clone();
        off_the_io_threads(true, move || tensor_json::decode_request(body, header_length, &limits)).await
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

fn decode_raw(handle: &ModelHandle, body: Bytes) -> Result<DecodedRequest> {
    let [input] = handle.inputs.as_slice() else {
        return Err(Error::invalid(format!(
            "Raw request must only have 1 input (found 1) to be deduced but got {} inputs in '{}' model configuration",
            handle.inputs.len(),
            handle.id.name
        )));
    };
    let mut dims = input.dims.clone();
    if handle.max_batch_size > 0 {
        // A raw request is a batch of one.
        if let Some(batch) = dims.first_mut() {
            *batch = 1;
        }
    }
    tensor_json::decode_raw(body, &input.name, input.data_type, &dims)
}

/// Puts the top classes in the place of outputs that were asked for so.
fn classify(response: &mut InferenceResponse, format: &ResponseFormat, handle: &ModelHandle) -> Result<()> {
    if format.outputs.iter().all(|output| output.classification.is_none()) {
        return Ok(());
    }
    for output in &mut response.outputs {
        if let (_, Some(count)) = format.output(&output.name) {
            let metadata = handle.outputs.iter().find(|metadata| metadata.name == output.name);
            let labels = metadata.map_or(&[][..], |metadata| &metadata.labels);
            output.tensor = classification::top_classes(&output.tensor, count, labels, handle.max_batch_size > 0)?;
        }
    }
    Ok(())
}

async fn encode(response: InferenceResponse, format: ResponseFormat) -> Result<EncodedResponse> {
    let as_json = |output: &crate::inference::NamedTensor| !format.output(&output.name).0;
    let bytes: usize =
        response.outputs.iter().filter(|output| as_json(output)).map(|output| output.tensor.data().len()).sum();
    off_the_io_threads(bytes >= LARGE_JSON / 4, move || tensor_json::encode_response(&response, &format)).await
}

/// Runs `work` here, or where it holds up no connection if it is `large`.
pub(super) async fn off_the_io_threads<T: Send + 'static>(
    large: bool,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    if !large {
        return work();
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal("reading or writing JSON failed").with_source(error))?
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

//! One invocation, from its body to its answer: what the container's routes and the runtime API have in common.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use hyper::body::Incoming;

use super::super::body::{self, Body, BodyLimits};
use super::super::compression::{self, Encoding};
use super::super::events::{self, Events};
use super::super::generate::{Members, write_members};
use super::super::provenance::Provenance;
use super::super::shared_tensors;
use super::super::tensor_body::{self, LARGE_JSON, off_the_io_threads};
use super::super::tensor_json::DecodedRequest;
use super::super::trace_headers::{Sending, caller};
use super::content_type::{self, Layout};
use super::{Inner, event_stream};
use crate::config::sagemaker::InferenceType;
use crate::error::{Error, Result};
use crate::lifecycle::handle::ModelHandle;
use crate::server::responses::Responses;
use crate::telemetry::trace::activity::Activity;
use crate::telemetry::trace::record::Trace;

/// An invocation's body, read and not yet understood.
pub(super) struct Payload {
    bytes: Bytes,
    layout: Layout,
    pub(super) arrived: Instant,
    /// Its trace, once it is known for which model it is.
    trace: Option<Arc<Trace>>,
}

/// Why there is no payload.
pub(super) enum Unreadable {
    /// It is in a coding that is not understood here.
    Coding(Error),
    /// For this reason.
    Failed(Error),
}

impl From<Error> for Unreadable {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// An invocation's body as it came.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    arrived: Instant,
}

impl Inner {
    /// Reads a body of at most `limit` bytes, whatever else is wrong, so that the connection can go on.
    ///
    /// # Errors
    /// As [`body::read`].
    pub(super) async fn receive(
        &self,
        headers: &HeaderMap,
        body: Incoming,
        (limit, flag): (usize, &'static str),
    ) -> Result<Received> {
        let arrived = Instant::now();
        let layout = content_type::layout(headers);
        let limits = BodyLimits {
            bytes: limit,
            chunks: self.limits.body_chunks,
            deadline: body::deadline(arrived, None, headers, self.limits.timeout),
            flag,
        };
        let aligned = layout.as_ref().ok().and_then(|layout| layout.header_length());
        Ok(Received { bytes: body::read(body, headers, aligned, &limits).await?, arrived })
    }

    /// What a body is, by its headers; decompressed.
    pub(super) async fn understand(&self, headers: &HeaderMap, received: Received) -> Result<Payload, Unreadable> {
        let Received { bytes, arrived } = received;
        let encoding = Encoding::of_request(headers).map_err(Unreadable::Coding)?;
        let layout = content_type::layout(headers)?;
        let bytes = match encoding {
            Encoding::Identity => bytes,
            coded => compression::expand(coded, bytes, self.limits.json_bytes, "--max-json-bytes").await?,
        };
        if let Layout::Binary(length) = layout
            && length > bytes.len()
        {
            return Err(Error::invalid(format!(
                "json-header-size of the content type is {length}, and the body has {} bytes",
                bytes.len()
            ))
            .into());
        }
        Ok(Payload { bytes, layout, arrived, trace: None })
    }

    /// Runs the model over a payload; its time is counted from `since`. With `framed` the answer comes in the frames of an
    /// event stream, which are not compressed.
    ///
    /// # Errors
    /// As the model, or reading the payload, fails before there is anything of an answer.
    pub(super) async fn invoke(
        &self,
        handle: ModelHandle,
        mut payload: Payload,
        headers: &HeaderMap,
        since: Instant,
        framed: bool,
    ) -> Result<http::Response<Body>> {
        let trace = self.server.sample(&handle.id.name, || caller(headers), payload.arrived);
        if let Some(trace) = &trace {
            trace.mark(Activity::HttpRecvStart, payload.arrived);
            trace.mark(Activity::HttpRecvEnd, Instant::now());
        }
        payload.trace.clone_from(&trace);
        let encoding = if framed { Encoding::Identity } else { Encoding::for_response(headers) };
        let provenance = Provenance::of(&handle);
        let mut response = match handle.inference_type.unwrap_or(self.config.inference_type) {
            InferenceType::Infer => {
                let answered = self.infer(&handle, payload, headers, since, encoding).await?;
                drop(handle);
                in_frames(answered, framed)
            }
            InferenceType::Generate => {
                let answers = self.generate(handle, payload, headers, since).await?;
                let text = write_members(&events::exactly_one(answers).await?)?;
                in_frames(document(text.into(), HeaderValue::from_static("application/json")), framed)
            }
            InferenceType::GenerateStream => {
                let events = Events::begin(self.generate(handle, payload, headers, since).await?).await?;
                let body = match framed {
                    true => Body::streamed(event_stream::framed(events.events())),
                    false => Body::streamed(events.into_text()),
                };
                let mut response = http::Response::new(body);
                response.headers_mut().insert(CONTENT_TYPE, events::CONTENT_TYPE);
                response
            }
        };
        provenance.write(response.headers_mut());
        if let Some(trace) = trace {
            response.body_mut().trace(Sending::start(trace));
        }
        Ok(response)
    }

    async fn infer(
        &self,
        handle: &ModelHandle,
        payload: Payload,
        headers: &HeaderMap,
        since: Instant,
        encoding: Encoding,
    ) -> Result<http::Response<Body>> {
        tensor_body::refuse_decoupled(handle)?;
        let Payload { bytes, layout, arrived, trace } = payload;
        let mut decoded = match layout {
            Layout::Binary(0) => tensor_body::decode_raw(handle, bytes)?,
            Layout::Json | Layout::Binary(_) => {
                check_object(&bytes)?;
                tensor_body::decode(bytes, layout.header_length(), &self.tensor_limits).await?
            }
        };
        shared_tensors::refuse(&decoded)?;
        decoded.request.deadline = body::deadline(since, decoded.timeout, headers, self.limits.timeout);
        decoded.request.trace = trace;
        let DecodedRequest { request, format, .. } = decoded;
        let mut answered = self.server.infer(handle, request, arrived).await?;
        tensor_body::classify(&mut answered, &format, handle)?;
        let encoded = tensor_body::encode(answered, format).await?;
        let pieces = std::iter::once(encoded.json).chain(encoded.tensors);
        let body = match encoding.header() {
            None => Body::pieces(pieces),
            Some(_) => Body::full(compression::compress(encoding, pieces.collect()).await?),
        };
        let mut response = http::Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, content_type::of_answer(encoded.header_length));
        if let Some(coding) = encoding.header() {
            response.headers_mut().insert(CONTENT_ENCODING, coding);
        }
        Ok(response)
    }

    async fn generate(
        &self,
        handle: ModelHandle,
        payload: Payload,
        headers: &HeaderMap,
        since: Instant,
    ) -> Result<Responses> {
        let Payload { bytes, layout, arrived, trace } = payload;
        if layout != Layout::Json {
            return Err(Error::invalid("binary tensors are for the inference type infer: send JSON to generate"));
        }
        let members = {
            let (inputs, limits) = (handle.inputs.clone(), self.tensor_limits.clone());
            off_the_io_threads(bytes.len() >= LARGE_JSON, move || Members::read(&bytes, &inputs, &limits)).await?
        };
        let mut request = members.request;
        request.deadline = body::deadline(since, members.timeout, headers, self.limits.timeout);
        request.trace = trace;
        self.server.infer_stream(handle, request, arrived).await
    }
}

/// What is no object may be meant as something else: CSV, an image, an array of numbers.
fn check_object(bytes: &[u8]) -> Result<()> {
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => Ok(()),
        _ => Err(Error::invalid(
            "the body is no JSON object: send a KServe v2 inference request, {\"inputs\": [...]}, with or without binary \
             tensors behind it",
        )),
    }
}

fn in_frames(answered: http::Response<Body>, framed: bool) -> http::Response<Body> {
    if framed { answered.map(|body| body.map(event_stream::payload_part)) } else { answered }
}

/// An answer that is made already.
pub(super) fn document(bytes: Bytes, content_type: HeaderValue) -> http::Response<Body> {
    let mut response = http::Response::new(Body::full(bytes));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

//! `ModelInfer`: read, decode, find the model, run, encode.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderValue, Request, Response};
use hyper::body::Incoming;

use super::super::compression::{self, Encoding};
use super::super::provenance::Provenance;
use super::super::shared_tensors::{self, Most, OutputPlaces};
use super::super::tensor_body;
use super::super::trace_headers::{Sending, caller};
use super::messages::{self, ENCODING, Messages};
use super::reply::{self, GrpcBody};
use super::request::Decoded;
use super::response::{Pieces, Wrapping, encode};
use super::rights::CallError;
use super::{GrpcService, request, request_id};
use crate::error::{Error, Result};
use crate::telemetry::trace::activity::Activity;
use crate::telemetry::trace::record::Trace;

impl GrpcService {
    /// Answers an inference, errors included.
    pub(super) async fn infer(&self, request: Request<Incoming>, arrived: Instant) -> Response<GrpcBody> {
        let (head, body) = request.into_parts();
        let mut trace = None;
        match self.try_infer(&head.headers, body, arrived, &mut trace).await {
            Ok(response) => response,
            Err(error) => {
                error.trace(trace.as_deref());
                error.answer("ModelInfer", &head.headers)
            }
        }
    }

    async fn try_infer(
        &self,
        headers: &HeaderMap,
        body: Incoming,
        arrived: Instant,
        trace: &mut Option<Arc<Trace>>,
    ) -> Result<Response<GrpcBody>, CallError> {
        let at_first = self.deadline(arrived, None, headers)?;
        let message =
            Messages::new(headers, body, self.0.config.max_message_bytes, &self.0.buffers)?.only(at_first).await?;
        let mut decoded = request::decode(&message, &self.0.tensor_limits)?;
        drop(message);
        self.check_inference(headers, &decoded.model)?;
        *trace = self.sample(&decoded.model, headers, arrived);
        decoded.request.trace.clone_from(trace);
        let deadline = self.deadline(arrived, decoded.timeout, headers)?;
        decoded.request.deadline = deadline;
        let handle = self.server().model(&decoded.model, decoded.version, deadline).await?;
        if handle.config.decoupled {
            let text = "ModelInfer RPC doesn't support models with decoupled transaction policy";
            return Err(Error::unsupported(text).into());
        }
        let places = self.take_shared(&mut decoded).await?;
        let mut response = self.server().infer(&handle, decoded.request, arrived).await?;
        tensor_body::classify(&mut response, &decoded.format, &handle)?;
        let response = shared_tensors::put(response, places).await?;
        let provenance = Provenance::of(&handle);
        drop(handle);
        tracing::debug!(
            model = %response.model.name,
            version = response.model.version,
            request_id = request_id(headers).unwrap_or(&response.id),
            us = u64::try_from(arrived.elapsed().as_micros()).unwrap_or(u64::MAX),
            "inference answered"
        );
        let message = encode(response, &decoded.format, Wrapping::Unary);
        let (pieces, coding) = self.compressed(message, headers).await?;
        let mut response = reply::traced_message(pieces, trace.clone().map(Sending::start_grpc));
        provenance.write(response.headers_mut());
        if let Some(coding) = coding {
            response.headers_mut().insert(ENCODING, coding);
        }
        Ok(response)
    }

    /// A trace for a request whose message is there, if it is to be traced.
    pub(super) fn sample(&self, model: &str, headers: &HeaderMap, arrived: Instant) -> Option<Arc<Trace>> {
        let trace = self.server().sample(model, || caller(headers), arrived)?;
        trace.mark(Activity::GrpcWaitreadStart, arrived);
        trace.mark(Activity::GrpcWaitreadEnd, Instant::now());
        Some(trace)
    }

    /// Reads the inputs that lie in shared memory, and finds the places of outputs there.
    pub(super) async fn take_shared(&self, decoded: &mut Decoded) -> Result<OutputPlaces> {
        let inputs = std::mem::take(&mut decoded.shared_inputs);
        let most = Most { bytes: self.0.config.max_message_bytes, flag: "--grpc-max-message-bytes" };
        let memory = self.server().shared_memory();
        shared_tensors::take(memory, &mut decoded.request, inputs, &decoded.format, most).await
    }

    /// How the answers to a call are compressed.
    pub(super) fn answer_encoding(&self, headers: &HeaderMap) -> Encoding {
        match self.0.config.compression.level() {
            None => Encoding::Identity,
            Some(_) => messages::accepted(headers),
        }
    }

    async fn compressed(&self, pieces: Pieces, headers: &HeaderMap) -> Result<(Pieces, Option<HeaderValue>)> {
        let encoding = self.answer_encoding(headers);
        match (encoding.header(), self.0.config.compression.level()) {
            (Some(coding), Some(level)) => Ok((compress(pieces, encoding, level).await?, Some(coding))),
            _ => Ok((pieces, None)),
        }
    }
}

/// A message with its prefix, compressed.
pub(super) async fn compress(mut pieces: Pieces, encoding: Encoding, level: u32) -> Result<Pieces> {
    if let Some(first) = pieces.first_mut() {
        drop(first.split_to(first.len().min(5)));
    }
    let packed = compression::compress_at(encoding, pieces.into_vec(), level).await?;
    let [_, length @ ..] = super::response::prefix(packed.len());
    let [a, b, c, d] = length;
    Ok(Pieces::from_iter([bytes::Bytes::copy_from_slice(&[1, a, b, c, d]), packed]))
}

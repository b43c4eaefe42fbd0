//! The requests of a stream, one by one: what each waits for, and what becomes of it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use compact_str::CompactString;
use futures_util::StreamExt;
use http::HeaderMap;

use super::super::super::compression::Encoding;
use super::super::super::shared_tensors::{self, OutputPlaces};
use super::super::super::tensor_body;
use super::super::super::tensor_json::ResponseFormat;
use super::super::GrpcService;
use super::super::infer::compress;
use super::super::request::{Decoded, decode, id_of};
use super::super::response::{Pieces, Wrapping, encode};
use super::super::rights::CallError;
use crate::error::{Error, Result};
use crate::inference::{Deadline, InferenceResponse};
use crate::lifecycle::handle::ModelHandle;
use crate::server::responses::Responses;
use crate::telemetry::trace::record::Trace;

/// What went wrong, and the id of the request.
pub(super) type Failed = (CallError, CompactString);

/// What goes out for a request, and its trace.
pub(super) struct Answer {
    /// Nothing for an end that nobody asked to be told of.
    pub(super) pieces: Result<Option<Pieces>, Failed>,
    pub(super) trace: Option<Arc<Trace>>,
}

/// What the requests of one call share.
pub(super) struct Calls {
    pub(super) grpc: GrpcService,
    /// Who calls: asked for each request, since tokens are taken back while streams last.
    pub(super) headers: HeaderMap,
    /// When the call as a whole must be over.
    pub(super) limit: Option<Deadline>,
    /// How answers are compressed.
    pub(super) encoding: Encoding,
    /// Whether an error ends the call with its status (`triton_grpc_error: true`) instead of being an item.
    pub(super) errors_end_it: bool,
}

/// A request as it was read, or why it cannot be.
pub(super) struct Read {
    decoded: Result<Decoded, Failed>,
    arrived: Instant,
    /// Bytes of its message, and of its inputs in shared memory.
    pub(super) bytes: usize,
}

/// A request that has its model and its inputs and is about to run.
pub(super) struct Started {
    pub(super) handle: ModelHandle,
    decoded: Decoded,
    places: OutputPlaces,
    arrived: Instant,
    bytes: usize,
}

/// What became of one step of a request.
pub(super) struct Event {
    /// The request's number; of no meaning for a decoupled model's.
    pub(super) number: u64,
    /// Bytes that it holds.
    pub(super) bytes: usize,
    /// What goes out.
    pub(super) answer: Answer,
    /// The rest of a decoupled model's answers, the last one apart.
    pub(super) rest: Option<Rest>,
    pub(super) decoupled: bool,
}

/// The answers of a decoupled model that are to come.
pub(super) struct Rest {
    responses: Responses,
    format: ResponseFormat,
    /// What they are classified by.
    classes: Option<ModelHandle>,
    places: OutputPlaces,
    trace: Option<Arc<Trace>>,
    id: CompactString,
    empty_final: bool,
    bytes: usize,
}

impl Calls {
    /// Reads a message.
    pub(super) fn read(&self, message: &Bytes) -> Read {
        let arrived = Instant::now();
        let decoded = decode(message, &self.grpc.0.tensor_limits).map_err(|error| (error.into(), id_of(message)));
        let shared = decoded.as_ref().map_or(0, |decoded| {
            decoded.shared_inputs.iter().map(|input| input.place.byte_size).fold(0, u64::saturating_add)
        });
        // More than the limit is refused before it is read.
        let shared = usize::try_from(shared).unwrap_or(usize::MAX).min(self.grpc.0.config.max_message_bytes);
        Read { decoded, arrived, bytes: message.len() + shared }
    }

    /// Looks for the model of a request, and reads its inputs.
    pub(super) async fn start(self: Arc<Self>, read: Read) -> Result<Started, (usize, Answer)> {
        let Read { decoded, arrived, bytes } = read;
        let refused = |failed, trace| (bytes, Answer { pieces: Err(failed), trace });
        let mut decoded = match decoded {
            Ok(decoded) => decoded,
            Err(failed) => return Err(refused(failed, None)),
        };
        if let Err(denied) = self.grpc.check_inference(&self.headers, &decoded.model) {
            return Err(refused((denied.into(), decoded.request.id), None));
        }
        let trace = self.grpc.sample(&decoded.model, &self.headers, arrived);
        decoded.request.trace.clone_from(&trace);
        let own = [decoded.timeout, self.grpc.0.limits.timeout].into_iter().flatten().min();
        let own = own.and_then(|timeout| Deadline::after(arrived, timeout));
        decoded.request.deadline = own.into_iter().chain(self.limit).min();
        let found = async {
            let deadline = decoded.request.deadline;
            let handle = self.grpc.server().model(&decoded.model, decoded.version, deadline).await?;
            let places = self.grpc.take_shared(&mut decoded).await?;
            Ok::<_, Error>((handle, places))
        };
        match found.await {
            Ok((handle, places)) => Ok(Started { handle, decoded, places, arrived, bytes }),
            Err(error) => Err(refused((error.into(), decoded.request.id), trace)),
        }
    }

    /// The one answer of a model that is not decoupled.
    pub(super) async fn one(self: Arc<Self>, number: u64, started: Started) -> Event {
        let Started { handle, decoded, places, arrived, bytes } = started;
        let Decoded { request, format, .. } = decoded;
        let (id, trace) = (request.id.clone(), request.trace.clone());
        let answered = async {
            let mut response = self.grpc.server().infer(&handle, request, arrived).await?;
            tensor_body::classify(&mut response, &format, &handle)?;
            let response = shared_tensors::put(response, places).await?;
            drop(handle);
            self.written(response, &format).await.map(Some)
        };
        let pieces = answered.await.map_err(|error: Error| (error.into(), id));
        Event { number, bytes, answer: Answer { pieces, trace }, rest: None, decoupled: false }
    }

    /// The first of the answers of a decoupled model.
    pub(super) async fn begin_many(self: Arc<Self>, started: Started) -> Event {
        let Started { handle, decoded, places, arrived, bytes } = started;
        let Decoded { request, format, empty_final, model, .. } = decoded;
        let (id, deadline, trace) = (request.id.clone(), request.deadline, request.trace.clone());
        let begun = async {
            let classes = match format.outputs.iter().any(|output| output.classification.is_some()) {
                true => Some(self.grpc.server().model(&model, Some(handle.id.version), deadline).await?),
                false => None,
            };
            let responses = self.grpc.server().infer_stream(handle, request, arrived).await?;
            Ok::<_, Error>((responses, classes))
        };
        match begun.await {
            Ok((responses, classes)) => {
                let rest = Rest { responses, format, classes, places, trace, id, empty_final, bytes };
                self.next_of_many(rest).await
            }
            Err(error) => {
                let answer = Answer { pieces: Err((error.into(), id)), trace };
                Event { number: 0, bytes, answer, rest: None, decoupled: true }
            }
        }
    }

    /// The next of the answers of a decoupled model.
    pub(super) async fn next_of_many(self: Arc<Self>, mut rest: Rest) -> Event {
        let (id, bytes, trace) = (rest.id.clone(), rest.bytes, rest.trace.clone());
        let answered = async {
            let Some(response) = rest.responses.next().await else { return Ok((None, None)) };
            let mut response = response?;
            let last = response.last;
            let goes_out = !last || !response.outputs.is_empty() || rest.empty_final;
            let written = match goes_out {
                true => {
                    if let Some(handle) = &rest.classes {
                        tensor_body::classify(&mut response, &rest.format, handle)?;
                    }
                    // Each answer over the one before it, as in Triton: whoever wants all of them reads in time.
                    let response = shared_tensors::put(response, rest.places.clone()).await?;
                    Some(self.written(response, &rest.format).await?)
                }
                false => None,
            };
            Ok((written, (!last).then_some(rest)))
        };
        let (pieces, rest) = match answered.await {
            Ok((written, rest)) => (Ok(written), rest),
            Err(error) => (Err((CallError::Failed(error), id)), None),
        };
        Event { number: 0, bytes, answer: Answer { pieces, trace }, rest, decoupled: true }
    }

    async fn written(&self, response: InferenceResponse, format: &ResponseFormat) -> Result<Pieces> {
        let pieces = encode(response, format, Wrapping::Stream);
        match (self.encoding, self.grpc.0.config.compression.level()) {
            (Encoding::Identity, _) | (_, None) => Ok(pieces),
            (encoding, Some(level)) => compress(pieces, encoding, level).await,
        }
    }
}

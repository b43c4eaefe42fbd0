//! `ModelStreamInfer`: requests come one after the other, several of them run at a time, and answers go out in the order
//! of their requests; those of decoupled models as they come.
//!
//! The body of the answer is what runs it all: no task and no channel stand beside it. While the caller does not read,
//! nothing is taken in; and where the call ends, however it ends, what was under way is dropped with it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use compact_str::CompactString;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesUnordered};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use hyper::body::Incoming;
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Code, Status};

use super::super::compression::Encoding;
use super::super::tensor_body;
use super::super::tensor_json::ResponseFormat;
use super::infer::compress;
use super::messages::{ENCODING, Messages};
use super::reply::{self, GrpcBody};
use super::request::{Decoded, decode, id_of};
use super::response::{Pieces, Wrapping, encode, encode_error};
use super::rights::CallError;
use super::{GrpcService, log_failure};
use crate::error::{Error, Result};
use crate::frontend::status::grpc_status;
use crate::inference::{Deadline, InferenceResponse};
use crate::lifecycle::handle::ModelHandle;
use crate::server::responses::Responses;

/// Requests of one call that are under way at a time.
const IN_FLIGHT: usize = 128;

/// Bytes of their messages from which on no further one is read.
const BYTES_IN_FLIGHT: usize = 64 << 20;

impl GrpcService {
    /// Begins the answer to a stream of requests.
    pub(super) fn stream(&self, request: Request<Incoming>, arrived: Instant) -> Response<GrpcBody> {
        let (head, body) = request.into_parts();
        match self.try_stream(&head.headers, body, arrived) {
            Ok(stream) => {
                let coding = stream.calls.encoding.header();
                let mut response = reply::stream(stream);
                if let Some(coding) = coding {
                    response.headers_mut().insert(ENCODING, coding);
                }
                response
            }
            Err(error) => {
                log_failure("ModelStreamInfer", &head.headers, &error);
                reply::error(&error)
            }
        }
    }

    fn try_stream(&self, headers: &HeaderMap, body: Incoming, arrived: Instant) -> Result<InferStream> {
        // The server's own limit is one on each request, not on the call.
        let limit = super::call_timeout(headers)?.and_then(|timeout| Deadline::after(arrived, timeout));
        let messages = Messages::new(headers, body, self.0.config.max_message_bytes)?;
        let messages = futures_util::stream::unfold(Some(messages), |messages| async {
            let mut messages = messages?;
            match messages.next().await {
                Ok(None) => None,
                Ok(Some(message)) => Some((Ok(message), Some(messages))),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(InferStream {
            calls: Arc::new(Calls {
                grpc: self.clone(),
                limit,
                headers: headers.clone(),
                encoding: self.answer_encoding(headers),
                errors_end_it: headers.get("triton_grpc_error").is_some_and(|value| value == "true"),
            }),
            messages: Some(messages.boxed()),
            starting: None,
            running: FuturesUnordered::new(),
            first: 0,
            places: VecDeque::new(),
            decoupled: 0,
            bytes: 0,
            ready: VecDeque::new(),
            deadline: limit.map(|limit| Box::pin(tokio::time::sleep_until(limit.instant().into()))),
            stopping: Some(Box::pin(self.0.stopping.clone().cancelled_owned())),
            status: Status::new(Code::Ok, ""),
            progress: Progress::Serving,
        })
    }
}

/// What went wrong, and the id of the request.
type Failed = (CallError, CompactString);

/// What goes out; nothing for an end that nobody asked to be told of.
type Answer = Result<Option<Pieces>, Failed>;

/// What the requests of one call share.
struct Calls {
    grpc: GrpcService,
    /// Who calls: asked for each request, since tokens are taken back while streams last.
    headers: HeaderMap,
    /// When the call as a whole must be over.
    limit: Option<Deadline>,
    /// How answers are compressed.
    encoding: Encoding,
    /// Whether an error ends the call with its status (`triton_grpc_error: true`) instead of being an item.
    errors_end_it: bool,
}

/// A request that has its model and is about to run.
struct Started {
    handle: ModelHandle,
    decoded: Decoded,
    arrived: Instant,
    bytes: usize,
}

/// What became of one step of a request.
struct Event {
    /// The request's number; of no meaning for a decoupled model's.
    number: u64,
    /// Bytes of its message.
    bytes: usize,
    /// What goes out.
    answer: Answer,
    /// The rest of a decoupled model's answers, the last one apart.
    rest: Option<Rest>,
    decoupled: bool,
}

/// The answers of a decoupled model that are to come.
struct Rest {
    responses: Responses,
    /// What they are classified by.
    classes: Option<(ModelHandle, ResponseFormat)>,
    id: CompactString,
    empty_final: bool,
    bytes: usize,
}

/// A request's place in the order of answers.
enum Place {
    Waiting,
    Done(usize, Answer),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Progress {
    Serving,
    /// All that is left is the status.
    Ending,
    Ended,
}

/// The body of the answer.
pub(super) struct InferStream {
    calls: Arc<Calls>,
    /// The requests; none after the last.
    messages: Option<BoxStream<'static, Result<Bytes>>>,
    /// The one request whose model is being found: requests of a sequence must not overtake each other.
    starting: Option<BoxFuture<'static, Result<Started, (usize, Failed)>>>,
    running: FuturesUnordered<BoxFuture<'static, Event>>,
    /// The number of the request in the first place.
    first: u64,
    places: VecDeque<Place>,
    /// Requests to decoupled models that are under way.
    decoupled: usize,
    /// Bytes of the messages under way.
    bytes: usize,
    ready: VecDeque<Bytes>,
    deadline: Option<Pin<Box<Sleep>>>,
    stopping: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    status: Status,
    progress: Progress,
}

impl InferStream {
    pub(super) fn is_ended(&self) -> bool {
        self.progress == Progress::Ended
    }

    /// The next piece, or the status at the end.
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Poll::Ready(Some(Frame::data(piece)));
            }
            match self.progress {
                Progress::Serving => {}
                Progress::Ending => {
                    self.progress = Progress::Ended;
                    return Poll::Ready(Some(Frame::trailers(match self.status.code() {
                        Code::Ok => reply::ok(),
                        _ => reply::trailers(&self.status),
                    })));
                }
                Progress::Ended => return Poll::Ready(None),
            }
            if !self.advance(context) {
                return Poll::Pending;
            }
        }
    }

    /// Does one thing that can be done now, and says whether there was one.
    fn advance(&mut self, context: &mut Context<'_>) -> bool {
        if let Poll::Ready(Some(event)) = self.running.poll_next_unpin(context) {
            self.take(event);
            return true;
        }
        if let Some(starting) = &mut self.starting {
            if let Poll::Ready(started) = starting.as_mut().poll(context) {
                self.starting = None;
                self.run(started);
                return true;
            }
        } else if self.has_room()
            && let Some(messages) = &mut self.messages
            && let Poll::Ready(message) = messages.as_mut().poll_next(context)
        {
            match message {
                Some(Ok(message)) => self.start(message),
                Some(Err(error)) => self.end(grpc_status(&error)),
                None => self.messages = None,
            }
            return true;
        }
        if self.messages.is_none() && self.starting.is_none() && self.places.is_empty() && self.decoupled == 0 {
            self.progress = Progress::Ending;
            return true;
        }
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            self.end(Status::new(Code::DeadlineExceeded, "the call's deadline has passed"));
            return true;
        }
        if let Some(stopping) = &mut self.stopping
            && stopping.as_mut().poll(context).is_ready()
        {
            // What is under way is answered; what comes now is to go to another server.
            self.stopping = None;
            if self.messages.take().is_some() {
                self.status = Status::new(Code::Unavailable, "the server is shutting down");
            }
            return true;
        }
        false
    }

    fn has_room(&self) -> bool {
        let under_way = self.places.len() + self.decoupled;
        under_way < IN_FLIGHT && (under_way == 0 || self.bytes < BYTES_IN_FLIGHT)
    }

    /// Ends the call here and now, whatever is under way.
    fn end(&mut self, status: Status) {
        self.messages = None;
        self.starting = None;
        self.running = FuturesUnordered::new();
        self.places.clear();
        self.decoupled = 0;
        self.status = status;
        self.progress = Progress::Ending;
    }

    /// Reads a request and looks for its model.
    fn start(&mut self, message: Bytes) {
        let calls = Arc::clone(&self.calls);
        let arrived = Instant::now();
        let bytes = message.len();
        self.bytes += bytes;
        let decoded = decode(&message, &calls.grpc.0.tensor_limits).map_err(|error| (error.into(), id_of(&message)));
        drop(message);
        self.starting = Some(Box::pin(async move {
            let mut decoded = decoded.map_err(|failed| (bytes, failed))?;
            if let Err(denied) = calls.grpc.check_inference(&calls.headers, &decoded.model) {
                return Err((bytes, (denied.into(), decoded.request.id)));
            }
            let own = [decoded.timeout, calls.grpc.0.limits.timeout].into_iter().flatten().min();
            let own = own.and_then(|timeout| Deadline::after(arrived, timeout));
            let deadline = own.into_iter().chain(calls.limit).min();
            decoded.request.deadline = deadline;
            match calls.grpc.server().model(&decoded.model, decoded.version, deadline).await {
                Ok(handle) => Ok(Started { handle, decoded, arrived, bytes }),
                Err(error) => Err((bytes, (error.into(), decoded.request.id))),
            }
        }));
    }

    /// Runs a request that has its model.
    fn run(&mut self, started: Result<Started, (usize, Failed)>) {
        let number = self.first + self.places.len() as u64;
        let calls = Arc::clone(&self.calls);
        match started {
            Err((bytes, failed)) => {
                self.places.push_back(Place::Done(bytes, Err(failed)));
                self.flush();
            }
            Ok(started) if started.handle.config.decoupled => {
                self.decoupled += 1;
                self.running.push(Box::pin(calls.begin_many(started)));
            }
            Ok(started) => {
                self.places.push_back(Place::Waiting);
                self.running.push(Box::pin(calls.one(number, started)));
            }
        }
    }

    /// Takes in what became of a request.
    fn take(&mut self, event: Event) {
        let Event { number, bytes, answer, rest, decoupled } = event;
        if !decoupled {
            let at = usize::try_from(number.wrapping_sub(self.first)).ok();
            if let Some(place) = at.and_then(|at| self.places.get_mut(at)) {
                *place = Place::Done(bytes, answer);
            }
            self.flush();
            return;
        }
        match rest {
            Some(rest) => self.running.push(Box::pin(Arc::clone(&self.calls).next_of_many(rest))),
            None => {
                self.decoupled -= 1;
                self.bytes -= bytes;
            }
        }
        self.send(answer);
    }

    /// Sends what is done in front of the first that is not.
    fn flush(&mut self) {
        while let Some(Place::Done(..)) = self.places.front()
            && let Some(Place::Done(bytes, answer)) = self.places.pop_front()
        {
            self.first += 1;
            self.bytes -= bytes;
            self.send(answer);
            if self.progress != Progress::Serving {
                return;
            }
        }
    }

    fn send(&mut self, answer: Answer) {
        match answer {
            Ok(pieces) => self.ready.extend(pieces.into_iter().flatten()),
            Err((error, id)) => {
                error.log("ModelStreamInfer", &self.calls.headers);
                if self.calls.errors_end_it {
                    self.end(error.status());
                } else {
                    self.ready.extend(encode_error(&error.text(), &id));
                }
            }
        }
    }
}

impl Calls {
    /// The one answer of a model that is not decoupled.
    async fn one(self: Arc<Self>, number: u64, started: Started) -> Event {
        let Started { handle, decoded, arrived, bytes } = started;
        let id = decoded.request.id.clone();
        let answered = async {
            let mut response = self.grpc.server().infer(&handle, decoded.request, arrived).await?;
            tensor_body::classify(&mut response, &decoded.format, &handle)?;
            drop(handle);
            self.written(response).await.map(Some)
        };
        Event {
            number,
            bytes,
            answer: answered.await.map_err(|error| (error.into(), id)),
            rest: None,
            decoupled: false,
        }
    }

    /// The first of the answers of a decoupled model.
    async fn begin_many(self: Arc<Self>, started: Started) -> Event {
        let Started { handle, decoded, arrived, bytes } = started;
        let Decoded { request, format, empty_final, model, .. } = decoded;
        let (id, deadline) = (request.id.clone(), request.deadline);
        let begun = async {
            let classes = match format.outputs.is_empty() {
                true => None,
                false => {
                    let second = self.grpc.server().model(&model, Some(handle.id.version), deadline).await?;
                    Some((second, format))
                }
            };
            let responses = self.grpc.server().infer_stream(handle, request, arrived).await?;
            Ok::<_, Error>(Rest { responses, classes, id: id.clone(), empty_final, bytes })
        };
        match begun.await {
            Ok(rest) => self.next_of_many(rest).await,
            Err(error) => Event { number: 0, bytes, answer: Err((error.into(), id)), rest: None, decoupled: true },
        }
    }

    /// The next of the answers of a decoupled model.
    async fn next_of_many(self: Arc<Self>, mut rest: Rest) -> Event {
        let (id, bytes) = (rest.id.clone(), rest.bytes);
        let answered = async {
            let Some(response) = rest.responses.next().await else { return Ok((None, None)) };
            let mut response = response?;
            let last = response.last;
            let goes_out = !last || !response.outputs.is_empty() || rest.empty_final;
            let written = match goes_out {
                true => {
                    if let Some((handle, format)) = &rest.classes {
                        tensor_body::classify(&mut response, format, handle)?;
                    }
                    Some(self.written(response).await?)
                }
                false => None,
            };
            Ok((written, (!last).then_some(rest)))
        };
        let (answer, rest) = match answered.await {
            Ok((written, rest)) => (Ok(written), rest),
            Err(error) => (Err((CallError::Failed(error), id)), None),
        };
        Event { number: 0, bytes, answer, rest, decoupled: true }
    }

    async fn written(&self, response: InferenceResponse) -> Result<Pieces> {
        let pieces = encode(response, Wrapping::Stream);
        match (self.encoding, self.grpc.0.config.compression.level()) {
            (Encoding::Identity, _) | (_, None) => Ok(pieces),
            (encoding, Some(level)) => compress(pieces, encoding, level).await,
        }
    }
}

//! `ModelStreamInfer`: requests come one after the other, several of them run at a time, and answers go out in the order
//! of their requests; those of decoupled models as they come.
//!
//! The body of the answer is what runs it all: no task and no channel stand beside it. While the caller does not read,
//! nothing is taken in; and where the call ends, however it ends, what was under way is dropped with it.

mod run;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesUnordered};
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use hyper::body::Incoming;
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Code, Status};

use self::run::{Answer, Calls, Event, Started};
use super::super::trace_headers::Sending;
use super::messages::{ENCODING, Messages};
use super::reply::{self, GrpcBody};
use super::response::encode_error;
use super::{GrpcService, log_failure};
use crate::error::Result;
use crate::frontend::status::grpc_status;
use crate::inference::Deadline;

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
        let messages = Messages::new(headers, body, self.0.config.max_message_bytes, &self.0.buffers)?;
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
    starting: Option<BoxFuture<'static, Result<Started, (usize, Answer)>>>,
    running: FuturesUnordered<BoxFuture<'static, Event>>,
    /// The number of the request in the first place.
    first: u64,
    places: VecDeque<Place>,
    /// Requests to decoupled models that are under way.
    decoupled: usize,
    /// Bytes of the messages under way.
    bytes: usize,
    /// Pieces that are to go out; the last of a traced answer says when it has.
    ready: VecDeque<(Bytes, Option<Sending>)>,
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
            if let Some((piece, _sent)) = self.ready.pop_front() {
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
                Some(Ok(message)) => self.start(&message),
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
    fn start(&mut self, message: &Bytes) {
        let read = self.calls.read(message);
        self.bytes += read.bytes;
        self.starting = Some(Box::pin(Arc::clone(&self.calls).start(read)));
    }

    /// Runs a request that has its model.
    fn run(&mut self, started: Result<Started, (usize, Answer)>) {
        let number = self.first + self.places.len() as u64;
        let calls = Arc::clone(&self.calls);
        match started {
            Err((bytes, answer)) => {
                self.places.push_back(Place::Done(bytes, answer));
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
        let Answer { pieces, trace } = answer;
        match pieces {
            Ok(None) => {}
            Ok(Some(pieces)) => {
                self.ready.extend(pieces.into_iter().map(|piece| (piece, None)));
                if let (Some(trace), Some((_, sending))) = (trace, self.ready.back_mut()) {
                    *sending = Some(Sending::start_grpc(trace));
                }
            }
            Err((error, id)) => {
                error.trace(trace.as_deref());
                error.log("ModelStreamInfer", &self.calls.headers);
                if self.calls.errors_end_it {
                    self.end(error.status());
                } else {
                    self.ready.extend(encode_error(&error.text(), &id).into_iter().map(|piece| (piece, None)));
                }
            }
        }
    }
}

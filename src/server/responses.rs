//! The answers to one request, as they come.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use compact_str::CompactString;
use futures_util::Stream;

use super::ensemble::Passage;
use super::prepare::restore_shapes;
use super::settings::trace_answer;
use crate::error::Result;
use crate::inference::{InferenceResponse, NamedTensors};
use crate::lifecycle::handle::{LoadedVersion, ModelHandle};
use crate::scheduler::answer::Answer;
use crate::scheduler::stream::AnswerStream;
use crate::telemetry::trace::record::Trace;

/// The answers to one request: exactly one, with `last` set, from most models; from decoupled ones any number as they are
/// produced, then one with `last` set, which holds no outputs where the model ended without more to say. An error is the
/// last item. Dropping it cancels what is still to come. At most [`crate::scheduler::answer::WAITING_ANSWERS`] wait in it;
/// the model then waits for its reader.
pub struct Responses(Kind);

enum Kind {
    Single(Option<Box<InferenceResponse>>),
    Many(Many),
    Passing(Box<Passing>),
    Over,
}

struct Many {
    answers: AnswerStream,
    model: Arc<LoadedVersion>,
    id: CompactString,
    trace: Option<Arc<Trace>>,
}

/// The answers of an ensemble as its steps give them.
struct Passing {
    passage: Passage,
    /// Until the last answer is there, or the reader has left.
    model: ModelHandle,
    id: CompactString,
    trace: Option<Arc<Trace>>,
}

impl Many {
    fn response(&self, answer: Answer) -> Result<InferenceResponse> {
        let mut outputs = answer.outputs;
        restore_shapes(&self.model, &mut outputs)?;
        let (model, id) = (self.model.id.clone(), self.id.clone());
        Ok(InferenceResponse { model, id, parameters: Vec::new(), outputs, last: answer.last })
    }
}

impl Responses {
    pub(super) fn single(response: InferenceResponse) -> Self {
        Self(Kind::Single(Some(Box::new(response))))
    }

    pub(super) const fn many(
        answers: AnswerStream,
        model: Arc<LoadedVersion>,
        id: CompactString,
        trace: Option<Arc<Trace>>,
    ) -> Self {
        Self(Kind::Many(Many { answers, model, id, trace }))
    }

    pub(super) fn passing(passage: Passage, model: ModelHandle, id: CompactString, trace: Option<Arc<Trace>>) -> Self {
        Self(Kind::Passing(Box::new(Passing { passage, model, id, trace })))
    }
}

impl Stream for Responses {
    type Item = Result<InferenceResponse>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.0 {
            Kind::Single(response) => Poll::Ready(response.take().map(|response| Ok(*response))),
            Kind::Many(many) => {
                let next = ready!(many.answers.poll_next(context));
                let next = next.map(|answer| answer.and_then(|answer| many.response(answer)));
                if let (Some(trace), Some(answered)) = (&many.trace, &next) {
                    trace_answer(trace, answered);
                }
                if !matches!(&next, Some(Ok(InferenceResponse { last: false, .. }))) {
                    self.0 = Kind::Over;
                }
                Poll::Ready(next)
            }
            Kind::Passing(passing) => {
                let next = ready!(passing.passage.poll_next(context));
                let last = next.is_none();
                let next = next.unwrap_or_else(|| Ok(NamedTensors::new())).map(|outputs| InferenceResponse {
                    model: passing.model.id.clone(),
                    id: passing.id.clone(),
                    parameters: Vec::new(),
                    outputs,
                    last,
                });
                if let Some(trace) = &passing.trace {
                    trace_answer(trace, &next);
                }
                if last || next.is_err() {
                    self.0 = Kind::Over;
                }
                Poll::Ready(Some(next))
            }
            Kind::Over => Poll::Ready(None),
        }
    }
}

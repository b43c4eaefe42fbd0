//! The answers to one request, as they come.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use compact_str::CompactString;
use futures_util::Stream;

use super::prepare::restore_shapes;
use crate::error::Result;
use crate::inference::InferenceResponse;
use crate::lifecycle::handle::ModelHandle;
use crate::scheduler::queue::AnswerStream;

/// The answers to one request: exactly one, with `last` set, from most models; from decoupled ones any number as they are
/// produced, then one with `last` set, which holds no outputs where the model ended without more to say. An error is the
/// last item. Dropping it cancels what is still to come; the model is held until then.
pub struct Responses(Kind);

enum Kind {
    Single(Option<Box<InferenceResponse>>),
    Many { answers: AnswerStream, model: ModelHandle, id: CompactString },
}

impl Responses {
    pub(super) fn single(response: InferenceResponse) -> Self {
        Self(Kind::Single(Some(Box::new(response))))
    }

    pub(super) const fn many(answers: AnswerStream, model: ModelHandle, id: CompactString) -> Self {
        Self(Kind::Many { answers, model, id })
    }
}

impl Stream for Responses {
    type Item = Result<InferenceResponse>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.0 {
            Kind::Single(response) => Poll::Ready(response.take().map(|response| Ok(*response))),
            Kind::Many { answers, model, id } => {
                let Some(answer) = ready!(answers.poll_next(context)) else { return Poll::Ready(None) };
                Poll::Ready(Some(answer.and_then(|answer| {
                    let mut outputs = answer.outputs;
                    restore_shapes(model, &mut outputs)?;
                    let (model, id) = (model.id.clone(), id.clone());
                    Ok(InferenceResponse { model, id, parameters: Vec::new(), outputs, last: answer.last })
                })))
            }
        }
    }
}

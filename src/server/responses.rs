//! The answers to one request, as they come.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;

use crate::error::Result;
use crate::inference::InferenceResponse;

/// The answers to one request: exactly one, with `last` set, from most models; from decoupled ones any number as they are
/// produced, then one with `last` set, which holds no outputs where the model ended without more to say. An error is the
/// last item. Dropping it cancels what is still to come.
#[derive(Debug)]
pub struct Responses {
    single: Option<InferenceResponse>,
}

impl Responses {
    pub(super) const fn single(response: InferenceResponse) -> Self {
        Self { single: Some(response) }
    }
}

impl Stream for Responses {
    type Item = Result<InferenceResponse>;

    fn poll_next(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.single.take().map(Ok))
    }
}

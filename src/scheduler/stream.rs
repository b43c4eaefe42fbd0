//! The answers of a decoupled model to one request, as their reader has them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::answer::{Answer, Fate, Times, Wait};
use super::queue::{ModelQueue, deadline_exceeded, unloaded};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::NamedTensors;
use crate::metrics::statistics::FailureReason;

/// The answers of a decoupled model to one request. Dropping it withdraws a request that has not begun, and stops the model
/// at its next answer where it has.
pub struct AnswerStream {
    receiver: mpsc::Receiver<NamedTensors>,
    fate: Arc<Fate>,
    queue: Arc<ModelQueue>,
    arrived: Instant,
    /// By when the request must have begun.
    in_queue: Option<(Pin<Box<Sleep>>, Arc<Wait>)>,
    /// By when the first answer must be there.
    deadline: Option<Pin<Box<Sleep>>>,
    is_over: bool,
}

impl AnswerStream {
    pub(super) fn new(
        (receiver, fate): (mpsc::Receiver<NamedTensors>, Arc<Fate>),
        queue: Arc<ModelQueue>,
        arrived: Instant,
        times: Times,
    ) -> Self {
        let until = |at: Instant| Box::pin(tokio::time::sleep_until(at.into()));
        let in_queue = times.in_queue.map(|(at, wait)| (until(at), wait));
        Self { receiver, fate, queue, arrived, in_queue, deadline: times.deadline.map(until), is_over: false }
    }

    /// The next answer; `None` after the last.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Answer>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        match self.receiver.poll_recv(context) {
            Poll::Ready(Some(outputs)) => {
                (self.in_queue, self.deadline) = (None, None);
                Poll::Ready(Some(Ok(Answer { outputs, last: false })))
            }
            Poll::Ready(None) => Poll::Ready(Some(self.end())),
            Poll::Pending => {
                if let Some((time, wait)) = &mut self.in_queue
                    && time.as_mut().poll(context).is_ready()
                {
                    let left = wait.leave();
                    self.in_queue = None;
                    if left {
                        return Poll::Ready(Some(Err(self.give_up(FailureReason::Rejected))));
                    }
                }
                if self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready()) {
                    return Poll::Ready(Some(Err(self.give_up(FailureReason::Rejected))));
                }
                Poll::Pending
            }
        }
    }

    fn end(&mut self) -> Result<Answer> {
        self.is_over = true;
        match self.fate.end() {
            Some(Ok(())) => Ok(Answer { outputs: NamedTensors::new(), last: true }),
            Some(Err(error)) => {
                // Who runs the model counts what ran; what was too late to run is ours.
                if error.kind() == ErrorKind::DeadlineExceeded && self.fate.claim() {
                    self.queue.statistics().record_failure(FailureReason::Rejected, self.arrived.elapsed());
                }
                Err(error.clone())
            }
            None => Err(unloaded()),
        }
    }

    /// Reads no more, and counts that unless the request is counted.
    fn give_up(&mut self, reason: FailureReason) -> Error {
        self.is_over = true;
        self.receiver.close();
        if self.fate.claim() {
            self.queue.one_gave_up();
            self.queue.statistics().record_failure(reason, self.arrived.elapsed());
        }
        self.fate.release();
        deadline_exceeded()
    }
}

impl Drop for AnswerStream {
    fn drop(&mut self) {
        if !self.is_over {
            self.give_up(FailureReason::Canceled);
        }
    }
}

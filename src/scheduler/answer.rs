//! How a request is answered: once, or, by a decoupled model, any number of times.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, ErrorKind, Result};
use crate::inference::NamedTensors;

/// Answers of a decoupled model that may wait for their reader.
pub const WAITING_ANSWERS: usize = 16;

/// How long a model waits for a reader of its answers before it gives up on it: it holds a thread of the device meanwhile.
const READER_PATIENCE: Duration = Duration::from_secs(10);

/// One answer of several.
#[derive(Debug)]
pub struct Answer {
    /// The wanted outputs; none where the model ended without more to say.
    pub outputs: NamedTensors,
    /// Whether none follows.
    pub last: bool,
}

/// Where the answer to a request goes.
pub(super) enum Reply {
    /// To one who waits for exactly one.
    One(oneshot::Sender<Result<NamedTensors>>),
    /// To one who reads them as they come.
    Many(Answers),
}

impl Reply {
    /// Whether nobody waits for it any more.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Many(answers) => answers.sender.is_closed(),
        }
    }

    /// Answers for good.
    pub(super) fn finish(self, result: Result<NamedTensors>) {
        match self {
            Self::One(sender) => {
                // Who left has counted itself.
                let _gone = sender.send(result);
            }
            Self::Many(answers) => {
                let _gone = answers.send(result.map(|outputs| Answer { outputs, last: true }));
            }
        }
    }
}

/// The answers of one decoupled request, on their way to its reader.
pub(super) struct Answers {
    sender: mpsc::Sender<Result<Answer>>,
    /// Of the reader, whose clock bounds the wait for it.
    runtime: Handle,
}

impl Answers {
    /// A way for answers, and its other end.
    pub(super) fn new(runtime: Handle) -> (Self, mpsc::Receiver<Result<Answer>>) {
        let (sender, receiver) = mpsc::channel(WAITING_ANSWERS);
        (Self { sender, runtime }, receiver)
    }

    /// Hands one over, waiting for a reader that is behind. `Break` once nobody reads, with the error to count.
    pub(super) fn send(&self, answer: Result<Answer>) -> ControlFlow<Error> {
        let gone = || ControlFlow::Break(Error::new(ErrorKind::DeadlineExceeded, "the caller of the stream is gone"));
        match self.sender.try_send(answer) {
            Ok(()) => ControlFlow::Continue(()),
            Err(mpsc::error::TrySendError::Closed(_)) => gone(),
            Err(mpsc::error::TrySendError::Full(answer)) => {
                let waiting = async { tokio::time::timeout(READER_PATIENCE, self.sender.send(answer)).await };
                match self.runtime.block_on(waiting) {
                    Ok(Ok(())) => ControlFlow::Continue(()),
                    Ok(Err(_closed)) => gone(),
                    Err(_elapsed) => ControlFlow::Break(Error::new(
                        ErrorKind::DeadlineExceeded,
                        format!("the caller read no answer for {} s: the stream is cut", READER_PATIENCE.as_secs()),
                    )),
                }
            }
        }
    }
}

//! How a request is answered: once, or, by a decoupled model, any number of times.

use std::any::Any;
use std::future::Future;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::error::{Error, ErrorKind, Result};
use crate::inference::NamedTensors;

/// Answers of a decoupled model that may wait for their reader.
pub const WAITING_ANSWERS: usize = 16;

/// How long a model waits for a reader that is behind before others who want the model go first.
pub const READER_PATIENCE: Duration = Duration::from_secs(10);

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

    /// Answers for good, without waiting for anybody.
    pub(super) fn finish(self, result: Result<NamedTensors>) {
        match self {
            Self::One(sender) => {
                // Who left has counted itself.
                let _gone = sender.send(result);
            }
            Self::Many(answers) => answers.end(result.map(|_| ())),
        }
    }
}

/// Whether a request still waits: who says first that it begins, or that it has waited for too long, is believed.
#[derive(Debug, Default)]
pub(super) struct Wait(AtomicU8);

impl Wait {
    const WAITS: u8 = 0;
    const BEGAN: u8 = 1;
    const LEFT: u8 = 2;

    /// The request begins to run, unless its caller has left.
    pub(super) fn begin(&self) {
        // One of the two values that stay is there then, whichever came first.
        let _first = self.0.compare_exchange(Self::WAITS, Self::BEGAN, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The caller leaves, unless its request has begun. Says whether it left.
    pub(super) fn leave(&self) -> bool {
        self.0.compare_exchange(Self::WAITS, Self::LEFT, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether the caller has left.
    pub(super) fn is_left(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::LEFT
    }
}

/// How long a caller waits for its request to begin, where the queue's policy says so, and for its answer.
pub(super) struct Times {
    /// How long the request may wait in the queue; nothing where its own deadline comes before.
    pub(super) in_queue: Option<(Instant, Arc<Wait>)>,
    /// By when the answer, or the first one, must be there.
    pub(super) deadline: Option<Instant>,
}

impl Times {
    /// `reject_at` is when the queue refuses the request, `deadline` its own.
    pub(super) fn of(reject_at: Option<Instant>, deadline: Option<Instant>) -> Self {
        let in_queue = reject_at.filter(|at| deadline.is_none_or(|deadline| *at < deadline));
        Self { in_queue: in_queue.map(|at| (at, Arc::default())), deadline }
    }

    /// What the request is to be told by.
    pub(super) fn wait(&self) -> Option<Arc<Wait>> {
        self.in_queue.as_ref().map(|(_, wait)| Arc::clone(wait))
    }

    /// The answer; nothing where it did not come in time.
    pub(super) async fn bound<A: Future + Unpin>(self, mut answer: A) -> Option<A::Output> {
        if let Some((at, wait)) = self.in_queue {
            if let Ok(answer) = tokio::time::timeout_at(at.into(), &mut answer).await {
                return Some(answer);
            }
            if wait.leave() {
                return None;
            }
        }
        match self.deadline {
            None => Some(answer.await),
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answer).await.ok(),
        }
    }
}

/// What the model and the reader of its answers both know of a request.
#[derive(Default)]
pub(super) struct Fate {
    counted: AtomicBool,
    /// How the model ended; empty while it runs, and for good where it never ran.
    end: OnceLock<Result<()>>,
    /// What lives until the model has ended or the reader has left, whichever comes first.
    kept: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Fate {
    /// Whether the caller is the one to count the request: true once.
    pub(super) fn claim(&self) -> bool {
        !self.counted.swap(true, Ordering::Relaxed)
    }

    /// How the model ended.
    pub(super) fn end(&self) -> Option<&Result<()>> {
        self.end.get()
    }

    /// Lets go of what was kept.
    pub(super) fn release(&self) {
        let kept = self.kept.lock().take();
        drop(kept);
    }
}

/// The answers of one decoupled request, on their way to its reader.
pub(super) struct Answers {
    sender: mpsc::Sender<NamedTensors>,
    fate: Arc<Fate>,
    /// Of the reader, whose clock bounds the wait for it.
    runtime: Handle,
}

/// Why nobody reads an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// The reader has left.
    Gone,
    /// The reader is too far behind, and others want the model.
    Behind,
}

/// How long a model waits for a reader that is behind.
pub(super) struct Patience<'a> {
    /// So long in any case.
    pub(super) least: Duration,
    /// And then until somebody else wants the model: another request, or an unload.
    pub(super) is_wanted: &'a dyn Fn() -> bool,
    /// Told when that may have become so.
    pub(super) wanted: &'a Notify,
}

impl Patience<'_> {
    async fn over(&self) {
        tokio::time::sleep(self.least).await;
        loop {
            let changed = self.wanted.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if (self.is_wanted)() {
                return;
            }
            changed.await;
        }
    }
}

impl Answers {
    /// A way for answers, its other end, and what both know. `kept` lives until the model has ended or the reader left.
    pub(super) fn new(runtime: Handle, kept: Box<dyn Any + Send>) -> (Self, mpsc::Receiver<NamedTensors>, Arc<Fate>) {
        let (sender, receiver) = mpsc::channel(WAITING_ANSWERS);
        let fate = Arc::new(Fate { kept: Mutex::new(Some(kept)), ..Fate::default() });
        (Self { sender, fate: Arc::clone(&fate), runtime }, receiver, fate)
    }

    /// Hands one over, waiting for a reader that is behind for as long as `patience` lasts.
    pub(super) fn send(&self, outputs: NamedTensors, patience: &Patience<'_>) -> ControlFlow<Unread> {
        let outputs = match self.sender.try_send(outputs) {
            Ok(()) => return ControlFlow::Continue(()),
            Err(mpsc::error::TrySendError::Closed(_)) => return ControlFlow::Break(Unread::Gone),
            Err(mpsc::error::TrySendError::Full(outputs)) => outputs,
        };
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                place = self.sender.reserve() => match place {
                    Ok(place) => {
                        place.send(outputs);
                        ControlFlow::Continue(())
                    }
                    Err(_closed) => ControlFlow::Break(Unread::Gone),
                },
                () = patience.over() => ControlFlow::Break(Unread::Behind),
            }
        })
    }

    /// Whether this end is to count the request.
    pub(super) fn claim(&self) -> bool {
        self.fate.claim()
    }

    /// Nothing more comes. The reader learns how it ended after the answers that still wait for it, however many those
    /// are: the model is free at once.
    pub(super) fn end(self, result: Result<()>) {
        // Set once: this takes the answers.
        let _set = self.fate.end.set(result);
        self.fate.release();
    }
}

/// What the reader of a stream is told that others could not wait for.
pub(super) fn behind(least: Duration) -> Error {
    let seconds = least.as_secs_f64();
    let text = format!("no answer was read for {seconds} s while others waited for the model: the stream is cut");
    Error::new(ErrorKind::DeadlineExceeded, text)
}

//! A model's bounded queue and its idle instances: what waits, what runs, and how each request is answered.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::executor::ExecutorHandle;
use super::prompt::{LIMIT, Promptness};
use crate::backend::{Batch, Execution, Model, ModelInstance};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{Deadline, NamedTensors};
use crate::metrics::statistics::{ExecutionTimes, FailureReason, ModelStatistics};
use crate::sync::PinCount;

/// Checked tensors on their way into a model.
#[derive(Debug)]
pub struct Work {
    /// The inputs in the order of the signature.
    pub inputs: NamedTensors,
    /// The wanted outputs, as indexes into the signature.
    pub outputs: SmallVec<[usize; 4]>,
    /// Inferences in it: the batch dimension, 1 where there is none.
    pub batch_size: u64,
    /// When its answer is worth nothing any more.
    pub deadline: Option<Deadline>,
    /// When the request came in.
    pub arrived: Instant,
}

impl Work {
    fn input_bytes(&self) -> usize {
        self.inputs.iter().map(|input| input.tensor.data().len()).sum()
    }
}

struct Job {
    work: Work,
    queued: Instant,
    reply: oneshot::Sender<Result<NamedTensors>>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    idle: Vec<Box<dyn ModelInstance>>,
    /// Instances there are, idle or running; fewer than at the start only if one panicked and could not be replaced.
    instances: usize,
    /// Turns asked of the executor that have not begun; never more than there are idle instances to take them.
    asked: usize,
}

impl State {
    /// Whether another turn should be asked for, and counts it.
    fn ask(&mut self) -> bool {
        let ask = self.asked < self.waiting.len() && self.asked < self.idle.len();
        self.asked += usize::from(ask);
        ask
    }
}

/// A model version's queue.
pub struct ModelQueue {
    capacity: usize,
    /// Taken out when the queue is closed.
    model: Mutex<Option<Arc<dyn Model>>>,
    state: Mutex<State>,
    executor: ExecutorHandle,
    statistics: Arc<ModelStatistics>,
    promptness: Promptness,
    /// Pinned by every execution, so that closing can wait for the last.
    running: PinCount,
    /// Requests given up since the queue was last cleared of such: while there are none, a full queue is full of wanted
    /// ones.
    given_up: AtomicUsize,
}

impl ModelQueue {
    /// A queue of at most `capacity` waiting requests for `instances` instances of `model`.
    ///
    /// # Errors
    /// Whatever the model says when it cannot make an instance.
    pub fn new(
        model: Arc<dyn Model>,
        instances: usize,
        capacity: usize,
        executor: ExecutorHandle,
        statistics: Arc<ModelStatistics>,
    ) -> Result<Arc<Self>> {
        let idle = (0..instances.max(1)).map(|_| model.instance()).collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(Self {
            capacity,
            model: Mutex::new(Some(model)),
            state: Mutex::new(State { instances: idle.len(), idle, ..State::default() }),
            executor,
            statistics,
            promptness: Promptness::default(),
            running: PinCount::default(),
            given_up: AtomicUsize::new(0),
        }))
    }

    /// Requests that wait.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// Runs the work and gives the wanted outputs: here and now if the model is quick and idle, else through the
    /// device's threads. Dropping the future withdraws the work if it has not begun.
    ///
    /// # Errors
    /// `Overloaded` if the queue is full, `DeadlineExceeded`, `NotReady` once closed, or what the model says.
    pub async fn infer(self: &Arc<Self>, work: Work) -> Result<NamedTensors> {
        let deadline = work.deadline;
        let arrived = work.arrived;
        let work = match self.run_here(work) {
            ControlFlow::Break(result) => return result,
            ControlFlow::Continue(work) => work,
        };
        let answer = self.enqueue(work)?;
        let guard = CancelGuard { queue: self, arrived, armed: true };
        let received = match deadline {
            None => answer.await,
            Some(deadline) => match tokio::time::timeout_at(deadline.instant().into(), answer).await {
                Ok(received) => received,
                Err(_elapsed) => {
                    guard.disarm();
                    self.given_up.fetch_add(1, Ordering::Relaxed);
                    self.statistics.record_failure(FailureReason::Rejected, arrived.elapsed());
                    return Err(deadline_exceeded());
                }
            },
        };
        guard.disarm();
        match received {
            Ok(Err(error)) if error.kind() == ErrorKind::DeadlineExceeded => {
                self.statistics.record_failure(FailureReason::Rejected, arrived.elapsed());
                Err(error)
            }
            Ok(result) => result,
            Err(_dropped) => Err(Error::not_ready("the model was unloaded before the request ran")),
        }
    }

    /// The short way: with an idle instance, nothing waiting and a quick model, the caller's thread runs it.
    fn run_here(self: &Arc<Self>, work: Work) -> ControlFlow<Result<NamedTensors>, Work> {
        if !self.promptness.is_prompt(work.input_bytes()) {
            return ControlFlow::Continue(work);
        }
        let (Some(_place), Some(_running)) = (self.executor.short_way(), self.pin()) else {
            return ControlFlow::Continue(work);
        };
        let instance = {
            let mut state = self.state.lock();
            if state.waiting.is_empty() { state.idle.pop() } else { None }
        };
        let Some(instance) = instance else { return ControlFlow::Continue(work) };
        if work.deadline.is_some_and(|deadline| deadline.is_past(Instant::now())) {
            self.give_back(Some(instance));
            self.statistics.record_failure(FailureReason::Rejected, work.arrived.elapsed());
            return ControlFlow::Break(Err(deadline_exceeded()));
        }
        let ran = self.execute(instance, &work);
        self.record(&ran, &work, work.arrived);
        self.give_back(ran.instance);
        ControlFlow::Break(ran.result)
    }

    fn give_back(self: &Arc<Self>, instance: Option<Box<dyn ModelInstance>>) {
        if self.take_back(instance) {
            self.executor.submit(Arc::clone(self));
        }
    }

    /// Puts an instance among the idle ones, or counts it lost, and says whether another turn should be asked for.
    fn take_back(&self, instance: Option<Box<dyn ModelInstance>>) -> bool {
        let orphans;
        let again;
        {
            let mut state = self.state.lock();
            state.instances -= usize::from(instance.is_none());
            state.idle.extend(instance);
            orphans = if state.instances == 0 { std::mem::take(&mut state.waiting) } else { VecDeque::new() };
            again = state.ask();
        }
        for job in orphans {
            let _gone = job.reply.send(Err(no_instance()));
        }
        again
    }

    fn enqueue(self: &Arc<Self>, work: Work) -> Result<oneshot::Receiver<Result<NamedTensors>>> {
        let Some(_running) = self.pin() else {
            return Err(Error::not_ready("the model is being unloaded"));
        };
        let (reply, answer) = oneshot::channel();
        let arrived = work.arrived;
        let refused = {
            let mut state = self.state.lock();
            if state.waiting.len() >= self.capacity && self.given_up.swap(0, Ordering::Relaxed) > 0 {
                state.waiting.retain(|job| !job.reply.is_closed());
            }
            if state.instances == 0 {
                Some((FailureReason::Backend, no_instance()))
            } else if state.waiting.len() >= self.capacity {
                let text = format!("the model's queue is full ({} waiting): retry later", self.capacity);
                Some((FailureReason::Rejected, Error::new(ErrorKind::Overloaded, text)))
            } else {
                state.waiting.push_back(Job { work, queued: Instant::now(), reply });
                if state.ask() {
                    drop(state);
                    self.executor.submit(Arc::clone(self));
                }
                None
            }
        };
        match refused {
            None => Ok(answer),
            Some((reason, error)) => {
                self.statistics.record_failure(reason, arrived.elapsed());
                Err(error)
            }
        }
    }

    /// One turn on a device's thread: the first request that is still wanted. Says whether the queue wants another.
    pub(super) fn turn(self: &Arc<Self>) -> bool {
        let pinned = self.pin();
        let (job, instance) = {
            let mut state = self.state.lock();
            // A queue that was closed meanwhile has nothing asked.
            state.asked = state.asked.saturating_sub(1);
            // The short way may have taken the instance; it asks for a turn when it gives it back.
            if pinned.is_none() || state.idle.is_empty() {
                return false;
            }
            let Some(job) = self.next_wanted(&mut state.waiting) else { return false };
            let Some(instance) = state.idle.pop() else { return false };
            (job, instance)
        };
        let Job { work, queued, reply } = job;
        let ran = self.execute(instance, &work);
        // A caller that is gone has counted itself, as canceled or too late.
        if !reply.is_closed() {
            self.record(&ran, &work, queued);
        }
        let _gone = reply.send(ran.result);
        self.take_back(ran.instance)
    }

    /// Takes requests off the queue up to the first whose caller is there and whose deadline is not past.
    fn next_wanted(&self, waiting: &mut VecDeque<Job>) -> Option<Job> {
        let now = Instant::now();
        while let Some(job) = waiting.pop_front() {
            if job.reply.is_closed() {
                continue;
            }
            if job.work.deadline.is_some_and(|deadline| deadline.is_past(now)) {
                // The caller, who watches the same deadline, counts it.
                let _gone = job.reply.send(Err(deadline_exceeded()));
                continue;
            }
            return Some(job);
        }
        None
    }

    fn pin(&self) -> Option<Running<'_>> {
        // Not `then_some`: that would make a guard, and drop it, where there is nothing to unpin.
        self.running.try_pin().then(|| Running(&self.running))
    }

    /// Runs the work on the instance, which comes back unless it panicked beyond repair.
    fn execute(&self, mut instance: Box<dyn ModelInstance>, work: &Work) -> Ran {
        let batch = Batch { inputs: &work.inputs, outputs: &work.outputs };
        let start = Instant::now();
        let executed = catch_unwind(AssertUnwindSafe(|| instance.execute(&batch)));
        let end = Instant::now();
        let run = end.duration_since(start);
        // A refusal says nothing of how long an answer takes.
        if matches!(executed, Ok(Ok(_))) || run > LIMIT {
            self.promptness.observe(run, work.input_bytes());
        }
        let (instance, result) = match executed {
            Ok(Ok(Execution { outputs, compute_start, compute_end })) => {
                let times = ExecutionTimes { start, compute_start, compute_end, end };
                self.statistics.record_execution(work.batch_size, 1, &times);
                (Some(instance), Ok(outputs))
            }
            Ok(Err(error)) => (Some(instance), Err(error)),
            Err(_panic) => {
                tracing::error!("a model instance panicked and is replaced");
                (self.replace(instance), Err(Error::internal("the model instance panicked")))
            }
        };
        Ran { instance, result, start, end }
    }

    /// Another instance for one that panicked: what that holds may be half done. Either may panic again, and this thread
    /// is the device's.
    fn replace(&self, broken: Box<dyn ModelInstance>) -> Option<Box<dyn ModelInstance>> {
        let model = self.model.lock().clone();
        let made = catch_unwind(AssertUnwindSafe(|| {
            drop(broken);
            model.map(|model| model.instance()).transpose()
        }));
        let made = made.unwrap_or_else(|_panic| Err(Error::internal("replacing the instance panicked too")));
        made.unwrap_or_else(|error| {
            tracing::error!(error = %error.report(), "a panicked instance cannot be replaced");
            None
        })
    }

    /// Counts a request that was answered.
    fn record(&self, ran: &Ran, work: &Work, queued: Instant) {
        let total = ran.end.saturating_duration_since(work.arrived);
        match ran.result {
            Ok(_) => self.statistics.record_success(total, ran.start.saturating_duration_since(queued)),
            Err(_) => self.statistics.record_failure(FailureReason::Backend, total),
        }
    }

    /// Lets nothing new in, waits for what runs, answers what waits with `NotReady`, and gives out the instances and the
    /// model, for the caller to drop where that may take its time.
    pub async fn close(&self) -> Remains {
        self.running.retire();
        self.running.drained().await;
        let State { waiting, idle, .. } = std::mem::take(&mut *self.state.lock());
        // Their callers are told by the closed channel.
        drop(waiting);
        Remains { _instances: idle, _model: self.model.lock().take() }
    }
}

/// An execution that ended.
struct Ran {
    instance: Option<Box<dyn ModelInstance>>,
    result: Result<NamedTensors>,
    start: Instant,
    end: Instant,
}

/// What is left of a closed queue: instances first, then the model they share.
pub struct Remains {
    _instances: Vec<Box<dyn ModelInstance>>,
    _model: Option<Arc<dyn Model>>,
}

fn no_instance() -> Error {
    Error::new(ErrorKind::BackendFailed, "every instance of the model panicked: unload and load it again")
}

/// Keeps a queue from being seen as closed.
struct Running<'a>(&'a PinCount);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.unpin();
    }
}

fn deadline_exceeded() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "the request's deadline passed before it could be answered")
}

/// Counts a request whose caller went away.
struct CancelGuard<'a> {
    queue: &'a ModelQueue,
    arrived: Instant,
    armed: bool,
}

impl CancelGuard<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for CancelGuard<'_> {
    fn drop(&mut self) {
        if self.armed {
            let waited: Duration = self.arrived.elapsed();
            self.queue.given_up.fetch_add(1, Ordering::Relaxed);
            self.queue.statistics.record_failure(FailureReason::Canceled, waited);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::executor::Executor;
    use super::*;
    use crate::backend::gated::Gated;
    use crate::backend::{Backend, ModelFiles};
    use crate::inference::DeviceId;
    use crate::model_config::{UnknownFields, parse};

    #[tokio::test]
    async fn a_turn_that_comes_after_the_end_changes_nothing() {
        let tensor = "[ { name: \"x\" data_type: TYPE_INT32 dims: [ -1 ] } ]";
        let text = format!("name: \"m\" backend: \"gated\" input {tensor} output {tensor}");
        let config = parse(&text, UnknownFields::Deny).unwrap().config;
        let files = ModelFiles {
            directory: ".".into(),
            version_directory: ".".into(),
            version: 1,
            model_file: None,
            derived: None,
        };
        let model = Gated::default().load(&files, &config, DeviceId::Cpu).unwrap();
        let executor = Executor::start(DeviceId::Cpu, 1, 1).unwrap();
        let queue = ModelQueue::new(model.into(), 1, 1, executor.handle(), Arc::default()).unwrap();
        let running = queue.pin().unwrap();
        let closing = queue.close();
        tokio::pin!(closing);
        assert!(futures_util::poll!(closing.as_mut()).is_pending());
        assert!(!queue.turn());
        assert!(queue.pin().is_none());
        assert!(futures_util::poll!(closing.as_mut()).is_pending(), "what runs is waited for");
        drop(running);
        drop(closing.await);
        assert_eq!(queue.running.count(), 0);
    }
}

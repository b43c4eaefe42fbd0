//! Running a batch on an instance, and what becomes of an instance that panics.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::answer::{Patience, Reply, Unread, behind};
use super::layout::Layout;
use super::prompt::{LIMIT, Promptness};
use super::queue::no_instance;
use super::work::Work;
use crate::backend::{Batch, Execution, ModelInstance, Streamed};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{NamedTensor, NamedTensors};
use crate::metrics::meter::DeviceMeter;
use crate::metrics::statistics::{ExecutionTimes, FailureReason, ModelStatistics};

type Instance = Box<dyn ModelInstance>;

/// Makes another instance for one that panicked.
type Replace<'a> = &'a dyn Fn(Instance) -> Result<Instance>;

/// Runs a model's batches and counts them.
pub(super) struct Runner {
    layout: Layout,
    statistics: Arc<ModelStatistics>,
    /// Counts for the device that the model is at home on.
    meter: Arc<DeviceMeter>,
    promptness: Promptness,
    /// Whether the requests of a batch that failed are run one by one.
    tries_again: bool,
}

/// A run that ended.
struct Ran {
    result: Result<NamedTensors>,
    start: Instant,
    end: Instant,
    panicked: bool,
    times: Option<ExecutionTimes>,
}

impl Runner {
    pub(super) fn new(layout: Layout, statistics: Arc<ModelStatistics>, meter: Arc<DeviceMeter>) -> Self {
        Self { layout, statistics, meter, promptness: Promptness::default(), tries_again: true }
    }

    /// The same for a model that remembers: what a batch that failed has done to it, one more run would do again.
    pub(super) fn trying_once(self) -> Self {
        Self { tries_again: false, ..self }
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(super) fn statistics(&self) -> &ModelStatistics {
        &self.statistics
    }

    pub(super) fn promptness(&self) -> &Promptness {
        &self.promptness
    }

    /// Runs one request whose tensors pass through as they are. A caller that `is_gone` has counted itself.
    pub(super) fn run_alone(
        &self,
        instance: Instance,
        (work, queued): (&Work, Instant),
        is_gone: &dyn Fn() -> bool,
        replace: Replace<'_>,
    ) -> (Option<Instance>, Result<NamedTensors>) {
        let start = Instant::now();
        let tensors = Tensors { inputs: &work.inputs, outputs: &work.outputs, items: work.batch_size, requests: 1 };
        let (instance, ran) = self.execute(instance, &tensors, start, replace);
        let run = ran.end.saturating_duration_since(ran.start);
        // A refusal says nothing of how long an answer takes.
        if ran.result.is_ok() || run > LIMIT {
            self.promptness.observe(run, work.input_bytes());
        }
        if let Some(times) = &ran.times {
            work.executed(Some(queued).filter(|queued| *queued != work.arrived), times);
        }
        match (is_gone(), &ran.result) {
            (true, _) => {}
            (false, Ok(_)) => self.record_success(work, queued, ran.start, ran.end),
            (false, Err(_)) => self.record_failure(work, ran.end),
        }
        (instance, ran.result)
    }

    /// Runs requests together and gives the answer to each, in order. Where a batch fails each is run alone, so that one
    /// wrong request fails nobody else.
    pub(super) fn run(
        &self,
        instance: Option<Instance>,
        works: &[&Work],
        queued: &[Instant],
        is_gone: &dyn Fn(usize) -> bool,
        replace: Replace<'_>,
    ) -> (Option<Instance>, Vec<Result<NamedTensors>>) {
        let Some(instance) = instance else { return (None, works.iter().map(|_| Err(no_instance())).collect()) };
        if let ([work], [queued]) = (works, queued)
            && self.layout.passes_through()
        {
            let (instance, result) = self.run_alone(instance, (work, *queued), &|| is_gone(0), replace);
            return (instance, vec![result]);
        }
        let start = Instant::now();
        let gathered = match self.layout.gather(works) {
            Ok(gathered) => gathered,
            Err(error) => return (Some(instance), works.iter().map(|_| Err(error.clone())).collect()),
        };
        let items = works.iter().map(|work| work.batch_size).sum();
        let requests = works.iter().filter(|work| work.batch_size > 0).count() as u64;
        let tensors = Tensors { inputs: &gathered.inputs, outputs: &gathered.outputs, items, requests };
        let (mut instance, ran) = self.execute(instance, &tensors, start, replace);
        let answers = ran.result.and_then(|outputs| self.layout.split(&gathered.outputs, &outputs, works));
        let each = || works.iter().zip(queued).enumerate().filter(|(index, _)| !is_gone(*index));
        match answers {
            Ok(answers) => {
                for (_, (work, queued)) in each() {
                    if let Some(times) = &ran.times {
                        work.executed(Some(*queued), times);
                    }
                    self.record_success(work, *queued, ran.start, ran.end);
                }
                (instance, answers.into_iter().map(Ok).collect())
            }
            // What made it panic would do so again.
            Err(error) if works.len() == 1 || ran.panicked || !self.tries_again => {
                for (_, (work, _)) in each() {
                    self.record_failure(work, ran.end);
                }
                (instance, works.iter().map(|_| Err(error.clone())).collect())
            }
            Err(error) => {
                tracing::debug!(error = %error.report(), requests, "a batch failed: its requests run alone");
                let mut results = Vec::with_capacity(works.len());
                for (index, (work, queued)) in works.iter().zip(queued).enumerate() {
                    let one = (std::slice::from_ref(work), std::slice::from_ref(queued));
                    let (left, mut result) = self.run(instance, one.0, one.1, &|_| is_gone(index), replace);
                    instance = left;
                    results.append(&mut result);
                }
                (instance, results)
            }
        }
    }

    /// Runs one request of a decoupled model, whose answers go to its reader as they come, and counts it unless the reader
    /// has left, who counts itself.
    pub(super) fn run_stream(
        &self,
        mut instance: Instance,
        (work, queued): (&Work, Instant),
        reply: Reply,
        patience: &Patience<'_>,
        replace: Replace<'_>,
    ) -> Option<Instance> {
        let answers = match reply {
            Reply::Many(answers) => answers,
            one @ Reply::One(_) => {
                one.finish(Err(Error::internal("a decoupled model was asked for one answer")));
                return Some(instance);
            }
        };
        let start = Instant::now();
        let batch = Batch { inputs: &work.inputs, outputs: &work.outputs };
        let mut unread = None;
        let executed = catch_unwind(AssertUnwindSafe(|| {
            instance.execute_stream(&batch, &mut |outputs| {
                // Once broken off, it stays so: nobody waits twice for one reader.
                if unread.is_none()
                    && let ControlFlow::Break(reason) = answers.send(outputs, patience)
                {
                    unread = Some(reason);
                }
                if unread.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        }));
        let end = Instant::now();
        let (instance, result) = match executed {
            Ok(Ok(Streamed { compute_start, compute_end })) => {
                let times = ExecutionTimes { start, compute_start, compute_end, end };
                self.statistics.record_execution(work.batch_size, 1, &times);
                work.executed(Some(queued), &times);
                (Some(instance), Ok(()))
            }
            Ok(Err(error)) => (Some(instance), Err(error)),
            Err(_panic) => {
                tracing::error!("a model instance panicked and is replaced");
                (renew(instance, replace), Err(Error::internal("the model instance panicked")))
            }
        };
        let (failure, result) = match (unread, result) {
            (Some(Unread::Behind), _) => (Some(FailureReason::Canceled), Err(behind(patience.least))),
            (_, Err(error)) => (Some(FailureReason::Backend), Err(error)),
            (_, Ok(())) => (None, Ok(())),
        };
        if answers.claim() {
            match failure {
                None => self.record_success(work, queued, start, end),
                Some(reason) => {
                    self.statistics.record_failure(reason, end.saturating_duration_since(work.arrived));
                }
            }
        }
        answers.end(result);
        instance
    }

    /// Runs the tensors on the instance, which comes back unless it panicked beyond repair.
    fn execute(
        &self,
        mut instance: Instance,
        tensors: &Tensors<'_>,
        start: Instant,
        replace: Replace<'_>,
    ) -> (Option<Instance>, Ran) {
        let batch = Batch { inputs: tensors.inputs, outputs: tensors.outputs };
        let mut executed = catch_unwind(AssertUnwindSafe(|| instance.execute(&batch)));
        // Who was asked for room may have made it too late for that run. Once more, not again and again.
        if self.tries_again
            && let Ok(Err(error)) = &executed
            && error.kind() == ErrorKind::OutOfDeviceMemory
            && error.is_retryable()
        {
            tracing::debug!(error = %error.report(), "a run found no memory: it is run once more");
            executed = catch_unwind(AssertUnwindSafe(|| instance.execute(&batch)));
        }
        let end = Instant::now();
        let panicked = executed.is_err();
        let mut times = None;
        self.meter.executed(tensors.requests);
        let (instance, result) = match executed {
            Ok(Ok(Execution { outputs, compute_start, compute_end })) => {
                let these = ExecutionTimes { start, compute_start, compute_end, end };
                self.statistics.record_execution(tensors.items, tensors.requests, &these);
                times = Some(these);
                (Some(instance), Ok(outputs))
            }
            Ok(Err(error)) => (Some(instance), Err(error)),
            Err(_panic) => {
                tracing::error!("a model instance panicked and is replaced");
                (renew(instance, replace), Err(Error::internal("the model instance panicked")))
            }
        };
        (instance, Ran { result, start, end, panicked, times })
    }

    /// Counts a request that was answered.
    fn record_success(&self, work: &Work, queued: Instant, start: Instant, end: Instant) {
        let total = end.saturating_duration_since(work.arrived);
        let queued = start.saturating_duration_since(queued);
        self.statistics.record_success(total, queued);
        self.meter.queued.add(queued);
    }

    fn record_failure(&self, work: &Work, end: Instant) {
        let total = end.saturating_duration_since(work.arrived);
        self.statistics.record_failure(FailureReason::Backend, total);
    }
}

/// What is run at once.
struct Tensors<'a> {
    inputs: &'a [NamedTensor],
    outputs: &'a [usize],
    items: u64,
    requests: u64,
}

/// Another instance for one that panicked. Making it may panic again, and this thread is the device's.
fn renew(broken: Instance, replace: Replace<'_>) -> Option<Instance> {
    let made = catch_unwind(AssertUnwindSafe(|| replace(broken)));
    let made = made.unwrap_or_else(|_panic| Err(Error::internal("replacing the instance panicked too")));
    match made {
        Ok(instance) => Some(instance),
        Err(error) => {
            tracing::error!(error = %error.report(), "a panicked instance cannot be replaced");
            None
        }
    }
}

//! A request through an ensemble: what may run runs, beside what runs already, and each step's model is held from when its
//! inputs are there until it has answered. While a model is waited for none is held, so that requests to ensembles cannot
//! wait for each other's memory.
//!
//! All of it is one future that its caller polls: whoever leaves takes every step with it, and a reader that is behind
//! holds up the steps instead of heaping up their answers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use compact_str::CompactString;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use smallvec::SmallVec;
use tokio::time::Sleep;

use super::InferenceServer;
use super::responses::Responses;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{Deadline, InferenceRequest, InferenceResponse, NamedTensor, NamedTensors, Parameters};
use crate::lifecycle::composition::Composition;
use crate::lifecycle::handle::LoadedVersion;
use crate::metrics::statistics::{ExecutionTimes, FailureReason};
use crate::scheduler::ensemble::run::{Run, Tensors, Ticket};
use crate::scheduler::work::Work;
use crate::telemetry::trace::record::Trace;
use crate::tensor::Tensor;

/// How deep ensembles may stand in each other. What is deeper contains itself, through a model that was loaded anew.
const DEEPEST: usize = 32;

/// A request on its way through an ensemble.
pub(super) struct Passage {
    server: InferenceServer,
    ensemble: Arc<LoadedVersion>,
    composition: Arc<Composition>,
    run: Run<Tensor>,
    running: FuturesUnordered<BoxFuture<'static, Progress>>,
    /// Decoupled steps that go on when what is below them has become less.
    paused: Vec<(Ticket, Box<Responses>)>,
    asked: Asked,
    /// By when the first of several answers must be there.
    first_by: Option<Pin<Box<Sleep>>>,
    count: Count,
}

/// What every step is told of the request.
struct Asked {
    id: CompactString,
    parameters: Parameters,
    deadline: Option<Deadline>,
    priority: u64,
    trace: Option<Arc<Trace>>,
    /// The outputs of the ensemble that are wanted, by their place in its configuration.
    wanted: SmallVec<[usize; 4]>,
    /// How many ensembles it stands in.
    depth: usize,
}

/// What came of a step.
enum Progress {
    /// Its only answer.
    Once(Ticket, Result<NamedTensors>),
    /// A decoupled step's next answer, and the rest.
    Next(Ticket, Option<Result<InferenceResponse>>, Box<Responses>),
}

/// Counts the request once, as given up where nothing else was said.
struct Count {
    ensemble: Arc<LoadedVersion>,
    arrived: Instant,
    began: Instant,
    batch_size: u64,
    is_counted: bool,
}

impl Count {
    fn success(&mut self) {
        if !std::mem::replace(&mut self.is_counted, true) {
            let statistics = &self.ensemble.statistics;
            let end = Instant::now();
            // All of it is its steps' time, which they count for themselves.
            let times = ExecutionTimes { start: self.began, compute_start: self.began, compute_end: end, end };
            statistics.record_execution(self.batch_size, 1, &times);
            statistics.record_success(self.arrived.elapsed(), self.began.saturating_duration_since(self.arrived));
        }
    }

    fn failure(&mut self, reason: FailureReason) {
        if !std::mem::replace(&mut self.is_counted, true) {
            self.ensemble.statistics.record_failure(reason, self.arrived.elapsed());
        }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.failure(FailureReason::Canceled);
    }
}

impl Passage {
    /// A request that was checked. `depth` is how many ensembles it stands in.
    ///
    /// # Errors
    /// `InvalidArgument` where ensembles stand in each other without end.
    pub(super) fn new(
        server: &InferenceServer,
        (ensemble, composition): (Arc<LoadedVersion>, Arc<Composition>),
        work: Work,
        parameters: Parameters,
        depth: usize,
    ) -> Result<Self> {
        let Work { inputs, outputs, batch_size, deadline, priority, arrived, id, trace, .. } = work;
        let mut count =
            Count { ensemble: Arc::clone(&ensemble), arrived, began: Instant::now(), batch_size, is_counted: false };
        if depth >= DEEPEST {
            count.failure(FailureReason::Other);
            let text = format!("ensemble '{}' stands in {DEEPEST} others: it contains itself", ensemble.id.name);
            return Err(Error::invalid(text));
        }
        let mut inputs = inputs;
        let given = ensemble.inputs.iter().map(|known| {
            let at = inputs.iter().position(|input| input.name == known.name)?;
            Some(inputs.swap_remove(at).tensor)
        });
        let run = Run::new(Arc::clone(&composition.graph), given);
        let first_by = deadline.filter(|_| composition.graph.is_decoupled());
        Ok(Self {
            server: server.clone(),
            composition,
            run,
            running: FuturesUnordered::new(),
            paused: Vec::new(),
            asked: Asked { id, parameters, deadline, priority, trace, wanted: outputs, depth },
            first_by: first_by.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.instant().into()))),
            count,
            ensemble,
        })
    }

    /// The answer of an ensemble that gives one, once every step has ended.
    ///
    /// # Errors
    /// The first error of a step, naming it.
    pub(super) async fn once(mut self) -> Result<NamedTensors> {
        let mut answer = None;
        while let Some(next) = std::future::poll_fn(|context| self.poll_next(context)).await {
            answer = Some(next?);
        }
        answer.ok_or_else(|| Error::internal(format!("ensemble '{}' ended without an answer", self.ensemble.id.name)))
    }

    /// The next answer; `None` once every step has ended. Nothing is to be asked after an error.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<NamedTensors>>> {
        let next = self.advance(context);
        match &next {
            Poll::Ready(Some(Ok(_))) => self.first_by = None,
            Poll::Ready(None) => self.count.success(),
            Poll::Ready(Some(Err(error))) => {
                self.count.failure(reason(error));
                self.running.clear();
                self.paused.clear();
            }
            Poll::Pending => {}
        }
        next
    }

    fn advance(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<NamedTensors>>> {
        loop {
            while let Some((ticket, inputs)) = self.run.next_ready() {
                self.begin(ticket, inputs);
            }
            if let Some(answer) = self.run.next_answer() {
                return Poll::Ready(Some(self.outputs(answer)));
            }
            if self.run.is_over() {
                return Poll::Ready(None);
            }
            for (ticket, answers) in std::mem::take(&mut self.paused) {
                self.go_on(ticket, answers);
            }
            match self.running.poll_next_unpin(context) {
                Poll::Ready(Some(progress)) => {
                    if let Err(error) = self.took(progress) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
                Poll::Ready(None) => {
                    return Poll::Ready(Some(Err(Error::internal("the steps of an ensemble stand still"))));
                }
                Poll::Pending => {
                    let is_late = self.first_by.as_mut().is_some_and(|by| by.as_mut().poll(context).is_ready());
                    return if is_late { Poll::Ready(Some(Err(late()))) } else { Poll::Pending };
                }
            }
        }
    }

    /// Has a step run with these inputs.
    fn begin(&self, ticket: Ticket, inputs: Tensors<Tensor>) {
        let Some(step) = self.composition.steps.get(ticket.step()) else { return };
        let named = step.inputs.iter().zip(inputs);
        let request = InferenceRequest {
            id: self.asked.id.clone(),
            parameters: self.asked.parameters.clone(),
            inputs: named
                .filter_map(|(name, tensor)| Some(NamedTensor { name: name.clone(), tensor: tensor? }))
                .collect(),
            outputs: step.outputs.iter().cloned().collect(),
            // That of a request with many answers is for the first of them.
            deadline: self.asked.deadline.filter(|_| !self.composition.graph.is_below(ticket.step())),
            priority: self.asked.priority,
            trace: self.asked.trace.as_ref().map(|trace| trace.child()),
        };
        let call = StepCall {
            server: self.server.clone(),
            ensemble: Arc::clone(&self.ensemble),
            composition: Arc::clone(&self.composition),
            step: ticket.step(),
            depth: self.asked.depth + 1,
        };
        let splits = self.composition.graph.splits(ticket.step());
        self.running.push(if splits {
            async move {
                match call.stream(request).await {
                    Ok(answers) => next(ticket, answers).await,
                    Err(error) => Progress::Once(ticket, Err(error)),
                }
            }
            .boxed()
        } else {
            async move { Progress::Once(ticket, call.once(request).await) }.boxed()
        });
    }

    /// Asks a decoupled step for its next answer, unless enough is under way below it.
    fn go_on(&mut self, ticket: Ticket, answers: Box<Responses>) {
        if self.run.below(ticket) >= self.composition.most_below {
            self.paused.push((ticket, answers));
        } else {
            self.running.push(next(ticket, answers).boxed());
        }
    }

    fn took(&mut self, progress: Progress) -> Result<()> {
        match progress {
            Progress::Once(ticket, outputs) => {
                let outputs = self.in_order(ticket, outputs.map_err(|error| self.of_step(ticket, error))?)?;
                self.run.answered(ticket, outputs);
                self.run.ended(ticket);
            }
            Progress::Next(ticket, Some(answer), answers) => {
                let InferenceResponse { outputs, last, .. } = answer.map_err(|error| self.of_step(ticket, error))?;
                if !(last && outputs.is_empty()) {
                    let outputs = self.in_order(ticket, outputs)?;
                    self.run.answered(ticket, outputs);
                }
                if last {
                    self.run.ended(ticket);
                } else {
                    self.go_on(ticket, answers);
                }
            }
            Progress::Next(ticket, None, _) => self.run.ended(ticket),
        }
        Ok(())
    }

    /// A step's outputs as the graph has them.
    fn in_order(&self, ticket: Ticket, outputs: NamedTensors) -> Result<Tensors<Tensor>> {
        let mut outputs = outputs;
        let Some(step) = self.composition.steps.get(ticket.step()) else { return Ok(Tensors::new()) };
        let mut taken = Tensors::new();
        for name in &step.outputs {
            let Some(at) = outputs.iter().position(|output| output.name == *name) else {
                let error = Error::new(ErrorKind::BackendFailed, format!("the model gave no output '{name}'"));
                return Err(self.of_step(ticket, error));
            };
            taken.push(Some(outputs.swap_remove(at).tensor));
        }
        Ok(taken)
    }

    /// The outputs that are wanted, with their names.
    fn outputs(&self, answer: Tensors<Tensor>) -> Result<NamedTensors> {
        let mut answer = answer;
        let wanted = self.asked.wanted.iter().map(|&index| {
            let name = self.ensemble.outputs.get(index).map(|output| output.name.clone());
            let tensor = answer.get_mut(index).and_then(Option::take);
            name.zip(tensor).map(|(name, tensor)| NamedTensor { name, tensor })
        });
        let wanted: Option<NamedTensors> = wanted.collect();
        wanted.ok_or_else(|| Error::internal(format!("an output of ensemble '{}' is not there", self.ensemble.id.name)))
    }

    fn of_step(&self, ticket: Ticket, error: Error) -> Error {
        let model = self.composition.steps.get(ticket.step()).map_or("", |step| &*step.model);
        let shown = format!("step '{model}' of ensemble '{}'", self.ensemble.id.name);
        match error.kind() {
            // The ensemble itself is there.
            ErrorKind::NotFound => {
                let text = format!("{shown} is not loaded: load it, or load the ensemble anew");
                Error::not_ready(text).with_source(error).with_retryable(false)
            }
            _ => error.wrap(shown),
        }
    }
}

async fn next(ticket: Ticket, answers: Box<Responses>) -> Progress {
    let mut answers = answers;
    let answer = answers.next().await;
    Progress::Next(ticket, answer, answers)
}

/// A call of one step's model.
struct StepCall {
    server: InferenceServer,
    ensemble: Arc<LoadedVersion>,
    composition: Arc<Composition>,
    step: usize,
    depth: usize,
}

impl StepCall {
    async fn handle(&self, deadline: Option<Deadline>) -> Result<crate::lifecycle::handle::ModelHandle> {
        let step = self.composition.steps.get(self.step);
        let step = step.ok_or_else(|| Error::internal("an ensemble has no such step"))?;
        let handle = self.server.0.models.acquire_step(&step.model, step.version, deadline).await?;
        self.composition.check(&self.ensemble.config, self.step, &handle)?;
        Ok(handle)
    }

    async fn once(self, request: InferenceRequest) -> Result<NamedTensors> {
        let arrived = Instant::now();
        let handle = self.handle(request.deadline).await?;
        let answered = self.server.infer_at(&handle, request, arrived, self.depth).await?;
        Ok(answered.outputs)
    }

    async fn stream(self, request: InferenceRequest) -> Result<Box<Responses>> {
        let arrived = Instant::now();
        let handle = self.handle(request.deadline).await?;
        self.server.infer_stream_at(handle, request, arrived, self.depth).await.map(Box::new)
    }
}

fn reason(error: &Error) -> FailureReason {
    match error.kind() {
        ErrorKind::Overloaded | ErrorKind::DeadlineExceeded => FailureReason::Rejected,
        ErrorKind::BackendFailed => FailureReason::Backend,
        _ => FailureReason::Other,
    }
}

fn late() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "the request's deadline passed before it could be answered")
}

//! A model's bounded queue and its idle instances: what waits, what runs, and how each request is answered.
//!
//! What runs together is the [`Batcher`]'s to decide; here it is done. A queue's instances stand in groups, each at the
//! threads of one device; the requests are for whichever is idle first.

mod scheduling;
mod state;
mod turn;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};

use self::scheduling::one_by_one;
pub use self::scheduling::{Member, Scheduling};
use self::state::{Ask, Group, State};
pub(super) use self::state::{Job, Turn};
use super::answer::{Answers, Reply, Times, Wait};
use super::batcher::{Admission, Batcher, Entry, Rejected, Rules};
use super::budget::Budget;
use super::executor::ExecutorHandle;
use super::order::Order;
use super::run::Runner;
use super::sequence::line::SequenceLine;
use super::stream::AnswerStream;
use super::turns::Share;
use super::work::Work;
use crate::backend::{Model, ModelInstance};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{Deadline, NamedTensors};
use crate::metrics::statistics::{FailureReason, ModelStatistics};
use crate::sync::PinCount;

/// An answer that may have to wait for those before it.
type Answered = (Reply, Result<NamedTensors>);

/// A model version's queue.
pub struct ModelQueue {
    members: SmallVec<[(ExecutorHandle, Arc<Share>); 1]>,
    /// Taken out when the queue is closed.
    models: Mutex<SmallVec<[Arc<dyn Model>; 1]>>,
    state: Mutex<State>,
    order: Option<Mutex<Order<Answered>>>,
    /// In place of the batcher, where requests come in sequences.
    sequences: Option<SequenceLine>,
    runner: Runner,
    rules: Rules,
    /// Whether a quick model may be run by the thread that decoded the request.
    may_run_here: bool,
    decoupled: bool,
    patience: Duration,
    /// Told when somebody may want what a stream holds.
    wanted: Notify,
    /// Pinned by every execution, so that closing can wait for the last.
    running: PinCount,
    /// Requests given up that the batcher was not told of yet.
    given_up: AtomicUsize,
}

impl ModelQueue {
    /// A queue for the instances of a model.
    ///
    /// # Errors
    /// Whatever the model says when it cannot make an instance.
    pub fn new(members: Vec<Member>, scheduling: Scheduling, statistics: Arc<ModelStatistics>) -> Result<Arc<Self>> {
        let Scheduling { rules, layout, preserve_ordering, decoupled, sequences, patience } = scheduling;
        // What a sequence leaves in an instance is of use to that one only.
        let members = if sequences.is_some() { one_by_one(members) } else { members };
        let mut groups = SmallVec::new();
        for member in &members {
            let idle = (0..member.instances.max(1)).map(|_| member.model.instance()).collect::<Result<Vec<_>>>()?;
            groups.push(Group { idle, asked: 0 });
        }
        let instances = groups.iter().map(|group: &Group| group.idle.len()).sum();
        let budget = rules.budget.map(|budget| {
            let mut learner = Budget::new(budget, rules.max_items);
            learner.set_instances(instances);
            learner
        });
        let batcher = Some(Batcher::new(rules.clone()));
        let needs_nothing = members.iter().all(|member| member.share.needs_nothing());
        let waits = !rules.delay.is_zero() || budget.is_some();
        let meter = members.first().map(|member| member.executor.meter()).unwrap_or_default();
        let runner = Runner::new(layout, statistics, meter);
        let (runner, sequences) = match sequences {
            None => (runner, None),
            Some(sequencing) => {
                let instances = groups.iter_mut().filter_map(|group: &mut Group| group.idle.pop()).collect();
                (runner.trying_once(), Some(SequenceLine::new(sequencing, instances)))
            }
        };
        let may_run_here = sequences.is_none()
            && !waits
            && needs_nothing
            && !preserve_ordering
            && !decoupled
            && runner.layout().passes_through();
        Ok(Arc::new(Self {
            may_run_here,
            sequences,
            // The answers to two requests may mix: there is no order of theirs to keep.
            order: (preserve_ordering && !decoupled).then(Mutex::default),
            runner,
            state: Mutex::new(State { batcher, groups, instances, reminder: None, budget, is_hastened: false }),
            models: Mutex::new(members.iter().map(|member| Arc::clone(&member.model)).collect()),
            members: members.into_iter().map(|member| (member.executor, member.share)).collect(),
            rules,
            decoupled,
            patience,
            wanted: Notify::new(),
            running: PinCount::default(),
            given_up: AtomicUsize::new(0),
        }))
    }

    /// Requests that wait.
    #[must_use]
    pub fn pending(&self) -> usize {
        match &self.sequences {
            Some(sequences) => sequences.pending(),
            None => self.state.lock().batcher.as_ref().map_or(0, Batcher::len),
        }
    }

    /// Requests that wait for an instance or a thread. What waits for company while an instance is idle is not among them.
    #[must_use]
    pub fn held_up(&self) -> usize {
        if let Some(sequences) = &self.sequences {
            return sequences.pending();
        }
        let state = self.state.lock();
        let waits_for_company = state.groups.iter().any(|group| group.idle.len() > group.asked);
        state.batcher.as_ref().filter(|_| !waits_for_company).map_or(0, Batcher::len)
    }

    /// Sequences that hold a slot of an instance, and those that wait for one.
    #[must_use]
    pub fn live_sequences(&self) -> (usize, usize) {
        self.sequences.as_ref().map_or((0, 0), SequenceLine::live)
    }

    /// Whether its requests may have any number of answers.
    #[must_use]
    pub const fn is_decoupled(&self) -> bool {
        self.decoupled
    }

    pub(super) fn statistics(&self) -> &ModelStatistics {
        self.runner.statistics()
    }

    pub(super) fn share(&self, group: usize) -> Arc<Share> {
        self.members.get(group).map(|(_, share)| Arc::clone(share)).unwrap_or_default()
    }

    /// Runs the work and gives the wanted outputs: here and now if the model is quick and idle, else through the
    /// device's threads. Dropping the future withdraws the work if it has not begun.
    ///
    /// # Errors
    /// `Overloaded` if the queue is full, `DeadlineExceeded`, `NotReady` once closed, `Unsupported` for a model that may
    /// answer more than once, or what the model says.
    pub async fn infer(self: &Arc<Self>, work: Work) -> Result<NamedTensors> {
        if self.decoupled {
            return Err(Error::unsupported("doesn't support models with decoupled transaction policy"));
        }
        let (arrived, deadline) = (work.arrived, work.deadline.map(Deadline::instant));
        let admission = self.admit(&work);
        let work = match self.run_here(work, admission) {
            ControlFlow::Break(result) => return result,
            ControlFlow::Continue(work) => work,
        };
        let (sender, answer) = oneshot::channel();
        let times = Times::of(admission.reject_at, deadline);
        self.enqueue(work, admission, Reply::One(sender), times.wait())?;
        let guard = CancelGuard { queue: self, arrived, armed: true };
        let received = times.bound(answer).await;
        guard.disarm();
        let Some(received) = received else {
            self.given_up.fetch_add(1, Ordering::Relaxed);
            self.statistics().record_failure(FailureReason::Rejected, arrived.elapsed());
            return Err(deadline_exceeded());
        };
        match received {
            Ok(Err(error)) if error.kind() == ErrorKind::DeadlineExceeded => {
                self.statistics().record_failure(FailureReason::Rejected, arrived.elapsed());
                Err(error)
            }
            Ok(result) => result,
            Err(_dropped) => Err(unloaded()),
        }
    }

    /// Queues the work of a decoupled model and gives its answers as they come. Dropping them withdraws what has not
    /// begun, and tells the model that nobody reads any more. The work's deadline is that of its first answer. `kept`
    /// lives until the model has ended or the reader has left.
    ///
    /// # Errors
    /// `Overloaded` if the queue is full, `NotReady` once closed.
    pub fn infer_stream(self: &Arc<Self>, work: Work, kept: impl Send + 'static) -> Result<AnswerStream> {
        let (arrived, deadline) = (work.arrived, work.deadline.map(Deadline::instant));
        let admission = self.admit(&work);
        let times = Times::of(admission.reject_at, deadline);
        let (answers, receiver, fate) = Answers::new(tokio::runtime::Handle::current(), Box::new(kept));
        self.enqueue(work, admission, Reply::Many(answers), times.wait())?;
        self.wanted.notify_waiters();
        Ok(AnswerStream::new((receiver, fate), Arc::clone(self), arrived, times))
    }

    /// A caller that was not answered left; the batcher is told when it next looks.
    pub(super) fn one_gave_up(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets nothing wait for company any more, and no stream for a reader that is far behind: the model or the server is
    /// on its way out.
    pub fn hasten(self: &Arc<Self>) {
        self.state.lock().is_hastened = true;
        self.wanted.notify_waiters();
        loop {
            let ask = self.state.lock().ask(Instant::now());
            let Some(ask) = ask else { return };
            self.carry_out(ask);
        }
    }

    /// Whether somebody waits for what a stream holds.
    fn is_wanted(&self) -> bool {
        let state = self.state.lock();
        state.is_hastened || state.batcher.as_ref().is_some_and(|batcher| !batcher.is_empty())
    }

    /// Where the work stands: while it waits, its own deadline and its priority's are one.
    fn admit(&self, work: &Work) -> Admission {
        let mut admission = self.rules.admit(work.priority, None, work.arrived);
        let own = work.deadline.map(Deadline::instant);
        admission.reject_at = own.into_iter().chain(admission.reject_at).min();
        admission
    }

    /// The short way: with an idle instance, nothing waiting and a quick model, the caller's thread runs it.
    fn run_here(self: &Arc<Self>, work: Work, admission: Admission) -> ControlFlow<Result<NamedTensors>, Work> {
        if !self.may_run_here || !self.runner.promptness().is_prompt(work.input_bytes()) {
            return ControlFlow::Continue(work);
        }
        let Some((executor, _)) = self.members.first() else { return ControlFlow::Continue(work) };
        let (Some(_place), Some(_running)) = (executor.short_way(), self.pin()) else {
            return ControlFlow::Continue(work);
        };
        let instance = {
            let mut state = self.state.lock();
            let nobody_waits = state.batcher.as_ref().is_some_and(Batcher::is_empty);
            if nobody_waits { state.groups.first_mut().and_then(|group| group.idle.pop()) } else { None }
        };
        let Some(instance) = instance else { return ControlFlow::Continue(work) };
        if admission.reject_at.is_some_and(|at| Instant::now() >= at) {
            self.give_back(Some(instance), 0);
            self.statistics().record_failure(FailureReason::Rejected, work.arrived.elapsed());
            return ControlFlow::Break(Err(deadline_exceeded()));
        }
        let arrived = work.arrived;
        let (instance, result) =
            self.runner.run_alone(instance, (&work, arrived), &|| false, &|broken| self.replace(broken, 0));
        self.give_back(instance, 0);
        ControlFlow::Break(result)
    }

    fn give_back(self: &Arc<Self>, instance: Option<Box<dyn ModelInstance>>, group: usize) {
        if let Some(ask) = self.take_back(instance, group) {
            self.carry_out(ask);
        }
    }

    /// Puts an instance among the idle ones, or counts it lost, and says what is to be asked next.
    fn take_back(&self, instance: Option<Box<dyn ModelInstance>>, group: usize) -> Option<Ask> {
        let mut orphans = Vec::new();
        let again;
        {
            let mut state = self.state.lock();
            state.instances = state.instances.saturating_sub(usize::from(instance.is_none()));
            if let Some(group) = state.groups.get_mut(group) {
                group.idle.extend(instance);
            }
            if state.instances == 0
                && let Some(batcher) = &mut state.batcher
            {
                orphans = batcher.drain();
            }
            again = state.ask(Instant::now());
        }
        for entry in orphans {
            self.answer(entry.request, Err(no_instance()));
        }
        again
    }

    fn carry_out(self: &Arc<Self>, ask: Ask) {
        let (group, at) = match ask {
            Ask::Turn(group) => (group, None),
            Ask::Reminder(group, at) => (group, Some(at)),
        };
        let Some((executor, _)) = self.members.get(group) else { return };
        match at {
            None => executor.submit(Arc::clone(self), group),
            Some(at) => executor.submit_at(self, group, at),
        }
    }

    fn enqueue(
        self: &Arc<Self>,
        work: Work,
        admission: Admission,
        reply: Reply,
        wait: Option<Arc<Wait>>,
    ) -> Result<()> {
        let Some(_running) = self.pin() else {
            return Err(Error::not_ready("the model is being unloaded"));
        };
        if let Some(sequences) = &self.sequences {
            return sequences.enqueue(self, work, reply);
        }
        let arrived = work.arrived;
        let likeness = self.runner.layout().likeness(&work);
        let refused = {
            let mut state = self.state.lock();
            let has_instances = state.instances > 0;
            let now = Instant::now();
            let state = &mut *state;
            match &mut state.batcher {
                None => return Err(unloaded()),
                Some(_) if !has_instances => Some((FailureReason::Backend, no_instance())),
                Some(batcher) => {
                    batcher.given_up(self.given_up.swap(0, Ordering::Relaxed));
                    if let Some(budget) = &mut state.budget {
                        budget.observe_arrival(now, u32::try_from(work.batch_size).unwrap_or(u32::MAX));
                    }
                    let place = self.order.as_ref().map(|order| order.lock().enter());
                    let request = Job { work, likeness, place, reply, wait };
                    match batcher.push(Entry { request, admission, queued: now }) {
                        Ok(()) => None,
                        Err((Rejected::Full { limit, .. }, mut job)) => {
                            self.leave_order(job.place.take());
                            let text = format!("the model's queue is full ({limit} waiting): retry later");
                            Some((FailureReason::Rejected, Error::new(ErrorKind::Overloaded, text)))
                        }
                    }
                }
            }
        };
        if let Some((reason, error)) = refused {
            self.statistics().record_failure(reason, arrived.elapsed());
            return Err(error);
        }
        let ask = self.state.lock().ask(Instant::now());
        if let Some(ask) = ask {
            self.carry_out(ask);
        }
        Ok(())
    }

    /// A request as it waits.
    pub(super) fn job(&self, work: Work, reply: Reply) -> Job {
        let likeness = self.runner.layout().likeness(&work);
        let place = self.order.as_ref().map(|order| order.lock().enter());
        // Sequences have no policy that bounds their time in the queue.
        Job { work, likeness, place, reply, wait: None }
    }

    /// Forgets a request that is answered otherwise.
    pub(super) fn withdraw(&self, mut job: Job) {
        self.leave_order(job.place.take());
    }

    /// Asks a thread of a group's device for a turn, now or later.
    pub(super) fn ask(self: &Arc<Self>, (group, at): (usize, Option<Instant>)) {
        self.carry_out(at.map_or(Ask::Turn(group), |at| Ask::Reminder(group, at)));
    }

    pub(super) fn runner(&self) -> &Runner {
        &self.runner
    }

    pub(super) fn pin(&self) -> Option<Running<'_>> {
        // Not `then_some`: that would make a guard, and drop it, where there is nothing to unpin.
        self.running.try_pin().then(|| Running(&self.running))
    }

    /// Another instance for one that panicked: what that holds may be half done.
    pub(super) fn replace(&self, broken: Box<dyn ModelInstance>, group: usize) -> Result<Box<dyn ModelInstance>> {
        let model = self.models.lock().get(group).cloned();
        drop(broken);
        model.ok_or_else(unloaded)?.instance()
    }

    /// Lets nothing new in, waits for what runs, answers what waits with `NotReady`, and gives out the instances and the
    /// model, for the caller to drop where that may take its time.
    pub async fn close(&self) -> Remains {
        self.running.retire();
        self.running.drained().await;
        let State { batcher, groups, .. } = std::mem::take(&mut *self.state.lock());
        // Their callers are told by the closed channel.
        drop(batcher);
        let of_sequences = self.sequences.iter().flat_map(SequenceLine::close);
        let instances = groups.into_iter().flat_map(|group| group.idle).chain(of_sequences).collect();
        Remains { _instances: instances, _models: std::mem::take(&mut *self.models.lock()) }
    }
}

/// What is left of a closed queue: instances first, then the models they share.
pub struct Remains {
    _instances: Vec<Box<dyn ModelInstance>>,
    _models: SmallVec<[Arc<dyn Model>; 1]>,
}

pub(super) fn no_instance() -> Error {
    Error::new(ErrorKind::BackendFailed, "every instance of the model panicked: unload and load it again")
}

pub(super) fn unloaded() -> Error {
    Error::not_ready("the model was unloaded before the request ran")
}

pub(super) fn deadline_exceeded() -> Error {
    Error::new(ErrorKind::DeadlineExceeded, "the request's deadline passed before it could be answered")
}

/// Keeps a queue from being seen as closed.
pub(super) struct Running<'a>(&'a PinCount);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.unpin();
    }
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
            self.queue.statistics().record_failure(FailureReason::Canceled, waited);
        }
    }
}

#[cfg(test)]
mod tests;

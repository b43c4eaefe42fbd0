//! A model's bounded queue and its idle instances: what waits, what runs, and how each request is answered.
//!
//! What runs together is the [`Batcher`]'s to decide; here it is done. A queue's instances stand in groups, each at the
//! threads of one device; the requests are for whichever is idle first. Groups come and go while requests wait (`members`).

mod members;
mod scheduling;
mod state;
mod turn;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

pub use self::members::Remains;
use self::members::{Seat, seats};
use self::scheduling::one_by_one;
pub use self::scheduling::{Member, MemberId, Scheduling};
use self::state::{Ask, State};
pub(super) use self::state::{Job, Turn};
use super::answer::{Answers, Reply, Times, Wait};
use super::batcher::{Admission, Batcher, Entry, Rejected, Rules};
use super::budget::Budget;
use super::order::Order;
use super::run::Runner;
use super::sequence::line::SequenceLine;
use super::stream::AnswerStream;
use super::work::Work;
use crate::backend::ModelInstance;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{Deadline, NamedTensors};
use crate::metrics::statistics::{FailureReason, ModelStatistics};
use crate::sync::PinCount;

/// An answer that may have to wait for those before it.
type Answered = (Reply, Result<NamedTensors>);

/// A model version's queue.
pub struct ModelQueue {
    /// Where the groups of `state` run, ascending by their ids.
    seats: ArcSwap<Vec<Seat>>,
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
    /// Told when an instance came back that was to go.
    returned: Notify,
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
        // Of several devices the first counts its batches.
        let meter = members.first().map(|member| member.executor.meter()).unwrap_or_default();
        let (seats, mut groups) = seats(0, members)?;
        let budget = rules.budget.map(|budget| {
            let mut learner = Budget::new(budget, rules.max_items);
            learner.set_instances(groups.iter().map(|group| group.total).sum());
            learner
        });
        let batcher = Some(Batcher::new(rules.clone()));
        let waits = !rules.delay.is_zero() || budget.is_some();
        let runner = Runner::new(layout, statistics, meter);
        let (runner, sequences) = match sequences {
            None => (runner, None),
            Some(sequencing) => {
                let instances = groups.iter_mut().filter_map(|group| group.idle.pop()).collect();
                (runner.trying_once(), Some(SequenceLine::new(sequencing, instances)))
            }
        };
        let may_run_here =
            sequences.is_none() && !waits && !preserve_ordering && !decoupled && runner.layout().passes_through();
        Ok(Arc::new(Self {
            may_run_here,
            sequences,
            // The answers to two requests may mix: there is no order of theirs to keep.
            order: (preserve_ordering && !decoupled).then(Mutex::default),
            runner,
            state: Mutex::new(State {
                batcher,
                next_id: seats.len(),
                groups,
                reminder: None,
                budget,
                is_hastened: false,
            }),
            seats: ArcSwap::from_pointee(seats),
            rules,
            decoupled,
            patience,
            wanted: Notify::new(),
            returned: Notify::new(),
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
        self.ask_all();
    }

    /// Whether somebody waits for what a stream of this group holds.
    fn is_wanted(&self, group: MemberId) -> bool {
        let mut state = self.state.lock();
        state.is_hastened
            || state.group_mut(group).is_none_or(|group| group.surplus > 0)
            || state.batcher.as_ref().is_some_and(|batcher| !batcher.is_empty())
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
        let Some(_running) = self.pin() else { return ControlFlow::Continue(work) };
        let seats = self.seats.load();
        let found = seats.iter().filter(|seat| seat.share.needs_nothing()).find_map(|seat| {
            let place = seat.executor.short_way()?;
            let mut state = self.state.lock();
            let nobody_waits = state.batcher.as_ref().is_some_and(Batcher::is_empty);
            let instance = state.group_mut(seat.id).filter(|_| nobody_waits)?.idle.pop()?;
            Some((seat.id, place, instance))
        });
        let Some((group, _place, instance)) = found else { return ControlFlow::Continue(work) };
        if admission.reject_at.is_some_and(|at| Instant::now() >= at) {
            self.give_back(Some(instance), group);
            self.statistics().record_failure(FailureReason::Rejected, work.arrived.elapsed());
            return ControlFlow::Break(Err(deadline_exceeded()));
        }
        let arrived = work.arrived;
        let (instance, result) =
            self.runner.run_alone(instance, (&work, arrived), &|| false, &|broken| self.replace(broken, group));
        self.give_back(instance, group);
        ControlFlow::Break(result)
    }

    fn give_back(self: &Arc<Self>, instance: Option<Box<dyn ModelInstance>>, group: MemberId) {
        if let Some(ask) = self.take_back(instance, group) {
            self.carry_out(ask);
        }
    }

    /// Puts an instance among the idle ones, or counts it lost, and says what is to be asked next.
    fn take_back(&self, instance: Option<Box<dyn ModelInstance>>, group: MemberId) -> Option<Ask> {
        let mut orphans = Vec::new();
        let (was_to_go, again);
        {
            let mut state = self.state.lock();
            was_to_go = state.put_back(group, instance);
            if state.serving() == 0
                && let Some(batcher) = &mut state.batcher
            {
                orphans = batcher.drain();
            }
            again = state.ask(Instant::now());
        }
        if was_to_go {
            self.returned.notify_waiters();
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
        let seats = self.seats.load();
        // A member that left meanwhile: whoever took it out asks others.
        let Some(seat) = Seat::of(&seats, group) else { return };
        match at {
            None => seat.executor.submit(Arc::clone(self), group),
            Some(at) => seat.executor.submit_at(self, group, at),
        }
    }

    /// Asks for all that there is to ask for.
    fn ask_all(self: &Arc<Self>) {
        loop {
            let ask = self.state.lock().ask(Instant::now());
            let Some(ask) = ask else { return };
            self.carry_out(ask);
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
            let has_instances = state.serving() > 0;
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
        let (ask, is_alone) = {
            let mut state = self.state.lock();
            (state.ask(Instant::now()), state.groups.len() == 1)
        };
        if let Some(ask) = ask {
            self.carry_out(ask);
        }
        if !is_alone {
            // Each device is asked.
            self.ask_all();
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
    pub(super) fn ask(self: &Arc<Self>, (group, at): (MemberId, Option<Instant>)) {
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
    pub(super) fn replace(&self, broken: Box<dyn ModelInstance>, group: MemberId) -> Result<Box<dyn ModelInstance>> {
        let model = self.state.lock().group_mut(group).map(|group| Arc::clone(&group.model));
        drop(broken);
        model.ok_or_else(unloaded)?.instance()
    }

    /// Lets nothing run, once what runs has ended: the memory below the model is about to go. Nobody asks it meanwhile.
    pub async fn rest(&self) {
        self.running.retire();
        self.running.drained().await;
    }

    /// Undoes [`ModelQueue::rest`].
    pub fn resume(self: &Arc<Self>) {
        self.state.lock().is_hastened = false;
        self.running.reopen();
        // Whose caller left meanwhile may wait yet.
        self.ask_all();
    }

    /// Lets nothing new in, waits for what runs, answers what waits with `NotReady`, and gives out the instances and the
    /// model, for the caller to drop where that may take its time.
    pub async fn close(&self) -> Remains {
        self.running.retire();
        self.running.drained().await;
        let State { batcher, groups, .. } = std::mem::take(&mut *self.state.lock());
        // Their callers are told by the closed channel.
        drop(batcher);
        let mut remains = Remains::default();
        remains.instances.extend(self.sequences.iter().flat_map(SequenceLine::close));
        groups.into_iter().for_each(|group| remains.take(group));
        self.returned.notify_waiters();
        remains
    }
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

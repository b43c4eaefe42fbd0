//! A model's bounded queue and its idle instances: what waits, what runs, and how each request is answered.
//!
//! What runs together is the [`Batcher`]'s to decide; here it is done. A queue's instances stand in groups, each at the
//! threads of one device; the requests are for whichever is idle first.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};

use super::answer::{Answers, Patience, READER_PATIENCE, Reply};
use super::batcher::{Admission, Batched, Batcher, Due, Entry, Next, Rejected, Rules};
use super::budget::Budget;
use super::executor::ExecutorHandle;
use super::layout::{Layout, Likeness};
use super::order::{Order, Place};
use super::run::Runner;
use super::sequence::line::{SequenceLine, Sequencing};
use super::stream::AnswerStream;
use super::turns::Share;
use super::work::Work;
use crate::backend::{Model, ModelInstance};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{Deadline, NamedTensors};
use crate::metrics::statistics::{FailureReason, ModelStatistics};
use crate::model_config::ModelConfig;
use crate::sync::PinCount;

/// Instances that run at the threads of one device, in turns of one share.
#[derive(Clone)]
pub struct Member {
    /// The model, on that device.
    pub model: Arc<dyn Model>,
    /// How many instances of it, at least one.
    pub instances: usize,
    /// The device's threads.
    pub executor: ExecutorHandle,
    /// Their share of the device's time.
    pub share: Arc<Share>,
}

/// How a model's requests are scheduled.
#[derive(Debug)]
pub struct Scheduling {
    /// What waits, how long, and what runs together.
    pub rules: Rules,
    /// How the tensors of a batch are laid out.
    pub layout: Layout,
    /// Whether answers leave in the order of their requests.
    pub preserve_ordering: bool,
    /// Whether a request may have any number of answers.
    pub decoupled: bool,
    /// How sequences are kept together, where requests come in sequences.
    pub sequences: Option<Sequencing>,
    /// How long a reader of many answers may be behind while others want the model.
    pub patience: Duration,
}

impl Default for Scheduling {
    fn default() -> Self {
        Self {
            rules: Rules::default(),
            layout: Layout::default(),
            preserve_ordering: false,
            decoupled: false,
            sequences: None,
            patience: READER_PATIENCE,
        }
    }
}

impl Scheduling {
    /// What a configuration asks for, on a server that lets `capacity` requests wait where it does not say.
    ///
    /// # Errors
    /// `InvalidArgument` for parameters of the scheduler that are wrong.
    pub fn of(config: &ModelConfig, capacity: usize) -> Result<Self> {
        let mut rules = Rules::of(config, capacity)?;
        if config.decoupled {
            // Each has answers of its own, whenever the model gives them.
            rules.max_items = 0;
        }
        Ok(Self {
            rules,
            layout: Layout::of(config),
            preserve_ordering: config.preserves_ordering(),
            decoupled: config.decoupled,
            ..Self::default()
        })
    }

    /// Each request alone, in the order they come.
    #[must_use]
    pub fn one_by_one(capacity: usize) -> Self {
        Self { rules: Rules { capacity, ..Rules::default() }, ..Self::default() }
    }
}

/// A request that waits or runs.
pub(super) struct Job {
    pub(super) work: Work,
    likeness: Likeness,
    /// Its place among the answers, where they leave in order.
    place: Option<Place>,
    pub(super) reply: Reply,
}

impl Batched for Job {
    fn items(&self) -> u32 {
        u32::try_from(self.work.batch_size).unwrap_or(u32::MAX)
    }

    fn is_gone(&self) -> bool {
        self.reply.is_closed()
    }

    fn fits(&self, first: &Self) -> bool {
        self.likeness == first.likeness
    }
}

/// The instances of one member.
#[derive(Default)]
struct Group {
    idle: Vec<Box<dyn ModelInstance>>,
    /// Turns asked of the executor that have not begun; never more than there are idle instances to take them.
    asked: usize,
}

#[derive(Default)]
struct State {
    batcher: Option<Batcher<Job>>,
    groups: SmallVec<[Group; 1]>,
    /// Instances there are, idle or running; fewer than at the start only if one panicked and could not be replaced.
    instances: usize,
    /// When an executor was asked to look again.
    reminder: Option<Instant>,
    /// Learns how long to wait for company, where the model says by when it must answer.
    budget: Option<Budget>,
    /// Whether nobody waits for company any more.
    is_hastened: bool,
}

/// What an executor is to be asked.
enum Ask {
    Turn(usize),
    Reminder(usize, Instant),
}

impl State {
    fn delay(&self, now: Instant) -> Duration {
        let Some(batcher) = self.batcher.as_ref().filter(|_| !self.is_hastened) else { return Duration::ZERO };
        match (&self.budget, batcher.oldest()) {
            (Some(budget), Some(oldest)) => budget.delay(now, batcher.items(), oldest),
            _ => batcher.rules().delay,
        }
    }

    /// What to ask of an executor now, and counts it.
    fn ask(&mut self, now: Instant) -> Option<Ask> {
        let spare = |(_, group): &(usize, &Group)| group.idle.len().saturating_sub(group.asked);
        let (index, group) = self.groups.iter().enumerate().max_by_key(spare)?;
        if group.idle.len() <= group.asked {
            return None;
        }
        let asked: usize = self.groups.iter().map(|group| group.asked).sum();
        let delay = self.delay(now);
        let batcher = self.batcher.as_mut()?;
        if asked >= batcher.batches() {
            return None;
        }
        match batcher.due(now, delay) {
            Due::Now => {
                self.groups[index].asked += 1;
                Some(Ask::Turn(index))
            }
            Due::At(at) if self.reminder.is_none_or(|reminder| at < reminder) => {
                self.reminder = Some(at);
                Some(Ask::Reminder(index, at))
            }
            Due::At(_) | Due::Never => None,
        }
    }
}

/// How a turn came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It was asked for.
    Asked,
    /// What waited may have waited long enough.
    Reminded,
}

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
        let runner = Runner::new(layout, statistics);
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
        let arrived = work.arrived;
        let admission = self.admit(&work);
        let work = match self.run_here(work, admission) {
            ControlFlow::Break(result) => return result,
            ControlFlow::Continue(work) => work,
        };
        let (sender, answer) = oneshot::channel();
        self.enqueue(work, admission, Reply::One(sender))?;
        let guard = CancelGuard { queue: self, arrived, armed: true };
        let received = match admission.reject_at {
            None => answer.await,
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), answer).await {
                Ok(received) => received,
                Err(_elapsed) => {
                    guard.disarm();
                    self.given_up.fetch_add(1, Ordering::Relaxed);
                    self.statistics().record_failure(FailureReason::Rejected, arrived.elapsed());
                    return Err(deadline_exceeded());
                }
            },
        };
        guard.disarm();
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
        let arrived = work.arrived;
        let admission = self.admit(&work);
        let (answers, receiver, fate) = Answers::new(tokio::runtime::Handle::current(), Box::new(kept));
        self.enqueue(work, admission, Reply::Many(answers))?;
        self.wanted.notify_waiters();
        Ok(AnswerStream::new((receiver, fate), Arc::clone(self), arrived, admission.reject_at))
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

    /// Where the work stands: its own deadline and its priority's are one.
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

    fn enqueue(self: &Arc<Self>, work: Work, admission: Admission, reply: Reply) -> Result<()> {
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
                    let request = Job { work, likeness, place, reply };
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

    /// A reminder came for a group that cannot take its turn yet; it stands in line as if it had been asked.
    pub(super) fn reminded(&self, group: usize) {
        if let Some(sequences) = &self.sequences {
            return sequences.reminded(group);
        }
        let mut state = self.state.lock();
        state.reminder = None;
        if let Some(group) = state.groups.get_mut(group) {
            group.asked += 1;
        }
    }

    /// One turn on a device's thread: the batch that is due. Says whether the same group wants another.
    pub(super) fn turn(self: &Arc<Self>, group: usize, turn: Turn) -> bool {
        if let Some(sequences) = &self.sequences {
            return sequences.turn(self, group, turn);
        }
        let pinned = self.pin();
        let mut given = None;
        let mut more = None;
        let expired;
        {
            let mut state = self.state.lock();
            let state = &mut *state;
            // A queue that was closed meanwhile has nothing asked.
            let Some(own) = state.groups.get_mut(group) else { return false };
            match turn {
                Turn::Asked => own.asked = own.asked.saturating_sub(1),
                Turn::Reminded => state.reminder = None,
            }
            // The short way may have taken the instance; it asks for a turn when it gives it back.
            if pinned.is_none() || own.idle.is_empty() {
                return false;
            }
            let now = Instant::now();
            let delay = state.delay(now);
            let Some(batcher) = &mut state.batcher else { return false };
            batcher.given_up(self.given_up.swap(0, Ordering::Relaxed));
            match batcher.next(now, delay) {
                Next::Batch(batch) => {
                    given =
                        state.groups.get_mut(group).and_then(|own| own.idle.pop()).map(|instance| (batch, instance));
                }
                Next::Wait(at) => {
                    if state.reminder.is_none_or(|reminder| at < reminder) {
                        state.reminder = Some(at);
                        more = Some(Ask::Reminder(group, at));
                    }
                }
                Next::Nothing => {}
            }
            expired = state.batcher.as_mut().map(Batcher::take_expired).unwrap_or_default();
        }
        for entry in expired {
            // The caller, who watches the same deadline, counts it.
            self.answer(entry.request, Err(deadline_exceeded()));
        }
        if let Some(ask) = more {
            self.carry_out(ask);
        }
        let Some((batch, instance)) = given else { return false };
        let items = batch.iter().map(|entry| entry.request.items()).fold(0, u32::saturating_add);
        let began = Instant::now();
        let instance = self.run(instance, batch, group);
        let ran = began.elapsed();
        if let Some(budget) = &mut self.state.lock().budget {
            budget.observe_run(items, ran);
        }
        match self.take_back(instance, group) {
            Some(Ask::Turn(asked)) if asked == group => true,
            Some(ask) => {
                self.carry_out(ask);
                false
            }
            None => false,
        }
    }

    /// Runs a batch and answers its requests; the instance comes back unless it panicked beyond repair.
    fn run(
        self: &Arc<Self>,
        instance: Box<dyn ModelInstance>,
        batch: Vec<Entry<Job>>,
        group: usize,
    ) -> Option<Box<dyn ModelInstance>> {
        if self.decoupled {
            let mut instance = Some(instance);
            for Entry { request, queued, .. } in batch {
                let Some(running) = instance.take() else {
                    self.answer(request, Err(no_instance()));
                    continue;
                };
                instance = self.stream(running, request, queued, group);
            }
            return instance;
        }
        let replace = |broken| self.replace(broken, group);
        let (jobs, queued): (SmallVec<[Job; 8]>, SmallVec<[Instant; 8]>) =
            batch.into_iter().map(|entry| (entry.request, entry.queued)).unzip();
        let (left, results) = {
            let works: SmallVec<[&Work; 8]> = jobs.iter().map(|job| &job.work).collect();
            let is_gone = |index: usize| jobs.get(index).is_none_or(Job::is_gone);
            self.runner.run(Some(instance), &works, &queued, &is_gone, &replace)
        };
        for (job, result) in jobs.into_iter().zip(results) {
            self.answer(job, result);
        }
        left
    }

    /// Runs the request of a decoupled model, whose answers go where they are read.
    pub(super) fn stream(
        &self,
        instance: Box<dyn ModelInstance>,
        job: Job,
        queued: Instant,
        group: usize,
    ) -> Option<Box<dyn ModelInstance>> {
        let is_wanted = || self.is_wanted();
        let patience = Patience { least: self.patience, is_wanted: &is_wanted, wanted: &self.wanted };
        let replace = |broken| self.replace(broken, group);
        let Job { work, reply, .. } = job;
        self.runner.run_stream(instance, (&work, queued), reply, &patience, &replace)
    }

    /// Answers a request, after those before it where answers leave in order.
    pub(super) fn answer(&self, job: Job, result: Result<NamedTensors>) {
        let Job { place, reply, .. } = job;
        match (&self.order, place) {
            (Some(order), Some(place)) => {
                let released: SmallVec<[_; 4]> = order.lock().finish(place, (reply, result)).collect();
                for (reply, result) in released {
                    reply.finish(result);
                }
            }
            _ => reply.finish(result),
        }
    }

    fn leave_order(&self, place: Option<Place>) {
        if let (Some(order), Some(place)) = (&self.order, place) {
            let released: SmallVec<[_; 4]> = order.lock().leave(place).collect();
            for (reply, result) in released {
                reply.finish(result);
            }
        }
    }

    /// A request as it waits.
    pub(super) fn job(&self, work: Work, reply: Reply) -> Job {
        let likeness = self.runner.layout().likeness(&work);
        let place = self.order.as_ref().map(|order| order.lock().enter());
        Job { work, likeness, place, reply }
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

/// Each instance as a member of its own.
fn one_by_one(members: Vec<Member>) -> Vec<Member> {
    let each = members.into_iter().flat_map(|member| {
        let instances = member.instances.max(1);
        std::iter::repeat_n(member, instances)
    });
    each.map(|member| Member { instances: 1, ..member }).collect()
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

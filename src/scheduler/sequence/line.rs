//! The queue of a model of sequences: what the [`Sequencer`] decides, done with instances, threads and tensors.
//!
//! Each instance is one group of the [`ModelQueue`], so that a turn on a device's thread is one of an instance, whose
//! slots are its alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::feed::{Feed, States};
use super::{Pick, Queued, Refused, Row, SequenceRules, Sequenced, Sequencer};
use crate::backend::ModelInstance;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{NamedTensors, Sequence, SequenceId};
use crate::metrics::statistics::FailureReason;
use crate::model_config::ModelConfig;
use crate::scheduler::answer::Reply;
use crate::scheduler::batcher::{Batched, Due};
use crate::scheduler::queue::{Job, ModelQueue, Turn, no_instance, unloaded};
use crate::scheduler::work::Work;

/// The least time between two looks for sequences that are silent for too long, beside those that requests cause.
const LOOKS: Duration = Duration::from_millis(20);

/// How a model's sequences are scheduled.
#[derive(Debug)]
pub struct Sequencing {
    /// The model's name, for errors.
    pub model: Arc<str>,
    /// Who holds which slot, and who runs together.
    pub rules: SequenceRules,
    /// What the model gets beside the inputs of callers.
    pub feed: Feed,
}

impl Sequencing {
    /// What a complete configuration asks for; `feed` is the configuration's own.
    #[must_use]
    pub fn of(model: &Arc<str>, config: &ModelConfig, feed: Feed, capacity: usize) -> Option<Self> {
        let batching = config.sequence_batching.as_ref()?;
        // Each request of a decoupled model has answers of its own, whenever the model gives them.
        let most = if config.decoupled { 0 } else { config.max_batch_size };
        let rules = SequenceRules::of(batching, most, capacity);
        Some(Self { model: Arc::clone(model), rules, feed })
    }
}

/// A request and its place.
struct Member {
    job: Job,
    sequence: Sequence,
}

impl Batched for Member {
    fn items(&self) -> u32 {
        self.job.items()
    }

    fn is_gone(&self) -> bool {
        self.job.is_gone()
    }

    fn fits(&self, first: &Self) -> bool {
        self.job.fits(&first.job)
    }
}

impl Sequenced for Member {
    fn sequence(&self) -> &Sequence {
        &self.sequence
    }
}

type Instance = Box<dyn ModelInstance>;

#[derive(Default)]
struct Seat {
    /// Out while it runs.
    instance: Option<Instance>,
    /// Whether a turn of it is asked for or under way.
    is_asked: bool,
    /// When a thread was asked to look again.
    reminder: Option<Instant>,
}

struct State {
    sequencer: Sequencer<Member, States>,
    seats: Vec<Seat>,
    /// When a thread was asked to look for silent sequences.
    expiry: Option<Instant>,
}

/// What a thread is to be asked.
type Asks = SmallVec<[(usize, Option<Instant>); 2]>;

impl State {
    /// What is to be asked for an instance.
    fn ask(&mut self, lane: usize, now: Instant, asks: &mut Asks) {
        let Some(seat) = self.seats.get_mut(lane) else { return };
        if seat.is_asked || seat.instance.is_none() {
            return;
        }
        match self.sequencer.due(lane, now) {
            Due::Now => {
                seat.is_asked = true;
                asks.push((lane, None));
            }
            Due::At(at) => seat.remind(lane, at, asks),
            Due::Never => {}
        }
    }

    /// Ends silent sequences, and has a thread look for the next ones.
    fn expire(&mut self, now: Instant, asks: &mut Asks) {
        for lane in self.sequencer.expire(now) {
            self.ask(lane, now, asks);
        }
        self.watch(now, asks);
    }

    fn watch(&mut self, now: Instant, asks: &mut Asks) {
        self.expiry = self.expiry.filter(|at| *at > now);
        if self.expiry.is_none()
            && let Some(next) = self.sequencer.next_expiry()
        {
            let at = next.max(now + LOOKS);
            self.expiry = Some(at);
            asks.push((0, Some(at)));
        }
    }
}

impl Seat {
    fn remind(&mut self, lane: usize, at: Instant, asks: &mut Asks) {
        if self.reminder.is_none_or(|reminder| at < reminder) {
            self.reminder = Some(at);
            asks.push((lane, Some(at)));
        }
    }
}

/// The sequences of a model and its instances.
pub(in crate::scheduler) struct SequenceLine {
    model: Arc<str>,
    feed: Feed,
    capacity: usize,
    /// Taken out when the queue is closed.
    state: Mutex<Option<State>>,
}

impl SequenceLine {
    /// A line for these instances, whose places are their groups in the queue.
    pub(in crate::scheduler) fn new(sequencing: Sequencing, instances: Vec<Instance>) -> Self {
        let Sequencing { model, rules, feed } = sequencing;
        let capacity = rules.capacity;
        let sequencer = Sequencer::new(rules, instances.len());
        let seats =
            instances.into_iter().map(|instance| Seat { instance: Some(instance), ..Seat::default() }).collect();
        Self { model, feed, capacity, state: Mutex::new(Some(State { sequencer, seats, expiry: None })) }
    }

    /// Requests that wait.
    pub(in crate::scheduler) fn pending(&self) -> usize {
        self.state.lock().as_ref().map_or(0, |state| state.sequencer.len())
    }

    /// Sequences that hold a slot, and those that wait for one.
    pub(in crate::scheduler) fn live(&self) -> (usize, usize) {
        self.state.lock().as_ref().map_or((0, 0), |state| (state.sequencer.live(), state.sequencer.backlog()))
    }

    /// Queues a request.
    ///
    /// # Errors
    /// `InvalidArgument` where it begins no sequence and there is none of its id, `Overloaded`, `NotReady` once closed.
    pub(in crate::scheduler) fn enqueue(&self, queue: &Arc<ModelQueue>, mut work: Work, reply: Reply) -> Result<()> {
        let Some(sequence) = work.sequence.take() else {
            return Err(Error::internal("a request without a sequence came to a model of sequences"));
        };
        let (arrived, id) = (work.arrived, work.id.clone());
        let shown = sequence.id.clone();
        let job = queue.job(work, reply);
        let mut asks = Asks::new();
        let (pushed, ended) = {
            let mut state = self.state.lock();
            let Some(state) = state.as_mut() else { return Err(unloaded()) };
            let now = Instant::now();
            state.expire(now, &mut asks);
            let pushed = state.sequencer.push(Member { job, sequence }, now);
            if let Ok(Some(lane)) = pushed {
                state.ask(lane, now, &mut asks);
            }
            state.watch(now, &mut asks);
            (pushed.map(drop), state.sequencer.take_ended())
        };
        self.refuse(queue, ended);
        for ask in asks {
            queue.ask(ask);
        }
        let Err((refused, member)) = pushed else { return Ok(()) };
        queue.withdraw(member.job);
        let (reason, error) = match refused {
            Refused::NotStarted => (FailureReason::Other, self.not_started(&id, &shown)),
            Refused::NoInstance => (FailureReason::Backend, no_instance()),
            Refused::Full => {
                let text = format!("the model's queue is full ({} waiting): retry later", self.capacity);
                (FailureReason::Rejected, Error::new(ErrorKind::Overloaded, text))
            }
        };
        queue.statistics().record_failure(reason, arrived.elapsed());
        Err(error)
    }

    fn not_started(&self, id: &str, sequence: &SequenceId) -> Error {
        let id = if id.is_empty() { "<id_unknown>" } else { id };
        let sequence = match sequence {
            SequenceId::Number(number) => number.to_string(),
            SequenceId::Text(text) => text.to_string(),
        };
        Error::invalid(format!(
            "[request id: {id}] inference request for sequence {sequence} to model '{}' must specify the START flag on \
             the first request of the sequence",
            self.model
        ))
    }

    /// Answers requests whose sequence was given up.
    fn refuse(&self, queue: &ModelQueue, ended: Vec<Member>) {
        for Member { job, .. } in ended {
            if !job.is_gone() {
                queue.statistics().record_failure(FailureReason::Canceled, job.work.arrived.elapsed());
            }
            let text = format!(
                "a request before this one in its sequence to model '{}' was cancelled or ran out of time: begin the \
                 sequence anew with the START flag",
                self.model
            );
            queue.answer(job, Err(Error::new(ErrorKind::NotReady, text)));
        }
    }

    /// A reminder came for an instance that cannot take its turn yet; it stands in line as if it had been asked. Says
    /// whether it was not in line already.
    pub(in crate::scheduler) fn reminded(&self, lane: usize) {
        if let Some(seat) = self.state.lock().as_mut().and_then(|state| state.seats.get_mut(lane)) {
            seat.reminder = None;
        }
    }

    /// One turn of an instance. Says whether it wants another.
    pub(in crate::scheduler) fn turn(&self, queue: &Arc<ModelQueue>, lane: usize, turn: Turn) -> bool {
        let Some(_running) = queue.pin() else { return false };
        let mut asks = Asks::new();
        let mut picked = None;
        let ended;
        {
            let mut state = self.state.lock();
            let Some(state) = state.as_mut() else { return false };
            let now = Instant::now();
            state.expire(now, &mut asks);
            if let Some(seat) = state.seats.get_mut(lane) {
                seat.reminder = seat.reminder.filter(|at| *at > now);
            }
            // What expired may have asked for this very instance.
            let is_own = turn == Turn::Asked || asks.contains(&(lane, None));
            asks.retain(|ask| *ask != (lane, None));
            if let Some(seat) = state.seats.get_mut(lane)
                && (is_own || !seat.is_asked)
            {
                seat.is_asked = false;
                if seat.instance.is_some() {
                    match state.sequencer.next(lane, now) {
                        Pick::Batch(rows) => {
                            seat.is_asked = true;
                            picked = seat.instance.take().map(|instance| (instance, rows));
                        }
                        Pick::Wait(at) => seat.remind(lane, at, &mut asks),
                        Pick::Nothing => {}
                    }
                }
            }
            ended = state.sequencer.take_ended();
        }
        self.refuse(queue, ended);
        for ask in asks {
            queue.ask(ask);
        }
        let Some((instance, rows)) = picked else { return false };
        self.run(queue, lane, instance, rows)
    }

    /// Runs a batch, gives the slots back, and answers. Says whether the instance has more to do.
    fn run(&self, queue: &Arc<ModelQueue>, lane: usize, instance: Instance, rows: Vec<Row<Member, States>>) -> bool {
        let mut running: Vec<Running> = rows.into_iter().filter_map(|row| Running::of(row, &self.feed)).collect();
        let mut instance = Some(instance);
        if queue.is_decoupled() {
            for one in &mut running {
                instance = one.stream(queue, lane, instance.take());
            }
        } else if self.feed.varies() && !alike(&running) {
            for one in &mut running {
                instance = self.run_together(queue, lane, instance.take(), std::slice::from_mut(one));
            }
        } else {
            instance = self.run_together(queue, lane, instance.take(), &mut running);
        }
        let mut asks = Asks::new();
        let mut again = false;
        let ended = {
            let mut state = self.state.lock();
            let Some(state) = state.as_mut() else { return false };
            let now = Instant::now();
            let is_lost = instance.is_none();
            if let Some(seat) = state.seats.get_mut(lane) {
                (seat.instance, seat.is_asked) = (instance, false);
            }
            if is_lost {
                state.sequencer.lose(lane);
            } else {
                let rows = running.iter_mut().map(|one| (one.slot, one.sequence.end, one.state.take()));
                state.sequencer.done(lane, rows, now);
                state.ask(lane, now, &mut asks);
            }
            asks.retain(|ask| {
                let is_turn = *ask == (lane, None);
                again |= is_turn;
                !is_turn
            });
            state.sequencer.take_ended()
        };
        // Whoever has the answer finds its sequence ready for the next request.
        for one in running {
            if let (Some(job), Some(result)) = (one.job, one.result) {
                queue.answer(job, result);
            }
        }
        self.refuse(queue, ended);
        for ask in asks {
            queue.ask(ask);
        }
        again
    }

    /// Runs rows in one batch, empty ones filled, and keeps the result of each.
    fn run_together(
        &self,
        queue: &Arc<ModelQueue>,
        lane: usize,
        instance: Option<Instance>,
        rows: &mut [Running],
    ) -> Option<Instance> {
        let Some(first) = rows.iter().filter(|row| row.result.is_none()).find_map(|row| row.job.as_ref()) else {
            return instance;
        };
        // Where slots are rows, those before a request that have none are filled.
        let mut order: SmallVec<[Option<usize>; 8]> = SmallVec::new();
        for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.result.is_none()) {
            while row.place.is_some_and(|place| order.len() < place) {
                order.push(None);
            }
            order.push(Some(index));
        }
        let empty = order.iter().filter(|row| row.is_none());
        let fillers = empty.map(|_| self.feed.filler(&first.work)).collect::<Result<SmallVec<[Work; 4]>>>();
        let (instance, results) = match fillers {
            Err(error) => (instance, order.iter().map(|_| Err(error.clone())).collect()),
            Ok(fillers) => {
                let mut fillers = fillers.iter();
                let of = |row: &Option<usize>| rows.get((*row)?)?.job.as_ref();
                let works: SmallVec<[&Work; 8]> =
                    order.iter().filter_map(|row| of(row).map(|job| &job.work).or_else(|| fillers.next())).collect();
                let now = Instant::now();
                let since = |row: &Option<usize>| row.and_then(|index| rows.get(index)).map_or(now, |row| row.queued);
                let queued: SmallVec<[Instant; 8]> = order.iter().map(since).collect();
                let is_gone = |at: usize| order.get(at).and_then(of).is_none_or(Job::is_gone);
                let replace = |broken| queue.replace(broken, lane);
                queue.runner().run(instance, &works, &queued, &is_gone, &replace)
            }
        };
        for (row, result) in order.iter().zip(results) {
            if let Some(row) = row.and_then(|index| rows.get_mut(index)) {
                row.keep(result, &self.feed);
            }
        }
        instance
    }

    /// Everything, for the caller to drop: instances, and with the rest of the state the sequences and what they carry.
    pub(in crate::scheduler) fn close(&self) -> Vec<Instance> {
        let Some(State { seats, sequencer, .. }) = self.state.lock().take() else { return Vec::new() };
        // Callers are told by the closed channel.
        drop(sequencer);
        seats.into_iter().filter_map(|seat| seat.instance).collect()
    }
}

/// Whether the inputs of all rows have the same shapes.
fn alike(rows: &[Running]) -> bool {
    let shapes = |row: &Running| {
        row.job.as_ref().map(|job| job.work.inputs.iter().map(|input| input.tensor.shape().clone()).collect::<Vec<_>>())
    };
    let mut each = rows.iter().filter(|row| row.result.is_none()).map(shapes);
    let first = each.next();
    each.all(|shapes| Some(&shapes) == first.as_ref())
}

/// A request that runs.
struct Running {
    slot: u32,
    /// Its row of the batch, where it must have one.
    place: Option<usize>,
    queued: Instant,
    sequence: Sequence,
    /// What the sequence carried before, or carries after it was answered.
    state: Option<States>,
    /// Where the states stand among the outputs.
    places: SmallVec<[usize; 2]>,
    /// The outputs that the caller wants.
    wanted: usize,
    job: Option<Job>,
    result: Option<Result<NamedTensors>>,
}

impl Running {
    fn of(row: Row<Member, States>, feed: &Feed) -> Option<Self> {
        let Row { slot, queued, state, is_placed } = row;
        let Queued { request: Member { mut job, sequence }, queued } = queued?;
        let wanted = job.work.outputs.len();
        let (places, result) = match feed.add(&mut job.work, &sequence, state.as_ref()) {
            Ok(places) => (places, None),
            Err(error) => (SmallVec::new(), Some(Err(error))),
        };
        let place = is_placed.then_some(slot as usize);
        Some(Self { slot, place, queued, sequence, state, places, wanted, job: Some(job), result })
    }

    fn keep(&mut self, result: Result<NamedTensors>, feed: &Feed) {
        self.result = Some(result.map(|mut outputs| {
            if let Some(states) = feed.take(&mut outputs, &self.places, self.wanted) {
                self.state = Some(states);
            }
            outputs
        }));
    }

    /// Runs the request of a decoupled model, whose answers go where they are read.
    fn stream(&mut self, queue: &Arc<ModelQueue>, lane: usize, instance: Option<Instance>) -> Option<Instance> {
        if self.result.is_some() {
            return instance;
        }
        let Some(job) = self.job.take() else { return instance };
        let Some(instance) = instance else {
            queue.answer(job, Err(no_instance()));
            return None;
        };
        queue.stream(instance, job, self.queued, lane)
    }
}

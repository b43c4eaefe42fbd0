//! One request through an ensemble: which steps may run, given which tensors are there, and which tensors nobody needs any
//! more. Pure: whoever runs the steps says what came of them.
//!
//! What flows down by itself is a *frame*: the request's own at level 0, and one below it for each answer of a decoupled
//! step. A frame has its own reference to each tensor from above that something on its level or further down needs, so that
//! it looks at nothing but itself.

use std::collections::VecDeque;
use std::sync::Arc;

use smallvec::SmallVec;

use super::Graph;

/// A step of one frame, that is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    frame: usize,
    step: usize,
}

impl Ticket {
    /// Which of the ensemble's steps.
    #[must_use]
    pub const fn step(self) -> usize {
        self.step
    }
}

/// The tensors of a step, in the order of its map; `None` for one that the caller left out.
pub type Tensors<T> = SmallVec<[Option<T>; 4]>;

/// A request on its way through an ensemble. `T` is a reference to a tensor.
#[derive(Debug)]
pub struct Run<T> {
    graph: Arc<Graph>,
    /// Places are used again; the first is the request's own frame.
    frames: Vec<Option<Frame<T>>>,
    free: Vec<usize>,
    ready: VecDeque<Ticket>,
}

#[derive(Debug)]
struct Frame<T> {
    level: usize,
    parent: Option<usize>,
    /// In the order of the answers they come from; those that are over are out.
    children: VecDeque<usize>,
    slots: Vec<Slot<T>>,
    /// For each step of this level, what it waits for.
    missing: Vec<usize>,
    /// Steps of this level that have not ended.
    steps_left: usize,
    /// Whether the decoupled step of this level may give answers yet.
    is_open: bool,
    answer: Answer<T>,
}

#[derive(Debug)]
enum Slot<T> {
    /// Not there yet; or nothing to this frame.
    Awaited,
    /// There, and how many will take it yet.
    Here { tensor: Option<T>, claims: usize },
    /// Taken by all who needed it.
    Gone,
}

#[derive(Debug)]
enum Answer<T> {
    /// This many tensors of it are missing.
    Missing(usize),
    /// All there, and not given out.
    Ready(Tensors<T>),
    /// Given out, or never given on this level.
    Over,
}

/// What can be had of a frame and those below it.
enum Next<T> {
    Answer(Tensors<T>),
    /// One that is not there yet comes first.
    Later,
    /// None comes any more.
    None,
}

impl<T: Clone> Run<T> {
    /// A request with the ensemble's inputs, in the order of its configuration.
    #[must_use]
    pub fn new(graph: Arc<Graph>, inputs: impl IntoIterator<Item = Option<T>>) -> Self {
        let mut run = Self { graph, frames: Vec::new(), free: Vec::new(), ready: VecDeque::new() };
        let root = run.open(0, None);
        let graph = Arc::clone(&run.graph);
        for (tensor, value) in graph.inputs.iter().zip(inputs) {
            run.put(root, *tensor, value);
        }
        run
    }

    /// A step that may run now, with its inputs, which it takes: to be followed by [`Run::ended`]. The one that could run
    /// longest comes first.
    pub fn next_ready(&mut self) -> Option<(Ticket, Tensors<T>)> {
        let ticket = self.ready.pop_front()?;
        let graph = Arc::clone(&self.graph);
        let step = graph.steps.get(ticket.step)?;
        let mut inputs: Tensors<T> = SmallVec::with_capacity(step.inputs.len());
        for tensor in &step.inputs {
            inputs.push(self.look(ticket.frame, *tensor));
        }
        for tensor in &step.waits_for {
            self.release(ticket.frame, *tensor);
        }
        Some((ticket, inputs))
    }

    /// A running step gave its outputs, in the order of its map: the only time, or, of a decoupled step, one of many.
    pub fn answered(&mut self, ticket: Ticket, outputs: impl IntoIterator<Item = Option<T>>) {
        let graph = Arc::clone(&self.graph);
        let Some(step) = graph.steps.get(ticket.step) else { return };
        let frame = if step.is_decoupled { self.split(ticket.frame) } else { ticket.frame };
        for (tensor, value) in step.outputs.iter().zip(outputs) {
            self.put(frame, *tensor, value);
        }
        self.close(frame);
    }

    /// A step is over: it gives nothing more.
    pub fn ended(&mut self, ticket: Ticket) {
        let graph = Arc::clone(&self.graph);
        let decoupled = graph.splits(ticket.step);
        let Some(frame) = self.frame(ticket.frame) else { return };
        frame.steps_left -= 1;
        if decoupled {
            frame.is_open = false;
            let level = frame.level;
            for tensor in 0..graph.tensors.len() {
                if graph.claims(tensor, level).1 {
                    self.release(ticket.frame, tensor);
                }
            }
        }
        self.close(ticket.frame);
    }

    /// The outputs of the ensemble, in the order of its configuration: of one answer a frame of the last level, in the order
    /// of the decoupled steps' answers. `None` while the next is not there, and for good once the run is over.
    pub fn next_answer(&mut self) -> Option<Tensors<T>> {
        match self.next_below(0) {
            Next::Answer(answer) => Some(answer),
            Next::Later | Next::None => None,
        }
    }

    /// Whether every step has ended and every answer is given out.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !matches!(self.frames.first(), Some(Some(_)))
    }

    /// How many answers of a decoupled step are on their way below it.
    #[must_use]
    pub fn below(&self, ticket: Ticket) -> usize {
        self.frames.get(ticket.frame).and_then(Option::as_ref).map_or(0, |frame| frame.children.len())
    }

    /// References to tensors that it holds.
    #[must_use]
    pub fn held(&self) -> usize {
        let frames = self.frames.iter().flatten();
        frames
            .map(|frame| {
                let slots =
                    frame.slots.iter().filter(|slot| matches!(slot, Slot::Here { tensor: Some(_), .. })).count();
                slots + if let Answer::Ready(answer) = &frame.answer { answer.iter().flatten().count() } else { 0 }
            })
            .sum()
    }

    fn frame(&mut self, frame: usize) -> Option<&mut Frame<T>> {
        self.frames.get_mut(frame).and_then(Option::as_mut)
    }

    /// A new frame in which nothing is there yet.
    fn open(&mut self, level: usize, parent: Option<usize>) -> usize {
        let graph = &self.graph;
        let on_level = graph.steps.iter().filter(|step| step.level == level).count();
        let frame = Frame {
            level,
            parent,
            children: VecDeque::new(),
            slots: graph.tensors.iter().map(|_| Slot::Awaited).collect(),
            missing: graph.steps.iter().map(|step| step.waits_for.len()).collect(),
            steps_left: on_level,
            is_open: graph.splitters.len() > level,
            answer: if level == graph.depth { Answer::Missing(graph.outputs.len()) } else { Answer::Over },
        };
        if let Some(place) = self.free.pop() {
            if let Some(empty) = self.frames.get_mut(place) {
                *empty = Some(frame);
            }
            return place;
        }
        self.frames.push(Some(frame));
        self.frames.len() - 1
    }

    /// A frame for one more answer of the decoupled step of `parent`'s level, with what is there of the rest.
    fn split(&mut self, parent: usize) -> usize {
        let level = self.frame(parent).map_or(0, |frame| frame.level);
        let child = self.open(level + 1, Some(parent));
        let graph = Arc::clone(&self.graph);
        let mut inherited: SmallVec<[(usize, Option<T>); 8]> = SmallVec::new();
        if let Some(frame) = self.frame(parent) {
            frame.children.push_back(child);
            for (tensor, slot) in frame.slots.iter().enumerate() {
                if let Slot::Here { tensor: value, .. } = slot
                    && graph.claims(tensor, level).1
                {
                    inherited.push((tensor, value.clone()));
                }
            }
        }
        for (tensor, value) in inherited {
            self.put(child, tensor, value);
        }
        child
    }

    /// A tensor is there, for a frame and for those below it that need it.
    fn put(&mut self, at: usize, tensor: usize, value: Option<T>) {
        let graph = Arc::clone(&self.graph);
        let Some(frame) = self.frame(at) else { return };
        let (here, is_needed_below) = graph.claims(tensor, frame.level);
        // Once its decoupled step has ended nothing new comes to be below; what is there has its own.
        let claims = here + usize::from(is_needed_below && frame.is_open);
        let children: SmallVec<[usize; 8]> =
            if is_needed_below { frame.children.iter().copied().collect() } else { SmallVec::new() };
        for child in children {
            self.put(child, tensor, value.clone());
        }
        let Some(frame) = self.frame(at) else { return };
        let level = frame.level;
        if let Some(slot) = frame.slots.get_mut(tensor) {
            *slot = if claims == 0 { Slot::Gone } else { Slot::Here { tensor: value, claims } };
        }
        let Some(node) = graph.tensors.get(tensor) else { return };
        for &reader in &node.readers {
            if graph.steps.get(reader).is_none_or(|step| step.level != level) {
                continue;
            }
            let Some(missing) = self.frame(at).and_then(|frame| frame.missing.get_mut(reader)) else { continue };
            *missing -= 1;
            if *missing == 0 {
                self.ready.push_back(Ticket { frame: at, step: reader });
            }
        }
        if node.is_output {
            self.part_of_answer(at);
        }
    }

    /// One tensor more of a frame's answer is there.
    fn part_of_answer(&mut self, at: usize) {
        let graph = Arc::clone(&self.graph);
        let Some(frame) = self.frame(at) else { return };
        let Answer::Missing(missing) = &mut frame.answer else { return };
        *missing -= 1;
        if *missing > 0 {
            return;
        }
        let answer = graph.outputs.iter().map(|tensor| self.look(at, *tensor)).collect();
        for tensor in &graph.outputs {
            self.release(at, *tensor);
        }
        if let Some(frame) = self.frame(at) {
            frame.answer = Answer::Ready(answer);
        }
    }

    fn look(&self, frame: usize, tensor: usize) -> Option<T> {
        match self.frames.get(frame)?.as_ref()?.slots.get(tensor)? {
            Slot::Here { tensor, .. } => tensor.clone(),
            Slot::Awaited | Slot::Gone => None,
        }
    }

    /// One who needed a tensor needs it no more.
    fn release(&mut self, frame: usize, tensor: usize) {
        let Some(slot) = self.frame(frame).and_then(|frame| frame.slots.get_mut(tensor)) else { return };
        if let Slot::Here { claims, .. } = slot {
            *claims -= 1;
            if *claims == 0 {
                *slot = Slot::Gone;
            }
        }
    }

    fn next_below(&mut self, at: usize) -> Next<T> {
        let depth = self.graph.depth;
        let Some(frame) = self.frame(at) else { return Next::None };
        if frame.level == depth {
            return match std::mem::replace(&mut frame.answer, Answer::Over) {
                Answer::Ready(answer) => {
                    self.close(at);
                    Next::Answer(answer)
                }
                Answer::Over => Next::None,
                missing @ Answer::Missing(_) => {
                    frame.answer = missing;
                    Next::Later
                }
            };
        }
        let (is_open, children) = (frame.is_open, frame.children.clone());
        for child in children {
            match self.next_below(child) {
                Next::None => {}
                found => return found,
            }
        }
        if is_open { Next::Later } else { Next::None }
    }

    /// Takes a frame out that is over, and those above it that were waiting for no more than that.
    fn close(&mut self, at: usize) {
        let mut next = Some(at);
        while let Some(at) = next {
            let Some(frame) = self.frame(at) else { return };
            let is_over = frame.steps_left == 0 && frame.children.is_empty() && matches!(frame.answer, Answer::Over);
            if !is_over {
                return;
            }
            next = frame.parent;
            if let Some(place) = self.frames.get_mut(at) {
                *place = None;
                self.free.push(at);
            }
            if let Some(parent) = next.and_then(|parent| self.frame(parent)) {
                parent.children.retain(|child| *child != at);
            }
        }
    }
}

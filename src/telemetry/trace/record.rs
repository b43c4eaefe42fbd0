//! A request that is traced: what happened to it, gathered until its last holder lets go of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use compact_str::CompactString;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::Sink;
use super::activity::Activity;
use super::context::Caller;
use super::settings::TraceSettings;
use crate::config::trace::TraceLevels;
use crate::error::Error;
use crate::tensor::{DataType, Shape, Tensor};

/// How much of a tensor goes into a trace, in bytes; the rest is left out.
pub const TENSOR_BYTES: usize = 16 << 10;

/// The most tensors of one model's part of a trace.
const TENSORS: usize = 64;

/// The most moments of one model's part of a trace: a stream of answers may have any number.
const EVENTS: usize = 256;

/// The most models that a trace tells of.
const NODES: usize = 256;

/// How much of an error's text goes into a trace, in bytes.
const ERROR_BYTES: usize = 1024;

/// One model's part of a traced request. The request as a whole is written once all its parts are dropped.
pub struct Trace {
    root: Arc<Root>,
    node: Mutex<Node>,
}

/// What the parts of a trace share.
struct Root {
    sink: Arc<Sink>,
    record: Mutex<Record>,
}

/// A moment, by what happened.
pub(super) type Event = (Activity, Instant);

/// A traced request, done.
pub(super) struct Record {
    /// When the request came.
    pub(super) arrived: Instant,
    /// When the last holder let go of it.
    pub(super) ended: Instant,
    /// The number of its first part.
    pub(super) id: u64,
    pub(super) levels: TraceLevels,
    pub(super) log_frequency: u32,
    /// The id of the trace over all systems.
    pub(super) trace_id: u128,
    /// The span of the whole request.
    pub(super) span: u64,
    /// Who called.
    pub(super) caller: Option<Caller>,
    /// What the front end did.
    pub(super) events: SmallVec<[Event; 8]>,
    /// What models did.
    pub(super) nodes: Vec<Node>,
}

/// What one model did.
pub(super) struct Node {
    pub(super) id: u64,
    /// The number of the part that asked for this one; 0 for none.
    pub(super) parent: u64,
    pub(super) span: u64,
    pub(super) parent_span: u64,
    pub(super) model: Option<(Arc<str>, u64)>,
    pub(super) request_id: CompactString,
    pub(super) events: SmallVec<[Event; 8]>,
    pub(super) tensors: Vec<TensorRecord>,
    pub(super) load: Option<Load>,
    pub(super) error: Option<String>,
}

/// A load that the request waited for.
pub(super) struct Load {
    /// Where the model was.
    pub(super) from: &'static str,
    pub(super) begin: Instant,
    pub(super) end: Instant,
}

/// The beginning of a tensor.
pub(super) struct TensorRecord {
    pub(super) activity: Activity,
    pub(super) name: CompactString,
    pub(super) data_type: DataType,
    pub(super) shape: Shape,
    pub(super) data: Vec<u8>,
    /// How long it was.
    pub(super) bytes: usize,
}

/// When the parts of an execution began.
#[derive(Clone, Copy, Debug)]
pub struct Execution {
    /// It was put into the queue; `None` where it went past that.
    pub queued: Option<Instant>,
    /// Inputs are being prepared.
    pub start: Instant,
    /// The model runs.
    pub compute_start: Instant,
    /// The model is done.
    pub compute_end: Instant,
    /// Outputs are there.
    pub end: Instant,
}

impl Trace {
    pub(super) fn begin(
        sink: &Arc<Sink>,
        settings: &TraceSettings,
        caller: Option<Caller>,
        arrived: Instant,
    ) -> Arc<Self> {
        let id = sink.next.fetch_add(1, Ordering::Relaxed);
        let span = span_id();
        let record = Record {
            arrived,
            ended: arrived,
            id,
            levels: settings.levels,
            log_frequency: settings.log_frequency,
            trace_id: caller.as_ref().map_or_else(|| uuid::Uuid::new_v4().as_u128(), |caller| caller.trace_id),
            span,
            caller,
            events: SmallVec::new(),
            nodes: Vec::new(),
        };
        let root = Arc::new(Root { sink: Arc::clone(sink), record: Mutex::new(record) });
        Arc::new(Self { root, node: Mutex::new(Node::new(id, 0, span)) })
    }

    /// A part for a model that this one asks: a step of an ensemble.
    #[must_use]
    pub fn child(&self) -> Arc<Self> {
        let id = self.root.sink.next.fetch_add(1, Ordering::Relaxed);
        let node = self.node.lock();
        Arc::new(Self { root: Arc::clone(&self.root), node: Mutex::new(Node::new(id, node.id, node.span)) })
    }

    /// Says that a version of a model is asked, by a request of this id.
    pub fn asks(&self, model: &Arc<str>, version: u64, request_id: &CompactString, at: Instant) {
        let mut node = self.node.lock();
        node.model = Some((Arc::clone(model), version));
        node.request_id.clone_from(request_id);
        node.event(Activity::RequestStart, at);
    }

    /// Says that something happened.
    pub fn mark(&self, activity: Activity, at: Instant) {
        if activity.is_of_the_front() {
            let mut record = self.root.record.lock();
            if record.events.len() < EVENTS {
                record.events.push((activity, at));
            }
        } else {
            self.node.lock().event(activity, at);
        }
    }

    /// Says when the parts of its execution began.
    pub fn executed(&self, times: &Execution) {
        let mut node = self.node.lock();
        if let Some(queued) = times.queued {
            node.event(Activity::QueueStart, queued);
        }
        node.event(Activity::ComputeStart, times.start);
        node.event(Activity::ComputeInputEnd, times.compute_start);
        node.event(Activity::ComputeOutputStart, times.compute_end);
        node.event(Activity::ComputeEnd, times.end);
    }

    /// Says that the model had to be loaded from `from`, which took `waited` and has just ended.
    pub fn loaded(&self, from: &'static str, waited: Duration) {
        let end = Instant::now();
        let begin = end.checked_sub(waited).unwrap_or(end);
        self.node.lock().load = Some(Load { from, begin, end });
    }

    /// Whether tensors are wanted.
    #[must_use]
    pub fn wants_tensors(&self) -> bool {
        self.root.record.lock().levels.tensors
    }

    /// Takes the beginning of a tensor, if tensors are wanted.
    pub fn tensor(&self, activity: Activity, name: &str, tensor: &Tensor) {
        if !self.wants_tensors() {
            return;
        }
        let data = tensor.data();
        let kept = data.get(..data.len().min(TENSOR_BYTES)).unwrap_or_default();
        let record = TensorRecord {
            activity,
            name: name.into(),
            data_type: tensor.data_type(),
            shape: tensor.shape().clone(),
            data: kept.to_vec(),
            bytes: data.len(),
        };
        let mut node = self.node.lock();
        if node.tensors.len() < TENSORS {
            node.tensors.push(record);
        }
    }

    /// Says that it failed.
    pub fn failed(&self, error: &Error) {
        let mut text = error.report();
        text.truncate(text.floor_char_boundary(ERROR_BYTES));
        self.node.lock().error = Some(text);
    }

    /// The id of the trace over all systems, and the span of the whole request.
    #[must_use]
    pub fn ids(&self) -> (u128, u64) {
        let record = self.root.record.lock();
        (record.trace_id, record.span)
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trace({:032x})", self.ids().0)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let node = self.node.get_mut();
        // Nobody may have said so: a request that was given up ends here.
        if node.model.is_some() && !node.events.iter().any(|(activity, _)| *activity == Activity::RequestEnd) {
            node.events.push((Activity::RequestEnd, Instant::now()));
        }
        let node = std::mem::replace(node, Node::new(0, 0, 0));
        let mut record = self.root.record.lock();
        if record.nodes.len() < NODES {
            record.nodes.push(node);
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let record = self.record.get_mut();
        let ended = Instant::now();
        let record = Record {
            ended,
            caller: record.caller.take(),
            events: std::mem::take(&mut record.events),
            nodes: std::mem::take(&mut record.nodes),
            ..*record
        };
        self.sink.take(record);
    }
}

impl Node {
    fn new(id: u64, parent: u64, parent_span: u64) -> Self {
        Self {
            id,
            parent,
            span: if id == 0 { 0 } else { span_id() },
            parent_span,
            model: None,
            request_id: CompactString::default(),
            events: SmallVec::new(),
            tensors: Vec::new(),
            load: None,
            error: None,
        }
    }

    fn event(&mut self, activity: Activity, at: Instant) {
        if self.events.len() < EVENTS {
            self.events.push((activity, at));
        }
    }
}

impl Record {
    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let of_node = |node: &Node| {
            let tensors: usize = node.tensors.iter().map(|tensor| tensor.data.len() + 128).sum();
            512 + node.request_id.len() + node.error.as_ref().map_or(0, String::len) + tensors + 32 * node.events.len()
        };
        let state = self.caller.as_ref().map_or(0, |caller| caller.state.len());
        512 + state + 32 * self.events.len() + self.nodes.iter().map(of_node).sum::<usize>()
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({})", self.id)
    }
}

/// A span's id, which is never 0: the bits of the variant are in it.
pub(super) fn span_id() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1
}

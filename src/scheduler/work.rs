//! Checked tensors on their way into a model.

use std::sync::Arc;
use std::time::Instant;

use compact_str::CompactString;
use smallvec::SmallVec;

use crate::inference::{Deadline, NamedTensors, Sequence};
use crate::metrics::statistics::ExecutionTimes;
use crate::telemetry::trace::record::{Execution, Trace};

/// Checked tensors on their way into a model.
#[derive(Debug)]
pub struct Work {
    /// The inputs in the order of the signature.
    pub inputs: NamedTensors,
    /// The wanted outputs, as indexes into the signature.
    pub outputs: SmallVec<[usize; 4]>,
    /// Inferences in it: the batch dimension, 1 where there is none. 0 for a row that only fills a batch.
    pub batch_size: u64,
    /// When its answer is worth nothing any more.
    pub deadline: Option<Deadline>,
    /// Triton's priority: 1 is the highest, 0 the model's default.
    pub priority: u64,
    /// When the request came in.
    pub arrived: Instant,
    /// Its place in a sequence, where the model has those.
    pub sequence: Option<Sequence>,
    /// The caller's id, for errors; may be empty.
    pub id: CompactString,
    /// Where what happens to it is written down, if it is traced.
    pub trace: Option<Arc<Trace>>,
}

impl Work {
    /// Rows of the batch that are its own.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.batch_size.max(1)
    }

    /// The bytes of all its inputs.
    #[must_use]
    pub fn input_bytes(&self) -> usize {
        self.inputs.iter().map(|input| input.tensor.data().len()).sum()
    }

    /// Writes down when it ran; `queued` is when it began to wait, if it did.
    pub(super) fn executed(&self, queued: Option<Instant>, times: &ExecutionTimes) {
        let Some(trace) = &self.trace else { return };
        let ExecutionTimes { start, compute_start, compute_end, end } = *times;
        trace.executed(&Execution { queued, start, compute_start, compute_end, end });
    }
}

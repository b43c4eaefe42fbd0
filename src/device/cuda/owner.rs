//! A model's share of a device's memory.

use std::sync::Arc;

use super::accounts::{OwnerId, OwnerUsage};
use super::pool::VramPool;
use super::region::{Region, State};
use crate::error::Result;

/// What a block is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It lasts as long as the model: weights, and what else a runtime takes while it loads. An owner's are used on one
    /// stream, or that stream is waited for before another uses them.
    Weights,
    /// It lasts for a run on a stream: scratch, shared with whoever runs on that stream.
    Activations {
        /// The driver's name for the stream, as in [`Stream::handle`](super::stream::Stream::handle).
        stream: usize,
    },
}

/// Where an owner's weights are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// On the device.
    Awake,
    /// In host memory, so many bytes; their addresses are kept.
    Asleep {
        /// What is kept.
        bytes: u64,
    },
    /// Nowhere any more: the model has to be loaded again.
    Dropped,
}

/// A model's share. Its drop takes back all that it held, whether that was freed or not: it waits for the device's work,
/// so drop it where blocking is allowed, and after the runtime's session: a free that comes later is ignored where it
/// names addresses that are not given out again, and wrong where it does.
#[derive(Debug)]
pub struct Owner {
    pool: Arc<VramPool>,
    id: OwnerId,
    name: String,
    weights: Arc<Region>,
}

impl Owner {
    pub(super) const fn new(pool: Arc<VramPool>, id: OwnerId, name: String, weights: Arc<Region>) -> Self {
        Self { pool, id, name, weights }
    }

    /// What it is called in errors.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device's memory that it has a share of.
    #[must_use]
    pub const fn pool(&self) -> &Arc<VramPool> {
        &self.pool
    }

    /// What it holds now.
    #[must_use]
    pub fn usage(&self) -> OwnerUsage {
        self.pool.owner_usage(self.id)
    }

    /// Where its weights are; what they were before, while they are on their way.
    #[must_use]
    pub fn residence(&self) -> Residence {
        self.weights.residence()
    }

    /// Takes `bytes`, aligned to 512, and says where they are. What they hold is not known. Asks for room once where the
    /// device has none. Blocking where memory has to be mapped.
    ///
    /// # Errors
    /// `OutOfDeviceMemory`, not to be tried again where its own limit is reached; `NotReady` for weights while it sleeps or
    /// where the device is lost.
    pub fn allocate(&self, kind: Kind, bytes: u64) -> Result<u64> {
        self.pool.allocate(self, kind, bytes)
    }

    /// Drops the host copy of an owner that sleeps, the second level of its eviction. Whether it had one.
    pub fn drop_host_copy(&self) -> bool {
        let mut backed = self.weights.inner.lock();
        let asleep = matches!(backed.state, State::Asleep { .. });
        if asleep {
            self.weights.settle(&mut backed, State::Dropped);
        }
        asleep
    }

    /// Whether an address is one of its weights'.
    pub(super) fn holds(&self, address: u64) -> bool {
        self.weights.holds(address)
    }

    pub(super) const fn id(&self) -> OwnerId {
        self.id
    }

    pub(super) const fn region(&self) -> &Arc<Region> {
        &self.weights
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let left = self.pool.end(self.id, &self.weights);
        if left.weights + left.activations > 0 {
            let (weights, activations) = (left.weights, left.activations);
            tracing::debug!(model = self.name, weights, activations, "taken back without having been freed");
        }
    }
}

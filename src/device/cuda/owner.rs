//! A model's share of a device's memory.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

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
pub struct Owner {
    pool: Arc<VramPool>,
    id: OwnerId,
    name: String,
    weights: Arc<Region>,
    raise: Mutex<Option<Arc<RaiseLimit>>>,
}

/// Asked when an owner's limit is reached and so many bytes are lacking: by how many bytes it may be raised, if at all. No
/// lock is held meanwhile.
pub type RaiseLimit = dyn Fn(u64) -> Option<u64> + Send + Sync;

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").field("name", &self.name).field("usage", &self.usage()).finish_non_exhaustive()
    }
}

impl Owner {
    pub(super) const fn new(pool: Arc<VramPool>, id: OwnerId, name: String, weights: Arc<Region>) -> Self {
        Self { pool, id, name, weights, raise: Mutex::new(None) }
    }

    /// Changes what it may hold, in bytes; what it holds already it keeps.
    pub fn set_limit(&self, bytes: u64) {
        self.pool.set_owner_limit(self.id, bytes);
    }

    /// Who is asked when the limit is reached; `None` for nobody.
    pub fn on_limit(&self, raise: Option<Arc<RaiseLimit>>) {
        *self.raise.lock() = raise;
    }

    /// Whether its limit was raised since so many bytes were lacking.
    pub(super) fn asks_for_more(&self, bytes: u64) -> bool {
        let raise = self.raise.lock().clone();
        let more = raise.and_then(|raise| raise(bytes));
        if let Some(more) = more {
            self.set_limit(self.usage().limit.saturating_add(more));
        }
        more.is_some()
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

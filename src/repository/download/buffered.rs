//! How many bytes wait between the network and their readers.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts bytes in memory, over all readers.
#[derive(Debug, Default)]
pub struct Buffered {
    now: AtomicU64,
    most: AtomicU64,
}

impl Buffered {
    /// Bytes at the moment.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// The most there were at a moment.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: u64) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.most.fetch_max(now, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, bytes: u64) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }
}

//! Small synchronisation pieces that the standard crates lack.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Counts users of something that can be retired: after [`PinCount::retire`] nobody new gets in, and
/// [`PinCount::drained`] waits until the last one left.
#[derive(Debug, Default)]
pub struct PinCount {
    /// The top bit says retired, the rest counts.
    state: AtomicUsize,
    drained: Notify,
}

const RETIRED: usize = 1 << (usize::BITS - 1);

impl PinCount {
    /// Adds a user, unless retired.
    #[must_use]
    pub fn try_pin(&self) -> bool {
        if self.state.fetch_add(1, Ordering::Acquire) & RETIRED == 0 {
            return true;
        }
        self.unpin();
        false
    }

    /// Removes a user added by `try_pin`; whether it was the last.
    pub fn unpin(&self) -> bool {
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        if before == RETIRED + 1 {
            self.drained.notify_waiters();
        }
        before & !RETIRED == 1
    }

    /// Lets nobody new in. Retiring twice is retiring once.
    pub fn retire(&self) {
        if self.state.fetch_or(RETIRED, Ordering::AcqRel) & !RETIRED == 0 {
            self.drained.notify_waiters();
        }
    }

    /// Lets users in again, after [`PinCount::drained`].
    pub fn reopen(&self) {
        self.state.fetch_and(!RETIRED, Ordering::AcqRel);
    }

    /// How many users there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.state.load(Ordering::Acquire) & !RETIRED
    }

    /// Waits until it is retired and the last user is gone.
    pub async fn drained(&self) {
        loop {
            let notified = self.drained.notified();
            if self.state.load(Ordering::Acquire) == RETIRED {
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_retired_count_lets_nobody_in_and_drains_with_the_last() {
        let pins = PinCount::default();
        assert!(pins.try_pin());
        assert!(pins.try_pin());
        pins.retire();
        assert!(!pins.try_pin());
        let drained = pins.drained();
        tokio::pin!(drained);
        assert!(futures_util::poll!(drained.as_mut()).is_pending());
        pins.unpin();
        assert!(futures_util::poll!(drained.as_mut()).is_pending());
        pins.unpin();
        assert!(futures_util::poll!(drained.as_mut()).is_ready());
        assert_eq!(pins.count(), 0);
    }

    #[tokio::test]
    async fn a_count_that_is_reopened_lets_users_in_and_can_be_retired_again() {
        let pins = PinCount::default();
        pins.retire();
        pins.drained().await;
        pins.reopen();
        assert!(pins.try_pin());
        pins.retire();
        assert!(!pins.try_pin());
        assert_eq!(pins.count(), 1);
    }

    #[tokio::test]
    async fn an_unused_count_is_drained_at_once_when_retired() {
        let pins = PinCount::default();
        pins.retire();
        pins.drained().await;
    }
}

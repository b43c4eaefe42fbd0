//! One operation on one model at a time, however many ask for it: leader and waiters.
//!
//! The work runs in a task of its own, so a caller that goes away cancels nothing for the others. A load that nobody
//! waits for any more is abandoned.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::error::{Error, Result};

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Brings the model into memory, or a fresh copy of it.
    Load,
    /// Takes it out.
    Unload,
    /// Brings or takes one of several copies; the model answers meanwhile.
    Change,
}

/// How an operation ended.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// As it should.
    Done,
    /// With an error for everybody who waited.
    Failed(Error),
    /// There is no such model.
    Absent,
    /// A prefetch ended on the disk, since memory is full: who wants the model asks again.
    OnDisk,
    /// Not at all: nobody waited any more. Who joined too late asks again.
    Abandoned,
}

/// How much it matters when a load ends; the lesser goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// A request waits until then.
    Until(Instant),
    /// Somebody waits as long as it takes.
    Wanted,
    /// Nobody waits.
    Prefetch,
}

/// An operation under way.
pub(super) struct Flight {
    pub(super) operation: Operation,
    outcome: watch::Sender<Option<Outcome>>,
    waiters: AtomicUsize,
    insisted: AtomicBool,
    begun: AtomicBool,
    news: AtomicBool,
    urgency: Mutex<Urgency>,
    deserted: Notify,
    hastened: Notify,
}

impl Flight {
    pub(super) fn new(operation: Operation) -> Arc<Self> {
        Arc::new(Self {
            operation,
            outcome: watch::Sender::new(None),
            waiters: AtomicUsize::new(0),
            insisted: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            news: AtomicBool::new(false),
            urgency: Mutex::new(Urgency::Prefetch),
            deserted: Notify::new(),
            hastened: Notify::new(),
        })
    }

    /// Joins as a waiter. Who joins a flight that is just being given up hears `Abandoned` and asks again.
    pub(super) fn join(self: &Arc<Self>) -> Waiter {
        self.waiters.fetch_add(1, Ordering::AcqRel);
        Waiter { outcome: self.outcome.subscribe(), flight: Arc::clone(self), counts: true }
    }

    /// Hears the outcome without being a reason to go on.
    pub(super) fn watch(self: &Arc<Self>) -> Waiter {
        Waiter { outcome: self.outcome.subscribe(), flight: Arc::clone(self), counts: false }
    }

    /// Makes the operation go on to its end, whoever leaves.
    pub(super) fn insist(&self) {
        self.insisted.store(true, Ordering::Release);
    }

    /// Somebody waits, until `deadline` where there is one.
    pub(super) fn wanted_by(&self, deadline: Option<Instant>) {
        let urgency = deadline.map_or(Urgency::Wanted, Urgency::Until);
        let before = {
            let mut most = self.urgency.lock();
            let before = *most;
            *most = urgency.min(before);
            before
        };
        if before == Urgency::Prefetch {
            self.hastened.notify_waiters();
        }
    }

    /// Returns when somebody waits for what was a prefetch.
    pub(super) async fn hastened(&self) {
        loop {
            let notified = self.hastened.notified();
            if self.urgency() != Urgency::Prefetch {
                return;
            }
            notified.await;
        }
    }

    pub(super) fn urgency(&self) -> Urgency {
        *self.urgency.lock()
    }

    /// Returns when nobody waits any more, and nobody insisted.
    pub(super) async fn deserted(&self) {
        loop {
            let notified = self.deserted.notified();
            if !self.is_wanted() {
                return;
            }
            notified.await;
        }
    }

    /// Whether somebody waits, or insisted.
    pub(super) fn is_wanted(&self) -> bool {
        self.insisted.load(Ordering::Acquire) || self.waiters.load(Ordering::Acquire) > 0
    }

    /// Takes back that it is to go on: something else is wanted of the model.
    pub(super) fn give_up(&self) {
        self.insisted.store(false, Ordering::Release);
        self.deserted.notify_waiters();
    }

    /// Says that the repository is about to be asked: what changes there from now on may be missed.
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// What the repository has is wanted, not just an answer: that a model is woken is not all.
    pub(super) fn ask_for_news(&self) {
        self.news.store(true, Ordering::Release);
    }

    pub(super) fn asks_for_news(&self) -> bool {
        self.news.load(Ordering::Acquire)
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    pub(super) fn is_finished(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    pub(super) fn finish(&self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }
}

/// Somebody who waits for a flight.
pub(super) struct Waiter {
    flight: Arc<Flight>,
    outcome: watch::Receiver<Option<Outcome>>,
    counts: bool,
}

impl Waiter {
    pub(super) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    pub(super) async fn outcome(mut self) -> Result<Outcome> {
        let outcome = self
            .outcome
            .wait_for(Option::is_some)
            .await
            .map_err(|_closed| Error::internal("an operation on a model ended without a word"))?;
        outcome.clone().ok_or_else(|| Error::internal("an operation on a model ended without an outcome"))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.counts && self.flight.waiters.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.flight.deserted.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn every_waiter_hears_the_outcome_and_leaving_is_noticed() {
        let flight = Flight::new(Operation::Load);
        assert!(!flight.is_wanted());
        let (one, two, leaver) = (flight.join(), flight.join(), flight.join());
        drop(leaver);
        assert!(flight.is_wanted());
        flight.finish(Outcome::Failed(Error::not_found("x")));
        for waiter in [one, two] {
            assert!(matches!(waiter.outcome().await.unwrap(), Outcome::Failed(error) if error.to_string() == "x"));
        }
        assert!(!flight.is_wanted());
        flight.insist();
        assert!(flight.is_wanted());
    }

    #[tokio::test]
    async fn a_flight_is_deserted_when_the_last_waiter_leaves() {
        let flight = Flight::new(Operation::Load);
        let (one, two) = (flight.join(), flight.join());
        let deserted = flight.deserted();
        tokio::pin!(deserted);
        assert!(deserted.as_mut().now_or_never().is_none());
        drop(one);
        assert!(deserted.as_mut().now_or_never().is_none());
        drop(two);
        assert!(deserted.as_mut().now_or_never().is_some());
    }

    #[test]
    fn the_most_urgent_wish_counts() {
        let flight = Flight::new(Operation::Load);
        assert_eq!(flight.urgency(), Urgency::Prefetch);
        let (soon, later) = (Instant::now(), Instant::now() + std::time::Duration::from_secs(1));
        for (deadline, urgency) in
            [(None, Urgency::Wanted), (Some(later), Urgency::Until(later)), (Some(soon), Urgency::Until(soon))]
        {
            flight.wanted_by(deadline);
            assert_eq!(flight.urgency(), urgency);
        }
        flight.wanted_by(None);
        assert_eq!(flight.urgency(), Urgency::Until(soon));
    }
}

//! One operation on one model at a time, however many ask for it: leader and waiters.
//!
//! The work runs in a task of its own, so a caller that goes away cancels nothing for the others. A load that nobody
//! waits for any more is abandoned at its next step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::watch;

use crate::error::{Error, Result};

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Brings the model into memory, or a fresh copy of it.
    Load,
    /// Takes it out.
    Unload,
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
    /// Not at all: nobody waited any more. Who joined too late asks again.
    Abandoned,
}

/// An operation under way.
pub(super) struct Flight {
    pub(super) operation: Operation,
    outcome: watch::Sender<Option<Outcome>>,
    waiters: AtomicUsize,
    insisted: AtomicBool,
    begun: AtomicBool,
}

impl Flight {
    pub(super) fn new(operation: Operation) -> Arc<Self> {
        Arc::new(Self {
            operation,
            outcome: watch::Sender::new(None),
            waiters: AtomicUsize::new(0),
            insisted: AtomicBool::new(false),
            begun: AtomicBool::new(false),
        })
    }

    /// Joins as a waiter. Who joins a flight that is just being given up hears `Abandoned` and asks again.
    pub(super) fn join(self: &Arc<Self>) -> Waiter {
        self.waiters.fetch_add(1, Ordering::AcqRel);
        Waiter { outcome: self.outcome.subscribe(), flight: Arc::clone(self) }
    }

    /// Makes the operation go on to its end, whoever leaves.
    pub(super) fn insist(&self) {
        self.insisted.store(true, Ordering::Release);
    }

    /// Whether somebody waits, or insisted.
    pub(super) fn is_wanted(&self) -> bool {
        self.insisted.load(Ordering::Acquire) || self.waiters.load(Ordering::Acquire) > 0
    }

    /// Says that the repository is about to be asked: what changes there from now on may be missed.
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
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
        self.flight.waiters.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
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
}

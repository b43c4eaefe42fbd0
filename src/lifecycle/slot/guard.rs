//! The end of a flight whose task broke off.

use std::sync::Arc;

use super::super::ModelManager;
use super::super::flight::{Flight, Outcome};
use super::super::state::ModelState;
use super::Slot;
use crate::error::Error;

/// Ends a flight that its task left open, by a panic: nobody waits for ever, and the model can be loaded again.
pub(in crate::lifecycle) struct FlightGuard {
    pub(super) manager: ModelManager,
    pub(super) slot: Arc<Slot>,
    pub(super) flight: Arc<Flight>,
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        if self.flight.is_finished() {
            return;
        }
        let text = format!("an operation on model '{}' broke off", self.slot.name);
        {
            let mut control = self.slot.control.lock();
            if self.slot.resident.load().is_none() && !self.slot.is_asleep() {
                control.states.all(ModelState::Unavailable, &text);
            }
            control.flight = None;
            control.generation = self.manager.next_generation();
        }
        self.flight.finish(Outcome::Failed(Error::internal(text)));
    }
}

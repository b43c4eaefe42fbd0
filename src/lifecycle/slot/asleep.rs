//! A model that sleeps in its slot: out of reach of requests, and not gone.

use std::sync::Arc;

use super::super::ModelManager;
use super::super::handle::Resident;
use super::{Slot, dispose};

impl Slot {
    /// What sleeps here.
    pub(in crate::lifecycle) fn asleep(&self) -> Option<Arc<Resident>> {
        self.asleep.load_full()
    }

    /// Whether something does.
    pub(in crate::lifecycle) fn is_asleep(&self) -> bool {
        self.asleep.load().is_some()
    }

    /// What is in memory of a device, or sleeps.
    pub(in crate::lifecycle) fn resident_or_asleep(&self) -> Option<Arc<Resident>> {
        self.resident().or_else(|| self.asleep())
    }

    /// Takes what answers out of the slot: nobody new gets at it.
    pub(in crate::lifecycle) fn take_out(&self, manager: &ModelManager) {
        let mut control = self.control.lock();
        control.generation = manager.next_generation();
        drop(self.resident.swap(None));
    }

    /// What was taken out sleeps now.
    pub(in crate::lifecycle) fn asleep_now(&self, manager: &ModelManager, resident: Arc<Resident>) {
        let mut control = self.control.lock();
        self.asleep.store(Some(resident));
        control.generation = manager.next_generation();
        drop(control);
        manager.0.metrics.resident.decrement(1.0);
        manager.0.metrics.asleep.increment(1.0);
    }

    /// What slept answers again.
    pub(in crate::lifecycle) fn awake_now(&self, manager: &ModelManager, resident: &Arc<Resident>) {
        self.repeat_pin(resident);
        let mut control = self.control.lock();
        control.generation = manager.next_generation();
        // In this order: who looks without the lock finds it in one of the two.
        self.resident.store(Some(Arc::clone(resident)));
        self.asleep.store(None);
        drop(control);
        manager.0.metrics.asleep.decrement(1.0);
        manager.0.metrics.resident.increment(1.0);
    }

    /// Frees what sleeps and cannot be woken any more.
    pub(in crate::lifecycle) async fn end_sleep(&self, manager: &ModelManager) {
        let asleep = {
            let mut control = self.control.lock();
            control.generation = manager.next_generation();
            self.asleep.swap(None)
        };
        if let Some(asleep) = asleep {
            dispose(manager, asleep).await;
            manager.0.metrics.asleep.decrement(1.0);
        }
    }
}

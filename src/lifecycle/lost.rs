//! Devices that cannot be used any more: their models leave, and none comes to them.

use super::ModelManager;
use super::loader::DevicePlace;
use super::residency::EvictionReason;
use super::slot::Departure;
use crate::inference::DeviceId;

impl DevicePlace {
    /// Why nothing is to run on it any more, if that is so.
    #[must_use]
    pub fn sick(&self) -> Option<String> {
        self.gpu.as_ref()?.sick()
    }
}

impl ModelManager {
    /// The devices in use that cannot be used any more, and why.
    #[must_use]
    pub fn sick_devices(&self) -> Vec<(DeviceId, String)> {
        self.0.loader.devices.iter().filter_map(|place| Some((place.device(), place.sick()?))).collect()
    }

    /// Has models leave the devices that are lost; those with copies elsewhere answer on.
    pub(super) fn leave_lost(&self) {
        for (device, _) in self.sick_devices() {
            for (name, slot) in self.0.models.load().iter() {
                let is_there = slot.resident_or_asleep().is_some_and(|model| model.copy_on(device).is_some());
                if is_there && !slot.is_in_flight() {
                    self.unload_soon(name, Departure::because(EvictionReason::Lost).from(device));
                }
            }
        }
    }
}

//! Why a model, or its copy on one device, leaves.

use std::time::Duration;

use super::super::Name;
use super::super::residency::EvictionReason;
use crate::inference::DeviceId;
use crate::repository::manifest::Fingerprint;

/// Why a model is unloaded.
#[derive(Clone, Debug)]
pub(in crate::lifecycle) struct Departure {
    pub(in crate::lifecycle) reason: EvictionReason,
    pub(in crate::lifecycle) made_room_for: Option<Name>,
    /// How long it had been there and not been asked for, where the book decided.
    pub(in crate::lifecycle) age: Option<(Duration, Duration)>,
    /// The content that is to leave; any if `None`.
    pub(in crate::lifecycle) content: Option<Fingerprint>,
    /// The device that it is to leave, where others may keep their copies.
    pub(in crate::lifecycle) device: Option<DeviceId>,
    /// Whether it is to leave host memory, where it sleeps.
    pub(in crate::lifecycle) from_host: bool,
}

impl Departure {
    pub(in crate::lifecycle) const fn because(reason: EvictionReason) -> Self {
        Self { reason, made_room_for: None, age: None, content: None, device: None, from_host: false }
    }

    /// The same for one content alone: what was loaded meanwhile stays.
    pub(in crate::lifecycle) fn of(self, content: Fingerprint) -> Self {
        Self { content: Some(content), ..self }
    }

    /// The same for the copy on one device.
    pub(in crate::lifecycle) fn from(self, device: DeviceId) -> Self {
        Self { device: Some(device), ..self }
    }

    /// The same for a model that sleeps.
    pub(in crate::lifecycle) fn out_of_host(self) -> Self {
        Self { from_host: true, ..self }
    }

    /// The reason in the repository index.
    pub(super) const fn text(&self) -> &'static str {
        match self.reason {
            EvictionReason::Unload => "unloaded",
            EvictionReason::Room | EvictionReason::Overrun => "evicted to make room",
            EvictionReason::Transient => "unloaded: not to be retained",
            EvictionReason::Deleted => "gone from the repository",
            EvictionReason::Surplus => "a copy more than it takes",
            EvictionReason::Lost => "its device is lost",
        }
    }
}

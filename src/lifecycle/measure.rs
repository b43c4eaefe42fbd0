//! What a load is booked with on each device, and what it came to there.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::copies::{DeviceCopy, Models, PlacedGroup, held, is_exact, taken};
use super::files::Found;
use super::handle::Versions;
use super::loader::{DevicePlace, Loader};
use super::members::groups_at;
use super::need::{Past, need, plausible};
use super::placement::Candidate;
use super::plan::Plan;
use super::residency::EvictionReason;
use super::room::Want;
use super::{ModelManager, Name};
use crate::backend::placement::Placement;
use crate::cache::eviction::Weight;
use crate::cache::memory_pool::MemoryLease;
use crate::cache::table::Eviction;
use crate::config;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::DeviceId;

impl Loader {
    /// What an earlier load of these files came to on a device, or on another of its kind.
    pub(super) fn past(&self, manager: &ModelManager, files: &Found, device: DeviceId) -> Option<Past> {
        let is_alike = |other: &DeviceId| matches!((device, *other), (DeviceId::Gpu(_), DeviceId::Gpu(_)));
        let others = self.devices.iter().map(DevicePlace::device).filter(is_alike);
        let known = |device| manager.0.history.lock().get(files.fingerprint, device).or_else(|| files.past(device));
        std::iter::once(device).chain(others).find_map(known)
    }

    /// What is to be booked on a device.
    pub(super) fn want(
        &self,
        manager: &ModelManager,
        name: &Name,
        plan: &Plan,
        files: &Found,
        place: &DevicePlace,
    ) -> Want {
        let past = self.past(manager, files, place.device());
        let need = need(past, plan.declared_bytes, plan.file_bytes);
        // Memory of a GPU comes in pages.
        let page = place.gpu.as_ref().map_or(1, |gpu| gpu.context().granularity());
        let bytes = need.bytes.checked_next_multiple_of(page).unwrap_or(need.bytes);
        let weight = Weight { bytes, seconds: past.map_or(0.0, |past| past.seconds) };
        Want { pool: place.pool.clone(), weight, beside: place.pool.entry(name).is_some() }
    }

    /// The devices as they are now. A model that `stays` needs nothing more where it is.
    pub(super) fn candidates(
        &self,
        manager: &ModelManager,
        name: &Name,
        plan: &Plan,
        files: &Found,
        stays: bool,
    ) -> Vec<Candidate> {
        let candidate = |place: &DevicePlace| {
            let want = self.want(manager, name, plan, files, place);
            let room = place.pool.room();
            let need = if stays && want.beside { 0 } else { want.weight.bytes };
            let (limit, free, models) = (room.limit, room.free, room.models);
            Candidate { device: place.device(), limit, free, models, need, has_copy: want.beside }
        };
        self.devices.iter().filter(|place| place.sick().is_none()).map(candidate).collect()
    }
}

/// A model that was brought to a device.
pub(super) struct Brought<'a> {
    pub(super) plan: &'a Plan,
    pub(super) files: &'a Found,
    /// How long it took.
    pub(super) seconds: f64,
    /// Whether it is what the repository has: with another configuration the same files may make another model.
    pub(super) is_known: bool,
    /// Whether the model's queue paid for it.
    pub(super) is_extra: bool,
}

impl Brought<'_> {
    /// The copy on one device. `growth` is that of the host's memory, where it is this copy's.
    pub(super) fn book(
        &self,
        manager: &ModelManager,
        (place, placement): (&DevicePlace, &Placement),
        lease: MemoryLease,
        (models, groups): (Models, Vec<PlacedGroup>),
        growth: Option<u64>,
    ) -> Arc<DeviceCopy> {
        let taken = placement.share().and_then(taken);
        let exact = taken.is_some() || is_exact(&models);
        // Several loads at once cannot be told apart: what was known before stays. What the warm-up's runs took and keep is
        // the runtime's to count, as for runs to come.
        let runs = held(&models, false, 0);
        let measured = growth.and_then(|growth| plausible(growth.saturating_sub(runs), self.plan.file_bytes));
        let loaded_bytes = taken.or(measured).unwrap_or_else(|| lease.bytes());
        let bytes = taken.unwrap_or_else(|| held(&models, exact, loaded_bytes));
        if (exact || measured.is_some()) && self.is_known {
            let past = Past { bytes, seconds: self.seconds };
            manager.0.history.lock().record(self.files.fingerprint, place.device(), past);
            self.files.remember(place.device(), past);
        }
        Arc::new(DeviceCopy {
            pool: place.pool.clone(),
            lease: Mutex::new(Some(lease)),
            share: Mutex::new(placement.share().cloned()),
            host_lease: Mutex::default(),
            loaded_bytes,
            exact,
            models,
            groups: Mutex::new(groups),
            seconds: self.seconds,
            is_extra: self.is_extra,
        })
    }
}

/// The groups of each device of a model that was just loaded, with the names of their members: in the order in which they
/// came to the queue.
pub(super) fn placed_groups(versions: &Versions, plan: &Plan) -> Vec<Vec<PlacedGroup>> {
    let mut next = 0;
    let config = versions.first().map(|version| &version.config);
    let is_flexible = versions.iter().all(|version| version.is_flexible());
    let at_site = |site| {
        let groups = config.into_iter().flat_map(|config| groups_at(config, site));
        let placed = groups.map(|group| {
            next += 1;
            let members: SmallVec<_> = versions.iter().filter(|_| is_flexible).map(|_| next - 1).collect();
            PlacedGroup { rate_limiter: group.rate_limiter.clone(), count: group.count as usize, members }
        });
        placed.collect()
    };
    plan.sites.iter().map(|(site, _)| site).map(at_site).collect()
}

impl DeviceCopy {
    /// It answers: the book may count on it, and evict it.
    pub(super) fn ready(&self, loader: &Loader) {
        let seconds = loader.seconds_back(self);
        if let Some(lease) = &*self.lease.lock() {
            lease.ready(seconds, Instant::now());
        }
    }
}

impl ModelManager {
    /// Books what a copy was measured to hold; others leave where that is more than there is.
    ///
    /// # Errors
    /// `OutOfDeviceMemory` where nobody may leave.
    pub(super) fn correct(&self, name: &Name, copy: &DeviceCopy, bytes: u64) -> Result<()> {
        let automatic = self.0.options.eviction == config::Eviction::Automatic;
        let device = copy.device();
        let busy = |other: &Name| !automatic || other == name || self.is_busy(other, device);
        let corrected = copy.lease.lock().as_mut().map(|lease| lease.correct(bytes, Instant::now(), &busy));
        match corrected.unwrap_or_else(|| Ok(Eviction::default())) {
            Ok(eviction) => {
                self.evict(device, eviction.victims, EvictionReason::Overrun, Some(name));
                Ok(())
            }
            Err(refusal) => {
                let text = format!("model '{name}' holds {bytes} bytes once loaded, and there is no room for them");
                Err(Error::new(ErrorKind::OutOfDeviceMemory, text).with_source(refusal).with_retryable(true))
            }
        }
    }
}

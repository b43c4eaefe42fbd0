//! Copies and instances of a model that come and go while it answers.

use std::sync::Arc;
use std::time::Instant;

use super::super::ModelManager;
use super::super::files::Wanted;
use super::super::flight::{Flight, Outcome};
use super::super::handle::Resident;
use super::super::loader::{DevicePlace, LoadError};
use super::super::plan::Planned;
use super::super::residency::Phases;
use super::super::room::{Evicts, reserve};
use super::super::update::Bring;
use super::{Departure, Slot};
use crate::error::Error;
use crate::inference::DeviceId;

impl Slot {
    /// What answers has other instances now.
    pub(super) fn updated(&self, manager: &ModelManager, resident: Resident) -> Outcome {
        manager.0.metrics.updates.increment(1);
        let instances: usize = resident.copies.iter().map(|copy| copy.instances()).sum();
        let devices: Vec<_> = resident.copies.iter().map(|copy| copy.device().to_string()).collect();
        tracing::info!(model = %self.name, instances, devices = devices.join(","), "instances updated in place");
        self.replace(manager, resident);
        let mut control = self.control.lock();
        (control.failed, control.flight) = (None, None);
        Outcome::Done
    }

    /// Puts the same model with other copies into its place.
    pub(in crate::lifecycle) fn replace(&self, manager: &ModelManager, resident: Resident) {
        self.repeat_pin(&resident);
        let mut control = self.control.lock();
        control.generation = manager.next_generation();
        self.resident.store(Some(Arc::new(resident)));
    }

    /// Ends a change of copies.
    pub(in crate::lifecycle) fn changed(&self, manager: &ModelManager, flight: &Flight) {
        {
            let mut control = self.control.lock();
            control.flight = None;
            control.generation = manager.next_generation();
        }
        flight.finish(Outcome::Done);
    }

    /// Frees the copy on one device while the others answer; `false` where there are no others, and the model has to go as
    /// a whole.
    pub(super) async fn drop_copy(&self, manager: &ModelManager, device: DeviceId, departure: &Departure) -> bool {
        let Some(old) = self.resident() else { return false };
        let Some(copy) = old.copy_on(device).filter(|_| old.can_spare(device)).cloned() else { return false };
        let since = copy.pool.entry(&self.name).map(|entry| entry.since);
        let remains = match copy.withdraw(&old.versions).await {
            Ok(remains) => remains,
            Err(error) => {
                tracing::error!(model = %self.name, error = %error.report(), "a copy cannot go alone: the model goes");
                return false;
            }
        };
        manager.0.loader.free(manager, (remains, copy.take_share()), copy.booked()).await;
        let rest = old.copies.iter().filter(|other| !Arc::ptr_eq(other, &copy)).cloned().collect();
        self.replace(manager, old.with_copies(rest));
        copy.give_back();
        let age = since.map(|since| Instant::now().saturating_duration_since(since));
        manager.0.metrics.copies_removed.increment(1);
        manager.0.metrics.evicted("device", departure.reason.name(), age.unwrap_or_default());
        tracing::info!(model = %self.name, %device, reason = departure.reason.name(), "copy removed");
        true
    }

    /// Brings a copy to another device, as the leader of a change. What is in the way ends it: it is asked for by nobody.
    pub(in crate::lifecycle) async fn add_copy(
        self: &Arc<Self>,
        manager: &ModelManager,
        flight: &Arc<Flight>,
        place: &DevicePlace,
    ) {
        let device = place.device();
        match self.another(manager, flight, place).await {
            Ok(resident) => {
                manager.0.metrics.copies_added.increment(1);
                tracing::info!(model = %self.name, %device, copies = resident.copies.len(), "copy added");
                self.replace(manager, resident);
            }
            Err(LoadError::Failed { error, .. } | LoadError::StillAsleep(error)) => {
                tracing::warn!(model = %self.name, %device, error = %error.report(), "no copy came");
                manager.copy_failed(&self.name);
            }
            Err(LoadError::Abandoned | LoadError::Unchanged | LoadError::OnDisk) => {
                tracing::debug!(model = %self.name, %device, "no copy came: there was no room, or something else to do");
            }
        }
        self.changed(manager, flight);
    }

    async fn another(
        self: &Arc<Self>,
        manager: &ModelManager,
        flight: &Arc<Flight>,
        place: &DevicePlace,
    ) -> Result<Resident, LoadError> {
        let (loader, name) = (&manager.0.loader, &self.name);
        let Some(old) = self.resident() else { return Err(LoadError::Unchanged) };
        let source = Some(&*old.source);
        let mut phases = Phases::default();
        let prepare = async {
            let wanted = Wanted { given: source, stale: true, unchanged: &|_| false };
            let found = loader.find(flight, name, wanted, &mut phases).await?;
            // Another content is a reload's to bring.
            let files = found.filter(|files| files.fingerprint == old.fingerprint).ok_or(LoadError::Unchanged)?;
            let Planned::Model(plan) = loader.planned(manager, name, &files, source.cloned()).await? else {
                return Err(LoadError::Unchanged);
            };
            let plan = Arc::new(*plan);
            let want = loader.want(manager, name, &plan, &files, place);
            let reserved = reserve(manager, name, &[want], (flight, &manager.0.gate), Evicts::AtOnce).await;
            let (permit, mut leases) = reserved.map_err(|error| error.into_load(&plan.versions))?;
            let lease = leases.pop().ok_or_else(|| LoadError::from(Error::internal("no lease was booked")))?;
            Ok::<_, LoadError>((files, plan, permit, lease))
        };
        let (files, plan, _permit, lease) = tokio::select! {
            biased;
            prepared = prepare => prepared?,
            () = flight.deserted() => return Err(LoadError::Abandoned),
        };
        // Where the server places a model, all its groups are where it is.
        let groups = old.versions.first().map(|version| version.config_now().instance_groups.clone());
        let bring = Bring { name, plan: &plan, files: &files, groups: groups.unwrap_or_default(), is_extra: true };
        let copy = bring.to(manager, &old, flight, place, lease).await?;
        let copies = old.copies.iter().cloned().chain([copy]).collect();
        Ok(old.with_copies(copies))
    }
}

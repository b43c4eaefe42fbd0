//! Other instances for a model that answers, without a reload: where nothing but `instance_group` is different, instances
//! come and go in its queues. No request fails, what the model counts goes on, and what did not change keeps running.
//!
//! What comes is there before anything goes, so a change that fails leaves what was.

use std::sync::{Arc, Weak};
use std::time::Instant;

use smallvec::SmallVec;

use super::assemble::Another;
use super::copies::{DeviceCopy, Models, PlacedGroup};
use super::files::Found;
use super::flight::Flight;
use super::handle::Resident;
use super::loader::{DevicePlace, LoadError, Loader, loaded_all};
use super::measure::Brought;
use super::members::groups_at;
use super::placement::Site;
use super::plan::Plan;
use super::room::{Evicts, Want, reserve};
use super::slot::Slot;
use super::{ModelManager, Name};
use crate::cache::memory_pool::MemoryLease;
use crate::error::{Error, Result};
use crate::model_config::{InstanceGroup, ModelConfig};
use crate::scheduler::queue::{MemberId, Remains};

/// Whether a model that answers has all that a plan wants but, maybe, its instances: the same files beside the text of the
/// configuration, and that saying the same of everything else. A model of sequences keeps its instances, since what a
/// sequence left in one is of use to that one only.
pub(super) fn is_in_place(old: &Resident, name: &Name, plan: &Plan, files: &Found) -> bool {
    let same_files = files.fingerprint == old.fingerprint || (files.weights.is_some() && files.weights == old.weights);
    let versions = old.versions.iter().map(|version| version.id.version);
    same_files
        && !old.is_leaving(name)
        && plan.retention == old.retention
        && versions.eq(plan.versions.iter().copied())
        && old.versions.iter().all(|version| version.is_flexible())
        && old.versions.iter().zip(signatures(old)).all(|(version, model)| {
            let completed = model.and_then(|model| plan.complete(model.signature()).ok());
            completed.is_some_and(|config| config.is_same_but_instance_groups(&version.config))
        })
}

/// A runtime's model of each version.
fn signatures(resident: &Resident) -> impl Iterator<Item = Option<Arc<dyn crate::backend::Model>>> {
    let models = resident.copies.first().into_iter().flat_map(|copy| &copy.models);
    models.map(Weak::upgrade)
}

/// A change of instances that was decided.
pub(super) struct Update {
    pub(super) resident: Arc<Resident>,
    pub(super) plan: Plan,
    pub(super) files: Found,
    pub(super) given_config: bool,
}

/// What a change has made so far, to be undone where it fails.
#[derive(Default)]
struct Made {
    copies: Vec<Arc<DeviceCopy>>,
    /// In the queue of a version, and how many instances of it; all where it is `None`.
    members: Vec<(usize, MemberId, Option<usize>)>,
    /// Copies whose groups were others, and those.
    regrouped: Vec<(Arc<DeviceCopy>, Vec<PlacedGroup>)>,
}

/// What is to go once everything came.
#[derive(Default)]
struct Going {
    members: Vec<(usize, MemberId, Option<usize>)>,
}

impl Update {
    /// Changes the instances. Gives what takes the place of the model in its slot.
    pub(super) async fn carry_out(
        self,
        manager: &ModelManager,
        slot: &Arc<Slot>,
        flight: &Arc<Flight>,
    ) -> Result<Resident, LoadError> {
        let Self { resident, mut plan, files, given_config } = self;
        let versions = plan.versions.clone();
        let failed = |error| LoadError::Failed { versions: versions.clone(), error };
        let source = Arc::new(plan.config.clone());
        // Copies that the server added stay, and have what the others have.
        if plan.placement.is_free
            && let Some((first, _)) = plan.sites.first().cloned()
        {
            let places = &manager.0.loader.devices;
            for copy in resident.copies.iter().filter(|copy| copy.is_extra && !plan.placement.is_on(copy.device())) {
                let site = Site { device: copy.device(), groups: first.groups.clone() };
                let place = places.iter().find(|place| place.device() == site.device).cloned();
                plan.sites.extend(place.map(|place| (site, place)));
            }
        }
        let configs = configs(&resident, &plan).map_err(failed)?;
        let Some(groups) = configs.first().cloned() else {
            return Err(Error::internal("a model without a version").into());
        };
        let change = Change { manager, flight, plan: Arc::new(plan), resident: &resident, files: &files };
        let mut made = Made::default();
        let going = match change.make(&slot.name, &groups, &mut made).await {
            Ok(going) => going,
            Err(error) => {
                change.undo(made).await;
                return Err(error);
            }
        };
        change.let_go(going.members).await;
        let (mut copies, gone): (Vec<_>, Vec<_>) = resident
            .copies
            .iter()
            .cloned()
            .partition(|copy| change.plan.sites.iter().any(|(site, _)| site.device == copy.device()));
        for copy in gone {
            change.remove(&copy).await;
        }
        copies.extend(made.copies);
        for (version, config) in resident.versions.iter().zip(configs) {
            version.now.store(config);
        }
        for copy in &copies {
            let bytes = copy.bytes_now();
            if let Err(error) = manager.correct(&slot.name, copy, bytes) {
                tracing::warn!(model = %slot.name, error = %error.report(), "over the memory limit, and nobody may leave now");
            }
        }
        let (fingerprint, weights) = (files.fingerprint, files.weights);
        let is_free = change.plan.placement.is_free;
        Ok(Resident { source, fingerprint, weights, given_config, is_free, ..resident.with_copies(copies) })
    }
}

/// The complete configuration of each version, with the groups where they were placed.
fn configs(resident: &Resident, plan: &Plan) -> Result<Vec<Arc<ModelConfig>>> {
    let complete = |model: Option<Arc<dyn crate::backend::Model>>| {
        let model = model.ok_or_else(|| Error::internal("a model that answers is not there"))?;
        plan.complete(model.signature()).map(Arc::new)
    };
    signatures(resident).map(complete).collect()
}

struct Change<'a> {
    manager: &'a ModelManager,
    flight: &'a Arc<Flight>,
    plan: Arc<Plan>,
    resident: &'a Arc<Resident>,
    files: &'a Found,
}

impl Change<'_> {
    fn loader(&self) -> &Loader {
        &self.manager.0.loader
    }

    /// Brings all that is to come.
    async fn make(&self, name: &Name, config: &ModelConfig, made: &mut Made) -> Result<Going, LoadError> {
        let mut going = Going::default();
        let fresh: Vec<_> =
            self.plan.sites.iter().filter(|(site, _)| self.resident.copy_on(site.device).is_none()).collect();
        if !fresh.is_empty() {
            let want = |(_, place): &&(Site, DevicePlace)| {
                self.loader().want(self.manager, name, &self.plan, self.files, place)
            };
            let wants: Vec<Want> = fresh.iter().map(want).collect();
            let reserved =
                reserve(self.manager, name, &wants, (self.flight, &self.manager.0.gate), Evicts::ForRequests).await;
            let (_permit, leases) = reserved.map_err(|error| error.into_load(&self.plan.versions))?;
            for ((site, place), lease) in fresh.into_iter().zip(leases) {
                let groups: Vec<_> = groups_at(config, site).cloned().collect();
                let bring = Bring { name, plan: &self.plan, files: self.files, groups, is_extra: false };
                made.copies.push(bring.to(self.manager, self.resident, self.flight, place, lease).await?);
            }
        }
        for (site, place) in &self.plan.sites {
            if let Some(copy) = self.resident.copy_on(site.device) {
                let groups: Vec<_> = groups_at(config, site).cloned().collect();
                self.regroup(copy, place, groups, made, &mut going).await?;
            }
        }
        Ok(going)
    }

    /// Has the instances of a copy become those of `groups`: what comes is made, what is to go is noted.
    async fn regroup(
        &self,
        copy: &Arc<DeviceCopy>,
        place: &DevicePlace,
        groups: Vec<InstanceGroup>,
        made: &mut Made,
        going: &mut Going,
    ) -> Result<(), LoadError> {
        let failed = |error| LoadError::Failed { versions: self.plan.versions.clone(), error };
        let old = copy.groups.lock().clone();
        let (pairs, dropped) = pair(&old, &groups);
        let mut placed = Vec::with_capacity(groups.len());
        for (group, kept) in groups.into_iter().zip(pairs) {
            let count = group.count as usize;
            let kept = kept.and_then(|at| old.get(at));
            let mut members = SmallVec::new();
            for at in 0..self.resident.versions.len() {
                let id = match kept.and_then(|kept| Some((kept.members.get(at).copied()?, kept.count))) {
                    Some((id, before)) if count > before => {
                        let more = count - before;
                        self.blocking(copy, at, move |another, model| another.grow(id, more, model))
                            .await
                            .map_err(failed)?;
                        made.members.push((at, id, Some(more)));
                        id
                    }
                    Some((id, before)) => {
                        if count < before {
                            going.members.push((at, id, Some(before - count)));
                        }
                        id
                    }
                    None => {
                        let (group, place) = (group.clone(), place.clone());
                        let add = move |another: &Another<'_>, model| another.group(&group, &place, model);
                        let id = self.blocking(copy, at, add).await.map_err(failed)?;
                        made.members.push((at, id, None));
                        id
                    }
                };
                members.push(id);
            }
            placed.push(PlacedGroup { rate_limiter: group.rate_limiter, count, members });
        }
        for group in dropped.into_iter().filter_map(|at| old.get(at)) {
            going.members.extend(group.members.iter().enumerate().map(|(at, id)| (at, *id, None)));
        }
        made.regrouped.push((Arc::clone(copy), old));
        *copy.groups.lock() = placed;
        Ok(())
    }

    /// Does something for one version on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        copy: &DeviceCopy,
        at: usize,
        change: impl FnOnce(&Another<'_>, Arc<dyn crate::backend::Model>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let missing = || Error::internal("a version that answers is not there");
        let model = copy.models.get(at).and_then(Weak::upgrade).ok_or_else(missing)?;
        let loaded = Arc::clone(self.resident.versions.get(at).ok_or_else(missing)?);
        let (plan, flight) = (Arc::clone(&self.plan), Arc::clone(self.flight));
        let work = move || change(&Another { plan: &plan, loaded: &loaded, flight: &flight }, model);
        self.loader().load_measured(self.manager, &self.plan, work).await.0
    }

    /// Takes instances out and frees them.
    async fn let_go(&self, members: Vec<(usize, MemberId, Option<usize>)>) {
        let mut remains: Vec<Remains> = Vec::new();
        for (at, id, count) in members {
            let Some(version) = self.resident.versions.get(at) else { continue };
            let Some(queue) = version.queue() else { continue };
            let gone = match count {
                Some(count) => queue.shrink(id, count).await,
                None => queue.remove(&[id]).await,
            };
            match gone {
                Ok(gone) => remains.push(gone),
                Err(error) => tracing::warn!(model = %version.id, error = %error.report(), "an instance stays"),
            }
        }
        self.loader().free(self.manager, remains, 0).await;
    }

    /// Takes a copy out and frees it.
    async fn remove(&self, copy: &Arc<DeviceCopy>) {
        match copy.withdraw(&self.resident.versions).await {
            Ok(remains) => {
                self.loader().free(self.manager, (remains, copy.take_share()), copy.booked()).await;
                copy.give_back();
            }
            Err(error) => tracing::error!(device = %copy.device(), error = %error.report(), "a copy stays"),
        }
    }

    async fn undo(&self, made: Made) {
        for (copy, groups) in made.regrouped {
            *copy.groups.lock() = groups;
        }
        self.let_go(made.members).await;
        for copy in made.copies {
            self.remove(&copy).await;
        }
    }
}

/// Which old group goes on as which new one, by the places of the new ones; and the old ones that do not. Groups that share
/// a device alike are as good as each other, those of the same size before others.
fn pair(old: &[PlacedGroup], new: &[InstanceGroup]) -> (Vec<Option<usize>>, Vec<usize>) {
    let mut free: Vec<usize> = (0..old.len()).collect();
    let mut pairs = vec![None; new.len()];
    for same_count in [true, false] {
        for (group, pair) in new.iter().zip(&mut pairs).filter(|(_, pair)| pair.is_none()) {
            let fits = |at: &usize| {
                old.get(*at).is_some_and(|old| {
                    old.rate_limiter == group.rate_limiter && (!same_count || old.count == group.count as usize)
                })
            };
            if let Some(position) = free.iter().position(fits) {
                *pair = Some(free.remove(position));
            }
        }
    }
    (pairs, free)
}

/// Another copy for a model that answers.
pub(super) struct Bring<'a> {
    pub(super) name: &'a Name,
    pub(super) plan: &'a Arc<Plan>,
    pub(super) files: &'a Found,
    /// What is to run of it.
    pub(super) groups: Vec<InstanceGroup>,
    /// Whether the model's queue paid for it.
    pub(super) is_extra: bool,
}

impl Bring<'_> {
    /// Loads every version on a device whose memory is booked, and has its instances take work. As a whole or not at all.
    pub(super) async fn to(
        self,
        manager: &ModelManager,
        resident: &Arc<Resident>,
        flight: &Arc<Flight>,
        place: &DevicePlace,
        lease: MemoryLease,
    ) -> Result<Arc<DeviceCopy>, LoadError> {
        let Self { name, plan, files, groups, is_extra } = self;
        let loader = &manager.0.loader;
        let began = Instant::now();
        let blank = |group: &InstanceGroup| PlacedGroup {
            rate_limiter: group.rate_limiter.clone(),
            count: group.count as usize,
            members: SmallVec::new(),
        };
        let mut placed: Vec<PlacedGroup> = groups.iter().map(blank).collect();
        let placements = loader.placements(name, std::iter::once((place, &lease))).await?;
        let placement = placements.first().ok_or_else(|| LoadError::from(Error::internal("no place on a device")))?;
        let growth = manager.let_grow(name, &placements, std::slice::from_ref(lease.pool()));
        let (mut models, mut measured, mut ended) = (Models::new(), Some(0_u64), None);
        for version in &resident.versions {
            let load = {
                let (plan, loaded, flight) = (Arc::clone(plan), Arc::clone(version), Arc::clone(flight));
                let (groups, place, placement) = (groups.clone(), place.clone(), placement.clone());
                move || Another { plan: &plan, loaded: &loaded, flight: &flight }.copy(&groups, &place, &placement)
            };
            let wanted = flight.is_wanted();
            let (result, growth) = match wanted {
                true => loader.load_measured(manager, plan, load).await,
                false => (Ok(None), None),
            };
            match result {
                Ok(Some((model, members))) => {
                    models.push(model);
                    placed.iter_mut().zip(members).for_each(|(group, member)| group.members.push(member));
                }
                Ok(None) => ended = Some(LoadError::Abandoned),
                Err(error) => ended = Some(LoadError::Failed { versions: plan.versions.clone(), error }),
            }
            if ended.is_some() {
                break;
            }
            measured = measured.zip(growth).map(|(sum, growth)| sum.saturating_add(growth));
        }
        let seconds = began.elapsed().as_secs_f64();
        let is_known = ended.is_none() && files.fingerprint == resident.fingerprint && !resident.given_config;
        let brought = Brought { plan, files, seconds, is_known, is_extra };
        let measured = measured.filter(|_| place.device() == crate::inference::DeviceId::Cpu);
        let copy = brought.book(manager, (place, placement), lease, (models, placed), measured);
        loaded_all(&placements);
        drop(placements);
        let bytes = copy.bytes_now();
        let ended = ended.or_else(|| {
            let refused = manager.correct(name, &copy, bytes).err();
            refused.map(|error| LoadError::Failed { versions: plan.versions.clone(), error })
        });
        drop(growth);
        let Some(ended) = ended else {
            copy.ready(loader);
            manager.book_scratch(copy.device());
            return Ok(copy);
        };
        match copy.withdraw(&resident.versions).await {
            Ok(remains) => loader.free(manager, (remains, copy.take_share()), bytes).await,
            Err(error) => tracing::error!(model = %name, error = %error.report(), "a copy that came to nothing stays"),
        }
        copy.give_back();
        Err(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_config::{InstanceKind, RateLimiter};

    fn limiter(priority: u32) -> RateLimiter {
        RateLimiter { priority, ..RateLimiter::default() }
    }

    fn old(priority: u32, count: usize) -> PlacedGroup {
        PlacedGroup { rate_limiter: limiter(priority), count, members: SmallVec::new() }
    }

    fn new(priority: u32, count: u32) -> InstanceGroup {
        let rate_limiter = limiter(priority);
        InstanceGroup { name: String::new(), kind: InstanceKind::Cpu, count, gpus: Vec::new(), rate_limiter }
    }

    #[test]
    fn a_group_goes_on_as_the_one_that_is_most_like_it() {
        assert_eq!(pair(&[old(1, 2)], &[new(1, 3)]), (vec![Some(0)], vec![]));
        assert_eq!(pair(&[old(1, 2)], &[new(2, 2)]), (vec![None], vec![0]));
        assert_eq!(pair(&[old(1, 1), old(1, 2)], &[new(1, 2), new(1, 5)]), (vec![Some(1), Some(0)], vec![]));
        assert_eq!(pair(&[old(1, 1), old(3, 1)], &[]), (vec![], vec![0, 1]));
    }
}

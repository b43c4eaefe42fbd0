//! From a name to loaded versions: find the files, plan, wait for a place, book memory, load, measure.

use std::sync::Arc;
use std::time::Instant;

use super::assemble::load_version;
use super::copies::Models;
use super::files::{Files, Found, Wanted};
use super::flight::Flight;
use super::gate::LoadPermit;
use super::handle::{Home, Resident, Versions};
use super::measure::{Brought, placed_groups};
use super::plan::{Plan, Planned};
use super::residency::{LastLoad, Phases, Retention};
use super::room::{Evicts, RoomError, Want, reserve};
use super::sleep::HostTier;
use super::slot::Slot;
use super::update::{Update, is_in_place};
use super::{ModelManager, Name};
use crate::backend::placement::{GpuShare, Placement};
use crate::backend::registry::BackendRegistry;
use crate::cache::memory_pool::{MemoryLease, MemoryPool};
use crate::cache::response::ResponseCache;
use crate::config::ModelControl;
use crate::device::allocator::Meter;
use crate::device::cuda::gpu::Gpu;
use crate::device::cuda::owner::Owner;
use crate::error::{Error, Result};
use crate::inference::{DeviceId, Version};
use crate::model_config::{ModelConfig, UnknownFields};
use crate::repository::ModelRepository;
use crate::scheduler::executor::ExecutorHandle;
use crate::scheduler::turns::Resources;

/// A device, the threads that run on it, and the book of its memory.
#[derive(Clone)]
pub struct DevicePlace {
    /// Its memory.
    pub pool: MemoryPool,
    /// Its threads.
    pub executor: ExecutorHandle,
    /// How many threads: the number of instances where the configuration names none.
    pub threads: usize,
    /// What runs take of, where the server limits rates.
    pub resources: Option<Arc<Resources>>,
    /// Who hands out its memory, where it is a GPU that we have opened.
    pub gpu: Option<Arc<Gpu>>,
}

impl DevicePlace {
    /// Which device.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        self.pool.device()
    }
}

/// What loading needs to know.
pub struct Loader {
    /// Where models come from.
    pub repository: Arc<dyn ModelRepository>,
    /// Where their files are kept on this machine.
    pub files: Files,
    /// What runs them.
    pub backends: Arc<BackendRegistry>,
    /// Where they run, the default first; at least one.
    pub devices: Vec<DevicePlace>,
    /// Requests that may wait for one model where its configuration does not say.
    pub queue_capacity: usize,
    /// What a configuration field outside the schema is.
    pub unknown_fields: UnknownFields,
    /// Whether models stay after their requests, where they do not say.
    pub retain: bool,
    /// Where the work of loading runs: threads of a lower priority than those that answer.
    pub loading: tokio::runtime::Handle,
    /// Attributes the host's memory to loads.
    pub meter: Arc<Meter>,
    /// Where the answers of models are kept that ask for it, if the server has such a place.
    pub responses: Option<Arc<ResponseCache>>,
    /// Where models sleep that have to leave a GPU, if there is such a place.
    pub host: Option<HostTier>,
}

/// Why a load ended without a fresh copy of the model.
pub(super) enum LoadError {
    /// It failed; `versions` are those that were to be loaded, as far as they were known.
    Failed { versions: Vec<Version>, error: Error },
    /// Nobody wanted it any more.
    Abandoned,
    /// What answers is what the repository has.
    Unchanged,
    /// A prefetch ends on the disk where memory is full.
    OnDisk,
    /// The model sleeps and could not be woken; it sleeps on.
    StillAsleep(Error),
}

impl From<Error> for LoadError {
    fn from(error: Error) -> Self {
        Self::Failed { versions: Vec::new(), error }
    }
}

/// What came of a load.
pub(super) enum Loaded {
    /// Another copy of the model, to answer from now on.
    Fresh(Resident, LastLoad),
    /// The model that answers, with other instances.
    Updated(Resident),
    /// The model that slept: it answers already.
    Woken,
}

/// A load that may use its memory.
pub(super) struct Prepared {
    began: Instant,
    phases: Phases,
    plan: Plan,
    files: Found,
    /// One a device.
    leases: Vec<MemoryLease>,
    source: Arc<ModelConfig>,
    given_config: bool,
    _permit: LoadPermit,
}

/// How far a load has come when it has waited for all it waits for.
enum Stage {
    /// It may use its memory.
    Prepared(Box<Prepared>),
    /// It is over: an ensemble has nothing to initialise.
    Composed(Box<(Resident, LastLoad)>),
    /// Nothing is to be loaded but instances for what answers.
    Update(Box<Update>),
}

impl Loader {
    /// Loads the slot's model, with the repository's configuration or the given one; or changes the instances of what
    /// answers, where that is all that is different. Until its memory is booked a load stops at once where nobody wants it
    /// any more, from then on between two versions; what is loaded is kept, and the next caller finds it.
    pub(super) async fn load(
        &self,
        manager: &ModelManager,
        slot: &Arc<Slot>,
        flight: &Arc<Flight>,
        given: Option<ModelConfig>,
    ) -> Result<Loaded, LoadError> {
        if let Some(asleep) = slot.asleep()
            && self.wake(manager, slot, flight, &asleep).await?
            && given.is_none()
            && !flight.asks_for_news()
        {
            return Ok(Loaded::Woken);
        }
        let prepared = tokio::select! {
            biased;
            prepared = self.prepare(manager, slot, flight, given) => prepared?,
            () = flight.deserted() => return Err(LoadError::Abandoned),
        };
        match prepared {
            Stage::Prepared(prepared) => {
                let (resident, last) = self.initialise(manager, &slot.name, flight, *prepared).await?;
                Ok(Loaded::Fresh(resident, last))
            }
            Stage::Composed(composed) => {
                let (resident, last) = *composed;
                Ok(Loaded::Fresh(resident, last))
            }
            Stage::Update(update) => update.carry_out(manager, slot, flight).await.map(Loaded::Updated),
        }
    }

    async fn prepare(
        &self,
        manager: &ModelManager,
        slot: &Arc<Slot>,
        flight: &Arc<Flight>,
        given: Option<ModelConfig>,
    ) -> Result<Stage, LoadError> {
        let began = Instant::now();
        let name = &slot.name;
        let mut phases = Phases::default();
        let given_config = given.is_some();
        let unchanged = |fingerprint| {
            let resident = slot.resident();
            !given_config && resident.is_some_and(|old| old.fingerprint == fingerprint && !old.given_config)
        };
        let stale = slot.resident().is_none();
        let wanted = Wanted { given: given.as_ref(), stale, unchanged: &unchanged };
        let found = self.find(flight, name, wanted, &mut phases).await?;
        let Some(files) = found else {
            self.complete(manager, slot, flight).await?;
            return Err(LoadError::Unchanged);
        };
        let mut plan = match self.planned(manager, name, &files, given).await? {
            Planned::Model(plan) => *plan,
            Planned::Ensemble(plan) => {
                let composing = self.compose(manager, slot, flight, (*plan, files), (began, phases, given_config));
                return composing.await.map(|composed| Stage::Composed(Box::new(composed)));
            }
        };
        let failed = |versions: &[Version], error| LoadError::Failed { versions: versions.to_vec(), error };
        let kept = slot.resident().filter(|old| is_in_place(old, name, &plan, &files));
        let candidates = self.candidates(manager, name, &plan, &files, kept.is_some());
        self.choose_devices(&mut plan, &candidates).map_err(|error| failed(&plan.versions, error))?;
        if let Some(resident) = kept {
            return Ok(Stage::Update(Box::new(Update { resident, plan, files, given_config })));
        }
        let waited = Instant::now();
        if plan.sites.iter().any(|(_, place)| place.pool.is_leaving(name)) {
            // Whoever was to make room with it waits for that.
            self.drain(manager, slot).await;
        }
        let wants: Vec<Want> =
            plan.sites.iter().map(|(_, place)| self.want(manager, name, &plan, &files, place)).collect();
        let mut reserved = reserve(manager, name, &wants, (flight, &manager.0.gate), Evicts::ForRequests).await;
        if let Err(RoomError::OldFirst) = reserved {
            tracing::info!(model = %name, "no room for a copy beside the one that answers: that one goes first");
            self.drain(manager, slot).await;
            let alone: Vec<Want> = wants.into_iter().map(|want| Want { beside: false, ..want }).collect();
            reserved = reserve(manager, name, &alone, (flight, &manager.0.gate), Evicts::ForRequests).await;
        }
        let (permit, leases) = reserved.map_err(|error| error.into_load(&plan.versions))?;
        phases.wait = waited.elapsed();
        let source = Arc::new(plan.config.clone());
        let prepared = Prepared { began, phases, plan, files, leases, source, given_config, _permit: permit };
        Ok(Stage::Prepared(Box::new(prepared)))
    }

    /// What is to be loaded of files.
    pub(super) async fn planned(
        &self,
        manager: &ModelManager,
        name: &Name,
        files: &Found,
        given: Option<ModelConfig>,
    ) -> Result<Planned, LoadError> {
        let planned = {
            let (loader, name, tree) = (manager.clone(), Arc::clone(name), files.tree.clone());
            self.loading.spawn_blocking(move || loader.0.loader.plan(&name, tree, given)).await
        };
        let planned = planned.unwrap_or_else(|panic| Err(panicked(panic)));
        let planned = planned.map_err(|error| LoadError::Failed { versions: files.tree.versions.clone(), error })?;
        let mut plan = match planned {
            Planned::Model(plan) => plan,
            ensemble @ Planned::Ensemble(_) => return Ok(ensemble),
        };
        if plan.retention == Retention::Transient && manager.0.options.control == ModelControl::Explicit {
            tracing::warn!(model = %name, "stays until it is unloaded, since models are loaded explicitly: retain has no effect");
            plan.retention = Retention::Cached;
        }
        plan.derived = files.derived();
        Ok(Planned::Model(plan))
    }

    /// Frees the copy that is there, to its end even if the load is given up meanwhile.
    pub(super) async fn drain(&self, manager: &ModelManager, slot: &Arc<Slot>) {
        let (manager, slot) = (manager.clone(), Arc::clone(slot));
        // It ends by itself; that it panicked is in the log.
        drop(tokio::spawn(async move { slot.drain_old(&manager).await }).await);
    }

    async fn initialise(
        &self,
        manager: &ModelManager,
        name: &Name,
        flight: &Arc<Flight>,
        prepared: Prepared,
    ) -> Result<(Resident, LastLoad), LoadError> {
        let Prepared { began, mut phases, plan, files, leases, source, given_config, _permit } = prepared;
        let initialising = Instant::now();
        let dismiss = (plan.retention == Retention::Transient).then(|| (Arc::clone(name), manager.0.dismissed.clone()));
        let Some(first) = leases.first() else { return Err(Error::internal("a load without a device").into()) };
        let home = Arc::new(Home { uses: first.pool().uses(name), dismiss });
        let (plan, mut versions) = (Arc::new(plan), Versions::new());
        let placements = match self.placements(name, plan.sites.iter().map(|(_, place)| place).zip(&leases)).await {
            Ok(placements) => placements,
            Err(error) => return Err(LoadError::Failed { versions: plan.versions.clone(), error }),
        };
        let mut models: Vec<Models> = leases.iter().map(|_| Models::new()).collect();
        let pools: Vec<MemoryPool> = leases.iter().map(|lease| lease.pool().clone()).collect();
        let growth = manager.let_grow(name, &placements, &pools);
        let mut measured = Some(0_u64);
        for &version in &plan.versions {
            if !flight.is_wanted() {
                self.discard(manager, (versions, placements), leases).await;
                return Err(LoadError::Abandoned);
            }
            let loading = {
                let (loaded, home, flight) = (Arc::clone(&plan), Arc::clone(&home), Arc::clone(flight));
                let placements = Arc::clone(&placements);
                move || load_version((&loaded, version), &placements, began, &home, &flight)
            };
            let (result, growth) = self.load_measured(manager, &plan, loading).await;
            match result {
                Ok(Some((version, each))) => {
                    versions.push(Arc::new(version));
                    models.iter_mut().zip(each).for_each(|(models, model)| models.push(model));
                }
                Ok(None) => {
                    self.discard(manager, (versions, placements), leases).await;
                    return Err(LoadError::Abandoned);
                }
                Err(error) => {
                    self.discard(manager, (versions, placements), leases).await;
                    return Err(LoadError::Failed { versions: plan.versions.clone(), error });
                }
            }
            measured = measured.zip(growth).map(|(sum, growth)| sum.saturating_add(growth));
        }
        phases.warm_up = versions.iter().map(|version| version.warm_up).sum();
        phases.initialise = initialising.elapsed().saturating_sub(phases.warm_up);
        let seconds = (phases.resolve + phases.initialise + phases.warm_up).as_secs_f64();
        // The host's memory grew by what is on the host, or by all there is.
        let is_alone = leases.len() == 1;
        let loaded = Brought { plan: &plan, files: &files, seconds, is_known: !given_config, is_extra: false };
        let groups = placed_groups(&versions, &plan);
        let mut copies = Vec::new();
        for (((placement, (_, place)), lease), running) in
            placements.iter().zip(&plan.sites).zip(leases).zip(models.into_iter().zip(groups))
        {
            let measured = measured.filter(|_| is_alone || place.device() == DeviceId::Cpu);
            copies.push(loaded.book(manager, (place, placement), lease, running, measured));
        }
        loaded_all(&placements);
        drop(placements);
        let resident = Resident {
            versions,
            copies,
            source,
            fingerprint: files.fingerprint,
            weights: files.weights,
            retention: plan.retention,
            given_config,
            is_free: plan.placement.is_free,
            files: Arc::default(),
        };
        let mut bytes = 0_u64;
        let mut refused = None;
        for copy in &resident.copies {
            let now = copy.bytes_now();
            bytes = bytes.saturating_add(now);
            refused = refused.or(manager.correct(name, copy, now).err());
        }
        drop(growth);
        if let Some(error) = refused {
            let Resident { versions, copies, .. } = resident;
            let leases = copies.iter().filter_map(|copy| copy.lease.lock().take()).collect();
            self.discard(manager, (versions, copies), leases).await;
            return Err(LoadError::Failed { versions: plan.versions.clone(), error });
        }
        for copy in &resident.copies {
            copy.ready(self);
            manager.book_scratch(copy.device());
        }
        let from = files.from;
        if files.is_cached() {
            let keeps_files = resident.copies.iter().any(|copy| copy.keeps_files());
            let measured = self.loading.spawn_blocking(move || {
                files.measure_derived();
                files.keep(keeps_files)
            });
            *resident.files.lock() = measured.await.ok().flatten();
        }
        let last = LastLoad { at: std::time::SystemTime::now(), from, phases, bytes };
        Ok((resident, last))
    }

    /// Where a model is to be on each device whose bytes were booked for it: on GPUs with a share of as many bytes.
    ///
    /// # Errors
    /// As the driver says.
    pub(super) async fn placements<'a>(
        &self,
        name: &Name,
        booked: impl Iterator<Item = (&'a DevicePlace, &'a MemoryLease)>,
    ) -> Result<Arc<[Placement]>> {
        let wanted: Vec<_> = booked.map(|(place, lease)| (place.device(), place.gpu.clone(), lease.bytes())).collect();
        if wanted.iter().all(|(_, gpu, _)| gpu.is_none()) {
            return Ok(wanted.iter().map(|(device, ..)| Placement::of(*device)).collect());
        }
        let name = Arc::clone(name);
        let placed = self.loading.spawn_blocking(move || {
            let place = |(device, gpu, bytes): (DeviceId, Option<Arc<Gpu>>, u64)| match gpu {
                None => Ok(Placement::of(device)),
                Some(gpu) => Ok(Placement::on(GpuShare { owner: owner(&gpu, &name, bytes)?, gpu })),
            };
            wanted.into_iter().map(place).collect()
        });
        placed.await.unwrap_or_else(|panic| Err(panicked(panic)))
    }

    /// Runs a load where its threads get the priority that they should have; how much the host's memory grew by it, where
    /// that can be told.
    pub(super) async fn load_measured<T: Send + 'static>(
        &self,
        manager: &ModelManager,
        plan: &Arc<Plan>,
        load: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> (Result<T>, Option<u64>) {
        let loading = {
            let (meter, trimmer) = (Arc::clone(&self.meter), Arc::clone(&manager.0.trimmer));
            let file_bytes = plan.file_bytes;
            move || {
                let measured = meter.measure(load);
                // Reading a model with its weights inside takes as much again, which malloc would keep.
                trimmer.trim(file_bytes);
                measured
            }
        };
        // Threads that a runtime starts have the priority of the one that starts them, and those will answer.
        let result = match plan.backend.starts_threads(&plan.config) {
            true => tokio::task::spawn_blocking(loading).await,
            false => self.loading.spawn_blocking(loading).await,
        };
        result.unwrap_or_else(|panic| (Err(panicked(panic)), None))
    }

    /// Frees what was loaded of a model that does not come to be: it comes as a whole or not at all.
    pub(super) async fn discard(&self, manager: &ModelManager, loaded: impl Send + 'static, leases: Vec<MemoryLease>) {
        let bytes = leases.iter().map(MemoryLease::bytes).sum();
        self.free(manager, loaded, bytes).await;
        drop(leases);
    }

    /// Drops what is no longer needed where that may take its time.
    pub(super) async fn free(&self, manager: &ModelManager, what: impl Send + 'static, bytes: u64) {
        let (meter, trimmer) = (Arc::clone(&self.meter), Arc::clone(&manager.0.trimmer));
        let freed = self.loading.spawn_blocking(move || {
            // Memory that comes back in the middle of a load would be counted for that one.
            meter.measure(|| drop(what));
            trimmer.trim(bytes);
        });
        if let Err(error) = freed.await {
            tracing::error!(%error, "freeing a model failed");
        }
    }
}

/// An owner whose limit may be raised: with addresses for several times what was booked, and for what a small model may
/// turn out to need. (Addresses cost nothing, and there are 128 TiB of them.)
fn owner(gpu: &Gpu, name: &Name, bytes: u64) -> Result<Arc<Owner>> {
    const LEAST: u64 = 1 << 30;
    let most = gpu.pool().usage().limit.saturating_mul(2);
    gpu.pool().owner_within(name, bytes, bytes.saturating_mul(4).saturating_add(LEAST).min(most))
}

/// What a load may take is what was booked for it; what runs take is bounded by the device.
pub(super) fn loaded_all(placements: &[Placement]) {
    for share in placements.iter().filter_map(Placement::share) {
        share.owner.on_limit(None);
        share.owner.set_limit(share.gpu.pool().usage().limit);
    }
}

pub(super) fn panicked(panic: tokio::task::JoinError) -> Error {
    if panic.is_cancelled() {
        return Error::not_ready("the server is stopping");
    }
    Error::internal("loading the model panicked").with_source(panic)
}

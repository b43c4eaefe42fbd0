//! From a name to loaded versions: find the files, plan, wait for a place, book memory, load, measure.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::assemble::load_version;
use super::files::{Files, Found, Wanted};
use super::flight::Flight;
use super::gate::LoadPermit;
use super::handle::{Home, LoadedVersion, Resident};
use super::need::{Past, need, plausible};
use super::plan::{Plan, Planned};
use super::residency::{EvictionReason, LastLoad, Phases, Retention};
use super::room::{RoomError, reserve};
use super::slot::Slot;
use super::{ModelManager, Name};
use crate::backend::ModelMemory;
use crate::backend::registry::BackendRegistry;
use crate::cache::eviction::Weight;
use crate::cache::memory_pool::{MemoryLease, MemoryPool};
use crate::cache::response::ResponseCache;
use crate::cache::table::Eviction;
use crate::config::{self, ModelControl};
use crate::device::allocator::Meter;
use crate::error::{Error, ErrorKind, Result};
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
}

impl From<Error> for LoadError {
    fn from(error: Error) -> Self {
        Self::Failed { versions: Vec::new(), error }
    }
}

pub(super) type Versions = SmallVec<[Arc<LoadedVersion>; 1]>;

/// A load that may use its memory.
pub(super) struct Prepared {
    began: Instant,
    phases: Phases,
    plan: Plan,
    files: Found,
    lease: MemoryLease,
    given_config: bool,
    _permit: LoadPermit,
}

/// How far a load has come when it has waited for all it waits for.
enum Stage {
    /// It may use its memory.
    Prepared(Box<Prepared>),
    /// It is over: an ensemble has nothing to initialise.
    Composed(Box<(Resident, LastLoad)>),
}

impl Loader {
    /// Loads the slot's model, with the repository's configuration or the given one. Until its memory is booked a load
    /// stops at once where nobody wants it any more, from then on between two versions; what is loaded is kept, and the
    /// next caller finds it.
    pub(super) async fn load(
        &self,
        manager: &ModelManager,
        slot: &Arc<Slot>,
        flight: &Arc<Flight>,
        given: Option<ModelConfig>,
    ) -> Result<(Resident, LastLoad), LoadError> {
        let prepared = tokio::select! {
            biased;
            prepared = self.prepare(manager, slot, flight, given) => prepared?,
            () = flight.deserted() => return Err(LoadError::Abandoned),
        };
        match prepared {
            Stage::Prepared(prepared) => self.initialise(manager, &slot.name, flight, *prepared).await,
            Stage::Composed(composed) => Ok(*composed),
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
        let failed = |versions: Vec<Version>| move |error| LoadError::Failed { versions, error };
        let planned = {
            let (loader, name, tree) = (manager.clone(), Arc::clone(name), files.tree.clone());
            self.loading.spawn_blocking(move || loader.0.loader.plan(&name, tree, given)).await
        };
        let planned = planned.unwrap_or_else(|panic| Err(panicked(panic)));
        let mut plan = match planned.map_err(failed(files.tree.versions.clone()))? {
            Planned::Model(plan) => plan,
            Planned::Ensemble(plan) => {
                let composing = self.compose(manager, slot, flight, (*plan, files), (began, phases, given_config));
                return composing.await.map(|composed| Stage::Composed(Box::new(composed)));
            }
        };
        if plan.retention == Retention::Transient && manager.0.options.control == ModelControl::Explicit {
            tracing::warn!(model = %name, "stays until it is unloaded, since models are loaded explicitly: retain has no effect");
            plan.retention = Retention::Cached;
        }
        plan.derived = files.derived();
        let waited = Instant::now();
        let pool = &plan.place.pool;
        if pool.is_leaving(name) {
            // Whoever was to make room with it waits for that.
            self.drain(manager, slot).await;
        }
        let past = manager.0.history.lock().get(files.fingerprint, pool.device());
        let past = past.or_else(|| files.past(pool.device()));
        let need = need(past, plan.declared_bytes, plan.file_bytes);
        let weight = Weight { bytes: need.bytes, seconds: past.map_or(0.0, |past| past.seconds) };
        let beside = pool.entry(name).is_some();
        let mut reserved = reserve(manager, pool, name, weight, beside, flight).await;
        if let Err(RoomError::OldFirst) = reserved {
            tracing::info!(model = %name, "no room for a copy beside the one that answers: that one goes first");
            self.drain(manager, slot).await;
            reserved = reserve(manager, pool, name, weight, false, flight).await;
        }
        let (permit, lease) = reserved.map_err(|error| match error {
            RoomError::Failed(error) => LoadError::Failed { versions: plan.versions.clone(), error },
            RoomError::NotForPrefetch => LoadError::OnDisk,
            RoomError::OldFirst => Error::internal("a copy that is gone is in the way").into(),
        })?;
        phases.wait = waited.elapsed();
        let prepared = Prepared { began, phases, plan: *plan, files, lease, given_config, _permit: permit };
        Ok(Stage::Prepared(Box::new(prepared)))
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
        let Prepared { began, mut phases, plan, files, lease, given_config, _permit } = prepared;
        let initialising = Instant::now();
        let dismiss = (plan.retention == Retention::Transient).then(|| (Arc::clone(name), manager.0.dismissed.clone()));
        let home = Arc::new(Home { uses: lease.pool().uses(name), dismiss });
        let (plan, mut versions) = (Arc::new(plan), Versions::new());
        let mut measured = Some(0_u64);
        for &version in &plan.versions {
            if !flight.is_wanted() {
                self.discard(manager, versions, lease).await;
                return Err(LoadError::Abandoned);
            }
            let loading = {
                let (plan, home, flight) = (Arc::clone(&plan), Arc::clone(&home), Arc::clone(flight));
                let (meter, trimmer) = (Arc::clone(&self.meter), Arc::clone(&manager.0.trimmer));
                move || {
                    let measured = meter.measure(|| load_version(&plan, version, began, &home, &flight));
                    // Reading a model with its weights inside takes as much again, which malloc would keep.
                    trimmer.trim(plan.file_bytes);
                    measured
                }
            };
            // Threads that a runtime starts have the priority of the one that starts them, and those will answer.
            let result = match plan.backend.starts_threads(&plan.config) {
                true => tokio::task::spawn_blocking(loading).await,
                false => self.loading.spawn_blocking(loading).await,
            };
            let (result, growth) = result.unwrap_or_else(|panic| (Err(panicked(panic)), None));
            match result {
                Ok(Some(version)) => versions.push(Arc::new(version)),
                Ok(None) => {
                    self.discard(manager, versions, lease).await;
                    return Err(LoadError::Abandoned);
                }
                Err(error) => {
                    self.discard(manager, versions, lease).await;
                    return Err(LoadError::Failed { versions: plan.versions.clone(), error });
                }
            }
            measured = measured.zip(growth).map(|(sum, growth)| sum.saturating_add(growth));
        }
        phases.warm_up = versions.iter().map(|version| version.warm_up).sum();
        phases.initialise = initialising.elapsed().saturating_sub(phases.warm_up);
        let exact = versions.iter().all(|version| matches!(version.memory(), Some(ModelMemory::Exact(_))));
        // Several loads at once cannot be told apart: what was known before stays.
        // What the warm-up's runs took and keep is the runtime's to count, as for runs to come.
        let runs = versions.iter().filter_map(|version| version.memory()).map(|memory| match memory {
            ModelMemory::Exact(_) => 0,
            ModelMemory::Runs(bytes) => bytes,
        });
        let runs = runs.fold(0, u64::saturating_add);
        let measured = measured.and_then(|growth| plausible(growth.saturating_sub(runs), plan.file_bytes));
        let loaded_bytes = measured.unwrap_or_else(|| lease.bytes());
        let keeps_files = versions.iter().any(|version| version.keeps_files());
        let fingerprint = files.fingerprint;
        let from = files.from;
        let seconds = (phases.resolve + phases.initialise + phases.warm_up).as_secs_f64();
        let resident = Resident {
            versions,
            loaded_bytes,
            exact,
            fingerprint,
            retention: plan.retention,
            given_config,
            files: Mutex::default(),
            pool: lease.pool().clone(),
            lease: Mutex::new(Some(lease)),
        };
        let bytes = resident.bytes_now();
        // Another configuration than the repository's may make another model of the same files.
        if (exact || measured.is_some()) && !given_config {
            let past = Past { bytes, seconds };
            manager.0.history.lock().record(fingerprint, plan.place.device(), past);
            files.remember(plan.place.device(), past);
        }
        if let Err(error) = manager.correct(name, &resident, bytes) {
            let Resident { versions, lease, .. } = resident;
            if let Some(lease) = lease.into_inner() {
                self.discard(manager, versions, lease).await;
            }
            return Err(LoadError::Failed { versions: plan.versions.clone(), error });
        }
        if let Some(lease) = &*resident.lease.lock() {
            lease.ready(seconds, Instant::now());
        }
        if files.is_cached() {
            let measured = self.loading.spawn_blocking(move || {
                files.measure_derived();
                files.keep(keeps_files)
            });
            *resident.files.lock() = measured.await.ok().flatten();
        }
        let last = LastLoad { at: std::time::SystemTime::now(), from, phases, bytes };
        Ok((resident, last))
    }

    /// Frees what was loaded of a model that does not come to be: it comes as a whole or not at all.
    async fn discard(&self, manager: &ModelManager, versions: Versions, lease: MemoryLease) {
        let (trimmer, bytes) = (Arc::clone(&manager.0.trimmer), lease.bytes());
        let meter = Arc::clone(&self.meter);
        let freed = self.loading.spawn_blocking(move || {
            meter.measure(|| drop(versions));
            trimmer.trim(bytes);
        });
        // It is gone either way.
        let _freed = freed.await;
        drop(lease);
    }
}

impl ModelManager {
    /// Books what a model was measured to hold; others leave where that is more than there is.
    ///
    /// # Errors
    /// `OutOfDeviceMemory` where nobody may leave.
    pub(super) fn correct(&self, name: &Name, resident: &Resident, bytes: u64) -> Result<()> {
        let automatic = self.0.options.eviction == config::Eviction::Automatic;
        let busy = |other: &Name| !automatic || other == name || self.is_busy(other);
        let corrected = resident.lease.lock().as_mut().map(|lease| lease.correct(bytes, Instant::now(), &busy));
        match corrected.unwrap_or_else(|| Ok(Eviction::default())) {
            Ok(eviction) => {
                self.evict(eviction.victims, EvictionReason::Overrun, Some(name));
                Ok(())
            }
            Err(refusal) => {
                let text = format!("model '{name}' holds {bytes} bytes once loaded, and there is no room for them");
                Err(Error::new(ErrorKind::OutOfDeviceMemory, text).with_source(refusal).with_retryable(true))
            }
        }
    }
}

pub(super) fn panicked(panic: tokio::task::JoinError) -> Error {
    if panic.is_cancelled() {
        return Error::not_ready("the server is stopping");
    }
    Error::internal("loading the model panicked").with_source(panic)
}

//! `ModelManager`: which models are in memory, and how they come and go.
//!
//! A look-up is one atomic snapshot read. Loads and unloads of one model run one at a time (`flight`), those of different
//! models beside each other; none of them waits or reads under a lock that a request takes. What is done to a model is
//! done in `slot`; this file is the facade.

mod acquire;
mod assemble;
mod compose;
pub mod composition;
mod copies;
pub mod digest;
pub mod files;
mod flight;
mod gate;
pub mod handle;
mod house;
mod initial_state;
pub mod loader;
mod lookup;
mod lost;
mod measure;
mod members;
pub mod need;
mod parts;
pub mod placement;
pub mod plan;
pub mod residency;
mod room;
mod shortage;
pub mod sleep;
mod slot;
pub mod spread;
mod spread_house;
pub mod state;
mod update;
mod view;
mod warm_up;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use self::compose::Nesting;
use self::flight::{Operation, Outcome};
use self::gate::LoadGate;
use self::handle::ModelHandle;
use self::loader::Loader;
use self::need::History;
use self::residency::{EvictionReason, Retention};
use self::slot::{Departure, Entered, Slot};
use self::spread_house::Spread;
use self::state::VersionStatus;
use crate::cache::eviction::Lru;
use crate::cache::memory_pool::{MemoryLease, MemoryPool, Name};
use crate::cache::table::Victim;
use crate::config::{Eviction, ModelControl};
use crate::device::allocator::Trimmer;
use crate::error::{Error, Result};
use crate::inference::{DeviceId, Version};
use crate::metrics::prometheus::ServerMetrics;
use crate::model_config::ModelConfig;
use crate::repository::check_name;

/// A persistent map: a change shares all but a few nodes with the snapshot before it, so that loads cost the same
/// however many models there are.
type Snapshot = imbl::HashMap<Arc<str>, Arc<Slot>>;

/// Wakes of one device at a time: while one is copied, the next makes room.
const WAKES: usize = 2;

/// How the manager is to behave.
#[derive(Clone, Copy, Debug)]
pub struct ManagerOptions {
    /// When models are loaded.
    pub control: ModelControl,
    /// How many loads run at once.
    pub load_concurrency: usize,
    /// How long a failed load answers for the next requests.
    pub load_retry: Duration,
    /// Who makes room.
    pub eviction: Eviction,
    /// How long a load waits for room.
    pub room_wait: Duration,
    /// How often models in memory are compared with the repository.
    pub repository_poll: Option<Duration>,
    /// The most copies of a model that the server placed, one a device; `None` for as many as there are devices.
    pub max_copies: Option<usize>,
}

impl Default for ManagerOptions {
    /// What `roundhouse serve` does where it is told nothing.
    fn default() -> Self {
        Self {
            control: ModelControl::OnDemand,
            load_concurrency: 4,
            load_retry: Duration::from_secs(1),
            eviction: Eviction::Automatic,
            room_wait: Duration::from_secs(10),
            repository_poll: None,
            max_copies: None,
        }
    }
}

/// The models in memory. Cheap to clone.
#[derive(Clone)]
pub struct ModelManager(Arc<Shared>);

struct Shared {
    loader: Loader,
    options: ManagerOptions,
    metrics: Arc<ServerMetrics>,
    models: ArcSwap<Snapshot>,
    gate: LoadGate,
    /// Wakes at once: they are over in milliseconds, and do not wait for loads.
    wakes: LoadGate,
    /// What runs share of each GPU, as its book has it; none where it is nothing.
    scratch: HashMap<DeviceId, Mutex<Option<MemoryLease>>>,
    /// The book of ensembles, which hold next to nothing: without a limit, so that none ever waits for room.
    ensembles: MemoryPool,
    nesting: Nesting,
    history: Mutex<History>,
    spread: Mutex<Spread>,
    trimmer: Arc<Trimmer>,
    /// Models that fell idle and are not to be kept.
    dismissed: mpsc::UnboundedSender<Name>,
    dismissals: Mutex<Option<mpsc::UnboundedReceiver<Name>>>,
    /// Goes up with every change of what is where.
    generation: AtomicU64,
    /// The generation in which something last vanished from the rows, which no row can say.
    vanished: AtomicU64,
    /// The disk's stamp in that generation, or since.
    disk_stamp: AtomicU64,
    /// Uses not yet counted that had to wait for a load: no hits.
    waited: AtomicU64,
    /// Whether models were used since they were last measured.
    used: AtomicBool,
    /// Whether no more models are brought.
    closed: AtomicBool,
}

/// A model as the repository index lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Its key.
    pub name: String,
    /// A row for each version that was ever asked for; none for a model that never was.
    pub versions: Vec<VersionStatus>,
}

impl ModelManager {
    /// A manager with nothing loaded.
    #[must_use]
    pub fn new(loader: Loader, options: ManagerOptions, metrics: Arc<ServerMetrics>) -> Self {
        let (dismissed, dismissals) = mpsc::unbounded_channel();
        let gpus = loader.devices.iter().filter(|place| place.gpu.is_some());
        let scratch: HashMap<_, _> = gpus.map(|place| (place.device(), Mutex::default())).collect();
        let manager = Self(Arc::new(Shared {
            wakes: LoadGate::new(scratch.len() * WAKES),
            scratch,
            loader,
            options,
            metrics,
            models: ArcSwap::from_pointee(Snapshot::new()),
            gate: LoadGate::new(options.load_concurrency),
            ensembles: MemoryPool::new(DeviceId::Cpu, u64::MAX / 2, Duration::ZERO, Box::new(Lru::default())),
            nesting: Nesting::default(),
            history: Mutex::default(),
            spread: Mutex::default(),
            trimmer: Arc::default(),
            dismissed,
            dismissals: Mutex::new(Some(dismissals)),
            generation: AtomicU64::new(0),
            vanished: AtomicU64::new(0),
            disk_stamp: AtomicU64::new(0),
            waited: AtomicU64::new(0),
            used: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }));
        manager.answer_shortages();
        manager
    }

    /// A handle on the model if it is in memory now.
    ///
    /// # Errors
    /// `NotFound` for a version that is not loaded while others are.
    pub fn resident(&self, name: &str, version: Option<Version>) -> Result<Option<ModelHandle>> {
        let models = self.0.models.load();
        let Some(slot) = models.get(name) else { return Ok(None) };
        slot.pin(version)
    }

    /// Loads the model, or a fresh copy of it beside the one that answers; returns when it is ready. Goes on to the end
    /// even if the caller leaves.
    ///
    /// # Errors
    /// The load's error; a copy that answered before goes on answering.
    pub async fn load(&self, name: &str, config: Option<ModelConfig>) -> Result<()> {
        check_name(name)?;
        self.0.loader.repository.expect(name);
        self.load_known(name, config).await
    }

    /// The same for what is known to be a name.
    async fn load_known(&self, name: &str, config: Option<ModelConfig>) -> Result<()> {
        loop {
            let slot = self.slot(name);
            let (waiter, leads) = match slot.enter(Operation::Load) {
                Entered::Lead(waiter) => (waiter, true),
                Entered::Wait(waiter) => (waiter, false),
                Entered::FailedLately(error) => return Err(error),
                Entered::Ready | Entered::Forgotten => {
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            // A load that has not looked at the repository yet sees what our caller put there.
            let serves = leads
                || (waiter.flight().operation == Operation::Load && config.is_none() && !waiter.flight().has_begun());
            waiter.flight().wanted_by(None);
            waiter.flight().insist();
            waiter.flight().ask_for_news();
            if leads {
                self.start_load(&slot, waiter.flight(), config.clone());
            }
            match waiter.outcome().await? {
                Outcome::Done if serves => return Ok(()),
                Outcome::Failed(error) if serves => {
                    return Err(error.wrap(format!("model '{name}' cannot be loaded")));
                }
                Outcome::Absent if serves => return Err(unknown(name, None)),
                // The end of something else than was asked for here.
                Outcome::Done | Outcome::Failed(_) | Outcome::Absent | Outcome::OnDisk | Outcome::Abandoned => {}
            }
        }
    }

    /// Unloads the model; returns when its memory is free. A model that is not loaded is unloaded already.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no name.
    pub async fn unload(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.unload_because(name, Departure::because(EvictionReason::Unload)).await
    }

    /// Brings no more models from now on; what is in memory or on its way answers.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
    }

    /// # Errors
    /// `NotReady` where no more models are brought.
    fn check_open(&self) -> Result<()> {
        match self.0.closed.load(Ordering::Acquire) {
            false => Ok(()),
            true => Err(Error::not_ready("the server is shutting down and loads no more models: ask another instance")),
        }
    }

    /// Forgets what happened to a model that is neither in memory nor on its way there.
    pub fn forget(&self, name: &str) {
        let slot = self.0.models.load().get(name).cloned();
        if let Some(slot) = slot {
            slot.clear();
            self.forget_if_empty(&slot);
        }
    }

    async fn unload_because(&self, name: &str, departure: Departure) -> Result<()> {
        loop {
            let Some(slot) = self.0.models.load().get(name).cloned() else { return Ok(()) };
            let spares = |device| slot.resident().is_some_and(|resident| resident.can_spare(device));
            // Whoever wants the model gone must not take the end of one of its copies for that.
            let operation = if departure.device.is_some_and(spares) { Operation::Change } else { Operation::Unload };
            let (waiter, leads) = match slot.enter(operation) {
                Entered::Lead(waiter) => {
                    if !self.still_applies(&slot, &departure) {
                        slot.leave_unstarted();
                        return Ok(());
                    }
                    let flight = Arc::clone(waiter.flight());
                    let (manager, slot, departure) = (self.clone(), Arc::clone(&slot), departure.clone());
                    drop(tokio::spawn(async move {
                        let _guard = slot.guard(&manager, &flight);
                        slot.unload(&manager, &flight, &departure).await;
                        manager.forget_if_empty(&slot);
                    }));
                    (waiter, true)
                }
                Entered::Wait(waiter) => (waiter, false),
                Entered::FailedLately(_) | Entered::Ready | Entered::Forgotten => return Ok(()),
            };
            let operation = waiter.flight().operation;
            match waiter.outcome().await? {
                Outcome::Done if operation == Operation::Unload || leads => return Ok(()),
                Outcome::Failed(error) if operation == Operation::Unload || leads => return Err(error),
                // The end of something else, or of an unload that was not carried out after all.
                Outcome::Done | Outcome::Failed(_) | Outcome::Absent | Outcome::OnDisk | Outcome::Abandoned => {}
            }
        }
    }

    /// Whether what was decided still holds when its turn comes: the copy that was chosen to leave may be gone, and
    /// another one there.
    fn still_applies(&self, slot: &Slot, departure: &Departure) -> bool {
        if departure.from_host {
            let is_leaving = |host: &sleep::HostTier| host.book.is_leaving(&slot.name);
            return slot.is_asleep() && self.0.loader.host.as_ref().is_some_and(is_leaving);
        }
        let of_device = matches!(departure.reason, EvictionReason::Room | EvictionReason::Overrun);
        let resident = if of_device { slot.resident() } else { slot.resident_or_asleep() };
        let Some(resident) = resident else { return departure.reason == EvictionReason::Unload };
        match departure.reason {
            EvictionReason::Unload => true,
            EvictionReason::Deleted => departure.content.is_none_or(|content| content == resident.fingerprint),
            EvictionReason::Room | EvictionReason::Overrun => match departure.device {
                Some(device) => resident.copy_on(device).is_some_and(|copy| copy.is_leaving(&slot.name)),
                None => resident.is_leaving(&slot.name),
            },
            EvictionReason::Lost => departure.device.is_some_and(|device| resident.copy_on(device).is_some()),
            EvictionReason::Surplus => departure.device.is_some_and(|device| {
                resident.can_spare(device) && resident.copy_on(device).is_some_and(|copy| copy.is_extra)
            }),
            EvictionReason::Transient => {
                // Ensembles leave where there are very many.
                let may_go = resident.retention == Retention::Transient || resident.compositions().next().is_some();
                may_go && !resident.is_in_use() && !slot.is_pinned()
            }
        }
    }

    /// Unloads a model without anybody waiting for it.
    fn unload_soon(&self, name: &Name, departure: Departure) {
        let (manager, name) = (self.clone(), Arc::clone(name));
        drop(tokio::spawn(async move { manager.unload_because(&name, departure).await }));
    }

    /// Makes room where more is booked than there may be.
    fn relieve(&self, pool: &MemoryPool) {
        let automatic = self.0.options.eviction == Eviction::Automatic;
        let device = pool.device();
        let eviction = pool.relieve(Instant::now(), &|name| !automatic || self.is_busy(name, device));
        self.evict(device, eviction.victims, EvictionReason::Overrun, None);
    }

    /// Carries out what the book of a device decided.
    fn evict(
        &self,
        device: DeviceId,
        victims: Vec<Victim<Name>>,
        reason: EvictionReason,
        made_room_for: Option<&Name>,
    ) {
        for victim in victims {
            let (made_room_for, age) = (made_room_for.cloned(), Some((victim.age, victim.idle)));
            let departure = Departure { made_room_for, age, ..Departure::because(reason).from(device) };
            self.unload_soon(&victim.key, departure);
        }
    }

    /// Whether a model may not leave a device now: a request uses it or a sequence counts on it, and no other device has
    /// it, or something is being done to it.
    fn is_busy(&self, name: &Name, device: DeviceId) -> bool {
        let models = self.0.models.load();
        let Some(slot) = models.get(name) else { return false };
        slot.resident().is_some_and(|resident| resident.is_in_use() && !resident.can_spare(device))
            || slot.is_in_flight()
    }

    /// Whether something is being done to a model.
    fn is_in_flight(&self, name: &Name) -> bool {
        self.0.models.load().get(name).is_some_and(|slot| slot.is_in_flight())
    }

    fn next_generation(&self) -> u64 {
        self.0.generation.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// What runs models here.
    #[must_use]
    pub fn loader(&self) -> &Loader {
        &self.0.loader
    }

    /// The slot of `name`, made if it is not there.
    fn slot(&self, name: &str) -> Arc<Slot> {
        if let Some(slot) = self.0.models.load().get(name) {
            return Arc::clone(slot);
        }
        let name: Arc<str> = name.into();
        let fresh = Arc::new(Slot::new(Arc::clone(&name)));
        self.0.models.rcu(|models| {
            if models.contains_key(&name) {
                Arc::clone(models)
            } else {
                Arc::new(models.update(name.clone(), fresh.clone()))
            }
        });
        // Where another's slot was there first and is gone again, ours is as good: who enters it finds it unlisted, which
        // is how it would be a moment later.
        self.0.models.load().get(&name).cloned().unwrap_or_else(|| {
            fresh.forget_if_empty();
            fresh
        })
    }

    /// Forgets a slot that holds nothing worth knowing, so that requests for names that do not exist cost no memory.
    fn forget_if_empty(&self, slot: &Arc<Slot>) {
        self.0.models.rcu(|models| match models.get(&slot.name) {
            Some(known) if Arc::ptr_eq(known, slot) && slot.forget_if_empty() => {
                self.0.vanished.store(self.next_generation(), Ordering::Release);
                Arc::new(models.without(&slot.name))
            }
            _ => Arc::clone(models),
        });
    }

    fn start_load(&self, slot: &Arc<Slot>, flight: &Arc<flight::Flight>, config: Option<ModelConfig>) {
        let (manager, slot, flight) = (self.clone(), Arc::clone(slot), Arc::clone(flight));
        drop(tokio::spawn(async move {
            let _guard = slot.guard(&manager, &flight);
            slot.load(&manager, &flight, config).await;
            manager.forget_if_empty(&slot);
        }));
    }
}

fn unknown(name: &str, version: Option<Version>) -> Error {
    match version {
        None => Error::not_found(format!("Request for unknown model: '{name}' is not found")),
        Some(version) => {
            Error::not_found(format!("Request for unknown model: '{name}' version {version} is not found"))
        }
    }
}

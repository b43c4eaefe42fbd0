//! One model's place: what of it is in memory, what is being done to it, what its versions' states are.

mod asleep;
mod copies;
mod departure;
mod guard;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::RwLock;

pub(super) use self::departure::Departure;
pub(super) use self::guard::FlightGuard;
use super::ModelManager;
use super::flight::{Flight, Operation, Outcome, Waiter};
use super::handle::{ModelHandle, Resident};
use super::loader::{LoadError, Loaded};
use super::residency::{EvictionReason, LastEviction, LastLoad, Tier};
use super::sleep::Slept;
use super::state::{ModelState, VersionStates, VersionStatus};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::Version;
use crate::model_config::ModelConfig;
use crate::repository::manifest::Fingerprint;

/// A model's place.
pub(super) struct Slot {
    pub(super) name: Arc<str>,
    resident: ArcSwapOption<Resident>,
    /// What sleeps, while nothing is resident; changed with `control` held.
    asleep: ArcSwapOption<Resident>,
    control: Mutex<Control>,
    /// Held for reading while a copy that a reload replaced is being freed; an unload waits for them all.
    departing: Arc<RwLock<()>>,
}

/// What a model has been through, for whoever asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Story {
    pub(super) loads: u64,
    pub(super) evictions: u64,
    pub(super) last_load: Option<LastLoad>,
    pub(super) last_eviction: Option<LastEviction>,
}

#[derive(Default)]
struct Control {
    /// None for a model that nothing ever happened to, which is most of them.
    story: Option<Box<Story>>,
    /// Asked never to be evicted.
    pinned: bool,
    /// The residency's generation in which something last changed here.
    generation: u64,
    /// The content that a poll last found instead of what answers.
    polled: Option<Fingerprint>,
    /// Whether the slot is out of the manager's map, or about to be: nothing begins in it any more.
    forgotten: bool,
    flight: Option<Arc<Flight>>,
    states: VersionStates,
    failed: Option<(Instant, Error)>,
}

/// What became of asking for an operation.
pub(super) enum Entered {
    /// It is the caller's to carry out.
    Lead(Waiter),
    /// One is under way, maybe another operation: wait and look again.
    Wait(Waiter),
    /// It failed so lately that it is not tried again.
    FailedLately(Error),
    /// The model came into memory meanwhile.
    Ready,
    /// The slot has just been forgotten: look for the model's slot again.
    Forgotten,
}

impl Slot {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            resident: ArcSwapOption::empty(),
            asleep: ArcSwapOption::empty(),
            control: Mutex::default(),
            departing: Arc::default(),
        }
    }

    /// Pins a version if the model is in memory.
    pub(super) fn pin(&self, version: Option<Version>) -> Result<Option<ModelHandle>> {
        loop {
            let resident = self.resident.load();
            let Some(resident) = resident.as_ref() else { return Ok(None) };
            if let Some(handle) = resident.pin(&self.name, version)? {
                return Ok(Some(handle));
            }
            // Retired between our two reads: whoever retired it had taken it out of the slot before.
            std::hint::spin_loop();
        }
    }

    pub(super) fn resident(&self) -> Option<Arc<Resident>> {
        self.resident.load_full()
    }

    pub(super) fn is_resident(&self) -> bool {
        self.resident.load().is_some()
    }

    pub(super) fn states(&self) -> Vec<VersionStatus> {
        self.control.lock().states.rows().to_vec()
    }

    /// Whether something is being done to the model now.
    pub(super) fn is_in_flight(&self) -> bool {
        self.control.lock().flight.is_some()
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.control.lock().pinned
    }

    pub(super) fn story(&self) -> Story {
        self.control.lock().story.as_deref().cloned().unwrap_or_default()
    }

    pub(super) fn generation(&self) -> u64 {
        self.control.lock().generation
    }

    /// Whether the last poll found this content as well; the next one will hear that.
    pub(super) fn is_polled(&self, content: Fingerprint) -> bool {
        self.control.lock().polled.replace(content) == Some(content)
    }

    pub(super) fn failure(&self) -> Option<Error> {
        self.control.lock().failed.as_ref().map(|(_, error)| error.clone())
    }

    /// Whether the model is never to be evicted; holds for copies to come as well.
    pub(super) fn set_pinned(&self, pinned: bool, manager: &ModelManager) {
        let resident = {
            let mut control = self.control.lock();
            control.pinned = pinned;
            control.generation = manager.next_generation();
            self.resident.load_full()
        };
        if let Some(resident) = resident {
            resident.set_pinned(&self.name, pinned);
        }
        if let Some(host) = &manager.0.loader.host {
            host.book.set_pinned(&self.name, pinned);
        }
    }

    /// Joins the operation under way, or becomes the leader of a load, unless the model is in memory: whoever saw it
    /// absent before may have seen the time before a load that has ended.
    pub(super) fn enter_if_absent(&self, remember: Duration) -> Entered {
        let control = self.control.lock();
        if control.flight.is_none() && self.resident.load().is_some() {
            return Entered::Ready;
        }
        Self::enter_locked(control, Operation::Load, remember)
    }

    /// Pins in the book what was pinned by name.
    fn repeat_pin(&self, resident: &Resident) {
        if self.is_pinned() {
            resident.set_pinned(&self.name, true);
            // Unpinned between the two.
            if !self.is_pinned() {
                resident.set_pinned(&self.name, false);
            }
        }
    }

    /// Joins the operation under way, or becomes the leader of a new one.
    pub(super) fn enter(&self, operation: Operation) -> Entered {
        Self::enter_locked(self.control.lock(), operation, Duration::ZERO)
    }

    fn enter_locked(mut control: MutexGuard<'_, Control>, operation: Operation, remember: Duration) -> Entered {
        if control.forgotten {
            return Entered::Forgotten;
        }
        if let Some(flight) = &control.flight {
            if flight.operation == Operation::Change {
                // Whatever else is wanted goes before another copy.
                flight.give_up();
                return Entered::Wait(flight.watch());
            }
            // Who wants the model gone is no reason to go on loading it.
            return Entered::Wait(if operation == Operation::Unload { flight.watch() } else { flight.join() });
        }
        if let Some((when, error)) = &control.failed
            && when.elapsed() < remember
        {
            return Entered::FailedLately(error.clone());
        }
        let flight = Flight::new(operation);
        let waiter = flight.join();
        control.flight = Some(flight);
        Entered::Lead(waiter)
    }

    /// Gives up a flight that was entered as leader and not started.
    pub(super) fn leave_unstarted(&self) {
        let flight = self.control.lock().flight.take();
        if let Some(flight) = flight {
            flight.finish(Outcome::Abandoned);
        }
    }

    /// Takes care that a flight ends whatever becomes of the task that carries it out.
    pub(super) fn guard(self: &Arc<Self>, manager: &ModelManager, flight: &Arc<Flight>) -> FlightGuard {
        FlightGuard { manager: manager.clone(), slot: Arc::clone(self), flight: Arc::clone(flight) }
    }

    /// Forgets what the model has been through, where nothing of it is in memory or on its way there.
    pub(super) fn clear(&self) {
        let mut control = self.control.lock();
        if control.flight.is_none() && self.resident.load().is_none() && !self.is_asleep() {
            control.states = VersionStates::default();
            (control.story, control.failed) = (None, None);
        }
    }

    /// Closes the slot if nothing would be lost with it, and says whether it is closed: whoever holds it yet cannot load a
    /// model into a slot that nobody finds.
    pub(super) fn forget_if_empty(&self) -> bool {
        let mut control = self.control.lock();
        control.forgotten = control.flight.is_none()
            && control.states.rows().is_empty()
            && !control.pinned
            && !self.is_asleep()
            && self.resident.load().is_none();
        control.forgotten
    }

    /// Carries out a load as its leader. The slot may turn out to hold nothing worth knowing.
    pub(super) async fn load(
        self: &Arc<Self>,
        manager: &ModelManager,
        flight: &Arc<Flight>,
        config: Option<ModelConfig>,
    ) {
        let metrics = &manager.0.metrics;
        // A reload shows as Ready: the old copy answers on.
        {
            let mut control = self.control.lock();
            if self.resident.load().is_none() && !self.is_asleep() {
                control.states.loading();
            }
            control.generation = manager.next_generation();
        }
        flight.begin();
        let outcome = match manager.0.loader.load(manager, self, flight, config).await {
            Ok(Loaded::Fresh(fresh, last)) => self.arrived(manager, fresh, last).await,
            Ok(Loaded::Updated(resident)) => self.updated(manager, resident),
            Ok(Loaded::Woken) => {
                self.settle(manager);
                Outcome::Done
            }
            Err(LoadError::StillAsleep(error)) => {
                tracing::warn!(model = %self.name, error = %error.report(), "not woken");
                self.settle(manager);
                Outcome::Failed(error)
            }
            Err(LoadError::Failed { versions, error }) => self.failed(manager, &versions, error),
            Err(LoadError::Unchanged) => {
                tracing::debug!(model = %self.name, "what answers is what the repository has");
                self.settle(manager);
                Outcome::Done
            }
            Err(LoadError::OnDisk) => {
                tracing::info!(model = %self.name, "prefetched to disk: there is no free memory for it");
                self.settle(manager);
                Outcome::OnDisk
            }
            Err(LoadError::Abandoned) => {
                metrics.loads_cancelled.increment(1);
                tracing::info!(model = %self.name, "load abandoned: nobody waits for it any more");
                self.settle(manager);
                Outcome::Abandoned
            }
        };
        flight.finish(outcome);
    }

    /// A fresh copy answers from now on.
    async fn arrived(&self, manager: &ModelManager, fresh: Resident, last: LastLoad) -> Outcome {
        let metrics = &manager.0.metrics;
        let numbers: Vec<_> = fresh.versions.iter().map(|loaded| loaded.id.version).collect();
        self.repeat_pin(&fresh);
        let parts = fresh.parts();
        let fresh = Arc::new(fresh);
        let departing = Arc::clone(&self.departing).read_owned().await;
        let old = {
            let mut control = self.control.lock();
            control.states.loaded(&numbers);
            control.failed = None;
            control.flight = None;
            control.generation = manager.next_generation();
            let story = control.story.get_or_insert_default();
            story.loads += 1;
            story.last_load = Some(last);
            self.resident.swap(Some(fresh))
        };
        metrics.loads_ok.increment(1);
        metrics.load_seconds.record(last.phases.total().as_secs_f64());
        metrics.loaded_from(last.from.name());
        for (phase, duration) in last.phases.each() {
            metrics.load_phase(phase, duration);
        }
        if old.is_none() {
            metrics.resident.increment(1.0);
        }
        tracing::info!(
            model = %self.name,
            versions = ?numbers,
            from = last.from.name(),
            ms = u64::try_from(last.phases.total().as_millis()).unwrap_or(u64::MAX),
            bytes = last.bytes,
            "model loaded"
        );
        // The old copy ends when its last request does; only an unload has to wait for that.
        if let Some(old) = old {
            let (manager, stays) = (manager.clone(), parts);
            drop(tokio::spawn(async move {
                let parts = old.parts();
                dispose(&manager, old).await;
                drop(departing);
                for part in parts.difference(&stays) {
                    manager.unload_part(part).await;
                }
            }));
        }
        Outcome::Done
    }

    /// Nothing came of a load, for a reason to be remembered.
    fn failed(&self, manager: &ModelManager, versions: &[Version], error: Error) -> Outcome {
        let metrics = &manager.0.metrics;
        let absent = error.kind() == ErrorKind::NotFound && versions.is_empty();
        if absent {
            metrics.loads_not_found.increment(1);
            tracing::debug!(model = %self.name, "no such model");
        } else {
            metrics.loads_failed.increment(1);
            tracing::warn!(model = %self.name, kind = error.kind().code(), error = %error.report(), "load failed");
        }
        let mut control = self.control.lock();
        let resident = self.resident.load().is_some();
        // Nothing is remembered of names that are not known to be models: anybody can make those up.
        let unknown = absent || (versions.is_empty() && error.kind() == ErrorKind::RepositoryFailed);
        if unknown && !resident {
            control.states = VersionStates::default();
        } else {
            control.states.failed(versions, &error.report());
            // Room may be there the next moment.
            let for_now =
                matches!(error.kind(), ErrorKind::OutOfDeviceMemory | ErrorKind::OutOfDisk) && error.is_retryable();
            control.failed = (!absent && !for_now).then(|| (Instant::now(), error.clone()));
        }
        control.flight = None;
        control.generation = manager.next_generation();
        drop(control);
        if absent && resident {
            // What is gone from the repository is gone here once its requests are answered.
            if let Some(old) = self.resident.load_full() {
                manager.unload_soon(&self.name, Departure::because(EvictionReason::Deleted).of(old.fingerprint));
            }
        }
        if absent { Outcome::Absent } else { Outcome::Failed(error) }
    }

    /// A load ended and changed nothing.
    fn settle(&self, manager: &ModelManager) {
        let mut control = self.control.lock();
        if self.resident.load().is_none() && !self.is_asleep() {
            control.states.abandoned();
        }
        control.flight = None;
        control.generation = manager.next_generation();
    }

    /// Frees the copy that answers, in the middle of a load that has no room beside it.
    pub(super) async fn drain_old(&self, manager: &ModelManager) {
        let old = {
            let mut control = self.control.lock();
            control.states.all(ModelState::Loading, "");
            control.generation = manager.next_generation();
            self.resident.swap(None)
        };
        if let Some(old) = old {
            dispose(manager, old).await;
            manager.0.metrics.resident.decrement(1.0);
        }
        drop(self.departing.write().await);
    }

    /// Carries out an unload as its leader.
    pub(super) async fn unload(&self, manager: &ModelManager, flight: &Arc<Flight>, departure: &Departure) {
        let metrics = &manager.0.metrics;
        if let Some(device) = departure.device
            && self.drop_copy(manager, device, departure).await
        {
            return self.changed(manager, flight);
        }
        let out = match self.fall_asleep(manager, departure).await {
            Slept::Asleep => return self.changed(manager, flight),
            Slept::Failed(out) => Some(out),
            Slept::Cannot => None,
        };
        let (old, was_asleep) = {
            let mut control = self.control.lock();
            control.states.all(ModelState::Unloading, "");
            control.failed = None;
            control.generation = manager.next_generation();
            let asleep = self.asleep.swap(None);
            let was_asleep = asleep.is_some();
            (out.or_else(|| self.resident.swap(None)).or(asleep), was_asleep)
        };
        let had = old.is_some();
        let mut last = None;
        if let Some(old) = old {
            let tier = if was_asleep { Tier::Host } else { Tier::Device };
            let book = match (&manager.0.loader.host, was_asleep) {
                (Some(host), true) => Some(host.book.clone()),
                _ => old.copies.first().map(|copy| copy.pool.clone()),
            };
            let entry = book.and_then(|book| book.entry(&self.name));
            let now = Instant::now();
            let (age, idle) = departure.age.unwrap_or_else(|| {
                entry.map_or_else(Default::default, |entry| {
                    (now.saturating_duration_since(entry.since), now.saturating_duration_since(entry.last_use))
                })
            });
            let parts = old.parts();
            dispose(manager, old).await;
            drop(self.departing.write().await);
            // What came with it goes with it, now that none of its requests is left.
            for part in &parts {
                manager.unload_part(part).await;
            }
            metrics.unloads.increment(1);
            metrics.unload_seconds.record(now.elapsed().as_secs_f64());
            if was_asleep { &metrics.asleep } else { &metrics.resident }.decrement(1.0);
            metrics.evicted(tier.name(), departure.reason.name(), age);
            tracing::info!(model = %self.name, from = tier.name(), reason = departure.reason.name(), "model unloaded");
            last = Some(LastEviction {
                at: SystemTime::now(),
                reason: departure.reason,
                made_room_for: departure.made_room_for.as_deref().map(str::to_owned),
                age,
                idle,
            });
        }
        {
            let mut control = self.control.lock();
            if departure.reason == EvictionReason::Deleted {
                control.states = VersionStates::default();
            } else if had || departure.reason == EvictionReason::Unload {
                control.states.all(ModelState::Unavailable, departure.text());
            }
            if let Some(last) = last {
                let story = control.story.get_or_insert_default();
                story.evictions += 1;
                story.last_eviction = Some(last);
            }
            control.flight = None;
            control.generation = manager.next_generation();
        }
        flight.finish(Outcome::Done);
    }
}

/// Frees all versions of a model that is out of its slot, once their last handles are gone; then its memory is given
/// back, to the system and in the book.
async fn dispose(manager: &ModelManager, resident: Arc<Resident>) {
    for version in resident.versions() {
        Arc::clone(version).dispose(&manager.0.loader).await;
    }
    let bytes = resident.booked();
    let trimmer = Arc::clone(&manager.0.trimmer);
    let shares: Vec<_> = resident.copies.iter().filter_map(|copy| copy.take_share()).collect();
    // It is freed; that the system has it as well is for the sake of others on the machine.
    let freed = move || {
        drop(shares);
        trimmer.trim(bytes);
    };
    let _freed = manager.0.loader.loading.spawn_blocking(freed).await;
    // The page of metrics or of residency may look at it yet: the bytes come back all the same.
    resident.give_back();
}

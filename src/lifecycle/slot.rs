//! One model's place: what of it is in memory, what is being done to it, what its versions' states are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{RwLock, Semaphore};

use super::flight::{Flight, Operation, Outcome, Waiter};
use super::handle::{ModelHandle, Resident};
use super::loader::{LoadError, Loader};
use super::state::{ModelState, VersionStates, VersionStatus};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::Version;
use crate::metrics::prometheus::ServerMetrics;
use crate::model_config::ModelConfig;

/// A model's place.
pub(super) struct Slot {
    pub(super) name: Arc<str>,
    resident: ArcSwapOption<Resident>,
    control: Mutex<Control>,
    /// Held for reading while a copy that a reload replaced is being freed; an unload waits for them all.
    departing: Arc<RwLock<()>>,
}

#[derive(Default)]
struct Control {
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
        Self { name, resident: ArcSwapOption::empty(), control: Mutex::default(), departing: Arc::default() }
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

    pub(super) fn states(&self) -> Vec<VersionStatus> {
        self.control.lock().states.rows().to_vec()
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

    /// Joins the operation under way, or becomes the leader of a new one.
    pub(super) fn enter(&self, operation: Operation) -> Entered {
        Self::enter_locked(self.control.lock(), operation, Duration::ZERO)
    }

    fn enter_locked(mut control: MutexGuard<'_, Control>, operation: Operation, remember: Duration) -> Entered {
        if control.forgotten {
            return Entered::Forgotten;
        }
        if let Some(flight) = &control.flight {
            return Entered::Wait(flight.join());
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
    pub(super) fn guard(self: &Arc<Self>, flight: &Arc<Flight>) -> FlightGuard {
        FlightGuard { slot: Arc::clone(self), flight: Arc::clone(flight) }
    }

    /// Closes the slot if nothing would be lost with it, and says whether it is closed: whoever holds it yet cannot load a
    /// model into a slot that nobody finds.
    pub(super) fn forget_if_empty(&self) -> bool {
        let mut control = self.control.lock();
        control.forgotten =
            control.flight.is_none() && control.states.rows().is_empty() && self.resident.load().is_none();
        control.forgotten
    }

    /// Carries out a load as its leader. The slot may turn out to hold nothing worth knowing.
    pub(super) async fn load(
        &self,
        flight: &Arc<Flight>,
        loader: &Arc<Loader>,
        config: Option<ModelConfig>,
        permits: &Semaphore,
        metrics: &ServerMetrics,
    ) {
        let began = Instant::now();
        // A reload shows as Ready: the old copy answers on.
        if self.resident.load().is_none() {
            self.control.lock().states.loading();
        }
        let wanted = || flight.is_wanted();
        flight.begin();
        let loaded = loader.load(&self.name, config, &wanted, permits).await;
        match loaded {
            Ok(versions) => {
                let numbers: Vec<_> = versions.iter().map(|loaded| loaded.id.version).collect();
                let fresh = Arc::new(Resident { versions });
                let departing = Arc::clone(&self.departing).read_owned().await;
                let old = {
                    let mut control = self.control.lock();
                    control.states.loaded(&numbers);
                    control.failed = None;
                    control.flight = None;
                    self.resident.swap(Some(fresh))
                };
                metrics.loads_ok.increment(1);
                metrics.load_seconds.record(began.elapsed().as_secs_f64());
                if old.is_none() {
                    metrics.resident.increment(1.0);
                }
                tracing::info!(model = %self.name, versions = ?numbers, ms = millis(began), "model loaded");
                flight.finish(Outcome::Done);
                // The old copy ends when its last request does; only an unload has to wait for that.
                if let Some(old) = old {
                    drop(tokio::spawn(async move {
                        dispose(&old).await;
                        drop(departing);
                    }));
                }
            }
            Err(LoadError::Failed { versions, error }) => {
                let absent = error.kind() == ErrorKind::NotFound && versions.is_empty();
                if absent {
                    metrics.loads_not_found.increment(1);
                    tracing::debug!(model = %self.name, "no such model");
                } else {
                    metrics.loads_failed.increment(1);
                    tracing::warn!(model = %self.name, kind = error.kind().code(), error = %error.report(), "load failed");
                }
                {
                    let mut control = self.control.lock();
                    let resident = self.resident.load().is_some();
                    // Nothing is remembered of names that are not known to be models: anybody can make those up.
                    let unknown = absent || (versions.is_empty() && error.kind() == ErrorKind::RepositoryFailed);
                    if unknown && !resident {
                        control.states = VersionStates::default();
                    } else {
                        control.states.failed(&versions, &error.report());
                        control.failed = (!absent).then(|| (Instant::now(), error.clone()));
                    }
                    control.flight = None;
                }
                flight.finish(if absent { Outcome::Absent } else { Outcome::Failed(error) });
            }
            Err(LoadError::Abandoned) => {
                metrics.loads_cancelled.increment(1);
                tracing::info!(model = %self.name, "load abandoned: nobody waits for it any more");
                let mut control = self.control.lock();
                if self.resident.load().is_none() {
                    control.states.abandoned();
                }
                control.flight = None;
                drop(control);
                flight.finish(Outcome::Abandoned);
            }
        }
    }

    /// Carries out an unload as its leader.
    pub(super) async fn unload(&self, flight: &Arc<Flight>, metrics: &ServerMetrics) {
        let old = {
            let mut control = self.control.lock();
            control.states.all(ModelState::Unloading, "");
            control.failed = None;
            self.resident.swap(None)
        };
        if let Some(old) = &old {
            dispose(old).await;
            drop(self.departing.write().await);
            metrics.unloads.increment(1);
            metrics.resident.decrement(1.0);
            tracing::info!(model = %self.name, "model unloaded");
        }
        {
            let mut control = self.control.lock();
            control.states.all(ModelState::Unavailable, "unloaded");
            control.flight = None;
        }
        flight.finish(Outcome::Done);
    }
}

/// Ends a flight that its task left open, by a panic: nobody waits for ever, and the model can be loaded again.
pub(super) struct FlightGuard {
    slot: Arc<Slot>,
    flight: Arc<Flight>,
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        if self.flight.is_finished() {
            return;
        }
        let text = format!("an operation on model '{}' broke off", self.slot.name);
        {
            let mut control = self.slot.control.lock();
            if self.slot.resident.load().is_none() {
                control.states.all(ModelState::Unavailable, &text);
            }
            control.flight = None;
        }
        self.flight.finish(Outcome::Failed(Error::internal(text)));
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// Frees all versions of a model that is out of its slot, once their last handles are gone.
async fn dispose(resident: &Resident) {
    for version in resident.versions() {
        Arc::clone(version).dispose().await;
    }
}

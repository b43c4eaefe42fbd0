//! One model's place: what of it is in memory, what is being done to it, what its versions' states are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;

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
}

#[derive(Default)]
struct Control {
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
}

impl Slot {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self { name, resident: ArcSwapOption::empty(), control: Mutex::default() }
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

    /// Joins the operation under way, or becomes the leader of a new one.
    pub(super) fn enter(&self, operation: Operation, remember: Duration) -> Entered {
        let mut control = self.control.lock();
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

    /// Whether nothing would be lost with this slot.
    pub(super) fn is_forgettable(&self) -> bool {
        let control = self.control.lock();
        control.flight.is_none() && control.states.rows().is_empty() && self.resident.load().is_none()
    }

    /// Carries out a load as its leader. `forget` is called if the model turns out not to exist.
    pub(super) async fn load(
        &self,
        flight: &Arc<Flight>,
        loader: &Loader,
        config: Option<ModelConfig>,
        metrics: &ServerMetrics,
        forget: impl FnOnce(),
    ) {
        let began = Instant::now();
        // A reload shows as Ready: the old copy answers on.
        if self.resident.load().is_none() {
            self.control.lock().states.loading();
        }
        let wanted = || flight.is_wanted();
        let loaded = if wanted() { loader.load(&self.name, config, &wanted).await } else { Err(LoadError::Abandoned) };
        match loaded {
            Ok(versions) => {
                let numbers: Vec<_> = versions.iter().map(|loaded| loaded.id.version).collect();
                let fresh = Arc::new(Resident { versions });
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
                tracing::info!(model = %self.name, versions = ?numbers, ms = began.elapsed().as_millis(), "model loaded");
                flight.finish(Outcome::Done);
                // The old copy ends when its last request does; nobody has to wait for that.
                if let Some(old) = old {
                    dispose(&old).await;
                }
            }
            Err(LoadError::Failed { versions, error }) => {
                let absent = error.kind() == ErrorKind::NotFound && versions.is_empty();
                let error = if absent {
                    Error::not_found(format!("Request for unknown model: '{}' is not found", self.name))
                } else {
                    error.wrap(format!("model '{}' cannot be loaded", self.name))
                };
                metrics.loads_failed.increment(1);
                tracing::warn!(model = %self.name, kind = error.kind().code(), error = %error.report(), "load failed");
                {
                    let mut control = self.control.lock();
                    if absent {
                        control.states = VersionStates::default();
                        if self.resident.load().is_some() {
                            control.states.failed(&[], &error.report());
                        }
                    } else {
                        control.states.failed(&versions, &error.report());
                        control.failed = Some((Instant::now(), error.clone()));
                    }
                    control.flight = None;
                }
                if absent {
                    forget();
                }
                flight.finish(Outcome::Failed(error));
            }
            Err(LoadError::Abandoned) => {
                metrics.loads_cancelled.increment(1);
                tracing::info!(model = %self.name, "load abandoned: nobody waits for it any more");
                let mut control = self.control.lock();
                if self.resident.load().is_none() {
                    control.states.all(ModelState::Unavailable, "load abandoned");
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

/// Frees all versions of a model that is out of its slot, once their last handles are gone.
async fn dispose(resident: &Resident) {
    for version in resident.versions() {
        Arc::clone(version).dispose().await;
    }
}

//! A handle for a request: at once where the model is in memory, else as leader or waiter of its load.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::flight::Outcome;
use super::handle::ModelHandle;
use super::residency::{EvictionReason, Tier};
use super::slot::Entered;
use super::{ModelManager, Name, unknown};
use crate::config::ModelControl;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{Deadline, Version};
use crate::repository::check_name;

/// Who asks for a model, and so whether it may be loaded where models are loaded explicitly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A request: it is not.
    Request,
    /// The load of an ensemble, which loads its steps.
    Composing,
    /// A request to an ensemble: its step is, unless somebody unloaded it.
    Step,
}

impl ModelManager {
    /// A handle on the model, which is loaded first if it must be and may be. Waits no longer than the deadline.
    ///
    /// # Errors
    /// `NotFound` for a model that is not there (or not loaded, where models are loaded explicitly), the load's error,
    /// or `DeadlineExceeded`.
    pub async fn acquire(
        &self,
        name: &str,
        version: Option<Version>,
        deadline: Option<Deadline>,
    ) -> Result<ModelHandle> {
        self.acquire_for(name, version, deadline, deadline).await
    }

    /// The same for somebody who wants the model by `wanted`, and whose load goes on until `deadline`.
    ///
    /// # Errors
    /// As [`ModelManager::acquire`].
    pub async fn acquire_for(
        &self,
        name: &str,
        version: Option<Version>,
        wanted: Option<Deadline>,
        deadline: Option<Deadline>,
    ) -> Result<ModelHandle> {
        if let Some(handle) = self.resident(name, version)? {
            return Ok(handle);
        }
        check_name(name)?;
        let waiting = self.acquire_absent(Asker::Request, name, version, wanted.map(|wanted| wanted.instant()));
        self.by(name, deadline.map(Deadline::instant), waiting).await
    }

    /// Waits for a model, not longer than until then.
    async fn by(
        &self,
        name: &str,
        deadline: Option<Instant>,
        waiting: impl Future<Output = Result<ModelHandle>>,
    ) -> Result<ModelHandle> {
        let Some(deadline) = deadline else { return waiting.await };
        tokio::time::timeout_at(deadline.into(), waiting).await.unwrap_or_else(|_elapsed| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("model '{name}' was not loaded before the request's deadline"),
            ))
        })
    }

    /// A handle on the model of a step, for a request to an ensemble in memory.
    ///
    /// # Errors
    /// As [`ModelManager::acquire`].
    pub async fn acquire_step(
        &self,
        name: &Name,
        version: Option<Version>,
        deadline: Option<Deadline>,
    ) -> Result<ModelHandle> {
        self.acquire_as(Asker::Step, name, version, deadline.map(Deadline::instant)).await
    }

    pub(super) async fn acquire_as(
        &self,
        asker: Asker,
        name: &str,
        version: Option<Version>,
        until: Option<Instant>,
    ) -> Result<ModelHandle> {
        match self.resident(name, version)? {
            Some(handle) => Ok(handle),
            None => self.by(name, until, self.acquire_absent(asker, name, version, until)).await,
        }
    }

    /// Whether a model may be loaded by whoever asks.
    fn may_load(&self, asker: Asker, name: &str) -> bool {
        if self.0.options.control != ModelControl::Explicit {
            return true;
        }
        match asker {
            Asker::Request => false,
            Asker::Composing => true,
            Asker::Step => {
                let slot = self.0.models.load().get(name).cloned();
                let left = slot.and_then(|slot| slot.story().last_eviction);
                left.is_some_and(|left| left.reason != EvictionReason::Unload)
            }
        }
    }

    async fn acquire_absent(
        &self,
        asker: Asker,
        name: &str,
        version: Option<Version>,
        until: Option<Instant>,
    ) -> Result<ModelHandle> {
        let began = Instant::now();
        let _waiting = self.0.metrics.load_waits.enter();
        let explicit = !self.may_load(asker, name);
        loop {
            if explicit && !self.0.models.load().contains_key(name) {
                return Err(unknown(name, version));
            }
            let slot = self.slot(name);
            // What sleeps is loaded, whoever asks.
            let sleeps = slot.is_asleep();
            let explicit = explicit && !sleeps;
            let waiter = match slot.enter_if_absent(self.0.options.load_retry) {
                Entered::Wait(waiter) => {
                    waiter.flight().wanted_by(until);
                    waiter
                }
                Entered::Lead(waiter) => {
                    let refused = if explicit { Some(unknown(name, version)) } else { self.check_open().err() };
                    if let Some(error) = refused {
                        slot.leave_unstarted();
                        self.forget_if_empty(&slot);
                        return Err(error);
                    }
                    waiter.flight().wanted_by(until);
                    self.start_load(&slot, waiter.flight(), None);
                    waiter
                }
                // Whoever asked for the load has its error; here the model is not loaded.
                Entered::FailedLately(_) if explicit => return Err(unknown(name, version)),
                Entered::FailedLately(error) => return Err(unavailable(name, error)),
                Entered::Ready => match slot.pin(version)? {
                    Some(handle) => return Ok(handle),
                    None => continue,
                },
                Entered::Forgotten => {
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            match waiter.outcome().await? {
                Outcome::Failed(_) if explicit => return Err(unknown(name, version)),
                Outcome::Failed(error) => return Err(unavailable(name, error)),
                Outcome::Absent => return Err(unknown(name, version)),
                Outcome::Done | Outcome::OnDisk | Outcome::Abandoned => {}
            }
            if let Some(handle) = slot.pin(version)? {
                let waited = began.elapsed();
                self.0.waited.fetch_add(1, Ordering::Relaxed);
                self.0.metrics.lookups_miss.increment(1);
                self.0.metrics.load_wait_seconds.record(waited.as_secs_f64());
                let from = match sleeps {
                    true => Tier::Host,
                    false => slot.story().last_load.map_or(Tier::Disk, |load| load.from),
                };
                return Ok(handle.after(from, waited));
            }
        }
    }
}

/// A load's error as it meets a request for inference: what is wrong with a model is no fault of its caller.
fn unavailable(name: &str, error: Error) -> Error {
    let text = format!("model '{name}' cannot be loaded");
    match error.kind() {
        ErrorKind::InvalidArgument | ErrorKind::TooLarge | ErrorKind::NotFound | ErrorKind::AlreadyLoaded => {
            Error::not_ready(text).with_source(error).with_retryable(false)
        }
        // Away for now: what is in memory or on disk goes on answering.
        ErrorKind::RepositoryFailed if error.is_retryable() => {
            Error::not_ready(text).with_source(error).with_retryable(true)
        }
        _ => error.wrap(text),
    }
}

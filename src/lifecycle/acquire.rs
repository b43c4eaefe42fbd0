//! A handle for a request: at once where the model is in memory, else as leader or waiter of its load.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::flight::Outcome;
use super::handle::ModelHandle;
use super::residency::Tier;
use super::slot::Entered;
use super::{ModelManager, unknown};
use crate::config::ModelControl;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::{Deadline, Version};
use crate::repository::check_name;

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
        let waiting = self.acquire_absent(name, version, wanted);
        match deadline {
            None => waiting.await,
            Some(deadline) => {
                tokio::time::timeout_at(deadline.instant().into(), waiting).await.unwrap_or_else(|_elapsed| {
                    Err(Error::new(
                        ErrorKind::DeadlineExceeded,
                        format!("model '{name}' was not loaded before the request's deadline"),
                    ))
                })
            }
        }
    }

    async fn acquire_absent(
        &self,
        name: &str,
        version: Option<Version>,
        wanted: Option<Deadline>,
    ) -> Result<ModelHandle> {
        check_name(name)?;
        let began = Instant::now();
        let _waiting = self.0.metrics.load_waits.enter();
        let until = wanted.map(|wanted| wanted.instant());
        let explicit = self.0.options.control == ModelControl::Explicit;
        loop {
            if explicit && !self.0.models.load().contains_key(name) {
                return Err(unknown(name, version));
            }
            let slot = self.slot(name);
            let waiter = match slot.enter_if_absent(self.0.options.load_retry) {
                Entered::Wait(waiter) => {
                    waiter.flight().wanted_by(until);
                    waiter
                }
                Entered::Lead(waiter) => {
                    if explicit {
                        slot.leave_unstarted();
                        self.forget_if_empty(&slot);
                        return Err(unknown(name, version));
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
                let from = slot.story().last_load.map_or(Tier::Disk, |load| load.from);
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

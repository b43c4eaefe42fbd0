//! What is done without being asked: uses are counted, bytes measured again, models dismissed, the repository polled.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream;
use tokio_util::task::AbortOnDropHandle;

use super::flight::Operation;
use super::residency::EvictionReason;
use super::slot::{Departure, Entered};
use super::{ModelManager, Name, parts};
use crate::config::Eviction;
use crate::error::{ErrorKind, Result};
use crate::inference::DeviceId;
use crate::repository::check_name;

/// How often uses are counted and bytes measured again.
const TICK: Duration = Duration::from_secs(1);

/// Ensembles that stay in memory for nothing but having been asked: some 10 KB each.
const MOST_ENSEMBLES: usize = 4_096;

/// Models asked for at a time by a poll.
const POLLS: usize = 4;

impl ModelManager {
    /// Keeps house until the future is dropped.
    pub async fn keep_house(&self) {
        let Some(mut dismissals) = self.0.dismissals.lock().take() else { return };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let poll = self.0.options.repository_poll;
        let mut poll_at = poll.map(|period| tokio::time::Instant::now() + period);
        // In a task of its own: a repository that hangs holds up nothing else. Ends with the house.
        let mut polling: Option<AbortOnDropHandle<()>> = None;
        // Those not to be kept that a sequence still counts on, which may end without a word.
        let mut held = BTreeSet::new();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    self.count();
                    held.retain(|name| !self.dismiss(name));
                    self.spread(Instant::now());
                    let is_idle = polling.as_ref().is_none_or(|task| task.is_finished());
                    if is_idle && poll_at.is_some_and(|at| at <= tokio::time::Instant::now()) {
                        let manager = self.clone();
                        polling = Some(AbortOnDropHandle::new(tokio::spawn(async move { manager.poll().await })));
                        poll_at = poll.map(|period| tokio::time::Instant::now() + period);
                    }
                }
                name = dismissals.recv() => {
                    if let Some(name) = name
                        && !self.dismiss(&name)
                    {
                        held.insert(name);
                    }
                }
            }
        }
    }

    /// Unloads a model that is not to be kept and fell idle, unless a sequence counts on it. Says whether that is settled.
    fn dismiss(&self, name: &Name) -> bool {
        if self.resident_model(name).is_some_and(|resident| resident.has_sequences()) {
            return false;
        }
        self.unload_soon(name, Departure::because(EvictionReason::Transient));
        true
    }

    /// Counts uses: for the policies, and as hits.
    pub fn count_uses(&self) {
        let now = Instant::now();
        let pools = || self.0.loader.devices.iter().map(|place| &place.pool).chain([&self.0.ensembles]);
        let hits: u64 = pools().map(|pool| pool.take_uses(now)).sum();
        if hits > 0 {
            self.0.used.store(true, Ordering::Release);
        }
        for (pool, (name, touches)) in
            pools().flat_map(|pool| pool.take_used().into_iter().map(move |used| (pool, used)))
        {
            if let (Some(host), DeviceId::Gpu(_)) = (&self.0.loader.host, pool.device()) {
                host.book.touch(&name, touches, now);
            }
            // What a part was loaded from is its archive.
            let (owner, _) = parts::split(&name);
            for _ in 0..touches {
                self.0.loader.files.touch(owner);
            }
            // Uses are counted on one device, and its other copies are as worth keeping.
            if let Some(resident) = self.resident_model(&name).filter(|resident| resident.copies.len() > 1) {
                for copy in resident.copies.iter().filter(|copy| copy.device() != pool.device()) {
                    copy.pool.touch(&name, touches, now);
                }
            }
        }
        let hits = hits.saturating_sub(self.0.waited.swap(0, Ordering::Relaxed));
        self.0.metrics.lookups_hit.increment(hits);
    }

    /// Counts uses, and books what the models hold by now where there were any.
    fn count(&self) {
        self.count_uses();
        self.leave_lost();
        for place in &self.0.loader.devices {
            self.book_scratch(place.device());
            self.relieve(&place.pool);
        }
        self.relieve_ensembles();
        if !self.0.used.swap(false, Ordering::AcqRel) {
            self.give_back_unused();
            return;
        }
        for slot in self.0.models.load().values() {
            let Some(resident) = slot.resident() else { continue };
            for copy in &resident.copies {
                let bytes = copy.bytes_now();
                // Small changes are not worth a line in the book.
                if bytes.abs_diff(copy.booked()) > copy.booked() / 64
                    && let Err(error) = self.correct(&slot.name, copy, bytes)
                {
                    tracing::warn!(model = %slot.name, error = %error.report(), "over the memory limit, and nobody may leave now");
                }
            }
        }
    }

    /// Unloads the ensembles that were not asked for the longest where there are very many: they hold little, not nothing.
    fn relieve_ensembles(&self) {
        let busy = |name: &Name| {
            self.0.options.eviction == Eviction::External || self.is_busy(name, self.0.ensembles.device())
        };
        let book = self.0.ensembles.book(Instant::now(), &busy);
        if let Some(more @ 1..) = book.models.checked_sub(MOST_ENSEMBLES) {
            for name in self.0.ensembles.line(Instant::now(), &busy).into_iter().take(more) {
                self.unload_soon(&name, Departure::because(EvictionReason::Transient));
            }
        }
    }

    /// Compares every model in memory with the repository: changed ones are loaded anew, deleted ones unloaded.
    async fn poll(&self) {
        let names: Vec<Name> = {
            let models = self.0.models.load();
            models
                .iter()
                .filter(|(name, slot)| slot.resident_or_asleep().is_some() && !parts::is_part(name))
                .map(|(name, _)| Arc::clone(name))
                .collect()
        };
        stream::iter(names)
            .for_each_concurrent(POLLS, |name| async move {
                // A load that finds nothing new changes nothing; the load itself says how it ended.
                if let Err(error) = self.refresh(&name).await
                    && error.kind() != ErrorKind::NotFound
                {
                    tracing::debug!(model = %name, error = %error.report(), "poll failed");
                }
            })
            .await;
    }

    /// Looks whether the repository has something else than what is in memory.
    async fn refresh(&self, name: &Name) -> Result<()> {
        let resident = self.0.models.load().get(name).and_then(|slot| slot.resident_or_asleep());
        let Some(resident) = resident else { return Ok(()) };
        match self.0.loader.repository.resolve(name).await {
            Ok(manifest) => {
                let content = manifest.fingerprint();
                if content == resident.fingerprint || resident.given_config {
                    return Ok(());
                }
                // A content that could not be loaded is not fetched at every poll.
                let slot = self.slot(name);
                if slot.is_polled(content) { Ok(()) } else { self.load(name, None).await }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.unload_because(name, Departure::because(EvictionReason::Deleted).of(resident.fingerprint)).await?;
                self.0.loader.files.forget(name);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Brings a model to this machine's disk, and to memory if there is room that nobody else has. Returns when that is
    /// done.
    ///
    /// # Errors
    /// The load's error.
    pub async fn prefetch(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.0.loader.repository.expect(name);
        self.prefetch_known(name).await
    }

    /// The same for what is known to be a name.
    pub(super) async fn prefetch_known(&self, name: &str) -> Result<()> {
        loop {
            if self.resident_model(name).is_some() || self.is_asleep(name, None) {
                return Ok(());
            }
            let slot = self.slot(name);
            let waiter = match slot.enter(Operation::Load) {
                Entered::Lead(waiter) => {
                    self.start_load(&slot, waiter.flight(), None);
                    waiter
                }
                Entered::Wait(waiter) => waiter,
                Entered::FailedLately(error) => return Err(error),
                Entered::Ready => return Ok(()),
                Entered::Forgotten => {
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let operation = waiter.flight().operation;
            match waiter.outcome().await? {
                super::Outcome::Failed(error) => return Err(error.wrap(format!("model '{name}' cannot be fetched"))),
                super::Outcome::Absent => return Err(super::unknown(name, None)),
                super::Outcome::OnDisk => return Ok(()),
                super::Outcome::Done if operation == Operation::Load => return Ok(()),
                super::Outcome::Done | super::Outcome::Abandoned => {}
            }
        }
    }

    /// Loads a model and keeps it for good.
    ///
    /// # Errors
    /// The load's error; then it is not pinned.
    pub async fn pin(&self, name: &str) -> Result<()> {
        loop {
            if self.resident_model(name).is_none()
                && let Err(error) = self.load(name, None).await
            {
                self.unpin(name)?;
                return Err(error);
            }
            let slot = self.slot(name);
            slot.set_pinned(true, self);
            match slot.resident() {
                Some(resident) if resident.copies.iter().any(|copy| !copy.is_leaving(&slot.name)) => return Ok(()),
                // Chosen to leave before it was pinned: it leaves, and comes back pinned.
                _ => self.unload_because(name, Departure::because(EvictionReason::Room)).await?,
            }
        }
    }

    /// Lets a model be evicted again.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no name.
    pub fn unpin(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let slot = self.0.models.load().get(name).cloned();
        if let Some(slot) = slot {
            slot.set_pinned(false, self);
            self.forget_if_empty(&slot);
        }
        Ok(())
    }
}

//! What this instance tells those that choose between instances: which models are in memory or on their way there, how
//! busy their copies are, and whether more are welcome. Small, and smaller yet to whoever has the one before.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::handle::{LoadedVersion, Resident};
use super::slot::Slot;
use super::state::ModelState;
use super::{ModelManager, parts};

/// One model of a digest.
#[derive(Clone, Debug, PartialEq)]
pub struct DigestRow {
    /// Its key.
    pub name: Arc<str>,
    /// [`ModelState::Ready`], [`ModelState::Loading`], or [`ModelState::Unavailable`] for what is not in memory any more.
    pub state: ModelState,
    /// Requests being answered, waiting ones included.
    pub in_use: usize,
    /// Requests that its instances can run at once; at least 1.
    pub parallel: u64,
    /// How long its last load took, in seconds.
    pub load_seconds: Option<f64>,
    /// Requests it answered since it was loaded.
    pub uses: u64,
}

/// The models of this instance at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Digest {
    /// What to ask with for what changed since.
    pub generation: u64,
    /// Whether what is not listed is gone. Otherwise what is not listed is as it was, and idle.
    pub complete: bool,
    /// Loads that may run at once.
    pub load_places: usize,
    /// Loads that run or wait for a place.
    pub loads: usize,
    /// Models that may run at once, on all devices together.
    pub executors: usize,
    /// The models, in no order.
    pub models: Vec<DigestRow>,
}

impl ModelManager {
    /// What is in memory or on its way there; with `since`, what changed after that generation, and what is in use.
    #[must_use]
    pub fn digest(&self, since: Option<u64>) -> Digest {
        // Before the rows: what changes while they are read is told again next time.
        let generation = self.0.generation.load(Ordering::Acquire);
        let vanished = self.0.vanished.load(Ordering::Acquire);
        let since = since.filter(|since| (vanished..=generation).contains(since));
        let models = self.0.models.load_full();
        let own = models.iter().filter(|(name, _)| !parts::is_part(name));
        let rows = own.filter_map(|(name, slot)| row(name, slot, since)).collect();
        Digest {
            generation,
            complete: since.is_none(),
            load_places: self.load_places(),
            loads: self.0.gate.running() + self.loads_waiting(),
            executors: self.0.loader.devices.iter().map(|place| place.threads).sum(),
            models: rows,
        }
    }
}

/// A model's row, if it belongs into the digest.
fn row(name: &Arc<str>, slot: &Slot, since: Option<u64>) -> Option<DigestRow> {
    // Before what it is the generation of: who changes the slot sets both under its lock, and a change that comes later has a
    // later generation than the digest.
    let generation = slot.generation();
    let resident = slot.resident();
    let in_use = resident.as_ref().map_or(0, |resident| resident.in_use());
    if since.is_some_and(|since| generation <= since && in_use == 0) {
        return None;
    }
    let is_loading = || slot.states().iter().any(|row| row.state == ModelState::Loading);
    let state = match &resident {
        Some(_) => ModelState::Ready,
        None if is_loading() => ModelState::Loading,
        None if since.is_some() => ModelState::Unavailable,
        None => return None,
    };
    let versions = || resident.iter().flat_map(|resident| resident.versions().iter());
    Some(DigestRow {
        name: Arc::clone(name),
        state,
        in_use,
        parallel: resident.as_ref().map_or(1, |resident| parallel(resident)),
        load_seconds: slot.story().last_load.map(|load| load.phases.total().as_secs_f64()),
        uses: versions().map(|version| version.statistics.success.count()).sum(),
    })
}

/// Requests that a model's instances can run at once: each a batch.
fn parallel(resident: &Resident) -> u64 {
    let instances: usize = resident.copies.iter().map(|copy| copy.instances()).sum();
    let batch = |version: &Arc<LoadedVersion>| match version.config.dynamic_batching.is_some() {
        true => version.max_batch_size.max(1),
        false => 1,
    };
    let batch = resident.versions().last().map_or(1, batch);
    batch.saturating_mul(instances.max(1) as u64)
}

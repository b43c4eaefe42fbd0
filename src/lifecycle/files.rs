//! A model's files on this machine: where they lie in the repository's own folder, or fetched into the disk cache.

use std::path::PathBuf;
use std::time::Instant;

use super::Name;
use super::loader::{LoadError, Loader};
use super::need::Past;
use super::residency::{FetchProgress, Phases, Tier, TierBook};
use crate::error::{Error, Result};
use crate::inference::DeviceId;
use crate::model_config::ModelConfig;
use crate::repository::manifest::Fingerprint;
use crate::repository::tree::ModelTree;

/// Where files are kept.
#[derive(Default)]
pub struct Files {}

/// What the disk holds of a model.
pub(super) struct OnDisk {
    pub(super) bytes: u64,
    pub(super) fingerprint: Fingerprint,
    /// Whether all of it is there.
    pub(super) complete: bool,
    pub(super) fetch: Option<FetchProgress>,
}

impl Files {
    /// Names of models that are on disk, those after `after` alone, in no order.
    pub(super) fn names_after(&self, _after: Option<&str>) -> Vec<String> {
        Vec::new()
    }

    pub(super) fn on_disk(&self, _name: &str) -> Option<OnDisk> {
        None
    }

    pub(super) fn book(&self) -> Option<TierBook> {
        None
    }
}

/// Files that are on this machine.
pub(super) struct Found {
    pub(super) tree: ModelTree,
    pub(super) fingerprint: Fingerprint,
    /// Where they were when they were asked for.
    pub(super) from: Tier,
}

/// Keeps files where a model in memory reads them.
pub(super) struct KeptFiles {}

impl Loader {
    /// The model's files, fetched where they must be; `None` where the content is what `unchanged` knows.
    pub(super) async fn find(
        &self,
        name: &Name,
        given: Option<&ModelConfig>,
        phases: &mut Phases,
        unchanged: &(dyn Fn(Fingerprint) -> bool + Sync),
    ) -> Result<Option<Found>, LoadError> {
        let began = Instant::now();
        let manifest = self.repository.resolve(name).await?;
        phases.resolve = began.elapsed();
        let fingerprint = manifest.fingerprint();
        if unchanged(fingerprint) {
            return Ok(None);
        }
        let _ = given;
        let read = self.loading.spawn_blocking(move || ModelTree::of(&manifest)).await;
        let tree = read
            .unwrap_or_else(|panic| Err(Error::internal("reading the model's folder panicked").with_source(panic)))?;
        Ok(Some(Found { tree, fingerprint, from: Tier::Disk }))
    }
}

impl Found {
    /// Where a backend may keep what it made of them.
    pub(super) fn derived(&self) -> Option<PathBuf> {
        None
    }

    /// What an earlier load of them came to, as noted beside them.
    pub(super) fn past(&self, _device: DeviceId) -> Option<Past> {
        None
    }

    /// Notes beside them what a load came to.
    pub(super) fn remember(&self, _device: DeviceId, _past: Past) {}

    /// Keeps them as long as the model lives, where it reads them.
    pub(super) fn keep(self, _keeps_files: bool) -> Option<KeptFiles> {
        None
    }
}

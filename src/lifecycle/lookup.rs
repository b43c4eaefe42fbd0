//! What is in memory, and what the repository has: looks that change nothing.

use std::collections::HashSet;
use std::sync::Arc;

use super::handle::Resident;
use super::slot::Slot;
use super::{IndexEntry, ModelManager, Name, parts};
use crate::error::Result;
use crate::inference::Version;

impl ModelManager {
    /// The versions of one model that are in memory, if any is.
    #[must_use]
    pub fn resident_model(&self, name: &str) -> Option<Arc<Resident>> {
        self.0.models.load().get(name).and_then(|slot| slot.resident())
    }

    /// The versions of one model that are in memory, or sleep.
    #[must_use]
    pub fn resident_or_asleep(&self, name: &str) -> Option<Arc<Resident>> {
        self.0.models.load().get(name).and_then(|slot| slot.resident_or_asleep())
    }

    /// Every model in memory, those that sleep included.
    #[must_use]
    pub fn all_resident(&self) -> Vec<Arc<Resident>> {
        self.0.models.load().values().filter_map(|slot| slot.resident_or_asleep()).collect()
    }

    /// Whether a version of a model sleeps, the latest where none is named: a request is answered without a load.
    #[must_use]
    pub fn is_asleep(&self, name: &str, version: Option<Version>) -> bool {
        let asleep = self.0.models.load().get(name).and_then(|slot| slot.asleep());
        let has = |resident: Arc<Resident>| {
            version.is_none_or(|version| resident.versions.iter().any(|loaded| loaded.id.version == version))
        };
        asleep.is_some_and(has)
    }

    /// The names of every model in memory, those that sleep included, in no order; without those that came with another.
    #[must_use]
    pub fn resident_names(&self) -> Vec<Name> {
        let models = self.0.models.load();
        let is_here = |slot: &Slot| slot.is_resident() || slot.is_asleep();
        let own = models.iter().filter(|(name, slot)| is_here(slot) && !parts::is_part(name));
        own.map(|(name, _)| Arc::clone(name)).collect()
    }

    /// The repository's models with the states of those that were asked for. Reads the repository.
    ///
    /// # Errors
    /// `RepositoryFailed` if it cannot be read.
    pub async fn index(&self) -> Result<Vec<IndexEntry>> {
        let listed = self.0.loader.repository.list().await?;
        let models = self.0.models.load_full();
        let mut entries: Vec<_> = listed
            .into_iter()
            .map(|name| {
                let versions = models.get(name.as_str()).map(|slot| slot.states()).unwrap_or_default();
                IndexEntry { name, versions }
            })
            .collect();
        let listed: HashSet<String> = entries.iter().map(|entry| entry.name.clone()).collect();
        let is_own = |name: &str| !listed.contains(name) && !parts::is_part(name);
        for (name, slot) in models.iter().filter(|(name, _)| is_own(name)) {
            let versions = slot.states();
            if !versions.is_empty() {
                entries.push(IndexEntry { name: name.to_string(), versions });
            }
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    /// The names of the repository's models.
    ///
    /// # Errors
    /// `RepositoryFailed` if it cannot be read.
    pub async fn names(&self) -> Result<Vec<String>> {
        self.0.loader.repository.list().await
    }
}

//! A model's files on this machine: where they lie in the repository's own folder, or fetched into the disk cache.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::OnceCell;

use super::flight::Flight;
use super::gate::LoadGate;
use super::loader::{LoadError, Loader, panicked};
use super::need::Past;
use super::plan::wanted_versions;
use super::residency::{FetchProgress, Phases, Tier, TierBook};
use super::{Name, parts};
use crate::cache::disk::{
    ChooseVersions, DiskCache, DiskEntryView, DiskEvents, DiskHandle, EnsureError, FetchEnd, LoadRecord,
};
use crate::cache::table::Stage;
use crate::error::{Error, ErrorKind, Result};
use crate::inference::DeviceId;
use crate::metrics::prometheus::ServerMetrics;
use crate::model_config::{ModelConfig, UnknownFields};
use crate::repository::manifest::{Fingerprint, Form, ModelManifest};
use crate::repository::tree::ModelTree;

/// Opens the disk cache, when it is first needed. Blocking.
pub type OpenDisk = dyn Fn() -> Result<DiskCache> + Send + Sync;

/// How often a model that changes while it is fetched is resolved anew.
const CHANGES: u32 = 4;

/// How long a load whose model is on disk waits for a repository that says nothing: requests time out on networks where
/// packets vanish, and would answer from the disk where they are refused.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where files are kept: a disk cache that takes its folder when something is to be fetched, so that servers over plain
/// folders need none.
pub struct Files {
    disk: OnceCell<DiskCache>,
    open: Arc<OpenDisk>,
    /// How many models are fetched at once; what is on disk waits for nobody's fetch.
    fetches: LoadGate,
}

impl Files {
    /// Files in the cache that `open` opens, `fetches` models at a time.
    #[must_use]
    pub fn new(fetches: usize, open: Arc<OpenDisk>) -> Self {
        Self { disk: OnceCell::new(), open, fetches: LoadGate::new(fetches) }
    }

    /// Opens the disk cache now. Blocking.
    ///
    /// # Errors
    /// As [`DiskCache::open`].
    pub fn open_now(&self) -> Result<()> {
        if self.disk.get().is_none() {
            // Another who opened it meanwhile is as good.
            drop(self.disk.set((self.open)()?));
        }
        Ok(())
    }

    async fn disk(&self) -> Result<&DiskCache> {
        let open = || async {
            let open = Arc::clone(&self.open);
            let opened = tokio::task::spawn_blocking(move || open()).await;
            opened.unwrap_or_else(|panic| Err(Error::internal("opening the disk cache panicked").with_source(panic)))
        };
        self.disk.get_or_try_init(open).await
    }

    /// A model in memory was used: what it was loaded from is worth keeping.
    pub(super) fn touch(&self, name: &str) {
        if let Some(disk) = self.disk.get() {
            disk.touch(name);
        }
    }

    /// A number that is another one when something came to the disk or left it.
    pub(super) fn stamp(&self) -> u64 {
        self.disk.get().map_or(0, DiskCache::stamp)
    }

    /// A model that is gone from the repository is gone here when its last use ends.
    pub(super) fn forget(&self, name: &str) {
        if let Some(disk) = self.disk.get() {
            disk.forget(name);
        }
    }

    /// All that is on disk or on its way there, by name.
    pub(super) fn all_on_disk(&self) -> HashMap<String, OnDisk> {
        let mut all: HashMap<String, OnDisk> = HashMap::new();
        for entry in self.disk.get().map(DiskCache::entries).unwrap_or_default() {
            let (name, entry) = OnDisk::of(entry);
            match all.get_mut(&name) {
                Some(known) => known.add(entry),
                None => drop(all.insert(name, entry)),
            }
        }
        all
    }

    /// What is on disk of one model.
    pub(super) fn on_disk(&self, name: &str) -> Option<OnDisk> {
        let entries = self.disk.get().map(DiskCache::entries).unwrap_or_default();
        let mut found = entries.into_iter().filter(|entry| entry.name == name).map(|entry| OnDisk::of(entry).1);
        let mut first = found.next()?;
        found.for_each(|other| first.add(other));
        Some(first)
    }

    pub(super) fn book(&self) -> Option<TierBook> {
        let usage = self.disk.get()?.usage();
        Some(TierBook {
            tier: Tier::Disk,
            device: None,
            limit: usage.limit,
            booked: usage.booked,
            evictable: usage.evictable,
            reserved: usage.reserved,
            scratch: 0,
            models: usage.entries,
            used: None,
        })
    }
}

/// What the disk holds of a model.
#[derive(Clone, Debug)]
pub(super) struct OnDisk {
    pub(super) bytes: u64,
    pub(super) fingerprint: Fingerprint,
    /// Whether all of it is there.
    pub(super) complete: bool,
    pub(super) fetch: Option<FetchProgress>,
}

impl OnDisk {
    fn of(entry: DiskEntryView) -> (String, Self) {
        let fetch = entry.progress.map(|at| FetchProgress { done: at.done, total: at.total, rate: at.rate });
        let complete = entry.stage == Stage::Resident;
        (entry.name, Self { bytes: entry.bytes, fingerprint: entry.fingerprint, complete, fetch })
    }

    /// Another entry of the same model: an older content that is still used, or a newer one under way.
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        if other.complete && !self.complete {
            self.fingerprint = other.fingerprint;
        }
        self.complete |= other.complete;
        self.fetch = self.fetch.or(other.fetch);
    }
}

/// Files that are on this machine.
pub(super) struct Found {
    pub(super) tree: ModelTree,
    pub(super) fingerprint: Fingerprint,
    /// The content of all that came with it: the same but for a part of an archive.
    pub(super) content: Fingerprint,
    /// Which of the models in an archive it is, where it came with another.
    part: Option<String>,
    /// Names them without the text of their configuration; `None` where the repository was not asked.
    pub(super) weights: Option<Fingerprint>,
    /// Where they were when they were asked for.
    pub(super) from: Tier,
    entry: Option<(DiskHandle, PathBuf)>,
}

/// What a load wants of a model's files.
pub(super) struct Wanted<'a> {
    /// The configuration that stands in for the repository's.
    pub(super) given: Option<&'a ModelConfig>,
    /// Whether what is on disk may serve while the repository cannot be asked.
    pub(super) stale: bool,
    /// Whether this content is in memory already.
    pub(super) unchanged: &'a (dyn Fn(Fingerprint) -> bool + Sync),
}

/// Keeps files where a model in memory reads them: dropping it lets them be evicted.
pub(super) struct KeptFiles(#[expect(dead_code, reason = "held for its drop")] DiskHandle);

impl Loader {
    /// The model's files, fetched where they must be; `None` where the content is known.
    pub(super) async fn find(
        &self,
        flight: &Arc<Flight>,
        name: &Name,
        wanted: Wanted<'_>,
        phases: &mut Phases,
    ) -> Result<Option<Found>, LoadError> {
        let Wanted { given, stale, unchanged } = wanted;
        // A part's files are those of the archive that it came in.
        let (owner, part) = parts::split(name);
        let owner = &Name::from(owner);
        let choose = chooser(given.cloned(), self.unknown_fields);
        let mut changes = 0;
        loop {
            let began = Instant::now();
            let manifest = match self.resolve(owner, stale).await {
                Ok(manifest) => Arc::new(manifest),
                Err(error) => {
                    let found = self.without_repository(owner, stale, error).await?;
                    return Ok(Some(self.part(found, part).await?));
                }
            };
            phases.resolve += began.elapsed();
            let content = manifest.fingerprint();
            let weights = Some(manifest.weights());
            if unchanged(part.map_or(content, |part| content.of_part(part))) {
                return Ok(None);
            }
            if manifest.local.is_some() && manifest.form != Form::Archive {
                let read = self.loading.spawn_blocking(move || ModelTree::of(&manifest)).await;
                let tree = read.unwrap_or_else(|panic| Err(panicked(panic)))?;
                let found = Found { weights, ..Found::of(tree, content, Tier::Disk, None) };
                return Ok(Some(self.part(found, part).await?));
            }
            let fetching = Instant::now();
            match self.ensure(flight, &manifest, &choose).await {
                Ok((handle, from)) => {
                    if from == Tier::Remote {
                        phases.fetch += fetching.elapsed();
                    }
                    let found = Found { weights, ..self.found(handle, from).await? };
                    return Ok(Some(self.part(found, part).await?));
                }
                Err(EnsureError::Changed) if changes < CHANGES => changes += 1,
                Err(error) => return Err(error.into_error().into()),
            }
        }
    }

    async fn ensure(
        &self,
        flight: &Arc<Flight>,
        manifest: &Arc<ModelManifest>,
        choose: &Arc<ChooseVersions>,
    ) -> Result<(DiskHandle, Tier), EnsureError> {
        let disk = self.files.disk().await.map_err(EnsureError::Failed)?;
        let _turn = match disk.holds(&manifest.name, manifest.fingerprint()) {
            true => None,
            // What a fetch holds in memory is no part of a model that is loaded meanwhile.
            false => Some((self.files.fetches.enter(flight).await, self.meter.disturb())),
        };
        let fetched = AtomicBool::new(false);
        let handle = disk.ensure(manifest, choose, &|_| fetched.store(true, Ordering::Relaxed)).await?;
        let from = if fetched.load(Ordering::Relaxed) { Tier::Remote } else { Tier::Disk };
        Ok((handle, from))
    }

    /// Asks the repository; not for long where what is on disk would do.
    async fn resolve(&self, name: &Name, stale: bool) -> Result<ModelManifest> {
        let resolving = self.repository.resolve(name);
        if !(stale && self.files.disk.get().is_some_and(|disk| disk.newest(name).is_some())) {
            return resolving.await;
        }
        tokio::time::timeout(PATIENCE, resolving).await.unwrap_or_else(|_elapsed| {
            Err(Error::new(ErrorKind::RepositoryFailed, format!("the repository said nothing for {PATIENCE:?}")))
        })
    }

    /// The repository cannot be asked, or has no such model.
    async fn without_repository(&self, name: &Name, stale: bool, error: Error) -> Result<Found, LoadError> {
        if error.kind() == ErrorKind::NotFound {
            self.files.forget(name);
            return Err(error.into());
        }
        let on_disk = self.files.disk.get().filter(|_| stale && error.kind() == ErrorKind::RepositoryFailed);
        let Some(handle) = on_disk.and_then(|disk| disk.newest(name)) else { return Err(error.into()) };
        tracing::warn!(model = %name, error = %error.report(), "the repository cannot be asked: what is on disk serves");
        Ok(self.found(handle, Tier::Disk).await?)
    }

    async fn found(&self, handle: DiskHandle, from: Tier) -> Result<Found> {
        let read = move || {
            let (tree, derived) = (handle.tree()?, handle.derived()?);
            let unnamed = || Error::internal("an entry of the disk cache does not name its content");
            let fingerprint = handle.fingerprint().ok_or_else(unnamed)?;
            Ok(Found::of(tree, fingerprint, from, Some((handle, derived))))
        };
        self.loading.spawn_blocking(read).await.unwrap_or_else(|panic| Err(panicked(panic)))
    }
}

impl Loader {
    /// One of the models in an archive, where that is asked for.
    async fn part(&self, found: Found, part: Option<&str>) -> Result<Found> {
        let Some(part) = part.map(str::to_owned) else { return Ok(found) };
        let read = move || {
            let gone = || Error::not_found(format!("the archive holds no model '{part}' any more"));
            let tree = found.tree.part(&part)?.ok_or_else(gone)?;
            let derived = |(handle, folder): (DiskHandle, PathBuf)| (handle, folder.join(&part));
            let (fingerprint, entry) = (found.content.of_part(&part), found.entry.map(derived));
            Ok(Found { tree, fingerprint, weights: None, entry, part: Some(part), ..found })
        };
        self.loading.spawn_blocking(read).await.unwrap_or_else(|panic| Err(panicked(panic)))
    }
}

/// The versions that a configuration's text, or the given configuration, wants.
fn chooser(given: Option<ModelConfig>, unknown: UnknownFields) -> Arc<ChooseVersions> {
    Arc::new(move |text, available| wanted_versions(given.as_ref(), text, available, unknown))
}

impl Found {
    const fn of(tree: ModelTree, content: Fingerprint, from: Tier, entry: Option<(DiskHandle, PathBuf)>) -> Self {
        Self { tree, fingerprint: content, content, weights: None, part: None, from, entry }
    }

    /// What loads of it onto a device are noted under.
    fn note(&self, device: DeviceId) -> String {
        self.part.as_ref().map_or_else(|| device.to_string(), |part| format!("{device} {part}"))
    }

    /// Where a backend may keep what it made of them.
    pub(super) fn derived(&self) -> Option<PathBuf> {
        self.entry.as_ref().map(|(_, derived)| derived.clone())
    }

    /// Whether they lie in the disk cache.
    pub(super) const fn is_cached(&self) -> bool {
        self.entry.is_some()
    }

    /// What an earlier load of them came to, as noted beside them.
    pub(super) fn past(&self, device: DeviceId) -> Option<Past> {
        let (handle, _) = self.entry.as_ref()?;
        handle.history(&self.note(device)).map(|load| Past { bytes: load.bytes, seconds: load.seconds })
    }

    /// Notes beside them what a load came to.
    pub(super) fn remember(&self, device: DeviceId, past: Past) {
        if let Some((handle, _)) = &self.entry {
            handle.note_load(&self.note(device), LoadRecord { bytes: past.bytes, seconds: past.seconds });
        }
    }

    /// Books what a backend made of them. Blocking.
    pub(super) fn measure_derived(&self) {
        if let Some((handle, _)) = &self.entry
            && let Err(error) = handle.measure_derived()
        {
            tracing::debug!(error = %error.report(), "no room on disk for what was made of a model's files");
        }
    }

    /// Keeps them as long as the model lives, where it reads them.
    pub(super) fn keep(self, keeps_files: bool) -> Option<KeptFiles> {
        self.entry.filter(|_| keeps_files).map(|(handle, _)| KeptFiles(handle))
    }
}

/// Tells the metrics what the disk cache does.
pub struct DiskMetrics(pub Arc<ServerMetrics>);

impl DiskEvents for DiskMetrics {
    fn fetched(&self, end: FetchEnd, bytes: u64, _seconds: f64) {
        self.0.fetched_bytes.increment(bytes);
        self.0.fetch_ended(match end {
            FetchEnd::Done => "ok",
            FetchEnd::Failed => "failed",
            FetchEnd::Cancelled => "cancelled",
        });
    }

    fn evicted(&self, _bytes: u64, age: Duration, _idle: Duration) {
        self.0.evicted(Tier::Disk.name(), "room", age);
    }
}

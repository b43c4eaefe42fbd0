//! `Fetch`: from a manifest to an entry. A folder and a bare file are written object by object; an archive is unpacked as
//! it comes.

use std::error::Error as StdError;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::choice::{self, ArchiveSelection};
use super::draft::{Draft, Purse, disk_error};
use super::flight::Flight;
use super::handle::{self, DiskHandle};
use super::record::on_disk;
use super::{ChooseVersions, Inner};
use crate::artifact;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::download::{self, Meter};
use crate::repository::layout::CONFIG;
use crate::repository::manifest::{Form, ModelManifest, Object};
use crate::repository::tree::{self, MAX_CONFIG_BYTES};
use crate::repository::{FetchError, check_name};

/// Files of one model that are written at the same time.
const FILES_AT_ONCE: usize = 8;

/// The most bytes of one part of a path: what the usual file systems take.
const MAX_COMPONENT: usize = 255;

/// Why a fetch ended without an entry.
pub(super) enum Stop {
    Changed,
    Failed(Error),
    Cancelled,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<FetchError> for Stop {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Changed => Self::Changed,
            FetchError::Failed(error) => Self::Failed(error),
        }
    }
}

/// See the module.
pub(super) struct Fetch {
    pub(super) inner: Arc<Inner>,
    pub(super) manifest: Arc<ModelManifest>,
    pub(super) choose: Arc<ChooseVersions>,
    pub(super) flight: Arc<Flight>,
    pub(super) began: Instant,
}

impl Fetch {
    /// Brings it. What was cancelled or failed has left nothing behind when this returns.
    pub(super) async fn run(self) -> Result<DiskHandle, Stop> {
        let ended = match self.manifest.form {
            Form::Directory | Form::File => self.objects().await,
            Form::Archive => self.archive().await,
        };
        // What the end of the network's work looks like when it was cancelled is no failure.
        ended.map_err(|stop| if self.flight.cancel().is_cancelled() { Stop::Cancelled } else { stop })
    }

    async fn objects(&self) -> Result<DiskHandle, Stop> {
        let manifest = &self.manifest;
        for object in &manifest.objects {
            check_path(&manifest.name, &object.path)?;
        }
        let is_folder = manifest.form == Form::Directory;
        let config = self.wanted(self.config()).await?;
        let paths = manifest.objects.iter().map(|object| object.path.as_str());
        let available = if is_folder { choice::versions_of(paths) } else { vec![1] };
        let kept = self.inner.choose(&self.choose, config.clone(), available.clone()).await?;
        let is_wanted = |object: &Object| {
            !is_folder || choice::version_of(&object.path).is_none_or(|version| kept.contains(&version))
        };
        let objects: Vec<_> = (0..manifest.objects.len())
            .filter_map(|index| manifest.objects.get(index).filter(|object| is_wanted(object)).map(|_| index))
            .collect();
        let files: Vec<_> = objects
            .iter()
            .filter_map(|&index| manifest.objects.get(index))
            .map(|object| (object.path.clone(), object.size))
            .collect();
        let payload = files.iter().fold(0_u64, |sum, (_, size)| sum.saturating_add(on_disk(*size)));
        let (listed, text) = (files.clone(), config.clone());
        let draft = Draft::book(&self.inner, manifest, payload, self.flight.cancel(), |record| {
            (record.config, record.available, record.kept, record.files) = (config, available, kept, listed);
        });
        let draft = draft.await?;
        let written = self.write(&draft, &objects, &files, text).await;
        match written {
            Ok(()) => self.finish(draft, move |draft| Ok(draft.settle(files.into_iter())?)).await,
            Err(stop) => {
                draft.discard().await;
                Err(stop)
            }
        }
    }

    /// The text of a folder's `config.pbtxt`.
    async fn config(&self) -> Result<Option<String>, Stop> {
        let manifest = &self.manifest;
        let index = manifest.objects.iter().position(|object| object.path == CONFIG);
        let Some(index) = index.filter(|_| manifest.form == Form::Directory) else { return Ok(None) };
        // One byte more than is allowed tells that there is more.
        let bytes = self.inner.downloader.read(manifest, index, MAX_CONFIG_BYTES + 1).await?;
        Ok(Some(tree::config_text(&manifest.name, bytes)?))
    }

    /// Writes the files; `config`, which has come already, is not asked for again.
    async fn write(
        &self,
        draft: &Draft,
        objects: &[usize],
        files: &[(String, u64)],
        config: Option<String>,
    ) -> Result<(), Stop> {
        let (root, name) = (draft.files(), self.manifest.name.clone());
        let paths: Vec<_> = files.iter().map(|(path, _)| root.join(path)).collect();
        let made = paths.clone();
        // All at once and before anything is cancelled: a file made late would outlive the draft.
        self.inner.blocking(move || made.iter().try_for_each(|path| make(&name, path))).await?;
        let meter = Arc::new(Meter::new(files.iter().map(|(_, size)| size).sum()));
        self.flight.begin(&meter);
        let config_path = config.is_some().then(|| root.join(CONFIG));
        if let (Some(text), Some(path)) = (config, config_path.clone()) {
            meter.add(text.len() as u64);
            let name = self.manifest.name.clone();
            self.inner.blocking(move || fs::write(path, text).map_err(|error| disk_error(&name, error))).await?;
        }
        let write = |(&object, path)| self.write_one(object, path, &meter).boxed();
        let is_missing = |(_, path): &(&usize, PathBuf)| Some(path) != config_path.as_ref();
        let writes: Vec<_> = objects.iter().zip(paths).filter(is_missing).map(write).collect();
        let writes = stream::iter(writes).buffer_unordered(FILES_AT_ONCE).try_collect::<()>();
        self.wanted(writes).await
    }

    async fn write_one(&self, object: usize, path: PathBuf, meter: &Arc<Meter>) -> Result<(), Stop> {
        let name = self.manifest.name.clone();
        let open = move || File::options().write(true).open(path).map_err(|error| disk_error(&name, error));
        let file = Arc::new(self.inner.blocking(open).await?);
        Ok(self.inner.downloader.write(&self.manifest, object, file, meter).await?)
    }

    /// Ends with the flight.
    async fn wanted<T>(&self, work: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
        self.flight.cancel().run_until_cancelled(work).await.unwrap_or(Err(Stop::Cancelled))
    }

    async fn archive(&self) -> Result<DiskHandle, Stop> {
        let size = self.manifest.bytes();
        // What it unpacks to is not known; it is no less than this, as a rule, and nothing is unpacked in vain that is
        // already too large.
        let draft = Draft::book(&self.inner, &self.manifest, size, self.flight.cancel(), |_| ()).await?;
        let meter = Arc::new(Meter::new(size));
        self.flight.begin(&meter);
        let (inner, manifest, choose) = (Arc::clone(&self.inner), Arc::clone(&self.manifest), Arc::clone(&self.choose));
        let flight = Arc::clone(&self.flight);
        self.finish(draft, move |draft| unpack(&inner, &manifest, &*choose, &flight, &meter, draft)).await
    }

    /// Does the last, blocking step on a draft and makes it the entry.
    async fn finish(
        &self,
        mut draft: Draft,
        step: impl FnOnce(&mut Draft) -> Result<(), Stop> + Send + 'static,
    ) -> Result<DiskHandle, Stop> {
        let (flight, began) = (Arc::clone(&self.flight), self.began);
        let finished = self.inner.runtime.spawn_blocking(move || {
            let stepped = step(&mut draft);
            let is_wanted = || if flight.cancel().is_cancelled() { Err(Stop::Cancelled) } else { Ok(()) };
            let commit = |()| Ok(draft.commit(began.elapsed().as_secs_f64())?);
            let committed = stepped.and_then(|()| is_wanted()).and_then(commit);
            (draft, committed)
        });
        let (draft, committed) =
            finished.await.map_err(|error| Error::internal("unpacking ended early").with_source(error))?;
        draft.discard().await;
        committed
    }
}

/// Unpacks an archive into a draft and takes out what was not chosen.
fn unpack(
    inner: &Inner,
    manifest: &Arc<ModelManifest>,
    choose: &ChooseVersions,
    flight: &Flight,
    meter: &Arc<Meter>,
    draft: &mut Draft,
) -> Result<(), Stop> {
    let (name, folder) = (&*manifest.name, draft.files());
    let reader = inner.downloader.reader(manifest, 0, meter, flight.cancel());
    let mut selection = ArchiveSelection { name, choose, found: None };
    let unpacked = {
        let mut purse = Purse::new(draft, flight.cancel());
        artifact::unpack(reader, manifest.bytes(), &folder, &inner.limits, &mut purse, &mut selection)
    };
    let unpacked = unpacked.map_err(|error| why(manifest, error))?;
    draft.record.files.clone_from(&unpacked.files);
    let tree = handle::tree(&draft.record, folder.clone())?;
    let (available, kept) = match selection.found {
        Some(found) => found,
        None => (tree.versions.clone(), choice::choose(choose, tree.config.as_deref(), &tree.versions)?),
    };
    let dropped: Vec<_> =
        tree.versions.iter().filter(|version| tree.bare_file.is_none() && !kept.contains(version)).collect();
    let inside = tree.directory.strip_prefix(&folder).unwrap_or(Path::new(""));
    let mut pruned = Vec::with_capacity(dropped.len());
    for version in dropped {
        fs::remove_dir_all(tree.directory.join(version.to_string())).map_err(|error| draft.disk_error(error))?;
        pruned.push(inside.join(version.to_string()));
    }
    (draft.record.config, draft.record.available, draft.record.kept) = (tree.config, available, kept);
    // Where a path comes twice in an archive the last is the one on the disk.
    let expected: std::collections::BTreeMap<_, _> = unpacked.files.into_iter().collect();
    let stays = |path: &str| !pruned.iter().any(|folder| Path::new(path).starts_with(folder));
    Ok(draft.settle(expected.into_iter().filter(|(path, _)| stays(path)))?)
}

/// What stopped an unpacking: the repository, the disk, or the archive itself.
fn why(manifest: &ModelManifest, error: Error) -> Stop {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(one) = cause {
        let below = one.downcast_ref::<io::Error>();
        if let Some(fetch) = below.and_then(download::fetch_error) {
            return fetch.clone().into();
        }
        if let Some(kind @ (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) = below.map(io::Error::kind)
            && error.kind() != ErrorKind::OutOfDisk
        {
            return disk_error(&manifest.name, kind.into()).into();
        }
        // An i/o error's own source is that of what it wraps.
        cause = match below.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => one.source(),
        };
    }
    Stop::Failed(match error.kind() {
        ErrorKind::InvalidArgument | ErrorKind::TooLarge => error.wrap(format!("cannot unpack '{}'", manifest.key)),
        _ => error,
    })
}

/// Checks that a file may lie at `path` below an entry.
fn check_path(name: &str, path: &str) -> Result<()> {
    let wrap = |error: Error| error.wrap(format!("model '{name}' has a file that cannot be written"));
    check_name(path).map_err(wrap)?;
    if path.split('/').any(|part| part.len() > MAX_COMPONENT) {
        return Err(wrap(Error::invalid(format!("a part of its path is longer than {MAX_COMPONENT} bytes"))));
    }
    Ok(())
}

/// Makes an empty file and the folders above it.
fn make(name: &str, path: &Path) -> Result<()> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| File::create_new(path));
    match made {
        Ok(_) => Ok(()),
        // An object's key may be a folder of another's: that is no tree of files.
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {
            let context = format!("model '{name}' has a file and a folder of the same name");
            Err(Error::invalid(context).with_source(error))
        }
        Err(error) => Err(disk_error(name, error)),
    }
}

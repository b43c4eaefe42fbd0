//! `Store`: models from the repository, each unpacked into a folder of its own below the work directory, where the
//! platform puts them: `DIR/<hash>/model`.

use std::fs::{self, File};
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::artifact::{self, Everything, Format, Limits, Space};
use crate::error::{Error, ErrorKind, Result};
use crate::repository::download::{DownloadOptions, Downloader, Meter};
use crate::repository::manifest::{Form, ModelManifest};
use crate::repository::{FetchError, ModelRepository, check_name};

/// The name of the folder that a container is told to load.
const MODEL: &str = "model";

/// Lies beside it and says that the folder above is ours to delete.
const MARK: &str = ".roundhouse-emulate";

/// Is written into the work directory at the start, and removed: whether it can be written.
const PROBE: &str = ".roundhouse-emulate-probe";

/// What a folder on its way ends with.
const PARTIAL: &str = ".partial";

/// Files of one model that are written at the same time.
const FILES_AT_ONCE: usize = 8;

/// Hexadecimal digits of a model's hash.
const DIGITS: usize = 32;

/// A model on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// What the container calls it: hexadecimal digits.
    pub(super) hash: Arc<str>,
    /// `DIR/<hash>`.
    pub(super) folder: PathBuf,
    /// Unpacked.
    pub(super) bytes: u64,
}

/// See the module.
pub(super) struct Store {
    repository: Arc<dyn ModelRepository>,
    downloader: Downloader,
    runtime: Handle,
    root: PathBuf,
    /// The work directory under the name that the container has for it.
    inside: PathBuf,
    only_tar_gz: bool,
    /// Locked as long as this lives: two platforms in one folder would delete each other's models.
    _lock: File,
}

impl Store {
    /// Opens the work directory and deletes what an emulator that was killed has left in it. With the hashes of that, which
    /// the container may still have. Blocking.
    ///
    /// # Errors
    /// `InvalidArgument` for a folder that cannot be used or written, or that another emulator uses.
    pub(super) fn open(
        repository: Arc<dyn ModelRepository>,
        root: &Path,
        inside: Option<&Path>,
        only_tar_gz: bool,
        runtime: Handle,
    ) -> Result<(Self, Vec<String>)> {
        let failed = |error: io::Error| {
            Error::invalid(format!("cannot use the folder {}: name another one with --work-dir", root.display()))
                .with_source(error)
        };
        let root = std::path::absolute(root).map_err(failed)?;
        if root.to_str().is_none() {
            return Err(Error::invalid("--work-dir is not UTF-8, and its name goes into JSON: name another one"));
        }
        fs::create_dir_all(&root).map_err(failed)?;
        let lock = File::open(&root).map_err(failed)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => Error::invalid(format!(
                "another `roundhouse emulate` uses {}: name another folder with --work-dir",
                root.display()
            )),
            other => failed(other.into()),
        })?;
        let probe = root.join(PROBE);
        fs::write(&probe, "").and_then(|()| fs::remove_file(&probe)).map_err(|error| {
            Error::invalid(format!(
                "cannot write into {}: give this user the right to, or name another folder with --work-dir",
                root.display()
            ))
            .with_source(error)
        })?;
        let mut left = Vec::new();
        for entry in root.read_dir().map_err(failed)?.flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if is_ours(&name) && entry.path().join(MARK).exists() {
                tracing::info!(folder = %entry.path().display(), "deleting what an earlier run has left");
                remove(&entry.path()).map_err(failed)?;
                // What was still on its way no container has been told of.
                if !name.ends_with(PARTIAL) {
                    left.push(name);
                }
            }
        }
        let downloader = Downloader::new(Arc::clone(&repository), DownloadOptions::default(), runtime.clone());
        let inside = inside.unwrap_or(&root).to_owned();
        Ok((Self { repository, downloader, runtime, root, inside, only_tar_gz, _lock: lock }, left))
    }

    /// The folder that the container is told to load.
    pub(super) fn url(&self, placed: &Placed) -> PathBuf {
        self.inside.join(&*placed.hash).join(MODEL)
    }

    /// Brings a model. What it needs of the disk is asked of `space`, on a thread that may block. After an error nothing
    /// of it is left.
    ///
    /// # Errors
    /// `NotFound` if the repository has no such model; `InvalidArgument` or `TooLarge` for one that cannot be unpacked;
    /// `NotReady` when `cancel`led; and what the repository, the disk and `space` say.
    pub(super) async fn fetch(
        &self,
        target: &str,
        space: Box<dyn Space + Send>,
        cancel: &CancellationToken,
    ) -> Result<Placed> {
        let resolved = cancel.run_until_cancelled(self.repository.resolve(target)).await;
        let manifest = Arc::new(resolved.unwrap_or_else(|| Err(given_up()))?);
        if self.only_tar_gz
            && !(manifest.form == Form::Archive && target.ends_with(".tar.gz") && manifest.key == target)
        {
            return Err(not_tar_gz(target));
        }
        let hash = hash_of(target, &manifest);
        let partial = self.root.join(format!("{hash}{PARTIAL}"));
        let folder = self.root.join(&*hash);
        let (making, stale) = (partial.clone(), folder.clone());
        self.blocking(move || make(&making, &stale)).await?;
        let filled = match manifest.form {
            Form::Archive => self.unpack(&manifest, &partial, space, cancel).await,
            Form::Directory | Form::File => self.copy(&manifest, &partial, space, cancel).await,
        };
        let (from, to) = (partial.clone(), folder.clone());
        let placed = match filled {
            Ok(bytes) => self.blocking(move || fs::rename(from, to).map_err(disk_error)).await.map(|()| bytes),
            Err(error) => Err(error),
        };
        match placed {
            Ok(bytes) => Ok(Placed { hash, folder, bytes }),
            Err(error) => {
                self.delete(&partial).await;
                Err(error)
            }
        }
    }

    /// Deletes a model's folder; what cannot be deleted is logged.
    pub(super) async fn delete(&self, folder: &Path) {
        let folder = folder.to_owned();
        if let Err(error) = self.blocking(move || remove(&folder).map_err(disk_error)).await {
            tracing::warn!(error = %error.report(), "cannot delete a model's files");
        }
    }

    async fn unpack(
        &self,
        manifest: &Arc<ModelManifest>,
        folder: &Path,
        mut space: Box<dyn Space + Send>,
        cancel: &CancellationToken,
    ) -> Result<u64> {
        let meter = Arc::new(Meter::new(manifest.bytes()));
        let mut reader = self.downloader.reader(manifest, 0, &meter, cancel);
        let (manifest, model, only_tar_gz) = (Arc::clone(manifest), folder.join(MODEL), self.only_tar_gz);
        let unpacked = self.blocking(move || {
            if only_tar_gz && reader.fill_buf().is_ok_and(|head| Format::sniff(head) != Some(Format::TarGz)) {
                return Err(not_tar_gz(&manifest.key));
            }
            let limits = Limits::default();
            let unpacked = artifact::unpack(reader, manifest.bytes(), &model, &limits, &mut *space, &mut Everything);
            unpacked.map(|unpacked| unpacked.bytes).map_err(|error| match error.kind() {
                ErrorKind::InvalidArgument => error.wrap(format!("cannot unpack '{}'", manifest.key)),
                _ => error,
            })
        });
        let unpacked = unpacked.await;
        if cancel.is_cancelled() { Err(given_up()) } else { unpacked }
    }

    async fn copy(
        &self,
        manifest: &Arc<ModelManifest>,
        folder: &Path,
        mut space: Box<dyn Space + Send>,
        cancel: &CancellationToken,
    ) -> Result<u64> {
        let bytes = manifest.bytes();
        let (making, root) = (Arc::clone(manifest), folder.join(MODEL));
        let files = self.blocking(move || {
            space.take(bytes)?;
            let paths =
                making.objects.iter().enumerate().map(|(index, object)| Ok((index, create(&root, &object.path)?)));
            // An empty folder has no file.
            paths
                .filter_map(|made| made.map(|(index, file)| Some((index, file?))).transpose())
                .collect::<Result<Vec<_>>>()
        });
        let meter = Arc::new(Meter::new(bytes));
        let write =
            |(index, file): (usize, File)| self.downloader.write(manifest, index, Arc::new(file), &meter).boxed();
        let writes: Vec<_> = files.await?.into_iter().map(write).collect();
        let written = stream::iter(writes).buffer_unordered(FILES_AT_ONCE).try_collect::<()>();
        let written = cancel.run_until_cancelled(written).await.unwrap_or(Err(FetchError::Failed(given_up())));
        written.map(|()| bytes).map_err(FetchError::into_error)
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let ended = self.runtime.spawn_blocking(work).await;
        ended.map_err(|error| Error::internal("work on the disk ended early").with_source(error))?
    }
}

/// The name of a model's folder: another one for another content.
fn hash_of(target: &str, manifest: &ModelManifest) -> Arc<str> {
    let mut hash = Sha256::new();
    hash.update(target.as_bytes());
    hash.update([0]);
    hash.update(manifest.fingerprint().to_string());
    let digits: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    digits[..DIGITS].into()
}

/// Whether a folder has a name that we give.
fn is_ours(name: &str) -> bool {
    let hash = name.strip_suffix(PARTIAL).unwrap_or(name);
    hash.len() == DIGITS && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Deletes a model's folder, if it is there. The mark goes last: what stays after a failure is known as ours later.
fn remove(folder: &Path) -> io::Result<()> {
    for part in [&folder.join(MODEL), folder] {
        match fs::remove_dir_all(part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Makes the folder of a model on its way, and the room for its last name.
fn make(partial: &Path, last: &Path) -> Result<()> {
    for stale in [partial, last] {
        if stale.join(MARK).exists() {
            remove(stale).map_err(disk_error)?;
        }
    }
    if last.exists() {
        return Err(Error::internal(format!(
            "{} is there already and not by `roundhouse emulate`: name another folder with --work-dir",
            last.display()
        )));
    }
    fs::create_dir_all(partial.join(MODEL)).and_then(|()| fs::write(partial.join(MARK), "")).map_err(disk_error)
}

/// Makes an empty file below `root`, or a folder where the path ends in a slash.
fn create(root: &Path, path: &str) -> Result<Option<File>> {
    let file = path.strip_suffix('/').unwrap_or(path);
    check_name(file).map_err(|error| error.wrap("the model has a file that cannot be written"))?;
    let at = root.join(file);
    let made = if file.len() < path.len() {
        fs::create_dir_all(&at).map(|()| None)
    } else {
        at.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| File::create_new(&at)).map(Some)
    };
    made.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
            Error::invalid("the model has a file and a folder of the same name").with_source(error)
        }
        io::ErrorKind::InvalidFilename => {
            Error::invalid(format!("the model has a file name too long for this disk: '{file}'")).with_source(error)
        }
        _ => disk_error(error),
    })
}

fn disk_error(error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::OutOfDisk,
        _ => ErrorKind::Internal,
    };
    Error::new(kind, "cannot write into --work-dir").with_source(error)
}

fn not_tar_gz(target: &str) -> Error {
    Error::invalid(format!("'{target}' is no .tar.gz archive, and SageMaker takes no other (--tar-gz-only)"))
}

fn given_up() -> Error {
    Error::not_ready("the load was given up")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::local::Local;

    fn store(models: &Path, root: &Path, only_tar_gz: bool) -> Result<Store> {
        open(models, root, only_tar_gz).map(|(store, _)| store)
    }

    fn open(models: &Path, root: &Path, only_tar_gz: bool) -> Result<(Store, Vec<String>)> {
        Store::open(Arc::new(Local::open(models).unwrap()), root, None, only_tar_gz, Handle::current())
    }

    async fn fetch(store: &Store, target: &str) -> Result<Placed> {
        store.fetch(target, Box::new(Everything), &CancellationToken::new()).await
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A folder with a model `plain`, and archives of it.
    fn models() -> tempfile::TempDir {
        let models = tempfile::tempdir().unwrap();
        let model = models.path().join("plain");
        fs::create_dir_all(model.join("1")).unwrap();
        fs::create_dir_all(model.join("2")).unwrap();
        fs::write(model.join("config.pbtxt"), "backend: \"identity\"").unwrap();
        fs::write(model.join("1/x"), "12345").unwrap();
        for (name, format) in [("a.tar.gz", Format::TarGz), ("a.tar", Format::Tar), ("liar.tar.gz", Format::Tar)] {
            artifact::pack::pack(&model, File::create(models.path().join(name)).unwrap(), format).unwrap();
        }
        models
    }

    #[tokio::test]
    async fn folders_and_archives_lie_where_the_platform_puts_them_and_leave_nothing() {
        let (models, work) = (models(), tempfile::tempdir().unwrap());
        let store = store(models.path(), work.path(), false).unwrap();
        for target in ["plain", "a.tar.gz", "a.tar", "liar.tar.gz"] {
            let placed = fetch(&store, target).await.unwrap();
            assert!(is_ours(&placed.hash) && placed.bytes == 24, "{target}: {placed:?}");
            let url = store.url(&placed);
            assert_eq!(url, work.path().join(&*placed.hash).join("model"));
            let below = if url.join("config.pbtxt").exists() { url } else { url.join(&names(&url)[0]) };
            assert_eq!(fs::read(below.join("1/x")).unwrap(), b"12345", "{target}");
            assert_eq!(names(work.path()), [placed.hash.as_ref()]);
            store.delete(&placed.folder).await;
        }
        assert_eq!(names(work.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn with_tar_gz_only_nothing_else_is_taken_whatever_its_name() {
        let (models, work) = (models(), tempfile::tempdir().unwrap());
        let store = store(models.path(), work.path(), true).unwrap();
        fetch(&store, "a.tar.gz").await.unwrap();
        for target in ["plain", "a", "a.tar", "liar.tar.gz"] {
            let error = fetch(&store, target).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{target}");
        }
        assert_eq!(names(work.path()).len(), 1);
    }

    #[tokio::test]
    async fn a_torn_archive_a_full_purse_and_a_cancelled_fetch_leave_nothing() {
        struct Empty;
        impl Space for Empty {
            fn take(&mut self, _bytes: u64) -> Result<()> {
                Err(Error::new(ErrorKind::OutOfDisk, "no room"))
            }
        }
        let (models, work) = (models(), tempfile::tempdir().unwrap());
        let whole = fs::read(models.path().join("a.tar.gz")).unwrap();
        fs::write(models.path().join("torn.tar.gz"), &whole[..whole.len() / 2]).unwrap();
        let store = store(models.path(), work.path(), false).unwrap();
        let error = fetch(&store, "torn.tar.gz").await.unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidArgument && error.report().contains("torn.tar.gz"), "{error:?}");
        for target in ["a.tar.gz", "plain"] {
            let error = store.fetch(target, Box::new(Empty), &CancellationToken::new()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfDisk);
            let cancelled = CancellationToken::new();
            cancelled.cancel();
            let error = store.fetch(target, Box::new(Everything), &cancelled).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotReady);
        }
        assert_eq!(names(work.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_folder_has_one_emulator_which_deletes_what_a_killed_one_left_and_nothing_else() {
        let (models, work) = (models(), tempfile::tempdir().unwrap());
        let first = store(models.path(), work.path(), false).unwrap();
        let placed = fetch(&first, "plain").await.unwrap();
        let error = store(models.path(), work.path(), false).map(|_| ()).unwrap_err();
        assert!(error.report().contains("another `roundhouse emulate`"), "{}", error.report());
        drop(first);
        let foreign = "f".repeat(DIGITS);
        fs::create_dir(work.path().join(&foreign)).unwrap();
        fs::create_dir(work.path().join("mine")).unwrap();
        let partial = work.path().join(format!("{}{PARTIAL}", "e".repeat(DIGITS)));
        fs::create_dir(&partial).unwrap();
        fs::write(partial.join(MARK), "").unwrap();
        let (second, left) = open(models.path(), work.path(), false).unwrap();
        assert_eq!(left, [placed.hash.as_ref()], "what the container may have");
        assert_eq!(names(work.path()), [foreign.as_str(), "mine"]);
        // One that is in the way is not deleted either.
        fs::create_dir(work.path().join(&*placed.hash)).unwrap();
        assert!(fetch(&second, "plain").await.unwrap_err().report().contains("--work-dir"));
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_an_error_at_the_start() {
        let (models, work) = (models(), tempfile::tempdir().unwrap());
        // Permissions do not hold back who runs tests as root.
        fs::create_dir(work.path().join(PROBE)).unwrap();
        let error = store(models.path(), work.path(), false).map(|_| ()).unwrap_err();
        assert!(error.report().contains("cannot write into"), "{}", error.report());
        fs::remove_dir(work.path().join(PROBE)).unwrap();
        store(models.path(), work.path(), false).unwrap();
        assert_eq!(names(work.path()), Vec::<String>::new());
    }

    #[test]
    fn a_deletion_that_fails_leaves_the_mark_for_the_next_one() {
        let work = tempfile::tempdir().unwrap();
        fs::write(work.path().join(MARK), "").unwrap();
        // No folder: it cannot be deleted as one.
        fs::write(work.path().join(MODEL), "").unwrap();
        remove(work.path()).unwrap_err();
        assert!(work.path().join(MARK).exists());
        fs::remove_file(work.path().join(MODEL)).unwrap();
        remove(work.path()).unwrap();
        assert!(!work.path().exists());
        remove(work.path()).unwrap();
    }
}

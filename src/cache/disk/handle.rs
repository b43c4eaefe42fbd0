//! `DiskHandle`: an entry in use, which is not evicted for as long as the handle lives.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::book::refused;
use super::record::{EntryId, LoadRecord, Record};
use super::{ChooseVersions, Inner};
use crate::error::{Error, Result};
use crate::inference::Version;
use crate::repository::manifest::{Fingerprint, Form};
use crate::repository::tree::ModelTree;

/// A complete entry. A clone is one use more.
pub struct DiskHandle {
    inner: Arc<Inner>,
    id: EntryId,
    record: Arc<Record>,
}

impl DiskHandle {
    /// Of a use that the book has begun.
    pub(super) fn of_use(inner: &Arc<Inner>, id: EntryId, record: Arc<Record>) -> Self {
        Self { inner: Arc::clone(inner), id, record }
    }

    /// Names the entry.
    #[must_use]
    pub const fn id(&self) -> EntryId {
        self.id
    }

    /// The content it was fetched by.
    #[must_use]
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.record.fingerprint()
    }

    /// The folder of its files.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.inner.store.files(self.id)
    }

    /// Its versions that are here, ascending.
    #[must_use]
    pub fn versions(&self) -> &[Version] {
        &self.record.kept
    }

    /// How long the fetch took.
    #[must_use]
    pub fn fetch_time(&self) -> Duration {
        Duration::try_from_secs_f64(self.record.seconds).unwrap_or_default()
    }

    /// Bytes booked for it on the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inner.book.booked(self.id)
    }

    /// Its files, in Triton's layout. Blocking.
    ///
    /// # Errors
    /// As [`ModelTree::read`]; `InvalidArgument` if there is no model in it.
    pub fn tree(&self) -> Result<ModelTree> {
        tree(&self.record, self.path())
    }

    /// A folder for what a backend makes of the model, made where it is absent. After writing to it call
    /// [`DiskHandle::measure_derived`]. Blocking.
    ///
    /// # Errors
    /// `Internal` if it cannot be made.
    pub fn derived(&self) -> Result<PathBuf> {
        let folder = self.inner.store.derived(self.id);
        let made = std::fs::create_dir_all(&folder);
        made.map_err(|error| Error::internal("cannot make a folder in the disk cache").with_source(error))?;
        Ok(folder)
    }

    /// Books what there is in the folder of derived files. Where there is no room for them they are deleted. Blocking.
    ///
    /// # Errors
    /// `OutOfDisk` if they were deleted.
    pub fn measure_derived(&self) -> Result<()> {
        let bytes = self.record.bytes().saturating_add(self.inner.store.derived_bytes(self.id));
        let resized = self.inner.book.resize(self.id, bytes);
        match resized {
            Ok(leaving) => {
                self.inner.unlink(leaving);
                Ok(())
            }
            Err((refusal, _)) => {
                self.inner.store.discard_derived(self.id);
                // Less than what is booked, if anything was derived before: there is room for it.
                let shrunk = self.inner.book.resize(self.id, self.record.bytes());
                self.inner.unlink(shrunk.unwrap_or_default());
                Err(refused(&self.record.name, refusal))
            }
        }
    }

    /// How the last load of it onto `device` went.
    #[must_use]
    pub fn history(&self, device: &str) -> Option<LoadRecord> {
        self.inner.book.history(self.id, device)
    }

    /// Notes how a load went, beyond this run; written in the background.
    pub fn note_load(&self, device: &str, mut load: LoadRecord) {
        if !load.seconds.is_finite() {
            load.seconds = 0.0;
        }
        self.inner.book.note_load(self.id, device, load);
        let handle = self.clone();
        self.inner.runtime.spawn_blocking(move || {
            let book = &handle.inner.book;
            let Some(writing) = book.writing(handle.id) else { return };
            let _writing = writing.lock();
            // What is known by now, not what was known when this was queued.
            let Some(record) = book.record(handle.id) else { return };
            if let Err(error) = handle.inner.store.update(handle.id, &record) {
                tracing::warn!(model = record.name, %error, "cannot write to the manifest of a disk entry");
            }
        });
    }

    /// Whether what `choose` takes of the versions that the repository had is here.
    pub(super) async fn satisfies(&self, choose: &Arc<ChooseVersions>) -> Result<bool> {
        let (config, available) = (self.record.config.clone(), self.record.available.clone());
        let chosen = self.inner.choose(choose, config, available).await?;
        Ok(chosen.iter().all(|version| self.record.kept.contains(version)))
    }

    /// Remembers the use beyond this run, in the background.
    pub(super) fn mark_used(&self) {
        let Some(at) = self.inner.book.last_use(self.id) else { return };
        let handle = self.clone();
        self.inner.runtime.spawn_blocking(move || {
            let marked = handle.inner.store.mark_used(handle.id, at.min(SystemTime::now()));
            if let Err(error) = marked {
                tracing::debug!(entry = %handle.id, %error, "cannot mark a disk entry as used");
            }
        });
    }
}

/// The model in the folder of an entry's files.
pub(super) fn tree(record: &Record, folder: PathBuf) -> Result<ModelTree> {
    match record.form {
        Form::Archive => ModelTree::read_unpacked(&record.name, &folder),
        Form::Directory => ModelTree::read(&record.name, &folder)?
            .ok_or_else(|| Error::invalid(format!("the folder of model '{}' holds no model", record.name))),
        Form::File => {
            let file = record.files.first().map(|(path, _)| folder.join(path));
            let file = file.ok_or_else(|| Error::internal("a disk entry lists no file"))?;
            Ok(ModelTree { owns_directory: true, ..ModelTree::bare(file) })
        }
    }
}

impl Clone for DiskHandle {
    fn clone(&self) -> Self {
        self.inner.book.begin_use(self.id);
        Self { inner: Arc::clone(&self.inner), id: self.id, record: Arc::clone(&self.record) }
    }
}

impl Drop for DiskHandle {
    fn drop(&mut self) {
        self.inner.unlink(self.inner.book.end_use(self.id));
    }
}

impl fmt::Debug for DiskHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskHandle").field("name", &self.record.name).field("id", &self.id).finish_non_exhaustive()
    }
}

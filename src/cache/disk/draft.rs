//! `Draft`: an entry on its way. Bytes are booked before they are written; a draft that is not committed takes its files
//! with it and then gives its bytes back.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::book::refused;
use super::handle::DiskHandle;
use super::record::{EntryId, Record, on_disk};
use super::store::{files_of, remove};
use super::{Inner, store};
use crate::artifact::Space;
use crate::cache::table::Refusal;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::manifest::ModelManifest;

/// The longest that a wait for room goes without a look: entries grow old, and fall idle, without a word.
const LOOK: Duration = Duration::from_millis(50);

/// Added to what is known of a manifest before its last fields are.
const RECORD_SLACK: u64 = 256;

/// See the module.
pub(super) struct Draft {
    inner: Arc<Inner>,
    id: EntryId,
    pub(super) record: Record,
    /// `None` until the folder is made, and after it was given its name.
    folder: Option<PathBuf>,
    /// Whether the bytes are this draft's to give back.
    owns: bool,
}

impl Draft {
    /// Books room for `payload` bytes and the record, waits until who must leave for it is gone, and makes the folder. Room
    /// that may come (who is too young to leave, who is in use) is waited for, until `cancel`.
    pub(super) async fn book(
        inner: &Arc<Inner>,
        manifest: &ModelManifest,
        payload: u64,
        cancel: &CancellationToken,
        complete: impl FnOnce(&mut Record),
    ) -> Result<Self> {
        let mut record = Record::new(manifest, 0);
        complete(&mut record);
        let json = record.to_json().map_err(|error| disk_error(&manifest.name, error))?;
        let bytes = payload.saturating_add(on_disk(json.len() as u64 + RECORD_SLACK));
        let (name, fingerprint) = (&manifest.name, manifest.fingerprint());
        let began = Instant::now();
        let reserved = loop {
            let changed = inner.book.next_change();
            match inner.book.reserve(name, fingerprint, bytes) {
                Ok(reserved) => break reserved,
                Err((Refusal::NoRoom(_), freeing)) if freeing || began.elapsed() < inner.room_wait => {
                    let look = tokio::time::timeout(LOOK, changed);
                    if cancel.run_until_cancelled(look).await.is_none() {
                        return Err(given_up());
                    }
                }
                Err((refusal, _)) => return Err(refused(name, refusal)),
            }
        };
        record.set_serial(reserved.serial);
        let mut draft = Self { inner: Arc::clone(inner), id: reserved.id, record, folder: None, owns: true };
        inner.unlink(reserved.leaving);
        loop {
            let changed = inner.book.next_change();
            if inner.book.overhang() == 0 {
                break;
            }
            changed.await;
        }
        let (making, id) = (Arc::clone(inner), draft.id);
        let folder = inner.runtime.spawn_blocking(move || making.store.draft(id)).await;
        let folder = folder.unwrap_or_else(|error| Err(io::Error::other(error)));
        draft.folder = Some(folder.map_err(|error| disk_error(name, error))?);
        Ok(draft)
    }

    /// The folder of its files.
    pub(super) fn files(&self) -> PathBuf {
        self.folder.as_deref().map(files_of).unwrap_or_default()
    }

    /// Writes what the files are into the record, after each of them and `expected` agree and all are on the disk.
    /// Blocking.
    pub(super) fn settle(&mut self, expected: impl Iterator<Item = (String, u64)>) -> Result<()> {
        let files = store::settle(&self.files()).map_err(|error| self.disk_error(error))?;
        for (path, size) in expected {
            let found = files.binary_search_by(|(other, _)| other.as_str().cmp(&path)).ok();
            let found = found.and_then(|index| files.get(index)).map(|(_, size)| *size);
            if found != Some(size) {
                let found = found.map_or_else(|| "absent".to_owned(), |found| format!("{found} bytes long"));
                return Err(Error::internal(format!(
                    "'{path}' of model '{}' is {found} on the disk, not {size} bytes long",
                    self.record.name
                )));
            }
        }
        self.record.files = files;
        Ok(())
    }

    /// Makes it the entry. Blocking.
    pub(super) fn commit(&mut self, seconds: f64) -> Result<DiskHandle> {
        self.record.complete(seconds);
        self.resize(self.record.bytes(), None)?;
        let Some(folder) = &self.folder else { return Err(Error::internal("a disk entry has no files")) };
        if let Err(error) = self.inner.store.commit(folder, self.id, &self.record) {
            // It may have its name already, where only the sync after that failed.
            self.inner.store.discard(self.id);
            return Err(self.disk_error(error));
        }
        (self.owns, self.folder) = (false, None);
        let record = Arc::new(self.record.clone());
        let leaving = self.inner.book.publish(self.id, Arc::clone(&record));
        self.inner.unlink(leaving);
        Ok(DiskHandle::of_use(&self.inner, self.id, record))
    }

    /// Books `bytes` in the place of what was booked, waiting until they are free; with `cancel`, for room that may come as
    /// well. Blocking.
    fn resize(&self, bytes: u64, cancel: Option<&CancellationToken>) -> Result<()> {
        let inner = &self.inner;
        let began = Instant::now();
        let may_wait = || cancel.is_some() && began.elapsed() < inner.room_wait;
        let wait = |changed| {
            // Made inside: a timer needs its runtime.
            inner.runtime.block_on(async { tokio::time::timeout(LOOK, changed).await.unwrap_or_default() });
        };
        let leaving = loop {
            let changed = inner.book.next_change();
            match inner.book.resize(self.id, bytes) {
                Ok(leaving) => break leaving,
                Err((Refusal::NoRoom(_), _)) if cancel.is_some_and(CancellationToken::is_cancelled) => {
                    return Err(given_up());
                }
                Err((Refusal::NoRoom(_), freeing)) if freeing || may_wait() => {}
                Err((refusal, _)) => return Err(refused(&self.record.name, refusal)),
            }
            if !inner.unlink_one() {
                wait(changed);
            }
        };
        inner.unlink(leaving);
        loop {
            let changed = inner.book.next_change();
            if inner.book.overhang() == 0 {
                return Ok(());
            }
            // Were all threads to wait here, nobody would be left to unlink.
            if !inner.unlink_one() {
                inner.runtime.block_on(changed);
            }
        }
    }

    /// What the disk said, as an error of this model's load.
    pub(super) fn disk_error(&self, error: io::Error) -> Error {
        disk_error(&self.record.name, error)
    }

    /// Deletes the files and gives the bytes back.
    pub(super) async fn discard(mut self) {
        if let Some(cleared) = self.clear()
            && let Err(error) = cleared.await
        {
            tracing::warn!(%error, "cannot clear up after a fetch");
        }
    }

    /// The same in the background.
    fn clear(&mut self) -> Option<tokio::task::JoinHandle<()>> {
        if !std::mem::take(&mut self.owns) {
            return None;
        }
        let (inner, id, folder) = (Arc::clone(&self.inner), self.id, self.folder.take());
        // A runtime that is going down leaves the folder to the next start.
        Some(self.inner.runtime.spawn_blocking(move || {
            if let Some(folder) = folder {
                remove(&folder);
            }
            inner.book.release(id);
        }))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _cleared_in_the_background = self.clear();
    }
}

/// Lets an unpacking archive have more bytes than it was booked for.
pub(super) struct Purse<'a> {
    draft: &'a Draft,
    taken: u64,
    booked: u64,
    cancel: &'a CancellationToken,
}

impl<'a> Purse<'a> {
    pub(super) fn new(draft: &'a Draft, cancel: &'a CancellationToken) -> Self {
        Self { draft, taken: 0, booked: draft.inner.book.booked(draft.id), cancel }
    }
}

impl Space for Purse<'_> {
    fn take(&mut self, bytes: u64) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(given_up());
        }
        // Files take whole blocks; those of more than a step are asked for in steps of whole blocks.
        self.taken = self.taken.saturating_add(on_disk(bytes));
        if self.taken > self.booked {
            // In steps, so that the book is not asked for each file; but nobody is evicted for more than is needed now.
            let ample = self.taken.saturating_add(self.taken / 4);
            let free = self.draft.inner.book.free();
            let bytes = ample.min(self.booked.saturating_add(free)).max(self.taken);
            self.draft.resize(bytes, Some(self.cancel))?;
            self.booked = bytes;
        }
        Ok(())
    }
}

/// Told to nobody: those who waited are gone.
fn given_up() -> Error {
    Error::not_ready("the fetch was given up")
}

/// A failure of the disk.
pub(super) fn disk_error(name: &str, error: io::Error) -> Error {
    let text = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => format!(
            "the disk is full while model '{name}' is fetched, though its bytes were booked: others use the disk too; free \
             some of it or lower --cache-capacity"
        ),
        _ => return Error::internal(format!("cannot write model '{name}' to the disk cache")).with_source(error),
    };
    Error::new(ErrorKind::OutOfDisk, text).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_out_of_disk_and_worth_another_try() {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let error = io::Write::write_all(&mut &full, b"x").unwrap_err();
        let error = disk_error("m", error);
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::OutOfDisk, true));
        let other = disk_error("m", io::Error::other("broken"));
        assert_eq!(other.kind(), ErrorKind::Internal);
    }
}

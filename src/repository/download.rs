//! `Downloader`: whole objects of a model, in parts fetched at the same time, each resumed where it broke.
//!
//! One stream from S3 brings 85 to 90 MB/s and one connection at most 5 Gbit/s, so the parts of an object come over
//! several connections. A semaphore over all downloads bounds how many: more cost processor time and bring nothing.

mod buffered;
mod part;
mod reader;

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use self::buffered::Buffered;
use self::part::{Part, Sink};
pub use self::reader::{ObjectReader, WINDOW, fetch_error};
use super::manifest::{ModelManifest, Object};
use super::{FetchError, ModelRepository};
use crate::error::{Error, ErrorKind, Result};

/// Counts what came of one fetch. Shared with whoever shows progress.
#[derive(Debug)]
pub struct Meter {
    total: u64,
    done: AtomicU64,
    /// When it began.
    pub began: Instant,
}

impl Meter {
    /// Nothing of `total` bytes has come yet; now it begins.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self { total, done: AtomicU64::new(0), began: Instant::now() }
    }

    /// Counts bytes that came.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that came were bad and are fetched again.
    fn take_back(&self, bytes: u64) {
        self.done.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that came; never more than the total, though a reader that seeks back may fetch some twice.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed).min(self.total)
    }

    /// Bytes there are.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes a second, since it began.
    #[must_use]
    pub fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let done = self.done() as f64;
        done / self.began.elapsed().as_secs_f64().max(1e-3)
    }
}

/// How objects are fetched.
#[derive(Clone, Debug)]
pub struct DownloadOptions {
    /// The most parts in flight, over all downloads.
    pub parts: usize,
    /// Bytes of a part; 8 MiB for objects under 64 MiB, 32 MiB for those over 10 GiB, 16 MiB for others if `None`.
    pub part_bytes: Option<u64>,
    /// The most attempts in a row that bring nothing of a part.
    pub attempts: u32,
    /// The first pause after an attempt that brought nothing; each next one is twice as long, 5 s at most.
    pub back_off: Duration,
    /// Told of each range, offset and bytes, that was written to a file: it may start on its way to the disk, while the
    /// rest still comes.
    pub written: fn(&File, u64, u64),
}

impl Default for DownloadOptions {
    fn default() -> Self {
        Self { parts: 16, part_bytes: None, attempts: 5, back_off: Duration::from_millis(100), written: |_, _, _| {} }
    }
}

impl DownloadOptions {
    fn part_bytes(&self, size: u64) -> u64 {
        let by_size = match size {
            0..0x400_0000 => 8 << 20,
            0x400_0000..=0x2_8000_0000 => 16 << 20,
            _ => 32 << 20,
        };
        self.part_bytes.unwrap_or(by_size).max(1)
    }
}

/// What all downloads share.
struct Shared {
    repository: Arc<dyn ModelRepository>,
    options: DownloadOptions,
    runtime: Handle,
    parts: Semaphore,
    buffered: Buffered,
}

/// Fetches objects of one repository. Cheap to clone.
#[derive(Clone)]
pub struct Downloader {
    shared: Arc<Shared>,
}

impl Downloader {
    /// Fetches from `repository`; all work that waits for the network runs on `runtime`.
    #[must_use]
    pub fn new(repository: Arc<dyn ModelRepository>, options: DownloadOptions, runtime: Handle) -> Self {
        let parts = Semaphore::new(options.parts.clamp(1, Semaphore::MAX_PERMITS));
        let buffered = Buffered::default();
        Self { shared: Arc::new(Shared { repository, options, runtime, parts, buffered }) }
    }

    /// Where it fetches from.
    #[must_use]
    pub fn repository(&self) -> &Arc<dyn ModelRepository> {
        &self.shared.repository
    }

    /// How many bytes that came wait for their readers.
    #[must_use]
    pub fn buffered(&self) -> &Buffered {
        &self.shared.buffered
    }

    /// The object's bytes in order, for a thread that may block. Parts are fetched ahead, at most
    /// [`WINDOW`] of them, so a reader keeps at most (`WINDOW` + 2) parts in memory. Dropping it, or
    /// `cancel`, stops the fetches.
    #[must_use]
    pub fn reader(
        &self,
        manifest: &Arc<ModelManifest>,
        object: usize,
        meter: &Arc<Meter>,
        cancel: &CancellationToken,
    ) -> ObjectReader {
        let size = manifest.objects.get(object).map_or(0, |object| object.size);
        let part = self.part(manifest, object, 0..size, meter);
        ObjectReader::new(part, size, self.shared.options.part_bytes(size), cancel.clone())
    }

    /// Writes a whole object into `file`: parts at their places, in whatever order they come. An error leaves what was
    /// written; once it is returned, nothing more is written. A future that is dropped may still write what has come.
    ///
    /// # Errors
    /// `Changed` if the object is not the manifest's any more; `OutOfDisk` if the disk is full.
    pub async fn write(
        &self,
        manifest: &Arc<ModelManifest>,
        object: usize,
        file: Arc<File>,
        meter: &Arc<Meter>,
    ) -> Result<(), FetchError> {
        let size = object_of(manifest, object)?.size;
        let mut tasks = JoinSet::new();
        let reserved = Arc::clone(&file);
        tasks.spawn_on(async move { reserve(&reserved, size) }, &self.shared.runtime);
        finished(tasks.join_next().await)?;
        let part_bytes = self.shared.options.part_bytes(size);
        let mut next = 0;
        loop {
            while next < size && tasks.len() < self.shared.options.parts.max(1) {
                let end = size.min(next + part_bytes);
                let part = self.part(manifest, object, next..end, meter);
                let mut sink = FileSink {
                    file: Arc::clone(&file),
                    written: self.shared.options.written,
                    begin: next,
                    range: next..next,
                };
                tasks.spawn_on(async move { part.fetch(&mut sink).await }, &self.shared.runtime);
                next = end;
            }
            let Some(ended) = tasks.join_next().await else { return Ok(()) };
            if let Err(error) = finished(Some(ended)) {
                tasks.shutdown().await;
                return Err(error);
            }
        }
    }

    /// A small object as a whole (`config.pbtxt`).
    ///
    /// # Errors
    /// `TooLarge` if it has more than `limit` bytes; `Changed` if it is not the manifest's any more.
    pub async fn read(&self, manifest: &Arc<ModelManifest>, object: usize, limit: u64) -> Result<Vec<u8>, FetchError> {
        let Object { path, size, .. } = object_of(manifest, object)?;
        if *size > limit {
            let text = format!("{path} of model '{}' has {size} bytes; the limit is {limit}", manifest.name);
            return Err(FetchError::Failed(Error::too_large(text)));
        }
        let part = self.part(manifest, object, 0..*size, &Arc::new(Meter::new(*size)));
        let work = async move {
            let mut content = Vec::new();
            part.fetch(&mut content).await.map(|()| content)
        };
        AbortOnDropHandle::new(self.shared.runtime.spawn(work)).await.map_err(stopped)?
    }

    fn part(&self, manifest: &Arc<ModelManifest>, object: usize, range: Range<u64>, meter: &Arc<Meter>) -> Part {
        let (shared, manifest, meter) = (Arc::clone(&self.shared), Arc::clone(manifest), Arc::clone(meter));
        Part { shared, manifest, object, range, meter }
    }
}

fn object_of(manifest: &ModelManifest, object: usize) -> Result<&Object, FetchError> {
    let missing = || FetchError::Failed(Error::internal("a file was asked for that is not in the manifest"));
    manifest.objects.get(object).ok_or_else(missing)
}

/// A task of the download runtime that did not come to its end.
fn stopped(error: JoinError) -> FetchError {
    FetchError::Failed(if error.is_cancelled() {
        Error::not_ready("the server is shutting down")
    } else {
        Error::internal("a download failed").with_source(error)
    })
}

fn finished(ended: Option<Result<Result<(), FetchError>, JoinError>>) -> Result<(), FetchError> {
    ended.unwrap_or(Ok(Ok(()))).map_err(stopped)?
}

/// A small object in memory.
impl Sink for Vec<u8> {
    fn take(&mut self, _at: u64, bytes: Bytes) -> Result<(), FetchError> {
        self.extend_from_slice(&bytes);
        Ok(())
    }

    fn begin_anew(&mut self) -> bool {
        self.clear();
        true
    }
}

/// Writes where the bytes belong, from the task they came to: handing them to another thread costs more than the write
/// into the page cache, and the download runtime has no request to hold up.
struct FileSink {
    file: Arc<File>,
    written: fn(&File, u64, u64),
    /// Where the part begins.
    begin: u64,
    /// Written and not told of yet.
    range: Range<u64>,
}

/// Bytes between two reports of what was written.
const REPORT: u64 = 4 << 20;

impl FileSink {
    fn report(&mut self) {
        if !self.range.is_empty() {
            (self.written)(&self.file, self.range.start, self.range.end - self.range.start);
        }
        self.range.start = self.range.end;
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        self.report();
    }
}

impl Sink for FileSink {
    fn take(&mut self, at: u64, bytes: Bytes) -> Result<(), FetchError> {
        std::os::unix::fs::FileExt::write_all_at(&*self.file, &bytes, at).map_err(|error| {
            FetchError::Failed(if error.kind() == std::io::ErrorKind::StorageFull {
                disk_is_full().with_source(error)
            } else {
                Error::internal("cannot write into the disk cache").with_source(error)
            })
        })?;
        self.range.end = at + bytes.len() as u64;
        if self.range.end - self.range.start >= REPORT {
            self.report();
        }
        Ok(())
    }

    fn begin_anew(&mut self) -> bool {
        self.range = self.begin..self.begin;
        true
    }
}

/// Takes the blocks of a file before its bytes come: a full disk is found out now, and the file lies in one piece.
fn reserve(file: &File, size: u64) -> Result<(), FetchError> {
    if size == 0 {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), 0, size) {
        Err(Errno::NOSPC | Errno::FBIG | Errno::DQUOT) => Err(FetchError::Failed(disk_is_full())),
        // File systems without it find room as they go.
        Ok(()) | Err(_) => Ok(()),
    }
}

fn disk_is_full() -> Error {
    Error::new(ErrorKind::OutOfDisk, "the disk of the cache is full")
}

#[cfg(test)]
mod tests;

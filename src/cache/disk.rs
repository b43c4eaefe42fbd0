//! `DiskCache`: fetched models on this machine's disk, complete or absent, entry by entry.
//!
//! [`DiskCache::ensure`] brings a model: its bytes are booked before they are written, written below `temp/`, forced to
//! the disk and only then given the entry's name, so that a crash at any instant leaves whole entries and litter, and the
//! next start tells them apart. Whoever holds a [`DiskHandle`] keeps the entry from being evicted.
//!
//! `record` says what an entry is, `store` knows the folder, `book` who may stay; `draft` is an entry on its way, `fetch`
//! fills it with the versions that `choice` finds, and `flight` sees to it that a model is fetched once however many ask.

mod book;
mod choice;
mod draft;
mod fetch;
mod flight;
mod handle;
mod record;
mod store;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use self::book::{Book, Leaving};
use self::flight::{Flight, FlightKey, Outcome};
pub use self::handle::DiskHandle;
pub use self::record::{EntryId, LoadRecord};
use self::store::Store;
use crate::artifact::Limits;
use crate::cache::eviction::EvictionPolicy;
use crate::cache::table::Stage;
use crate::error::{Error, Result};
use crate::inference::Version;
use crate::repository::download::{Downloader, Meter};
use crate::repository::manifest::{Fingerprint, ModelManifest};

/// Chooses versions: from the text of `config.pbtxt`, where there is one, and the versions that the repository has. Asked
/// in a thread that may block.
pub type ChooseVersions = dyn Fn(Option<&str>, &[Version]) -> Result<Vec<Version>> + Send + Sync;

/// What a disk cache needs to know.
pub struct DiskOptions {
    /// The folder, its own; made where it is absent.
    pub directory: PathBuf,
    /// The most it may hold, in bytes of whole disk blocks.
    pub capacity: u64,
    /// An entry stays this long at least.
    pub min_residency: Duration,
    /// A fetch waits this long for room that may come.
    pub room_wait: Duration,
    /// Who goes first.
    pub policy: Box<dyn EvictionPolicy<EntryId>>,
    /// What an archive may hold.
    pub limits: Limits,
    /// Who is told.
    pub events: Arc<dyn DiskEvents>,
}

/// How a fetch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchEnd {
    /// The model is there.
    Done,
    /// It is not, for a reason that was told to who asked.
    Failed,
    /// Nobody wanted it any more.
    Cancelled,
}

/// Is told what the cache does, for metrics. Called outside of every lock.
pub trait DiskEvents: Send + Sync {
    /// A fetch ended, for which `bytes` came from the repository within `seconds`.
    fn fetched(&self, _end: FetchEnd, _bytes: u64, _seconds: f64) {}

    /// An entry left because its room was needed.
    fn evicted(&self, _bytes: u64, _age: Duration, _idle: Duration) {}
}

impl DiskEvents for () {}

/// Why a model is not on the disk.
#[derive(Clone, Debug)]
pub enum EnsureError {
    /// It changed in the repository meanwhile: resolve it anew.
    Changed,
    /// It failed.
    Failed(Error),
}

impl EnsureError {
    /// As an error of the load it happened in.
    #[must_use]
    pub fn into_error(self) -> Error {
        match self {
            Self::Changed => crate::repository::FetchError::Changed.into_error(),
            Self::Failed(error) => error,
        }
    }
}

/// How far a fetch is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FetchProgress {
    /// Bytes that came.
    pub done: u64,
    /// Bytes that will have come.
    pub total: u64,
    /// Bytes a second.
    pub rate: f64,
}

/// A model on the disk, or on its way there.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskEntryView {
    /// Its key.
    pub name: String,
    /// Booked for it; 0 for a fetch under way, which [`DiskUsage::booked`] counts.
    pub bytes: u64,
    /// Of the manifest it was fetched by.
    pub fingerprint: Fingerprint,
    /// Its versions that are here, ascending.
    pub versions: Vec<Version>,
    /// Whether a handle keeps it.
    pub in_use: bool,
    /// When it was last asked for.
    pub last_use: Option<SystemTime>,
    /// `Resident`, or `Reserved` for a fetch under way.
    pub stage: Stage,
    /// Of a fetch under way.
    pub progress: Option<FetchProgress>,
}

/// The book in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// The most it may hold, in bytes.
    pub limit: u64,
    /// Bytes reserved and resident.
    pub booked: u64,
    /// What is left of the limit.
    pub free: u64,
    /// Bytes that could be had by eviction now.
    pub evictable: u64,
    /// Bytes of models that are being fetched.
    pub reserved: u64,
    /// Complete entries.
    pub entries: usize,
    /// Entries that left for room, since the start.
    pub evictions: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
}

/// What all parts share.
struct Inner {
    store: Store,
    book: Book,
    /// To be unlinked.
    litter: Mutex<VecDeque<Leaving>>,
    flights: Mutex<HashMap<FlightKey, Arc<Flight>>>,
    downloader: Downloader,
    runtime: Handle,
    room_wait: Duration,
    limits: Limits,
    events: Arc<dyn DiskEvents>,
}

impl Inner {
    /// Unlinks entries that are none any more, in the background; their bytes are free after that.
    fn unlink(self: &Arc<Self>, leaving: impl IntoIterator<Item = Leaving>) {
        let queued = {
            let mut litter = self.litter.lock();
            let before = litter.len();
            litter.extend(leaving);
            litter.len() - before
        };
        for _ in 0..queued {
            let inner = Arc::clone(self);
            // A runtime that is going down leaves the entry to the next start.
            self.runtime.spawn_blocking(move || inner.unlink_one());
        }
        if queued > 0 {
            self.book.announce();
        }
    }

    /// Unlinks one entry, if one waits for that. Blocking.
    fn unlink_one(&self) -> bool {
        let Some(leaving) = self.litter.lock().pop_front() else { return false };
        self.store.discard(leaving.id);
        self.book.gone(&leaving);
        if let Some((bytes, age, idle)) = leaving.evicted {
            tracing::debug!(entry = %leaving.id, bytes, ?age, ?idle, "evicted from the disk");
            self.events.evicted(bytes, age, idle);
        }
        true
    }

    /// Takes versions that are there, in ascending order.
    async fn choose(
        &self,
        choose: &Arc<ChooseVersions>,
        config: Option<String>,
        available: Vec<Version>,
    ) -> Result<Vec<Version>> {
        let choose = Arc::clone(choose);
        self.blocking(move || choice::choose(&*choose, config.as_deref(), &available)).await
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let worked = self.runtime.spawn_blocking(work).await;
        worked.map_err(|error| Error::internal("work of the disk cache ended early").with_source(error))?
    }
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct DiskCache {
    inner: Arc<Inner>,
}

impl DiskCache {
    /// Takes the folder and adopts what is whole in it; the rest is deleted. Blocking; later blocking work runs on that
    /// pool of `runtime`.
    ///
    /// # Errors
    /// `InvalidArgument` that names the folder: it cannot be written, another server uses it, or it is of another version.
    pub fn open(options: DiskOptions, downloader: Downloader, runtime: Handle) -> Result<Self> {
        let store = Store::open(&options.directory)?;
        let (adopted, deleted) = store.adopt()?;
        let entries = adopted.len();
        let (book, leaving) = Book::new(options.capacity, options.min_residency, options.policy, adopted);
        let usage = book.usage();
        tracing::info!(
            folder = %options.directory.display(), entries, deleted, evicted = leaving.len(), bytes = usage.booked,
            capacity = usage.limit, "the disk cache is open"
        );
        for leaving in leaving {
            store.discard(leaving.id);
            book.gone(&leaving);
        }
        let DiskOptions { limits, events, room_wait, .. } = options;
        let (litter, flights) = (Mutex::default(), Mutex::default());
        let inner = Inner { store, book, litter, flights, downloader, runtime, room_wait, limits, events };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Brings a model to the disk, or finds it there, with the versions that `choose` takes of it. `began` is told the
    /// meter of each fetch that is waited for. Dropping the future ends the fetch, unless others wait for it too: its
    /// files go and its bytes are given back.
    ///
    /// # Errors
    /// [`EnsureError`]; `OutOfDisk` where there is no room, and whether there may be some later.
    pub async fn ensure(
        &self,
        manifest: &Arc<ModelManifest>,
        choose: &Arc<ChooseVersions>,
        began: &(dyn Fn(&Arc<Meter>) + Sync),
    ) -> Result<DiskHandle, EnsureError> {
        let inner = &self.inner;
        let fingerprint = manifest.fingerprint();
        loop {
            let seen = inner.book.generation(&manifest.name, fingerprint);
            // All become handles at once: a use that has begun is ended by its handle alone.
            let uses = inner.book.use_content(&manifest.name, fingerprint);
            let handles: Vec<_> = uses.into_iter().map(|(id, record)| DiskHandle::of_use(inner, id, record)).collect();
            for handle in handles {
                if handle.satisfies(choose).await.map_err(EnsureError::Failed)? {
                    handle.mark_used();
                    inner.book.touch(&manifest.name);
                    return Ok(handle);
                }
            }
            let Some((waiter, leads)) = inner.join(manifest, fingerprint, choose, seen) else { continue };
            match waiter.outcome(began).await {
                Outcome::Done(handle) if leads => return Ok(handle),
                // What the leader chose may not be what is wanted here: looked up anew. The handle keeps it till then.
                Outcome::Done(_) | Outcome::Cancelled => {}
                Outcome::Failed(error) => return Err(error),
            }
        }
    }

    /// What there is of a model, whatever the repository has by now. In no version that a configuration chose anew.
    #[must_use]
    pub fn newest(&self, name: &str) -> Option<DiskHandle> {
        self.inner.book.use_newest(name).map(|(id, record)| DiskHandle::of_use(&self.inner, id, record))
    }

    /// Whether some versions of this content are here, complete.
    #[must_use]
    pub fn holds(&self, name: &str, content: Fingerprint) -> bool {
        self.inner.book.holds(name, content)
    }

    /// One request for a model: it is worth so much more.
    pub fn touch(&self, name: &str) {
        self.inner.book.touch(name);
    }

    /// The model is gone from the repository: its entries leave, those in use after their last use.
    pub fn forget(&self, name: &str) {
        self.inner.unlink(self.inner.book.forget(name));
    }

    /// The book in numbers.
    #[must_use]
    pub fn usage(&self) -> DiskUsage {
        self.inner.book.usage()
    }

    /// A number that is another one when an entry has come or left.
    #[must_use]
    pub fn stamp(&self) -> u64 {
        self.inner.book.stamp()
    }

    /// Every model that is there or on its way, in no order.
    #[must_use]
    pub fn entries(&self) -> Vec<DiskEntryView> {
        let mut entries = self.inner.book.entries();
        entries.extend(self.inner.flights.lock().iter().map(|(key, flight)| flight.view(key)));
        entries
    }
}

#[cfg(test)]
mod tests;

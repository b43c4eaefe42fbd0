//! The cache's promises, over real folders.

mod adoption;
mod archives;
mod room;
mod stress;

use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::record::on_disk;
use super::*;
use crate::cache::eviction::Lru;
use crate::error::ErrorKind;
use crate::repository::download::DownloadOptions;
use crate::repository::local::Local;
use crate::repository::manifest::Object;
use crate::repository::{ByteStream, FetchError, ModelRepository};

const BLOCK: u64 = 4096;
const PLENTY: u64 = 1 << 30;

/// A folder that says that it is far away, and waits while it is held.
struct Remote {
    local: Local,
    root: PathBuf,
    fetches: AtomicUsize,
    held: watch::Sender<bool>,
}

impl ModelRepository for Remote {
    fn list(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        self.local.list()
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ModelManifest>> {
        Box::pin(async move {
            let manifest = self.local.resolve(name).await?;
            Ok(ModelManifest { local: None, ..manifest })
        })
    }

    fn fetch<'a>(
        &'a self,
        manifest: &'a ModelManifest,
        object: usize,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, FetchError>> {
        let manifest = ModelManifest { local: Some(self.root.join(&manifest.key)), ..manifest.clone() };
        Box::pin(async move {
            self.fetches.fetch_add(1, Ordering::AcqRel);
            let mut held = self.held.subscribe();
            held.wait_for(|held| !*held).await.map(drop).unwrap();
            self.local.fetch(&manifest, object, range).await
        })
    }
}

/// What was told to the listener.
#[derive(Default)]
struct Told {
    fetched: Mutex<Vec<FetchEnd>>,
    evicted: Mutex<Vec<u64>>,
}

impl DiskEvents for Told {
    fn fetched(&self, end: FetchEnd, _bytes: u64, _seconds: f64) {
        self.fetched.lock().push(end);
    }

    fn evicted(&self, bytes: u64, _age: Duration, _idle: Duration) {
        self.evicted.lock().push(bytes);
    }
}

/// A repository and the folder of a cache.
struct World {
    repository: tempfile::TempDir,
    folder: tempfile::TempDir,
    remote: Arc<Remote>,
    told: Arc<Told>,
}

impl World {
    fn new(files: &[(&str, u64)]) -> Self {
        let repository = tempfile::tempdir().unwrap();
        let root = repository.path().canonicalize().unwrap();
        let local = Local::open(&root).unwrap();
        let remote = Remote { local, root, fetches: AtomicUsize::new(0), held: watch::Sender::new(false) };
        let folder = tempfile::tempdir().unwrap();
        let world = Self { repository, folder, remote: Arc::new(remote), told: Arc::default() };
        for (path, size) in files {
            world.put(path, *size);
        }
        world
    }

    fn put(&self, path: &str, size: u64) {
        let path = self.repository.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, vec![7; usize::try_from(size).unwrap()]).unwrap();
    }

    fn put_tar(&self, path: &str, files: &[(&str, u64)]) {
        let mut archive = tar::Builder::new(std::fs::File::create(self.repository.path().join(path)).unwrap());
        for (path, size) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(*size);
            header.set_mode(0o644);
            header.set_cksum();
            archive.append_data(&mut header, path, std::io::repeat(7).take(*size)).unwrap();
        }
        archive.finish().unwrap();
    }

    fn try_open(&self, capacity: u64) -> Result<DiskCache> {
        let runtime = Handle::current();
        let repository = Arc::clone(&self.remote) as Arc<dyn ModelRepository>;
        let downloader = Downloader::new(repository, DownloadOptions::default(), runtime.clone());
        let options = DiskOptions {
            directory: self.folder.path().join("cache"),
            capacity,
            room_wait: Duration::ZERO,
            min_residency: Duration::ZERO,
            policy: Box::new(Lru::default()),
            limits: Limits::default(),
            events: Arc::clone(&self.told) as _,
        };
        DiskCache::open(options, downloader, runtime)
    }

    fn open(&self, capacity: u64) -> DiskCache {
        self.try_open(capacity).unwrap()
    }

    async fn manifest(&self, name: &str) -> Arc<ModelManifest> {
        Arc::new(self.remote.resolve(name).await.unwrap())
    }

    async fn ensure(&self, cache: &DiskCache, name: &str) -> Result<DiskHandle> {
        cache.ensure(&self.manifest(name).await, &all(), &|_| ()).await.map_err(EnsureError::into_error)
    }

    fn fetches(&self) -> usize {
        self.remote.fetches.load(Ordering::Acquire)
    }

    fn hold(&self, held: bool) {
        self.remote.held.send_replace(held);
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join("cache").join(below)
    }

    fn count(&self, below: &str) -> usize {
        self.path(below).read_dir().unwrap().count()
    }

    /// Bytes on the disk below `entries/`.
    fn used(&self) -> u64 {
        blocks_below(&self.path("entries"))
    }
}

fn blocks_below(folder: &Path) -> u64 {
    let size = |path: &Path| if path.is_dir() { blocks_below(path) } else { on_disk(path.metadata().unwrap().len()) };
    folder.read_dir().unwrap().map(|entry| size(&entry.unwrap().path())).sum()
}

fn all() -> Arc<ChooseVersions> {
    Arc::new(|_, available| Ok(available.to_vec()))
}

fn only(versions: &'static [Version]) -> Arc<ChooseVersions> {
    Arc::new(move |_, _| Ok(versions.to_vec()))
}

/// Lets others work until it is so.
async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::task::yield_now().await;
    }
}

/// Until no work in the background is left.
async fn idle(cache: &DiskCache) {
    until(|| cache.inner.book.is_idle() && Arc::strong_count(&cache.inner) == 1).await;
}

/// Ends a cache as a server that stops does.
async fn close(cache: DiskCache) {
    idle(&cache).await;
    drop(cache);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_comes_with_the_chosen_versions_and_all_that_is_in_none() {
    let world = World::new(&[("m/1/model.onnx", 5000), ("m/2/model.onnx", 9), ("m/labels.txt", 3)]);
    std::fs::write(world.repository.path().join("m/config.pbtxt"), "name: \"m\"").unwrap();
    let cache = world.open(PLENTY);
    let newest: Arc<ChooseVersions> = Arc::new(|config, available| {
        assert_eq!(config, Some("name: \"m\""));
        Ok(available.last().copied().into_iter().collect())
    });
    let total = Mutex::new(0);
    let manifest = world.manifest("m").await;
    let handle = cache.ensure(&manifest, &newest, &|meter| *total.lock() = meter.total()).await.unwrap();
    assert_eq!(handle.versions(), [2]);
    assert_eq!(*total.lock(), 9 + 3 + 9);
    let tree = handle.tree().unwrap();
    assert_eq!((tree.versions.as_slice(), tree.config.as_deref()), ([2].as_slice(), Some("name: \"m\"")));
    assert!(tree.owns_directory && !handle.path().join("1").exists());
    assert_eq!(std::fs::read(handle.path().join("2/model.onnx")).unwrap(), [7; 9]);
    assert_eq!((handle.bytes(), cache.usage().booked, world.used()), (4 * BLOCK, 4 * BLOCK, 4 * BLOCK));
    assert_eq!((world.count("temp"), world.count("trash")), (0, 0));

    let before = world.fetches();
    let again = cache.ensure(&manifest, &newest, &|_| ()).await.unwrap();
    assert_eq!((again.id(), world.fetches()), (handle.id(), before));
    assert_eq!(*world.told.fetched.lock(), [FetchEnd::Done]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_choice_is_another_entry_and_a_wider_one_takes_the_place_of_the_narrower() {
    let world = World::new(&[("m/1/model.onnx", 1), ("m/2/model.onnx", 1)]);
    let cache = world.open(PLENTY);
    let manifest = world.manifest("m").await;
    let first = cache.ensure(&manifest, &only(&[1, 9]), &|_| ()).await.unwrap();
    let second = cache.ensure(&manifest, &only(&[2]), &|_| ()).await.unwrap();
    assert_eq!((first.versions(), second.versions()), ([1].as_slice(), [2].as_slice()));
    assert_eq!(cache.usage().entries, 2);
    drop((first, second));
    let both = cache.ensure(&manifest, &all(), &|_| ()).await.unwrap();
    assert_eq!(both.versions(), [1, 2]);
    drop(both);
    idle(&cache).await;
    assert_eq!((cache.usage().entries, world.count("entries")), (1, 1));
    assert_eq!(cache.usage().booked, world.used());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_is_unpacked_and_versions_that_were_not_chosen_give_their_bytes_back() {
    let world = World::new(&[]);
    world.put_tar("m.tar", &[("resnet/1/model.onnx", 50_000), ("resnet/2/model.onnx", 10), ("resnet/labels.txt", 1)]);
    let cache = world.open(PLENTY);
    let manifest = world.manifest("m").await;
    let handle = cache.ensure(&manifest, &only(&[2]), &|_| ()).await.unwrap();
    let tree = handle.tree().unwrap();
    assert_eq!((tree.versions, handle.versions()), (vec![2], [2].as_slice()));
    assert!(tree.directory.ends_with("resnet"));
    assert_eq!((cache.usage().booked, world.used()), (3 * BLOCK, 3 * BLOCK));
    // All that the archive had is known: one that is missing is fetched.
    let both = cache.ensure(&manifest, &all(), &|_| ()).await.unwrap();
    assert_eq!(both.versions(), [1, 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_holds_no_model_leaves_nothing_behind() {
    let world = World::new(&[]);
    world.put_tar("m.tar", &[("README", 10)]);
    let cache = world.open(PLENTY);
    let error = world.ensure(&cache, "m").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert_eq!((cache.usage().booked, world.count("temp"), world.count("entries")), (0, 0, 0));
    assert_eq!(*world.told.fetched.lock(), [FetchEnd::Failed]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bare_file_is_version_1_in_a_folder_of_its_own() {
    let world = World::new(&[("m.onnx", 10), ("b/model.onnx", 3)]);
    let cache = world.open(PLENTY);
    let handle = world.ensure(&cache, "m").await.unwrap();
    let tree = handle.tree().unwrap();
    assert_eq!((tree.versions, tree.owns_directory), (vec![1], true));
    assert_eq!(tree.bare_file.unwrap(), handle.path().join("m.onnx"));
    let in_folder = world.ensure(&cache, "b").await.unwrap();
    assert_eq!(in_folder.tree().unwrap().bare_file.unwrap(), in_folder.path().join("model.onnx"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_changed_comes_anew_and_the_old_one_leaves_with_its_last_use() {
    let world = World::new(&[("m/1/model.onnx", 1)]);
    let cache = world.open(PLENTY);
    let old = world.ensure(&cache, "m").await.unwrap();
    let manifest = world.manifest("m").await;
    world.put("m/1/model.onnx", 2);
    cache.forget("other");
    let new = world.ensure(&cache, "m").await.unwrap();
    assert_ne!(old.id(), new.id());
    assert!(old.tree().is_ok() && cache.usage().entries == 2);
    assert_eq!(cache.newest("m").unwrap().id(), new.id());
    drop(old);
    until(|| world.count("entries") == 1).await;
    // The manifest of the old content is no good any more.
    let changed = cache.ensure(&manifest, &all(), &|_| ()).await;
    assert!(matches!(changed, Err(EnsureError::Changed)), "{changed:?}");
    assert_eq!(world.count("temp"), 0);
    drop(new);
    cache.forget("m");
    idle(&cache).await;
    assert_eq!((world.count("entries"), cache.usage().booked), (0, 0));
    assert!(cache.newest("m").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_changes_while_it_comes_is_told_apart_from_a_failure() {
    let world = World::new(&[]);
    world.put_tar("m.tar", &[("1/model.onnx", 50_000)]);
    let cache = world.open(PLENTY);
    let manifest = world.manifest("m").await;
    world.put_tar("m.tar", &[("1/model.onnx", 60_000)]);
    let changed = cache.ensure(&manifest, &all(), &|_| ()).await;
    assert!(matches!(changed, Err(EnsureError::Changed)), "{changed:?}");
    assert_eq!((cache.usage().booked, world.count("temp")), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_make_one_fetch_and_the_last_who_leaves_ends_it() {
    let world = World::new(&[("m/1/model.onnx", 10_000)]);
    world.put_tar("t.tar", &[("1/model.onnx", 50_000)]);
    let cache = world.open(PLENTY);
    for name in ["m", "t"] {
        world.hold(true);
        let (manifest, choose) = (world.manifest(name).await, all());
        {
            let began = |meter: &Arc<Meter>| assert!(meter.total() >= 10_000);
            let one = cache.ensure(&manifest, &choose, &began);
            let two = cache.ensure(&manifest, &choose, &began);
            tokio::pin!(one, two);
            assert!(futures_util::poll!(one.as_mut()).is_pending());
            assert!(futures_util::poll!(two.as_mut()).is_pending());
        }
        idle(&cache).await;
        assert_eq!((cache.usage().booked, world.count("temp")), (0, 0));

        let before = world.fetches();
        let leaver = tokio::spawn({
            let (cache, manifest, choose) = (cache.clone(), Arc::clone(&manifest), Arc::clone(&choose));
            async move { cache.ensure(&manifest, &choose, &|_| ()).await.map(drop) }
        });
        until(|| world.fetches() > before).await;
        let view = cache.entries();
        assert_eq!((view.len(), view[0].stage, &*view[0].name), (1, Stage::Reserved, name));
        assert_eq!(view[0].progress.map(|progress| progress.done), Some(0));
        let stays = cache.ensure(&manifest, &choose, &|_| ());
        tokio::pin!(stays);
        assert!(futures_util::poll!(stays.as_mut()).is_pending());
        leaver.abort();
        assert!(leaver.await.unwrap_err().is_cancelled());
        world.hold(false);
        let handle = stays.await.unwrap();
        assert!(handle.tree().is_ok());
        drop(handle);
        idle(&cache).await;
        cache.forget(name);
        idle(&cache).await;
    }
    let ends = world.told.fetched.lock().clone();
    assert_eq!(ends, [FetchEnd::Cancelled, FetchEnd::Done, FetchEnd::Cancelled, FetchEnd::Done]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_would_lie_elsewhere_are_refused_before_anything_is_written() {
    let world = World::new(&[("m/1/model.onnx", 1)]);
    let cache = world.open(PLENTY);
    let manifest = world.manifest("m").await;
    for paths in [vec!["../../x"], vec!["/etc/x"], vec!["1//x"], vec!["a", "a/b"]] {
        let object = |path: &str| Object { path: path.into(), size: 0, tag: String::new() };
        let objects = paths.iter().map(|path| object(path)).collect();
        let hostile = Arc::new(ModelManifest { objects, ..(*manifest).clone() });
        let error = cache.ensure(&hostile, &all(), &|_| ()).await.unwrap_err().into_error();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{paths:?}: {error:?}");
        assert_eq!((cache.usage().booked, world.count("temp")), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_choice_that_fails_or_panics_is_an_error_for_who_asked() {
    let world = World::new(&[("m/1/model.onnx", 1)]);
    let cache = world.open(PLENTY);
    let manifest = world.manifest("m").await;
    let fails: Arc<ChooseVersions> = Arc::new(|_, _| Err(Error::invalid("no such version")));
    let error = cache.ensure(&manifest, &fails, &|_| ()).await.unwrap_err().into_error();
    assert_eq!(error.to_string(), "no such version");
    let panics: Arc<ChooseVersions> = Arc::new(|_, _| panic!("in a test"));
    let error = cache.ensure(&manifest, &panics, &|_| ()).await.unwrap_err().into_error();
    assert_eq!(error.kind(), ErrorKind::Internal);
    idle(&cache).await;
    assert_eq!((cache.usage().booked, world.count("temp")), (0, 0));
    assert!(world.ensure(&cache, "m").await.is_ok());
}

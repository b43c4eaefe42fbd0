//! Objects fetched in parts, whatever the store does meanwhile: exact bytes, or an error.

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use roundhouse::error::ErrorKind;
use roundhouse::repository::download::{DownloadOptions, Downloader, Meter, ObjectReader, WINDOW, fetch_error};
use roundhouse::repository::manifest::ModelManifest;
use roundhouse::repository::s3::S3Options;
use roundhouse::repository::{FetchError, ModelRepository};
use tokio_util::sync::CancellationToken;

use super::double::{Fault, Operation, S3Double};
use super::{open, options};
use crate::support::{eventually, within};

const KEY: &str = "bucket/m.tar";
const PART: u64 = 256 << 10;

pub(super) async fn read_all(
    repository: &Arc<impl ModelRepository + ?Sized>,
    manifest: &ModelManifest,
    object: usize,
) -> Result<Vec<u8>, FetchError> {
    let mut stream = repository.fetch(manifest, object, 0..manifest.objects[object].size).await?;
    let mut content = Vec::new();
    while let Some(bytes) = stream.next().await {
        content.extend_from_slice(&bytes?);
    }
    Ok(content)
}

/// Bytes of which no two stretches are alike.
fn content(length: usize) -> Bytes {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect::<Vec<_>>().into()
}

/// One object of eleven parts and a bit, in the double and in a manifest.
struct Scene {
    double: S3Double,
    content: Bytes,
    manifest: Arc<ModelManifest>,
    downloader: Downloader,
    meter: Arc<Meter>,
    cancel: CancellationToken,
}

impl Scene {
    async fn new() -> Self {
        Self::of(content(11 * PART as usize + 12_345), 16).await
    }

    async fn of(content: Bytes, parts: usize) -> Self {
        let double = S3Double::start().await;
        double.put(KEY, content.clone());
        let s3 = open(&double, "bucket", options());
        let manifest = Arc::new(s3.resolve("m").await.unwrap());
        let download = DownloadOptions {
            parts,
            part_bytes: Some(PART),
            attempts: 3,
            back_off: Duration::from_millis(1),
            ..DownloadOptions::default()
        };
        let downloader = Downloader::new(s3, download, tokio::runtime::Handle::current());
        let meter = Arc::new(Meter::new(content.len() as u64));
        Self { double, content, manifest, downloader, meter, cancel: CancellationToken::new() }
    }

    fn reader(&self) -> ObjectReader {
        self.downloader.reader(&self.manifest, 0, &self.meter, &self.cancel)
    }

    async fn read(&self) -> std::io::Result<Vec<u8>> {
        let mut reader = self.reader();
        blocking(move || {
            let mut content = Vec::new();
            reader.read_to_end(&mut content).map(|_| content)
        })
        .await
    }

    async fn write(&self) -> Result<Vec<u8>, FetchError> {
        let mut file = tempfile::tempfile().unwrap();
        let target = Arc::new(file.try_clone().unwrap());
        within("a download", self.downloader.write(&self.manifest, 0, target, &self.meter)).await?;
        let mut content = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        Ok(content)
    }

    fn gets(&self) -> usize {
        self.double.count(Operation::Get)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    within("a thread that reads", tokio::task::spawn_blocking(work)).await.unwrap()
}

#[tokio::test]
async fn an_object_is_read_and_written_part_by_part() {
    let scene = Scene::new().await;
    assert!(scene.read().await.unwrap() == scene.content);
    assert_eq!((scene.gets(), scene.meter.done()), (12, scene.meter.total()));
    assert!(scene.write().await.unwrap() == scene.content);
    assert_eq!(scene.gets(), 24);
    assert_eq!(scene.downloader.buffered().now(), 0);
}

#[tokio::test]
async fn a_small_object_comes_whole_and_one_without_bytes_without_a_request() {
    let scene = Scene::of(content(1000), 16).await;
    assert!(scene.read().await.unwrap() == scene.content);
    assert!(scene.double.requests().iter().all(|asked| asked.range.is_none()));
    assert_eq!(scene.downloader.read(&scene.manifest, 0, 1000).await.unwrap(), scene.content);
    let error = scene.downloader.read(&scene.manifest, 0, 999).await.unwrap_err().into_error();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let empty = Scene::of(Bytes::new(), 16).await;
    assert!(empty.read().await.unwrap().is_empty() && empty.write().await.unwrap().is_empty());
    assert!(empty.downloader.read(&empty.manifest, 0, 10).await.unwrap().is_empty());
    assert_eq!(empty.gets(), 0);
}

#[tokio::test]
async fn a_part_goes_on_behind_its_last_byte() {
    let scene = Scene::of(content(PART as usize), 16).await;
    for after in [70_000, 0, 100_000, 1] {
        scene.double.fault(Operation::Get, KEY, Fault::Cut(after));
    }
    assert!(scene.read().await.unwrap() == scene.content);
    let starts: Vec<_> = scene.double.requests().iter().filter_map(|asked| Some(asked.range.clone()?.start)).collect();
    assert_eq!(scene.gets(), 5);
    assert!(starts.is_sorted() && starts.last() > Some(&100_000), "no byte is asked for twice: {starts:?}");
    assert_eq!(scene.meter.done(), scene.meter.total());
}

#[tokio::test]
async fn all_that_can_be_mended_is_mended() {
    let faults = [
        Fault::Status(503, "SlowDown"),
        Fault::Cut(90_000),
        Fault::Status(500, "InternalError"),
        Fault::Short(65_536),
        Fault::Cut(0),
        Fault::Short(0),
        Fault::Status(503, "SlowDown"),
        Fault::Cut(200_000),
    ];
    for is_read in [true, false] {
        let scene = Scene::new().await;
        for fault in &faults {
            scene.double.fault(Operation::Get, KEY, fault.clone());
        }
        let got = if is_read { scene.read().await.unwrap() } else { scene.write().await.unwrap() };
        assert!(got == scene.content, "the bytes are exact");
        assert!(scene.gets() > 15, "the faults were met: {}", scene.gets());
        assert_eq!(scene.meter.done(), scene.meter.total());
    }
}

#[tokio::test]
async fn attempts_in_vain_are_counted_in_a_row() {
    let scene = Scene::of(content(PART as usize), 16).await;
    // Each second attempt brings something: none of it is the third in vain.
    for _ in 0..5 {
        scene.double.faults(Operation::Get, KEY, 2, Fault::Status(503, "SlowDown"));
        scene.double.fault(Operation::Get, KEY, Fault::Cut(10_000));
    }
    assert!(scene.read().await.unwrap() == scene.content);
    let before = scene.gets();
    scene.double.faults(Operation::Get, KEY, 3, Fault::Status(503, "SlowDown"));
    let error = scene.write().await.unwrap_err().into_error();
    assert!(error.kind() == ErrorKind::RepositoryFailed && error.is_retryable(), "{error:?}");
    assert!(error.report().contains("3 attempts"), "{error:?}");
    assert_eq!(scene.gets() - before, 3);
}

#[tokio::test]
async fn what_cannot_be_mended_ends_all_parts_at_once() {
    for is_read in [true, false] {
        let scene = Scene::new().await;
        scene.double.fault(Operation::Get, KEY, Fault::Status(403, "AccessDenied"));
        let error = if is_read {
            let error = scene.read().await.unwrap_err();
            fetch_error(&std::io::Error::other(error)).cloned().unwrap()
        } else {
            scene.write().await.unwrap_err()
        };
        let error = error.into_error();
        assert!(!error.is_retryable() && error.to_string().contains("policy"), "{error:?}");
    }
}

#[tokio::test]
async fn an_object_that_changes_between_two_parts_is_changed_not_mixed() {
    for is_read in [true, false] {
        let scene = Scene::of(content(5 * PART as usize), 1).await;
        scene.double.faults(Operation::Get, KEY, 2, Fault::Hang);
        let replace = async {
            eventually("the first part waits", || scene.double.waiting() == 1).await;
            scene.double.release(1);
            eventually("the second part waits", || scene.gets() == 2 && scene.double.waiting() == 1).await;
            scene.double.put(KEY, scene.content.clone());
            scene.double.release(1);
        };
        let changed = if is_read {
            let (got, ()) = tokio::join!(scene.read(), replace);
            matches!(fetch_error(&got.unwrap_err()), Some(FetchError::Changed))
        } else {
            let (got, ()) = tokio::join!(scene.write(), replace);
            matches!(got, Err(FetchError::Changed))
        };
        assert!(changed);
    }
}

#[tokio::test]
async fn a_wrong_checksum_of_a_whole_object_is_found_and_fetched_anew() {
    let scene = Scene::of(content(100_000), 16).await;
    scene.double.fault(Operation::Get, KEY, Fault::Corrupt);
    assert!(scene.write().await.unwrap() == scene.content);
    assert_eq!((scene.gets(), scene.meter.done()), (2, 100_000));
    scene.double.fault(Operation::Get, KEY, Fault::Corrupt);
    assert_eq!(scene.downloader.read(&scene.manifest, 0, 1 << 20).await.unwrap(), scene.content);
    scene.double.faults(Operation::Get, KEY, 3, Fault::Corrupt);
    assert!(scene.write().await.is_err(), "not for ever");
    // A reader has handed the bytes on: it says so, and asking again may help.
    scene.double.fault(Operation::Get, KEY, Fault::Corrupt);
    let error = scene.read().await.map(|_| ()).unwrap_err();
    match fetch_error(&error) {
        Some(FetchError::Failed(error)) => assert!(error.is_retryable(), "{error:?}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_reader_holds_no_more_than_its_window() {
    let scene = Scene::new().await;
    let mut reader = scene.reader();
    let mut reader = blocking(move || {
        reader.read_exact(&mut [0]).unwrap();
        reader
    })
    .await;
    let buffered = scene.downloader.buffered();
    eventually("the window is full", || buffered.now() == WINDOW as u64 * PART).await;
    assert_eq!(scene.gets(), WINDOW, "no part is asked for beyond the window");
    let (expected, length) = (scene.content.clone(), scene.content.len());
    blocking(move || {
        let mut content = vec![0; length - 1];
        reader.read_exact(&mut content).unwrap();
        assert!(content == expected[1..]);
    })
    .await;
    assert!(buffered.most() <= (WINDOW as u64 + 2) * PART, "{} bytes", buffered.most());
    assert_eq!(buffered.now(), 0);
}

#[tokio::test]
async fn the_bytes_of_a_part_flow_before_it_is_there_as_a_whole() {
    let scene = Scene::of(content(PART as usize), 16).await;
    scene.double.fault(Operation::Get, KEY, Fault::Gated);
    scene.double.release(1);
    let mut reader = scene.reader();
    let first = blocking(move || {
        let mut first = vec![0; 1000];
        reader.read_exact(&mut first).unwrap();
        first
    })
    .await;
    assert!(first == scene.content[..1000]);
}

#[tokio::test]
async fn at_most_so_many_parts_are_in_flight_over_all_downloads() {
    let scene = Scene::of(content(11 * PART as usize), 3).await;
    scene.double.faults(Operation::Get, KEY, 1000, Fault::Hang);
    let (one, two) = (scene.write(), scene.read());
    let watch = async {
        eventually("three wait", || scene.double.waiting() == 3).await;
        for _ in 0..22 {
            assert!(scene.double.waiting() <= 3);
            scene.double.release(1);
            tokio::task::yield_now().await;
        }
    };
    let (one, two, ()) = tokio::join!(one, two, watch);
    assert!(one.unwrap() == scene.content && two.unwrap() == scene.content);
}

#[tokio::test]
async fn who_drops_a_reader_stops_its_requests() {
    let scene = Scene::new().await;
    scene.double.faults(Operation::Get, KEY, 100, Fault::Gated);
    scene.double.release(1);
    let mut reader = scene.reader();
    let reader = blocking(move || {
        reader.read_exact(&mut [0]).unwrap();
        reader
    })
    .await;
    let asked = scene.gets();
    drop(reader);
    eventually("the connections have ended", || scene.double.waiting() == 0).await;
    assert_eq!(scene.downloader.buffered().now(), 0);
    scene.double.release(1000);
    assert!(scene.write().await.unwrap() == scene.content);
    assert_eq!(scene.gets(), asked + 12, "only what the next download asks for");
}

#[tokio::test]
async fn a_request_without_an_answer_and_a_body_that_stalls_are_asked_for_again() {
    let mut scene = Scene::of(content(2 * PART as usize), 16).await;
    let short = Duration::from_millis(100);
    let impatient = S3Options { read_timeout: short, attempt_timeout: short, stall: short, ..options() };
    let download = DownloadOptions { part_bytes: Some(PART), back_off: Duration::from_millis(1), ..Default::default() };
    let s3 = open(&scene.double, "bucket", impatient);
    scene.downloader = Downloader::new(s3, download, tokio::runtime::Handle::current());
    scene.double.fault(Operation::Get, KEY, Fault::Hang);
    scene.double.fault(Operation::Get, KEY, Fault::Gated);
    assert!(scene.write().await.unwrap() == scene.content);
    assert_eq!(scene.gets(), 4);
}

#[tokio::test]
async fn a_cancelled_download_wakes_its_reader() {
    let scene = Scene::new().await;
    scene.double.faults(Operation::Get, KEY, 100, Fault::Hang);
    let cancel = async {
        eventually("requests hang", || scene.double.waiting() > 0).await;
        scene.cancel.cancel();
    };
    let (got, ()) = tokio::join!(scene.read(), cancel);
    match fetch_error(&got.unwrap_err()) {
        Some(FetchError::Failed(error)) => assert_eq!(error.kind(), ErrorKind::NotReady),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_store_that_goes_down_and_comes_back_costs_no_byte() {
    let scene = Scene::new().await;
    scene.double.faults(Operation::Get, KEY, 4, Fault::Gated);
    scene.double.release(3);
    let restart = async {
        eventually("the first parts are on their way", || scene.double.waiting() == 4).await;
        scene.double.down();
        scene.double.up();
        scene.double.release(100);
    };
    let (got, ()) = tokio::join!(scene.read(), restart);
    assert!(got.unwrap() == scene.content);
}

#[tokio::test]
async fn a_reader_jumps_back_and_forth() {
    let scene = Scene::new().await;
    let expected = scene.content.clone();
    let mut reader = scene.reader();
    blocking(move || {
        let size = expected.len() as u64;
        let mut at = |to: SeekFrom, length: usize| {
            let position = reader.seek(to).unwrap() as usize;
            let mut bytes = vec![0; length];
            reader.read_exact(&mut bytes).unwrap();
            assert!(bytes == expected[position..position + length], "{to:?}");
        };
        at(SeekFrom::End(-22), 22);
        at(SeekFrom::Start(0), 10);
        at(SeekFrom::Current(100), 300_000);
        at(SeekFrom::Start(7 * PART + 5), 2 * PART as usize);
        at(SeekFrom::Current(-10), 20);
        at(SeekFrom::Start(size - 1), 1);
        assert_eq!(reader.seek(SeekFrom::Start(size + 10)).unwrap(), size + 10);
        assert_eq!(reader.read(&mut [0; 10]).unwrap(), 0);
        assert!(reader.seek(SeekFrom::Start(0)).is_ok() && reader.seek(SeekFrom::Current(-1)).is_err());
    })
    .await;
    assert!(scene.gets() < 40);
}

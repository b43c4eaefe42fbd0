//! The downloader over a folder; over a network it is tested in `tests/it/s3`.

use std::io::Read;
use std::os::unix::fs::FileExt;

use super::*;
use crate::repository::local::Local;

async fn downloader(content: &[u8]) -> (tempfile::TempDir, Downloader, Arc<ModelManifest>) {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("m.tar"), content).unwrap();
    let local = Arc::new(Local::open(root.path()).unwrap());
    let manifest = Arc::new(local.resolve("m").await.unwrap());
    let options = DownloadOptions { part_bytes: Some(1000), ..DownloadOptions::default() };
    (root, Downloader::new(local, options, Handle::current()), manifest)
}

#[test]
fn parts_are_as_large_as_objects_deserve() {
    let options = DownloadOptions::default();
    assert_eq!(options.part_bytes((64 << 20) - 1), 8 << 20);
    assert_eq!(options.part_bytes(64 << 20), 16 << 20);
    assert_eq!(options.part_bytes(10 << 30), 16 << 20);
    assert_eq!(options.part_bytes((10 << 30) + 1), 32 << 20);
    assert_eq!(DownloadOptions { part_bytes: Some(0), ..options }.part_bytes(5), 1, "no part is empty");
}

#[test]
fn a_meter_never_shows_more_than_there_is() {
    let meter = Meter::new(10);
    meter.add(8);
    meter.add(8);
    assert_eq!((meter.done(), meter.total()), (10, 10));
    meter.take_back(8);
    assert_eq!(meter.done(), 8);
    assert!(meter.rate() > 0.0);
}

#[tokio::test]
async fn a_file_of_a_folder_is_fetched_as_any_other_object() {
    let content: Vec<u8> = (0..12_345_u32).flat_map(u32::to_le_bytes).collect();
    let (_root, downloader, manifest) = downloader(&content).await;
    let meter = Arc::new(Meter::new(manifest.bytes()));
    let file = Arc::new(tempfile::tempfile().unwrap());
    downloader.write(&manifest, 0, Arc::clone(&file), &meter).await.unwrap();
    let mut written = vec![0; content.len()];
    file.read_exact_at(&mut written, 0).unwrap();
    assert!(written == content && meter.done() == meter.total());
    assert_eq!(file.metadata().unwrap().len(), content.len() as u64);
    let mut reader = downloader.reader(&manifest, 0, &meter, &CancellationToken::new());
    let read = tokio::task::spawn_blocking(move || {
        let mut read = Vec::new();
        reader.read_to_end(&mut read).map(|_| read)
    });
    assert!(read.await.unwrap().unwrap() == content);
    assert!(downloader.buffered().most() <= 6 * 1000);
}

#[tokio::test]
async fn a_full_disk_is_told_from_other_faults() {
    let (_root, downloader, manifest) = downloader(&[7; 5000]).await;
    let meter = Arc::new(Meter::new(5000));
    // Every write to this device says that the disk is full.
    let full = Arc::new(File::options().write(true).open("/dev/full").unwrap());
    let error = downloader.write(&manifest, 0, full, &meter).await.unwrap_err().into_error();
    assert_eq!(error.kind(), ErrorKind::OutOfDisk);
    let read_only = Arc::new(File::open("/dev/null").unwrap());
    let error = downloader.write(&manifest, 0, read_only, &meter).await.unwrap_err().into_error();
    assert_eq!(error.kind(), ErrorKind::Internal);
}

#[tokio::test]
async fn an_object_that_is_not_there_is_an_error_of_ours() {
    let (_root, downloader, manifest) = downloader(b"x").await;
    assert!(matches!(downloader.read(&manifest, 1, 10).await, Err(FetchError::Failed(_))));
}

#[test]
fn the_cause_of_a_failed_read_is_found_below_any_wrapping() {
    let inner = std::io::Error::other(FetchError::Changed);
    assert!(matches!(fetch_error(&inner), Some(FetchError::Changed)));
    let wrapped = std::io::Error::other(std::io::Error::other(Error::internal("cannot unpack").with_source(inner)));
    assert!(matches!(fetch_error(&wrapped), Some(FetchError::Changed)));
    assert!(fetch_error(&std::io::Error::from(std::io::ErrorKind::NotFound)).is_none());
}

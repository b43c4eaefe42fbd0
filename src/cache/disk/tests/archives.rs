//! Archives that unpack to more than they are.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use zip::write::SimpleFileOptions;

use super::*;

/// A model of two versions of blanks, which compress to nearly nothing.
const FILES: [(&str, u64); 3] = [("m/config.pbtxt", 9), ("m/1/model.onnx", 50 * BLOCK), ("m/2/model.onnx", 5 * BLOCK)];

fn tar_gz() -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, size) in FILES {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append_data(&mut header, path, std::io::repeat(b' ').take(size)).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

fn zip() -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (path, size) in FILES {
        archive.start_file(path, SimpleFileOptions::default()).unwrap();
        archive.write_all(&vec![b' '; usize::try_from(size).unwrap()]).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_archive_takes_room_as_it_unpacks() {
    let world = World::new(&[]);
    let archive = tar_gz();
    assert!((archive.len() as u64) < 2 * BLOCK);
    std::fs::write(world.repository.path().join("m.tar.gz"), archive).unwrap();
    let cache = world.open(60 * BLOCK);
    let manifest = world.manifest("m").await;
    let handle = cache.ensure(&manifest, &only(&[2]), &|_| ()).await.unwrap();
    assert_eq!((handle.versions(), handle.bytes(), world.used()), ([2].as_slice(), 7 * BLOCK, 7 * BLOCK));
    drop(handle);
    close(cache).await;
    // All of it is on the disk once, before what was not chosen leaves.
    let world = World { folder: tempfile::tempdir().unwrap(), ..world };
    let cache = world.open(30 * BLOCK);
    let error = cache.ensure(&manifest, &only(&[2]), &|_| ()).await.unwrap_err().into_error();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::OutOfDisk, false));
    assert!(error.to_string().contains("--cache-capacity"), "{error}");
    assert_eq!((cache.usage().booked, world.count("temp")), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_zip_only_what_was_chosen_needs_room() {
    let world = World::new(&[]);
    std::fs::write(world.repository.path().join("m.zip"), zip()).unwrap();
    let cache = world.open(10 * BLOCK);
    let choose: Arc<ChooseVersions> = Arc::new(|config, available| {
        assert_eq!((config, available), (Some("         "), [1, 2].as_slice()));
        Ok(vec![2])
    });
    let manifest = world.manifest("m").await;
    let handle = cache.ensure(&manifest, &choose, &|_| ()).await.unwrap();
    assert_eq!((handle.versions(), handle.bytes(), world.used()), ([2].as_slice(), 7 * BLOCK, 7 * BLOCK));
    assert_eq!(handle.tree().unwrap().versions, [2]);
    // What the archive has besides is known without another look at it.
    assert_eq!(cache.ensure(&manifest, &choose, &|_| ()).await.unwrap().id(), handle.id());
    let both = cache.ensure(&manifest, &all(), &|_| ()).await.unwrap_err().into_error();
    assert_eq!((both.kind(), both.is_retryable()), (ErrorKind::OutOfDisk, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_archive_is_named_and_leaves_nothing_behind() {
    let world = World::new(&[]);
    let whole = tar_gz();
    let cut = &whole[..whole.len() - 20];
    for bytes in [cut, b"not an archive at all"] {
        std::fs::write(world.repository.path().join("m.tar.gz"), bytes).unwrap();
        let cache = world.open(PLENTY);
        let error = world.ensure(&cache, "m").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error:?}");
        assert!(error.to_string().contains("cannot unpack 'm.tar.gz'"), "{error}");
        assert_eq!((cache.usage().booked, world.count("temp"), world.count("entries")), (0, 0, 0));
        close(cache).await;
    }
}

//! Who leaves for whom, and what happens where nobody can.

use tokio_util::sync::CancellationToken;

use super::super::draft::{Draft, Purse};
use super::*;
use crate::artifact::Space;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_recently_used_leaves_and_what_is_in_use_never_does() {
    let world =
        World::new(&["a/1/model.onnx", "b/1/model.onnx", "c/1/model.onnx", "d/1/model.onnx"].map(|path| (path, 5000)));
    let cache = world.open(9 * BLOCK);
    let kept = world.ensure(&cache, "a").await.unwrap();
    drop(world.ensure(&cache, "b").await.unwrap());
    drop(world.ensure(&cache, "c").await.unwrap());
    cache.touch("b");
    let last = world.ensure(&cache, "d").await.unwrap();
    let mut names: Vec<_> = cache.entries().into_iter().map(|entry| (entry.name, entry.in_use)).collect();
    names.sort_unstable();
    assert_eq!(names, [("a".to_owned(), true), ("b".to_owned(), false), ("d".to_owned(), true)]);
    until(|| !world.told.evicted.lock().is_empty()).await;
    assert_eq!(*world.told.evicted.lock(), [3 * BLOCK]);
    assert_eq!((cache.usage().evictions, cache.usage().evicted_bytes), (1, 3 * BLOCK));
    assert!(kept.tree().is_ok() && last.tree().is_ok());
    assert_eq!((cache.usage().booked, world.used()), (9 * BLOCK, 9 * BLOCK));

    let b = cache.newest("b").unwrap();
    let error = world.ensure(&cache, "c").await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::OutOfDisk, true));
    assert!(error.report().contains("no room for"), "{}", error.report());
    drop(b);
    assert!(world.ensure(&cache, "c").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_larger_than_the_cache_is_refused_for_good_and_evicts_nobody() {
    let world = World::new(&[("a/1/model.onnx", 1), ("b/1/model.onnx", 10 * BLOCK)]);
    world.put_tar("t.tar", &[("1/model.onnx", 10 * BLOCK)]);
    let cache = world.open(10 * BLOCK);
    drop(world.ensure(&cache, "a").await.unwrap());
    let before = world.fetches();
    for name in ["b", "t"] {
        let error = world.ensure(&cache, name).await.unwrap_err();
        assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::OutOfDisk, false));
        assert!(error.to_string().contains("--cache-capacity") && error.to_string().contains(name), "{error}");
    }
    assert_eq!((cache.usage().entries, world.fetches()), (1, before));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_fetches_at_once_never_have_the_same_room() {
    let world = World::new(&[("a/1/model.onnx", 5 * BLOCK), ("b/1/model.onnx", 5 * BLOCK)]);
    let cache = world.open(10 * BLOCK);
    world.hold(true);
    let (manifest, choose) = (world.manifest("a").await, all());
    let first = cache.ensure(&manifest, &choose, &|_| ());
    tokio::pin!(first);
    assert!(futures_util::poll!(first.as_mut()).is_pending());
    until(|| world.fetches() == 1).await;
    let error = world.ensure(&cache, "b").await.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::OutOfDisk, true));
    world.hold(false);
    drop(first.await.unwrap());
    // Its room is a victim's: nothing is written before the victim is gone.
    let second = world.ensure(&cache, "b").await.unwrap();
    assert_eq!((world.count("entries"), world.used(), second.bytes()), (1, 6 * BLOCK, 6 * BLOCK));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_grows_takes_more_room_step_by_step_and_fails_where_there_is_none() {
    let world = World::new(&[("a/1/model.onnx", 5000), ("b/1/model.onnx", 5000), ("m/1/model.onnx", 1)]);
    let cache = world.open(12 * BLOCK);
    drop(world.ensure(&cache, "a").await.unwrap());
    let b = world.ensure(&cache, "b").await.unwrap();
    let manifest = world.manifest("m").await;
    let draft = Draft::book(&cache.inner, &manifest, BLOCK, &CancellationToken::new(), |_| ()).await.unwrap();
    let book = Arc::clone(&cache.inner);
    let (draft, errors) = tokio::task::spawn_blocking(move || {
        let cancel = tokio_util::sync::CancellationToken::new();
        let mut purse = Purse::new(&draft, &cancel);
        purse.take(2 * BLOCK).unwrap();
        assert_eq!((book.book.usage().booked, book.book.usage().entries), (8 * BLOCK, 2));
        // A quarter more than is needed as long as it is free, and not a byte more than that.
        purse.take(3 * BLOCK).unwrap();
        assert_eq!((book.book.usage().booked, book.book.usage().entries), (12 * BLOCK, 2));
        purse.take(2 * BLOCK).unwrap();
        assert_eq!((book.book.usage().booked, book.book.usage().entries), (10 * BLOCK, 1));
        let full = purse.take(3 * BLOCK).unwrap_err();
        let huge = purse.take(20 * BLOCK).unwrap_err();
        assert_eq!(book.book.usage().booked, 10 * BLOCK);
        cancel.cancel();
        assert!(purse.take(0).is_err());
        (draft, [full, huge])
    })
    .await
    .unwrap();
    assert_eq!(
        errors.map(|error| (error.kind(), error.is_retryable())),
        [(ErrorKind::OutOfDisk, true), (ErrorKind::OutOfDisk, false)]
    );
    assert!(b.tree().is_ok());
    draft.discard().await;
    assert_eq!((cache.usage().booked, world.count("temp")), (3 * BLOCK, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn derived_files_are_booked_and_deleted_where_there_is_no_room_for_them() {
    let world = World::new(&[("a/1/model.onnx", 1)]);
    let cache = world.open(4 * BLOCK);
    let handle = world.ensure(&cache, "a").await.unwrap();
    std::fs::write(handle.derived().unwrap().join("optimised.onnx"), [0; 5000]).unwrap();
    handle.measure_derived().unwrap();
    assert_eq!((handle.bytes(), world.used()), (4 * BLOCK, 4 * BLOCK));
    drop(handle);
    close(cache).await;
    let cache = world.open(4 * BLOCK);
    assert_eq!(cache.usage().booked, 4 * BLOCK);
    let handle = cache.newest("a").unwrap();
    std::fs::write(handle.derived().unwrap().join("more.onnx"), [0; 1]).unwrap();
    let error = handle.measure_derived().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfDisk);
    assert_eq!((handle.bytes(), world.used()), (2 * BLOCK, 2 * BLOCK));
    assert!(handle.tree().is_ok());
}

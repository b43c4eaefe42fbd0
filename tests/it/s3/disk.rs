//! The disk of a server over S3: what does not fit, who leaves, and what a restart finds.

use std::sync::Arc;

use roundhouse::app::App;
use roundhouse::backend::identity::Identity;
use roundhouse::backend::registry::BackendRegistry;
use roundhouse::lifecycle::residency::Tier;

use super::bucket::{Bucket, CacheFolder, ask, disk, memory, model, state};
use crate::support::binary::run;
use crate::support::client::{infer, load, unload};
use crate::support::eventually;
use crate::support::repository::Repository;
use crate::support::server::{at_uri, config_for};

#[tokio::test]
async fn a_model_that_is_larger_than_the_disk_cache_is_refused_and_evicts_nobody() {
    let bucket = Bucket::start().await;
    bucket.models(&[("small", 10_000)]);
    bucket.archive("large.tar", &model("large", 300_000));
    // Its archive is small, what comes out of it is not.
    bucket.archive("inflated.tar.zst", &vec![("1/weights".to_owned(), vec![0; 300_000])]);
    bucket.folder("folder", model("folder", 300_000));
    let server = bucket.serve(disk(200)).await;
    ask(&server, "small", 1).await;
    let booked = server.disk().booked;
    let cache = CacheFolder::of(&server);
    for name in ["large", "inflated", "folder"] {
        let refused = server.ask(&infer(name, 2)).await.expect(503);
        let text = refused.error();
        assert!(text.contains(name) && text.contains("--cache-capacity"), "{text}");
        assert_eq!(refused.json()["code"], "out_of_disk");
        assert_eq!(refused.header("retry-after"), None, "no wait helps: {text}");
        assert_eq!(server.ask(&load(name)).await.expect(503).json()["code"], "out_of_disk");
        eventually("nothing of it is left", || cache.litter().is_empty() && server.disk().booked == booked).await;
    }
    assert_eq!((server.disk().models, server.disk().reserved), (1, 0));
    assert_eq!(server.metric("roundhouse_evictions_total{tier=\"disk\",reason=\"room\"}"), Some(0.0));
    assert!(
        bucket.gets_of("large.tar") + bucket.gets_of("folder/1/weights") == 0,
        "what is known not to fit is not asked for"
    );
    server.finish().await;
}

#[tokio::test]
async fn who_was_asked_for_least_leaves_the_disk_even_while_in_memory() {
    let bucket = Bucket::start().await;
    bucket.models(&[("a", 100_000), ("b", 100_000), ("c", 100_000)]);
    let server = bucket.serve(disk(300)).await;
    for (tag, name) in (0..).zip(["a", "b", "a", "a"]) {
        ask(&server, name, tag).await;
    }
    // Uses of what is in memory count on the disk too.
    for (tag, name) in (0..).zip(["a", "a"]) {
        server.ask(&unload(name)).await.expect(200);
        ask(&server, name, tag).await;
    }
    // Uses are counted now and then.
    drop(server.inner.metrics_page());
    ask(&server, "c", 9).await;
    let cache = CacheFolder::of(&server);
    eventually("one has left", || cache.entries() == 2).await;
    assert_eq!(server.row("b").disk_bytes, 0);
    // A model that read its files while it was loaded answers on without them.
    assert_eq!((server.row("b").tier, state(&ask(&server, "b", 10).await)), (Tier::Device, "device"));
    assert_eq!(server.metric("roundhouse_evictions_total{tier=\"disk\",reason=\"room\"}"), Some(1.0));
    server.ask(&unload("b")).await.expect(200);
    assert_eq!(state(&ask(&server, "b", 11).await), "remote");
    eventually("the book is what the disk holds", || {
        cache.litter().is_empty() && server.disk().booked == cache.bytes() && server.disk().models == 2
    })
    .await;
    server.finish().await;
}

#[tokio::test]
async fn requests_for_what_is_in_memory_keep_its_files_on_the_disk() {
    let bucket = Bucket::start().await;
    bucket.models(&[("hot", 100_000), ("cold", 100_000), ("new", 100_000)]);
    let server = bucket.serve(disk(300)).await;
    ask(&server, "hot", 0).await;
    ask(&server, "cold", 0).await;
    for tag in 0..50 {
        ask(&server, "hot", tag).await;
    }
    // Uses are counted now and then.
    drop(server.inner.metrics_page());
    ask(&server, "new", 1).await;
    eventually("one has left", || server.disk().models == 2).await;
    assert_eq!((server.row("cold").disk_bytes, server.row("hot").disk_bytes > 0), (0, true));
    server.finish().await;
}

#[tokio::test]
async fn a_fetch_waits_for_room_that_comes_when_others_are_old_enough_to_leave() {
    let bucket = Bucket::start().await;
    bucket.models(&[("a", 100_000), ("b", 100_000)]);
    bucket.archive(
        "unpacked.tar.gz",
        &vec![
            ("config.pbtxt".to_owned(), super::bucket::config("unpacked", "gated", "y", "")),
            ("1/weights".to_owned(), vec![0; 100_000]),
        ],
    );
    let server = bucket.serve(|config| {
        disk(150)(config);
        config.cache.min_residency = std::time::Duration::from_millis(300);
    });
    let server = server.await;
    for (tag, name) in (0..).zip(["a", "b", "unpacked"]) {
        assert_eq!(state(&ask(&server, name, tag).await), "remote");
    }
    server.finish().await;
}

#[tokio::test]
async fn a_restart_finds_what_is_on_the_disk_and_fetches_nothing() {
    let bucket = Bucket::start().await;
    bucket.folder("folder", model("folder", 100_000));
    bucket.archive("archive.tar.gz", &model("archive", 100_000));
    let shared = tempfile::tempdir().unwrap();
    let server = bucket.serve(|config| config.cache.directory = shared.path().to_owned()).await;
    for name in ["folder", "archive"] {
        ask(&server, name, 1).await;
    }
    let booked = server.disk().booked;
    server.finish().await;
    unlocked(shared.path()).await;
    let (lists, gets) = (bucket.lists(), bucket.gets());
    let server = bucket.serve(|config| config.cache.directory = shared.path().to_owned()).await;
    assert_eq!((server.disk().models, server.disk().booked), (2, booked), "adopted before anybody asks");
    assert_eq!((server.row("folder").tier, server.row("folder").loads), (Tier::Disk, 0));
    for name in ["folder", "archive"] {
        assert_eq!(state(&ask(&server, name, 2).await), "disk");
    }
    assert_eq!((bucket.lists() - lists, bucket.gets() - gets), (2, 0));
    // What changed while nobody looked is fetched.
    bucket.archive("archive.tar.gz", &model("archive", 90_000));
    server.ask(&unload("archive")).await.expect(200);
    assert_eq!(state(&ask(&server, "archive", 3).await), "remote");
    server.finish().await;
}

/// The background threads of a server that was stopped have let go of its folder.
async fn unlocked(folder: &std::path::Path) {
    let lock = std::fs::File::open(folder.join("LOCK")).unwrap();
    eventually("the cache folder is free", || lock.try_lock().is_ok()).await;
}

#[tokio::test]
async fn a_restart_with_less_room_keeps_what_was_used_last() {
    let bucket = Bucket::start().await;
    bucket.models(&[("a", 100_000), ("b", 100_000), ("c", 100_000)]);
    let shared = tempfile::tempdir().unwrap();
    let server = bucket.serve(|config| config.cache.directory = shared.path().to_owned()).await;
    for name in ["a", "b", "c"] {
        ask(&server, name, 1).await;
    }
    server.finish().await;
    unlocked(shared.path()).await;
    let smaller = bucket.serve(|config| {
        disk(250)(config);
        config.cache.directory = shared.path().to_owned();
    });
    let server = smaller.await;
    assert_eq!((server.disk().models, server.disk().limit), (2, 250 << 10));
    assert!(server.disk().booked <= 250 << 10, "{:?}", server.disk());
    for name in ["a", "b", "c"] {
        ask(&server, name, 2).await;
    }
    server.finish().await;
}

#[tokio::test]
async fn two_servers_do_not_share_a_cache_folder() {
    let bucket = Bucket::start().await;
    bucket.models(&[("m", 1000)]);
    let server = bucket.serve(|_| {}).await;
    ask(&server, "m", 1).await;
    let other = Repository::empty();
    let mut config = config_for(&other);
    at_uri(&mut config, &bucket.uri());
    config.cache.directory = server.repository.path().join(".cache");
    let folder = config.cache.directory.display().to_string();
    let error = App::build_with(config, BackendRegistry::default().with(Arc::new(Identity))).err().unwrap();
    assert!(error.to_string().contains("--cache-dir") && error.to_string().contains(&folder), "{error}");
    let ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"];
    let uri = bucket.uri();
    let arguments = [&["serve", "--model-repository", &uri, "--cache-dir", &folder], ports.as_slice()].concat();
    let (code, stderr) = run(&arguments);
    assert_eq!(code, Some(64), "{stderr}");
    assert!(stderr.contains("another server uses the cache folder") && stderr.contains("--cache-dir"), "{stderr}");
    assert_eq!(state(&ask(&server, "m", 2).await), "device");
    server.ask(&unload("m")).await.expect(200);
    assert_eq!(state(&ask(&server, "m", 3).await), "disk", "the first one's folder was not touched");
    server.finish().await;
}

#[tokio::test]
async fn a_cache_folder_that_cannot_be_used_is_named() {
    let bucket = Bucket::start().await;
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("file"), "x").unwrap();
    std::fs::create_dir_all(place.path().join("foreign/entries")).unwrap();
    for folder in ["file", "file/below", "foreign"] {
        let folder = place.path().join(folder).display().to_string();
        let uri = bucket.uri();
        let arguments = ["serve", "--model-repository", &uri, "--cache-dir", &folder];
        let (code, stderr) =
            run(&[&arguments, ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"].as_slice()].concat());
        assert_eq!(code, Some(64), "{stderr}");
        assert!(stderr.contains(&folder) && stderr.contains("--cache-dir"), "{stderr}");
    }
}

#[tokio::test]
async fn memory_and_disk_are_two_books() {
    let bucket = Bucket::start().await;
    let needs = crate::support::repository::holds(200, 200);
    for name in ["a", "b"] {
        bucket.archive(&format!("{name}.tar"), &super::bucket::model_with(name, "y", 50_000, &needs));
    }
    let server = bucket.serve(|config| memory(config, 300)).await;
    for (tag, name, expected) in [(1, "a", "remote"), (2, "b", "remote"), (3, "a", "disk"), (4, "b", "disk")] {
        assert_eq!(state(&ask(&server, name, tag).await), expected);
    }
    assert_eq!((bucket.gets(), server.disk().models, server.books()[0].models), (2, 2, 1));
    server.finish().await;
}

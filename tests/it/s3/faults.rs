//! Servers over an S3 that fails, hangs, or holds what it should not: everybody else goes on, and nothing is left behind.

use roundhouse::backend::gated::Step;

use super::bucket::{
    Bucket, CacheFolder, Random, ask, compressed, disk, memory, model, model_with, packed, state, tar_entry,
};
use super::double::{Fault, Operation};
use crate::support::client::{Client, Response, infer, load, post, unload};
use crate::support::repository::holds;
use crate::support::server::{TestServer, all};
use crate::support::{eventually, within};

/// Nothing of a fetch that did not come to its end is left.
async fn left_nothing(server: &TestServer, booked: u64) {
    let cache = CacheFolder::of(server);
    eventually("nothing is left of the fetch", || {
        let disk = server.disk();
        cache.litter().is_empty() && (disk.booked, disk.reserved) == (booked, 0)
    })
    .await;
}

#[tokio::test]
async fn a_download_that_nobody_waits_for_any_more_stops_and_leaves_nothing() {
    let bucket = Bucket::start().await;
    bucket.archive("archive.tar.gz", &model("archive", 1 << 20));
    bucket.folder("folder", model("folder", 1 << 20));
    let server = bucket.serve(|_| {}).await;
    for (cancelled, (name, object)) in (1..).zip([("archive", "archive.tar.gz"), ("folder", "folder/1/weights")]) {
        bucket.double.fault(Operation::Get, &bucket.key(object), Fault::Gated);
        let booked = server.disk().booked;
        let clients = [server.send(&infer(name, 1)).await, server.send(&infer(name, 2)).await];
        eventually("a chunk waits", || bucket.double.waiting() == 1).await;
        bucket.double.release(3);
        let fetch = || server.row_if(name).and_then(|row| row.fetch).map_or(0, |fetch| fetch.done);
        eventually("three chunks have come", || fetch() >= 3 * 65_536 && bucket.double.waiting() == 1).await;
        assert!(server.disk().reserved >= 1 << 20);
        let [leaver, last] = clients;
        drop(leaver);
        // Asked on another connection after the first has gone: the download goes on for the one who waits.
        server.ask(&post("/v2/repository/index", "")).await.expect(200);
        assert_eq!(bucket.double.waiting(), 1);
        drop(last);
        eventually("the request for bytes has ended", || bucket.double.waiting() == 0).await;
        left_nothing(&server, booked).await;
        eventually("the load is abandoned", || server.loads("cancelled") == cancelled).await;
        assert_eq!(bucket.gets_of(object), 1);
        assert_eq!(state(&ask(&server, name, 3).await), "remote", "and then it comes as if nothing had been");
    }
    assert_eq!(server.metric("roundhouse_fetches_total{outcome=\"cancelled\"}"), Some(2.0));
    server.finish().await;
}

#[tokio::test]
async fn while_s3_is_down_what_is_here_answers_and_the_rest_is_told_to_come_back() {
    let bucket = Bucket::start().await;
    bucket.models(&[("resident", 1000), ("on-disk", 1000), ("remote", 1000)]);
    let server = bucket.serve(|config| config.load_retry = std::time::Duration::ZERO).await;
    ask(&server, "resident", 1).await;
    ask(&server, "on-disk", 1).await;
    server.ask(&unload("on-disk")).await.expect(200);
    bucket.double.down();
    assert_eq!(state(&ask(&server, "resident", 2).await), "device");
    assert_eq!(state(&ask(&server, "on-disk", 2).await), "disk");
    for name in ["remote", "nowhere"] {
        let refused = server.ask(&infer(name, 3)).await.expect(503);
        assert_eq!(refused.header("retry-after"), Some("1"), "a wait helps");
        assert!(refused.error().contains(name) && refused.error().contains("S3"), "{}", refused.error());
    }
    // A reload that cannot ask says so, and what answers goes on.
    let refused = server.ask(&load("resident")).await;
    assert!(refused.status >= 500, "{}", refused.text());
    assert_eq!(state(&ask(&server, "resident", 4).await), "device");
    bucket.double.up();
    assert_eq!(state(&ask(&server, "remote", 5).await), "remote");
    server.ask(&infer("nowhere", 6)).await.expect(404);
    server.ask(&load("resident")).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn what_is_on_the_disk_does_not_wait_for_an_s3_that_says_nothing() {
    let bucket = Bucket::start().await;
    bucket.models(&[("m", 1000)]);
    let server = bucket.serve(|_| {}).await;
    ask(&server, "m", 1).await;
    server.ask(&unload("m")).await.expect(200);
    bucket.double.faults(Operation::List, "bucket", 100, Fault::Hang);
    let answer = server.ask(&infer("m", 2).header("x-request-timeout-ms", 20_000)).await;
    assert_eq!((answer.tag(), state(&answer)), (2, "disk"));
    server.finish().await;
}

#[tokio::test]
async fn a_denied_request_names_the_credentials_and_asks_for_no_retry() {
    let bucket = Bucket::start().await;
    bucket.models(&[("list", 1000), ("get", 1000)]);
    let server = bucket.serve(|config| config.load_retry = std::time::Duration::ZERO).await;
    let denied = |answer: Response| {
        assert!(answer.status >= 500, "{}", answer.text());
        let text = answer.error();
        assert!(text.contains("credentials") && text.contains("AccessDenied"), "{text}");
        assert_eq!(answer.header("retry-after"), None, "no wait helps: {text}");
    };
    bucket.double.faults(Operation::List, "bucket", 2, Fault::Status(403, "AccessDenied"));
    denied(server.ask(&infer("list", 1)).await);
    denied(server.ask(&load("list")).await);
    bucket.double.fault(Operation::Get, &bucket.key("get.tar"), Fault::Status(403, "AccessDenied"));
    denied(server.ask(&infer("get", 1)).await);
    left_nothing(&server, 0).await;
    ask(&server, "list", 2).await;
    ask(&server, "get", 2).await;
    server.finish().await;
}

/// Archives that nobody should unpack, and a word of what is said of each.
fn hostile() -> Vec<(&'static str, &'static str, Vec<u8>, &'static str)> {
    let tar = |entries: &[(&str, u8, &str, &[u8])]| {
        let mut out = Vec::new();
        tar_entry(&mut out, "config.pbtxt", b'0', "", &super::bucket::config("x", "gated", "y", ""));
        for (path, kind, link, content) in entries {
            tar_entry(&mut out, path, *kind, link, content);
        }
        out.resize(out.len() + 1024, 0);
        out
    };
    let good = packed(".tar.gz", &model("x", 200_000));
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x10;
    let plain = packed(".tar", &model("x", 200_000));
    let mut bomb = Vec::new();
    tar_entry(&mut bomb, "1/weights", b'0', "", &vec![0; 96 << 20]);
    bomb.resize(bomb.len() + 1024, 0);
    vec![
        ("outside", ".tar", tar(&[("../escaped", b'0', "", b"x")]), "../escaped"),
        ("absolute", ".tar.gz", compressed(".tar.gz", &tar(&[("/tmp/escaped", b'0', "", b"x")])), "/tmp/escaped"),
        ("link", ".tar.zst", compressed(".tar.zst", &tar(&[("1/weights", b'2', "/etc/passwd", b"")])), "1/weights"),
        ("device", ".tar", tar(&[("1/weights", b'3', "", b"")]), "1/weights"),
        ("twice", ".tar", tar(&[("1/weights", b'0', "", b"x"), ("1/WEIGHTS", b'0', "", b"x")]), "1/WEIGHTS"),
        ("bomb", ".tar.zst", compressed(".tar.zst", &bomb), "bomb"),
        ("short", ".tar.gz", good[..good.len() / 2].to_vec(), "short"),
        ("cut", ".tar", plain[..plain.len() / 2].to_vec(), "cut"),
        ("flipped", ".tar.gz", flipped, "flipped"),
        ("noise", ".tar", super::bucket::noise(5, 10_000), "noise"),
        ("empty", ".tar.gz", Vec::new(), "empty"),
        ("nothing", ".tar", packed(".tar", &vec![("README".to_owned(), b"hello".to_vec())]), "config.pbtxt"),
        ("zipped", ".zip", packed(".zip", &vec![("../escaped".to_owned(), b"x".to_vec())]), "../escaped"),
    ]
}

#[tokio::test]
async fn a_hostile_or_broken_archive_is_refused_with_its_reason_and_leaves_nothing() {
    let bucket = Bucket::start().await;
    bucket.models(&[("good", 10_000)]);
    let server = bucket.serve(|config| config.load_retry = std::time::Duration::ZERO).await;
    ask(&server, "good", 1).await;
    let booked = server.disk().booked;
    for (name, ending, archive, word) in hostile() {
        bucket.put(&format!("{name}{ending}"), archive);
        let refused = server.ask(&infer(name, 1)).await;
        let text = refused.error();
        assert_eq!((refused.status, refused.header("retry-after")), (503, None), "{name}: {text}");
        assert!(text.contains(word) && text.contains(&format!("{name}{ending}")) || word == "config.pbtxt", "{text}");
        let refused = server.ask(&load(name)).await;
        assert!(matches!(refused.status, 400 | 413), "{name}: {} {}", refused.status, refused.text());
        assert!(!text.contains(server.repository.path().to_str().unwrap()), "no path of this machine: {text}");
        left_nothing(&server, booked).await;
        assert_eq!(state(&ask(&server, "good", 2).await), "device");
    }
    assert!(
        !server.repository.path().join(".cache/temp/escaped").exists()
            && !std::path::Path::new("/tmp/escaped").exists()
    );
    // One that is mended is taken.
    bucket.archive("short.tar.gz", &model("short", 1000));
    assert_eq!(state(&ask(&server, "short", 3).await), "remote");
    server.finish().await;
}

#[tokio::test]
async fn while_one_download_hangs_everybody_else_goes_on() {
    let bucket = Bucket::start().await;
    bucket.models(&[("slow", 1 << 20), ("resident", 1000), ("on-disk", 1000), ("other", 1 << 20)]);
    let server = bucket.serve(|config| config.load_concurrency = 1).await;
    ask(&server, "resident", 1).await;
    ask(&server, "on-disk", 1).await;
    server.ask(&unload("on-disk")).await.expect(200);
    bucket.double.faults(Operation::Get, &bucket.key("slow.tar"), 100, Fault::Gated);
    let mut slow = server.send(&infer("slow", 2)).await;
    eventually("a chunk waits", || bucket.double.waiting() == 1).await;
    bucket.double.release(5);
    let fetch = || server.row_if("slow").and_then(|row| row.fetch).map_or(0, |fetch| fetch.done);
    eventually("five chunks have come", || fetch() == 5 * 65_536).await;
    for (name, expected) in [("resident", "device"), ("on-disk", "disk"), ("other", "remote")] {
        assert_eq!(state(&ask(&server, name, 3).await), expected, "{name}");
    }
    assert_eq!(server.gated.counts("slow").loads_begun, 0);
    bucket.double.release(10_000);
    assert_eq!(slow.receive().await.tag(), 2);
    server.finish().await;
}

#[tokio::test]
async fn a_request_whose_model_does_not_come_in_time_is_told_so_and_the_rest_is_cleared_up() {
    let bucket = Bucket::start().await;
    bucket.models(&[("m", 1 << 20)]);
    bucket.double.fault(Operation::Get, &bucket.key("m.tar"), Fault::Hang);
    let server = bucket.serve(|_| {}).await;
    let refused = server.ask(&infer("m", 1).header("x-request-timeout-ms", 100)).await.expect(504);
    assert!(refused.error().contains("'m'"), "{}", refused.error());
    left_nothing(&server, 0).await;
    assert_eq!(state(&ask(&server, "m", 2).await), "remote");
    server.finish().await;
}

#[tokio::test]
async fn a_download_that_is_broken_again_and_again_comes_to_its_end() {
    let bucket = Bucket::start().await;
    let content = model("m", 600_000);
    bucket.archive("m.tar.zst", &content);
    let key = bucket.key("m.tar.zst");
    for fault in [
        Fault::Status(503, "SlowDown"),
        Fault::Cut(100_000),
        Fault::Cut(0),
        Fault::Short(70_000),
        Fault::Status(500, "InternalError"),
    ] {
        bucket.double.fault(Operation::Get, &key, fault);
    }
    let server = bucket.serve(|_| {}).await;
    assert_eq!(state(&ask(&server, "m", 1).await), "remote");
    let cache = CacheFolder::of(&server);
    let entry = cache.0.join("entries").read_dir().unwrap().next().unwrap().unwrap().path();
    assert!(std::fs::read(entry.join("files/1/weights")).unwrap() == content[1].1);
    assert_eq!(bucket.gets(), 6);
    server.finish().await;
}

/// A model of the thrash, whose output is named by its number.
fn put_thrashed(bucket: &Bucket, number: usize) {
    let name = format!("m{number:02}");
    let files = model_with(&name, &format!("y{number}"), 100_000, &holds(100, 100));
    match number % 2 {
        0 => bucket.archive(&format!("{name}.tar.gz"), &files),
        _ => bucket.folder(&name, files),
    }
}

/// Twenty models, memory for four, disk for eight, callers who leave, objects that change, and an S3 that fails half of
/// the requests for bytes.
#[tokio::test]
async fn a_thrash_over_a_failing_s3_loses_nothing() {
    let bucket = Bucket::start().await;
    let names: Vec<String> = (0..20).map(|number| format!("m{number:02}")).collect();
    let seed = 20_260_711;
    let mut random = Random::new(seed);
    for (number, name) in names.iter().enumerate() {
        put_thrashed(&bucket, number);
        let key = if number % 2 == 0 { format!("{name}.tar.gz") } else { format!("{name}/1/weights") };
        for _ in 0..60 {
            let fault = match random.below(10) {
                0 => Fault::Status(500, "InternalError"),
                1 => Fault::Status(503, "SlowDown"),
                2 => Fault::Cut(random.below(100_000)),
                3 => Fault::Short(random.below(100_000)),
                4 => Fault::Status(403, "AccessDenied"),
                // The gate is open: none.
                _ => Fault::Gated,
            };
            bucket.double.fault(Operation::Get, &bucket.key(&key), fault);
        }
    }
    for _ in 0..20 {
        bucket.double.fault(Operation::List, "bucket", Fault::Status(503, "SlowDown"));
    }
    bucket.double.release(1_000_000);
    let server = bucket.serve(|config| {
        disk(8 * 120)(config);
        memory(config, 420);
        config.load_retry = std::time::Duration::ZERO;
    });
    let server = server.await;
    let clients = (0..6_u64).map(|client| {
        let (address, names, bucket) = (server.addresses.http, &names, &bucket);
        async move {
            let mut connection = Client::connect(address).await;
            let mut random = Random::new(seed + client);
            let (mut right, mut refused) = (0, 0);
            for tag in 0..50 {
                let number = random.below(names.len());
                let name = &names[number];
                let mut request = infer(name, tag);
                match random.below(8) {
                    // The object is replaced by one that says the same.
                    0 => put_thrashed(bucket, number),
                    1 => request = request.header("x-request-timeout-ms", 1 + random.below(60)),
                    2 => {
                        // Somebody who asks and goes away.
                        let mut other = Client::connect(address).await;
                        other.send(&request).await;
                    }
                    _ => {}
                }
                let answer = connection.ask(&request).await;
                match answer.status {
                    200 => {
                        assert_eq!((answer.tag(), super::bucket::output(&answer)), (tag, format!("y{number}")));
                        right += 1;
                    }
                    500 | 503 => {
                        assert!(answer.error().contains(name.as_str()), "{}", answer.error());
                        refused += 1;
                    }
                    504 => assert!(answer.error().contains("deadline"), "{}", answer.error()),
                    other => panic!("seed {seed}: {other}: {}", answer.text()),
                }
            }
            (right, refused)
        }
    });
    let counts = within("the thrash", all(clients)).await;
    let (right, refused) = counts.into_iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
    assert!(right > 150 && refused > 0, "seed {seed}: {right} right, {refused} refused");
    let cache = CacheFolder::of(&server);
    eventually("the books are what is there", || {
        let disk = server.disk();
        cache.litter().is_empty()
            && disk.reserved == 0
            && disk.booked == cache.bytes()
            && disk.models == cache.entries()
            && disk.booked <= disk.limit
    })
    .await;
    server.finish().await;
}

#[tokio::test]
async fn a_load_that_fails_keeps_its_files_for_the_next_one() {
    let bucket = Bucket::start().await;
    bucket.models(&[("m", 100_000)]);
    let server = bucket.serve(|config| config.load_retry = std::time::Duration::ZERO).await;
    let broken = roundhouse::error::Error::internal("broken");
    server.gated.fail_next("m", Step::Load, roundhouse::backend::gated::Fault::Error(broken));
    server.ask(&infer("m", 1)).await.expect(500);
    assert_eq!(state(&ask(&server, "m", 2).await), "disk");
    assert_eq!(bucket.gets(), 1);
    server.finish().await;
}

//! Servers over S3 when all goes well: every form of a model answers, and nothing is asked for twice or in vain.

use roundhouse::backend::runtime_paths::{ONNXRUNTIME_INSTALL, onnxruntime_path};
use roundhouse::config::default_runtime_dir;
use roundhouse::lifecycle::residency::Tier;

use super::bucket::{
    Bucket, CacheFolder, ENDINGS, Files, ask, below, config, disk, memory, model, model_with, noise, output, state,
};
use super::double::{Fault, Operation};
use crate::support::binary::Binary;
use crate::support::client::{get, infer, post, unload};
use crate::support::server::all;
use crate::support::{eventually, within};

#[tokio::test]
async fn every_form_of_a_model_answers_and_says_where_it_came_from() {
    let bucket = Bucket::start().await;
    bucket.folder("folder", model("folder", 300_000));
    let mut names = vec!["folder".to_owned()];
    for ending in ENDINGS {
        let name = format!("as{}", ending.replace('.', "-"));
        bucket.archive(&format!("{name}{ending}"), &model(&name, 300_000));
        names.push(name);
    }
    let server = bucket.serve(|_| {}).await;
    for name in &names {
        for (tag, expected) in [(1, "remote"), (2, "device")] {
            let answer = ask(&server, name, tag).await;
            assert_eq!(state(&answer), expected, "{name}");
        }
        server.ask(&unload(name)).await.expect(200);
        assert_eq!(server.row(name).tier, Tier::Disk);
        assert_eq!(state(&ask(&server, name, 3).await), "disk", "{name}");
        let row = server.row(name);
        assert_eq!((row.loads, row.last_load.unwrap().from), (2, Tier::Disk));
        assert!(row.disk_bytes > 300_000 && row.fetch.is_none(), "{row:?}");
    }
    let cache = CacheFolder::of(&server);
    assert_eq!((cache.entries(), cache.litter()), (names.len(), Vec::new()));
    eventually("the book is what the disk holds", || server.disk().booked == cache.bytes()).await;
    server.finish().await;
}

#[tokio::test]
async fn the_data_of_a_models_warm_up_comes_with_the_versions_that_are_served() {
    let bucket = Bucket::start().await;
    let warm_up = "model_warmup { name: \"w\" batch_size: 1 inputs { key: \"x\" value {
        data_type: TYPE_INT32 dims: [ 1 ] input_data_file: \"deep/nine\" } } } instance_group { count: 1 }";
    let mut files = model_with("m", "y", 1000, warm_up);
    files.push(("2/weights".to_owned(), noise(5, 1000)));
    files.push(("warmup/deep/nine".to_owned(), vec![9, 0, 0, 0]));
    files.push(("initial_state/zero".to_owned(), vec![0; 4]));
    let named = |name: &str| {
        let config = (files[0].0.clone(), config(name, "gated", "y", warm_up));
        std::iter::once(config).chain(files.iter().skip(1).cloned()).collect::<Files>()
    };
    bucket.folder("folder", named("folder"));
    bucket.archive("tar.tar.zst", &named("tar"));
    bucket.archive("zip.zip", &below("inside/", named("zip")));
    let server = bucket.serve(|_| {}).await;
    for name in ["folder", "tar", "zip"] {
        ask(&server, name, 1).await;
        let order = server.gated.order();
        let tags: Vec<_> = order.iter().filter(|run| run.model == name).map(|run| run.tag).collect();
        assert_eq!(tags, [9, 1], "{name}");
    }
    server.finish().await;
}

#[tokio::test]
async fn a_bare_model_file_answers_through_its_runtime() {
    let library = onnxruntime_path(&default_runtime_dir().unwrap());
    assert!(library.exists(), "there is no {}: run `{ONNXRUNTIME_INSTALL}`", library.display());
    let bucket = Bucket::start().await;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/passthrough.onnx");
    bucket.put("bare.onnx", std::fs::read(file).unwrap());
    let cache = tempfile::tempdir().unwrap();
    let arguments = ["--s3-anonymous", "true", "--cache-dir", cache.path().to_str().unwrap()];
    let binary = Binary::start(bucket.uri().as_ref(), &arguments);
    let body = "{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[2],\"data\":[1.5,-2]}]}";
    let request = post("/v2/models/bare/infer", body);
    for expected in ["remote", "device"] {
        let answer = binary.ask(&request).await.expect(200);
        assert_eq!(state(&answer), expected);
        assert_eq!(answer.json()["outputs"][1]["data"], serde_json::json!([-1.5, 2.0]));
    }
    binary.ask(&unload("bare")).await.expect(200);
    assert_eq!(state(&binary.ask(&request).await.expect(200)), "disk");
    assert_eq!((bucket.lists(), bucket.gets()), (2, 1));
    binary.finish();
}

#[tokio::test]
async fn a_cold_model_costs_one_listing_and_each_object_once() {
    let bucket = Bucket::start().await;
    let mut files = model("folder", 20 << 20);
    files.push(("1/labels".to_owned(), b"cat".to_vec()));
    bucket.folder("folder", files);
    bucket.archive("archive.tar.gz", &model("archive", 20 << 20));
    let server = bucket.serve(|_| {}).await;
    ask(&server, "folder", 1).await;
    assert_eq!(bucket.lists(), 1);
    let of = |path: &str| bucket.gets_of(&format!("folder/{path}"));
    // 20 MiB are three parts of 8 MiB at most.
    assert_eq!((of("config.pbtxt"), of("1/labels"), of("1/weights")), (1, 1, 3));
    ask(&server, "archive", 1).await;
    assert_eq!((bucket.lists(), bucket.gets_of("archive.tar.gz")), (2, 3));
    // What is in memory asks nothing, what is on disk whether it is still the same.
    ask(&server, "archive", 2).await;
    server.ask(&unload("archive")).await.expect(200);
    ask(&server, "archive", 3).await;
    assert_eq!((bucket.lists(), bucket.gets()), (3, 8));
    assert_eq!(server.ask(&get("/v2/models/archive")).await.expect(200).json()["name"], "archive");
    assert_eq!(bucket.lists(), 3);
    server.finish().await;
}

#[tokio::test]
async fn a_hundred_requests_for_a_cold_model_make_one_download_and_a_hundred_answers() {
    let bucket = Bucket::start().await;
    bucket.archive("m.tar.zst", &model("m", 100_000));
    bucket.double.fault(Operation::Get, &bucket.key("m.tar.zst"), Fault::Hang);
    let server = bucket.serve(|_| {}).await;
    let mut clients = all((0..100).map(|tag| {
        let (server, request) = (&server, infer("m", tag));
        async move { server.send(&request).await }
    }))
    .await;
    eventually("the download has begun", || bucket.double.waiting() == 1).await;
    bucket.double.release(1);
    for (tag, client) in (0..).zip(&mut clients) {
        assert_eq!(client.receive().await.tag(), tag);
    }
    assert_eq!((bucket.lists(), bucket.gets(), server.loads("ok")), (1, 1, 1));
    server.finish().await;
}

#[tokio::test]
async fn an_archive_may_hold_its_model_at_its_root_in_a_folder_or_below_a_dot() {
    let bucket = Bucket::start().await;
    let mut names = Vec::new();
    for ending in [".tar.gz", ".tar", ".zip"] {
        for (place, prefix) in [("root", ""), ("folder", "another-name/"), ("dot", "./"), ("both", "./odd/")] {
            let name = format!("{place}{}", ending.replace('.', "-"));
            bucket.archive(&format!("{name}{ending}"), &below(prefix, model(&name, 1000)));
            names.push(name);
        }
    }
    // The name inside is another one than the key, which is what it is asked by.
    bucket.archive("team/key with blanks.tar", &below("./inner/", model("inner-name", 1000)));
    let server = bucket.serve(|_| {}).await;
    for name in &names {
        assert_eq!(state(&ask(&server, name, 1).await), "remote", "{name}");
    }
    assert_eq!(ask(&server, "team/key%20with%20blanks", 2).await.json()["model_name"], "team/key with blanks");
    assert_eq!(server.gated.counts("inner-name").loads_ended, 1);
    server.finish().await;
}

fn versions(name: &str, policy: &str) -> Files {
    let mut files = vec![("config.pbtxt".to_owned(), config(name, "gated", "y", policy))];
    files.extend((1..=4).map(|version| (format!("{version}/weights"), noise(version, 10_000))));
    files
}

#[tokio::test]
async fn only_the_versions_that_the_policy_wants_are_fetched() {
    let bucket = Bucket::start().await;
    let specific = "version_policy { specific { versions: [ 1, 3 ] } }";
    bucket.folder("latest", versions("latest", ""));
    bucket.folder("specific", versions("specific", specific));
    bucket.folder("all", versions("all", "version_policy { all { } }"));
    for ending in [".tar.gz", ".zip"] {
        let name = format!("archived{}", ending.replace('.', "-"));
        bucket.archive(&format!("{name}{ending}"), &versions(&name, specific));
    }
    let server = bucket.serve(|_| {}).await;
    let cache = CacheFolder::of(&server);
    let kept: [(&str, &[u64]); 5] = [
        ("latest", &[4]),
        ("specific", &[1, 3]),
        ("all", &[1, 2, 3, 4]),
        ("archived-tar-gz", &[1, 3]),
        ("archived-zip", &[1, 3]),
    ];
    let mut files = Vec::new();
    for (name, wanted) in kept {
        ask(&server, name, 1).await;
        files.push("config.pbtxt".to_owned());
        files.extend(wanted.iter().map(|version| format!("{version}/weights")));
        files.sort();
        assert_eq!(cache.files(), files, "{name}");
        assert_eq!(server.row(name).versions, wanted);
        for version in 1..=4 {
            let path = format!("/v2/models/{name}/versions/{version}/infer");
            let status = if wanted.contains(&version) { 200 } else { 404 };
            let body = crate::support::client::infer_body(5).to_string();
            server.ask(&post(&path, body)).await.expect(status);
            let gets = bucket.gets_of(&format!("{name}/{version}/weights"));
            assert_eq!(
                gets,
                usize::from(wanted.contains(&version) && !name.starts_with("archived")),
                "{name} {version}"
            );
        }
    }
    server.finish().await;
}

#[tokio::test]
async fn a_prefetch_brings_a_model_to_the_disk_where_memory_is_full() {
    let bucket = Bucket::start().await;
    for name in ["a", "b"] {
        let needs = crate::support::repository::holds(200, 200);
        bucket.archive(&format!("{name}.tar"), &model_with(name, "y", 10_000, &needs));
    }
    let server = bucket.serve(|config| memory(config, 300)).await;
    ask(&server, "a", 1).await;
    within("a prefetch", server.inner.prefetch_model("b")).await.unwrap();
    assert_eq!(server.in_memory(), ["a"]);
    let row = server.row("b");
    assert_eq!((row.tier, row.loads, row.fetch), (Tier::Disk, 0, None));
    assert_eq!(state(&ask(&server, "b", 2).await), "disk");
    assert_eq!((bucket.gets_of("b.tar"), server.in_memory().as_slice()), (1, ["b".to_owned()].as_slice()));
    server.finish().await;
}

#[tokio::test]
async fn how_far_a_fetch_is_can_be_seen() {
    let bucket = Bucket::start().await;
    bucket.models(&[("m", 1 << 20)]);
    let total = bytes_of(&bucket, "m.tar");
    bucket.double.faults(Operation::Get, &bucket.key("m.tar"), 50, Fault::Gated);
    let server = bucket.serve(disk(4096)).await;
    let mut client = server.send(&infer("m", 1)).await;
    eventually("the first chunk waits", || bucket.double.waiting() == 1).await;
    let fetch = || server.row_if("m").and_then(|row| row.fetch);
    eventually("the fetch is shown", || fetch().is_some_and(|fetch| (fetch.done, fetch.total) == (0, total))).await;
    bucket.double.release(4);
    eventually("four chunks have come", || fetch().is_some_and(|fetch| fetch.done == 4 * 65_536)).await;
    let row = server.ask(&get("/v1/residency")).await.expect(200).json()["models"][0].clone();
    assert_eq!((&row["name"], &row["tier"]), (&"m".into(), &"remote".into()), "{row}");
    assert!(row["fetch"].to_string().contains("262144"), "{row}");
    assert!(server.disk().reserved >= total, "{:?}", server.disk());
    bucket.double.release(1000);
    let answer = client.receive().await;
    assert_eq!((answer.tag(), state(&answer), output(&answer).as_str()), (1, "remote", "y"));
    assert_eq!((fetch(), server.disk().reserved), (None, 0));
    server.finish().await;
}

/// The bytes of an object of the double.
fn bytes_of(bucket: &Bucket, path: &str) -> u64 {
    bucket.double.size(&bucket.key(path)).unwrap() as u64
}

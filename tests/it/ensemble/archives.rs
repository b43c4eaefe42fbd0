//! Archives that hold an ensemble with the models of its steps, which are that ensemble's alone.

use std::path::Path;

use roundhouse::artifact::Format;
use roundhouse::artifact::pack::pack;
use roundhouse::config::sagemaker::SageMakerMode;
use roundhouse::config::{Eviction, ModelControl};
use roundhouse::error::{Error, ErrorKind};
use serde_json::json;

use super::{chain, count, memory};
use crate::support::client::{delete, get, infer, infer_body, load, post, unload};
use crate::support::repository::{Repository, config, holds};
use crate::support::server::TestServer;

/// A folder with an ensemble over its models, `scale` and `shift`, that hold so many KiB each; the backend knows them as
/// `NAME-scale` and `NAME-shift`.
fn put(folder: &Path, name: &str, kib: u64) {
    for model in ["scale", "shift"] {
        std::fs::create_dir_all(folder.join(model).join("1")).unwrap();
        let text = config(&format!("{name}-{model}"), "gated", &holds(kib, kib));
        std::fs::write(folder.join(model).join("config.pbtxt"), text).unwrap();
    }
    std::fs::create_dir_all(folder.join("whole")).unwrap();
    std::fs::write(folder.join("whole/config.pbtxt"), chain(&["scale", "shift"])).unwrap();
}

/// A repository with such an archive under each name.
fn archives(names: &[&str]) -> Repository {
    let repository = Repository::empty();
    for name in names {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), name, 100);
        let mut archive = Vec::new();
        pack(folder.path(), &mut archive, Format::TarGz).unwrap();
        repository.put(&format!("{name}.tar.gz"), archive);
    }
    repository
}

#[tokio::test]
async fn two_archives_may_have_steps_of_the_same_name_and_each_has_its_own() {
    let server = TestServer::start(archives(&["m", "team/n"])).await;
    assert_eq!(server.ask(&infer("m", 1)).await.tag(), 1);
    assert_eq!(server.ask(&infer("team%2Fn", 2)).await.tag(), 2);
    for model in ["m-scale", "m-shift", "team/n-scale", "team/n-shift"] {
        assert_eq!(server.gated.counts(model).executions_ended, 1, "{model}");
    }
    assert_eq!(server.in_memory(), ["m", "m//scale", "m//shift", "team/n", "team/n//scale", "team/n//shift"]);
    assert_eq!(count(&server, "request_success", "m//scale"), Some(1.0));
    assert_eq!(server.books()[0].booked, 400 << 10);
    // The index lists what can be asked for.
    assert_eq!(server.index().await, ["m", "team/n"]);
    for path in ["/v2/models/m%2F%2Fscale/infer", "/v2/models/m%2F%2Fnone/infer"] {
        let answer = server.ask(&post(path, infer_body(1).to_string())).await;
        assert!([400, 404].contains(&answer.status), "{}", answer.text());
    }
    server.ask(&unload("m")).await.expect(200);
    assert_eq!(server.in_memory(), ["team/n", "team/n//scale", "team/n//shift"]);
    assert_eq!((server.gated.counts("m-scale").live_models, server.books()[0].booked), (0, 200 << 10));
    assert!(server.row_if("m//scale").is_none());
    assert_eq!(server.ask(&infer("m", 3)).await.tag(), 3);
    server.finish().await;
}

#[tokio::test]
async fn a_step_of_an_archive_leaves_for_room_and_comes_back_from_it() {
    let server = TestServer::start_with(archives(&["m"]), |config| {
        memory(config, 100);
        config.model_control = ModelControl::Explicit;
    })
    .await;
    server.ask(&load("m")).await.expect(200);
    for tag in 0..3 {
        assert_eq!(server.ask(&infer("m", tag)).await.tag(), tag);
    }
    assert!(server.row("m//scale").loads > 2);
    server.finish().await;
}

#[tokio::test]
async fn another_archive_brings_other_steps_and_takes_those_it_lacks() {
    let server = TestServer::start(archives(&["m"])).await;
    assert_eq!(server.ask(&infer("m", 1)).await.tag(), 1);
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "new", 100);
    std::fs::remove_dir_all(folder.path().join("shift")).unwrap();
    std::fs::write(folder.path().join("whole/config.pbtxt"), chain(&["scale"])).unwrap();
    let mut archive = Vec::new();
    pack(folder.path(), &mut archive, Format::TarGz).unwrap();
    server.repository.put("m.tar.gz", archive);
    server.ask(&load("m")).await.expect(200);
    assert_eq!(server.ask(&infer("m", 2)).await.tag(), 2);
    assert_eq!(server.gated.counts("new-scale").executions_ended, 1);
    crate::support::eventually("what is not in it any more is gone", || server.in_memory() == ["m", "m//scale"]).await;
    crate::support::eventually("it is out of memory", || server.gated.counts("m-shift").live_models == 0).await;
    server.finish().await;
}

#[tokio::test]
async fn a_step_that_is_not_in_the_archive_is_named_and_a_failed_load_leaves_nothing() {
    let repository = Repository::gated(&["other"]);
    let folder = tempfile::tempdir().unwrap();
    put(folder.path(), "m", 100);
    std::fs::write(folder.path().join("whole/config.pbtxt"), chain(&["scale", "other"])).unwrap();
    let mut archive = Vec::new();
    pack(folder.path(), &mut archive, Format::Tar).unwrap();
    repository.put("m.tar", archive);
    let repository = repository.with("z", "gated", "");
    let server = TestServer::start(repository).await;
    let text = server.ask(&load("m")).await.expect(400).error();
    assert!(text.contains("step 'other' of ensemble 'm' is not in its archive"), "{text}");
    put(folder.path(), "m", 100);
    let mut archive = Vec::new();
    pack(folder.path(), &mut archive, Format::Tar).unwrap();
    server.repository.put("m.tar", archive);
    let fault = roundhouse::backend::gated::Fault::Error(Error::new(ErrorKind::BackendFailed, "no luck"));
    server.gated.fail_next("m-shift", roundhouse::backend::gated::Step::Load, fault);
    let text = server.ask(&load("m")).await.expect(500).error();
    assert!(text.contains("step 'shift' of ensemble 'm'") && text.ends_with("no luck"), "{text}");
    crate::support::eventually("its steps are gone", || server.in_memory().is_empty()).await;
    server.finish().await;
}

#[tokio::test]
async fn sagemakers_platform_loads_an_ensemble_lists_it_alone_and_gets_all_of_its_memory_back() {
    let root = tempfile::tempdir().unwrap();
    for hash in ["h1", "h2"] {
        put(&root.path().join(hash).join("model"), hash, 100);
    }
    let path = root.path().to_owned();
    let server = TestServer::start_with(Repository::empty(), move |config| {
        memory(config, 300);
        config.model_repository = None;
        config.model_control = ModelControl::Explicit;
        config.cache.eviction = Eviction::External;
        config.sagemaker.mode = SageMakerMode::MultiModel;
        config.sagemaker.model_roots = vec![path];
    })
    .await;
    let mut client = server.sagemaker().await;
    let url = |hash: &str| root.path().join(hash).join("model");
    let load = |hash: &str| post("/models", json!({"model_name": hash, "url": url(hash)}).to_string());
    client.ask(&load("h1")).await.expect(200);
    let answer = client.ask(&post("/models/h1/invoke", infer_body(5).to_string())).await;
    assert_eq!(answer.tag(), 5);
    let listed = client.ask(&get("/models")).await.json();
    assert_eq!(listed["models"].as_array().unwrap().len(), 1);
    assert_eq!(listed["models"][0]["modelName"], "h1");
    // Half of the second one fits, and none of it stays.
    client.ask(&load("h2")).await.expect(507);
    crate::support::eventually("nothing is left of it", || server.books()[0].booked == 200 << 10).await;
    client.ask(&delete("/models/h1")).await.expect(200);
    assert_eq!((server.books()[0].booked, server.gated.alive()), (0, 0));
    client.ask(&load("h2")).await.expect(200);
    assert_eq!(client.ask(&post("/models/h2/invoke", infer_body(6).to_string())).await.tag(), 6);
    client.ask(&delete("/models/h2")).await.expect(200);
    drop(client);
    server.finish().await;
}

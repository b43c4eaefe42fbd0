//! `roundhouse emulate` in a process of its own, between a bucket of S3 and our own container.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use roundhouse::artifact::Format;
use roundhouse::artifact::pack::pack;
use roundhouse::config::amount::{Amount, Limited, MemoryLimit};
use roundhouse::config::sagemaker::SageMakerMode;
use roundhouse::config::{Eviction, ModelControl, ServerConfig};
use serde_json::Value;

use crate::s3::double::{Operation, S3Double};
use crate::support::binary::command;
use crate::support::client::{Client, Request, Response, infer_body, post};
use crate::support::eventually;
use crate::support::repository::Repository;
use crate::support::server::TestServer;

/// A running `roundhouse emulate`.
struct Emulator {
    child: Child,
    address: SocketAddr,
}

impl Emulator {
    async fn start(models: &str, work: &Path, container: SocketAddr, arguments: &[&str]) -> Self {
        let ports = work.with_extension("json");
        let container = container.to_string();
        let mut command = command(&["emulate", "--port", "0", "--container", &container, "--models", models]);
        command.args(["--s3-anonymous", "--s3-region", "us-east-1"]).args(arguments);
        command.arg("--work-dir").arg(work).arg("--port-file").arg(&ports);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("the port file", || ports.exists() || child.try_wait().unwrap().is_some()).await;
        let ports: Value = serde_json::from_slice(&std::fs::read(&ports).unwrap()).unwrap();
        Self { child, address: ports["runtime"].as_str().unwrap().parse().unwrap() }
    }

    async fn call(&self, target: &str, tag: i32) -> Response {
        Client::connect(self.address).await.ask(&endpoint(target, tag)).await
    }

    /// Ends it with SIGTERM, in peace.
    async fn finish(mut self) {
        let sent = Command::new("/bin/sh").arg("-c").arg(format!("kill -TERM {}", self.child.id())).status().unwrap();
        assert!(sent.success());
        let mut ended = None;
        eventually("the end of the emulator", || {
            ended = self.child.try_wait().unwrap();
            ended.is_some()
        })
        .await;
        assert_eq!(ended.unwrap().code(), Some(0));
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may be gone already.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn endpoint(target: &str, tag: i32) -> Request {
    post("/endpoints/ep/invocations", infer_body(tag).to_string()).header("x-amzn-sagemaker-target-model", target)
}

/// The container of a multi-model endpoint with memory for so many KiB of models below `root`.
fn container(root: &Path, kib: u64) -> impl FnOnce(&mut ServerConfig) + use<> {
    let root = root.to_owned();
    move |config| {
        config.model_repository = None;
        config.model_control = ModelControl::Explicit;
        config.cache.eviction = Eviction::External;
        config.cache.memory_limits = vec![MemoryLimit { device: Limited::Cpu, amount: Amount::Bytes(kib << 10) }];
        config.cache.min_residency = std::time::Duration::ZERO;
        config.sagemaker.mode = SageMakerMode::MultiModel;
        config.sagemaker.model_roots = vec![root];
    }
}

/// A bucket with these models of so many KiB of memory each, as tar.gz.
async fn bucket(models: &[(&str, u64)]) -> S3Double {
    let (double, folder) = (S3Double::start().await, Repository::empty().sized(models));
    for (name, _) in models {
        // An archive needs a file.
        folder.put(&format!("{name}/1/weights"), name);
        let mut archive = Vec::new();
        pack(&folder.path().join(name), &mut archive, Format::TarGz).unwrap();
        double.put(&format!("bucket/models/{name}.tar.gz"), archive);
    }
    double
}

#[tokio::test]
async fn our_container_serves_more_models_than_fit_and_the_platform_chooses_who_leaves() {
    let double = bucket(&[("a", 40), ("b", 40), ("c", 40), ("huge", 1000)]).await;
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("models");
    std::fs::create_dir(&root).unwrap();
    let server = TestServer::start_with(Repository::empty(), container(&root, 100)).await;
    let models = double.uri("bucket/models");
    let emulator = Emulator::start(&models, &root, server.addresses.sagemaker, &["--tar-gz-only"]).await;
    for (tag, target) in (1..).zip(["a", "b", "a", "c", "b", "c", "a"]) {
        assert_eq!(emulator.call(&format!("{target}.tar.gz"), tag).await.tag(), tag, "{target}");
    }
    // a b | c for b | b for a | a for b: five loads, each from the bucket.
    assert_eq!(double.count(Operation::Get), 5);
    assert_eq!((server.in_memory().len(), root.read_dir().unwrap().count()), (2, 2));

    let never = emulator.call("huge.tar.gz", 1).await.expect(424).json();
    assert_eq!(never["OriginalStatusCode"], 400, "what never fits is no 507, which would empty the container: {never}");
    assert_eq!((server.in_memory().len(), root.read_dir().unwrap().count()), (2, 2));
    emulator.call("absent.tar.gz", 1).await.expect(400);

    emulator.finish().await;
    assert_eq!((server.in_memory().len(), root.read_dir().unwrap().count()), (0, 0));
    server.finish().await;
}

#[tokio::test]
async fn what_a_killed_emulator_left_is_deleted_and_the_container_may_have_it_loaded() {
    let double = bucket(&[("a", 40)]).await;
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("models");
    std::fs::create_dir(&root).unwrap();
    let server = TestServer::start_with(Repository::empty(), container(&root, 100)).await;
    let (models, sagemaker) = (double.uri("bucket/models"), server.addresses.sagemaker);
    let emulator = Emulator::start(&models, &root, sagemaker, &[]).await;
    assert_eq!(emulator.call("a.tar.gz", 1).await.tag(), 1);
    drop(emulator);
    assert_eq!((server.in_memory().len(), root.read_dir().unwrap().count()), (1, 1));
    std::fs::remove_file(root.with_extension("json")).unwrap();
    let emulator = Emulator::start(&models, &root, sagemaker, &[]).await;
    assert_eq!(root.read_dir().unwrap().count(), 0);
    // The container answers 409 to its load: it is there.
    assert_eq!(emulator.call("a.tar.gz", 2).await.tag(), 2);
    emulator.finish().await;
    assert_eq!((server.in_memory().len(), root.read_dir().unwrap().count()), (0, 0));
    server.finish().await;
}

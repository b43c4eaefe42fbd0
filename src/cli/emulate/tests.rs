//! The emulator as a whole against a container in this process. Here: invocations, errors, start and end; in `loading`
//! and `eviction` what their names say.

mod eviction;
mod fake;
mod loading;

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use self::fake::{Fake, Operation, Script};
use super::*;
use crate::artifact::Format;
use crate::artifact::pack::pack;

/// Longer than anything takes here that works.
const LONG: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Words {
    #[command(flatten)]
    args: EmulateArgs,
}

fn args(words: &[&str]) -> Result<EmulateArgs, clap::Error> {
    Words::try_parse_from(["emulate"].iter().chain(words)).map(|words| words.args)
}

/// The emulator between a fake container and a folder of models `a` to `e`, plain, and `a.tar.gz`.
struct Scene {
    fake: Fake,
    models: TempDir,
    work: TempDir,
    address: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<Result<()>>,
}

/// An answer to a caller.
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The name of an error, checked against the status.
    #[track_caller]
    fn error(&self, status: u16, name: &str) -> Value {
        assert_eq!(self.status, status, "{:?}", self.body);
        assert_eq!(self.headers["x-amzn-errortype"], name);
        assert!(self.headers.contains_key("x-amzn-requestid"));
        self.json()
    }

    #[track_caller]
    fn ok(&self) {
        assert_eq!(self.status, 200, "{:?}", self.body);
    }
}

async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Reply {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let response = tokio::time::timeout(LONG, sender.send_request(request)).await.unwrap().unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    driver.abort();
    Reply { status: head.status.as_u16(), headers: head.headers, body }
}

fn invocation(target: &str) -> http::request::Builder {
    Request::builder()
        .method(Method::POST)
        .uri("/endpoints/e/invocations")
        .header("host", "test")
        .header("x-amzn-sagemaker-target-model", target)
}

async fn call_at(address: SocketAddr, target: &str) -> Reply {
    send(address, invocation(target).body(Full::from(target.to_owned())).unwrap()).await
}

async fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !reached() {
        assert!(begun.elapsed() < LONG, "{what}: not within {LONG:?}");
        tokio::task::yield_now().await;
    }
}

impl Scene {
    async fn start(words: &[&str]) -> Self {
        Self::with(Fake::start().await, words).await
    }

    async fn with(fake: Fake, words: &[&str]) -> Self {
        let (models, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["a", "b", "c", "d", "e"] {
            fs::create_dir_all(models.path().join(name).join("1")).unwrap();
            fs::write(models.path().join(name).join("config.pbtxt"), "backend: \"identity\"").unwrap();
        }
        let archive = fs::File::create(models.path().join("a.tar.gz")).unwrap();
        pack(&models.path().join("a"), archive, Format::TarGz).unwrap();
        let url = format!("http://{}", fake.address);
        let (models_at, work_at) = (models.path().to_str().unwrap(), work.path().to_str().unwrap());
        let fixed = ["--container", &url, "--models", models_at, "--work-dir", work_at, "--port", "0"];
        let args = args(&[&fixed[..], words].concat()).unwrap();
        let stop = CancellationToken::new();
        let token = stop.clone();
        let (ready, address) = oneshot::channel();
        let ready = |address| ready.send(address).unwrap();
        let running = tokio::spawn(async move { emulate(&args, token, ready).await });
        let address = tokio::time::timeout(LONG, address).await.unwrap().unwrap();
        Self { fake, models, work, address, stop, running }
    }

    async fn call(&self, target: &str) -> Reply {
        call_at(self.address, target).await
    }

    /// A call whose answer is waited for later.
    fn begin(&self, target: &str) -> JoinHandle<Reply> {
        let (address, target) = (self.address, target.to_owned());
        tokio::spawn(async move { call_at(address, &target).await })
    }

    /// Folders of models on the disk.
    fn on_disk(&self) -> usize {
        self.work.path().read_dir().unwrap().count()
    }

    /// Stops the emulator: nothing is left of it.
    async fn finish(self) {
        self.stop.cancel();
        tokio::time::timeout(LONG, self.running).await.unwrap().unwrap().unwrap();
        assert_eq!(self.fake.loaded(), Vec::<String>::new(), "in the container");
        assert_eq!(self.work.path().read_dir().unwrap().count(), 0, "on the disk");
    }
}

#[tokio::test]
async fn an_invocation_is_handed_through_with_the_contracts_headers_and_no_others() {
    let scene = Scene::start(&[]).await;
    let request = invocation("/a.tar.gz")
        .header("content-type", "text/csv")
        .header("accept", "application/json")
        .header("x-amzn-sagemaker-custom-attributes", "trace=1")
        .header("x-of-the-caller", "not for the container");
    let reply = send(scene.address, request.body(Full::from("1,2")).unwrap()).await;
    reply.ok();
    assert_eq!(reply.body, "1,2");
    assert_eq!(reply.headers["content-type"], "application/json");
    assert_eq!(reply.headers["x-amzn-sagemaker-custom-attributes"], "trace=1");
    assert_eq!(reply.headers["x-amzn-invoked-production-variant"], "AllTraffic");
    assert!(uuid::Uuid::try_parse(reply.headers["x-amzn-requestid"].to_str().unwrap()).is_ok());
    assert!(!reply.headers.contains_key("x-of-the-container"));

    let load = &scene.fake.asked(Operation::Load)[0];
    let url = scene.work.path().join(&load.hash).join("model").to_str().unwrap().to_owned();
    assert_eq!((load.target.as_str(), load.url.clone()), ("a.tar.gz", Some((url, true))));
    assert!(load.hash.len() >= 32 && load.hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", load.hash);
    let invoke = &scene.fake.asked(Operation::Invoke)[0];
    assert_eq!((invoke.target.as_str(), &invoke.hash, &invoke.body[..]), ("a.tar.gz", &load.hash, &b"1,2"[..]));
    assert_eq!(invoke.headers["content-type"], "text/csv");
    assert_eq!(invoke.headers["accept"], "application/json");
    assert!(!invoke.headers.contains_key("x-of-the-caller"));
    scene.finish().await;
}

#[tokio::test]
async fn the_container_is_told_its_own_name_of_the_folder() {
    let scene = Scene::start(&["--container-work-dir", "/opt/ml/models"]).await;
    scene.call("a").await.ok();
    let load = &scene.fake.asked(Operation::Load)[0];
    assert_eq!(load.url, Some((format!("/opt/ml/models/{}/model", load.hash), false)));
    scene.finish().await;
}

#[tokio::test]
async fn what_the_container_answers_is_a_model_error_with_its_status_and_text() {
    let scene = Scene::start(&[]).await;
    scene.fake.script(Operation::Load, "b", [Script::Status(500, "no such operator")]);
    let body = scene.call("b").await.error(424, "ModelError");
    assert_eq!((&body["OriginalStatusCode"], &body["OriginalMessage"]), (&500.into(), &"no such operator".into()));
    assert_eq!(scene.on_disk(), 0);
    scene.call("a").await.ok();
    for (status, whose) in [(400, "client"), (503, "server")] {
        scene.fake.script(Operation::Invoke, "a", [Script::Status(status, "bad tensor")]);
        let body = scene.call("a").await.error(424, "ModelError");
        assert_eq!((&body["OriginalStatusCode"], &body["OriginalMessage"]), (&status.into(), &"bad tensor".into()));
        let text = body["Message"].as_str().unwrap();
        assert!(text.contains(&format!("{whose} error ({status}) from primary")), "{text}");
        assert!(body["LogStreamArn"].is_string());
    }
    scene.call("a").await.ok();
    // What failed is loaded anew by the next call.
    scene.call("b").await.ok();
    scene.finish().await;
}

#[tokio::test]
async fn a_container_that_breaks_off_is_a_model_error_and_one_that_is_gone_is_503() {
    let mut scene = Scene::start(&[]).await;
    scene.call("a").await.ok();
    scene.fake.script(Operation::Invoke, "a", [Script::Cut]);
    let body = scene.call("a").await.error(424, "ModelError");
    assert_eq!(body["OriginalStatusCode"], 0);
    scene.call("a").await.ok();
    scene.fake = Fake::start().await;
    eventually_gone(&scene).await.error(503, "ServiceUnavailable");
    // The end deletes what it unpacked, whether or not anybody hears of it.
    assert_eq!(scene.on_disk(), 1);
    scene.finish().await;
}

/// The answer once the last connections to a container that is gone have ended.
async fn eventually_gone(scene: &Scene) -> Reply {
    loop {
        let reply = scene.call("a").await;
        if reply.status != 424 {
            return reply;
        }
    }
}

#[tokio::test]
async fn what_cannot_be_called_is_a_validation_error_and_leaves_nothing() {
    let scene = Scene::start(&["--endpoint-name", "e"]).await;
    let whole = fs::read(scene.models.path().join("a.tar.gz")).unwrap();
    fs::write(scene.models.path().join("torn.tar.gz"), &whole[..whole.len() - 20]).unwrap();
    let body = scene.call("torn.tar.gz").await.error(400, "ValidationError");
    assert!(body["Message"].as_str().unwrap().contains("torn.tar.gz"), "{body}");
    let body = scene.call("absent.tar.gz").await.error(400, "ValidationError");
    assert!(body["Message"].as_str().unwrap().contains("absent.tar.gz"), "{body}");
    for target in ["../a", "a//b", "x/../../a"] {
        scene.call(target).await.error(400, "ValidationError");
    }
    let none = Request::builder().method(Method::POST).uri("/endpoints/e/invocations").header("host", "test");
    let body = send(scene.address, none.body(Full::default()).unwrap()).await.error(400, "ValidationError");
    assert!(body["Message"].as_str().unwrap().contains("TargetModel"), "{body}");
    let other = invocation("a").uri("/endpoints/other/invocations").body(Full::default()).unwrap();
    send(scene.address, other).await.error(400, "ValidationError");
    for (method, path) in [
        (Method::POST, "/endpoints/e/invocations-response-stream"),
        (Method::GET, "/endpoints/e/invocations"),
        (Method::GET, "/ping"),
    ] {
        let request = invocation("a").method(method).uri(path).body(Full::default()).unwrap();
        send(scene.address, request).await.error(404, "UnknownOperationException");
    }
    let large = invocation("a").body(Full::from(vec![0; 6_291_457])).unwrap();
    send(scene.address, large).await.error(413, "RequestEntityTooLargeException");
    let largest = invocation("a").body(Full::from(vec![0; 6_291_456])).unwrap();
    send(scene.address, largest).await.ok();
    assert_eq!((scene.fake.targets(Operation::Load), scene.on_disk()), (vec!["a".to_owned()], 1));
    scene.finish().await;
}

#[tokio::test]
async fn connections_to_the_container_are_kept() {
    let scene = Scene::start(&[]).await;
    let before = scene.fake.connections();
    for _ in 0..20 {
        scene.call("a").await.ok();
    }
    let new = scene.fake.connections() - before;
    assert!(new <= 4, "{new} connections for 21 requests");
    scene.finish().await;
}

#[tokio::test]
async fn nobody_is_served_before_the_container_pings_and_one_that_never_does_is_an_error() {
    let fake = Fake::start().await;
    fake.pings(503);
    let (models, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let url = format!("http://{}", fake.address);
    let fixed =
        ["--models", models.path().to_str().unwrap(), "--work-dir", work.path().to_str().unwrap(), "--port", "0"];
    let nobody = |_| panic!("it listens");
    let never = args(&[&fixed[..], &["--container", &url, "--start-limit-s", "0"]].concat()).unwrap();
    let error = emulate(&never, CancellationToken::new(), nobody).await.unwrap_err();
    assert!(error.report().contains("503") && error.report().contains("--start-limit-s"), "{}", error.report());
    let elsewhere = args(&[&fixed[..], &["--container", "http://192.0.2.1:8080"]].concat()).unwrap();
    let error = emulate(&elsewhere, CancellationToken::new(), nobody).await.unwrap_err();
    assert!(error.report().contains("not on this machine"), "{}", error.report());
    // Stopped while it waits: no error, nothing listens.
    let waits = args(&[&fixed[..], &["--container", &url]].concat()).unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    emulate(&waits, stop, nobody).await.unwrap();
}

#[tokio::test]
async fn what_a_killed_emulator_left_is_unloaded_before_anybody_is_served() {
    let fake = Fake::start().await;
    let (models, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut left = ["0", "1", "2"].map(|digit| digit.repeat(32));
    for hash in &left {
        fs::create_dir_all(work.path().join(hash).join("model")).unwrap();
        fs::write(work.path().join(hash).join(".roundhouse-emulate"), "").unwrap();
    }
    // Neither one that does not go nor a broken connection keeps it from starting.
    fake.script(Operation::Unload, &left[0], [Script::Status(500, "busy")]);
    fake.script(Operation::Unload, &left[1], [Script::Cut]);
    let url = format!("http://{}", fake.address);
    let (models_at, work_at) = (models.path().to_str().unwrap(), work.path().to_str().unwrap());
    let args = args(&["--container", &url, "--models", models_at, "--work-dir", work_at, "--port", "0"]).unwrap();
    let stop = CancellationToken::new();
    emulate(&args, stop.clone(), |_| stop.cancel()).await.unwrap();
    let mut asked = fake.targets(Operation::Unload);
    asked.sort();
    asked.dedup();
    left.sort();
    assert_eq!((asked, fake.asked(Operation::Unload).len()), (left.to_vec(), 4), "the broken one twice");
    assert_eq!(work.path().read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn the_port_file_says_where_it_listens_and_a_port_that_is_taken_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let ports = folder.path().join("ports.json");
    let scene = Scene::start(&["--port-file", ports.to_str().unwrap()]).await;
    let written: Value = serde_json::from_slice(&fs::read(&ports).unwrap()).unwrap();
    assert_eq!(written, serde_json::json!({"runtime": scene.address.to_string()}));
    let error = bind(scene.address.port()).map(|_| ()).unwrap_err();
    assert!(error.report().contains("--port"), "{}", error.report());
    scene.finish().await;
}

#[test]
fn words_that_mean_nothing_are_refused() {
    for words in [
        &["--max-models", "0"][..],
        &["--disk-capacity", "0"],
        &["--disk-capacity", "50%"],
        &["--cache-setting", "on"],
        &["--port", "99999"],
    ] {
        assert!(args(&[&["--models", "m"], words].concat()).is_err(), "{words:?}");
    }
    assert!(args(&[]).is_err(), "--models is required");
    assert_eq!(args(&["--models", "m", "--disk-capacity", "2GiB"]).unwrap().disk_capacity, Some(2 << 30));
}

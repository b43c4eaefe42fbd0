//! A new instance beside others: it is warm before it is ready, and ready whatever becomes of those that it asks.

use std::net::SocketAddr;
use std::time::Duration;

use roundhouse::backend::gated::{Gated, Step};
use roundhouse::config::ServerConfig;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::client::{get, infer};
use crate::support::eventually;
use crate::support::repository::Repository;
use crate::support::server::TestServer;

const MODELS: [&str; 3] = ["a", "b", "c"];

fn from(names: &[String]) -> impl FnOnce(&mut ServerConfig) + use<> {
    let names = names.to_vec();
    move |config| config.warm.from = names
}

/// An instance that has answered `a` three times, `b` twice and `c` once.
async fn warm() -> TestServer {
    let server = TestServer::start(Repository::gated(&MODELS)).await;
    for (tag, model) in (0..).zip(["a", "a", "a", "b", "b", "c"]) {
        assert_eq!(server.ask(&infer(model, tag)).await.tag(), tag);
    }
    server
}

/// Somebody who answers each connection with these bytes and is silent from then on.
async fn talker(answer: Vec<u8>) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let talking = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 512];
            // Who left may have left.
            drop(stream.read(&mut head).await);
            drop(stream.write_all(&answer).await);
            kept.push(stream);
        }
    });
    (address, talking)
}

fn http(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn digest(rows: serde_json::Value) -> String {
    json!({
        "cursor": "1-1", "complete": true, "ready": true, "draining": false, "load_places": 1, "loads": 0, "executors": 1,
        "models": rows,
    })
    .to_string()
}

#[tokio::test]
async fn a_new_instance_is_warm_with_what_is_used_most_before_it_is_ready() {
    let old = warm().await;
    let gated = Gated::default();
    gated.close("b", Step::Load);
    let change = |config: &mut ServerConfig| {
        from(&[old.addresses.http.to_string()])(config);
        config.warm.models = 2;
    };
    let new = TestServer::start_unready(Repository::gated(&MODELS), gated, change).await;
    new.until("b", |counts| counts.loads_begun == 1).await;
    new.ask(&get("/v2/health/live")).await.expect(200);
    new.ask(&get("/v2/health/ready")).await.expect(503);
    // Whoever asks for it meanwhile is answered, by the same load.
    let mut early = new.send(&infer("b", 7)).await;
    new.gated.open("b", Step::Load);
    assert_eq!(early.receive().await.tag(), 7);
    eventually("the new instance is ready", || new.inner.is_ready()).await;
    assert_eq!(new.in_memory(), ["a", "b"]);
    assert_eq!(["a", "b", "c"].map(|model| new.gated.counts(model).loads_begun), [1, 1, 0]);
    new.finish().await;
    old.finish().await;
}

#[tokio::test]
async fn neighbours_that_are_dead_or_lie_or_talk_nonsense_keep_nobody_from_being_ready_nor_the_good_one_from_being_heard()
 {
    let old = warm().await;
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let row = |name: &str| json!({"name": name, "state": "READY", "in_use": 0, "parallel": 1, "load_seconds": 1, "uses": u64::MAX});
    let lies: Vec<_> = (0..1000).map(|number| row(&format!("nowhere{number}"))).collect();
    let answers = [
        http("<html>"),
        http(&digest(json!([row("a"), row("a")]))),
        http(&digest(json!(lies))),
        http(&digest(json!([row("../../etc"), row("x\n")]))),
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n{".to_vec(),
        b"\x00\xff nonsense \r\n\r\n".to_vec(),
        // Silent.
        Vec::new(),
    ];
    let mut names = vec![dead.to_string(), "no.such.host.invalid:8000".to_owned(), old.addresses.http.to_string()];
    let mut talking = Vec::new();
    for answer in answers {
        let (address, handle) = talker(answer).await;
        names.push(address.to_string());
        talking.push(handle);
    }
    let new = TestServer::start_with(Repository::gated(&MODELS), from(&names)).await;
    assert_eq!(new.in_memory(), MODELS);
    new.finish().await;
    old.finish().await;
    talking.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn at_the_limit_a_new_instance_is_ready_and_what_is_under_way_goes_on() {
    let old = warm().await;
    let gated = Gated::default();
    MODELS.iter().for_each(|model| gated.close(model, Step::Load));
    let change = |config: &mut ServerConfig| {
        from(&[old.addresses.http.to_string()])(config);
        // One at a time: the others are not begun.
        (config.warm.limit, config.fetch.concurrency) = (Duration::from_secs(3), 1);
    };
    let new = TestServer::start_unready(Repository::gated(&MODELS), gated, change).await;
    new.until("a", |counts| counts.loads_begun == 1).await;
    assert!(!new.inner.is_ready());
    eventually("the limit has passed", || new.inner.is_ready()).await;
    assert!(new.in_memory().is_empty());
    new.gated.open_all();
    eventually("what was under way is there", || new.in_memory() == ["a"]).await;
    assert_eq!(["b", "c"].map(|model| new.gated.counts(model).loads_begun), [0, 0]);
    new.finish().await;
    old.finish().await;
}

#[tokio::test]
async fn a_server_that_is_told_to_go_while_it_warms_goes() {
    let old = warm().await;
    let gated = Gated::default();
    gated.close("a", Step::Load);
    let asked = from(&[old.addresses.http.to_string()]);
    let mut new = TestServer::start_unready(Repository::gated(&MODELS), gated, asked).await;
    new.until("a", |counts| counts.loads_begun == 1).await;
    new.shutdown.cancel();
    eventually("it is on its way out", || new.inner.is_draining()).await;
    new.gated.open_all();
    new.stop().await.unwrap();
    assert!(!new.inner.is_ready());
    old.finish().await;
}

#[tokio::test]
async fn neighbours_that_want_a_token_get_it_and_tell_nobody_else() {
    use sha2::{Digest, Sha256};
    let folder = tempfile::tempdir().unwrap();
    let (tokens, right, wrong) =
        (folder.path().join("tokens"), folder.path().join("right"), folder.path().join("wrong"));
    let sha256: String = Sha256::digest("let-me-in-now").iter().map(|byte| format!("{byte:02x}")).collect();
    std::fs::write(&tokens, format!("[[token]]\nname = \"all\"\nsha256 = \"{sha256}\"\nallow = [\"all\"]\n")).unwrap();
    std::fs::write(&right, "let-me-in-now\n").unwrap();
    std::fs::write(&wrong, "let-me-in-too\n").unwrap();
    let guard = |config: &mut ServerConfig| config.security.access_tokens = Some(tokens);
    let old = TestServer::start_with(Repository::gated(&MODELS), guard).await;
    old.inner.load_model("a", None).await.unwrap();
    for (token, brought) in [(Some(right), vec!["a"]), (Some(wrong), vec![]), (None, vec![])] {
        let change = |config: &mut ServerConfig| {
            from(&[old.addresses.http.to_string()])(config);
            config.warm.token_file = token;
        };
        let new = TestServer::start_with(Repository::gated(&MODELS), change).await;
        assert_eq!(new.in_memory(), brought);
        new.finish().await;
    }
    old.finish().await;
}

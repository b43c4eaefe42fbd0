//! What an instance tells those that choose between instances, and what it does on its way out.

use std::time::Duration;

use roundhouse::backend::gated::Step;
use serde_json::Value;

use crate::support::client::{Response, get, infer, load, unload};
use crate::support::eventually;
use crate::support::repository::Repository;
use crate::support::server::TestServer;

async fn digest(server: &TestServer, since: &str) -> Value {
    let path = if since.is_empty() { "/v1/digest".to_owned() } else { format!("/v1/digest?since={since}") };
    server.ask(&get(&path)).await.expect(200).json()
}

/// Names and states, in the order of the names.
fn rows(digest: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let rows = digest["models"].as_array().unwrap().iter();
    let mut rows: Vec<_> = rows.map(|row| (text(&row["name"]), text(&row["state"]))).collect();
    rows.sort();
    rows
}

fn row(name: &str, state: &str) -> (String, String) {
    (name.to_owned(), state.to_owned())
}

fn cursor(digest: &Value) -> String {
    digest["cursor"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_digest_holds_what_is_in_memory_and_the_next_what_changed_or_is_busy() {
    let mut server = TestServer::start(Repository::gated(&["a", "b", "c"])).await;
    let empty = digest(&server, "").await;
    assert_eq!(
        (empty["complete"].clone(), empty["ready"].clone(), rows(&empty)),
        (true.into(), true.into(), Vec::new())
    );
    server.ask(&load("a")).await.expect(200);
    server.ask(&load("b")).await.expect(200);
    let two = digest(&server, "").await;
    assert_eq!(rows(&two), [row("a", "READY"), row("b", "READY")]);
    assert!(two["models"][0]["load_seconds"].as_f64().unwrap() >= 0.0);
    // Nothing new, nobody busy.
    let none = digest(&server, &cursor(&two)).await;
    assert_eq!((none["complete"].clone(), rows(&none)), (false.into(), Vec::new()));
    server.gated.close("c", Step::Load);
    server.ask(&unload("b")).await.expect(200);
    let mut waiting = server.send(&infer("c", 1)).await;
    server.until("c", |counts| counts.loads_begun == 1).await;
    let changed = digest(&server, &cursor(&none)).await;
    assert_eq!(rows(&changed), [row("b", "UNAVAILABLE"), row("c", "LOADING")]);
    assert_eq!(changed["loads"], 1);
    server.gated.open("c", Step::Load);
    assert_eq!(waiting.receive().await.tag(), 1);
    // Busy ones are told each time.
    server.gated.close("a", Step::Execute);
    let mut busy = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let after = digest(&server, &cursor(&changed)).await;
    for digest in [digest(&server, &cursor(&after)).await, digest(&server, &cursor(&after)).await] {
        assert_eq!(rows(&digest), [row("a", "READY")]);
        assert_eq!(digest["models"][0]["in_use"], 1);
    }
    server.gated.open("a", Step::Execute);
    busy.receive().await.expect(200);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_cursor_of_another_start_brings_all_and_a_wrong_parameter_is_named() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.ask(&load("a")).await.expect(200);
    for since in ["1-0", "nonsense", "99999999999999999999999999999999999999999-5"] {
        let digest = digest(&server, since).await;
        assert_eq!((digest["complete"].clone(), rows(&digest)), (true.into(), vec![row("a", "READY")]), "{since}");
    }
    let refused = server.ask(&get("/v1/digest?after=x")).await.expect(400);
    assert!(refused.error().contains("'after'"), "{}", refused.text());
}

#[tokio::test]
async fn on_its_way_out_an_instance_answers_what_it_has_and_refuses_to_load_more() {
    let change = |config: &mut roundhouse::config::ServerConfig| config.drain_notice = Duration::from_secs(3600);
    let server = TestServer::start_with(Repository::gated(&["a", "b", "c"]), change).await;
    server.ask(&load("a")).await.expect(200);
    server.gated.close("c", Step::Load);
    let mut loading = server.send(&infer("c", 3)).await;
    server.until("c", |counts| counts.loads_begun == 1).await;
    server.shutdown.cancel();
    eventually("the server is on its way out", || server.inner.is_draining()).await;
    // New connections are taken.
    let mut client = server.client().await;
    assert_eq!(client.ask(&infer("a", 1)).await.tag(), 1);
    let refused: Response = client.ask(&infer("b", 2)).await.expect(503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.error().contains("loads no more models"), "{}", refused.text());
    client.ask(&get("/v2/health/ready")).await.expect(503);
    let digest = client.ask(&get("/v1/digest")).await.expect(200).json();
    assert_eq!((digest["draining"].clone(), digest["ready"].clone()), (true.into(), false.into()));
    // What was under way before goes on to its end.
    server.gated.open("c", Step::Load);
    assert_eq!(loading.receive().await.tag(), 3);
    assert_eq!(server.gated.counts("b").loads_begun, 0);
}

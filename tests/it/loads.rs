//! One load per model, however many ask, and what becomes of loads that fail or that nobody waits for.

use std::time::Duration;

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::error::{Error, ErrorKind};

use crate::support::client::{get, infer, infer_body, load, post, unload};
use crate::support::eventually;
use crate::support::repository::Repository;
use crate::support::server::TestServer;

/// Connections that have each sent a first request to `model`, whose loads wait at a closed gate.
async fn waiting_for_a_load(
    server: &TestServer,
    model: &str,
    count: usize,
) -> Vec<(i32, crate::support::client::Client)> {
    server.gated.close(model, Step::Load);
    let mut waiting = Vec::new();
    for tag in 0..i32::try_from(count).unwrap() {
        waiting.push((tag, server.send(&infer(model, tag)).await));
        if tag == 0 {
            server.until(model, |counts| counts.loads_begun == 1).await;
        }
    }
    waiting
}

#[tokio::test]
async fn a_hundred_first_requests_to_a_cold_model_make_one_load_and_a_hundred_answers() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let mut waiting = waiting_for_a_load(&server, "a", 100).await;
    server.gated.open("a", Step::Load);
    for (tag, client) in &mut waiting {
        assert_eq!(client.receive().await.tag(), *tag);
    }
    assert_eq!((server.loads("ok"), server.gated.counts("a").loads_begun), (1, 1));
    server.finish().await;
}

#[tokio::test]
async fn a_leader_whose_client_disconnects_hands_over() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let mut waiting = waiting_for_a_load(&server, "a", 100).await;
    let (_, leader) = waiting.remove(0);
    drop(leader);
    server.gated.open("a", Step::Load);
    for (tag, client) in &mut waiting {
        assert_eq!(client.receive().await.tag(), *tag);
    }
    assert_eq!((server.loads("ok"), server.loads("cancelled")), (1, 0));
    assert_eq!(server.gated.counts("a").loads_begun, 1);
    server.finish().await;
}

#[tokio::test]
async fn a_load_that_nobody_waits_for_is_abandoned_and_the_next_request_loads_again() {
    let repository = Repository::gated(&["a"]);
    repository.add_version("a", 2);
    repository.put("a/config.pbtxt", crate::support::repository::config("a", "gated", "version_policy { all { } }"));
    let server = TestServer::start(repository).await;
    let waiting = waiting_for_a_load(&server, "a", 3).await;
    drop(waiting);
    // The handlers are dropped when hyper has seen the closed sockets; a load that is abandoned says so only between
    // its steps, so that the gate opens once nobody is left.
    eventually("the load has no waiters", || waiters_are_gone(&server)).await;
    server.gated.open("a", Step::Load);
    eventually("the load is abandoned", || server.loads("cancelled") == 1).await;
    assert_eq!(server.gated.alive(), 0, "what was loaded for nobody is freed");
    assert_eq!(server.gated.counts("a").loads_begun, 1, "the second version was not tried");
    assert_eq!(server.state("a").await, "", "as if nobody had asked");
    assert_eq!(server.ask(&infer("a", 7)).await.tag(), 7);
    assert_eq!((server.loads("ok"), server.gated.counts("a").loads_begun), (1, 3));
    server.finish().await;
}

/// Whether no connection of the server is open any more but those of nobody: seen by the files it holds.
fn waiters_are_gone(server: &TestServer) -> bool {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let port = format!(":{:04X}", server.addresses.http.port());
    // Column 1 is the local address, column 3 the state: 01 established, 08 the peer has closed.
    let open = |line: &&str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        columns.get(1).is_some_and(|local| local.ends_with(&port)) && matches!(columns.get(3), Some(&("01" | "08")))
    };
    table.lines().filter(open).count() == 0
}

#[tokio::test]
async fn what_is_loaded_by_the_time_everybody_left_is_kept_for_the_next_caller() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let waiting = waiting_for_a_load(&server, "a", 3).await;
    drop(waiting);
    eventually("the load has no waiters", || waiters_are_gone(&server)).await;
    server.gated.open("a", Step::Load);
    eventually("the load has ended", || server.loads("ok") == 1).await;
    assert_eq!(server.ask(&infer("a", 7)).await.tag(), 7);
    assert_eq!((server.loads("cancelled"), server.gated.counts("a").loads_begun), (0, 1));
    server.finish().await;
}

#[tokio::test]
async fn an_explicit_load_goes_on_though_its_caller_left() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.gated.close("a", Step::Load);
    let caller = server.send(&load("a")).await;
    server.until("a", |counts| counts.loads_begun == 1).await;
    drop(caller);
    eventually("the caller is gone", || waiters_are_gone(&server)).await;
    server.gated.open("a", Step::Load);
    eventually("the load has ended", || server.loads("ok") == 1).await;
    assert_eq!(server.loads("cancelled"), 0);
    server.ask(&get("/v2/models/a/ready")).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn an_explicit_load_that_joins_a_request_s_load_keeps_it_going_when_all_have_left() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let waiting = waiting_for_a_load(&server, "a", 1).await;
    let mut explicit = server.send(&load("a")).await;
    // A second connection's answer says that the server has read what was sent before it.
    server.ask(&get("/v2/health/live")).await.expect(200);
    drop(waiting);
    server.gated.open("a", Step::Load);
    explicit.receive().await.expect(200);
    server.ask(&get("/v2/models/a/ready")).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn a_slow_load_of_one_model_does_not_delay_requests_to_another() {
    let server = TestServer::start_with(Repository::gated(&["a", "b"]), |config| config.load_concurrency = 1).await;
    assert_eq!(server.ask(&infer("a", 0)).await.tag(), 0);
    server.gated.close("b", Step::Load);
    let mut slow = server.send(&infer("b", 1)).await;
    server.until("b", |counts| counts.loads_begun == 1).await;
    let mut client = server.client().await;
    for tag in 0..1000 {
        assert_eq!(client.ask(&infer("a", tag)).await.tag(), tag);
    }
    client.ask(&get("/v2/health/ready")).await.expect(200);
    assert_eq!(server.gated.counts("b").loads_ended, 0);
    server.gated.open("b", Step::Load);
    assert_eq!(slow.receive().await.tag(), 1);
    server.finish().await;
}

#[tokio::test]
async fn no_more_models_are_loaded_at_once_than_allowed() {
    let names = ["a", "b", "c", "d"];
    let server = TestServer::start_with(Repository::gated(&names), |config| config.load_concurrency = 2).await;
    let mut clients = Vec::new();
    for name in names {
        server.gated.close(name, Step::Load);
        clients.push(server.send(&infer(name, 1)).await);
    }
    let begun = || names.iter().map(|name| server.gated.counts(name).loads_begun).sum::<usize>();
    eventually("two loads have begun", || begun() == 2).await;
    for name in names {
        assert!(begun() <= 2 + names.iter().filter(|other| server.gated.counts(other).loads_ended > 0).count());
        server.gated.open(name, Step::Load);
    }
    for client in &mut clients {
        client.receive().await.expect(200);
    }
    server.finish().await;
}

fn refused() -> Fault {
    Fault::Error(Error::new(ErrorKind::BackendFailed, "the weights are torn"))
}

#[tokio::test]
async fn a_failed_load_is_remembered_and_an_explicit_load_tries_at_once() {
    let repository = Repository::gated(&["a"]);
    let server = TestServer::start_with(repository, |config| config.load_retry = Duration::from_secs(3600)).await;
    server.gated.fail_next("a", Step::Load, refused());
    for _ in 0..3 {
        let answer = server.ask(&infer("a", 1)).await.expect(500);
        assert_eq!(answer.error(), "model 'a' cannot be loaded: the weights are torn");
    }
    assert_eq!((server.gated.counts("a").loads_begun, server.loads("failed")), (1, 1));
    assert_eq!(server.state("a").await, "UNAVAILABLE");
    server.gated.fail_next("a", Step::Load, refused());
    server.ask(&load("a")).await.expect(500);
    assert_eq!(server.gated.counts("a").loads_begun, 2);
    server.ask(&load("a")).await.expect(200);
    assert_eq!(server.ask(&infer("a", 2)).await.tag(), 2);
    server.finish().await;
}

#[tokio::test]
async fn a_failed_load_is_tried_again_where_nothing_is_to_be_remembered() {
    let server = TestServer::start_with(Repository::gated(&["a"]), |config| config.load_retry = Duration::ZERO).await;
    for _ in 0..3 {
        server.gated.fail_next("a", Step::Load, refused());
        server.ask(&infer("a", 1)).await.expect(500);
    }
    assert_eq!(server.ask(&infer("a", 2)).await.tag(), 2);
    assert_eq!(server.gated.counts("a").loads_begun, 4);
    server.finish().await;
}

#[tokio::test]
async fn everybody_who_waits_for_a_load_hears_its_error_and_nothing_stays_in_memory() {
    for fault in [refused(), Fault::Panic("the runtime is upset")] {
        for step in [Step::Load, Step::Instance] {
            let server = TestServer::start(Repository::gated(&["a", "b"])).await;
            server.gated.fail_next("a", step, fault.clone());
            let mut waiting = waiting_for_a_load(&server, "a", 20).await;
            server.gated.open("a", Step::Load);
            for (_, client) in &mut waiting {
                assert!(client.receive().await.expect(500).error().contains("model 'a' cannot be loaded"));
            }
            assert_eq!((server.loads("failed"), server.gated.alive()), (1, 0));
            server.ask(&infer("b", 1)).await.expect(200);
            server.ask(&load("a")).await.expect(200);
            server.finish().await;
        }
    }
}

#[tokio::test]
async fn names_that_do_not_exist_leave_nothing_behind() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let mut client = server.client().await;
    for number in 0..500 {
        client.ask(&infer(&format!("nowhere{number}"), 1)).await.expect(404);
        client.ask(&load(&format!("nowhere{number}"))).await.expect(404);
        client.ask(&unload(&format!("nowhere{number}"))).await.expect(200);
        client.ask(&get(&format!("/v2/models/nowhere{number}"))).await.expect(404);
    }
    assert_eq!(server.index().await, ["a"]);
    assert!(server.inner.resident_versions().is_empty());
    server.finish().await;
}

#[tokio::test]
async fn names_that_do_not_exist_are_told_apart_while_every_load_is_slow() {
    let server = TestServer::start_with(Repository::gated(&["a", "b"]), |config| config.load_concurrency = 1).await;
    let mut first = waiting_for_a_load(&server, "a", 1).await;
    for number in 0..5 {
        let hurried = infer(&format!("nowhere{number}"), 1).header("x-request-timeout-ms", 20_000);
        server.ask(&hurried).await.expect(404);
    }
    // A model that exists waits behind the one load that may run, and is given up.
    server.ask(&infer("b", 1).header("x-request-timeout-ms", 5)).await.expect(504);
    server.gated.open("a", Step::Load);
    assert_eq!(first[0].1.receive().await.tag(), 0);
    eventually("the load is abandoned", || server.loads("cancelled") == 1).await;
    assert_eq!(server.gated.counts("b").loads_begun, 0);
    assert_eq!(server.index().await, ["a", "b"]);
    server.finish().await;
}

#[tokio::test]
async fn a_deadline_during_a_load_is_answered_in_time() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.gated.close("a", Step::Load);
    let mut patient = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.loads_begun == 1).await;
    let answer = server.ask(&infer("a", 2).header("x-request-timeout-ms", 5)).await.expect(504);
    assert_eq!(answer.json()["code"], "deadline_exceeded");
    let mut body = infer_body(3);
    body["parameters"] = serde_json::json!({"timeout": 5000});
    server.ask(&post("/v2/models/a/infer", body.to_string())).await.expect(504);
    server.gated.open("a", Step::Load);
    assert_eq!(patient.receive().await.tag(), 1);
    assert_eq!(server.gated.counts("a").executions_begun, 1, "what was too late was not run");
    server.finish().await;
}

#[tokio::test]
async fn a_model_added_later_is_found_and_one_that_was_mended_loads() {
    let server = TestServer::start_with(Repository::empty(), |config| config.load_retry = Duration::ZERO).await;
    server.ask(&infer("late", 1)).await.expect(404);
    server.repository.put("late/config.pbtxt", "backend: \"gated\" input [");
    server.repository.add_version("late", 1);
    // What is wrong with the model is no fault of who asks it, but of who loads it.
    server.ask(&infer("late", 1)).await.expect(503);
    server.ask(&load("late")).await.expect(400);
    server.repository.put("late/config.pbtxt", crate::support::repository::config("late", "gated", ""));
    assert_eq!(server.ask(&infer("late", 1)).await.tag(), 1);
    server.finish().await;
}

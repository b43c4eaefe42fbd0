//! Ensembles with a decoupled step: each of its answers flows down by itself.

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::error::{Error, ErrorKind};
use serde_json::{Value, json};

use super::{WithEnsembles, chain, count, ensemble, step};
use crate::support::client::{Request, infer, load, post, unload};
use crate::support::eventually;
use crate::support::repository::{ONE_INSTANCE, Repository};
use crate::support::server::TestServer;

const DECOUPLED: &str = "model_transaction_policy { decoupled: true }";

/// A decoupled model `s`, and ordinary ones.
fn repository() -> Repository {
    Repository::gated(&["a", "b"]).with("s", "gated", DECOUPLED)
}

fn stream(model: &str, values: &[i32]) -> Request {
    post(&format!("/v2/models/{model}/generate_stream"), json!({ "x": values }).to_string())
}

/// The numbers in the events of a stream.
fn numbers(text: &str) -> Vec<i64> {
    let events = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let value = |event: &str| serde_json::from_str::<Value>(event).unwrap()["y"].as_i64();
    events.map(|event| value(event).unwrap_or_else(|| panic!("{event}"))).collect()
}

#[tokio::test]
async fn each_answer_flows_down_by_itself_and_they_leave_in_order() {
    let server = TestServer::start(repository().and("e", &chain(&["a", "s", "b"]))).await;
    let answer = server.ask(&stream("e", &[5, 6, 7, 8])).await.expect(200);
    assert_eq!(numbers(answer.text()), [5, 6, 7, 8]);
    assert_eq!(server.gated.counts("b").executions_ended, 4);
    assert_eq!(
        (count(&server, "request_success", "e"), count(&server, "request_success", "b")),
        (Some(1.0), Some(4.0))
    );
    // An ensemble with a decoupled step is decoupled.
    server.ask(&infer("e", 1)).await.expect(501);
    let empty = server.ask(&stream("e", &[])).await.expect(200);
    assert_eq!(empty.text(), "");
    server.finish().await;
}

#[tokio::test]
async fn the_first_answer_leaves_while_the_step_is_still_answering() {
    let server = TestServer::start(repository().and("e", &chain(&["s", "b"]))).await;
    server.ask(&load("e")).await.expect(200);
    server.gated.close("s", Step::Answer);
    let mut client = server.send(&stream("e", &[5, 6])).await;
    server.gated.admit("s", Step::Answer, 1);
    client.receive_head().await.expect(200);
    assert_eq!(numbers(&client.chunk().await.unwrap()), [5]);
    server.gated.open_all();
    assert_eq!(numbers(&client.chunk().await.unwrap()), [6]);
    assert_eq!(client.chunk().await, None);
    server.finish().await;
}

#[tokio::test]
async fn what_was_beside_the_decoupled_step_comes_with_each_answer() {
    let steps = [step("s", "x", "y"), step("a", "x", "w")];
    let server = TestServer::start(repository().and("e", &ensemble(&["y", "w"], "", &steps))).await;
    let answer = server.ask(&stream("e", &[5, 6])).await.expect(200);
    let events: Vec<Value> = answer
        .text()
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    assert_eq!(events.iter().map(|event| event["w"].clone()).collect::<Vec<_>>(), [json!([5, 6]), json!([5, 6])]);
    server.finish().await;
}

#[tokio::test]
async fn no_more_answers_are_under_way_below_the_step_than_the_configuration_says() {
    let chained = chain(&["s", "b"]).replace("ensemble_scheduling {", "ensemble_scheduling { max_inflight_requests: 2");
    let server = TestServer::start(repository().and("e", &chained)).await;
    server.ask(&load("e")).await.expect(200);
    server.gated.close("b", Step::Execute);
    let values: Vec<i32> = (0..40).collect();
    let mut client = server.send(&stream("e", &values)).await;
    server.until("b", |counts| counts.executions_begun == 2).await;
    // It has given what may wait in its channel, and the two; nothing more until one of them is through.
    server.until("s", |counts| counts.answers == 2 + roundhouse::scheduler::answer::WAITING_ANSWERS + 1).await;
    assert_eq!((server.gated.counts("b").executions_begun, server.pending("b")), (2, 0));
    // The first of them: answers leave in order, so that the second alone would make no room.
    server.gated.admit_tag("b", 0);
    server.until("b", |counts| counts.executions_begun == 3).await;
    server.gated.open_all();
    client.receive_head().await.expect(200);
    let mut got = Vec::new();
    while let Some(chunk) = client.chunk().await {
        got.extend(numbers(&chunk));
    }
    assert_eq!(got, (0..40).collect::<Vec<_>>());
    assert!(server.gated.counts("b").most_at_once <= 2);
    server.finish().await;
}

#[tokio::test]
async fn a_step_that_fails_below_ends_the_stream_with_its_name() {
    let repository = repository().with("c", "gated", ONE_INSTANCE).and("e", &chain(&["s", "c"]));
    let server = TestServer::start(repository).await;
    server.ask(&load("e")).await.expect(200);
    server.gated.close("c", Step::Execute);
    let mut client = server.send(&stream("e", &[5, 6])).await;
    server.gated.admit("c", Step::Execute, 1);
    client.receive_head().await.expect(200);
    assert_eq!(numbers(&client.chunk().await.unwrap()), [5]);
    server.gated.fail_next("c", Step::Execute, Fault::Error(Error::new(ErrorKind::BackendFailed, "no luck")));
    server.gated.open_all();
    let error = client.chunk().await.unwrap();
    assert!(error.contains("step 'c' of ensemble 'e': no luck"), "{error}");
    assert_eq!(client.chunk().await, None);
    server.finish().await;
}

#[tokio::test]
async fn a_reader_that_leaves_takes_the_stream_and_its_steps_with_it() {
    let server = TestServer::start(repository().and("e", &chain(&["s", "b"]))).await;
    server.ask(&load("e")).await.expect(200);
    server.gated.close("b", Step::Execute);
    let values: Vec<i32> = (0..100).collect();
    let client = server.send(&stream("e", &values)).await;
    server.until("b", |counts| counts.executions_begun == 2).await;
    drop(client);
    let pins = || server.inner.resident_versions().iter().map(|loaded| loaded.pins()).sum::<usize>();
    eventually("nothing is pinned", || pins() == 0).await;
    server.gated.open_all();
    server.until("s", |counts| counts.executions_ended == 1).await;
    for model in ["e", "s", "b"] {
        server.ask(&unload(model)).await.expect(200);
    }
    server.finish().await;
}

#[tokio::test]
async fn decoupled_steps_stand_in_line_also_through_an_ensemble_in_the_ensemble() {
    let repository = repository().and("inner", &chain(&["s", "a"])).and("e", &chain(&["inner", "b", "s"]));
    let server = TestServer::start(repository).await;
    let answer = server.ask(&stream("e", &[1, 2, 3])).await.expect(200);
    assert_eq!(numbers(answer.text()), [1, 2, 3]);
    server.finish().await;
}

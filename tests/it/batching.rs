//! Dynamic batching: what runs together, what waits and for how long, and who is answered what.

mod real;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::error::{Error, ErrorKind};
use serde_json::{Value, json};

use crate::support::client::{Client, Request, get, infer, load, post, unload};
use crate::support::eventually;
use crate::support::repository::{ONE_INSTANCE, Repository};
use crate::support::server::{TestServer, all};

/// Longer than any test: what is answered did not wait for it.
const AN_HOUR: u64 = 3_600_000_000;

/// A body of rows to a model with batches, of which the first value of the first row is the tag.
fn rows(rows: usize, width: usize, tag: i32) -> Value {
    let mut data = vec![0; rows * width];
    data[0] = tag;
    json!({"inputs": [{"name": "x", "datatype": "INT32", "shape": [rows, width], "data": data}]})
}

fn batch_of(rows_: usize, tag: i32) -> Request {
    post("/v2/models/a/infer", rows(rows_, 1, tag).to_string())
}

fn one(tag: i32) -> Request {
    batch_of(1, tag)
}

fn with_priority(tag: i32, priority: u64) -> Request {
    let mut body = rows(1, 1, tag);
    body["parameters"] = json!({ "priority": priority });
    post("/v2/models/a/infer", body.to_string())
}

/// A server whose gated model `a` has one instance, batches of up to `most`, and this in `dynamic_batching`.
async fn batching(most: usize, more: &str) -> TestServer {
    let more = format!("{ONE_INSTANCE} max_batch_size: {most} dynamic_batching {{ {more} }}");
    let server = TestServer::start(Repository::empty().with("a", "gated", &more)).await;
    server.ask(&load("a")).await.expect(200);
    server
}

/// The same with its instance held by request 0.
async fn busy(most: usize, more: &str) -> (TestServer, Client) {
    let server = batching(most, more).await;
    server.gated.close("a", Step::Execute);
    let first = server.send(&batch_of(most, 0)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    (server, first)
}

/// Sends these one after the other, so that they wait in this order.
async fn queue(server: &TestServer, requests: impl IntoIterator<Item = Request>) -> Vec<Client> {
    let before = server.pending("a");
    let mut clients = Vec::new();
    for request in requests {
        clients.push(server.send(&request).await);
        server.until_pending("a", before + clients.len()).await;
    }
    clients
}

async fn expect_tags(clients: &mut [Client], tags: impl IntoIterator<Item = i32>) {
    for (tag, client) in tags.into_iter().zip(clients) {
        assert_eq!(client.receive().await.tag(), tag);
    }
}

/// What ran so far: the tag of each batch's first request, and how many inferences it had.
fn ran(server: &TestServer) -> Vec<(i32, u64)> {
    server.gated.order().iter().map(|executed| (executed.tag, executed.items)).collect()
}

#[tokio::test]
async fn what_waits_for_a_busy_instance_runs_together() {
    let (server, mut first) = busy(8, "").await;
    let mut clients = queue(&server, [batch_of(2, 1), one(2), one(3)]).await;
    server.gated.open("a", Step::Execute);
    assert_eq!(first.receive().await.tag(), 0);
    expect_tags(&mut clients, 1..=3).await;
    assert_eq!(ran(&server), [(0, 8), (1, 4)]);
    let stats = server.ask(&get("/v2/models/a/stats")).await.json();
    let stats = &stats["model_stats"][0];
    assert_eq!((&stats["inference_count"], &stats["execution_count"]), (&json!(12), &json!(2)));
    assert_eq!(stats["inference_stats"]["success"]["count"], 4);
    let sizes: Vec<_> = stats["batch_stats"].as_array().unwrap().iter().map(|row| row["batch_size"].clone()).collect();
    assert_eq!(sizes, [json!(4), json!(8)]);
    server.finish().await;
}

#[tokio::test]
async fn no_batch_is_larger_than_the_model_takes() {
    let (server, mut first) = busy(4, "").await;
    let mut clients = queue(&server, [batch_of(3, 1), batch_of(2, 2), one(3), one(4), one(5)]).await;
    server.gated.open("a", Step::Execute);
    assert_eq!(first.receive().await.tag(), 0);
    expect_tags(&mut clients, 1..=5).await;
    assert_eq!(ran(&server), [(0, 4), (1, 3), (2, 4), (5, 1)]);
    server.finish().await;
}

#[tokio::test]
async fn a_preferred_size_is_cut_and_what_is_left_waits_for_company() {
    let (server, mut first) =
        busy(8, &format!("preferred_batch_size: [ 4 ] max_queue_delay_microseconds: {AN_HOUR}")).await;
    let mut clients = queue(&server, (1..=6).map(one)).await;
    server.gated.open("a", Step::Execute);
    assert_eq!(first.receive().await.tag(), 0);
    expect_tags(&mut clients[..4], 1..=4).await;
    server.until_pending("a", 2).await;
    assert_eq!(ran(&server), [(0, 8), (1, 4)]);
    let mut more = vec![server.send(&one(7)).await, server.send(&one(8)).await];
    expect_tags(&mut clients[4..], 5..=6).await;
    expect_tags(&mut more, 7..=8).await;
    assert_eq!(ran(&server)[2], (5, 4));
    server.finish().await;
}

#[tokio::test]
async fn who_is_alone_waits_for_company_and_a_full_batch_does_not() {
    let server = batching(2, &format!("max_queue_delay_microseconds: {AN_HOUR}")).await;
    let mut clients = queue(&server, [one(1)]).await;
    assert_eq!(ran(&server), []);
    clients.push(server.send(&one(2)).await);
    expect_tags(&mut clients, 1..=2).await;
    assert_eq!(ran(&server), [(1, 2)]);
    server.finish().await;
}

#[tokio::test]
async fn a_batch_leaves_when_its_time_is_over() {
    let server = batching(8, "max_queue_delay_microseconds: 30000").await;
    let begun = Instant::now();
    assert_eq!(server.ask(&one(1)).await.tag(), 1);
    assert!(begun.elapsed() >= Duration::from_millis(30));
    assert_eq!(ran(&server), [(1, 1)]);
    server.finish().await;
}

/// Two batches on two instances, of which the second ends first; whether its answer was there before the first one's.
async fn second_is_first(more: &str) -> bool {
    let more =
        format!("instance_group [ {{ count: 2 kind: KIND_CPU }} ] max_batch_size: 1 dynamic_batching {{ {more} }}");
    let server = TestServer::start(Repository::gated(&["b"]).with("a", "gated", &more)).await;
    server.gated.close("a", Step::Execute);
    let mut first = server.send(&one(1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let mut second = server.send(&one(2)).await;
    server.until("a", |counts| counts.executions_begun == 2).await;
    server.gated.admit_tag("a", 2);
    server.until("a", |counts| counts.executions_ended == 1).await;
    let statistics = Arc::clone(&server.inner.versions_of("a")[0].statistics);
    eventually("the second has run", || statistics.success.count() == 1).await;
    // An answer that was given when these were is there when they are.
    for tag in 0..20 {
        assert_eq!(server.ask(&infer("b", tag)).await.tag(), tag);
    }
    let early = {
        let mut receiving = std::pin::pin!(second.receive());
        let early = tokio::time::timeout(Duration::from_millis(20), receiving.as_mut()).await;
        server.gated.open("a", Step::Execute);
        assert_eq!(first.receive().await.tag(), 1);
        match early {
            Ok(answer) => Some(answer.tag()),
            Err(_elapsed) => {
                assert_eq!(receiving.await.tag(), 2);
                None
            }
        }
    };
    server.finish().await;
    early == Some(2)
}

#[tokio::test]
async fn answers_leave_in_the_order_of_their_requests_where_that_is_asked_for() {
    assert!(!second_is_first("preserve_ordering: true").await);
    assert!(second_is_first("").await, "what the other half of this test rests on");
}

#[tokio::test]
async fn a_higher_priority_goes_first_and_none_is_the_default_one() {
    let (server, mut first) = busy(1, "priority_levels: 3 default_priority_level: 2").await;
    let mut clients = queue(&server, [with_priority(1, 3), one(2), with_priority(3, 2), with_priority(4, 1)]).await;
    server.gated.open("a", Step::Execute);
    assert_eq!(first.receive().await.tag(), 0);
    expect_tags(&mut clients, 1..=4).await;
    let tags: Vec<_> = ran(&server).iter().map(|(tag, _)| *tag).collect();
    assert_eq!(tags, [0, 4, 2, 3, 1]);
    server.finish().await;
}

#[tokio::test]
async fn each_level_has_a_bound_of_its_own() {
    let policy =
        "priority_levels: 2 default_priority_level: 2 priority_queue_policy { key: 1 value { max_queue_size: 1 } }";
    let (server, mut first) = busy(4, policy).await;
    let mut clients = queue(&server, [with_priority(1, 1)]).await;
    let refused = server.ask(&with_priority(2, 1)).await.expect(429);
    assert_eq!(refused.error(), "the model's queue is full (1 waiting): retry later");
    clients.extend(queue(&server, [one(3), one(4)]).await);
    server.gated.open("a", Step::Execute);
    assert_eq!(first.receive().await.tag(), 0);
    expect_tags(&mut clients, [1, 3, 4]).await;
    assert_eq!(ran(&server)[1], (1, 3));
    server.finish().await;
}

#[tokio::test]
async fn who_waits_too_long_is_refused_or_goes_behind_the_others() {
    // Who holds the instance is of a level without a limit.
    let policy = "timeout_action: REJECT default_timeout_microseconds: 2000";
    let levels = "priority_levels: 2 default_priority_level: 1";
    let levels = format!("{levels} priority_queue_policy {{ key: 2 value {{ {policy} }} }}");
    let (server, mut first) = busy(1, &levels).await;
    server.ask(&with_priority(1, 2)).await.expect(504);
    server.gated.open("a", Step::Execute);
    assert_eq!(first.receive().await.tag(), 0);
    eventually("it is gone", || server.pending("a") == 0).await;
    assert_eq!(ran(&server), [(0, 1)]);
    server.finish().await;

    let late = Duration::from_millis(500);
    let policy =
        format!("default_queue_policy {{ timeout_action: DELAY default_timeout_microseconds: {} }}", late.as_micros());
    let (server, mut first) = busy(1, &policy).await;
    let mut clients = queue(&server, [one(1)]).await;
    let begun = Instant::now();
    while begun.elapsed() <= late {
        tokio::task::yield_now().await;
    }
    clients.extend(queue(&server, [one(2)]).await);
    server.gated.open("a", Step::Execute);
    assert_eq!(first.receive().await.tag(), 0);
    expect_tags(&mut clients, 1..=2).await;
    let tags: Vec<_> = ran(&server).iter().map(|(tag, _)| *tag).collect();
    assert_eq!(tags, [0, 2, 1]);
    server.finish().await;
}

#[tokio::test]
async fn a_request_that_runs_is_timed_out_by_its_own_deadline_alone() {
    let policy = "default_queue_policy { timeout_action: REJECT default_timeout_microseconds: 300000 }";
    let policy = format!("{ONE_INSTANCE} max_batch_size: 1 dynamic_batching {{ {policy} }}");
    for decoupled in [false, true] {
        let more = format!("{policy} model_transaction_policy {{ decoupled: {decoupled} }}");
        let server = TestServer::start(Repository::empty().with("a", "gated", &more)).await;
        server.ask(&load("a")).await.expect(200);
        let asked = |tag: i32| match decoupled {
            false => one(tag),
            true => post("/v2/models/a/generate", json!({ "x": [[tag]] }).to_string()),
        };
        server.gated.close("a", Step::Execute);
        let mut runs = server.send(&asked(1)).await;
        server.until("a", |counts| counts.executions_begun == 1).await;
        // Later than the first, and too long in the queue: so is the first, were it there.
        server.ask(&asked(2)).await.expect(504);
        server.gated.open("a", Step::Execute);
        runs.receive().await.expect(200);
        server.gated.close("a", Step::Execute);
        let mut runs = server.send(&asked(3).header("x-request-timeout-ms", 100)).await;
        runs.receive().await.expect(504);
        server.gated.open("a", Step::Execute);
        server.finish().await;
    }
}

#[tokio::test]
async fn who_left_is_not_in_the_batch() {
    let (server, mut first) = busy(8, "").await;
    let mut clients = queue(&server, (1..=3).map(one)).await;
    drop(clients.remove(1));
    let cancelled = "nv_inference_request_failure{model=\"a\",version=\"1\",reason=\"CANCELED\"}";
    eventually("it is counted", || server.metric(cancelled) == Some(1.0)).await;
    server.gated.open("a", Step::Execute);
    assert_eq!(first.receive().await.tag(), 0);
    expect_tags(&mut clients, [1, 3]).await;
    assert_eq!(ran(&server), [(0, 8), (1, 2)]);
    server.finish().await;
}

#[tokio::test]
async fn one_wrong_request_in_a_batch_fails_alone() {
    let (server, mut first) = busy(8, "").await;
    let mut clients = queue(&server, (1..=3).map(one)).await;
    let fault = || Fault::Error(Error::new(ErrorKind::InvalidArgument, "no such word"));
    server.gated.admit_tag("a", 0);
    assert_eq!(first.receive().await.tag(), 0);
    // The batch fails, and then the first of it alone.
    server.gated.fail_next("a", Step::Execute, fault());
    server.gated.fail_next("a", Step::Execute, fault());
    server.gated.open("a", Step::Execute);
    assert_eq!(clients[0].receive().await.expect(400).error(), "no such word");
    expect_tags(&mut clients[1..], 2..=3).await;
    assert_eq!(ran(&server), [(0, 8), (1, 3), (1, 1), (2, 1), (3, 1)]);
    let failed = "nv_inference_request_failure{model=\"a\",version=\"1\",reason=\"BACKEND\"}";
    assert_eq!(server.metric(failed), Some(1.0));
    server.finish().await;
}

#[tokio::test]
async fn a_panic_fails_its_batch_and_nothing_after_it() {
    let (server, mut first) = busy(8, "").await;
    let mut clients = queue(&server, (1..=3).map(one)).await;
    server.gated.admit_tag("a", 0);
    assert_eq!(first.receive().await.tag(), 0);
    server.gated.fail_next("a", Step::Execute, Fault::Panic("an index is out of bounds"));
    server.gated.open("a", Step::Execute);
    for client in &mut clients {
        client.receive().await.expect(500);
    }
    assert_eq!(server.ask(&one(4)).await.tag(), 4);
    assert_eq!(ran(&server), [(0, 8), (1, 3), (4, 1)]);
    assert_eq!(server.gated.counts("a").live_instances, 1);
    server.finish().await;
}

#[tokio::test]
async fn unlike_shapes_do_not_share_a_batch() {
    let (server, mut first) = busy(8, "").await;
    let shaped = |width, tag| post("/v2/models/a/infer", rows(1, width, tag).to_string());
    let mut clients = queue(&server, [shaped(1, 1), shaped(1, 2), shaped(3, 3), shaped(3, 4)]).await;
    server.gated.open("a", Step::Execute);
    assert_eq!(first.receive().await.tag(), 0);
    expect_tags(&mut clients, 1..=4).await;
    assert_eq!(ran(&server), [(0, 8), (1, 2), (3, 2)]);
    server.finish().await;
}

#[tokio::test]
async fn ragged_ones_do() {
    let text = format!(
        "name: \"a\" backend: \"gated\" max_batch_size: 8 dynamic_batching {{ }} {ONE_INSTANCE}
         input {{ name: \"x\" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true }}
         output {{ name: \"y\" data_type: TYPE_INT32 dims: [ -1 ] }}
         batch_output {{ target_name: \"y\" source_input: \"x\" kind: BATCH_SCATTER_WITH_INPUT_SHAPE }}"
    );
    let repository = Repository::empty();
    repository.put("a/config.pbtxt", text);
    repository.add_version("a", 1);
    let server = TestServer::start(repository).await;
    server.gated.close("a", Step::Execute);
    let shaped = |width, tag| post("/v2/models/a/infer", rows(1, width, tag).to_string());
    let mut first = server.send(&shaped(1, 0)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let mut clients = queue(&server, [shaped(2, 1), shaped(3, 2)]).await;
    server.gated.open("a", Step::Execute);
    assert_eq!(first.receive().await.tag(), 0);
    for (tag, width, client) in
        [(1, 2), (2, 3)].into_iter().zip(&mut clients).map(|((tag, width), it)| (tag, width, it))
    {
        let answer = client.receive().await;
        assert_eq!((answer.tag(), &answer.json()["outputs"][0]["shape"]), (tag, &json!([1, width])));
    }
    // Laid end to end: five elements at once.
    assert_eq!(ran(&server), [(0, 1), (1, 5)]);
    server.finish().await;
}

#[tokio::test]
async fn each_request_of_a_batch_gets_the_outputs_it_wants() {
    let tensor = |name| format!("{{ name: \"{name}\" data_type: TYPE_INT32 dims: [ 1 ] }}");
    let text = format!(
        "name: \"a\" backend: \"gated\" max_batch_size: 8 dynamic_batching {{ }} {ONE_INSTANCE}
         input [ {}, {} ] output [ {}, {} ]",
        tensor("x"),
        tensor("u"),
        tensor("y"),
        tensor("v")
    );
    let repository = Repository::empty();
    repository.put("a/config.pbtxt", text);
    repository.add_version("a", 1);
    let server = TestServer::start(repository).await;
    let wants = |tag: i32, outputs: &[&str]| {
        let input = |name, value| json!({"name": name, "datatype": "INT32", "shape": [1, 1], "data": [value]});
        let outputs: Vec<_> = outputs.iter().map(|name| json!({ "name": name })).collect();
        let body = json!({"inputs": [input("x", tag), input("u", -tag)], "outputs": outputs});
        post("/v2/models/a/infer", body.to_string())
    };
    server.gated.close("a", Step::Execute);
    let mut first = server.send(&wants(0, &["y"])).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let mut clients = queue(&server, [wants(1, &["v"]), wants(2, &["y", "v"]), wants(3, &["y"])]).await;
    server.gated.open("a", Step::Execute);
    first.receive().await.expect(200);
    let mut got = Vec::new();
    for client in &mut clients {
        let answer = client.receive().await.expect(200).json();
        let outputs = answer["outputs"].as_array().unwrap().clone();
        got.push(outputs.iter().map(|it| (it["name"].clone(), it["data"][0].clone())).collect::<Vec<_>>());
    }
    let named = |name: &str, value: i32| (json!(name), json!(value));
    assert_eq!(got, [vec![named("v", -1)], vec![named("y", 2), named("v", -2)], vec![named("y", 3)]]);
    assert_eq!(ran(&server), [(0, 1), (1, 3)]);
    server.finish().await;
}

#[tokio::test]
async fn an_unload_answers_who_waits_for_company() {
    let server = batching(8, &format!("max_queue_delay_microseconds: {AN_HOUR}")).await;
    let mut clients = queue(&server, [one(1), one(2)]).await;
    server.ask(&unload("a")).await.expect(200);
    expect_tags(&mut clients, 1..=2).await;
    assert_eq!(ran(&server), [(1, 2)]);
    server.finish().await;
}

#[tokio::test]
async fn a_server_that_drains_answers_who_waits_for_company() {
    let mut server = batching(8, &format!("max_queue_delay_microseconds: {AN_HOUR}")).await;
    let mut clients = queue(&server, [one(1)]).await;
    server.shutdown.cancel();
    expect_tags(&mut clients, [1]).await;
    server.stop().await.unwrap();
}

/// How many turns of `a`, which has `load` requests in its queue, each of a row of requests to `b` waits for.
async fn turns_waited(load_of_a: i32) -> Vec<usize> {
    let repository = Repository::empty().with("a", "gated", ONE_INSTANCE).with("b", "gated", ONE_INSTANCE);
    let server = TestServer::start_with(repository, |config| config.executor_threads = 1).await;
    for name in ["a", "b"] {
        server.ask(&load(name)).await.expect(200);
    }
    server.gated.close("a", Step::Execute);
    let mut busy = VecDeque::from([server.send(&infer("a", 0)).await]);
    server.until("a", |counts| counts.executions_begun == 1).await;
    busy.extend(queue(&server, (1..=load_of_a).map(|tag| infer("a", tag))).await);
    let waiting = usize::try_from(load_of_a).unwrap();
    let mut waited = Vec::new();
    for round in 0..12 {
        server.until_pending("a", waiting).await;
        let begun = server.gated.counts("a").executions_begun;
        let mut rare = server.send(&infer("b", round)).await;
        server.until_pending("b", 1).await;
        loop {
            // One turn of `a` ends, and somebody's turn begins.
            let ended = server.gated.counts("a").executions_ended;
            server.gated.admit("a", Step::Execute, 1);
            server.until("a", |counts| counts.executions_ended > ended).await;
            busy.pop_front().unwrap().receive().await.expect(200);
            busy.push_back(server.send(&infer("a", 0)).await);
            server.until("a", |counts| counts.executions_begun > ended + 1).await;
            server.until_pending("a", waiting).await;
            if server.gated.counts("b").executions_ended > usize::try_from(round).unwrap() {
                break;
            }
        }
        assert_eq!(rare.receive().await.tag(), round);
        let order = server.gated.order();
        let place = order.iter().rposition(|executed| executed.model == "b").unwrap();
        let of_a = order[..place].iter().filter(|executed| executed.model == "a").count();
        waited.push(of_a + 1 - begun);
    }
    server.gated.open("a", Step::Execute);
    all(busy.iter_mut().map(Client::receive)).await;
    server.finish().await;
    waited
}

#[tokio::test]
async fn ten_times_the_load_on_one_model_leaves_the_other_its_turns() {
    let worst = |waited: Vec<usize>| waited.into_iter().max().unwrap();
    let (light, heavy) = (worst(turns_waited(1).await), worst(turns_waited(10).await));
    assert!(light >= 1 && heavy <= 2 * light, "turns waited at worst: {light} under one load, {heavy} under ten");
}

//! Sequences: what a model is told of them, what it carries, who holds a slot and who waits for one.

use std::time::Duration;

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::error::Error;
use serde_json::{Value, json};

use crate::support::client::{Request, Response, get, load, post, unload};
use crate::support::eventually;
use crate::support::repository::{ONE_INSTANCE, Repository};
use crate::support::server::{TestServer, all};

/// Gives back `x`, then what it was told, then the `x` before it in the sequence.
pub(crate) fn config(strategy: &str, more: &str) -> String {
    let tensor = |name, kind| format!("{{ name: \"{name}\" data_type: {kind} dims: [ 1 ] }}");
    let flag = |name: &str| {
        format!("{{ name: \"{name}\" control [ {{ kind: CONTROL_SEQUENCE_{name} int32_false_true: [ 0, 1 ] }} ] }}")
    };
    let outputs: Vec<_> = ["y", "start", "end", "ready"].map(|name| tensor(name, "TYPE_INT32")).into();
    format!(
        "name: \"s\" backend: \"gated\" max_batch_size: 4 input [ {} ] output [ {}, {}, {} ]
         sequence_batching {{ {strategy} control_input [ {}, {}, {}, {{ name: \"CORRID\" control [ {{
         kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }} ] }} ]
         state [ {{ input_name: \"before\" output_name: \"after\" data_type: TYPE_INT32 dims: [ 1 ] }} ] }} {more}",
        tensor("x", "TYPE_INT32"),
        outputs.join(", "),
        tensor("id", "TYPE_UINT64"),
        tensor("previous", "TYPE_INT32"),
        flag("START"),
        flag("END"),
        flag("READY"),
    )
}

async fn server(strategy: &str, more: &str) -> TestServer {
    let repository = Repository::empty();
    repository.put("s/config.pbtxt", config(strategy, more));
    repository.add_version("s", 1);
    TestServer::start(repository).await
}

pub(crate) fn step(id: impl Into<Value>, start: bool, end: bool, x: i32) -> Request {
    let parameters = json!({"sequence_id": id.into(), "sequence_start": start, "sequence_end": end});
    let body = json!({"parameters": parameters,
        "inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 1], "data": [x]}]});
    post("/v2/models/s/infer", body.to_string())
}

/// The outputs in the order of the configuration.
pub(crate) fn told(response: Response) -> Vec<i64> {
    let body = response.expect(200).json();
    body["outputs"].as_array().unwrap().iter().map(|output| output["data"][0].as_i64().unwrap()).collect()
}

const DIRECT: &str = "direct { }";
const OLDEST: &str = "oldest { max_candidate_sequences: 2 }";
/// Sequences that no test waits out.
pub(crate) const LONG: &str = "max_sequence_idle_microseconds: 600000000";

#[tokio::test]
async fn a_model_is_told_where_it_is_and_finds_what_it_left() {
    for strategy in [DIRECT, OLDEST] {
        let server = server(&format!("{strategy} {LONG}"), "").await;
        let mut client = server.client().await;
        assert_eq!(told(client.ask(&step(7, true, false, 10)).await), [10, 1, 0, 1, 7, 0]);
        assert_eq!(told(client.ask(&step(7, false, false, 11)).await), [11, 0, 0, 1, 7, 10]);
        assert_eq!(told(client.ask(&step(8, true, false, 90)).await), [90, 1, 0, 1, 8, 0]);
        assert_eq!(told(client.ask(&step(7, false, true, 12)).await), [12, 0, 1, 1, 7, 11]);
        assert_eq!(told(client.ask(&step(8, true, false, 91)).await), [91, 1, 0, 1, 8, 0], "begun anew");
        assert_eq!(told(client.ask(&step(8, false, true, 92)).await), [92, 0, 1, 1, 8, 91]);
        assert_eq!(told(client.ask(&step(9, true, true, 1)).await), [1, 1, 1, 1, 9, 0]);
        assert_eq!(server.live(), (0, 0), "nothing is left of what ended");
        server.finish().await;
    }
}

#[tokio::test]
async fn what_is_no_place_in_a_sequence_is_refused_in_triton_s_words() {
    let server = server(DIRECT, "").await;
    let not_started = |id: &str| {
        format!(
            "[request id: <id_unknown>] inference request for sequence {id} to model 's' must specify the START flag on \
             the first request of the sequence"
        )
    };
    let no_id =
        "[request id: <id_unknown>] inference request to model 's' must specify a non-zero or non-empty correlation ID";
    for (request, expected) in [
        (step(42, false, false, 1), not_started("42")),
        (step(42, false, true, 1), not_started("42")),
        (step(0, true, false, 1), no_id.to_owned()),
        (step("", true, false, 1), no_id.to_owned()),
    ] {
        assert_eq!(server.ask(&request).await.expect(400).error(), expected);
    }
    let text = server.ask(&step("abc", true, true, 1)).await.expect(400).error();
    assert!(text.contains("sequence_id is a string, but the model takes correlation IDs of TYPE_UINT64"), "{text}");
    let long = server.ask(&step("a".repeat(129), true, true, 1)).await.expect(400).error();
    assert!(long.contains("correlation ID of 129 bytes, at most 128"), "{long}");
    let batch = json!({"parameters": {"sequence_id": 1, "sequence_start": true},
        "inputs": [{"name": "x", "datatype": "INT32", "shape": [2, 1], "data": [1, 2]}]});
    let text = server.ask(&post("/v2/models/s/infer", batch.to_string())).await.expect(400).error();
    assert!(text.ends_with("must specify batch-size 1 due to requirements of sequence batcher"), "{text}");
    let mut control = batch;
    control["inputs"] = json!([{"name": "x", "datatype": "INT32", "shape": [1, 1], "data": [1]},
        {"name": "READY", "datatype": "INT32", "shape": [1, 1], "data": [1]}]);
    let text = server.ask(&post("/v2/models/s/infer", control.to_string())).await.expect(400).error();
    assert!(text.contains("unexpected inference input 'READY'"), "{text}");
    server.finish().await;
}

#[tokio::test]
async fn callers_see_their_own_tensors_and_the_server_says_that_it_has_sequences() {
    let server = server(DIRECT, "").await;
    server.ask(&load("s")).await.expect(200);
    let metadata = server.ask(&get("/v2/models/s")).await.expect(200).json();
    let names = |of: &str| -> Vec<String> {
        let tensors = metadata[of].as_array().unwrap();
        tensors.iter().map(|tensor| tensor["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("inputs"), ["x"]);
    assert_eq!(names("outputs"), ["y", "start", "end", "ready", "id", "previous"]);
    let config = server.ask(&get("/v2/models/s/config")).await.expect(200).json();
    assert_eq!(config["sequence_batching"]["max_sequence_idle_microseconds"].to_string().trim_matches('"'), "1000000");
    let extensions = server.ask(&get("/v2")).await.json()["extensions"].clone();
    assert!(extensions.as_array().unwrap().contains(&json!("sequence")));
    server.finish().await;
}

#[tokio::test]
async fn a_sequence_beyond_the_slots_waits_until_one_ends() {
    let server = server(&format!("{OLDEST} {LONG}"), ONE_INSTANCE).await;
    let mut client = server.client().await;
    for id in [1, 2] {
        told(client.ask(&step(id, true, false, 0)).await);
    }
    let mut third = server.send(&step(3, true, false, 30)).await;
    server.until_pending("s", 1).await;
    assert_eq!(server.live(), (2, 1));
    told(client.ask(&step(2, false, false, 5)).await);
    assert_eq!(server.live(), (2, 1), "whoever has a slot keeps it");
    told(client.ask(&step(2, false, true, 6)).await);
    assert_eq!(told(third.receive().await), [30, 1, 0, 1, 3, 0], "with nothing of the one before");
    assert_eq!(server.live(), (2, 0));
    server.finish().await;
}

#[tokio::test]
async fn rows_of_one_batch_have_each_their_own_sequence() {
    for strategy in [DIRECT, "oldest { max_candidate_sequences: 4 }"] {
        let server = server(&format!("{strategy} {LONG}"), ONE_INSTANCE).await;
        let mut client = server.client().await;
        for id in 1..=3 {
            told(client.ask(&step(id, true, false, id * 10)).await);
        }
        server.gated.close("s", Step::Execute);
        let before = server.gated.counts("s").executions_begun;
        let mut busy = server.send(&step(1, false, false, 11)).await;
        server.until("s", |counts| counts.executions_begun == before + 1).await;
        let mut waiting = Vec::new();
        // Two of sequence 3, of which one runs at a time.
        for (count, (id, x)) in [(3, 31), (2, 21), (3, 32)].into_iter().enumerate() {
            waiting.push((id, x, server.send(&step(id, false, false, x)).await));
            server.until_pending("s", count + 1).await;
        }
        server.gated.open("s", Step::Execute);
        assert_eq!(told(busy.receive().await), [11, 0, 0, 1, 1, 10]);
        for (id, x, client) in &mut waiting {
            let before = if *x == 32 { 31 } else { *id * 10 };
            assert_eq!(told(client.receive().await), [i64::from(*x), 0, 0, 1, *id, before]);
        }
        assert_eq!(server.gated.counts("s").executions_begun, before + 3, "{strategy}: 1, then 2 and 3, then 3");
        let stats = server.ask(&get("/v2/models/s/stats")).await.json();
        assert_eq!(stats["model_stats"][0]["inference_count"], 7, "empty rows are no inferences");
        server.finish().await;
    }
}

#[tokio::test]
async fn a_silent_sequence_loses_its_slot_to_one_that_waits() {
    let server =
        server("direct { } max_sequence_idle_microseconds: 30000", "instance_group [ { count: 1 kind: KIND_CPU } ]")
            .await;
    let ids = 1..=4;
    all(ids.clone().map(|id| {
        let server = &server;
        async move { told(server.ask(&step(id, true, false, 1)).await) }
    }))
    .await;
    // All four rows may be taken; nobody says another word, and the fifth has one of them all the same.
    assert_eq!(told(server.ask(&step(5, true, false, 9)).await), [9, 1, 0, 1, 5, 0]);
    eventually("all are forgotten", || server.live() == (0, 0)).await;
    for id in ids {
        server.ask(&step(id, false, false, 1)).await.expect(400);
    }
    server.finish().await;
}

#[tokio::test]
async fn a_request_given_up_ends_its_sequence_and_no_other() {
    let server = server(&format!("{DIRECT} {LONG}"), ONE_INSTANCE).await;
    let mut client = server.client().await;
    for id in [1, 2] {
        told(client.ask(&step(id, true, false, 0)).await);
    }
    server.gated.close("s", Step::Execute);
    let before = server.gated.counts("s").executions_begun;
    let mut busy = server.send(&step(2, false, false, 1)).await;
    server.until("s", |counts| counts.executions_begun == before + 1).await;
    let late = server.ask(&step(1, false, false, 2).header("x-request-timeout-ms", 2)).await;
    late.expect(504);
    let mut follower = server.send(&step(1, false, false, 3)).await;
    server.until_pending("s", 2).await;
    server.gated.open("s", Step::Execute);
    told(busy.receive().await);
    let refused = follower.receive().await.expect(503);
    assert!(refused.error().contains("was cancelled or ran out of time"), "{}", refused.error());
    server.ask(&step(1, false, true, 4)).await.expect(400);
    assert_eq!(told(client.ask(&step(2, false, true, 5)).await), [5, 0, 1, 1, 2, 1]);
    assert_eq!(server.live(), (0, 0));
    server.finish().await;
}

#[tokio::test]
async fn an_error_or_a_panic_leaves_the_sequence_where_it_was() {
    let server = server(&format!("{DIRECT} {LONG}"), ONE_INSTANCE).await;
    let mut client = server.client().await;
    told(client.ask(&step(1, true, false, 10)).await);
    for fault in [Fault::Error(Error::internal("torn")), Fault::Panic("torn")] {
        server.gated.fail_next("s", Step::Execute, fault);
        client.ask(&step(1, false, false, 11)).await.expect(500);
    }
    assert_eq!(told(client.ask(&step(1, false, true, 12)).await), [12, 0, 1, 1, 1, 10]);
    server.finish().await;
}

#[tokio::test]
async fn many_sequences_at_once_are_each_in_order() {
    for strategy in [DIRECT, OLDEST] {
        let server = server(&format!("{strategy} {LONG}"), "instance_group [ { count: 2 kind: KIND_CPU } ]").await;
        let sequences = (1..=24).map(|id| {
            let server = &server;
            async move {
                let mut client = server.client().await;
                for at in 0..20_i32 {
                    let found = told(client.ask(&step(id, at == 0, at == 19, id as i32 * 100 + at)).await);
                    let before = if at == 0 { 0 } else { id * 100 + i64::from(at) - 1 };
                    let here = id * 100 + i64::from(at);
                    assert_eq!(found, [here, i64::from(at == 0), i64::from(at == 19), 1, id, before]);
                }
            }
        });
        all(sequences).await;
        assert_eq!(server.live(), (0, 0));
        server.finish().await;
    }
}

#[tokio::test]
async fn an_unload_ends_every_sequence_and_what_waited_is_told() {
    let server = server(&format!("{DIRECT} {LONG}"), ONE_INSTANCE).await;
    let mut client = server.client().await;
    for id in 1..=4 {
        told(client.ask(&step(id, true, false, 0)).await);
    }
    assert_eq!(server.live(), (4, 0));
    server.ask(&unload("s")).await.expect(200);
    assert_eq!((server.live(), server.gated.alive()), ((0, 0), 0));
    server.ask(&load("s")).await.expect(200);
    client.ask(&step(1, false, false, 1)).await.expect(400);
    assert_eq!(told(client.ask(&step(1, true, false, 5)).await), [5, 1, 0, 1, 1, 0]);
    server.finish().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_the_sequence_goes_on() {
    let repository = Repository::empty();
    repository.put("s/config.pbtxt", config(&format!("{DIRECT} {LONG}"), ONE_INSTANCE));
    repository.add_version("s", 1);
    let server = TestServer::start_with(repository, |config| config.queue_capacity = 1).await;
    let mut client = server.client().await;
    told(client.ask(&step(1, true, false, 0)).await);
    server.gated.close("s", Step::Execute);
    let mut busy = server.send(&step(1, false, false, 1)).await;
    server.until("s", |counts| counts.executions_begun == 2).await;
    let mut waits = server.send(&step(1, false, false, 2)).await;
    server.until_pending("s", 1).await;
    let refused = server.ask(&step(2, true, false, 3)).await.expect(429);
    assert_eq!(refused.error(), "the model's queue is full (1 waiting): retry later");
    server.gated.open("s", Step::Execute);
    told(busy.receive().await);
    assert_eq!(told(waits.receive().await), [2, 0, 0, 1, 1, 1]);
    assert_eq!(server.live(), (1, 0));
    server.finish().await;
}

#[tokio::test]
async fn a_sequence_begins_with_the_file_of_its_initial_state() {
    let repository = Repository::empty();
    let text = config(&format!("{DIRECT} {LONG}"), "");
    let with = |file: &str| {
        let initial = format!(
            "dims: [ 1 ] initial_state {{ name: \"i\" data_type: TYPE_INT32 dims: [ 1 ] data_file: \"{file}\" }} }} ] }}"
        );
        text.replace("dims: [ 1 ] } ] }", &initial)
    };
    repository.put("s/config.pbtxt", with("five"));
    repository.put("s/initial_state/five", 5_i32.to_le_bytes());
    repository.put("s/initial_state/long", [0; 8]);
    repository.add_version("s", 1);
    let server = TestServer::start(repository).await;
    assert_eq!(told(server.ask(&step(1, true, true, 1)).await), [1, 1, 1, 1, 1, 5]);
    server.ask(&unload("s")).await.expect(200);
    for (file, expected) in [("long", "needs 4 bytes, got 8"), ("none", "cannot read initial_state/none")] {
        server.repository.put("s/config.pbtxt", with(file));
        let failed = server.ask(&load("s")).await.expect(400).error();
        assert!(failed.contains("state 'before'") && failed.contains(expected), "{failed}");
    }
    server.finish().await;
}

#[tokio::test]
async fn ready_slots_wait_for_others_no_longer_than_they_may() {
    let delay = "direct { minimum_slot_utilization: 1.0 max_queue_delay_microseconds: 20000 }";
    let server = server(&format!("{delay} {LONG}"), ONE_INSTANCE).await;
    server.ask(&load("s")).await.expect(200);
    let began = std::time::Instant::now();
    told(server.ask(&step(1, true, false, 1)).await);
    assert!(began.elapsed() >= Duration::from_millis(20));
    server.finish().await;
}

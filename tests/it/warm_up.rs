//! Warm-up: what an instance runs before its model is ready, and what becomes of a load whose warm-up fails.

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::error::{Error, ErrorKind};
use serde_json::json;

use crate::support::binary::Binary;
use crate::support::client::{get, infer, load, post};
use crate::support::eventually;
use crate::support::repository::Repository;
use crate::support::server::TestServer;

/// Two instances, and a sample that each runs `count` times.
fn warmed(count: u32, data: &str) -> String {
    format!(
        "instance_group [ {{ count: 2 kind: KIND_CPU }} ]
         model_warmup {{ name: \"first\" batch_size: 1 count: {count}
             inputs {{ key: \"x\" value {{ data_type: TYPE_INT32 dims: [ 2 ] {data} }} }} }}"
    )
}

fn repository(count: u32, data: &str) -> Repository {
    Repository::empty().with("a", "gated", &warmed(count, data))
}

#[tokio::test]
async fn each_instance_runs_its_samples_before_the_model_is_ready_and_nothing_counts_them() {
    let server = TestServer::start(repository(3, "input_data_file: \"seven\"")).await;
    server.repository.put("a/warmup/seven", [7, 0, 0, 0, 8, 0, 0, 0]);
    server.gated.close("a", Step::Execute);
    let mut first = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    assert_eq!(server.state("a").await, "LOADING", "a model that warms up is not ready");
    server.ask(&get("/v2/models/a/ready")).await.expect(400);
    server.gated.open("a", Step::Execute);
    assert_eq!(first.receive().await.tag(), 1);
    let tags: Vec<_> = server.gated.order().iter().map(|executed| executed.tag).collect();
    assert_eq!(tags, [7, 7, 7, 7, 7, 7, 1]);
    let rows = server.ask(&get("/v2/models/a/stats")).await.json();
    let row = &rows["model_stats"][0];
    assert_eq!((&row["inference_count"], &row["execution_count"]), (&json!(1), &json!(1)));
    assert_eq!(row["inference_stats"]["success"]["count"], 1);
    let phases = server.row("a").last_load.unwrap().phases;
    assert!(!phases.warm_up.is_zero() && phases.total() >= phases.warm_up);
    assert_eq!(server.metric("roundhouse_load_phase_seconds_count{phase=\"warm_up\"}"), Some(1.0));
    server.finish().await;
}

#[tokio::test]
async fn an_instance_that_takes_the_place_of_a_panicked_one_is_not_held_up_by_samples() {
    let server = TestServer::start(repository(1, "random_data: true")).await;
    server.ask(&infer("a", 1)).await.expect(200);
    server.gated.fail_next("a", Step::Execute, Fault::Panic("torn"));
    server.ask(&infer("a", 2)).await.expect(500);
    server.until("a", |counts| counts.live_instances == 2).await;
    assert_eq!(server.gated.counts("a").executions_ended, 4);
    server.finish().await;
}

#[tokio::test]
async fn a_warm_up_that_fails_fails_the_load_and_names_its_sample() {
    let server = TestServer::start(repository(1, "zero_data: true")).await;
    let torn = Error::new(ErrorKind::BackendFailed, "torn");
    server.gated.fail_next("a", Step::Execute, Fault::Error(torn));
    let refused = server.ask(&load("a")).await.expect(500);
    assert!(refused.error().contains("model_warmup sample 'first' failed: torn"), "{}", refused.error());
    assert_eq!((server.loads("failed"), server.gated.alive()), (1, 0));
    server.ask(&load("a")).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn a_sample_without_its_file_or_with_another_size_is_named_with_its_input() {
    let server = TestServer::start(repository(1, "input_data_file: \"some\"")).await;
    let missing = server.ask(&load("a")).await.expect(400).error();
    let expected =
        "model_warmup sample 'first' input 'x' cannot be made: cannot read warmup/some in the model's folder";
    assert!(missing.contains(expected), "{missing}");
    server.repository.put("a/warmup/some", [0; 7]);
    server.repository.touch("a");
    let wrong = server.ask(&load("a")).await.expect(400).error();
    assert!(wrong.contains("shape [2] of INT32 needs 8 bytes, got 7"), "{wrong}");
    assert_eq!(server.gated.counts("a").executions_begun, 0);
    server.finish().await;
}

#[tokio::test]
async fn a_warm_up_that_nobody_waits_for_ends_between_two_runs() {
    let server = TestServer::start(repository(1000, "zero_data: true")).await;
    server.gated.close("a", Step::Execute);
    let mut hurried = server.send(&infer("a", 1).header("x-request-timeout-ms", 100)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    hurried.receive().await.expect(504);
    server.gated.open("a", Step::Execute);
    eventually("the load is abandoned", || server.loads("cancelled") == 1).await;
    assert_eq!((server.gated.counts("a").executions_ended, server.gated.alive()), (1, 0));
    assert_eq!(server.ask(&infer("a", 5)).await.tag(), 5);
    server.finish().await;
}

#[tokio::test]
async fn a_model_of_onnx_runtime_warms_up_from_a_file() {
    let repository = Repository::empty();
    let config = |file: &str| {
        format!(
            "backend: \"onnxruntime\" model_warmup {{ name: \"w\" batch_size: 1 inputs {{ key: \"x\"
             value {{ data_type: TYPE_FP32 dims: [ 2 ] input_data_file: \"{file}\" }} }} }}"
        )
    };
    let model = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/passthrough.onnx")).unwrap();
    for (name, file) in [("good", "two"), ("short", "one")] {
        repository.put(&format!("{name}/config.pbtxt"), config(file));
        repository.put(&format!("{name}/1/model.onnx"), &model);
        repository.put(&format!("{name}/warmup/two"), [0; 8]);
        repository.put(&format!("{name}/warmup/one"), [0; 4]);
    }
    let binary = Binary::start(repository.path(), &[]);
    let body = "{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[2],\"data\":[1.5,-2]}]}";
    binary.ask(&post("/v2/models/good/infer", body)).await.expect(200);
    let rows = binary.ask(&get("/v2/models/good/stats")).await.json();
    assert_eq!(rows["model_stats"][0]["execution_count"], 1);
    let row = binary.ask(&get("/v1/models/good/residency")).await.json();
    assert!(row["last_load"]["warm_up_seconds"].as_f64().unwrap() > 0.0, "{row}");
    let refused = binary.ask(&load("short")).await.expect(400).error();
    assert!(refused.contains("model_warmup sample 'w' input 'x' cannot be made"), "{refused}");
}

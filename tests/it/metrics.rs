//! What is counted: the statistics extension and the metrics page after requests that are known.

use std::time::{Duration, Instant};

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::config::amount::{Amount, Limited, MemoryLimit};
use roundhouse::error::{Error, ErrorKind};
use serde_json::json;

use crate::support::client::{Client, get, infer, infer_body, load, post, unload};
use crate::support::eventually;
use crate::support::repository::{ONE_INSTANCE, Repository};
use crate::support::server::TestServer;

fn series(family: &str, more: &str) -> String {
    format!("{family}{{model=\"a\",version=\"1\"{more}}}")
}

fn failures(server: &TestServer) -> [Option<f64>; 4] {
    let of = |reason| server.metric(&series("nv_inference_request_failure", &format!(",reason=\"{reason}\"")));
    ["REJECTED", "CANCELED", "BACKEND", "OTHER"].map(of)
}

#[tokio::test]
async fn every_request_is_counted_once_by_how_it_ended() {
    let repository = Repository::empty().with("a", "gated", &format!("max_batch_size: 8 {ONE_INSTANCE}"));
    let server = TestServer::start_with(repository, |config| config.queue_capacity = 1).await;
    let batch = |rows: usize| {
        let body = json!({"inputs": [{"name": "x", "datatype": "INT32", "shape": [rows, 1], "data": vec![7; rows]}]});
        post("/v2/models/a/infer", body.to_string())
    };
    for rows in [1, 3, 3, 8] {
        server.ask(&batch(rows)).await.expect(200);
    }
    server.gated.fail_next("a", Step::Execute, Fault::Error(Error::new(ErrorKind::BackendFailed, "torn")));
    server.ask(&batch(1)).await.expect(500);
    server.gated.fail_next("a", Step::Execute, Fault::Panic("torn"));
    server.ask(&batch(1)).await.expect(500);
    for _ in 0..3 {
        server.ask(&batch(9)).await.expect(400);
    }
    server.gated.close("a", Step::Execute);
    let mut running = server.send(&batch(1)).await;
    server.until("a", |counts| counts.executions_begun == 7).await;
    let leaver = server.send(&batch(1)).await;
    server.until_pending("a", 1).await;
    server.ask(&batch(1)).await.expect(429);
    drop(leaver);
    eventually("the leaver is counted", || failures(&server)[1] == Some(1.0)).await;
    let late = batch(1).header("x-request-timeout-ms", 5);
    server.ask(&late).await.expect(504);
    server.gated.open("a", Step::Execute);
    running.receive().await.expect(200);

    assert_eq!(failures(&server), [Some(2.0), Some(1.0), Some(2.0), Some(3.0)]);
    let expected =
        [("nv_inference_request_success", 5.0), ("nv_inference_count", 16.0), ("nv_inference_exec_count", 5.0)];
    let pending = series("nv_inference_pending_request_count", "");
    eventually("what was given up is out of the queue", || server.metric(&pending) == Some(0.0)).await;
    for (family, value) in expected {
        assert_eq!(server.metric(&series(family, "")), Some(value), "{family}");
    }
    let rows = server.ask(&get("/v2/models/a/stats")).await.json();
    let row = &rows["model_stats"][0];
    assert_eq!((&row["inference_count"], &row["execution_count"]), (&json!(16), &json!(5)));
    for (name, count) in [("success", 5), ("fail", 8), ("queue", 5), ("compute_infer", 5)] {
        assert_eq!(row["inference_stats"][name]["count"], count, "{name}");
    }
    let batches: Vec<_> = row["batch_stats"].as_array().unwrap().iter().collect();
    let sizes: Vec<_> = batches.iter().map(|row| (&row["batch_size"], &row["compute_infer"]["count"])).collect();
    assert_eq!(sizes, [(&json!(1), &json!(2)), (&json!(3), &json!(2)), (&json!(8), &json!(1))]);
    assert!(row["last_inference"].as_u64().unwrap() > 1_700_000_000_000, "milliseconds since 1970");
    server.finish().await;
}

#[tokio::test]
async fn the_series_of_a_model_end_with_it_and_begin_anew() {
    let server = TestServer::start(Repository::gated(&["a", "b"])).await;
    for name in ["a", "a", "b"] {
        server.ask(&infer(name, 1)).await.expect(200);
    }
    let mut metrics = Client::connect(server.addresses.metrics).await;
    let page = metrics.ask(&get("/metrics")).await.expect(200);
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert!(page.text().contains("nv_inference_request_success{model=\"a\",version=\"1\"} 2\n"));
    server.ask(&unload("a")).await.expect(200);
    let page = metrics.ask(&get("/metrics")).await.expect(200);
    assert!(!page.text().contains("model=\"a\""));
    assert!(page.text().contains("nv_inference_request_success{model=\"b\",version=\"1\"} 1\n"));
    server.ask(&infer("a", 1)).await.expect(200);
    assert_eq!(server.metric(&series("nv_inference_request_success", "")), Some(1.0));
    metrics.ask(&get("/")).await.expect(404);
    server.finish().await;
}

#[tokio::test]
async fn loads_and_unloads_are_counted_by_how_they_ended() {
    let repository = Repository::gated(&["a", "b"]).with("c", "gated", "version_policy { all { } }");
    repository.add_version("c", 2);
    let server = TestServer::start(repository).await;
    server.ask(&infer("a", 1)).await.expect(200);
    server.repository.touch("a");
    server.ask(&load("a")).await.expect(200);
    server.gated.fail_next("b", Step::Load, Fault::Error(Error::internal("torn")));
    server.ask(&infer("b", 1)).await.expect(500);
    server.ask(&infer("nowhere", 1)).await.expect(404);
    server.gated.close("c", Step::Load);
    // Given up between its two versions.
    let mut hurried = server.send(&infer("c", 1).header("x-request-timeout-ms", 200)).await;
    server.until("c", |counts| counts.loads_begun == 1).await;
    hurried.receive().await.expect(504);
    server.gated.open("c", Step::Load);
    eventually("the load is abandoned", || server.loads("cancelled") == 1).await;
    assert_eq!((server.loads("ok"), server.loads("failed")), (2, 1));
    assert_eq!(server.metric("roundhouse_models_resident"), Some(1.0));
    assert_eq!(server.metric("roundhouse_model_load_seconds_count"), Some(2.0));
    assert_eq!(server.metric("roundhouse_load_wait_seconds_count"), Some(1.0), "an explicit load is no request");
    server.ask(&unload("a")).await.expect(200);
    server.ask(&unload("a")).await.expect(200);
    assert_eq!(server.metric("roundhouse_model_unloads_total"), Some(1.0));
    server.finish().await;
}

#[tokio::test]
async fn requests_that_wait_are_on_the_page() {
    let repository = Repository::empty().with("a", "gated", ONE_INSTANCE);
    let server = TestServer::start(repository).await;
    server.gated.close("a", Step::Execute);
    let mut clients = Vec::new();
    for tag in 0..4 {
        clients.push(server.send(&infer("a", tag)).await);
    }
    let pending = series("nv_inference_pending_request_count", "");
    eventually("three wait", || server.metric(&pending) == Some(3.0)).await;
    server.gated.open("a", Step::Execute);
    for client in &mut clients {
        client.receive().await.expect(200);
    }
    assert_eq!(server.metric(&pending), Some(0.0));
    server.finish().await;
}

#[tokio::test]
async fn counts_are_exact_under_load() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let clients = (0..8).map(|client| {
        let server = &server;
        async move {
            let mut connection = server.client().await;
            for step in 0..250 {
                if step % 10 == 9 {
                    let mut wrong = infer_body(1);
                    wrong["inputs"][0]["datatype"] = json!("FP32");
                    connection.ask(&post("/v2/models/a/infer", wrong.to_string())).await.expect(400);
                } else {
                    assert_eq!(connection.ask(&infer("a", client)).await.tag(), client);
                }
            }
        }
    });
    crate::support::server::all(clients).await;
    assert_eq!(server.metric(&series("nv_inference_request_success", "")), Some(1800.0));
    assert_eq!(server.metric(&series("nv_inference_exec_count", "")), Some(1800.0));
    assert_eq!(failures(&server), [Some(0.0), Some(0.0), Some(0.0), Some(200.0)]);
    assert_eq!(server.gated.counts("a").executions_ended, 1800);
    server.finish().await;
}

#[tokio::test]
async fn all_but_the_busiest_models_share_a_series_unless_they_are_asked_for() {
    let repository = Repository::gated(&["a", "b", "team/c d"]);
    let server = TestServer::start_with(repository, |config| config.metrics.models = 1).await;
    for name in ["a", "a", "a", "b", "team%2Fc%20d"] {
        server.ask(&infer(name, 1)).await.expect(200);
    }
    let mut metrics = Client::connect(server.addresses.metrics).await;
    let page = metrics.ask(&get("/metrics")).await.expect(200).text().to_owned();
    assert!(page.contains("nv_inference_request_success{model=\"a\",version=\"1\"} 3\n"), "{page}");
    assert!(page.contains("nv_inference_request_success{model=\"*\",version=\"\"} 2\n"), "{page}");
    assert!(!page.contains("model=\"b\""), "{page}");
    let page = metrics.ask(&get("/metrics?models=all")).await.expect(200).text().to_owned();
    assert!(page.contains("nv_inference_request_success{model=\"b\",version=\"1\"} 1\n"), "{page}");
    assert!(!page.contains("model=\"*\""), "{page}");
    let page = metrics.ask(&get("/metrics?model=team%2Fc+d")).await.expect(200).text().to_owned();
    assert!(page.contains("{model=\"team/c d\",version=\"1\"} 1\n") && !page.contains("model=\"a\""), "{page}");
    let refused = metrics.ask(&get("/metrics?models=few")).await.expect(400);
    assert!(refused.error().contains("models=all"), "{}", refused.error());
    server.finish().await;
}

/// The pressure of a minute that ends some minutes from now, with everything as it is.
fn pressure_in(server: &TestServer, minutes: u64) -> f64 {
    server.inner.take_reading(Instant::now() + Duration::from_secs(60 * minutes));
    server.metric("roundhouse_scale_pressure").unwrap()
}

#[tokio::test]
async fn requests_that_wait_for_a_load_or_a_turn_press_and_full_memory_does_not() {
    let repository = Repository::empty().sized(&[("a", 100), ("b", 100)]).with("slow", "gated", ONE_INSTANCE).with(
        "cold",
        "gated",
        ONE_INSTANCE,
    );
    let full = MemoryLimit { device: Limited::Cpu, amount: Amount::Bytes(457 << 10) };
    let server = TestServer::start_with(repository, |config| config.cache.memory_limits = vec![full]).await;
    for name in ["a", "b", "slow"] {
        server.ask(&infer(name, 1)).await.expect(200);
    }
    // The first ends what was waited for so far.
    let _loads = pressure_in(&server, 1);
    assert_eq!(pressure_in(&server, 2), 0.0, "memory is full, and nobody waits");

    server.gated.close("slow", Step::Execute);
    let mut running = server.send(&infer("slow", 1)).await;
    server.until("slow", |counts| counts.executions_begun == 2).await;
    assert_eq!(server.metric("roundhouse_requests_waiting{for=\"turn\"}"), Some(0.0), "it runs");
    let mut waiting = server.send(&infer("slow", 1)).await;
    let turn = "roundhouse_requests_waiting{for=\"turn\"}";
    eventually("one waits for its turn", || server.metric(turn) == Some(1.0)).await;
    eventually("that presses", || pressure_in(&server, 3) > 0.0).await;
    server.gated.open("slow", Step::Execute);
    running.receive().await.expect(200);
    waiting.receive().await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn who_waits_for_a_load_is_seen_while_it_waits() {
    let server = TestServer::start(Repository::gated(&["cold"])).await;
    server.gated.close("cold", Step::Load);
    let mut first = server.send(&infer("cold", 1)).await;
    let mut second = server.send(&infer("cold", 1)).await;
    let load = "roundhouse_requests_waiting{for=\"load\"}";
    eventually("both wait", || server.metric(load) == Some(2.0)).await;
    eventually("that presses", || pressure_in(&server, 1) > 0.4).await;
    assert!(server.metric("roundhouse_load_waited_seconds_total").unwrap() > 0.0);
    server.gated.open("cold", Step::Load);
    first.receive().await.expect(200);
    second.receive().await.expect(200);
    assert_eq!(server.metric(load), Some(0.0));
    server.finish().await;
}

//! Models made of other models: how their steps run, what is held meanwhile, how they come and go, and what is refused.

mod archives;
mod lifecycle;
mod streams;

use std::time::Duration;

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::config::amount::{Amount, Limited, MemoryLimit};
use roundhouse::config::{EvictionRule, ServerConfig};
use roundhouse::error::{Error, ErrorKind};
use serde_json::{Value, json};

use crate::support::client::{Request, get, infer, load, post};
use crate::support::eventually;
use crate::support::repository::Repository;
use crate::support::server::{TestServer, all};

/// A step `model` that takes the tensor `takes` and makes `makes`.
fn step(model: &str, takes: &str, makes: &str) -> String {
    format!(
        "step {{ model_name: \"{model}\" model_version: -1 input_map {{ key: \"x\" value: \"{takes}\" }} \
         output_map {{ key: \"y\" value: \"{makes}\" }} }}\n"
    )
}

/// A tensor of any number of INT32.
fn tensor(role: &str, name: &str) -> String {
    format!("{role} {{ name: \"{name}\" data_type: TYPE_INT32 dims: [ -1 ] }}\n")
}

/// An ensemble from `x` to these outputs.
fn ensemble(outputs: &[&str], more: &str, steps: &[String]) -> String {
    let outputs: String = outputs.iter().map(|name| tensor("output", name)).collect();
    let steps = steps.concat();
    format!("platform: \"ensemble\"\n{}{outputs}ensemble_scheduling {{ {more}\n{steps} }}\n", tensor("input", "x"))
}

/// The models of a chain, one after the other.
fn chain(models: &[&str]) -> String {
    let tensors: Vec<String> = (1..models.len()).map(|index| format!("t{index}")).collect();
    let takes = ["x"].into_iter().chain(tensors.iter().map(String::as_str));
    let makes = tensors.iter().map(String::as_str).chain(["y"]);
    let steps: Vec<_> =
        models.iter().zip(takes.zip(makes)).map(|(model, (takes, makes))| step(model, takes, makes)).collect();
    ensemble(&["y"], "", &steps)
}

trait WithEnsembles {
    /// The folder with one ensemble more, of version 1.
    fn and(self, name: &str, config: &str) -> Self;
}

impl WithEnsembles for Repository {
    fn and(self, name: &str, config: &str) -> Self {
        self.put(&format!("{name}/config.pbtxt"), config);
        self.add_version(name, 1);
        self
    }
}

/// Memory for models of so many KiB, and no protection of the young.
fn memory(config: &mut ServerConfig, kib: u64) {
    config.cache.memory_limits = vec![MemoryLimit { device: Limited::Cpu, amount: Amount::Bytes(kib << 10) }];
    config.cache.rule = EvictionRule::Lru;
    config.cache.min_residency = Duration::ZERO;
    config.cache.room_wait = Duration::from_secs(60);
}

/// A request for these outputs.
fn wanting(model: &str, tag: i32, outputs: &[&str]) -> Request {
    let outputs: Vec<_> = outputs.iter().map(|name| json!({"name": name})).collect();
    let input = json!({"name": "x", "datatype": "INT32", "shape": [1], "data": [tag]});
    post(&format!("/v2/models/{model}/infer"), json!({"inputs": [input], "outputs": outputs}).to_string())
}

fn count(server: &TestServer, what: &str, model: &str) -> Option<f64> {
    server.metric(&format!("nv_inference_{what}{{model=\"{model}\",version=\"1\"}}"))
}

#[tokio::test]
async fn an_ensemble_answers_with_its_steps_which_a_request_loads_with_it() {
    let repository = Repository::gated(&["a", "b"]).and("e", &chain(&["a", "b"]));
    let server = TestServer::start(repository).await;
    let answer = server.ask(&infer("e", 7)).await.expect(200);
    assert_eq!((answer.tag(), answer.json()["model_name"].as_str()), (7, Some("e")));
    assert_eq!(answer.json()["outputs"][0]["name"], "y");
    assert_eq!(server.in_memory(), ["a", "b", "e"]);
    for model in ["a", "b", "e"] {
        assert_eq!((count(&server, "request_success", model), count(&server, "count", model)), (Some(1.0), Some(1.0)));
    }
    let metadata = server.ask(&get("/v2/models/e")).await.json();
    assert_eq!((metadata["platform"].as_str(), &metadata["versions"]), (Some("ensemble"), &json!(["1"])));
    assert_eq!(metadata["inputs"], json!([{"name": "x", "datatype": "INT32", "shape": [-1]}]));
    let config = server.ask(&get("/v2/models/e/config")).await.json();
    assert_eq!((config["platform"].as_str(), config["backend"].as_str()), (Some("ensemble"), Some("")));
    assert_eq!(config["ensemble_scheduling"]["step"][1]["model_name"], "b");
    assert_eq!(config["ensemble_scheduling"]["step"][1]["input_map"], json!({"x": "t1"}));
    assert_eq!(
        (&config["instance_group"], &config["version_policy"]),
        (&json!([]), &json!({"latest": {"num_versions": 1}}))
    );
    let stats = server.ask(&get("/v2/models/e/stats")).await.json();
    assert_eq!(stats["model_stats"][0]["inference_stats"]["success"]["count"], 1);
    // It holds next to nothing, and nothing of the device's.
    assert_eq!(server.books()[0].models, 2);
    server.finish().await;
}

#[tokio::test]
async fn steps_that_do_not_need_each_other_run_at_the_same_time() {
    let both = [step("a", "x", "p"), step("b", "x", "q"), step("c", "p", "y")];
    let repository = Repository::gated(&["a", "b", "c"]).and("e", &ensemble(&["y", "q"], "", &both));
    let server = TestServer::start(repository).await;
    server.ask(&load("e")).await.expect(200);
    server.gated.close("a", Step::Execute);
    server.gated.close("b", Step::Execute);
    let mut client = server.send(&infer("e", 5)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    server.until("b", |counts| counts.executions_begun == 1).await;
    server.gated.open("a", Step::Execute);
    // What waits for `a` alone does not wait for `b`.
    server.until("c", |counts| counts.executions_ended == 1).await;
    server.gated.open("b", Step::Execute);
    let answer = client.receive().await.expect(200).json();
    let names: Vec<_> = answer["outputs"].as_array().unwrap().iter().map(|output| output["name"].clone()).collect();
    assert_eq!(names, ["y", "q"]);
    let one = server.ask(&wanting("e", 6, &["q"])).await.expect(200).json();
    assert_eq!(one["outputs"], json!([{"name": "q", "datatype": "INT32", "shape": [1], "data": [6]}]));
    server.finish().await;
}

#[tokio::test]
async fn ensembles_stand_in_each_other() {
    let repository =
        Repository::gated(&["a", "b"]).and("inner", &chain(&["a", "b"])).and("outer", &chain(&["inner", "a"]));
    let server = TestServer::start(repository).await;
    assert_eq!(server.ask(&infer("outer", 3)).await.tag(), 3);
    assert_eq!(server.in_memory(), ["a", "b", "inner", "outer"]);
    assert_eq!(count(&server, "request_success", "a"), Some(2.0));
    server.finish().await;
}

#[tokio::test]
async fn requests_do_not_wait_for_each_others_memory_where_it_holds_one_step_at_a_time() {
    let models = [("a", 100), ("b", 100), ("c", 100)];
    let repository =
        Repository::empty().sized(&models).and("e", &chain(&["a", "b", "c"])).and("f", &chain(&["c", "b", "a"]));
    let server = TestServer::start_with(repository, |config| memory(config, 100)).await;
    let asks = (0..12).map(|tag| {
        let server = &server;
        async move { server.ask(&infer(if tag % 2 == 0 { "e" } else { "f" }, tag)).await.tag() }
    });
    assert_eq!(all(asks).await, (0..12).collect::<Vec<_>>());
    assert!(server.row("a").evictions > 0 && server.books()[0].booked <= 100 << 10);
    server.finish().await;
}

#[tokio::test]
async fn a_failing_step_fails_the_request_by_its_name_and_what_runs_beside_it_is_given_up() {
    let both = [step("a", "x", "y"), step("b", "x", "z")];
    let repository = Repository::gated(&["a", "b"]).and("e", &ensemble(&["y", "z"], "", &both));
    let server = TestServer::start(repository).await;
    server.ask(&load("e")).await.expect(200);
    server.gated.close("b", Step::Execute);
    server.gated.fail_next("a", Step::Execute, Fault::Error(Error::new(ErrorKind::BackendFailed, "no luck")));
    let answer = server.ask(&infer("e", 1)).await.expect(500);
    assert_eq!(answer.error(), "step 'a' of ensemble 'e': no luck");
    assert_eq!(server.metric("nv_inference_request_failure{model=\"e\",version=\"1\",reason=\"BACKEND\"}"), Some(1.0));
    server.gated.open_all();
    assert_eq!(server.ask(&infer("e", 2)).await.tag(), 2);
    server.finish().await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_steps_with_it() {
    let repository = Repository::gated(&["a", "b"]).and("e", &chain(&["a", "b"]));
    let server = TestServer::start(repository).await;
    server.ask(&load("e")).await.expect(200);
    server.gated.close("a", Step::Execute);
    let client = server.send(&infer("e", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    drop(client);
    let canceled = || server.metric("nv_inference_request_failure{model=\"e\",version=\"1\",reason=\"CANCELED\"}");
    eventually("the request is given up", || canceled() == Some(1.0)).await;
    let pins = || server.inner.resident_versions().iter().map(|loaded| loaded.pins()).sum::<usize>();
    eventually("nothing is pinned", || pins() == 0).await;
    server.gated.open_all();
    server.until("a", |counts| counts.executions_ended == 1).await;
    assert_eq!(server.gated.counts("b").executions_begun, 0);
    server.finish().await;
}

#[tokio::test]
async fn the_deadline_holds_for_all_steps_and_for_loads_on_the_way() {
    let repository = Repository::gated(&["a", "b"]).and("e", &chain(&["a", "b"]));
    let server = TestServer::start(repository).await;
    assert_eq!(server.ask(&infer("e", 1)).await.tag(), 1);
    server.gated.close("b", Step::Execute);
    let late = server.ask(&infer("e", 2).header("x-request-timeout-ms", 50)).await.expect(504);
    assert!(late.error().starts_with("step 'b' of ensemble 'e'"), "{}", late.error());
    server.gated.open_all();
    // The step has left; it comes back for the next request, within its time.
    server.ask(&crate::support::client::unload("b")).await.expect(200);
    server.gated.close("b", Step::Load);
    let late = server.ask(&infer("e", 3).header("x-request-timeout-ms", 50)).await.expect(504);
    assert!(late.error().contains("model 'b' was not loaded before the request's deadline"), "{}", late.error());
    server.gated.open_all();
    assert_eq!(server.ask(&infer("e", 4)).await.tag(), 4);
    server.finish().await;
}

#[tokio::test]
async fn a_request_that_is_wrong_is_told_so_before_any_step_runs() {
    let repository = Repository::gated(&["a"]).and("e", &chain(&["a"]));
    let server = TestServer::start(repository).await;
    let body = json!({"inputs": [{"name": "z", "datatype": "INT32", "shape": [1], "data": [1]}]});
    let wrong = server.ask(&post("/v2/models/e/infer", body.to_string())).await.expect(400);
    assert!(wrong.error().contains("unexpected inference input 'z' for model 'e'"), "{}", wrong.error());
    assert_eq!(server.gated.counts("a").executions_begun, 0);
    server.finish().await;
}

#[tokio::test]
async fn the_sequence_of_a_request_is_that_of_its_steps() {
    let repository =
        Repository::gated(&["a"]).with("s", "gated", "sequence_batching { direct { } }").and("e", &chain(&["a", "s"]));
    let server = TestServer::start(repository).await;
    let wrong = server.ask(&infer("e", 1)).await.expect(400).error();
    assert!(wrong.starts_with("step 's' of ensemble 'e'") && wrong.contains("correlation ID"), "{wrong}");
    for (tag, start, end) in [(1, true, false), (2, false, false), (3, false, true)] {
        let mut body = crate::support::client::infer_body(tag);
        body["parameters"] = json!({"sequence_id": 7, "sequence_start": start, "sequence_end": end});
        assert_eq!(server.ask(&post("/v2/models/e/infer", body.to_string())).await.tag(), tag);
    }
    assert_eq!(server.live(), (0, 0));
    server.finish().await;
}

#[tokio::test]
async fn each_step_has_a_part_of_its_own_in_the_trace() {
    let repository = Repository::gated(&["a", "b"]).and("e", &chain(&["a", "b"]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.json");
    let mut server = TestServer::start_with(repository, |config| {
        config.trace.levels.timestamps = true;
        config.trace.file = Some(file.clone());
        config.trace.rate = 1;
    })
    .await;
    assert_eq!(server.ask(&infer("e", 1)).await.tag(), 1);
    server.stop().await.unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let models: Vec<_> = rows.iter().filter(|row| row["model_name"].is_string()).collect();
    let id_of = |name: &str| models.iter().find(|row| row["model_name"] == name).unwrap()["id"].clone();
    for step in ["a", "b"] {
        let row = models.iter().find(|row| row["model_name"] == step).unwrap();
        assert_eq!(row["parent_id"], id_of("e"), "{row}");
    }
}

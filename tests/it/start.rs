//! Which models are loaded when: on demand, explicitly, all; and what a server is before and after.

use roundhouse::backend::gated::{Fault, Gated, Step};
use roundhouse::config::{ModelControl, ServerConfig};
use roundhouse::error::Error;

use crate::support::client::{get, infer, load, post, unload};
use crate::support::eventually;
use crate::support::repository::Repository;
use crate::support::server::TestServer;

fn control(control: ModelControl, names: &[&str]) -> impl FnOnce(&mut ServerConfig) + use<> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    move |config| {
        config.model_control = control;
        config.load_model = names;
    }
}

fn resident(server: &TestServer) -> Vec<String> {
    server.inner.resident_versions().iter().map(|loaded| loaded.id.name.to_string()).collect()
}

#[tokio::test]
async fn on_demand_nothing_is_loaded_until_somebody_asks() {
    let server = TestServer::start(Repository::gated(&["a", "b"])).await;
    server.ask(&get("/v2/health/ready")).await.expect(200);
    server.ask(&get("/v2/models/a/ready")).await.expect(400);
    server.ask(&get("/v2/models")).await.expect(200);
    assert_eq!(server.index().await, ["a", "b"]);
    assert!(resident(&server).is_empty(), "neither probes nor lists load a model");
    server.ask(&get("/v2/models/a")).await.expect(200);
    assert_eq!(resident(&server), ["a"]);
    server.ask(&get("/v2/models/b/config")).await.expect(200);
    assert_eq!(resident(&server), ["a", "b"]);
    server.finish().await;
}

#[tokio::test]
async fn explicitly_only_what_was_asked_for_answers() {
    let repository = Repository::gated(&["a", "b", "c"]);
    let server = TestServer::start_with(repository, control(ModelControl::Explicit, &["a"])).await;
    assert_eq!(server.ask(&infer("a", 1)).await.tag(), 1);
    for request in [infer("b", 1), get("/v2/models/b"), get("/v2/models/b/config"), infer("nowhere", 1)] {
        let refused = server.ask(&request).await.expect(404);
        assert!(refused.error().starts_with("Request for unknown model: '"), "{}", refused.text());
    }
    server.ask(&load("b")).await.expect(200);
    assert_eq!(server.ask(&infer("b", 2)).await.tag(), 2);
    server.ask(&unload("a")).await.expect(200);
    server.ask(&infer("a", 3)).await.expect(404);
    server.ask(&load("nowhere")).await.expect(404);
    assert_eq!(
        (resident(&server), server.index().await),
        (vec!["b".to_owned()], ["a", "b", "c"].map(String::from).to_vec())
    );
    assert_eq!(server.gated.counts("c").loads_begun, 0);
    server.finish().await;
}

#[tokio::test]
async fn explicitly_a_request_during_a_load_waits_for_it() {
    let server = TestServer::start_with(Repository::gated(&["a"]), control(ModelControl::Explicit, &[])).await;
    server.gated.close("a", Step::Load);
    let mut loading = server.send(&load("a")).await;
    server.until("a", |counts| counts.loads_begun == 1).await;
    let mut asking = server.send(&infer("a", 1)).await;
    server.ask(&get("/v2/health/live")).await.expect(200);
    server.gated.open("a", Step::Load);
    loading.receive().await.expect(200);
    assert_eq!(asking.receive().await.tag(), 1);
    server.finish().await;
}

#[tokio::test]
async fn explicitly_a_load_among_refused_requests_is_found_afterwards() {
    let server = TestServer::start_with(Repository::gated(&["a"]), control(ModelControl::Explicit, &[])).await;
    for round in 0..30 {
        let mut refused = Vec::new();
        for tag in 0..8 {
            refused.push(server.send(&infer("a", tag)).await);
        }
        server.ask(&load("a")).await.expect(200);
        assert_eq!(server.ask(&infer("a", round)).await.tag(), round);
        for client in &mut refused {
            let status = client.receive().await.status;
            assert!(matches!(status, 200 | 404), "{status}");
        }
        server.ask(&unload("a")).await.expect(200);
        assert_eq!(server.gated.alive(), 0);
    }
    server.finish().await;
}

#[tokio::test]
async fn all_and_the_star_load_the_whole_repository() {
    for (mode, names) in
        [(ModelControl::All, &[][..]), (ModelControl::Explicit, &["*"]), (ModelControl::OnDemand, &["*"])]
    {
        let repository = Repository::gated(&["a", "team/b", "c"]);
        let server = TestServer::start_with(repository, control(mode, names)).await;
        assert_eq!(resident(&server), ["a", "c", "team/b"], "{mode:?}");
        assert_eq!(server.loads("ok"), 3);
        server.finish().await;
    }
}

#[tokio::test]
async fn all_a_model_that_was_added_since_is_loaded_when_it_is_asked_for() {
    let server = TestServer::start_with(Repository::gated(&["a"]), control(ModelControl::All, &[])).await;
    server.repository.put("late/config.pbtxt", crate::support::repository::config("late", "gated", ""));
    server.repository.add_version("late", 1);
    assert_eq!(server.ask(&infer("late", 1)).await.tag(), 1);
    server.finish().await;
}

#[tokio::test]
async fn one_bad_model_keeps_the_server_from_nothing() {
    let gated = Gated::default();
    gated.fail_next("bad", Step::Load, Fault::Error(Error::internal("the weights are torn")));
    gated.fail_next("worse", Step::Load, Fault::Panic("the weights are torn"));
    let repository = Repository::gated(&["bad", "good", "worse"]).with("unknown", "no such backend", "");
    repository.put("broken/config.pbtxt", "max_batch_size: [");
    let server = TestServer::start_unready(repository, gated, control(ModelControl::All, &["nowhere"])).await;
    eventually("the server is ready", || server.inner.is_ready()).await;
    server.ask(&get("/v2/health/ready")).await.expect(200);
    assert_eq!(server.ask(&infer("good", 1)).await.tag(), 1);
    for name in ["bad", "broken", "unknown", "worse"] {
        assert_eq!(server.state(name).await, "UNAVAILABLE", "{name}");
    }
    server.finish().await;
}

#[tokio::test]
async fn a_server_is_live_and_answers_before_it_is_ready() {
    let gated = Gated::default();
    gated.close("slow", Step::Load);
    let repository = Repository::gated(&["a", "slow"]);
    let server = TestServer::start_unready(repository, gated, control(ModelControl::OnDemand, &["slow"])).await;
    server.until("slow", |counts| counts.loads_begun == 1).await;
    server.ask(&get("/v2/health/live")).await.expect(200);
    let unready = server.ask(&get("/v2/health/ready")).await.expect(503);
    assert_eq!(unready.error(), "the models asked for at start are still being loaded");
    assert_eq!(server.ask(&infer("a", 1)).await.tag(), 1);
    assert_eq!(server.state("slow").await, "LOADING");
    server.gated.open("slow", Step::Load);
    eventually("the server is ready", || server.inner.is_ready()).await;
    server.ask(&get("/v2/health/ready")).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn a_load_may_bring_its_own_configuration() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.ask(&infer("a", 1)).await.expect(200);
    let tensor = |name| serde_json::json!([{"name": name, "data_type": "TYPE_INT32", "dims": [2]}]);
    let config = serde_json::json!({"backend": "gated", "input": tensor("in"), "output": tensor("out")}).to_string();
    let body = serde_json::json!({"parameters": {"config": config}}).to_string();
    server.ask(&post("/v2/repository/models/a/load", body)).await.expect(200);
    let metadata = server.ask(&get("/v2/models/a")).await.json();
    assert_eq!(metadata["inputs"], serde_json::json!([{"name": "in", "datatype": "INT32", "shape": [2]}]));
    server.ask(&load("a")).await.expect(200);
    assert_eq!(server.ask(&infer("a", 2)).await.tag(), 2, "a plain load reads the repository again");
    server.finish().await;
}

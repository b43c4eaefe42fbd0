//! How an ensemble and its steps come and go: loads, unloads, evictions, changes, and ensembles that are wrong.

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::config::ModelControl;
use roundhouse::error::{Error, ErrorKind};
use serde_json::json;

use super::{WithEnsembles, chain, ensemble, memory, step, tensor};
use crate::support::client::{Request, get, infer, load, post, unload};
use crate::support::eventually;
use crate::support::repository::{Repository, config};
use crate::support::server::{TestServer, all};

fn unload_all(model: &str) -> Request {
    let body = json!({"parameters": {"unload_dependents": true}});
    post(&format!("/v2/repository/models/{model}/unload"), body.to_string())
}

fn explicit(config: &mut roundhouse::config::ServerConfig) {
    config.model_control = ModelControl::Explicit;
}

#[tokio::test]
async fn an_unload_leaves_the_steps_unless_it_is_told_to_take_those_that_nobody_else_asks() {
    let repository = Repository::gated(&["a", "b", "c"])
        .and("e", &chain(&["a", "b"]))
        .and("f", &chain(&["b", "c"]))
        .and("outer", &chain(&["e", "c"]));
    let server = TestServer::start(repository).await;
    all(["outer", "f"].map(|model| {
        let server = &server;
        async move { server.ask(&load(model)).await.expect(200) }
    }))
    .await;
    assert_eq!(server.in_memory(), ["a", "b", "c", "e", "f", "outer"]);
    server.ask(&unload("f")).await.expect(200);
    assert_eq!(server.in_memory(), ["a", "b", "c", "e", "outer"]);
    server.ask(&load("f")).await.expect(200);
    server.ask(&unload_all("outer")).await.expect(200);
    assert_eq!(server.in_memory(), ["b", "c", "f"]);
    server.ask(&unload_all("f")).await.expect(200);
    assert_eq!(server.in_memory(), Vec::<String>::new());
    server.finish().await;
}

#[tokio::test]
async fn where_models_are_loaded_explicitly_an_ensemble_loads_its_steps_and_misses_one_that_is_unloaded() {
    let repository = Repository::gated(&["a", "b"]).and("e", &chain(&["a", "b"]));
    let server = TestServer::start_with(repository, explicit).await;
    server.ask(&infer("e", 1)).await.expect(404);
    server.ask(&load("e")).await.expect(200);
    assert_eq!(server.in_memory(), ["a", "b", "e"]);
    assert_eq!(server.ask(&infer("e", 1)).await.tag(), 1);
    server.ask(&unload("b")).await.expect(200);
    let missing = server.ask(&infer("e", 2)).await.expect(503);
    let text = missing.error();
    assert!(text.starts_with("step 'b' of ensemble 'e' is not loaded: load it, or load the ensemble anew"), "{text}");
    assert_eq!(missing.header("retry-after"), None);
    server.ask(&load("b")).await.expect(200);
    assert_eq!(server.ask(&infer("e", 3)).await.tag(), 3);
    server.finish().await;
}

#[tokio::test]
async fn a_step_that_was_evicted_comes_back_for_a_request_also_where_models_are_loaded_explicitly() {
    let repository = Repository::empty().sized(&[("a", 100), ("b", 100)]).and("e", &chain(&["a", "b"]));
    let server = TestServer::start_with(repository, |config| {
        explicit(config);
        memory(config, 100);
    })
    .await;
    server.ask(&load("e")).await.expect(200);
    for tag in 0..3 {
        assert_eq!(server.ask(&infer("e", tag)).await.tag(), tag);
    }
    assert!(server.row("a").loads > 2, "{:?}", server.row("a"));
    server.finish().await;
}

#[tokio::test]
async fn a_step_that_cannot_be_loaded_is_named_and_tried_again() {
    let repository = Repository::gated(&["a", "b"]).and("e", &chain(&["a", "b", "none"])).and("f", &chain(&["a", "b"]));
    let server = TestServer::start_with(repository, |config| config.load_retry = std::time::Duration::ZERO).await;
    let missing = server.ask(&load("e")).await.expect(400).error();
    assert!(missing.contains("step 'none' of ensemble 'e'"), "{missing}");
    let fault = Fault::Error(Error::new(ErrorKind::BackendFailed, "no such luck"));
    server.gated.fail_next("b", Step::Load, fault);
    server.ask(&unload("b")).await.expect(200);
    let failed = server.ask(&infer("f", 1)).await.expect(500).error();
    assert!(failed.contains("step 'b' of ensemble 'f'") && failed.ends_with("no such luck"), "{failed}");
    assert_eq!(server.ask(&infer("f", 2)).await.tag(), 2);
    server.finish().await;
}

#[tokio::test]
async fn ensembles_that_contain_themselves_are_refused_whoever_is_asked_first() {
    let repository = Repository::gated(&["a"])
        .and("self", &chain(&["a", "self"]))
        .and("one", &chain(&["a", "two"]))
        .and("two", &chain(&["three", "a"]))
        .and("three", &chain(&["one"]));
    let server = TestServer::start(repository).await;
    let answers = all(["self", "one", "two", "three"].map(|model| {
        let server = &server;
        async move { server.ask(&infer(model, 1)).await.expect(503).error() }
    }));
    for text in answers.await {
        assert!(text.contains("contains itself: '"), "{text}");
    }
    // Its load may have been given up with the rest.
    assert!(server.in_memory().iter().all(|name| name == "a"), "{:?}", server.in_memory());
    server.finish().await;
}

#[tokio::test]
async fn models_that_do_not_fit_together_are_refused_by_step_and_tensor() {
    let float = config("float", "gated", "").replace("INT32", "FP32");
    let twice = ensemble(&["y"], "", &[step("a", "x", "y"), step("a", "x", "y")]);
    let repository = Repository::gated(&["a"])
        .and("float", &float)
        .and("types", &chain(&["a", "float"]))
        .and("batch", &format!("max_batch_size: 4\n{}", chain(&["a"])))
        .and("names", &chain(&["a"]).replace("key: \"y\"", "key: \"z\""))
        .and("twice", &twice)
        .and("circle", &ensemble(&["y"], "", &[step("a", "y", "p"), step("a", "p", "y")]))
        .and("sides", &ensemble(&["y", "z"], "", &[step("s", "x", "y"), step("s", "x", "z")]))
        .with("s", "gated", "model_transaction_policy { decoupled: true }");
    let server = TestServer::start(repository).await;
    for (model, expected) in [
        ("types", "tensor 't1' is TYPE_FP32 for input 'x' of step 'float', but TYPE_INT32 for output 'y' of step 'a'"),
        ("batch", "the ensemble allows batches of 4, but step 'a' only of 0"),
        ("names", "step 'a': output_map has 'z', but the model's outputs are 'y'"),
        ("twice", "config.pbtxt:6:76: ensemble_scheduling: step 'a': tensor 'y' is written twice, also by step 'a'"),
        ("circle", "the steps wait for each other in a circle: 'a' -> 'a' -> 'a'"),
        ("sides", "two decoupled steps stand side by side"),
    ] {
        let text = server.ask(&load(model)).await.expect(400).error();
        assert!(text.contains(expected), "{text}\n want {expected}");
    }
    server.finish().await;
}

#[tokio::test]
async fn a_step_that_is_loaded_anew_goes_on_if_it_fits_and_is_named_if_it_does_not() {
    let repository = Repository::gated(&["a", "b"]).and("e", &chain(&["a", "b"]));
    let server = TestServer::start(repository).await;
    assert_eq!(server.ask(&infer("e", 1)).await.tag(), 1);
    server.repository.put("b/config.pbtxt", config("b", "gated", "# the same\n"));
    server.ask(&load("b")).await.expect(200);
    assert_eq!(server.ask(&infer("e", 2)).await.tag(), 2);
    server.repository.put("b/config.pbtxt", config("b", "gated", "").replace("INT32", "FP32"));
    server.ask(&load("b")).await.expect(200);
    let text = server.ask(&infer("e", 3)).await.expect(503).error();
    assert!(
        text.contains("a model of the ensemble was loaded anew and does not fit any more: tensor 't1' is TYPE_FP32"),
        "{text}"
    );
    server.repository.put("b/config.pbtxt", config("b", "gated", "# as before\n"));
    server.ask(&load("b")).await.expect(200);
    assert_eq!(server.ask(&infer("e", 4)).await.tag(), 4);
    server.finish().await;
}

#[tokio::test]
async fn loading_the_steps_does_not_need_all_of_them_in_memory_nor_more_than_one_place_among_the_loads() {
    let models = [("a", 100), ("b", 100), ("c", 100)];
    let repository =
        Repository::empty().sized(&models).and("inner", &chain(&["a", "b"])).and("e", &chain(&["inner", "c"]));
    let server = TestServer::start_with(repository, |config| {
        memory(config, 100);
        config.load_concurrency = 1.try_into().unwrap();
    })
    .await;
    server.ask(&load("e")).await.expect(200);
    assert_eq!(server.ask(&infer("e", 5)).await.tag(), 5);
    server.finish().await;
}

#[tokio::test]
async fn a_load_of_an_ensemble_that_nobody_waits_for_gives_up_the_loads_of_its_steps() {
    let repository = Repository::empty().sized(&[("a", 100), ("b", 5), ("c", 100)]).and("e", &chain(&["a", "b"]));
    let server = TestServer::start_with(repository, |config| memory(config, 110)).await;
    server.gated.close("c", Step::Execute);
    // `a` waits for the room that `c` has.
    let mut running = server.send(&infer("c", 1)).await;
    server.until("c", |counts| counts.executions_begun == 1).await;
    let client = server.send(&infer("e", 2)).await;
    eventually("a waits for room", || server.row_if("a").is_some_and(|row| row.state.name() == "LOADING")).await;
    drop(client);
    eventually("the loads are given up", || server.loads("cancelled") >= 2).await;
    server.gated.open_all();
    assert_eq!(running.receive().await.tag(), 1);
    assert_eq!(server.gated.counts("a").loads_begun, 0);
    server.finish().await;
}

#[tokio::test]
async fn an_input_that_may_be_left_out_is_left_out_for_the_step_too_and_labels_come_from_the_step() {
    let more = tensor("input", "o").replace("dims", "optional: true dims");
    let a = config("a", "gated", &format!("{more}{}", tensor("output", "w")));
    let step = "step { model_name: \"a\" model_version: -1 input_map [ { key: \"x\" value: \"x\" }, { key: \"o\" value: \"o\" } ] \
                output_map { key: \"y\" value: \"y\" } }";
    let e = format!("{more}{}", ensemble(&["y"], "", &[step.to_owned()]));
    let repository = Repository::empty().and("a", &a).and("e", &e);
    let server = TestServer::start(repository).await;
    assert_eq!(server.ask(&infer("e", 4)).await.tag(), 4);
    let metadata = server.ask(&get("/v2/models/e")).await.json();
    assert_eq!(metadata["inputs"].as_array().unwrap().len(), 2);
    server.finish().await;
}

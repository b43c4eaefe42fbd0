//! The response cache: the same question is answered without a run, another one never with its answer.

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::config::ServerConfig;
use roundhouse::error::{Error, ErrorKind};
use serde_json::{Value, json};

use crate::support::client::{Request, get, infer, infer_body, load, post, unload};
use crate::support::repository::Repository;
use crate::support::server::{TestServer, all};

const CACHED: &str = "response_cache { enable: true }";

fn with_cache(config: &mut ServerConfig) {
    config.cache.response_bytes = 1 << 20;
}

async fn server(names: &[&str]) -> TestServer {
    let repository = names.iter().fold(Repository::empty(), |all, name| all.with(name, "gated", CACHED));
    TestServer::start_with(repository, with_cache).await
}

fn runs(server: &TestServer, model: &str) -> usize {
    server.gated.counts(model).executions_ended
}

fn ask(model: &str, body: &Value) -> Request {
    post(&format!("/v2/models/{model}/infer"), body.to_string())
}

#[tokio::test]
async fn a_question_asked_again_is_answered_with_the_same_bytes_and_without_a_run() {
    let server = server(&["a"]).await;
    let first = server.ask(&infer("a", 5)).await.expect(200);
    let again = server.ask(&infer("a", 5)).await.expect(200);
    assert_eq!((first.body, runs(&server, "a")), (again.body, 1));
    assert_eq!(server.ask(&infer("a", 6)).await.tag(), 6);
    assert_eq!(runs(&server, "a"), 2);
    server.finish().await;
}

#[tokio::test]
async fn whatever_differs_in_a_question_is_another_question() {
    let server = server(&["a", "b"]).await;
    let plain = infer_body(5);
    let mut named = plain.clone();
    named["outputs"] = json!([{"name": "y"}]);
    let mut with = plain.clone();
    with["parameters"] = json!({"temperature": 1});
    let mut otherwise = plain.clone();
    otherwise["parameters"] = json!({"temperature": 1.5});
    let longer = json!({"inputs": [{"name": "x", "datatype": "INT32", "shape": [2], "data": [5, 0]}]});
    for (at, body) in [&plain, &with, &otherwise, &longer].into_iter().enumerate() {
        server.ask(&ask("a", body)).await.expect(200);
        assert_eq!(runs(&server, "a"), at + 1, "{body}");
    }
    server.ask(&ask("a", &named)).await.expect(200);
    let mut called = plain.clone();
    called["id"] = json!("mine");
    let answer = server.ask(&ask("a", &called)).await.expect(200).json();
    assert_eq!(answer["id"], "mine", "an answer has the id of who asks");
    assert_eq!(runs(&server, "a"), 4, "all outputs by name are all outputs; an id changes no answer");
    server.ask(&ask("b", &plain)).await.expect(200);
    assert_eq!(runs(&server, "b"), 1);
    server.finish().await;
}

#[tokio::test]
async fn an_error_is_not_kept() {
    let server = server(&["a"]).await;
    server.gated.fail_next("a", Step::Execute, Fault::Error(Error::new(ErrorKind::BackendFailed, "torn")));
    server.ask(&infer("a", 5)).await.expect(500);
    assert_eq!(server.ask(&infer("a", 5)).await.tag(), 5);
    assert_eq!(runs(&server, "a"), 2);
    server.finish().await;
}

#[tokio::test]
async fn what_a_model_answered_goes_when_it_is_changed_or_unloaded() {
    let server = server(&["a", "b"]).await;
    let bytes = |server: &TestServer| server.metric("roundhouse_response_cache_bytes").unwrap();
    for name in ["a", "b"] {
        server.ask(&infer(name, 5)).await.expect(200);
    }
    let both = bytes(&server);
    server.repository.touch("a");
    server.ask(&load("a")).await.expect(200);
    server.ask(&infer("a", 5)).await.expect(200);
    assert_eq!(runs(&server, "a"), 2, "the fresh copy has answered nothing yet");
    server.ask(&unload("a")).await.expect(200);
    assert_eq!(bytes(&server), both / 2.0);
    server.ask(&infer("a", 5)).await.expect(200);
    server.ask(&infer("b", 5)).await.expect(200);
    assert_eq!((runs(&server, "a"), runs(&server, "b")), (3, 1));
    server.ask(&unload("b")).await.expect(200);
    server.ask(&unload("a")).await.expect(200);
    assert_eq!(bytes(&server), 0.0);
    server.finish().await;
}

#[tokio::test]
async fn hits_and_misses_are_counted_once_each() {
    let server = server(&["a"]).await;
    let clients = (0..4).map(|client| {
        let server = &server;
        async move {
            let mut connection = server.client().await;
            for step in 0..50 {
                // Ten questions a client, which no other client asks.
                let tag = client * 100 + step % 10;
                assert_eq!(connection.ask(&infer("a", tag)).await.tag(), tag);
            }
        }
    });
    all(clients).await;
    assert_eq!(runs(&server, "a"), 40);
    let rows = server.ask(&get("/v2/models/a/stats")).await.json();
    let row = &rows["model_stats"][0];
    assert_eq!((&row["inference_count"], &row["execution_count"]), (&json!(40), &json!(40)));
    for (name, count) in [("success", 200), ("cache_hit", 160), ("cache_miss", 40), ("compute_infer", 40)] {
        assert_eq!(row["inference_stats"][name]["count"], count, "{name}");
    }
    assert!(row["inference_stats"]["cache_hit"]["ns"].as_u64().unwrap() > 0);
    let series = |family: &str| server.metric(&format!("{family}{{model=\"a\",version=\"1\"}}"));
    assert_eq!(series("nv_cache_num_hits_per_model"), Some(160.0));
    assert_eq!(series("nv_cache_num_misses_per_model"), Some(40.0));
    assert!(
        series("nv_cache_miss_duration_per_model").is_some() && series("nv_cache_hit_duration_per_model").is_some()
    );
    server.finish().await;
}

#[tokio::test]
async fn without_the_models_or_the_servers_word_everything_is_computed() {
    let repository = Repository::gated(&["plain"]).with("asks", "gated", CACHED);
    let server = TestServer::start_with(repository, with_cache).await;
    for _ in 0..2 {
        server.ask(&infer("plain", 5)).await.expect(200);
    }
    assert_eq!(runs(&server, "plain"), 2);
    assert_eq!(server.metric("nv_cache_num_misses_per_model{model=\"plain\",version=\"1\"}"), None);
    server.finish().await;
    let server = TestServer::start(Repository::empty().with("asks", "gated", CACHED)).await;
    for _ in 0..2 {
        server.ask(&infer("asks", 5)).await.expect(200);
    }
    assert_eq!(runs(&server, "asks"), 2);
    assert_eq!(server.metric("roundhouse_response_cache_bytes"), None);
    server.finish().await;
}

#[tokio::test]
async fn large_inputs_are_answered_from_memory_too() {
    let server = server(&["a"]).await;
    let numbers = |last: i32| {
        let data: Vec<_> = std::iter::repeat_n(1, 160_000).chain([last]).collect();
        json!({"inputs": [{"name": "x", "datatype": "INT32", "shape": [160_001], "data": data}], "outputs": []})
    };
    // Above what is hashed where the request is, and above what is kept: 640 KB.
    for _ in 0..2 {
        server.ask(&ask("a", &numbers(1))).await.expect(200);
    }
    assert_eq!(runs(&server, "a"), 2, "an answer that is large beside the cache is not kept");
    server.finish().await;
}

//! The runtime API, models on demand.

use std::time::Duration;

use roundhouse::backend::gated::Step;
use roundhouse::config::ServerConfig;

use super::{endpoint, memory};
use crate::support::client::{Client, Request, Response, get, infer_body, post, unload};
use crate::support::eventually;
use crate::support::repository::Repository;
use crate::support::server::{TestServer, all};

async fn ask(server: &TestServer, request: &Request) -> Response {
    server.sagemaker().await.ask(request).await
}

async fn send(server: &TestServer, request: &Request) -> Client {
    let mut client = server.sagemaker().await;
    client.send(request).await;
    client
}

fn error_type(response: &Response) -> &str {
    assert!(response.header("x-amzn-requestid").is_some());
    response.header("x-amzn-errortype").unwrap_or_default()
}

#[tokio::test]
async fn an_invocation_loads_its_model_and_says_who_answered() {
    let server = TestServer::start(Repository::gated(&["team/a"])).await;
    let request = endpoint("/team/a", 7).header("x-amzn-sagemaker-custom-attributes", "k=v");
    let answer = ask(&server, &request).await.expect(200);
    assert_eq!((answer.tag(), answer.json()["model_name"].as_str()), (7, Some("team/a")));
    assert_eq!(answer.header("x-amzn-invoked-production-variant"), Some("AllTraffic"));
    assert_eq!(answer.header("x-amzn-sagemaker-custom-attributes"), Some("k=v"));
    assert_eq!(answer.header("x-model-state"), Some("disk"));
    assert_eq!(answer.header("x-amzn-requestid").unwrap().len(), 36);
    // The same on the port of KServe, where the container's routes are not.
    assert_eq!(server.ask(&endpoint("team/a", 8)).await.tag(), 8);
    server.ask(&get("/ping")).await.expect(404);
    let variant = ask(&server, &endpoint("team/a", 9).header("x-amzn-sagemaker-target-variant", "blue")).await;
    assert_eq!(variant.header("x-amzn-invoked-production-variant"), Some("blue"));
    server.finish().await;
}

#[tokio::test]
async fn a_hundred_invocations_of_a_cold_model_are_one_load_and_a_hundred_answers() {
    let server = TestServer::start(Repository::gated(&["m"])).await;
    server.gated.close("m", Step::Load);
    let mut clients = all((0..100).map(|tag| {
        let server = &server;
        async move { send(server, &endpoint("m", tag)).await }
    }))
    .await;
    server.until("m", |counts| counts.loads_begun == 1).await;
    server.gated.open("m", Step::Load);
    for (tag, client) in (0..).zip(&mut clients) {
        assert_eq!(client.receive().await.tag(), tag);
    }
    assert_eq!((server.gated.counts("m").loads_begun, server.loads("ok")), (1, 1));
    server.finish().await;
}

#[tokio::test]
async fn a_load_that_takes_too_long_goes_on_and_its_caller_is_told_to_come_back() {
    let change = |config: &mut ServerConfig| config.sagemaker.endpoint.load_wait = Duration::from_millis(1);
    let server = TestServer::start_with(Repository::gated(&["m"]), change).await;
    server.gated.close("m", Step::Load);
    let early = ask(&server, &endpoint("m", 1)).await.expect(429);
    assert_eq!(error_type(&early), "ModelNotReadyException");
    assert!(early.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    server.until("m", |counts| counts.loads_begun == 1).await;
    server.gated.open("m", Step::Load);
    eventually("the load went on", || server.in_memory() == ["m"]).await;
    assert_eq!(ask(&server, &endpoint("m", 2)).await.tag(), 2);
    assert_eq!((server.loads("ok"), server.loads("cancelled")), (1, 0));
    server.finish().await;
}

#[tokio::test]
async fn a_load_whose_callers_have_left_goes_on_until_its_limit() {
    let server = TestServer::start(Repository::gated(&["m"])).await;
    server.gated.close("m", Step::Load);
    let client = send(&server, &endpoint("m", 1)).await;
    server.until("m", |counts| counts.loads_begun == 1).await;
    drop(client);
    server.gated.open("m", Step::Load);
    eventually("the load went on", || server.in_memory() == ["m"]).await;
    server.finish().await;
}

#[tokio::test]
async fn errors_have_the_services_names() {
    let server = TestServer::start_with(Repository::gated(&["m"]), |config| {
        config.sagemaker.endpoint.name = Some("ep".to_owned());
        config.sagemaker.endpoint.payload_bytes = 1000;
    })
    .await;
    let body = infer_body(1).to_string();
    let named = |name: &str| post(&format!("/endpoints/{name}/invocations"), body.clone());
    let target = "x-amzn-sagemaker-target-model";
    for (request, text) in [
        (named("other").header(target, "m"), "Endpoint other not found"),
        (named("ep"), "TargetModel is missing"),
        (named("ep").header(target, "nope"), "'nope' is not found"),
        (named("ep").header(target, "../m"), "TargetModel is no key"),
        (named("ep").header(target, "x".repeat(1025)), "longer than 1024"),
        (
            named("ep").header(target, "m").header("x-amzn-sagemaker-custom-attributes", "c".repeat(1025)),
            "CustomAttributes",
        ),
    ] {
        let refused = ask(&server, &request).await.expect(400);
        assert_eq!(error_type(&refused), "ValidationError");
        assert!(refused.json()["Message"].as_str().unwrap().contains(text), "{text}: {}", refused.text());
    }
    let wrong = ask(&server, &post("/endpoints/ep/invocations", "1,2,3").header(target, "m")).await.expect(424);
    assert_eq!((error_type(&wrong), wrong.json()["OriginalStatusCode"].as_u64()), ("ModelError", Some(400)));
    assert!(wrong.json()["OriginalMessage"].as_str().unwrap().contains("no JSON object"), "{}", wrong.text());
    let large =
        ask(&server, &post("/endpoints/ep/invocations", vec![b' '; 1001]).header(target, "m")).await.expect(413);
    assert_eq!(error_type(&large), "RequestEntityTooLargeException");
    assert_eq!(ask(&server, &endpoint("m", 3)).await.tag(), 3);
    server.finish().await;
}

#[tokio::test]
async fn want_of_room_is_unavailable_where_it_may_pass_and_a_model_error_where_it_may_not() {
    let repository = Repository::empty().sized(&[("a", 200), ("b", 200), ("huge", 301)]);
    let server = TestServer::start_with(repository, |config| {
        memory(config, 300);
        config.cache.room_wait = Duration::ZERO;
    })
    .await;
    server.gated.close("a", Step::Execute);
    let mut running = send(&server, &endpoint("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let full = ask(&server, &endpoint("b", 2)).await.expect(503);
    assert_eq!((error_type(&full), full.header("retry-after")), ("ServiceUnavailable", Some("1")));
    let never = ask(&server, &endpoint("huge", 2)).await.expect(424);
    assert_eq!(never.json()["OriginalStatusCode"], 400);
    server.gated.open("a", Step::Execute);
    assert_eq!(running.receive().await.tag(), 1);
    server.ask(&unload("a")).await.expect(200);
    assert_eq!(ask(&server, &endpoint("b", 3)).await.tag(), 3);
    server.finish().await;
}

#[tokio::test]
async fn who_has_no_key_for_a_model_is_refused_before_anything_is_loaded() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "[[token]]\nname = 'a'\ntoken = 'sixteen-characters-a'\nmodels = ['company_a/*']\n";
    std::fs::write(file.path(), text).unwrap();
    let path = file.path().to_owned();
    let repository = Repository::gated(&["company_a/m", "company_b/m"]);
    let server = TestServer::start_with(repository, |config| config.sagemaker.endpoint.keys = Some(path)).await;
    let with = |token: &str, target: &str| endpoint(target, 1).header("authorization", format!("Bearer {token}"));
    assert_eq!(ask(&server, &with("sixteen-characters-a", "company_a/m")).await.tag(), 1);
    for (request, code) in [
        (endpoint("company_a/m", 1), "MissingAuthenticationTokenException"),
        (with("sixteen-characters-b", "company_a/m"), "UnrecognizedClientException"),
        (with("sixteen-characters-a", "company_b/m"), "AccessDeniedException"),
        (with("sixteen-characters-a", "company_b/none"), "AccessDeniedException"),
    ] {
        assert_eq!(error_type(&ask(&server, &request).await.expect(403)), code);
        // On KServe's port as well.
        server.ask(&request).await.expect(403);
    }
    assert_eq!(server.in_memory(), ["company_a/m"]);
    server.finish().await;
}

#[tokio::test]
async fn an_unload_during_the_load_of_an_invocation_holds_up_neither() {
    let server = TestServer::start(Repository::gated(&["m"])).await;
    for round in 0..20 {
        server.gated.close("m", Step::Load);
        let mut clients = Vec::new();
        for tag in 0..8 {
            clients.push(send(&server, &endpoint("m", tag)).await);
        }
        server.until("m", |counts| counts.loads_begun > counts.loads_ended).await;
        let mut unloading = server.send(&unload("m")).await;
        server.gated.open("m", Step::Load);
        for (tag, client) in (0..).zip(&mut clients) {
            assert_eq!(client.receive().await.tag(), tag, "round {round}");
        }
        unloading.receive().await.expect(200);
        server.ask(&unload("m")).await.expect(200);
    }
    server.finish().await;
}

#[tokio::test]
async fn a_stream_is_not_compressed_and_what_is_no_invocation_has_the_services_form() {
    let server = TestServer::start(Repository::gated(&["m"])).await;
    let request = post("/endpoints/ep/invocations-response-stream", infer_body(5).to_string());
    let request = request.header("x-amzn-sagemaker-target-model", "m").header("accept-encoding", "gzip");
    let answer = ask(&server, &request).await.expect(200);
    assert_eq!(
        (answer.header("content-encoding"), answer.header("x-amzn-sagemaker-content-type")),
        (None, Some("application/json"))
    );
    assert_eq!(answer.header("content-type"), Some("application/vnd.amazon.eventstream"));
    let text = String::from_utf8_lossy(&answer.body);
    assert!(text.contains("PayloadPart") && text.contains("\"data\":[5]"), "{text}");
    for request in [get("/endpoints/ep/invocations"), post("/endpoints/ep/async-invocations", "")] {
        assert_eq!(error_type(&ask(&server, &request).await.expect(404)), "UnknownOperationException");
    }
    server.finish().await;
}

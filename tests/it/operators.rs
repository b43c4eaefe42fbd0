//! What operators and routers ask: residency and explanations over HTTP, and `roundhouse models` against a server.

use serde_json::{Value, json};

use crate::support::binary::run_for_output;
use crate::support::client::{Request, get, infer, post};
use crate::support::repository::Repository;
use crate::support::server::TestServer;

/// `roundhouse models` against `server`: exit code, standard output, standard error.
async fn models(server: &TestServer, arguments: &[&str]) -> (Option<i32>, String, String) {
    let url = format!("http://{}", server.addresses.http);
    let arguments: Vec<String> = ["models", "--url", &url].iter().chain(arguments).map(ToString::to_string).collect();
    let run = move || run_for_output(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn names(page: &Value) -> Vec<&str> {
    page["models"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn residency_comes_in_pages_and_names_a_wrong_parameter() {
    let server = TestServer::start(Repository::gated(&["a", "b", "team/c d"])).await;
    for name in ["a", "b", "team%2Fc%20d"] {
        server.ask(&infer(name, 1)).await.expect(200);
    }
    let whole = server.ask(&get("/v1/residency")).await.expect(200);
    assert_eq!(whole.header("content-type"), Some("application/json"));
    assert_eq!(names(&whole.json()), ["a", "b", "team/c d"]);
    assert_eq!(whole.json()["next"], Value::Null);
    let first = server.ask(&get("/v1/residency?limit=2")).await.expect(200).json();
    assert_eq!((names(&first), &first["next"]), (vec!["a", "b"], &json!("b")));
    let second = server.ask(&get("/v1/residency?limit=2&after=b")).await.expect(200).json();
    assert_eq!((names(&second), &second["next"]), (vec!["team/c d"], &Value::Null));
    let after_all = server.ask(&get("/v1/residency?after=team%2Fc+d")).await.expect(200).json();
    assert_eq!(names(&after_all), [""; 0]);
    for (query, name) in [("limit=0", "'limit'"), ("limit=10001", "'limit'"), ("since=x", "'since'"), ("x=1", "'x'")] {
        let refused = server.ask(&get(&format!("/v1/residency?{query}"))).await.expect(400);
        assert!(refused.error().contains(name), "{query}: {}", refused.error());
    }
    server.ask(&post("/v1/residency", "")).await.expect(405);
    server.finish().await;
}

#[tokio::test]
async fn one_model_is_asked_for_by_any_form_of_its_name() {
    let server = TestServer::start(Repository::gated(&["team/c d", "cold"])).await;
    server.ask(&infer("team%2Fc%20d", 1)).await.expect(200);
    for path in ["/v1/models/team/c%20d", "/v1/models/team%2fc%20d"] {
        let explained = server.ask(&get(&format!("{path}/explain"))).await.expect(200).json();
        assert_eq!(explained["model"]["name"], "team/c d");
        assert!(explained["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty()), "{explained}");
        let row = server.ask(&get(&format!("{path}/residency"))).await.expect(200).json();
        assert_eq!(
            (&row["name"], &row["tier"], &row["state"]),
            (&json!("team/c d"), &json!("device"), &json!("READY"))
        );
        for action in ["pin", "unpin", "prefetch"] {
            let row = server.ask(&post(&format!("{path}/{action}"), "")).await.expect(200).json();
            assert_eq!(row["name"], "team/c d", "{action}");
        }
    }
    let refusals: &[(Request, u16)] = &[
        (get("/v1/models/none/explain"), 404),
        (get("/v1/models/none/residency"), 404),
        (post("/v1/models/none/pin", ""), 404),
        (get("/v1/models/cold/load"), 404),
        (get("/v1/models/cold"), 404),
        (get("/v1/models/cold/pin"), 405),
        (post("/v1/models/cold/explain", ""), 405),
        (get("/v1/models/%ff/explain"), 404),
    ];
    for (request, status) in refusals {
        server.ask(request).await.expect(*status).error();
    }
    server.finish().await;
}

#[tokio::test]
async fn an_answer_says_where_its_model_was() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    server.ask(&infer("a", 1)).await.expect(200);
    for request in [infer("a", 1), post("/v2/models/a/generate", r#"{"x": 4}"#)] {
        let warm = server.ask(&request).await.expect(200);
        assert_eq!((warm.header("x-model-state"), warm.header("x-load-ms")), (Some("device"), Some("0")));
    }
    let unknown = server.ask(&infer("none", 1)).await.expect(404);
    assert_eq!(unknown.header("x-model-state"), None, "no model, no place");
    server.finish().await;
}

#[tokio::test]
async fn the_command_loads_lists_and_unloads() {
    let server = TestServer::start(Repository::gated(&["a", "team/c d"])).await;
    let (code, out, err) = models(&server, &["load", "a", "team/c d"]).await;
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "a: loaded\nteam/c d: loaded\n", ""));
    let (code, out, _) = models(&server, &[]).await;
    assert_eq!(code, Some(0));
    assert!(out.lines().any(|line| line.starts_with("team/c d") && line.contains("READY")), "{out}");
    let (code, out, _) = models(&server, &["list", "--json"]).await;
    assert_eq!(code, Some(0));
    assert_eq!(names(&serde_json::from_str(&out).unwrap()), ["a", "team/c d"]);
    let (code, out, _) = models(&server, &["--json", "pin", "team/c d"]).await;
    assert_eq!(code, Some(0));
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["name"], "team/c d");
    let (code, out, _) = models(&server, &["explain", "a"]).await;
    assert_eq!(code, Some(0));
    assert!(out.starts_with("a: READY on cpu, last asked for"), "{out}");
    let (code, out, _) = models(&server, &["unload", "a"]).await;
    assert_eq!((code, out.as_str()), (Some(0), "a: unloaded\n"));
    assert_eq!(server.state("a").await, "UNAVAILABLE");
    server.finish().await;
}

#[tokio::test]
async fn a_model_that_fails_does_not_keep_the_command_from_the_others() {
    let server = TestServer::start(Repository::gated(&["a"])).await;
    let (code, out, err) = models(&server, &["load", "none", "a"]).await;
    assert_eq!((code, out.as_str()), (Some(1), "a: loaded\n"), "{err}");
    assert!(err.starts_with("none: ") && err.ends_with("error: 1 of 2 models failed\n"), "{err}");
    let (code, _, err) = models(&server, &["explain", "none"]).await;
    assert_eq!(code, Some(1), "{err}");
    assert!(err.starts_with("error: ") && err.contains("'none'"), "{err}");
    server.finish().await;
}

#[test]
fn a_server_that_is_not_there_is_named_with_the_mend() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", taken.local_addr().unwrap());
    drop(taken);
    let (code, _, err) = run_for_output(&["models", "--url", &url, "list"]);
    assert_eq!(code, Some(1));
    for part in [url.as_str(), "roundhouse serve", "--url"] {
        assert!(err.contains(part), "{part} is not in {err}");
    }
    let (code, _, err) = run_for_output(&["models", "--url", "https://localhost", "list"]);
    assert_eq!(code, Some(64));
    assert!(err.contains("http://"), "{err}");
}

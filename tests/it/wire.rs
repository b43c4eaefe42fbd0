//! The bodies that clients read, whole and to the byte, held against files in `tests/snapshots/`.
//!
//! After a change that is meant: `INSTA_UPDATE=always cargo test --test it wire`, and read the difference.

use std::fmt::Write;

use roundhouse::backend::gated::Step;
use serde_json::{Value, json};

use crate::support::client::{Request, Response, get, infer, infer_body, load, post, unload};
use crate::support::repository::{ONE_INSTANCE, Repository};
use crate::support::server::TestServer;

/// A model whose configuration and metadata have something of everything.
const RICH: &str = r#"
name: "rich"
backend: "gated"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_INT32 dims: [ -1 ] }, { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_INT32 dims: [ -1 ] }, { name: "echo" data_type: TYPE_STRING dims: [ 1 ] } ]
version_policy { specific { versions: [ 1, 3 ] } }
instance_group [ { count: 1 kind: KIND_CPU } ]
parameters { key: "colour" value: { string_value: "blue" } }
"#;

async fn start() -> TestServer {
    let repository = Repository::empty().with("a", "gated", ONE_INSTANCE).with("team/b", "gated", "");
    repository.put("rich/config.pbtxt", RICH);
    for version in [1, 2, 3] {
        repository.add_version("rich", version);
    }
    repository.put("broken/config.pbtxt", "max_batch_size: 'two'");
    TestServer::start_with(repository, |config| config.queue_capacity = 1).await
}

/// What a client sees of a response: status, headers but for the date, body; JSON documents with a member a line.
fn seen(response: &Response, pretty: bool) -> String {
    let mut text = format!("{}\n", response.status);
    for (name, value) in response.headers.iter().filter(|(name, _)| name != "date") {
        let measured = name == "x-load-ms" && value.parse::<u64>().is_ok();
        writeln!(text, "{name}: {}", if measured { "<measured>" } else { value }).unwrap();
    }
    text.push('\n');
    if pretty {
        let value: Value = serde_json::from_slice(&response.body).unwrap();
        text.push_str(&serde_json::to_string_pretty(&value).unwrap());
    } else {
        match std::str::from_utf8(&response.body) {
            Ok(body) if !body.chars().any(|character| character.is_control() && character != '\n') => {
                text.push_str(body)
            }
            _ => text.push_str(&response.body.escape_ascii().to_string().replace("\\\"", "\"")),
        }
    }
    text.replace(concat!("\"", env!("CARGO_PKG_VERSION"), "\""), "\"<version>\"")
}

fn check(name: &str, text: &str) {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, text));
}

async fn documents(server: &TestServer, name: &str, request: &Request) {
    check(name, &seen(&server.ask(request).await, true));
}

#[tokio::test]
async fn documents_about_the_server_and_its_models() {
    let server = start().await;
    documents(&server, "server_metadata", &get("/v2")).await;
    documents(&server, "model_metadata", &get("/v2/models/rich")).await;
    documents(&server, "model_metadata_of_a_version", &get("/v2/models/rich/versions/1")).await;
    documents(&server, "model_config", &get("/v2/models/rich/config")).await;
    server.finish().await;
}

#[tokio::test]
async fn the_repository_index_and_its_operations() {
    let server = start().await;
    let index = |body: &str| post("/v2/repository/index", body);
    check("index_at_first", &seen(&server.ask(&index("")).await, true));
    check("load", &seen(&server.ask(&load("rich")).await, false));
    server.ask(&infer("a", 1)).await.expect(200);
    check("unload", &seen(&server.ask(&unload("a")).await, false));
    check("load_of_a_broken_model", &seen(&server.ask(&load("broken")).await, false));
    check("load_of_an_unknown_model", &seen(&server.ask(&load("nowhere")).await, false));
    check("index", &seen(&server.ask(&index("{}")).await, true));
    check("index_of_what_is_ready", &seen(&server.ask(&index("{\"ready\":true}")).await, true));
    check("models", &seen(&server.ask(&get("/v2/models")).await, true));
    server.finish().await;
}

fn rich_request(more: Value) -> Value {
    let mut body = json!({
        "id": "r-1",
        "inputs": [
            {"name": "x", "datatype": "INT32", "shape": [2, 2], "data": [[1, -2], [3, 2_147_483_647]]},
            {"name": "text", "datatype": "BYTES", "shape": [2, 1], "data": ["a \"quote\"", "größer"]},
        ],
    });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn inference_in_json_and_binary() {
    let server = start().await;
    let ask = async |more: Value| {
        let request = post("/v2/models/rich/infer", rich_request(more).to_string());
        server.ask(&request).await.expect(200)
    };
    check("infer_json", &seen(&ask(json!({})).await, false));
    let binary = json!({"parameters": {"binary_data_output": true}});
    check("infer_binary", &seen(&ask(binary).await, false));
    let mixed = json!({"outputs": [{"name": "y", "parameters": {"binary_data": true}}, {"name": "echo"}]});
    check("infer_mixed", &seen(&ask(mixed).await, false));
    check("infer_one_output", &seen(&ask(json!({"outputs": [{"name": "echo"}]})).await, false));
    let generated = post("/v2/models/a/generate", json!({"id": "g-1", "x": [4, 5]}).to_string());
    check("generate", &seen(&server.ask(&generated).await, false));
    let streamed = post("/v2/models/a/generate_stream", json!({"x": 4}).to_string());
    check("generate_stream", &seen(&server.ask(&streamed).await, false));
    server.finish().await;
}

#[tokio::test]
async fn errors() {
    let server = start().await;
    server.ask(&load("a")).await.expect(200);
    let wrong = |key: &str, value: Value| {
        let mut body = infer_body(1);
        body["inputs"][0][key] = value;
        post("/v2/models/a/infer", body.to_string())
    };
    let cases = [
        ("error_400_json", post("/v2/models/a/infer", "{\"inputs\":[")),
        ("error_400_datatype", wrong("datatype", json!("FP32"))),
        ("error_400_shape", wrong("shape", json!([1, 1]))),
        ("error_400_input", wrong("name", json!("z"))),
        ("error_400_not_ready", get("/v2/models/team/b/ready")),
        ("error_404_model", infer("nowhere", 1)),
        ("error_404_version", post("/v2/models/a/versions/9/infer", infer_body(1).to_string())),
        ("error_404_path", get("/v2/nothing/here")),
        ("error_405", get("/v2/models/a/infer")),
        ("error_501_encoding", infer("a", 1).header("content-encoding", "br")),
        ("error_503_broken_model", infer("broken", 1)),
    ];
    for (name, request) in cases {
        check(name, &seen(&server.ask(&request).await, false));
    }
    server.finish().await;
}

#[tokio::test]
async fn errors_of_a_busy_server() {
    let server = start().await;
    server.gated.close("a", Step::Execute);
    let mut running = server.send(&infer("a", 1)).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    let mut queued = server.send(&infer("a", 2)).await;
    server.until_pending("a", 1).await;
    check("error_429", &seen(&server.ask(&infer("a", 3)).await, false));
    server.gated.open("a", Step::Execute);
    running.receive().await.expect(200);
    queued.receive().await.expect(200);
    server.gated.close("a", Step::Execute);
    let late = infer("a", 4).header("x-request-timeout-ms", 2);
    check("error_504", &seen(&server.ask(&late).await, false));
    server.gated.open("a", Step::Execute);
    server.finish().await;
}

#[tokio::test]
async fn an_error_of_size() {
    let repository = Repository::gated(&["a"]);
    let server = TestServer::start_with(repository, |config| config.limits.body_bytes = 100).await;
    let large = post("/v2/models/a/infer", vec![b' '; 101]);
    check("error_413", &seen(&server.ask(&large).await, false));
    server.finish().await;
}

/// Puts a word in the place of the numbers that differ from run to run.
fn masked(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (key, value) in members.iter_mut() {
                if key == "ns" || key == "last_inference" {
                    *value = json!("<time>");
                } else {
                    masked(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(masked),
        _ => {}
    }
}

#[tokio::test]
async fn statistics() {
    let server = start().await;
    for batch in [1, 2, 2] {
        let x = json!({"name": "x", "datatype": "INT32", "shape": [batch, 1], "data": vec![1; batch]});
        let text = json!({"name": "text", "datatype": "BYTES", "shape": [batch, 1], "data": vec!["t"; batch]});
        server.ask(&post("/v2/models/rich/infer", json!({"inputs": [x, text]}).to_string())).await.expect(200);
    }
    let mut response = server.ask(&get("/v2/models/rich/versions/3/stats")).await;
    let mut body = response.json();
    masked(&mut body);
    response.body = body.to_string().into();
    response.headers.retain(|(name, _)| name != "content-length");
    check("statistics", &seen(&response, true));
    server.finish().await;
}

/// The labels of a histogram's line but for `le`; `None` for its head, which comes first.
fn series_of_a_bucket(line: &str) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(labels, _)| labels);
    Some(labels.split(',').filter(|label| !label.starts_with("le=")).collect::<Vec<_>>().join(","))
}

#[tokio::test]
async fn the_metrics_page() {
    let server = start().await;
    for tag in 0..3 {
        server.ask(&infer("a", tag)).await.expect(200);
    }
    let page = server.inner.metrics_page();
    let is_measured = |line: &str| {
        ["_us{", "_secs{", "_bytes ", "_bytes{", "_seconds_", "_pressure "].iter().any(|part| line.contains(part))
            && !line.starts_with('#')
    };
    // Families come in no fixed order, nor do the series of one.
    let mut families: Vec<Vec<String>> = Vec::new();
    for line in page.lines().filter(|line| !line.is_empty()) {
        let line = match line.rsplit_once(' ') {
            Some((series, _)) if is_measured(line) => format!("{series} <measured>"),
            _ => line.to_owned(),
        };
        if line.starts_with("# HELP") {
            families.push(Vec::new());
        }
        families.last_mut().expect("a page begins with a family").push(line);
    }
    // These come with the second reading, a second after the start.
    families.retain(|family| !["_busy_share ", "_hit_ratio "].iter().any(|part| family[0].contains(part)));
    for family in &mut families {
        if family[1].ends_with("histogram") {
            // The buckets of a series stay in their order.
            family.sort_by_key(|line| series_of_a_bucket(line));
        } else {
            family.sort();
        }
    }
    families.sort();
    let text = families.concat().join("\n");
    check("metrics", &text);
    server.finish().await;
}

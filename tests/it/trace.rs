//! Traces: what a collector gets over a socket, what is in the file, which requests are traced, and what a collector that is
//! down costs.

use std::net::SocketAddr;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as AttributeValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;
use roundhouse::config::ServerConfig;
use roundhouse::config::trace::TraceConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::support::client::{get, infer, infer_body, post};
use crate::support::eventually;
use crate::support::repository::Repository;
use crate::support::server::TestServer;

pub(crate) const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A collector on a socket that decodes what it is sent.
pub(crate) struct Collector {
    address: SocketAddr,
    got: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    /// The paths and content types of what it was sent.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    /// Answers each message with the next of `statuses`, and with 200 once those are used up.
    pub(crate) async fn answering(statuses: &'static [u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self { address: listener.local_addr().unwrap(), got: Arc::default(), heads: Arc::default() };
        let (got, heads) = (Arc::clone(&collector.got), Arc::clone(&collector.heads));
        let mut statuses = statuses.iter().copied();
        drop(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = BufReader::new(stream);
                let (mut head, mut length) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).await.unwrap();
                    if line.trim().is_empty() {
                        break;
                    }
                    if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    head.push_str(&line);
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).await.unwrap();
                let status = statuses.next().unwrap_or(200);
                heads.lock().push(head);
                if status == 200 {
                    got.lock().push(ExportTraceServiceRequest::decode(body.as_slice()).unwrap());
                }
                let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
            }
        }));
        collector
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.got.lock();
        let scopes = got.iter().flat_map(|message| &message.resource_spans).flat_map(|spans| &spans.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    pub(crate) async fn until(&self, spans: usize) -> Vec<Span> {
        eventually("spans at the collector", || self.spans().len() >= spans).await;
        self.spans()
    }

    pub(crate) fn options(&self) -> Vec<String> {
        let mut options = to_collector(self.address);
        options.push("opentelemetry,bsp_schedule_delay=1".to_owned());
        options
    }
}

fn to_collector(address: SocketAddr) -> Vec<String> {
    ["level=TIMESTAMPS", "rate=1", "mode=opentelemetry", "opentelemetry,resource=service.name=here"]
        .into_iter()
        .map(str::to_owned)
        .chain([format!("opentelemetry,url=http://{address}/v1/traces")])
        .collect()
}

pub(crate) fn tracing(options: Vec<String>) -> impl FnOnce(&mut ServerConfig) {
    move |config| config.trace = TraceConfig::read(&options).unwrap()
}

pub(crate) fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name} in {spans:?}"))
}

pub(crate) fn attribute(span: &Span, key: &str) -> Option<AttributeValue> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    found.and_then(|attribute| attribute.value.clone()?.value)
}

pub(crate) fn counted(server: &TestServer, outcome: &str) -> Option<f64> {
    server.metric(&format!("roundhouse_traces_total{{outcome=\"{outcome}\"}}"))
}

#[tokio::test]
async fn a_collector_gets_the_request_its_model_and_its_run_below_the_callers_span() {
    let collector = Collector::answering(&[]).await;
    let server = TestServer::start_with(Repository::gated(&["a"]), tracing(collector.options())).await;
    let mut body = infer_body(7);
    body["id"] = json!("mine");
    let request =
        post("/v2/models/a/infer", body.to_string()).header("traceparent", PARENT).header("tracestate", "k=v");
    assert_eq!(server.ask(&request).await.tag(), 7);
    let spans = collector.until(4).await;
    assert_eq!(spans.len(), 4);
    let [root, model, compute, load] = ["InferRequest", "a", "compute", "load"].map(|name| named(&spans, name));
    assert_eq!(root.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
    assert_eq!((&model.parent_span_id, &compute.parent_span_id), (&root.span_id, &model.span_id));
    assert_eq!(load.parent_span_id, root.span_id, "the request waited for its model's load");
    let trace_id = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    assert!(spans.iter().all(|span| span.trace_id == trace_id && span.trace_state == "k=v" && span.flags & 1 == 1));
    assert_eq!(attribute(model, "triton.model_name"), Some(AttributeValue::StringValue("a".into())));
    assert_eq!(attribute(model, "triton.model_version"), Some(AttributeValue::IntValue(1)));
    assert_eq!(attribute(model, "triton.request_id"), Some(AttributeValue::StringValue("mine".into())));
    let events = |span: &Span| -> Vec<String> { span.events.iter().map(|event| event.name.clone()).collect() };
    assert_eq!(
        events(root),
        ["HTTP_RECV_START", "HTTP_RECV_END", "INFER_RESPONSE_COMPLETE", "HTTP_SEND_START", "HTTP_SEND_END"]
    );
    assert_eq!(events(model), ["REQUEST_START", "QUEUE_START", "REQUEST_END"]);
    assert_eq!(events(compute), ["COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END"]);
    for span in &spans {
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        assert!(
            span.events
                .iter()
                .all(|event| { (span.start_time_unix_nano..=span.end_time_unix_nano).contains(&event.time_unix_nano) })
        );
        assert!(span.events.windows(2).all(|pair| pair[0].time_unix_nano <= pair[1].time_unix_nano), "{span:?}");
    }
    for (inner, outer) in [(model, root), (compute, model), (load, root)] {
        assert!(outer.start_time_unix_nano <= inner.start_time_unix_nano);
        assert!(inner.end_time_unix_nano <= outer.end_time_unix_nano);
    }
    let resource = collector.got.lock()[0].resource_spans[0].resource.clone().unwrap();
    let here = Some(AttributeValue::StringValue("here".into()));
    let told = resource.attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
    assert_eq!(told.value.clone().unwrap().value, here);
    let head = collector.heads.lock()[0].to_ascii_lowercase();
    assert!(head.starts_with("post /v1/traces http/1.1") && head.contains("application/x-protobuf"), "{head}");
    eventually("the trace is counted", || counted(&server, "written") == Some(1.0)).await;
    server.finish().await;
}

#[tokio::test]
async fn a_caller_that_does_not_record_is_not_traced() {
    let collector = Collector::answering(&[]).await;
    let server = TestServer::start_with(Repository::gated(&["a"]), tracing(collector.options())).await;
    let unsampled = PARENT.replace("-01", "-00");
    server.ask(&infer("a", 1).header("traceparent", &unsampled)).await.expect(200);
    server.ask(&infer("a", 2).header("traceparent", "no such thing")).await.expect(200);
    let spans = collector.until(3).await;
    assert_eq!(spans.len(), 3, "the second request alone, as one without a caller: {spans:?}");
    assert!(named(&spans, "InferRequest").parent_span_id.is_empty());
    server.finish().await;
}

#[tokio::test]
async fn a_request_that_fails_says_so_in_its_spans() {
    let collector = Collector::answering(&[]).await;
    let server = TestServer::start_with(Repository::gated(&["a"]), tracing(collector.options())).await;
    server.ask(&post("/v2/models/a/infer", r#"{"inputs":[]}"#)).await.expect(400);
    let spans = collector.until(2).await;
    let text = &named(&spans, "InferRequest").status.as_ref().unwrap().message;
    assert!(text.contains("expected 1 inputs but got 0"), "{text}");
    server.ask(&infer("nobody", 1)).await.expect(404);
    let spans = collector.until(4).await;
    assert!(spans.last().unwrap().status.as_ref().unwrap().message.contains("nobody"), "{spans:?}");
    server.finish().await;
}

#[tokio::test]
async fn spans_that_a_collector_cannot_take_for_the_moment_are_sent_again() {
    let collector = Collector::answering(&[503]).await;
    let server = TestServer::start_with(Repository::gated(&["a"]), tracing(collector.options())).await;
    server.ask(&infer("a", 1)).await.expect(200);
    collector.until(3).await;
    assert_eq!(collector.heads.lock().len(), 2);
    server.finish().await;
}

#[tokio::test]
async fn a_collector_that_is_down_costs_counted_traces_and_no_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut options = to_collector(listener.local_addr().unwrap());
    drop(listener);
    options.extend(["opentelemetry,bsp_schedule_delay=1", "opentelemetry,bsp_max_queue_size=3"].map(str::to_owned));
    let mut server = TestServer::start_with(Repository::gated(&["a"]), tracing(options)).await;
    let mut client = server.client().await;
    for tag in 0..40 {
        assert_eq!(client.ask(&infer("a", tag)).await.tag(), tag);
    }
    drop(client);
    assert!(counted(&server, "dropped") > Some(0.0));
    let inner = server.inner.clone();
    server.stop().await.unwrap();
    let total: f64 = inner
        .metrics_page()
        .lines()
        .filter_map(|line| line.strip_prefix("roundhouse_traces_total"))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(total, 40.0, "every trace is counted once");
}

#[tokio::test]
async fn what_waits_for_the_collector_is_sent_when_the_server_stops() {
    let collector = Collector::answering(&[]).await;
    let mut options = to_collector(collector.address);
    options.push("opentelemetry,bsp_schedule_delay=3600000".to_owned());
    let mut server = TestServer::start_with(Repository::gated(&["a"]), tracing(options)).await;
    server.ask(&infer("a", 1)).await.expect(200);
    assert!(collector.spans().is_empty());
    server.stop().await.unwrap();
    assert_eq!(named(&collector.spans(), "a").name, "a");
}

#[tokio::test]
async fn one_request_in_n_is_in_the_file_until_the_count_is_used_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("t.json");
    let options = vec![format!("triton,file={}", file.display())];
    let mut server = TestServer::start_with(Repository::gated(&["a", "b"]), tracing(options)).await;
    let on = json!({"trace_level": ["TIMESTAMPS", "TENSORS"], "trace_rate": "3", "trace_count": "4"});
    let answer = server.ask(&post("/v2/models/a/trace/setting", on.to_string())).await.expect(200).json();
    assert_eq!(answer["trace_level"], json!(["TIMESTAMPS", "TENSORS"]));
    assert_eq!((&answer["trace_rate"], &answer["trace_count"]), (&json!("3"), &json!("4")));
    let mut client = server.client().await;
    for tag in 1..=20 {
        assert_eq!(client.ask(&infer("a", tag)).await.tag(), tag);
        assert_eq!(client.ask(&infer("b", tag)).await.tag(), tag);
    }
    let left = client.ask(&get("/v2/models/a/trace/setting")).await.json();
    assert_eq!(left["trace_count"], "0");
    drop(client);
    server.stop().await.unwrap();
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let inputs: Vec<&Value> = rows.iter().filter(|row| row["activity"] == "TENSOR_QUEUE_INPUT").collect();
    let tags: Vec<&Value> = inputs.iter().map(|row| &row["tensor"]["data"]).collect();
    assert_eq!(tags, ["3", "6", "9", "12"]);
    assert!(rows.iter().all(|row| row["model_name"] != "b"));
    let first = inputs[0]["id"].clone();
    let moments: Vec<(&str, u64)> = rows
        .iter()
        .filter(|row| row["id"] == first && row["timestamps"].is_array())
        .map(|row| (row["timestamps"][0]["name"].as_str().unwrap(), row["timestamps"][0]["ns"].as_u64().unwrap()))
        .collect();
    let at = |name: &str| moments.iter().find(|(known, _)| *known == name).unwrap().1;
    let order = [
        "HTTP_RECV_START",
        "HTTP_RECV_END",
        "REQUEST_START",
        "COMPUTE_START",
        "COMPUTE_INPUT_END",
        "COMPUTE_OUTPUT_START",
        "COMPUTE_END",
        "REQUEST_END",
        "HTTP_SEND_START",
        "HTTP_SEND_END",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) <= at(pair[1])), "{moments:?}");
}

#[tokio::test]
async fn trace_settings_are_answered_as_triton_answers_them() {
    let options = vec!["triton,file=unused.json".to_owned()];
    let server = TestServer::start_with(Repository::gated(&["a"]), tracing(options)).await;
    let all = server.ask(&get("/v2/trace/setting")).await.expect(200);
    assert_eq!(
        all.text(),
        r#"{"trace_level":["OFF"],"trace_rate":"1000","trace_count":"-1","log_frequency":"0","trace_file":"unused.json","trace_mode":"triton"}"#
    );
    let set = |path: &str, body: Value| post(&format!("/v2/{path}"), body.to_string());
    let model = "models/a/trace/setting";
    server.ask(&set(model, json!({"trace_rate": "7"}))).await.expect(200);
    let both = server.ask(&set("trace/setting", json!({"trace_rate": "11", "trace_count": "3"}))).await.expect(200);
    assert_eq!(both.json()["trace_rate"], "11");
    let own = server.ask(&get("/v2/models/a/trace/setting")).await.expect(200).json();
    assert_eq!((&own["trace_rate"], &own["trace_count"]), (&json!("7"), &json!("3")));
    let cleared = server.ask(&set(model, json!({"trace_rate": null}))).await.expect(200).json();
    assert_eq!(cleared["trace_rate"], "11");
    for (path, body, status, text) in [
        (
            "trace/setting",
            json!({"trace_file": "x"}),
            501,
            "trace file location can not be updated through network protocol",
        ),
        ("trace/setting", json!({"trace_mode": "triton"}), 501, "trace mode can not be updated"),
        ("trace/setting", json!({"trace_rat": "5"}), 400, "'trace_rat'"),
        ("trace/setting", json!({"trace_rate": 5}), 400, "attempt to access JSON non-string as string"),
        ("trace/setting", json!({"trace_level": "OFF"}), 400, "attempt to access JSON non-array as array"),
        ("trace/setting", json!({"trace_level": ["MAX"]}), 400, "'MAX'"),
        (model, json!({"trace_count": "-2"}), 400, "Expecting value >= -1, got:-2"),
        ("models/nope/trace/setting", json!({}), 400, "Request for unknown model : nope"),
    ] {
        let refused = server.ask(&set(path, body.clone())).await.expect(status);
        assert!(refused.error().contains(text), "{body}: {}", refused.error());
    }
    server.ask(&get("/v2/models/nope/trace/setting")).await.expect(400);
    server.ask(&get("/v2/models/a/versions/1/trace/setting")).await.expect(404);
    let extensions = server.ask(&get("/v2")).await.json()["extensions"].clone();
    assert!(["trace", "logging"].iter().all(|name| extensions.as_array().unwrap().contains(&json!(name))));
    server.finish().await;
}

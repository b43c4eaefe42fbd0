//! Traces from the request to what is written, without a server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::activity::Activity;
use super::context::Caller;
use super::record::{Execution, TENSOR_BYTES};
use super::settings::TraceUpdate;
use super::{TraceCounts, Tracer};
use crate::config::trace::TraceConfig;
use crate::error::Error;
use crate::tensor::{Shape, Tensor};

fn tracer(folder: &tempfile::TempDir, options: &[&str]) -> (Tracer, super::Writer) {
    let file = format!("triton,file={}", folder.path().join("t.json").display());
    let options: Vec<&str> = options.iter().copied().chain([file.as_str()]).collect();
    Tracer::new(&TraceConfig::read(&options).unwrap()).unwrap()
}

fn file(folder: &tempfile::TempDir, name: &str) -> Vec<Value> {
    let text = std::fs::read(folder.path().join(name)).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// A request from its arrival to its end.
fn request(tracer: &Tracer, id: &str) {
    let arrived = Instant::now();
    let Some(trace) = tracer.sample("m", || None, arrived) else { return };
    trace.mark(Activity::HttpRecvStart, arrived);
    trace.asks(&Arc::from("m"), 3, &id.into(), arrived);
    let start = Instant::now();
    let times =
        Execution { queued: Some(arrived), start, compute_start: start, compute_end: start, end: Instant::now() };
    trace.executed(&times);
}

#[tokio::test]
async fn a_trace_is_written_in_tritons_form() {
    let folder = tempfile::tempdir().unwrap();
    let (tracer, writer) = tracer(&folder, &["rate=1", "level=TIMESTAMPS", "level=TENSORS"]);
    let trace = tracer.sample("m", || None, Instant::now()).unwrap();
    trace.mark(Activity::HttpRecvStart, Instant::now());
    trace.asks(&Arc::from("m\"odel"), 3, &"r\n1".into(), Instant::now());
    trace.tensor(
        Activity::TensorQueueInput,
        "x",
        &Tensor::from_vec(Shape::new(&[1, 3]), vec![1.5_f32, 2.0, -3.0]).unwrap(),
    );
    let strings = Tensor::from_strings(Shape::new(&[2]), &["a\"", "b"]).unwrap();
    trace.tensor(Activity::TensorBackendOutput, "y", &strings);
    let long = Tensor::from_vec(Shape::new(&[40_000]), vec![7_u8; 40_000]).unwrap();
    trace.tensor(Activity::TensorBackendOutput, "z", &long);
    drop(trace);
    tracer.stop();
    writer.run().await;
    let rows = file(&folder, "t.json");
    assert_eq!(rows[0]["timestamps"][0]["name"], "HTTP_RECV_START");
    assert_eq!(rows[1]["model_name"], "m\"odel");
    assert_eq!((&rows[1]["model_version"], &rows[1]["request_id"]), (&3.into(), &"r\n1".into()));
    assert_eq!(rows[2]["timestamps"][0]["name"], "REQUEST_START");
    let tensors: Vec<&Value> = rows.iter().filter(|row| row["tensor"].is_object()).collect();
    assert_eq!(tensors[0]["activity"], "TENSOR_QUEUE_INPUT");
    assert_eq!(
        tensors[0]["tensor"],
        serde_json::json!({"name": "x", "data": "1.5,2,-3", "shape": "1,3", "dtype": "FP32"})
    );
    assert_eq!(tensors[1]["tensor"]["data"], "\"a\\\"\",\"b\"");
    assert_eq!(tensors[2]["tensor"]["truncated_from_bytes"], 40_000);
    assert_eq!(tensors[2]["tensor"]["data"].as_str().unwrap().split(',').count(), TENSOR_BYTES);
    assert_eq!(tracer.counts(), TraceCounts { written: 1, dropped: 0, failed: 0 });
}

#[tokio::test]
async fn numbered_files_take_as_many_traces_as_the_log_frequency_says() {
    let folder = tempfile::tempdir().unwrap();
    let (tracer, writer) = tracer(&folder, &["rate=2", "level=TIMESTAMPS", "triton,log-frequency=2"]);
    (1..=10).for_each(|id| request(&tracer, &id.to_string()));
    tracer.stop();
    writer.run().await;
    let ids = |name: &str| -> Vec<String> {
        file(&folder, name).iter().filter_map(|row| row["request_id"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(ids("t.json.0"), ["2", "4"]);
    assert_eq!(ids("t.json.1"), ["6", "8"]);
    assert_eq!(ids("t.json.2"), ["10"]);
    assert!(!folder.path().join("t.json").exists());
}

#[tokio::test]
async fn the_file_is_a_whole_array_after_every_write() {
    let folder = tempfile::tempdir().unwrap();
    let (tracer, writer) = tracer(&folder, &["rate=1", "level=TIMESTAMPS"]);
    let writing = tokio::spawn(writer.run());
    for count in 1..=3 {
        request(&tracer, &count.to_string());
        while tracer.counts().written < count {
            tokio::task::yield_now().await;
        }
        let rows = file(&folder, "t.json");
        let starts = rows.iter().filter(|row| row["timestamps"][0]["name"] == "COMPUTE_START").count();
        assert_eq!(starts as u64, count);
    }
    tracer.stop();
    writing.await.unwrap();
}

#[tokio::test]
async fn a_step_of_an_ensemble_names_the_part_that_asked_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (tracer, writer) = tracer(&folder, &["rate=1", "level=TIMESTAMPS"]);
    let whole = tracer.sample("e", || None, Instant::now()).unwrap();
    whole.asks(&Arc::from("e"), 1, &"".into(), Instant::now());
    let step = whole.child();
    step.asks(&Arc::from("s"), 1, &"".into(), Instant::now());
    drop((whole, step));
    tracer.stop();
    writer.run().await;
    let rows = file(&folder, "t.json");
    let model = |name: &str| rows.iter().find(|row| row["model_name"] == name).unwrap();
    assert_eq!(model("s")["parent_id"], model("e")["id"]);
    assert_eq!(model("e").get("parent_id"), None);
}

#[tokio::test]
async fn what_comes_faster_than_it_is_written_is_dropped_and_counted() {
    let options = ["rate=1", "level=TIMESTAMPS", "mode=opentelemetry", "opentelemetry,bsp_max_queue_size=4"];
    let (tracer, writer) = Tracer::new(&TraceConfig::read(&options).unwrap()).unwrap();
    (0..10).for_each(|id| request(&tracer, &id.to_string()));
    assert_eq!(tracer.counts().dropped, 6);
    drop(writer);
    request(&tracer, "after the end");
    assert_eq!(tracer.counts().dropped, 7);
}

#[tokio::test]
async fn a_file_that_cannot_be_written_costs_its_traces_and_nothing_else() {
    let options = ["rate=1", "level=TIMESTAMPS", "triton,file=/nowhere/at/all/t.json"];
    let (tracer, writer) = Tracer::new(&TraceConfig::read(&options).unwrap()).unwrap();
    request(&tracer, "1");
    tracer.stop();
    writer.run().await;
    assert_eq!(tracer.counts(), TraceCounts { written: 0, dropped: 0, failed: 1 });
}

#[test]
fn a_caller_is_followed_whatever_the_rate_in_mode_opentelemetry_alone() {
    let caller = |sampled| move || Some(Caller { trace_id: 5, span_id: 6, sampled, state: String::new() });
    let options = ["rate=0", "level=TIMESTAMPS", "mode=opentelemetry"];
    let (tracer, _writer) = Tracer::new(&TraceConfig::read(&options).unwrap()).unwrap();
    let now = Instant::now();
    assert_eq!(tracer.sample("m", caller(true), now).map(|trace| trace.ids().0), Some(5));
    assert!(tracer.sample("m", caller(false), now).is_none());
    assert!(tracer.sample("m", || None, now).is_none());
    let folder = tempfile::tempdir().unwrap();
    let (tracer, _writer) = self::tracer(&folder, &["rate=2", "level=TIMESTAMPS"]);
    assert!(tracer.sample("m", caller(true), now).is_none());
    assert_ne!(tracer.sample("m", caller(false), now).map(|trace| trace.ids().0), Some(5));
}

#[test]
fn nothing_is_asked_of_the_caller_while_tracing_is_off() {
    let (tracer, _writer) = Tracer::new(&TraceConfig::default()).unwrap();
    assert!(tracer.sample("m", || panic!("asked"), Instant::now()).is_none());
    let folder = tempfile::tempdir().unwrap();
    let (tracer, _writer) = self::tracer(&folder, &["rate=1"]);
    let mut on = TraceUpdate::default();
    on.take("trace_level", Some(&["TIMESTAMPS"])).unwrap();
    tracer.update(Some("m"), &on).unwrap();
    assert!(tracer.sample("other", || None, Instant::now()).is_none());
    assert!(tracer.sample("m", || None, Instant::now()).is_some());
}

#[test]
fn spans_keep_their_parents_and_their_order() {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use prost::Message;
    let options = ["rate=1", "level=TIMESTAMPS", "mode=opentelemetry", "opentelemetry,resource=a=b"];
    let (tracer, mut writer) = Tracer::new(&TraceConfig::read(&options).unwrap()).unwrap();
    let caller = Caller { trace_id: 1 << 100, span_id: 77, sampled: true, state: "k=v".into() };
    let trace = tracer.sample("m", || Some(caller), Instant::now()).unwrap();
    trace.loaded("disk", Duration::from_millis(1));
    trace.asks(&Arc::from("m"), 2, &"id".into(), Instant::now());
    let at = Instant::now();
    trace.executed(&Execution { queued: None, start: at, compute_start: at, compute_end: at, end: at });
    trace.failed(&Error::internal("broken"));
    drop(trace);
    let record = writer.receiver_for_tests().try_recv().unwrap();
    let messages = super::otlp::messages(&[record], &[], 2, &tracer.0.sink.clock);
    let decoded: Vec<_> =
        messages.iter().map(|message| ExportTraceServiceRequest::decode(message.as_slice()).unwrap()).collect();
    assert_eq!(decoded.len(), 2, "four spans, two a message");
    let spans: Vec<_> = decoded.iter().flat_map(|one| one.resource_spans[0].scope_spans[0].spans.clone()).collect();
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["InferRequest", "m", "compute", "load"]);
    assert_eq!(spans[0].parent_span_id, 77_u64.to_be_bytes());
    assert_eq!(spans[1].parent_span_id, spans[0].span_id);
    assert_eq!(spans[2].parent_span_id, spans[1].span_id);
    assert_eq!(spans[3].parent_span_id, spans[0].span_id);
    assert!(spans.iter().all(|span| span.trace_id == (1_u128 << 100).to_be_bytes() && span.trace_state == "k=v"));
    assert_eq!(spans[1].status.as_ref().unwrap().message, "broken");
}

//! Decoupled models: answers as they come, readers that are slow or leave, and who counts what.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use roundhouse::backend::gated::{Fault, Gated, Step};
use roundhouse::backend::placement::Placement;
use roundhouse::backend::{Backend, ModelFiles};
use roundhouse::error::{Error, ErrorKind};
use roundhouse::inference::{DeviceId, InferenceRequest, NamedTensor, NamedTensors};
use roundhouse::metrics::statistics::{FailureReason, ModelStatistics};
use roundhouse::model_config::{UnknownFields, parse};
use roundhouse::scheduler::answer::{Answer, WAITING_ANSWERS};
use roundhouse::scheduler::executor::Executor;
use roundhouse::scheduler::queue::{Member, ModelQueue, Scheduling};
use roundhouse::scheduler::stream::AnswerStream;
use roundhouse::scheduler::work::Work;
use roundhouse::server::responses::Responses;
use roundhouse::tensor::{Shape, Tensor};
use serde_json::json;

use crate::support::client::{Request, get, infer, load, post, unload};
use crate::support::repository::{ONE_INSTANCE, Repository, config};
use crate::support::server::TestServer;
use crate::support::{eventually, within};

const DECOUPLED: &str = "model_transaction_policy { decoupled: true }";

/// A decoupled model `a` with one instance, and an ordinary one.
fn repository() -> Repository {
    Repository::gated(&["b"]).with("a", "gated", &format!("{ONE_INSTANCE} {DECOUPLED}"))
}

async fn started() -> TestServer {
    TestServer::start_with(repository(), |config| config.executor_threads = 1).await
}

fn generate_stream(values: &[i32]) -> Request {
    post("/v2/models/a/generate_stream", json!({ "x": values }).to_string())
}

fn generate(values: &[i32]) -> Request {
    post("/v2/models/a/generate", json!({ "x": values }).to_string())
}

fn event(value: i32) -> String {
    format!("data: {{\"model_name\":\"a\",\"model_version\":\"1\",\"y\":{value}}}\n\n")
}

fn failures(server: &TestServer, reason: &str) -> Option<f64> {
    server.metric(&format!("nv_inference_request_failure{{model=\"a\",version=\"1\",reason=\"{reason}\"}}"))
}

fn successes(server: &TestServer) -> Option<f64> {
    server.metric("nv_inference_request_success{model=\"a\",version=\"1\"}")
}

fn numbers(count: usize) -> Vec<i32> {
    (0..i32::try_from(count).unwrap()).collect()
}

#[tokio::test]
async fn each_answer_is_an_event_that_is_sent_when_it_comes() {
    let server = started().await;
    server.gated.close("a", Step::Answer);
    let mut client = server.send(&generate_stream(&[7, -8, 9])).await;
    for value in [7, -8, 9] {
        server.gated.admit("a", Step::Answer, 1);
        if value == 7 {
            let head = client.receive_head().await.expect(200);
            assert_eq!(head.header("content-type"), Some("text/event-stream; charset=utf-8"));
            assert_eq!((head.header("transfer-encoding"), head.header("content-length")), (Some("chunked"), None));
            assert_eq!(head.header("x-model-state"), Some("disk"));
        }
        assert_eq!(client.chunk().await, Some(event(value)));
    }
    assert_eq!(client.chunk().await, None);
    // The connection goes on.
    assert_eq!(client.ask(&generate_stream(&[])).await.expect(200).body, b"");
    assert_eq!(successes(&server), Some(2.0));
    let stats = server.ask(&get("/v2/models/a/stats")).await.json();
    assert_eq!(
        (&stats["model_stats"][0]["inference_count"], &stats["model_stats"][0]["execution_count"]),
        (&json!(2), &json!(2))
    );
    server.finish().await;
}

#[tokio::test]
async fn a_model_with_one_answer_streams_one_event() {
    let server = started().await;
    let one = server.ask(&post("/v2/models/b/generate_stream", json!({"x": 5}).to_string())).await.expect(200);
    assert_eq!(one.text(), event(5).replace("\"a\"", "\"b\""));
    server.finish().await;
}

#[tokio::test]
async fn an_error_before_the_first_answer_keeps_its_status_and_one_after_it_is_an_event() {
    let server = started().await;
    let fault = || Fault::Error(Error::new(ErrorKind::BackendFailed, "no more words"));
    let error = "data: {\"error\":\"no more words\",\"code\":\"backend_failed\"}\n\n";
    server.gated.fail_next("a", Step::Execute, fault());
    let early = server.ask(&generate_stream(&[1, 2])).await.expect(500);
    assert_eq!((early.text(), early.header("content-type")), (error, Some("text/event-stream; charset=utf-8")));
    server.gated.close("a", Step::Answer);
    let mut client = server.send(&generate_stream(&[1, 2])).await;
    server.gated.admit("a", Step::Answer, 1);
    client.receive_head().await.expect(200);
    assert_eq!(client.chunk().await, Some(event(1)));
    server.gated.fail_next("a", Step::Answer, fault());
    server.gated.open("a", Step::Answer);
    assert_eq!(client.chunk().await.as_deref(), Some(error));
    assert_eq!(client.chunk().await, None);
    assert_eq!((failures(&server, "BACKEND"), successes(&server)), (Some(2.0), Some(0.0)));
    server.finish().await;
}

#[tokio::test]
async fn a_panic_in_mid_stream_is_its_last_event_and_the_next_request_works() {
    let server = started().await;
    server.gated.close("a", Step::Answer);
    let mut client = server.send(&generate_stream(&[1, 2])).await;
    server.gated.admit("a", Step::Answer, 1);
    client.receive_head().await.expect(200);
    assert_eq!(client.chunk().await, Some(event(1)));
    server.gated.fail_next("a", Step::Answer, Fault::Panic("an index is out of bounds"));
    server.gated.open("a", Step::Answer);
    let error = client.chunk().await.unwrap();
    assert!(error.contains("the model instance panicked"), "{error}");
    assert_eq!(client.chunk().await, None);
    assert_eq!(server.ask(&generate_stream(&[3])).await.expect(200).text(), event(3));
    assert_eq!(server.gated.counts("a").live_instances, 1);
    assert_eq!((failures(&server, "BACKEND"), successes(&server)), (Some(1.0), Some(1.0)));
    server.finish().await;
}

#[tokio::test]
async fn where_there_is_room_for_one_answer_many_are_refused_in_tritons_words() {
    let server = started().await;
    assert_eq!(server.ask(&generate(&[7])).await.expect(200).json()["y"], 7);
    for values in [&[][..], &[1, 2], &[1, 2, 3]] {
        let wrong = server.ask(&generate(values)).await.expect(500).error();
        assert!(wrong.starts_with("generate expects model to produce exactly 1 response"), "{wrong}");
    }
    let text = "HTTP end point doesn't support models with decoupled transaction policy";
    assert_eq!(server.ask(&infer("a", 1)).await.expect(501).error(), text);
    let invoked = server
        .sagemaker()
        .await
        .ask(&post("/models/a/invoke", crate::support::client::infer_body(1).to_string()))
        .await;
    assert!(invoked.status == 501 || invoked.status == 404, "{}", invoked.status);
    server.finish().await;
}

#[tokio::test]
async fn the_configuration_says_that_a_model_is_decoupled() {
    let server = started().await;
    server.ask(&load("a")).await.expect(200);
    let config = server.ask(&get("/v2/models/a/config")).await.expect(200).json();
    assert_eq!(config["model_transaction_policy"], json!({"decoupled": true}));
    server.ask(&get("/v2/models/a")).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_model_and_is_counted_once() {
    let server = started().await;
    server.gated.close("a", Step::Answer);
    let mut client = server.send(&generate_stream(&numbers(100))).await;
    server.gated.admit("a", Step::Answer, 1);
    client.receive_head().await.expect(200);
    assert_eq!(client.chunk().await, Some(event(0)));
    drop(client);
    eventually("the leaver is counted", || failures(&server, "CANCELED") == Some(1.0)).await;
    server.gated.open("a", Step::Answer);
    let counts = server.until("a", |counts| counts.executions_ended == 1).await;
    assert_eq!(counts.answers, 2, "it is told at its next answer");
    assert_eq!(server.ask(&generate_stream(&[3])).await.expect(200).text(), event(3));
    assert_eq!(
        (failures(&server, "CANCELED"), failures(&server, "BACKEND"), successes(&server)),
        (Some(1.0), Some(0.0), Some(1.0))
    );
    server.finish().await;
}

#[tokio::test]
async fn a_stream_holds_none_of_the_threads_of_its_device() {
    let server = TestServer::start_with(
        Repository::gated(&["b"]).with(
            "a",
            "gated",
            &format!("instance_group [ {{ count: 3 kind: KIND_CPU }} ] {DECOUPLED}"),
        ),
        |config| config.executor_threads = 1,
    )
    .await;
    server.gated.close("a", Step::Answer);
    let mut streams = Vec::new();
    for value in 0..4 {
        streams.push(server.send(&generate_stream(&[value])).await);
    }
    // As many as there are instances.
    server.until("a", |counts| counts.executions_begun == 3).await;
    for tag in 0..3 {
        assert_eq!(server.ask(&infer("b", tag)).await.tag(), tag);
    }
    server.gated.open("a", Step::Answer);
    for client in &mut streams {
        client.receive().await.expect(200);
    }
    assert_eq!(server.gated.counts("a").most_at_once, 3);
    // And afterwards there is one thread, as before.
    server.gated.close("b", Step::Execute);
    server.ask(&load("b")).await.expect(200);
    let mut waiting = vec![server.send(&infer("b", 1)).await, server.send(&infer("b", 2)).await];
    let before = server.gated.counts("b").executions_ended;
    server.until("b", |counts| counts.executions_begun > before).await;
    server.gated.open("b", Step::Execute);
    for client in &mut waiting {
        client.receive().await.expect(200);
    }
    server.finish().await;
}

/// The answers of `a` to so many numbers, read by nobody yet.
async fn open_stream(server: &TestServer, count: usize) -> Responses {
    let handle = server.inner.model("a", None, None).await.unwrap();
    let request = InferenceRequest { inputs: inputs(count), ..InferenceRequest::default() };
    server.inner.infer_stream(handle, request, Instant::now()).await.unwrap()
}

fn inputs(count: usize) -> NamedTensors {
    let tensor = Tensor::from_vec(Shape::new(&[i64::try_from(count).unwrap()]), numbers(count)).unwrap();
    std::iter::once(NamedTensor { name: "x".into(), tensor }).collect()
}

#[tokio::test]
async fn a_slow_reader_has_so_many_answers_waiting_and_no_more() {
    let server = started().await;
    let mut stream = open_stream(&server, 100).await;
    server.until("a", |counts| counts.answers == WAITING_ANSWERS + 1).await;
    for tag in 0..20 {
        assert_eq!(server.ask(&infer("b", tag)).await.tag(), tag);
    }
    assert_eq!(server.gated.counts("a").answers, WAITING_ANSWERS + 1);
    let mut read = Vec::new();
    while let Some(answer) = within("an answer", stream.next()).await {
        let answer = answer.unwrap();
        read.extend(answer.outputs.iter().flat_map(|output| output.tensor.elements::<i32>().unwrap().to_vec()));
        assert_eq!(answer.last, answer.outputs.is_empty());
    }
    assert_eq!(read, numbers(100));
    assert_eq!(successes(&server), Some(1.0));
    server.finish().await;
}

#[tokio::test]
async fn what_is_not_read_yet_does_not_keep_a_model_in_memory() {
    let server = started().await;
    let mut stream = open_stream(&server, 5).await;
    server.until("a", |counts| counts.executions_ended == 1).await;
    server.ask(&unload("a")).await.expect(200);
    assert_eq!(server.gated.counts("a").live_models, 0);
    let answers: Vec<_> = within("all answers", stream.by_ref().collect::<Vec<_>>()).await;
    assert_eq!((answers.len(), answers.iter().all(Result::is_ok)), (6, true));
    drop(stream);
    server.finish().await;
}

#[tokio::test]
async fn a_reader_that_leaves_after_the_end_is_not_counted_again() {
    let server = started().await;
    let stream = open_stream(&server, 3).await;
    eventually("it is counted", || successes(&server) == Some(1.0)).await;
    drop(stream);
    assert_eq!(failures(&server, "CANCELED"), Some(0.0));
    server.finish().await;
}

#[tokio::test]
async fn an_unload_in_mid_stream_waits_for_its_end() {
    let server = started().await;
    server.gated.close("a", Step::Answer);
    let mut client = server.send(&generate_stream(&[1, 2])).await;
    server.gated.admit("a", Step::Answer, 1);
    client.receive_head().await.expect(200);
    let mut unloading = server.send(&unload("a")).await;
    assert_eq!(client.chunk().await, Some(event(1)));
    assert_eq!(server.gated.counts("a").live_models, 1);
    server.gated.open("a", Step::Answer);
    assert_eq!(client.chunk().await, Some(event(2)));
    assert_eq!(client.chunk().await, None);
    unloading.receive().await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn a_stream_in_flight_ends_well_while_draining() {
    let mut server = started().await;
    server.gated.close("a", Step::Answer);
    let mut client = server.send(&generate_stream(&[1, 2])).await;
    server.gated.admit("a", Step::Answer, 1);
    client.receive_head().await.expect(200);
    assert_eq!(client.chunk().await, Some(event(1)));
    server.shutdown.cancel();
    eventually("the server drains", || server.inner.is_draining()).await;
    server.gated.open("a", Step::Answer);
    assert_eq!(client.chunk().await, Some(event(2)));
    assert_eq!(client.chunk().await, None);
    assert!(client.try_receive().await.is_none(), "the connection is closed after its last answer");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_deadline_is_that_of_the_first_answer() {
    let server = started().await;
    server.ask(&load("a")).await.expect(200);
    server.gated.close("a", Step::Answer);
    let late = server.ask(&generate_stream(&[1]).header("x-request-timeout-ms", 2)).await.expect(504);
    assert!(late.text().starts_with("data: {\"error\":"), "{}", late.text());
    // Behind it, in the queue.
    server.ask(&generate_stream(&[2]).header("x-request-timeout-ms", 2)).await.expect(504);
    assert_eq!(failures(&server, "REJECTED"), Some(2.0));
    server.gated.open("a", Step::Answer);
    server.until("a", |counts| counts.executions_ended == counts.executions_begun).await;
    server.gated.close("a", Step::Answer);
    let mut client = server.send(&generate_stream(&[3, 4]).header("x-request-timeout-ms", 30_000)).await;
    server.gated.admit("a", Step::Answer, 1);
    client.receive_head().await.expect(200);
    assert_eq!(client.chunk().await, Some(event(3)));
    server.gated.open("a", Step::Answer);
    assert_eq!(client.chunk().await, Some(event(4)));
    assert_eq!((failures(&server, "REJECTED"), failures(&server, "BACKEND")), (Some(2.0), Some(0.0)));
    server.finish().await;
}

// === SageMaker ===

fn endpoint(stream: bool, values: &[i32]) -> Request {
    let path = if stream { "/endpoints/ep/invocations-response-stream" } else { "/endpoints/ep/invocations" };
    post(path, json!({ "x": values }).to_string()).header("x-amzn-sagemaker-target-model", "a")
}

fn events_of_sagemaker() -> Repository {
    let parameter = "parameters { key: \"inference_type\" value { string_value: \"generate_stream\" } }";
    Repository::empty().with("a", "gated", &format!("{ONE_INSTANCE} {DECOUPLED} {parameter}"))
}

#[tokio::test]
async fn invocations_stream_as_they_come_in_plain_and_in_frames() {
    let server = TestServer::start(events_of_sagemaker()).await;
    for stream in [false, true] {
        server.gated.close("a", Step::Answer);
        let mut client = server.sagemaker().await;
        client.send(&endpoint(stream, &[1, 2])).await;
        server.gated.admit("a", Step::Answer, 1);
        let head = client.receive_head().await.expect(200);
        let name = if stream { "x-amzn-sagemaker-content-type" } else { "content-type" };
        assert_eq!(head.header(name), Some("text/event-stream; charset=utf-8"));
        for value in [1, 2] {
            let chunk = within("a chunk", client.raw_chunk()).await;
            let text = String::from_utf8_lossy(&chunk);
            assert!(text.contains(&event(value)), "{text}");
            assert_eq!(text.contains("PayloadPart"), stream);
            server.gated.open("a", Step::Answer);
        }
        assert!(client.raw_chunk().await.is_empty());
    }
    server.finish().await;
}

#[tokio::test]
async fn an_error_in_mid_stream_is_the_exception_that_sagemakers_clients_know() {
    let server = TestServer::start(events_of_sagemaker()).await;
    server.gated.close("a", Step::Answer);
    let mut client = server.sagemaker().await;
    client.send(&endpoint(true, &[1, 2])).await;
    server.gated.admit("a", Step::Answer, 1);
    client.receive_head().await.expect(200);
    client.raw_chunk().await;
    server.gated.fail_next("a", Step::Answer, Fault::Error(Error::new(ErrorKind::BackendFailed, "no more words")));
    server.gated.open("a", Step::Answer);
    let chunk = client.raw_chunk().await;
    let text = String::from_utf8_lossy(&chunk);
    assert!(text.contains("ModelStreamError") && text.contains("no more words"), "{text}");
    assert!(client.raw_chunk().await.is_empty());
    server.finish().await;
}

// === the queue alone ===

struct Bench {
    gated: Gated,
    queue: Arc<ModelQueue>,
    statistics: Arc<ModelStatistics>,
    _executor: Executor,
}

/// A decoupled model whose readers may be behind for so long while others wait.
fn bench(patience: Duration) -> Bench {
    let gated = Gated::default();
    let files = ModelFiles {
        directory: ".".into(),
        version_directory: ".".into(),
        version: 1,
        model_file: None,
        derived: None,
    };
    let config = parse(&config("a", "gated", DECOUPLED), UnknownFields::Deny).unwrap().config;
    let model = gated.load(&files, &config, &Placement::of(DeviceId::Cpu)).unwrap().into();
    let executor = Executor::start(DeviceId::Cpu, 1, 1).unwrap();
    let statistics = Arc::new(ModelStatistics::default());
    let member = Member { model, instances: 1, executor: executor.handle(), share: Arc::default() };
    let scheduling = Scheduling { patience, ..Scheduling::of(&config, 8).unwrap() };
    let queue = ModelQueue::new(vec![member], scheduling, Arc::clone(&statistics)).unwrap();
    Bench { gated, queue, statistics, _executor: executor }
}

impl Bench {
    fn ask(&self, count: usize) -> AnswerStream {
        let work = Work {
            inputs: inputs(count),
            outputs: std::iter::once(0).collect(),
            batch_size: 1,
            deadline: None,
            priority: 0,
            arrived: Instant::now(),
            sequence: None,
            id: "".into(),
            trace: None,
        };
        self.queue.infer_stream(work, ()).unwrap()
    }
}

async fn read(mut stream: AnswerStream) -> Vec<Result<Answer, Error>> {
    let all = async {
        let mut answers = Vec::new();
        while let Some(answer) =
            std::future::poll_fn(|context| Pin::new(&mut stream).get_mut().poll_next(context)).await
        {
            answers.push(answer);
        }
        answers
    };
    within("all answers", all).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_behind_is_waited_for_as_long_as_nobody_else_wants_the_model() {
    let bench = bench(Duration::ZERO);
    let slow = bench.ask(100);
    within("it is behind", bench.gated.until("a", |counts| counts.answers == WAITING_ANSWERS + 1)).await;
    let answers = read(slow).await;
    assert_eq!((answers.len(), answers.iter().all(Result::is_ok)), (101, true));
    assert_eq!(bench.statistics.success.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_behind_is_cut_where_others_wait_and_reads_what_it_has() {
    let bench = bench(Duration::from_millis(1));
    let slow = bench.ask(100);
    within("it is behind", bench.gated.until("a", |counts| counts.answers == WAITING_ANSWERS + 1)).await;
    let next = read(bench.ask(3)).await;
    assert_eq!((next.len(), next.iter().all(Result::is_ok)), (4, true));
    let mut answers = read(slow).await;
    let last = answers.pop().unwrap().unwrap_err();
    assert_eq!(last.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(last.to_string(), "no answer was read for 0.001 s while others waited for the model: the stream is cut");
    assert_eq!((answers.len(), answers.iter().all(Result::is_ok)), (WAITING_ANSWERS, true));
    assert_eq!((bench.statistics.success.count(), bench.statistics.fail.count()), (1, 1));
    assert_eq!(bench.statistics.failures(FailureReason::Canceled), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_behind_does_not_hold_up_an_unload() {
    let bench = bench(Duration::from_millis(1));
    let slow = bench.ask(100);
    within("it is behind", bench.gated.until("a", |counts| counts.answers == WAITING_ANSWERS + 1)).await;
    bench.queue.hasten();
    drop(within("the queue closes", bench.queue.close()).await);
    assert_eq!(bench.gated.alive(), 0);
    assert_eq!(read(slow).await.len(), WAITING_ANSWERS + 1);
}

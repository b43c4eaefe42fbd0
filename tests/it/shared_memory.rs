//! Shared memory over HTTP, as clients on the same machine use it. The unmodified clients do it in `tests/python`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use roundhouse::backend::gated::Step;
use serde_json::{Value, json};

use crate::support::client::{Request, get, post};
use crate::support::repository::{ONE_INSTANCE, Repository};
use crate::support::server::TestServer;

/// A POSIX shared memory object that goes with the test.
pub(crate) struct Object {
    pub(crate) key: String,
    pub(crate) path: PathBuf,
}

impl Object {
    pub(crate) fn of(numbers: &[i32]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let key = format!("/rh-it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(format!("/dev/shm{key}"));
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        std::fs::write(&path, bytes).unwrap();
        Self { key, path }
    }

    pub(crate) fn numbers(&self) -> Vec<i32> {
        let bytes = std::fs::read(&self.path).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes)).collect()
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

async fn start() -> TestServer {
    let repository = Repository::gated(&[]).with("a", "gated", ONE_INSTANCE).with("same", "identity", "");
    TestServer::start_with(repository, |config| config.allow_client_shm = true).await
}

fn register(name: &str, object: &Object, offset: u64, byte_size: u64) -> Request {
    let body = json!({"key": object.key, "offset": offset, "byte_size": byte_size});
    post(&format!("/v2/systemsharedmemory/region/{name}/register"), body.to_string())
}

fn place(region: &str, offset: u64, byte_size: u64) -> Value {
    json!({
        "shared_memory_region": region,
        "shared_memory_offset": offset,
        "shared_memory_byte_size": byte_size,
    })
}

fn infer(model: &str, count: u64, input: &Value, output: &Value) -> Request {
    let body = json!({
        "inputs": [{"name": "x", "datatype": "INT32", "shape": [count], "parameters": input}],
        "outputs": [{"name": "y", "parameters": output}],
    });
    post(&format!("/v2/models/{model}/infer"), body.to_string())
}

#[tokio::test]
async fn an_input_is_read_and_an_output_written_without_either_on_the_wire() {
    let server = start().await;
    let object = Object::of(&[1, 2, 3, 4, 0, 0, 0]);
    server.ask(&register("r", &object, 4, 24)).await.expect(200);
    let answer = server.ask(&infer("same", 2, &place("r", 4, 8), &place("r", 12, 12))).await.expect(200).json();
    let expected = json!([{
        "name": "y",
        "datatype": "INT32",
        "shape": [2],
        "parameters": {"shared_memory_region": "r", "shared_memory_offset": 12, "shared_memory_byte_size": 8},
    }]);
    assert_eq!(answer["outputs"], expected);
    assert_eq!(object.numbers(), [1, 2, 3, 4, 3, 4, 0]);
    // Over its own input.
    server.ask(&infer("same", 3, &place("r", 0, 12), &place("r", 4, 12))).await.expect(200);
    assert_eq!(object.numbers(), [1, 2, 2, 3, 4, 4, 0]);
    server.finish().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_writes_nothing() {
    let server = start().await;
    let object = Object::of(&[1, 2, 3, 4]);
    server.ask(&register("r", &object, 0, 16)).await.expect(200);
    let whole = place("r", 0, 16);
    for (input, output, status, text) in [
        (&whole, place("r", 0, 12), 400, "(12 bytes) should be at least 16 bytes to hold the results"),
        (&whole, place("r", 16, 4), 400, "Invalid offset for shared memory region: 'r'"),
        (&whole, place("r", 8, 12), 400, "Invalid offset + byte size for shared memory region: 'r'"),
        (&whole, place("r", 8, u64::MAX), 400, "Invalid offset + byte size for shared memory region: 'r'"),
        (&whole, place("s", 0, 16), 404, "Unable to find shared memory region: 's'"),
        (&place("r", u64::MAX, 16), whole.clone(), 400, "Invalid offset for shared memory region: 'r'"),
        (&place("r", 0, 12), whole.clone(), 400, "Expected 16, got 12"),
        (&place("s", 0, 16), whole.clone(), 404, "Unable to find shared memory region: 's'"),
    ] {
        let answer = server.ask(&infer("same", 4, input, &output)).await.expect(status);
        assert!(answer.error().contains(text), "{}", answer.error());
    }
    std::fs::OpenOptions::new().write(true).open(&object.path).unwrap().set_len(12).unwrap();
    for (count, input, output) in [(4, &whole, &place("r", 0, 4)), (1, &place("r", 0, 4), &place("r", 12, 4))] {
        let answer = server.ask(&infer("same", count, input, output)).await.expect(400);
        assert!(answer.error().contains("has become shorter"), "{}", answer.error());
    }
    assert_eq!(object.numbers(), [1, 2, 3]);
    server.finish().await;
}

#[tokio::test]
async fn the_inputs_of_a_request_are_no_larger_than_a_body() {
    let repository = Repository::empty().with("same", "identity", "");
    let server = TestServer::start_with(repository, |config| {
        config.allow_client_shm = true;
        config.limits.body_bytes = 1000;
    })
    .await;
    let object = Object::of(&[7; 251]);
    server.ask(&register("r", &object, 0, 1004)).await.expect(200);
    server.ask(&infer("same", 250, &place("r", 0, 1000), &place("r", 0, 1000))).await.expect(200);
    let answer = server.ask(&infer("same", 251, &place("r", 0, 1004), &place("r", 0, 1004))).await.expect(413);
    assert!(answer.error().contains("--max-body-bytes"), "{}", answer.error());
    server.finish().await;
}

#[tokio::test]
async fn a_request_in_flight_keeps_the_region_it_began_with() {
    let server = start().await;
    let object = Object::of(&[5, 0]);
    server.ask(&register("r", &object, 0, 8)).await.expect(200);
    server.gated.close("a", Step::Execute);
    let mut client = server.send(&infer("a", 1, &place("r", 0, 4), &place("r", 4, 4))).await;
    server.until("a", |counts| counts.executions_begun == 1).await;
    server.ask(&post("/v2/systemsharedmemory/region/r/unregister", "")).await.expect(200);
    server.ask(&get("/v2/systemsharedmemory/region/r/status")).await.expect(404);
    let other = Object::of(&[0, 0]);
    server.ask(&register("r", &other, 0, 8)).await.expect(200);
    server.gated.open("a", Step::Execute);
    client.receive().await.expect(200);
    assert_eq!((object.numbers(), other.numbers()), (vec![5, 5], vec![0, 0]));
    server.finish().await;
}

#[tokio::test]
async fn registering_and_asking_speak_as_triton_does() {
    let server = start().await;
    let object = Object::of(&[0; 4]);
    let system = "/v2/systemsharedmemory";
    assert_eq!(server.ask(&get(&format!("{system}/status"))).await.expect(200).text(), "[]");
    server.ask(&register("b%20c", &object, 4, 8)).await.expect(200);
    server.ask(&register("a", &object, 0, 16)).await.expect(200);
    let row = |name: &str, offset: u64, byte_size: u64| json!({"name": name, "key": object.key, "offset": offset, "byte_size": byte_size});
    let status = server.ask(&get(&format!("{system}/status"))).await.expect(200).json();
    assert_eq!(status, json!([row("a", 0, 16), row("b c", 4, 8)]));
    let status = server.ask(&get(&format!("{system}/region/b%20c/status"))).await.expect(200).json();
    assert_eq!(status, json!([row("b c", 4, 8)]));
    let at = |path: &str| format!("{system}{path}");
    let good = json!({"key": object.key, "byte_size": 4}).to_string();
    for (request, status, text) in [
        (post(&at("/region/a/register"), good.clone()), 400, "shared memory region 'a' already in manager"),
        (post(&at("/register"), good), 400, "'region name' is necessary to register"),
        (
            post(&at("/region/q/register"), r#"{"key":"/rh-nope","byte_size":1}"#),
            500,
            "Unable to open shared memory region: '/rh-nope'",
        ),
        (post(&at("/region/q/register"), r#"{"key":"///","byte_size":1}"#), 400, "with key '///'"),
        (
            post(&at("/region/q/register"), r#"{"key":"/../etc/passwd","byte_size":1}"#),
            400,
            "with key '/../etc/passwd'",
        ),
        (post(&at("/region/q/register"), r#"{"byte_size":1}"#), 400, "has no 'key' field"),
        (post(&at("/region/q/register"), r#"{"key":"/k"}"#), 400, "has no 'byte_size' field"),
        (post(&at("/region/q/register"), r#"{"key":"/k","byte_size":-1}"#), 400, "'byte_size' must be an integer"),
        (get(&at("/region/q/status")), 404, "Unable to find system shared memory region: 'q'"),
        (get(&at("/region/q/register")), 405, "Method Not Allowed"),
        (post(&at("/status"), ""), 405, "Method Not Allowed"),
        (get(&at("/region/q/other")), 404, "Not Found"),
        (get("/v2/cudasharedmemory/region/q/status"), 404, "Unable to find cuda shared memory region: 'q'"),
        (get("/v2/cudasharedmemory/region/a/status"), 404, "is registered as system shared memory"),
    ] {
        let answer = server.ask(&request).await.expect(status);
        assert!(answer.error().contains(text), "{}", answer.error());
    }
    server.ask(&post(&at("/region/nobody/unregister"), "")).await.expect(200);
    server.ask(&post(&at("/unregister"), "")).await.expect(200);
    assert_eq!(server.ask(&get(&at("/status"))).await.expect(200).text(), "[]");
    server.finish().await;
}

#[tokio::test]
async fn cuda_regions_are_understood_and_wait_for_a_driver() {
    let server = start().await;
    assert_eq!(server.ask(&get("/v2/cudasharedmemory/status")).await.expect(200).text(), "[]");
    let handle = format!("{}==", "A".repeat(86));
    for (handle, status) in [(handle.as_str(), 501), ("aGk=", 400), ("?", 400)] {
        let body = json!({"raw_handle": {"b64": handle}, "device_id": 0, "byte_size": 4}).to_string();
        server.ask(&post("/v2/cudasharedmemory/region/c/register", body)).await.expect(status);
    }
    server.ask(&post("/v2/cudasharedmemory/region/c/unregister", "")).await.expect(200);
    let extensions = server.ask(&get("/v2")).await.json()["extensions"].to_string();
    assert!(extensions.contains("system_shared_memory") && extensions.contains("cuda_shared_memory"));
    server.finish().await;
}

#[tokio::test]
async fn it_is_off_unless_the_operator_says_otherwise() {
    let server = TestServer::start(Repository::empty().with("same", "identity", "")).await;
    let object = Object::of(&[1]);
    for request in [
        get("/v2/systemsharedmemory/status"),
        get("/v2/cudasharedmemory/status"),
        register("r", &object, 0, 4),
        post("/v2/systemsharedmemory/unregister", ""),
        infer("same", 1, &place("r", 0, 4), &place("r", 0, 4)),
    ] {
        assert!(server.ask(&request).await.expect(501).error().contains("--allow-client-shm"));
    }
    let extensions = server.ask(&get("/v2")).await.json()["extensions"].to_string();
    assert!(!extensions.contains("shared_memory"), "{extensions}");
    server.finish().await;
}

#[tokio::test]
async fn invocations_cannot_use_it() {
    let repository = Repository::empty().with("same", "identity", "");
    let server = TestServer::start_with(repository, |config| {
        config.allow_client_shm = true;
        config.sagemaker.model = Some("same".to_owned());
    })
    .await;
    let object = Object::of(&[1]);
    server.ask(&register("r", &object, 0, 4)).await.expect(200);
    let tensor = json!({"name": "x", "datatype": "INT32", "shape": [1], "parameters": place("r", 0, 4)});
    let body = json!({"inputs": [tensor]}).to_string();
    let answer = server.sagemaker().await.ask(&post("/invocations", body)).await.expect(400);
    assert!(answer.text().contains("shared memory, which invocations cannot use"), "{}", answer.text());
    server.finish().await;
}

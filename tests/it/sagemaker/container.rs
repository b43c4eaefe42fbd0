//! What the platform asks of a container.

use roundhouse::backend::gated::{Fault, Step};
use roundhouse::error::{Error, ErrorKind};
use roundhouse::lifecycle::state::ModelState;
use serde_json::{Value, json};

use super::{Platform, container, invoke, memory, unload};
use crate::support::client::{Client, Request, Response, get, infer_body, post};
use crate::support::repository::Repository;
use crate::support::server::TestServer;
use crate::support::{eventually, within};

async fn start(platform: &Platform) -> TestServer {
    TestServer::start_with(Repository::empty(), container(platform.root())).await
}

async fn start_small(platform: &Platform, kib: u64) -> TestServer {
    let change = container(platform.root());
    TestServer::start_with(Repository::empty(), move |config| {
        change(config);
        memory(config, kib);
    })
    .await
}

async fn ask(server: &TestServer, request: &Request) -> Response {
    server.sagemaker().await.ask(request).await
}

async fn send(server: &TestServer, request: &Request) -> Client {
    let mut client = server.sagemaker().await;
    client.send(request).await;
    client
}

fn names(page: &Value) -> Vec<&str> {
    page["models"].as_array().unwrap().iter().map(|row| row["modelName"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_dialogue_of_the_contract_has_the_codes_of_the_contract() {
    let platform = Platform::new();
    let server = start(&platform).await;
    for hash in ["m1", "m-2.x"] {
        platform.put(hash, 1);
    }
    ask(&server, &get("/ping")).await.expect(200);
    assert_eq!(ask(&server, &get("/models")).await.expect(200).json(), json!({"models": []}));
    assert_eq!(ask(&server, &platform.load("m1")).await.expect(200).body, b"");
    let again = ask(&server, &platform.load("m1")).await.expect(409);
    assert_eq!(again.json()["code"], "already_loaded");
    ask(&server, &platform.load("m-2.x")).await.expect(200);
    assert_eq!(names(&ask(&server, &get("/models")).await.json()), ["m-2.x", "m1"]);
    let row = ask(&server, &get("/models/m1")).await.expect(200).json();
    assert_eq!(row, json!({"modelName": "m1", "modelUrl": platform.root().join("m1/model")}));
    let answer = ask(&server, &invoke("m1", 7)).await.expect(200);
    assert_eq!((answer.tag(), answer.json()["model_name"].as_str()), (7, Some("m1")));
    for hash in ["m1", "m-2.x"] {
        ask(&server, &unload(hash)).await.expect(200);
        for gone in [get(&format!("/models/{hash}")), unload(hash), invoke(hash, 1)] {
            assert_eq!(ask(&server, &gone).await.expect(404).json()["code"], "not_found");
        }
    }
    assert_eq!(server.books()[0].booked, 0);
    server.finish().await;
}

#[tokio::test]
async fn pages_of_models_follow_each_other_without_a_gap() {
    let platform = Platform::new();
    let server = start(&platform).await;
    for hash in ["a", "b c", "d", "e"] {
        platform.put(hash, 1);
        ask(&server, &platform.load(hash)).await.expect(200);
    }
    let first = ask(&server, &get("/models?limit=2")).await.expect(200).json();
    assert_eq!(names(&first), ["a", "b c"]);
    let token = first["nextPageToken"].as_str().unwrap();
    let second = ask(&server, &get(&format!("/models?limit=2&next_page_token={token}"))).await.expect(200).json();
    assert_eq!((names(&second), second.get("nextPageToken")), (vec!["d", "e"], None));
    ask(&server, &get("/models?limit=0")).await.expect(400);
    server.finish().await;
}

#[tokio::test]
async fn a_second_load_during_the_first_waits_for_it_and_hears_that_it_is_loaded() {
    let platform = Platform::new();
    let server = start(&platform).await;
    platform.put("m", 1);
    server.gated.close("m", Step::Load);
    let mut first = send(&server, &platform.load("m")).await;
    server.until("m", |counts| counts.loads_begun == 1).await;
    let mut second = send(&server, &platform.load("m")).await;
    // An invocation waits for the load too, and ping and list for nothing.
    let mut waiting = send(&server, &invoke("m", 3)).await;
    ask(&server, &get("/ping")).await.expect(200);
    assert_eq!(names(&ask(&server, &get("/models")).await.json()), Vec::<&str>::new());
    server.gated.open("m", Step::Load);
    first.receive().await.expect(200);
    second.receive().await.expect(409);
    assert_eq!(waiting.receive().await.tag(), 3);
    assert_eq!(server.gated.counts("m").loads_begun, 1);
    server.finish().await;
}

#[tokio::test]
async fn an_unload_during_a_load_comes_after_it_and_an_invocation_during_an_unload_finds_nothing() {
    let platform = Platform::new();
    let server = start(&platform).await;
    platform.put("m", 1);
    server.gated.close("m", Step::Load);
    let mut loading = send(&server, &platform.load("m")).await;
    server.until("m", |counts| counts.loads_begun == 1).await;
    let mut unloading = send(&server, &unload("m")).await;
    server.gated.open("m", Step::Load);
    loading.receive().await.expect(200);
    unloading.receive().await.expect(200);
    assert_eq!((server.gated.alive(), server.books()[0].booked), (0, 0));
    ask(&server, &get("/models/m")).await.expect(404);

    // The unload waits for an execution; who comes meanwhile is told that the model is gone, once it is.
    ask(&server, &platform.load("m")).await.expect(200);
    server.gated.close("m", Step::Execute);
    let mut running = send(&server, &invoke("m", 1)).await;
    server.until("m", |counts| counts.executions_begun == 1).await;
    let mut unloading = send(&server, &unload("m")).await;
    eventually("the unload has begun", || server.row("m").state == ModelState::Unloading).await;
    let mut late = send(&server, &invoke("m", 2)).await;
    server.gated.open("m", Step::Execute);
    assert_eq!(running.receive().await.tag(), 1);
    unloading.receive().await.expect(200);
    late.receive().await.expect(404);
    server.finish().await;
}

#[tokio::test]
async fn want_of_room_is_507_with_the_numbers_of_the_book_and_the_platform_makes_room() {
    let platform = Platform::new();
    let server = start_small(&platform, 200).await;
    for (hash, kib) in [("a", 100), ("b", 80), ("c", 100), ("huge", 201)] {
        platform.put(hash, kib);
    }
    ask(&server, &platform.load("a")).await.expect(200);
    ask(&server, &platform.load("b")).await.expect(200);
    let full = ask(&server, &platform.load("c")).await.expect(507).json();
    assert_eq!(full["code"], "out_of_device_memory");
    let kib = |name: &str| full["reason"][name].as_u64().unwrap() >> 10;
    assert_eq!((kib("need"), kib("free"), kib("evictable"), kib("pinned")), (100, 20, 180, 0));
    assert_eq!(server.in_memory(), ["a", "b"], "the server evicts nobody here");
    // What can never fit is no reason to unload anybody.
    let never = ask(&server, &platform.load("huge")).await.expect(400).json();
    assert_eq!(
        (never["code"].as_str(), never["reason"]["need"].as_u64()),
        (Some("out_of_device_memory"), Some(201 << 10))
    );
    ask(&server, &unload("a")).await.expect(200);
    ask(&server, &platform.load("c")).await.expect(200);
    assert_eq!(server.in_memory(), ["b", "c"]);
    server.finish().await;
}

#[tokio::test]
async fn an_inference_that_runs_out_of_memory_is_507_and_any_other_failure_is_not() {
    let platform = Platform::new();
    let server = start(&platform).await;
    platform.put("m", 1);
    ask(&server, &platform.load("m")).await.expect(200);
    let fault = |kind| Fault::Error(Error::new(kind, "out of memory"));
    // A run that finds no memory is run once more.
    server.gated.fail_next("m", Step::Execute, fault(ErrorKind::OutOfDeviceMemory));
    assert_eq!(ask(&server, &invoke("m", 3)).await.tag(), 3);
    server.gated.fail_next("m", Step::Execute, fault(ErrorKind::OutOfDeviceMemory));
    server.gated.fail_next("m", Step::Execute, fault(ErrorKind::OutOfDeviceMemory));
    ask(&server, &invoke("m", 1)).await.expect(507);
    server.gated.fail_next("m", Step::Execute, fault(ErrorKind::BackendFailed));
    ask(&server, &invoke("m", 1)).await.expect(500);
    assert_eq!(ask(&server, &invoke("m", 2)).await.tag(), 2);
    server.finish().await;
}

#[tokio::test]
async fn a_load_that_fails_leaves_nothing_and_can_be_tried_from_another_place() {
    let platform = Platform::new();
    let server = start(&platform).await;
    let wrong = platform.root().join("w/model");
    std::fs::create_dir_all(&wrong).unwrap();
    let load = |url: &std::path::Path| post("/models", json!({"model_name": "m", "url": url}).to_string());
    let refused = ask(&server, &load(&wrong)).await.expect(400);
    assert!(refused.error().contains("holds no model"), "{}", refused.error());
    ask(&server, &get("/models/m")).await.expect(404);
    ask(&server, &load(&platform.put("other", 1))).await.expect(200);
    ask(&server, &load(&platform.root().join("none"))).await.expect(404);
    ask(&server, &load(std::path::Path::new("/etc"))).await.expect(400);
    for body in ["", "[]", "{}", r#"{"model_name": 1, "url": "x"}"#, r#"{"model_name": "..", "url": "/"}"#] {
        ask(&server, &post("/models", body)).await.expect(400);
    }
    assert_eq!(server.in_memory(), ["m"]);
    server.finish().await;
}

#[tokio::test]
async fn a_load_whose_caller_leaves_goes_on_and_an_unload_too() {
    let platform = Platform::new();
    let server = start(&platform).await;
    platform.put("m", 1);
    server.gated.close("m", Step::Load);
    let caller = send(&server, &platform.load("m")).await;
    server.until("m", |counts| counts.loads_begun == 1).await;
    drop(caller);
    server.gated.open("m", Step::Load);
    eventually("the model is there", || server.in_memory() == ["m"]).await;
    ask(&server, &platform.load("m")).await.expect(409);
    ask(&server, &unload("m")).await.expect(200);
    assert!(server.in_memory().is_empty());
    server.finish().await;
}

#[tokio::test]
async fn ping_and_a_model_in_memory_answer_while_loads_hang() {
    let platform = Platform::new();
    let server = start(&platform).await;
    platform.put("here", 1);
    ask(&server, &platform.load("here")).await.expect(200);
    let hashes: Vec<_> = (0..8).map(|number| format!("h{number}")).collect();
    let mut waiting = Vec::new();
    for hash in &hashes {
        platform.put(hash, 1);
        server.gated.close(hash, Step::Load);
        waiting.push(send(&server, &platform.load(hash)).await);
    }
    let begun = || hashes.iter().filter(|hash| server.gated.counts(hash).loads_begun == 1).count();
    eventually("as many loads as may hang", || begun() == 4).await;
    within("ping", async { ask(&server, &get("/ping")).await.expect(200) }).await;
    assert_eq!(within("an invocation", ask(&server, &invoke("here", 5))).await.tag(), 5);
    server.gated.open_all();
    for mut client in waiting {
        client.receive().await.expect(200);
    }
    server.finish().await;
}

#[tokio::test]
async fn attributes_come_back_and_single_model_routes_take_the_model_that_is_set() {
    let platform = Platform::new();
    let change = container(platform.root());
    let server = TestServer::start_with(Repository::empty(), move |config| {
        change(config);
        config.sagemaker.model = Some("only".to_owned());
    })
    .await;
    platform.put("only", 1);
    ask(&server, &platform.load("only")).await.expect(200);
    let request = post("/invocations", infer_body(4).to_string());
    let request = request.header("x-amzn-sagemaker-custom-attributes", "trace=1; a").header("content-type", "x/y");
    let answer = ask(&server, &request).await.expect(200);
    assert_eq!(answer.header("x-amzn-sagemaker-custom-attributes"), Some("trace=1; a"));
    assert_eq!((answer.tag(), answer.header("content-type")), (4, Some("application/json")));
    ask(&server, &get("/invocations")).await.expect(405);
    ask(&server, &post("/nothing", "")).await.expect(404);
    server.finish().await;
}

#[tokio::test]
async fn binary_bodies_have_the_content_type_of_nvidias_container_both_ways() {
    let platform = Platform::new();
    let server = start(&platform).await;
    platform.put("m", 1);
    ask(&server, &platform.load("m")).await.expect(200);
    const TYPE: &str = "application/vnd.sagemaker-triton.binary+json;json-header-size=";
    let head = json!({
        "inputs": [{"name": "x", "datatype": "INT32", "shape": [2], "parameters": {"binary_data_size": 8}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": true}}]
    })
    .to_string();
    let tensor = [1_i32.to_le_bytes(), (-2_i32).to_le_bytes()].concat();
    let body = [head.as_bytes(), &tensor].concat();
    let binary =
        |size: String, body: &[u8]| post("/models/m/invoke", body).header("content-type", format!("{TYPE}{size}"));
    let answer = ask(&server, &binary(head.len().to_string(), &body)).await.expect(200);
    let size: usize = answer.header("content-type").unwrap().strip_prefix(TYPE).unwrap().parse().unwrap();
    assert_eq!(answer.body[size..], tensor);
    // The whole body is the one tensor.
    let raw = ask(&server, &binary("0".to_owned(), &tensor)).await.expect(200);
    let size: usize = raw.header("content-type").unwrap().strip_prefix(TYPE).unwrap().parse().unwrap();
    assert_eq!(raw.body[size..], tensor);
    for wrong in ["x", "-1", "", "9999"] {
        ask(&server, &binary(wrong.to_owned(), &body)).await.expect(400);
    }
    let elsewhere = post("/models/m/invoke", body).header("content-type", format!("a;{TYPE}5"));
    ask(&server, &elsewhere).await.expect(400);
    let coded = post("/models/m/invoke", "x").header("content-encoding", "br");
    assert_eq!(ask(&server, &coded).await.expect(415).header("accept-encoding"), Some("gzip, deflate"));
    server.finish().await;
}

#[tokio::test]
async fn loads_and_unloads_of_one_name_keep_to_their_order() {
    let platform = Platform::new();
    let server = start(&platform).await;
    platform.put("m", 1);
    ask(&server, &platform.load("m")).await.expect(200);
    server.gated.close("m", Step::Execute);
    let mut running = send(&server, &invoke("m", 1)).await;
    server.until("m", |counts| counts.executions_begun == 1).await;
    let mut unloading = send(&server, &unload("m")).await;
    eventually("the unload has begun", || server.row("m").state == ModelState::Unloading).await;
    // A load that comes during the unload is a load after it.
    let mut loading = send(&server, &platform.load("m")).await;
    server.gated.open("m", Step::Execute);
    assert_eq!(running.receive().await.tag(), 1);
    unloading.receive().await.expect(200);
    loading.receive().await.expect(200);
    let row = ask(&server, &get("/models/m")).await.expect(200).json();
    assert_eq!(row["modelUrl"], json!(platform.root().join("m/model")));
    server.finish().await;
}

#[tokio::test]
async fn whoever_asks_for_a_load_that_fails_hears_why_and_nothing_stays_of_it() {
    let platform = Platform::new();
    let server = start_small(&platform, 200).await;
    platform.put("m", 100);
    platform.put("large", 150);
    ask(&server, &platform.load("large")).await.expect(200);
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(send(&server, &platform.load("m")).await);
    }
    for mut client in clients {
        client.receive().await.expect(507);
    }
    // At once, whatever is remembered of failed loads elsewhere.
    ask(&server, &invoke("m", 1)).await.expect(404);
    assert!(server.row_if("m").is_none());
    ask(&server, &unload("large")).await.expect(200);
    assert!(server.row_if("large").is_none());
    ask(&server, &platform.load("m")).await.expect(200);
    server.finish().await;
}

#[tokio::test]
async fn a_model_that_is_not_to_be_retained_stays_where_the_platform_unloads() {
    let platform = Platform::new();
    let change = container(platform.root());
    let server = TestServer::start_with(Repository::empty(), move |config| {
        change(config);
        config.retain = false;
    })
    .await;
    platform.put("m", 1);
    ask(&server, &platform.load("m")).await.expect(200);
    for tag in 0..3 {
        assert_eq!(ask(&server, &invoke("m", tag)).await.tag(), tag);
    }
    server.finish().await;
}

#[tokio::test]
async fn a_model_says_how_its_bodies_are_read_and_a_word_for_it_that_is_none_is_refused_at_the_load() {
    let platform = Platform::new();
    let server = start(&platform).await;
    for (hash, word) in [("plain", "generate"), ("stream", "generate_stream"), ("odd", "genrate")] {
        let file = platform.put(hash, 1).join("inner/config.pbtxt");
        let parameter = format!("parameters {{ key: \"inference_type\" value {{ string_value: \"{word}\" }} }}");
        std::fs::write(&file, format!("{}{parameter}", std::fs::read_to_string(&file).unwrap())).unwrap();
    }
    let body = |hash: &str| post(&format!("/models/{hash}/invoke"), "{\"x\": [3, 4]}");
    ask(&server, &platform.load("plain")).await.expect(200);
    assert_eq!(ask(&server, &body("plain")).await.expect(200).json()["y"], json!([3, 4]));
    ask(&server, &platform.load("stream")).await.expect(200);
    let events = ask(&server, &body("stream")).await.expect(200);
    assert!(events.text().starts_with("data: {") && events.text().contains("[3,4]"), "{}", events.text());
    let refused = ask(&server, &platform.load("odd")).await.expect(400).error();
    assert!(refused.contains("'inference_type'") && refused.contains("generate_stream"), "{refused}");
    server.finish().await;
}

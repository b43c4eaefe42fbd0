//! Inputs made of pixels: what clients are told, what is made for the model, and that pictures of all sizes run together.

use serde_json::{Value, json};

use crate::support::client::{get, load, post};
use crate::support::repository::Repository;
use crate::support::server::TestServer;

/// A model that gives back the 2x2 pictures it gets, with these fields and parameters more.
fn pictures(more: &str, parameters: &[(&str, &str)]) -> Repository {
    let tensor = |role, name| format!("{role} {{ name: '{name}' data_type: TYPE_FP32 dims: [1, 2, 2] }}\n");
    let parameters = parameters
        .iter()
        .map(|(key, value)| format!("parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}\n"));
    let text = format!(
        "backend: 'identity'\n{}{}{more}\n{}",
        tensor("input", "x"),
        tensor("output", "y"),
        parameters.collect::<String>()
    );
    let repository = Repository::empty();
    repository.put("a/config.pbtxt", text);
    repository.add_version("a", 1);
    repository
}

/// The same as the one step of an ensemble `e`, which takes pixels of one colour.
const ENSEMBLE: &str = "platform: 'ensemble' max_batch_size: 2
    input { name: 'pixels' data_type: TYPE_UINT8 dims: [ -1, -1, 1 ] }
    output { name: 'made' data_type: TYPE_FP32 dims: [ 1, 2, 2 ] }
    ensemble_scheduling { step { model_name: 'a' model_version: -1
        input_map { key: 'x' value: 'pixels' } output_map { key: 'y' value: 'made' } } }";

/// A body of grey pictures, all of one level.
fn grey(shape: [usize; 4], level: u8) -> Value {
    let data = vec![level; shape.iter().product()];
    json!({"inputs": [{"name": "x", "datatype": "UINT8", "shape": shape, "data": data}]})
}

const BATCHES: &str = "max_batch_size: 2 dynamic_batching { max_queue_delay_microseconds: 3600000000 }";

#[tokio::test]
async fn pictures_of_two_sizes_share_a_batch_and_count_as_computed_inputs() {
    let parameters = [("image_input", "x"), ("image_mean", "10"), ("image_scale", "0.5")];
    let server = TestServer::start(pictures(BATCHES, &parameters)).await;
    server.ask(&load("a")).await.expect(200);
    let metadata = server.ask(&get("/v2/models/a")).await.json();
    assert_eq!(metadata["inputs"], json!([{"name": "x", "datatype": "UINT8", "shape": [-1, -1, -1, 1]}]));
    assert_eq!(metadata["outputs"], json!([{"name": "y", "datatype": "FP32", "shape": [-1, 1, 2, 2]}]));
    // Neither runs before the other is there.
    let mut first = server.send(&post("/v2/models/a/infer", grey([1, 5, 3, 1], 30).to_string())).await;
    let mut second = server.send(&post("/v2/models/a/infer", grey([1, 1, 9, 1], 50).to_string())).await;
    for (client, level) in [(&mut first, 10.0), (&mut second, 20.0)] {
        let answer = client.receive().await.expect(200).json();
        assert_eq!(answer["outputs"][0]["shape"], json!([1, 1, 2, 2]));
        assert_eq!(answer["outputs"][0]["data"], json!(vec![level; 4]));
    }
    let stats = server.ask(&get("/v2/models/a/stats")).await.json();
    let stats = &stats["model_stats"][0];
    assert_eq!((&stats["inference_count"], &stats["execution_count"]), (&json!(2), &json!(1)));
    assert_eq!(stats["batch_stats"][0]["batch_size"], 2);
    assert!(stats["inference_stats"]["compute_input"]["ns"].as_u64().unwrap() > 0);
    server.finish().await;
}

#[tokio::test]
async fn a_picture_that_is_none_is_refused_and_its_neighbour_answered() {
    let server = TestServer::start(pictures(BATCHES, &[("image_input", "x")])).await;
    server.ask(&load("a")).await.expect(200);
    for (body, text) in [
        (grey([1, 0, 4, 1], 0), "input 'x': the height of a picture must be from 1 to 65535, got 0"),
        (grey([1, 2, 2, 3], 0), "Expected [-1,-1,-1,1], got [1,2,2,3]"),
        (grey([3, 2, 2, 1], 0), "inference request batch-size must be <= 2"),
        (
            json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1, 2, 2], "data": [0, 0, 0, 0]}]}),
            "data-type is 'FP32', but model 'a' expects 'UINT8'",
        ),
    ] {
        let refused = server.ask(&post("/v2/models/a/infer", body.to_string())).await.expect(400).error();
        assert!(refused.contains(text), "{refused}");
    }
    let answer = server.ask(&post("/v2/models/a/infer", grey([2, 3, 3, 1], 7).to_string())).await.expect(200);
    assert_eq!(answer.json()["outputs"][0]["data"], json!(vec![7.0; 8]));
    server.finish().await;
}

#[tokio::test]
async fn parameters_that_do_not_fit_are_said_at_the_load_and_none_change_nothing() {
    let wrong = TestServer::start(pictures("", &[("image_input", "x"), ("image_size", "9")])).await;
    let refused = wrong.ask(&load("a")).await.expect(400).error();
    assert!(
        refused.contains("parameter 'image_size' says a height of 9, the model takes 2; leave it out"),
        "{refused}"
    );
    wrong.finish().await;
    let plain = TestServer::start(pictures("", &[])).await;
    plain.ask(&load("a")).await.expect(200);
    let metadata = plain.ask(&get("/v2/models/a")).await.json();
    assert_eq!(metadata["inputs"], json!([{"name": "x", "datatype": "FP32", "shape": [1, 2, 2]}]));
    plain.finish().await;
}

#[tokio::test]
async fn a_step_of_an_ensemble_takes_pixels_like_any_client() {
    let repository = pictures("max_batch_size: 2", &[("image_input", "x"), ("image_mean", "10")]);
    repository.put("e/config.pbtxt", ENSEMBLE);
    repository
        .put("wrong/config.pbtxt", ENSEMBLE.replace("TYPE_UINT8 dims: [ -1, -1, 1 ]", "TYPE_FP32 dims: [ 1, 2, 2 ]"));
    let server = TestServer::start(repository).await;
    server.ask(&load("e")).await.expect(200);
    let mut body = grey([2, 5, 3, 1], 30);
    body["inputs"][0]["name"] = json!("pixels");
    let answer = server.ask(&post("/v2/models/e/infer", body.to_string())).await.expect(200).json();
    assert_eq!(answer["outputs"][0]["shape"], json!([2, 1, 2, 2]));
    assert_eq!(answer["outputs"][0]["data"], json!(vec![20.0; 8]));
    // What the model itself takes is not what it is sent.
    let refused = server.ask(&load("wrong")).await.expect(400).error();
    assert!(refused.contains("tensor 'pixels' is TYPE_UINT8 for input 'x' of step 'a'"), "{refused}");
    server.finish().await;
}

//! The binary as a process: exit codes, signals, the port file, threads, and runtimes that cannot be used.

use std::path::PathBuf;
use std::time::Instant;

use crate::support::binary::{Binary, run};
use crate::support::client::{Client, get, infer, post};
use crate::support::eventually;
use crate::support::repository::Repository;

fn identity(names: impl IntoIterator<Item = String>) -> Repository {
    names.into_iter().fold(Repository::empty(), |repository, name| repository.with(&name, "identity", ""))
}

#[test]
fn a_wrong_configuration_ends_with_64_and_says_what_to_change() {
    let repository = Repository::empty();
    let folder = repository.path().to_str().unwrap();
    repository.put("config.toml", "http-prot = 1\n");
    let toml = repository.path().join("config.toml");
    let cases: &[(&[&str], &str)] = &[
        (&["serve"], "--model-repository is missing"),
        (&["serve", "--model-repository", "/no/such/folder"], "cannot open the model repository /no/such/folder"),
        (&["serve", "--model-repository", toml.to_str().unwrap()], "is not a folder"),
        (&["serve", "--model-repository", "gs://bucket/models"], "not from gs"),
        (&["serve", "--model-repository", folder, "--device", "gpu:7"], "--device gpu:7 cannot be used"),
        (&["serve", "--config", toml.to_str().unwrap()], "http-prot"),
        (&["serve", "--config", "/no/such/file"], "cannot read --config /no/such/file"),
        (&["serve", "--model-repository", folder, "--log", "a=b=c"], "cannot read --log a=b=c"),
    ];
    for (arguments, text) in cases {
        let ports: &[&str] = &["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"];
        let (code, stderr) = run(&[arguments, ports].concat());
        assert_eq!(code, Some(64), "{arguments:?}: {stderr}");
        assert!(stderr.contains(text), "{arguments:?}: {stderr}");
        assert!(stderr.lines().any(|line| line.starts_with("error: ")), "{stderr}");
    }
}

#[test]
fn a_port_that_is_taken_ends_with_64_and_names_the_flag() {
    let repository = Repository::empty();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let folder = repository.path().to_str().unwrap();
    let (code, stderr) =
        run(&["serve", "--model-repository", folder, "--grpc-port", "0", "--metrics-port", "0", "--http-port", &port]);
    assert_eq!(code, Some(64), "{stderr}");
    assert!(stderr.contains("--http-port"), "{stderr}");
}

#[tokio::test]
async fn sigterm_and_sigint_end_with_0_after_the_request_in_flight() {
    for signal in ["TERM", "INT"] {
        let delay = "parameters { key: \"execute_delay_ms\" value: { string_value: \"300\" } }";
        let repository = Repository::empty().with("slow", "identity", delay);
        let mut binary = Binary::start(repository.path(), &[]);
        assert_eq!(binary.ask(&infer("slow", 1)).await.tag(), 1);
        let mut client = Client::connect(binary.http).await;
        client.send(&infer("slow", 2)).await;
        // What was sent is in the server's hands when a later request on another connection has been answered.
        binary.ask(&get("/v2/health/live")).await.expect(200);
        binary.signal(signal);
        binary.wait_for_line("draining: no new connections, requests in flight finish");
        assert_eq!(client.receive().await.tag(), 2);
        let (status, log) = binary.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// A server with a request in flight that takes most of a minute.
async fn held_for_long(arguments: &[&str]) -> (Binary, Client) {
    let delay = "parameters { key: \"execute_delay_ms\" value: { string_value: \"50000\" } }";
    let repository = Repository::empty().with("slow", "identity", delay);
    let binary = Binary::start(repository.path(), arguments);
    let mut client = Client::connect(binary.http).await;
    client.send(&infer("slow", 1)).await;
    let loaded = async {
        while binary.ask(&get("/v2/models/slow/ready")).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    crate::support::within("the model is loaded", loaded).await;
    (binary, client)
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let (mut binary, mut client) = held_for_long(&["--drain-grace-s", "3600"]).await;
    binary.signal("TERM");
    binary.wait_for_line("draining: no new connections, requests in flight finish");
    binary.signal("INT");
    let (status, log) = binary.wait();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("second signal: stopping at once"), "{log}");
    assert!(client.try_receive().await.is_none());
}

#[tokio::test]
async fn the_end_of_the_grace_cuts_what_is_left_and_the_exit_code_is_0() {
    let (binary, mut client) = held_for_long(&["--drain-grace-s", "0"]).await;
    binary.signal("TERM");
    let (status, log) = binary.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("the grace is over"), "{log}");
    assert!(client.try_receive().await.is_none());
}

#[tokio::test]
async fn the_number_of_threads_does_not_grow_with_the_number_of_models() {
    let repository = identity((0..300).map(|number| format!("m{number:03}")));
    let arguments = ["--executor-threads", "2", "--io-threads", "2", "--load-concurrency", "1"];
    let binary = Binary::start(repository.path(), &arguments);
    let mut client = Client::connect(binary.http).await;
    let mut ask = async |numbers: std::ops::Range<i32>| {
        for number in numbers {
            assert_eq!(client.ask(&infer(&format!("m{number:03}"), number)).await.tag(), number);
        }
    };
    ask(0..10).await;
    let ten = binary.threads();
    ask(10..300).await;
    ask(0..300).await;
    let all = binary.threads();
    let page = Client::connect(binary.metrics).await.ask(&get("/metrics")).await;
    assert!(page.text().contains("roundhouse_models_resident 300\n"));
    // Tokio keeps a few threads for reading files, as many as were ever wanted at once, for ten idle seconds.
    assert!(all.len() <= ten.len() + 8, "10 models: {ten:?}, 300 models: {all:?}");
    let executors = |names: &[String]| names.iter().filter(|name| name.starts_with("exec-")).count();
    assert_eq!((executors(&ten), executors(&all)), (2, 2));
    binary.finish();
}

#[tokio::test]
async fn a_server_that_knows_a_thousand_models_is_ready_soon() {
    let repository = identity((0..1000).map(|number| format!("m{number:04}")));
    let begun = Instant::now();
    let binary = Binary::start(repository.path(), &[]);
    let ready = begun.elapsed();
    println!("1,000 models known, none loaded: ready after {ready:?} (debug build, process start included)");
    assert!(ready.as_secs_f64() < 2.0, "{ready:?}");
    let index = binary.ask(&post("/v2/repository/index", "")).await.json();
    assert_eq!(index.as_array().unwrap().len(), 1000);
    binary.finish();
}

/// A repository with a model that needs ONNX Runtime and one that does not.
fn with_and_without_a_runtime() -> Repository {
    let repository = identity(["plain".to_owned()]);
    let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models-examples/scale");
    repository.put("scale/config.pbtxt", std::fs::read(example.join("config.pbtxt")).unwrap());
    repository.put("scale/1/model.onnx", std::fs::read(example.join("1/model.onnx")).unwrap());
    repository
}

#[tokio::test]
async fn without_a_usable_library_the_server_starts_and_says_what_is_missing_and_how_to_mend_it() {
    let repository = with_and_without_a_runtime();
    repository.put(".libraries/text.so", "not a library");
    repository.put(".libraries/empty.so", "");
    let folder = repository.path().join(".libraries");
    // A library that is none of ONNX Runtime's: the C library.
    let other = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6"];
    let other = other.iter().map(PathBuf::from).find(|path| path.exists());
    let libraries = [folder.join("absent.so"), folder.join("text.so"), folder.join("empty.so"), folder.clone()];
    for library in libraries.into_iter().chain(other) {
        let binary = Binary::start(repository.path(), &["--onnxruntime-library", library.to_str().unwrap()]);
        let backends = binary.ask(&get("/v2")).await.json()["backends"].clone();
        let of = |name: &str| backends.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
        assert_eq!(of("identity")["available"], true);
        assert_eq!(of("onnxruntime")["available"], false, "{}", library.display());
        let reason = of("onnxruntime")["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(library.to_str().unwrap()), "{reason}");
        assert!(reason.contains("roundhouse runtime install onnxruntime"), "{reason}");
        let body = "{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[1],\"data\":[1]}]}";
        for _ in 0..2 {
            let refused = binary.ask(&post("/v2/models/scale/infer", body)).await.expect(503);
            assert!(refused.error().contains("the onnxruntime backend is unavailable"), "{}", refused.error());
            assert!(refused.error().contains("roundhouse runtime install onnxruntime"), "{}", refused.error());
            assert_eq!(refused.header("retry-after"), None, "trying again does not help");
        }
        assert_eq!(binary.ask(&infer("plain", 7)).await.tag(), 7);
        binary.ask(&get("/v2/health/ready")).await.expect(200);
        binary.finish();
    }
}

#[tokio::test]
async fn a_log_line_of_a_failed_request_bears_its_id() {
    let delay = "parameters { key: \"execute_delay_ms\" value: { string_value: \"x\" } }";
    let repository = Repository::empty().with("odd", "identity", delay);
    let mut binary = Binary::start(repository.path(), &["--log", "debug"]);
    let refused = binary.ask(&infer("odd", 1).header("x-request-id", "id-4711")).await;
    assert!(refused.status >= 400);
    let mut found = None;
    eventually("a line with the id", || {
        let line = binary.next_line();
        if line["request_id"] == "id-4711" {
            found = Some(line);
        }
        found.is_some()
    })
    .await;
    let line = found.unwrap();
    assert_eq!(line["model"], "odd");
    assert!(line["error"].as_str().unwrap().contains("execute_delay_ms"), "{line}");
    binary.finish();
}

#[tokio::test]
async fn log_settings_change_what_is_logged_from_the_next_line_on() {
    let repository = identity(["plain".to_owned()]);
    let mut binary = Binary::start(repository.path(), &[]);
    let settings = binary.ask(&get("/v2/logging")).await.expect(200);
    assert_eq!(
        settings.text(),
        r#"{"log_file":"","log_info":true,"log_warning":true,"log_error":true,"log_verbose_level":0,"log_format":"default"}"#
    );
    let more = post("/v2/logging", r#"{"log_verbose_level": 1, "log_format": "ISO8601"}"#);
    assert_eq!(binary.ask(&more).await.expect(200).json()["log_verbose_level"], 1);
    let inferred = |tag| infer("missing", tag).header("x-request-id", format!("id-{tag}"));
    binary.ask(&inferred(1)).await.expect(404);
    let line = binary.wait_for_line("request refused");
    assert_eq!(line["request_id"], "id-1");
    let time = line["timestamp"].as_str().unwrap();
    assert!(time.len() == "2026-01-01T00:00:00Z".len(), "{time}");
    let less = post("/v2/logging", r#"{"log_verbose_level": 0, "log_format": "default"}"#);
    binary.ask(&less).await.expect(200);
    binary.ask(&inferred(2)).await.expect(404);
    for (body, status, text) in [
        (r#"{"log_info": 1}"#, 400, "attempt to access JSON non-boolean as boolean"),
        (r#"{"log_file": "x"}"#, 501, "log file location can not be updated through network protocol"),
        (r#"{"log_format": "x"}"#, 400, "invalid argument for --log_format, got: x"),
        (r#"{"log_infos": true}"#, 400, "'log_infos'"),
    ] {
        let refused = binary.ask(&post("/v2/logging", body)).await.expect(status);
        assert!(refused.error().contains(text), "{}", refused.error());
    }
    binary.signal("TERM");
    let (status, log) = binary.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("id-2") && log.contains("stopped"), "{log}");
}

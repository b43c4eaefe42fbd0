//! The binary as SageMaker starts it: `serve` alone, and everything else in variables.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::binary::command;

/// `roundhouse serve` with these variables.
fn serve(variables: &[(&str, &str)]) -> Command {
    let mut command = command(&["serve"]);
    command.envs(variables.iter().copied()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn a_wrong_variable_ends_the_start_with_64_and_its_name() {
    for (name, value, text) in [
        ("SAGEMAKER_TRITON_INFERENCE_TYPE", "stream", "infer, generate, generate_stream"),
        ("SAGEMAKER_BIND_TO_PORT", "http", "a port from 1 to 65535"),
        ("SAGEMAKER_TRITON_ADDITIONAL_ARGS", "--strict-readiness=false", "'--strict-readiness'"),
    ] {
        let output = serve(&[("SAGEMAKER_MULTI_MODEL", "true"), (name, value)]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(name) && stderr.contains(text), "{stderr}");
    }
}

#[test]
fn the_variables_alone_start_a_container_that_warns_in_its_log_and_ends_with_0() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display();
    let flags = format!(
        "--sagemaker-port 0 --address 127.0.0.1 --log-format json --cache-dir '{place}/cache' --port-file '{place}/ports'"
    );
    let variables = [
        ("SAGEMAKER_MULTI_MODEL", "true"),
        ("SAGEMAKER_TRITON_ADDITIONAL_ARGS", flags.as_str()),
        ("SAGEMAKER_TRITON_ODDITY", "1"),
    ];
    let mut child = serve(&variables).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap_or(Value::String(line)));
    let mut seen = Vec::new();
    for line in lines.by_ref() {
        seen.push(line);
        if seen[seen.len() - 1]["message"] == "ready" {
            break;
        }
    }
    let is_warning = |line: &&Value| line["level"] == "WARN";
    let warned = seen.iter().filter(is_warning).any(|line| line.to_string().contains("SAGEMAKER_TRITON_ODDITY"));
    assert!(warned, "{seen:?}");
    let ports: Value = serde_json::from_slice(&std::fs::read(folder.path().join("ports")).unwrap()).unwrap();
    assert!(ports["sagemaker"].is_string() && ports["http"].is_null() && ports["metrics"].is_null(), "{ports}");
    let told = Command::new("/bin/sh").arg("-c").arg(format!("kill -TERM {}", child.id())).status().unwrap();
    assert!(told.success());
    seen.extend(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0), "{seen:?}");
}

//! Stamps the commit into the binary (`roundhouse --version` says what runs), and makes the gRPC messages of `proto/`
//! into Rust, without a `protoc`.
//!
//! A build from a source archive has no git and says so; the build never fails for that.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost::Message;

const PROTOS: [&str; 2] = ["grpc_service.proto", "health.proto"];

fn main() {
    println!(
        "cargo::rustc-env=ROUNDHOUSE_COMMIT={}",
        git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned())
    );
    rerun_when_the_commit_changes();
    generate_messages();
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// HEAD's log has a line for each commit, checkout and reset.
fn rerun_when_the_commit_changes() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
}

/// Writes the messages (`inference.rs`, `grpc.health.v1.rs`), the descriptors that reflection serves
/// (`descriptors.bin`), and the field numbers of a configuration (`config_numbers.rs`).
fn generate_messages() {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let files = protox::compile(PROTOS, ["proto"]).unwrap_or_else(|error| panic!("proto/: {error:?}"));
    fs::write(out.join("descriptors.bin"), files.encode_to_vec()).expect("OUT_DIR can be written to");
    let configuration = files.file.iter().find(|file| file.name() == "model_config.proto");
    let mut numbers = "[".to_owned();
    for message in configuration.iter().flat_map(|file| &file.message_type) {
        list_numbers(message, message.name(), &mut numbers);
    }
    fs::write(out.join("config_numbers.rs"), numbers + "]").expect("OUT_DIR can be written to");
    prost_build::Config::new()
        .bytes(["."])
        .btree_map(["."])
        .compile_fds(files)
        .unwrap_or_else(|error| panic!("proto/: {error}"));
}

/// One line a field: the message by its path below the package, the field, its number.
fn list_numbers(message: &protox::prost_reflect::prost_types::DescriptorProto, path: &str, numbers: &mut String) {
    for field in &message.field {
        writeln!(numbers, "({path:?}, {:?}, {}),", field.name(), field.number()).expect("a String takes all");
    }
    for inner in &message.nested_type {
        list_numbers(inner, &format!("{path}.{}", inner.name()), numbers);
    }
}

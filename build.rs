//! Stamps the commit into the binary (`roundhouse --version` says what runs), and makes the gRPC messages of `proto/`
//! into Rust, without a `protoc`.
//!
//! A build from a source archive has no git and says so; the build never fails for that.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost::Message;
use protox::prost_reflect::prost_types::DescriptorProto;

const PROTOS: [&str; 2] = ["grpc_service.proto", "health.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "cargo::rustc-env=ROUNDHOUSE_COMMIT={}",
        git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned())
    );
    rerun_when_the_commit_changes();
    generate_messages()
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
fn generate_messages() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    #[expect(clippy::disallowed_methods, reason = "cargo tells build scripts so")]
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("run by cargo, which sets OUT_DIR")?);
    let files = protox::compile(PROTOS, ["proto"])?;
    fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    let configuration = files.file.iter().find(|file| file.name() == "model_config.proto");
    let mut numbers = Vec::new();
    for message in configuration.iter().flat_map(|file| &file.message_type) {
        list_numbers(message, message.name(), &mut numbers);
    }
    fs::write(out.join("config_numbers.rs"), format!("{numbers:?}"))?;
    Ok(prost_build::Config::new().bytes(["."]).btree_map(["."]).compile_fds(files)?)
}

/// A row a field: the message by its path below the package, the field, its number.
fn list_numbers(message: &DescriptorProto, path: &str, numbers: &mut Vec<(String, String, i32)>) {
    for field in &message.field {
        numbers.push((path.to_owned(), field.name().to_owned(), field.number()));
    }
    for inner in &message.nested_type {
        list_numbers(inner, &format!("{path}.{}", inner.name()), numbers);
    }
}

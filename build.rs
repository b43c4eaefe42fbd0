//! Stamps the commit into the binary (`roundhouse --version` says what runs), makes the gRPC messages of `proto/` into
//! Rust, without a `protoc`, and compiles the kernels of `kernels/` where there is an `nvcc`.
//!
//! A build from a source archive has no git and says so; one without `nvcc`, or with one that cannot compile them, leaves
//! the kernels to NVRTC at run time. The build never fails for either.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use prost::Message;
use protox::prost_reflect::prost_types::DescriptorProto;

const PROTOS: [&str; 2] = ["grpc_service.proto", "health.proto"];

/// The GPUs that kernels are compiled for: A100, A10 and their kin, H100. Others get them from NVRTC.
const ARCHITECTURES: [(u32, u32); 3] = [(8, 0), (8, 6), (9, 0)];

fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "cargo::rustc-env=ROUNDHOUSE_COMMIT={}",
        git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned())
    );
    rerun_when_the_commit_changes();
    compile_kernels()?;
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

#[expect(clippy::disallowed_methods, reason = "cargo tells build scripts so")]
fn out() -> Result<PathBuf, Box<dyn Error>> {
    Ok(PathBuf::from(env::var_os("OUT_DIR").ok_or("run by cargo, which sets OUT_DIR")?))
}

/// Writes `kernels.rs`, which embeds a fatbin of each kernel, or of none.
fn compile_kernels() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let out = out()?;
    let mut made = Vec::new();
    if let Some(nvcc) = nvcc() {
        let common = fs::read_to_string("kernels/common.cuh")?;
        for entry in fs::read_dir("kernels")? {
            let path = entry?.path();
            let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
            if path.extension().is_none_or(|extension| extension != "cu") {
                continue;
            }
            let text = format!("{common}#line 1 \"{name}.cu\"\n{}", fs::read_to_string(&path)?);
            match compile_kernel(&nvcc, &out, name, &text) {
                Ok(fatbin) => made.push((name.to_owned(), fatbin)),
                Err(why) => {
                    println!("cargo::warning=kernels are compiled at run time: {} failed: {why}", nvcc.display());
                    made.clear();
                    break;
                }
            }
        }
    }
    made.sort();
    let rows: Vec<_> =
        made.iter().map(|(name, path)| format!("({name:?}, include_bytes!({:?}).as_slice())", path)).collect();
    let architectures = if made.is_empty() { &[][..] } else { &ARCHITECTURES };
    let text = format!(
        "const PREBUILT: &[(&str, &[u8])] = &[{}];\nconst PREBUILT_FOR: &[(u32, u32)] = &{architectures:?};\n",
        rows.join(", ")
    );
    Ok(fs::write(out.join("kernels.rs"), text)?)
}

/// The compiler of the CUDA toolkit, on the path or where the toolkit is usually installed.
#[expect(clippy::disallowed_methods, reason = "CUDA_HOME says where a toolkit is")]
fn nvcc() -> Option<PathBuf> {
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let candidates = home.into_iter().chain(["nvcc".into(), "/usr/local/cuda/bin/nvcc".into()]);
    let runs = |nvcc: &PathBuf| Command::new(nvcc).arg("--version").output().is_ok_and(|ran| ran.status.success());
    candidates.into_iter().find(runs)
}

fn compile_kernel(nvcc: &Path, out: &Path, name: &str, text: &str) -> Result<PathBuf, Box<dyn Error>> {
    let (source, fatbin) = (out.join(format!("{name}.cu")), out.join(format!("{name}.fatbin")));
    fs::write(&source, text)?;
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-std=c++17", "-o"]).arg(&fatbin).arg(&source);
    for (major, minor) in ARCHITECTURES {
        command.arg(format!("-gencode=arch=compute_{major}{minor},code=sm_{major}{minor}"));
    }
    let ran = command.output()?;
    match ran.status.success() {
        true => Ok(fatbin),
        false => Err(String::from_utf8_lossy(&ran.stderr).lines().take(3).collect::<Vec<_>>().join("; ").into()),
    }
}

/// Writes the messages (`inference.rs`, `grpc.health.v1.rs`, `envoy.service.ext_proc.v3.rs`), the descriptors that reflection serves
/// (`descriptors.bin`), and the field numbers of a configuration (`config_numbers.rs`).
fn generate_messages() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = out()?;
    let files = protox::compile(PROTOS, ["proto"])?;
    fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    let configuration = files.file.iter().find(|file| file.name() == "model_config.proto");
    let mut numbers = Vec::new();
    for message in configuration.iter().flat_map(|file| &file.message_type) {
        list_numbers(message, message.name(), &mut numbers);
    }
    fs::write(out.join("config_numbers.rs"), format!("{numbers:?}"))?;
    let config = || {
        let mut config = prost_build::Config::new();
        config.bytes(["."]).btree_map(["."]);
        config
    };
    config().compile_fds(files)?;
    // Apart, since a server's reflection does not tell what the picker speaks.
    Ok(config().compile_fds(protox::compile(["ext_proc.proto"], ["proto"])?)?)
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

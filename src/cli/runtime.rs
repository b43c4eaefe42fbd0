//! `roundhouse runtime`: gets a runtime that is loaded at run time through pip, pinned and checked by sha256.

mod extract;
mod install;
mod wheel;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use self::install::{Outcome, install, state};
use self::wheel::{Package, packages};
use crate::backend::runtime_paths::ONNXRUNTIME_LIBRARY;
use crate::cli::progress::Progress;
use crate::error::{Error, Result};

/// What `roundhouse runtime` was asked.
#[derive(Debug, clap::Args)]
pub struct RuntimeArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: RuntimeCommand,
}

impl RuntimeArgs {
    /// Whether the runtime folder is named, so that the default one need not be known.
    #[must_use]
    pub const fn names_dir(&self) -> bool {
        match &self.command {
            RuntimeCommand::Install(InstallArgs { dir, .. }) | RuntimeCommand::List(ListArgs { dir }) => dir.is_some(),
        }
    }
}

/// The subcommands of `roundhouse runtime`.
#[derive(Debug, clap::Subcommand)]
pub enum RuntimeCommand {
    /// Get a runtime through pip, check it by sha256 and put it into the runtime folder
    Install(InstallArgs),
    /// Show which runtimes are installed, and where
    List(ListArgs),
}

/// What `roundhouse runtime install` was asked.
#[derive(Debug, clap::Args)]
pub struct InstallArgs {
    /// The runtime to get
    #[arg(value_enum)]
    pub runtime: Runtime,
    /// The runtime folder, instead of ROUNDHOUSE_RUNTIME_DIR or the user's cache
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The Python whose pip does the download; any version with pip will do
    #[arg(long, value_name = "COMMAND", default_value = "python3")]
    pub python: OsString,
}

/// What `roundhouse runtime list` was asked.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// The runtime folder, instead of ROUNDHOUSE_RUNTIME_DIR or the user's cache
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// A runtime that can be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Runtime {
    /// ONNX Runtime for the CPU.
    Onnxruntime,
    /// ONNX Runtime for NVIDIA GPUs, with the libraries of CUDA 13 and cuDNN 9 that it needs: two gigabytes.
    OnnxruntimeGpu,
    /// libtorch for the CPU, with its headers, for the pytorch backend: half a gigabyte.
    Libtorch,
}

impl Runtime {
    /// What of it is loaded: where it lies in its folder.
    const fn library(self) -> &'static str {
        match self {
            Self::Onnxruntime | Self::OnnxruntimeGpu => ONNXRUNTIME_LIBRARY,
            Self::Libtorch => "torch/lib/libtorch_cpu.so",
        }
    }
}

/// Runs `roundhouse runtime`. `runtime_dir` is the folder that the configuration names; `--dir` goes before it.
///
/// # Errors
/// The platform has no pinned runtime, Python or pip is absent, the download fails, a file is not the pinned one, or the
/// folder cannot be written.
pub fn run(args: &RuntimeArgs, runtime_dir: &Path) -> Result<()> {
    match &args.command {
        RuntimeCommand::Install(install_args) => {
            let runtime = install_args.runtime;
            let runtime_dir = absolute(install_args.dir.as_deref().unwrap_or(runtime_dir))?;
            let (package, progress) = (Package::for_this_machine(runtime)?, Progress::new());
            let outcome = install(&runtime_dir, &install_args.python, package, &progress)?;
            drop(progress);
            let done = if outcome == Outcome::AlreadyThere { "is already installed" } else { "is installed" };
            let path = (package.folder)(&runtime_dir).join(runtime.library());
            say(&format!("{} {} {done}: {}", package.name, package.version, path.display()));
            if install_args.dir.is_some() {
                say(&format!("to use it: ROUNDHOUSE_RUNTIME_DIR={} roundhouse serve ...", runtime_dir.display()));
            }
            Ok(())
        }
        RuntimeCommand::List(list_args) => {
            let runtime_dir = absolute(list_args.dir.as_deref().unwrap_or(runtime_dir))?;
            say(&format!("{:<16}{:<9}{:<12}PATH", "RUNTIME", "VERSION", "STATE"));
            for runtime in Runtime::value_variants() {
                let Some(package) = packages(*runtime).first() else { continue };
                let folder = (package.folder)(&runtime_dir);
                let state = match Package::for_this_machine(*runtime) {
                    Ok(package) => state(&folder, package)?.to_string(),
                    Err(error) => error.report(),
                };
                let path = folder.join(runtime.library());
                say(&format!("{:<16}{:<9}{state:<12}{}", package.name, package.version, path.display()));
            }
            Ok(())
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Error::invalid(format!("'{}' is no folder name", path.display())).with_source(error))
}

/// Prints a line of the answer. That a reader went away (`| head`) is no failure of ours.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

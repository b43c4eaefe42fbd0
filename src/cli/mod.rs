//! The command line: one file a subcommand.

pub mod check;
pub mod emulate;
pub mod gpu_check;
pub mod models;
pub mod pack;
pub mod picker;
mod progress;
pub mod runtime;
pub mod serve;
pub mod simulate;

use std::path::Path;

use crate::config::ServeOptions;
use crate::error::Result;
use crate::server;

/// Many models behind one endpoint, each loaded when it is asked for.
#[derive(Debug, clap::Parser)]
#[command(name = "roundhouse", version = server::VERSION, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Serve the models of a repository over KServe v2
    #[command(after_help = "Example:\n  roundhouse serve --model-repository models-examples\n  \
        curl -s localhost:8000/v2/models/digits")]
    Serve(Box<ServeOptions>),
    /// Say what a model's configuration means, or where it is wrong
    Check(check::CheckArgs),
    /// Pack a model's folder into an archive that a repository can serve
    #[command(after_help = "Example:\n  roundhouse pack models-examples/digits -o digits.tar.zst")]
    Pack(pack::PackArgs),
    /// Show which models a running server has where; load, unload, pin or prefetch them
    Models(models::ModelsArgs),
    /// Install and list the runtimes that models need
    Runtime(runtime::RuntimeArgs),
    /// Replay requests against the eviction policies and compare how long they wait for loads
    Simulate(simulate::SimulateArgs),
    /// Tell a proxy before many instances which of them has a model
    Picker(picker::PickerArgs),
    /// Play SageMaker's multi-model platform against a container on this machine
    #[command(after_help = "Example, against a container started beside it:\n  \
        roundhouse emulate --models s3://bucket/models --work-dir /tmp/models\n  \
        curl -s localhost:8090/endpoints/any/invocations -H 'X-Amzn-SageMaker-Target-Model: digits.tar.gz' -d @body.json")]
    Emulate(Box<emulate::EmulateArgs>),
    /// Check what only a GPU can show
    #[command(hide = true)]
    GpuCheck(gpu_check::GpuCheckArgs),
}

/// Runs a command to its end.
///
/// # Errors
/// What went wrong, for `main` to print.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Serve(options) => serve::run(*options),
        Command::Check(args) => check::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Picker(args) => picker::run(&args),
        Command::Emulate(args) => emulate::run(&args),
        Command::GpuCheck(args) => gpu_check::run(&args),
        Command::Runtime(args) if args.names_dir() => runtime::run(&args, Path::new("")),
        Command::Runtime(args) => runtime::run(&args, &crate::config::default_runtime_dir()?),
    }
}

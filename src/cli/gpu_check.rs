//! `roundhouse gpu-check`: what only a GPU can show, for `docs/gpu.md`. Hidden from users: it says nothing about a server.

mod session;

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::json;

use self::session::SessionArgs;
use crate::error::{Error, ErrorKind, Result};
use crate::kernels::check::{Report, check};

/// What `roundhouse gpu-check` was asked.
#[derive(Debug, clap::Args)]
pub struct GpuCheckArgs {
    /// What to check
    #[command(subcommand)]
    pub command: GpuCheckCommand,
}

/// The subcommands of `roundhouse gpu-check`.
#[derive(Debug, clap::Subcommand)]
pub enum GpuCheckCommand {
    /// Compare each kernel with its twin on the CPU, and its speed with that of a plain copy
    Kernels(KernelArgs),
    /// Run an ONNX model in a loop with nothing around it
    Session(SessionArgs),
}

/// What `roundhouse gpu-check kernels` was asked.
#[derive(Debug, clap::Args)]
pub struct KernelArgs {
    /// The GPU by number
    #[arg(long, default_value_t = 0)]
    pub gpu: usize,
    /// NVRTC's library, where the kernels are not in the binary and it is not on the loader's path
    #[arg(long, value_name = "PATH")]
    pub nvrtc: Option<PathBuf>,
    /// Where compiled kernels are kept
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the check.
///
/// # Errors
/// `Unsupported` where there is no GPU or no NVRTC, `BackendFailed` if a kernel gave a wrong answer; what is wrong with a model.
pub fn run(args: &GpuCheckArgs) -> Result<()> {
    let args = match &args.command {
        GpuCheckCommand::Kernels(args) => args,
        GpuCheckCommand::Session(args) => return session::run(args),
    };
    let report = check(args.gpu, args.nvrtc.clone(), args.cache.clone())?;
    let mut out = io::stdout().lock();
    let printed = if args.json { print_json(&mut out, &report) } else { print_table(&mut out, &report) };
    printed.map_err(|error| Error::new(ErrorKind::Internal, "cannot print").with_source(error))?;
    match report.checked.iter().filter(|row| !row.agrees).count() {
        0 => Ok(()),
        wrong => Err(Error::new(ErrorKind::BackendFailed, format!("{wrong} kernels differ from their twins"))),
    }
}

fn print_json(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let rows = report.checked.iter().map(|row| {
        json!({
            "kernel": row.kernel,
            "work": row.work,
            "agrees": row.agrees,
            "microseconds": row.microseconds,
            "gigabytes_per_second": row.gigabytes_per_second,
            "share_of_copy": row.share_of_copy,
        })
    });
    let document = json!({
        "gpu": report.gpu,
        "architecture": report.architecture.to_string(),
        "kernels": rows.collect::<Vec<_>>(),
    });
    writeln!(out, "{document:#}")
}

fn print_table(out: &mut impl Write, report: &Report) -> io::Result<()> {
    writeln!(out, "{} ({})", report.gpu, report.architecture)?;
    writeln!(out, "{:<14} {:<44} {:>6} {:>10} {:>8} {:>7}", "kernel", "work", "agrees", "us", "GB/s", "of copy")?;
    for row in &report.checked {
        let agrees = if row.agrees { "yes" } else { "NO" };
        writeln!(
            out,
            "{:<14} {:<44} {agrees:>6} {:>10.1} {:>8.1} {:>6.1}%",
            row.kernel,
            row.work,
            row.microseconds,
            row.gigabytes_per_second,
            row.share_of_copy * 100.0
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::check::Checked;
    use crate::kernels::source::Architecture;

    #[test]
    fn a_wrong_kernel_shows_in_both_forms() {
        let row = Checked {
            kernel: "gather",
            work: "two parts".to_owned(),
            agrees: false,
            microseconds: 10.0,
            gigabytes_per_second: 1234.5,
            share_of_copy: 0.875,
        };
        let report = Report {
            gpu: "some GPU".to_owned(),
            architecture: Architecture { major: 9, minor: 0 },
            checked: vec![row],
        };
        let (mut table, mut document) = (Vec::new(), Vec::new());
        print_table(&mut table, &report).unwrap();
        print_json(&mut document, &report).unwrap();
        let table = String::from_utf8(table).unwrap();
        assert!(table.contains("sm_90") && table.contains(" NO ") && table.contains("87.5%"), "{table}");
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["kernels"][0]["agrees"], false);
        assert_eq!(document["architecture"], "sm_90");
    }
}

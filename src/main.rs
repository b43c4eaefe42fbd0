//! The `roundhouse` command: parse, run, exit.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use roundhouse::cli::{self, Cli};
use roundhouse::error::ErrorKind;

/// Wrong configuration or arguments (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody may be reading.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be reading.
            let _ = writeln!(std::io::stderr(), "error: {}", error.report());
            match error.kind() {
                ErrorKind::InvalidArgument | ErrorKind::Unsupported => ExitCode::from(EXIT_USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

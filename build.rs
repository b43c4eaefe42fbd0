//! Stamps the commit into the binary: `roundhouse --version` says what runs.
//!
//! A build from a source archive has no git and says so; the build never fails for that.

use std::path::Path;
use std::process::Command;

fn main() {
    println!(
        "cargo::rustc-env=ROUNDHOUSE_COMMIT={}",
        git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned())
    );
    rerun_when_the_commit_changes();
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

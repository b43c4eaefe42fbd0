//! `roundhouse check`: what a model's configuration means, or where it is wrong.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::model_config::{self, ModelConfig, UnknownFields, VersionPolicy};
use crate::repository::layout;

/// What `roundhouse check` was asked.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// A model's folder, a repository of such folders, or a config.pbtxt
    pub path: PathBuf,
    /// Take fields outside the schema as warnings
    #[arg(long)]
    pub allow_unknown_fields: bool,
}

/// Checks and prints.
///
/// # Errors
/// `InvalidArgument` if a configuration is wrong; all are printed first.
pub fn run(args: &CheckArgs) -> Result<()> {
    let unknown = if args.allow_unknown_fields { UnknownFields::Warn } else { UnknownFields::Deny };
    let folders = folders(&args.path)?;
    let mut out = std::io::stdout().lock();
    let mut wrong = 0;
    for folder in &folders {
        wrong += usize::from(!check_one(&mut out, folder, unknown)?);
    }
    match (wrong, folders.len()) {
        (0, _) => Ok(()),
        (wrong, all) => Err(Error::invalid(format!("{wrong} of {all} model configurations are wrong"))),
    }
}

/// The model folders at `path`: itself, or those in it.
fn folders(path: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |error| Error::invalid(format!("cannot read {}", path.display())).with_source(error);
    if path.is_file() {
        return Ok(vec![path.parent().map(Path::to_owned).unwrap_or_default()]);
    }
    let is_model = |folder: &Path| folder.join(layout::CONFIG).is_file() || !versions(folder).is_empty();
    if is_model(path) {
        return Ok(vec![path.to_owned()]);
    }
    let mut found: Vec<_> = std::fs::read_dir(path)
        .map_err(unreadable)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|folder| is_model(folder))
        .collect();
    found.sort();
    if found.is_empty() {
        return Err(Error::invalid(format!(
            "{} holds no model: expected a {} or version folders such as 1/",
            path.display(),
            layout::CONFIG
        )));
    }
    Ok(found)
}

fn versions(folder: &Path) -> Vec<u64> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut versions: Vec<_> =
        entries.filter_map(|entry| entry.file_name().to_str().and_then(layout::version)).collect();
    versions.sort_unstable();
    versions
}

/// Checks one folder; whether it is right.
fn check_one(out: &mut impl Write, folder: &Path, unknown: UnknownFields) -> Result<bool> {
    let broken_pipe = |error| Error::internal("cannot write to standard output").with_source(error);
    let file = folder.join(layout::CONFIG);
    let shown = file.display().to_string();
    let Ok(text) = std::fs::read_to_string(&file) else {
        writeln!(
            out,
            "{}: no {}; backend, inputs and outputs are read from the model itself",
            folder.display(),
            layout::CONFIG
        )
        .map_err(broken_pipe)?;
        return Ok(true);
    };
    match model_config::parse(&text, unknown) {
        Err(error) => {
            writeln!(out, "{}", error.in_file(&shown)).map_err(broken_pipe)?;
            Ok(false)
        }
        Ok(parsed) => {
            for warning in &parsed.warnings {
                writeln!(out, "{} (warning)", warning.in_file(&shown)).map_err(broken_pipe)?;
            }
            describe(out, &shown, &parsed.config, &versions(folder)).map_err(broken_pipe)?;
            Ok(true)
        }
    }
}

fn describe(out: &mut impl Write, file: &str, config: &ModelConfig, versions: &[u64]) -> std::io::Result<()> {
    writeln!(out, "{file}: ok")?;
    let or = |text: &str, other: &str| if text.is_empty() { other.to_owned() } else { text.to_owned() };
    writeln!(out, "  backend         {}", or(&config.backend, "by the model's file"))?;
    let policy = match &config.version_policy {
        VersionPolicy::Latest(count) => format!("latest {count}"),
        VersionPolicy::All => "all".to_owned(),
        VersionPolicy::Specific(versions) => format!("{versions:?}"),
    };
    writeln!(out, "  versions        {versions:?}, served: {policy}")?;
    let batch = match config.max_batch_size {
        0 => "none: dims are the whole shape".to_owned(),
        size => format!("up to {size}, a dimension before the dims below"),
    };
    writeln!(out, "  batch           {batch}")?;
    for input in &config.inputs {
        let optional = if input.optional { ", optional" } else { "" };
        writeln!(out, "  input           {} {}{:?}{optional}", input.name, input.data_type, input.dims)?;
    }
    for output in &config.outputs {
        writeln!(out, "  output          {} {}{:?}", output.name, output.data_type, output.dims)?;
    }
    for group in &config.instance_groups {
        writeln!(out, "  instances       {} x {}", group.count, group.kind.config_name())?;
    }
    Ok(())
}

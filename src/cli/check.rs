//! `roundhouse check`: what a model's configuration means, or where it is wrong.

mod ensemble;

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::artifact::{self, Everything, Format, HEAD, Limits};
use crate::backend::plugin::discover::library_name;
use crate::backend::plugin::libtorch;
use crate::backend::{identity, onnxruntime, repeat};
use crate::error::{Error, ErrorKind, Result};
use crate::lifecycle::plan::{choose_versions, guess_backend};
use crate::model_config::{self, ModelConfig, UnknownFields, VersionPolicy};
use crate::repository::local::Local;
use crate::repository::tree::ModelTree;
use crate::repository::{ModelRepository, layout};

/// What `roundhouse check` was asked.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// A model's folder, a repository of such folders, a config.pbtxt, or an archive of a model
    pub path: PathBuf,
    /// Take fields outside the schema as warnings
    #[arg(long)]
    pub allow_unknown_fields: bool,
}

/// Checks and prints: all models, the wrong ones too.
///
/// # Errors
/// `InvalidArgument` if a configuration is wrong or there is no model.
pub fn run(args: &CheckArgs) -> Result<()> {
    let unknown = if args.allow_unknown_fields { UnknownFields::Warn } else { UnknownFields::Deny };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .map_err(|error| Error::internal("cannot start the asynchronous runtime").with_source(error))?;
    // Holds the files of an archive until they are checked.
    let mut unpacked = None;
    let trees = if is_archive(&args.path) {
        let folder = unpacked.insert(TempFolder::new()?);
        vec![archived(&args.path, &folder.0)?]
    } else {
        runtime.block_on(trees(&args.path))?
    };
    let mut out = io::stdout().lock();
    let mut wrong = 0;
    for (name, tree) in &trees {
        let checked = match tree {
            Ok(tree) => check_one(&mut out, name, tree, unknown),
            Err(error) => writeln!(out, "{name}: {}", error.report()).map(|()| false),
        };
        let right = checked.map_err(|error| Error::internal("cannot write to standard output").with_source(error))?;
        wrong += usize::from(!right);
    }
    match (wrong, trees.len()) {
        (0, _) => Ok(()),
        (wrong, all) => Err(Error::invalid(format!("{wrong} of {all} models are wrong"))),
    }
}

/// Whether `path` is a file that looks like an archive, by its first bytes or its name.
fn is_archive(path: &Path) -> bool {
    let mut head = Vec::new();
    let is_file =
        path.is_file() && File::open(path).is_ok_and(|file| file.take(HEAD as u64).read_to_end(&mut head).is_ok());
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    is_file && (Format::sniff(&head).is_some() || Format::of_ending(name).is_some())
}

/// The model in an archive, unpacked into `folder`.
fn archived(path: &Path, folder: &Path) -> Result<(String, Result<ModelTree>)> {
    let unreadable = |error: io::Error| Error::invalid(format!("cannot read {}", path.display())).with_source(error);
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = layout::name_of(&file_name).unwrap_or(&file_name).to_owned();
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let unpacked = artifact::unpack(file, length, folder, &Limits::default(), &mut Everything, &mut Everything);
    let tree = unpacked.and_then(|_| ModelTree::read_unpacked(&name, folder));
    Ok((name, tree))
}

/// A new folder of our own for temporary files, removed when this goes.
struct TempFolder(PathBuf);

impl TempFolder {
    fn new() -> Result<Self> {
        let failed = |error| Error::internal("cannot create a temporary folder").with_source(error);
        let mut attempt = 0;
        loop {
            let folder = std::env::temp_dir().join(format!("roundhouse-check-{}-{attempt}", std::process::id()));
            // Never one that is there already: it may be somebody else's.
            match DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => return Ok(Self(folder)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The models at `path`: the one whose folder or configuration it is, or those of the repository it is.
async fn trees(path: &Path) -> Result<Vec<(String, Result<ModelTree>)>> {
    let path = path
        .canonicalize()
        .map_err(|error| Error::invalid(format!("cannot read {}", path.display())).with_source(error))?;
    let folder = if path.file_name().is_some_and(|name| name == layout::CONFIG) { path.parent() } else { Some(&*path) };
    if let Some(folder) = folder
        && let (Some(parent), Some(name)) = (folder.parent(), folder.file_name().and_then(|name| name.to_str()))
    {
        let tree = Local::open(parent)?.resolve(name).await.and_then(|tree| ModelTree::of(&tree));
        if !matches!(&tree, Err(error) if error.kind() == ErrorKind::NotFound) {
            return Ok(vec![(name.to_owned(), tree)]);
        }
    }
    let repository = Local::open(&path)?;
    let names = repository.list().await?;
    if names.is_empty() {
        return Err(Error::invalid(format!(
            "{} holds no model: expected a {}, a model.onnx or version folders such as 1/",
            path.display(),
            layout::CONFIG
        )));
    }
    let mut trees = Vec::with_capacity(names.len());
    for name in names {
        let tree = repository.resolve(&name).await.and_then(|tree| ModelTree::of(&tree));
        trees.push((name, tree));
    }
    Ok(trees)
}

/// Checks one model; whether it is right.
fn check_one(out: &mut impl Write, name: &str, tree: &ModelTree, unknown: UnknownFields) -> io::Result<bool> {
    let file = format!("{}/{}", name, layout::CONFIG);
    let config = match tree.config.as_deref().map(|text| model_config::parse(text, unknown)) {
        Some(Err(error)) => {
            writeln!(out, "{}", error.in_file(&file))?;
            return Ok(false);
        }
        Some(Ok(parsed)) => {
            for warning in &parsed.warnings {
                writeln!(out, "{} (warning)", warning.in_file(&file))?;
            }
            parsed.config
        }
        None => ModelConfig::minimal(name, ""),
    };
    let mut faults = faults(tree, &config);
    let mut right = true;
    if let Some(scheduling) = &config.ensemble {
        let found = ensemble::check(name, tree, &config, scheduling);
        faults.extend(found.faults);
        for note in found.notes {
            writeln!(out, "{name}: {note} (warning)")?;
        }
        for (part, tree) in ensemble::parts(tree, scheduling) {
            right &= check_one(out, &format!("{name}/{part}"), &tree, unknown)?;
        }
    }
    for fault in &faults {
        writeln!(out, "{}: {fault}", name)?;
    }
    if faults.is_empty() {
        describe(out, name, tree, &config)?;
    }
    Ok(right && faults.is_empty())
}

/// What is wrong between the configuration and the files, as far as it shows without loading the model.
fn faults(tree: &ModelTree, config: &ModelConfig) -> Vec<String> {
    let mut faults = Vec::new();
    let served = choose_versions(&config.version_policy, &tree.versions);
    if served.is_empty() {
        faults.push(format!("version_policy leaves none of the versions {:?}", tree.versions));
    }
    if config.ensemble.is_some() {
        return faults;
    }
    let backend = backend(tree, config);
    match backend {
        "" => faults.push("names no backend and has no model.onnx to tell it by: set `backend`".to_owned()),
        onnxruntime::NAME | libtorch::NAME if tree.bare_file.is_none() => {
            let usual = if backend == libtorch::NAME { "model.pt" } else { "model.onnx" };
            let file = if config.default_model_filename.is_empty() { usual } else { &config.default_model_filename };
            for version in served {
                if !tree.directory.join(version.to_string()).join(file).exists() {
                    faults.push(format!("version {version} has no file {file}"));
                }
            }
        }
        // Another one is a library of its own, which the server looks for.
        _ => {}
    }
    faults
}

fn backend<'a>(tree: &ModelTree, config: &'a ModelConfig) -> &'a str {
    if config.backend.is_empty() { guess_backend(tree, config).unwrap_or_default() } else { &config.backend }
}

fn describe(out: &mut impl Write, name: &str, tree: &ModelTree, config: &ModelConfig) -> io::Result<()> {
    writeln!(out, "{}: ok", name)?;
    match &config.ensemble {
        None => {
            let backend = backend(tree, config);
            let is_ours = [onnxruntime::NAME, identity::NAME, repeat::NAME].contains(&backend);
            let remark = if is_ours { String::new() } else { format!(", from {}", library_name(backend)) };
            writeln!(out, "  backend         {backend}{remark}")?;
        }
        Some(scheduling) => {
            let steps: Vec<_> = scheduling.steps.iter().map(|step| step.model.as_str()).collect();
            writeln!(out, "  ensemble        of {}", steps.join(", "))?;
        }
    }
    let policy = match &config.version_policy {
        VersionPolicy::Latest(count) => format!("latest {count}"),
        VersionPolicy::All => "all".to_owned(),
        VersionPolicy::Specific(versions) => format!("{versions:?}"),
    };
    writeln!(out, "  versions        {:?}, served: {policy}", tree.versions)?;
    let batch = match config.max_batch_size {
        0 => "none: dims are the whole shape".to_owned(),
        size => format!("up to {size}, a dimension before the dims below"),
    };
    writeln!(out, "  batch           {batch}")?;
    if config.ensemble.is_none() && (config.inputs.is_empty() || config.outputs.is_empty()) {
        writeln!(out, "  tensors         those not given here are read from the model")?;
    }
    for input in &config.inputs {
        let optional = if input.optional { ", optional" } else { "" };
        let pixels = match config.image_input.as_ref().filter(|image| image.name == input.name) {
            Some(image) => format!(", made of pixels: clients send UINT8{:?}", image.dims(false)),
            None => String::new(),
        };
        writeln!(out, "  input           {} {}{:?}{optional}{pixels}", input.name, input.data_type, input.dims)?;
    }
    for output in &config.outputs {
        writeln!(out, "  output          {} {}{:?}", output.name, output.data_type, output.dims)?;
    }
    for group in &config.instance_groups {
        writeln!(out, "  instances       {} x {}", group.count, group.kind.config_name())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::pack::pack;

    #[test]
    fn an_archive_is_checked_like_its_folder_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let model = root.path().join("digits");
        std::fs::create_dir_all(model.join("1")).unwrap();
        std::fs::write(model.join("config.pbtxt"), "backend: \"identity\"").unwrap();
        // By its bytes: the name does not say that this is an archive.
        let archive = root.path().join("digits.bin");
        let file = File::create(&archive).unwrap();
        assert!(pack(&model, file, Format::TarZst).is_ok() && is_archive(&archive) && !is_archive(&model));
        let folder = TempFolder::new().unwrap();
        let (name, tree) = archived(&archive, &folder.0).unwrap();
        assert_eq!((name.as_str(), tree.unwrap().versions), ("digits.bin", vec![1]));
        let path = folder.0.clone();
        assert!(path.join("config.pbtxt").exists());
        drop(folder);
        assert!(!path.exists());

        let broken = root.path().join("broken.tar.gz");
        std::fs::write(&broken, "no archive").unwrap();
        let args = CheckArgs { path: broken, allow_unknown_fields: false };
        assert_eq!(run(&args).unwrap_err().to_string(), "1 of 1 models are wrong");
    }

    #[test]
    fn an_ensemble_is_checked_with_the_models_of_its_steps() {
        let root = tempfile::tempdir().unwrap();
        let put = |model: &str, text: &str| {
            std::fs::create_dir_all(root.path().join(model).join("1")).unwrap();
            std::fs::write(root.path().join(model).join("config.pbtxt"), text).unwrap();
        };
        let tensors = |data_type: &str| {
            let tensor = |name| format!("{{ name: '{name}' data_type: TYPE_{data_type} dims: -1 }}");
            format!("input {} output {}", tensor("x"), tensor("y"))
        };
        let step = |model, takes, makes| {
            format!(
                "step {{ model_name: '{model}' input_map {{ key: 'x' value: '{takes}' }} output_map {{ key: 'y' value: '{makes}' }} }}"
            )
        };
        let (first, second) = (step("a", "x", "t"), step("b", "t", "y"));
        put("e", &format!("platform: 'ensemble' {} ensemble_scheduling {{ {first} {second} }}", tensors("INT32")));
        put("a", &format!("backend: 'identity' {}", tensors("INT32")));
        put("b", &format!("backend: 'identity' {}", tensors("FP32")));
        let unpacked = tempfile::tempdir().unwrap();
        let said = |path: &Path| {
            let (name, tree) = match is_archive(path) {
                true => {
                    let (name, tree) = archived(path, unpacked.path()).unwrap();
                    (name, tree.unwrap())
                }
                false => ("e".to_owned(), ModelTree::read("e", path).unwrap().unwrap()),
            };
            let mut out = Vec::new();
            let right = check_one(&mut out, &name, &tree, UnknownFields::Deny).unwrap();
            (right, String::from_utf8(out).unwrap())
        };
        let (right, text) = said(&root.path().join("e"));
        assert!(!right && text.starts_with("e: tensor 't' is TYPE_FP32 for input 'x' of step 'b'"), "{text}");
        put("b", &format!("backend: 'identity' {}", tensors("INT32")));
        let (right, text) = said(&root.path().join("e"));
        assert!(right && text.contains("  ensemble        of a, b\n"), "{text}");
        let archive = root.path().join("all.tar");
        let folder = tempfile::tempdir().unwrap();
        for model in ["e", "a"] {
            std::fs::rename(root.path().join(model), folder.path().join(model)).unwrap();
        }
        pack(folder.path(), File::create(&archive).unwrap(), Format::Tar).unwrap();
        let (right, text) = said(&archive);
        assert!(!right && text.contains("all/a: ok\n") && text.contains("step 'b' is not in the archive"), "{text}");
    }
}

//! `ModelTree`: the files of a model on this machine, in Triton's layout.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::layout::{self, CONFIG, MODEL_FILES};
use super::manifest::{Form, ModelManifest};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::Version;
use crate::model_config::{self, UnknownFields};

/// The largest `config.pbtxt`, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A model's files on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelTree {
    /// The model's folder; for a bare file the folder it lies in.
    pub directory: PathBuf,
    /// Whether that folder is the model's own: that of a bare file at the side of other models is not.
    pub owns_directory: bool,
    /// The text of `config.pbtxt`, where there is one.
    pub config: Option<String>,
    /// The version folders, ascending; for a bare file version 1 alone.
    pub versions: Vec<Version>,
    /// The model's file where it lies outside a version folder: `resnet.onnx`, or `resnet/model.onnx`.
    pub bare_file: Option<PathBuf>,
    /// The folder of the models that came with it, for an ensemble of several models in one archive.
    pub bundle: Option<PathBuf>,
}

impl ModelTree {
    /// A model file that lies at the side of others.
    #[must_use]
    pub fn bare(file: PathBuf) -> Self {
        let directory = file.parent().map(Path::to_owned).unwrap_or_default();
        Self { directory, owns_directory: false, config: None, versions: vec![1], bare_file: Some(file), bundle: None }
    }

    /// The files of a model that lies on this machine as it is, in no archive. Blocking.
    ///
    /// # Errors
    /// `NotFound` if it has gone meanwhile, `Unsupported` for what must be fetched or unpacked first, or as
    /// [`ModelTree::read`].
    pub fn of(manifest: &ModelManifest) -> Result<Self> {
        let absent = || Error::not_found(format!("there is no model '{}' in the repository", manifest.name));
        match (&manifest.local, manifest.form) {
            (Some(folder), Form::Directory) => match Self::read(&manifest.name, folder)? {
                Some(tree) => Ok(tree),
                // An ensemble among its steps, as an archive may hold them.
                None if folder.is_dir() => Self::read_unpacked(&manifest.name, folder),
                None => Err(absent()),
            },
            (Some(file), Form::File) => Ok(Self::bare(file.clone())),
            (_, _) => Err(Error::unsupported(format!("'{}' must be fetched and unpacked first", manifest.key))),
        }
    }

    /// The folder of model `name`, or `None` if nothing in it says that it is a model. Blocking.
    ///
    /// # Errors
    /// `RepositoryFailed` if it cannot be read; `TooLarge` or `InvalidArgument` for a configuration that is no text.
    pub fn read(name: &str, folder: &Path) -> Result<Option<Self>> {
        let config_file = folder.join(CONFIG);
        let config = match std::fs::metadata(&config_file) {
            Ok(metadata) if metadata.is_file() => Some(read_config(name, &config_file)?),
            // A pipe would hold up whoever reads it.
            Ok(_) => return Err(Error::invalid(format!("{CONFIG} of model '{name}' is no file"))),
            Err(error) if is_absent(&error) => None,
            Err(error) => return Err(unreadable(&config_file, error)),
        };
        let versions = match version_folders(folder) {
            Ok(versions) => versions,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(unreadable(folder, error)),
        };
        let bare_file =
            MODEL_FILES.iter().map(|(file, _, _)| folder.join(file)).find(|file| versions.is_empty() && file.is_file());
        if config.is_none() && versions.is_empty() && bare_file.is_none() {
            return Ok(None);
        }
        // There is nothing to put into a version's folder of an ensemble, and S3 has no empty folders.
        let is_one = bare_file.is_some() || (versions.is_empty() && config.as_deref().and_then(steps_of).is_some());
        let versions = if is_one { vec![1] } else { versions };
        let directory = folder.to_owned();
        Ok(Some(Self { directory, owns_directory: true, config, versions, bare_file, bundle: None }))
    }

    /// The model inside a folder that an archive was unpacked to: at its root, in its one folder, or the ensemble among
    /// several. Blocking.
    ///
    /// # Errors
    /// As [`ModelTree::read`]; `InvalidArgument` if there is no model in it, or several of which none is the entry.
    pub fn read_unpacked(name: &str, root: &Path) -> Result<Self> {
        if let Some(tree) = Self::read(name, root)? {
            return Ok(tree);
        }
        let mut trees = Vec::new();
        let entries = root.read_dir().map_err(|error| unreadable(root, error))?;
        for entry in entries {
            let path = entry.map_err(|error| unreadable(root, error))?.path();
            if path.is_dir() {
                trees.extend(Self::read(name, &path)?);
            } else if path.to_str().is_some_and(|path| layout::backend_of(path).is_some()) {
                trees.push(Self { owns_directory: true, ..Self::bare(path) });
            }
        }
        match trees.len() {
            0 => Err(Error::invalid(format!(
                "the archive of model '{name}' holds no model: a {CONFIG}, a version folder or a model.onnx is needed at its \
                 root or in its one folder"
            ))),
            1 => Ok(trees.swap_remove(0)),
            count => {
                let steps: Vec<_> = trees.iter().map(|tree| tree.config.as_deref().and_then(steps_of)).collect();
                let is_step = |tree: &Self| {
                    steps.iter().flatten().any(|steps| tree.name().is_some_and(|name| steps.contains(name)))
                };
                let is_entry = |(tree, steps): &(&Self, &Option<_>)| steps.is_some() && !is_step(tree);
                let mut entries = trees.iter().zip(&steps).filter(is_entry);
                match (entries.next(), entries.next()) {
                    (Some((entry, _)), None) => Ok(Self { bundle: Some(root.to_owned()), ..entry.clone() }),
                    _ => Err(Error::invalid(format!(
                        "the archive of model '{name}' holds {count} models and not exactly one ensemble that is no step of \
                         another: pack each model by itself, or an ensemble with the models of its steps"
                    ))),
                }
            }
        }
    }

    /// A model that came with this one, by its folder's name or that of its file without the ending; `None` where there is
    /// none. Blocking.
    ///
    /// # Errors
    /// As [`ModelTree::read`].
    pub fn part(&self, part: &str) -> Result<Option<Self>> {
        let is_name = !part.contains('/') && part != ".." && part != ".";
        let Some(bundle) = self.bundle.as_ref().filter(|_| is_name) else { return Ok(None) };
        let bare = || {
            let files = MODEL_FILES.iter().map(|(_, ending, _)| bundle.join(format!("{part}{ending}")));
            files.into_iter().find(|file| file.is_file()).map(|file| Self { owns_directory: true, ..Self::bare(file) })
        };
        let tree = Self::read(part, &bundle.join(part))?.or_else(bare);
        Ok(tree.map(|tree| Self { bundle: Some(bundle.clone()), ..tree }))
    }

    /// The name by which an ensemble in the same archive knows it: that of its folder, or of its file where that lies in
    /// none of its own.
    fn name(&self) -> Option<&str> {
        let is_usual = |file: &&PathBuf| MODEL_FILES.iter().any(|(usual, _, _)| file.ends_with(usual));
        match self.bare_file.as_ref().filter(|file| !is_usual(file)) {
            Some(file) => file.file_stem()?.to_str(),
            None => self.directory.file_name()?.to_str(),
        }
    }
}

/// The models that an ensemble of this configuration asks; `None` for what is no ensemble. A text that cannot be read is
/// taken for one where it says so, for its error to be told when it is loaded.
fn steps_of(text: &str) -> Option<BTreeSet<String>> {
    if !text.contains("ensemble") {
        return None;
    }
    match model_config::parse(text, UnknownFields::Warn) {
        Ok(parsed) => {
            parsed.config.ensemble.map(|ensemble| ensemble.steps.into_iter().map(|step| step.model).collect())
        }
        Err(_) => Some(BTreeSet::new()),
    }
}

fn read_config(name: &str, file: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    // Not by the file's length: devices and pipes lie about theirs.
    std::fs::File::open(file)
        .and_then(|file| file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(file, error))?;
    config_text(name, bytes)
}

/// The text of a `config.pbtxt`.
///
/// # Errors
/// `TooLarge` above [`MAX_CONFIG_BYTES`], `InvalidArgument` for what is not UTF-8.
pub fn config_text(name: &str, bytes: Vec<u8>) -> Result<String> {
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(Error::too_large(format!("{CONFIG} of model '{name}' is larger than {MAX_CONFIG_BYTES} bytes")));
    }
    String::from_utf8(bytes)
        .map_err(|error| Error::invalid(format!("{CONFIG} of model '{name}' is not UTF-8")).with_source(error))
}

pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename)
}

pub(super) fn unreadable(path: &Path, error: io::Error) -> Error {
    let name = path.file_name().unwrap_or_default().display().to_string();
    Error::new(ErrorKind::RepositoryFailed, format!("cannot read {name} in the model repository")).with_source(error)
}

/// Whether something in the folder says that it is a model.
pub(super) fn is_model_folder(folder: &Path) -> bool {
    folder.join(CONFIG).is_file()
        || MODEL_FILES.iter().any(|(file, _, _)| folder.join(file).is_file())
        || version_folders(folder).is_ok_and(|versions| !versions.is_empty())
}

fn version_folders(folder: &Path) -> io::Result<Vec<Version>> {
    let mut versions = Vec::new();
    for entry in folder.read_dir()? {
        let entry = entry?;
        if let Some(version) = entry.file_name().to_str().and_then(layout::version)
            && entry.path().is_dir()
        {
            versions.push(version);
        }
    }
    versions.sort_unstable();
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_folder_with_versions_is_a_model_and_odd_folders_are_not_versions() {
        let root = folder(&[
            ("config.pbtxt", "x"),
            ("1/model.onnx", ""),
            ("3/model.onnx", ""),
            ("007/x", ""),
            ("notes/y", ""),
        ]);
        let tree = ModelTree::read("m", root.path()).unwrap().unwrap();
        assert_eq!(tree.versions, [1, 3]);
        assert_eq!(tree.config.as_deref(), Some("x"));
        assert!(tree.bare_file.is_none() && tree.owns_directory);
    }

    #[test]
    fn a_model_is_found_wherever_an_archive_may_hold_it() {
        let at_root = folder(&[("1/model.onnx", "")]);
        assert_eq!(ModelTree::read_unpacked("m", at_root.path()).unwrap().directory, at_root.path());
        let in_folder = folder(&[("other-name/config.pbtxt", ""), ("README", "")]);
        assert!(ModelTree::read_unpacked("m", in_folder.path()).unwrap().directory.ends_with("other-name"));
        let ensemble = folder(&[("a/1/model.onnx", ""), ("b/config.pbtxt", "platform: \"ensemble\""), ("c/1/x", "")]);
        assert!(ModelTree::read_unpacked("m", ensemble.path()).unwrap().directory.ends_with("b"));
        let bare = folder(&[("resnet.onnx", "")]);
        assert!(ModelTree::read_unpacked("m", bare.path()).unwrap().bare_file.unwrap().ends_with("resnet.onnx"));
    }

    fn ensemble(step: &str) -> String {
        let maps = "input_map { key: 'x' value: 'x' } output_map { key: 'y' value: 'y' }";
        let tensors =
            "input { name: 'x' data_type: TYPE_INT32 dims: 1 } output { name: 'y' data_type: TYPE_INT32 dims: 1 }";
        format!("platform: 'ensemble' {tensors} ensemble_scheduling {{ step {{ model_name: '{step}' {maps} }} }}")
    }

    #[test]
    fn the_entry_of_an_archive_is_the_ensemble_that_is_no_step_of_another_and_the_rest_are_its_parts() {
        let (outer, inner) = (ensemble("inner"), ensemble("last"));
        let root =
            folder(&[("outer/config.pbtxt", &outer), ("inner/config.pbtxt", &inner), ("last.onnx", ""), ("p/1/x", "")]);
        let entry = ModelTree::read_unpacked("m", root.path()).unwrap();
        assert!(entry.directory.ends_with("outer") && entry.bundle.as_deref() == Some(root.path()));
        let inner = entry.part("inner").unwrap().unwrap();
        assert!(inner.directory.ends_with("inner") && inner.bundle == entry.bundle);
        assert!(inner.part("last").unwrap().unwrap().bare_file.unwrap().ends_with("last.onnx"));
        assert_eq!(entry.part("p").unwrap().unwrap().versions, [1]);
        for none in ["none", "../outer", "p/1", ".."] {
            assert!(matches!(entry.part(none), Ok(None)), "{none}");
        }
        let two = folder(&[("a/config.pbtxt", &ensemble("c")), ("b/config.pbtxt", &ensemble("c")), ("c/1/x", "")]);
        assert!(
            ModelTree::read_unpacked("m", two.path()).unwrap_err().to_string().contains("not exactly one ensemble")
        );
    }

    #[test]
    fn an_ensemble_needs_no_version_folder_and_the_word_alone_makes_none() {
        let root =
            folder(&[("e/config.pbtxt", &ensemble("a")), ("m/config.pbtxt", "backend: 'identity' # no ensemble")]);
        let versions = |name: &str| ModelTree::read(name, &root.path().join(name)).unwrap().unwrap().versions;
        assert_eq!((versions("e"), versions("m")), (vec![1], Vec::new()));
    }

    #[test]
    fn an_archive_without_one_model_says_so() {
        let none = folder(&[("README", "")]);
        assert!(ModelTree::read_unpacked("m", none.path()).unwrap_err().to_string().contains("holds no model"));
        let two = folder(&[("a/1/model.onnx", ""), ("b/1/model.onnx", "")]);
        assert!(ModelTree::read_unpacked("m", two.path()).unwrap_err().to_string().contains("holds 2 models"));
    }

    #[test]
    fn a_config_that_is_not_text_is_refused() {
        let root = folder(&[("config.pbtxt", "")]);
        std::fs::write(root.path().join("config.pbtxt"), [0xff, 0xfe]).unwrap();
        assert_eq!(ModelTree::read("m", root.path()).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

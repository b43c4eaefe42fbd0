//! A folder as a model repository.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;

use super::layout::{self, CONFIG, MODEL_FILES};
use super::{ModelManifest, ModelRepository, check_name};
use crate::error::{Error, ErrorKind, Result};
use crate::inference::Version;

/// Folders are looked into this deep for models (`team/region/resnet` is three).
const MAX_DEPTH: usize = 6;

/// The largest `config.pbtxt`, in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A repository in a folder on this machine.
#[derive(Clone, Debug)]
pub struct Local {
    root: PathBuf,
}

impl Local {
    /// The repository in `root`.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not a folder that can be read.
    pub fn open(root: &Path) -> Result<Self> {
        let root = root.canonicalize().map_err(|error| {
            Error::invalid(format!("cannot open the model repository {}", root.display())).with_source(error)
        })?;
        if !root.is_dir() {
            return Err(Error::invalid(format!("the model repository {} is not a folder", root.display())));
        }
        Ok(Self { root })
    }

    fn resolve_blocking(&self, name: &str) -> Result<ModelManifest> {
        check_name(name)?;
        // What lies inside a model is a part of it, not a model of its own.
        let mut ancestors = Path::new(name).ancestors().skip(1).filter(|ancestor| !ancestor.as_os_str().is_empty());
        if ancestors.any(|ancestor| is_model_folder(&self.root.join(ancestor))) {
            return Err(absent(name));
        }
        let folder = self.root.join(name);
        match folder.metadata() {
            Ok(metadata) if metadata.is_dir() => {
                if let Some(manifest) = read_folder(name, &folder)? {
                    return Ok(manifest);
                }
            }
            Ok(metadata) if metadata.is_file() && layout::backend_of(name).is_some() => {
                return Ok(bare(name, folder));
            }
            Ok(_) => {}
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(unreadable(&folder, error)),
        }
        for (_, ending, _) in MODEL_FILES {
            let file = self.root.join(format!("{name}{ending}"));
            if file.is_file() {
                return Ok(bare(name, file));
            }
        }
        Err(absent(name))
    }

    fn list_blocking(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let mut folders = vec![(self.root.clone(), String::new(), 0)];
        while let Some((folder, prefix, depth)) = folders.pop() {
            let entries = match folder.read_dir() {
                Ok(entries) => entries,
                // A folder that vanished meanwhile holds no model; an unreadable root is worth an error.
                Err(_) if depth > 0 => continue,
                Err(error) => return Err(unreadable(&folder, error)),
            };
            for entry in entries.flatten() {
                let Ok(file_name) = entry.file_name().into_string() else { continue };
                if file_name.starts_with('.') {
                    continue;
                }
                let name = format!("{prefix}{file_name}");
                let path = entry.path();
                if path.is_dir() {
                    if is_model_folder(&path) {
                        names.push(name);
                    } else if depth + 1 < MAX_DEPTH {
                        folders.push((path, format!("{name}/"), depth + 1));
                    }
                } else if let Some((_, ending, _)) =
                    MODEL_FILES.iter().find(|(_, ending, _)| file_name.ends_with(ending))
                {
                    names.push(name[..name.len() - ending.len()].to_owned());
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

fn absent(name: &str) -> Error {
    Error::not_found(format!("there is no model '{name}' in the repository"))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename)
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    let name = path.file_name().unwrap_or_default().display().to_string();
    Error::new(ErrorKind::RepositoryFailed, format!("cannot read {name} in the model repository")).with_source(error)
}

fn bare(name: &str, file: PathBuf) -> ModelManifest {
    let directory = file.parent().map(Path::to_owned).unwrap_or_default();
    ModelManifest {
        name: name.to_owned(),
        directory,
        owns_directory: false,
        config: None,
        versions: vec![1],
        bare_file: Some(file),
    }
}

fn is_model_folder(folder: &Path) -> bool {
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

/// A folder as a model, or `None` if nothing in it says that it is one.
fn read_folder(name: &str, folder: &Path) -> Result<Option<ModelManifest>> {
    let config_file = folder.join(CONFIG);
    let config = match std::fs::metadata(&config_file) {
        Ok(_) => {
            let mut bytes = Vec::new();
            // Not by the file's length: devices and pipes lie about theirs.
            std::fs::File::open(&config_file)
                .and_then(|file| file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes))
                .map_err(|error| unreadable(&config_file, error))?;
            if bytes.len() as u64 > MAX_CONFIG_BYTES {
                let text = format!("{CONFIG} of model '{name}' is larger than {MAX_CONFIG_BYTES} bytes");
                return Err(Error::too_large(text));
            }
            let text = String::from_utf8(bytes).map_err(|error| {
                Error::invalid(format!("{CONFIG} of model '{name}' is not UTF-8")).with_source(error)
            })?;
            Some(text)
        }
        Err(error) if is_absent(&error) => None,
        Err(error) => return Err(unreadable(&config_file, error)),
    };
    let versions = version_folders(folder).map_err(|error| unreadable(folder, error))?;
    let bare_file =
        MODEL_FILES.iter().map(|(file, _, _)| folder.join(file)).find(|file| versions.is_empty() && file.is_file());
    if config.is_none() && versions.is_empty() && bare_file.is_none() {
        return Ok(None);
    }
    let versions = if bare_file.is_some() { vec![1] } else { versions };
    Ok(Some(ModelManifest {
        name: name.to_owned(),
        directory: folder.to_owned(),
        owns_directory: true,
        config,
        versions,
        bare_file,
    }))
}

/// Runs `work` where blocking is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal("reading the model repository failed").with_source(error))?
}

impl ModelRepository for Local {
    fn list(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        let repository = self.clone();
        Box::pin(blocking(move || repository.list_blocking()))
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ModelManifest>> {
        let repository = self.clone();
        let name = name.to_owned();
        Box::pin(blocking(move || repository.resolve_blocking(&name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(files: &[&str]) -> (tempfile::TempDir, Local) {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "x").unwrap();
        }
        let local = Local::open(root.path()).unwrap();
        (root, local)
    }

    #[test]
    fn a_folder_with_versions_is_a_model_and_odd_folders_are_not_versions() {
        let (_root, local) =
            repository(&["m/config.pbtxt", "m/1/model.onnx", "m/3/model.onnx", "m/007/x", "m/notes/y"]);
        let manifest = local.resolve_blocking("m").unwrap();
        assert_eq!(manifest.versions, [1, 3]);
        assert_eq!(manifest.config.as_deref(), Some("x"));
        assert!(manifest.bare_file.is_none());
    }

    #[test]
    fn bare_files_are_models_in_three_places() {
        let (_root, local) = repository(&["a.onnx", "b/model.onnx", "team/c/1/model.onnx", "d.pt"]);
        assert!(local.resolve_blocking("a").unwrap().bare_file.unwrap().ends_with("a.onnx"));
        assert!(local.resolve_blocking("a.onnx").unwrap().bare_file.unwrap().ends_with("a.onnx"));
        assert!(local.resolve_blocking("b").unwrap().bare_file.unwrap().ends_with("b/model.onnx"));
        assert_eq!(local.resolve_blocking("team/c").unwrap().versions, [1]);
        // The folder of a file at the side of other models holds those too.
        assert!(!local.resolve_blocking("a").unwrap().owns_directory);
        assert!(local.resolve_blocking("b").unwrap().owns_directory);
        assert_eq!(local.list_blocking().unwrap(), ["a", "b", "d", "team/c"]);
    }

    #[test]
    fn what_is_not_there_is_not_found_and_what_leaves_is_refused() {
        let (_root, local) = repository(&["team/c/1/model.onnx", "plain/readme.txt"]);
        for absent in ["x", "team", "plain", "team/c/1/model.onnx/deeper", "team/c/1", "team/c/1/model"] {
            assert_eq!(local.resolve_blocking(absent).unwrap_err().kind(), ErrorKind::NotFound, "{absent}");
        }
        assert_eq!(local.resolve_blocking("../etc").unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn a_config_that_is_not_text_is_refused() {
        let (root, local) = repository(&["m/config.pbtxt"]);
        std::fs::write(root.path().join("m/config.pbtxt"), [0xff, 0xfe]).unwrap();
        assert_eq!(local.resolve_blocking("m").unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

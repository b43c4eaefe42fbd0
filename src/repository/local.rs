//! A folder as a model repository.

use std::fs::Metadata;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};

use super::layout::{self, ARCHIVE_ENDINGS, MODEL_FILES};
use super::manifest::{Form, ModelManifest, Object};
use super::tree::{is_absent, is_model_folder, unreadable};
use super::{ByteStream, FetchError, ModelRepository, check_name};
use crate::error::{Error, ErrorKind, Result};

/// Folders are looked into this deep for models (`team/region/resnet` is three).
const MAX_DEPTH: usize = 6;

/// The most files of a model's folder.
pub(super) const MAX_FILES: usize = 100_000;

/// Bytes read at a time.
const CHUNK: u64 = 256 << 10;

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
        let path = self.root.join(name);
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => {
                if is_model_folder(&path) {
                    let objects = files_below(&path)?;
                    return Ok(found(name, Form::Directory, name.to_owned(), objects, path));
                }
            }
            Ok(metadata) if metadata.is_file() => {
                if let Some(form) = layout::form_of(name) {
                    return Ok(one_file(name, form, name.to_owned(), &metadata, path));
                }
            }
            Ok(_) => {}
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(unreadable(&path, error)),
        }
        let endings = ARCHIVE_ENDINGS.iter().map(|ending| (*ending, Form::Archive));
        for (ending, form) in endings.chain(MODEL_FILES.iter().map(|(_, ending, _)| (*ending, Form::File))) {
            let key = format!("{name}{ending}");
            let path = self.root.join(&key);
            if let Ok(metadata) = path.metadata()
                && metadata.is_file()
            {
                return Ok(one_file(name, form, key, &metadata, path));
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
                } else if let Some(name) = layout::name_of(&name) {
                    names.push(name.to_owned());
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

/// What lies at `path`, under another name than its own: a model's folder, or one file. Blocking.
///
/// # Errors
/// `NotFound` if nothing is there, `InvalidArgument` for a file that is no model, or as reading the folder fails.
pub(super) fn manifest_of(name: &str, path: &Path) -> Result<ModelManifest> {
    let metadata = path.metadata().map_err(|error| match is_absent(&error) {
        true => absent(name),
        false => unreadable(path, error),
    })?;
    let key = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if metadata.is_dir() {
        return Ok(found(name, Form::Directory, key, files_below(path)?, path.to_owned()));
    }
    let form = layout::form_of(&key)
        .ok_or_else(|| Error::invalid(format!("'{key}' is neither an archive nor a model file")))?;
    Ok(one_file(name, form, key, &metadata, path.to_owned()))
}

fn absent(name: &str) -> Error {
    Error::not_found(format!("there is no model '{name}' in the repository"))
}

fn found(name: &str, form: Form, key: String, objects: Vec<Object>, path: PathBuf) -> ModelManifest {
    ModelManifest { name: name.to_owned(), form, key, objects, local: Some(path) }
}

fn one_file(name: &str, form: Form, key: String, metadata: &Metadata, path: PathBuf) -> ModelManifest {
    let file = key.rsplit_once('/').map_or(&*key, |(_, file)| file).to_owned();
    let objects = vec![Object { path: file, size: metadata.len(), tag: tag(metadata) }];
    found(name, form, key, objects, path)
}

/// Changes with the content: whoever writes a file changes its time, whoever replaces it its inode.
fn tag(metadata: &Metadata) -> String {
    format!("{:x}-{:x}.{:x}", metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
}

/// The files of a model's folder, links followed, by path; an empty folder as an object whose path ends in a slash.
fn files_below(folder: &Path) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    let mut folders = vec![(folder.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = folders.pop() {
        let before = objects.len() + folders.len();
        for entry in folder.read_dir().map_err(|error| unreadable(&folder, error))? {
            let path = entry.map_err(|error| unreadable(&folder, error))?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let relative = format!("{prefix}{name}");
            // A link to nowhere, or a file that vanished, is no file of the model.
            let Ok(metadata) = path.metadata() else { continue };
            if metadata.is_file() {
                objects.push(Object { path: relative, size: metadata.len(), tag: tag(&metadata) });
            } else if metadata.is_dir() && depth < MAX_DEPTH {
                folders.push((path, format!("{relative}/"), depth + 1));
            }
            if objects.len() > MAX_FILES {
                return Err(Error::too_large(format!("a model's folder holds more than {MAX_FILES} files")));
            }
        }
        // A version without files is one all the same: some backends need none.
        if objects.len() + folders.len() == before && !prefix.is_empty() {
            objects.push(Object { path: prefix, size: 0, tag: String::new() });
        }
    }
    objects.sort_unstable_by(|one, other| one.path.cmp(&other.path));
    Ok(objects)
}

/// The file, if it is the one the manifest means.
fn open_unchanged(path: &Path, object: &Object) -> Result<Option<std::fs::File>> {
    let opened = std::fs::File::open(path).and_then(|file| Ok((file.metadata()?, file)));
    match opened {
        Ok((metadata, file)) => {
            Ok((metadata.is_file() && metadata.len() == object.size && tag(&metadata) == object.tag).then_some(file))
        }
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
}

fn read_at(file: &std::fs::File, start: u64, end: u64) -> Result<Bytes, FetchError> {
    let mut bytes = vec![0; usize::try_from(end - start).unwrap_or_default()];
    match file.read_exact_at(&mut bytes, start) {
        Ok(()) => Ok(bytes.into()),
        // Cut since it was opened.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(FetchError::Changed),
        Err(error) => {
            let text = "cannot read a file of the model repository";
            Err(FetchError::Failed(Error::new(ErrorKind::RepositoryFailed, text).with_source(error)))
        }
    }
}

/// Runs `work` where blocking is allowed.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
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

    fn fetch<'a>(
        &'a self,
        manifest: &'a ModelManifest,
        object: usize,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, FetchError>> {
        fetch(manifest, object, range)
    }
}

/// Begins to read a range of a file of this machine.
pub(super) fn fetch<'a>(
    manifest: &'a ModelManifest,
    object: usize,
    range: Range<u64>,
) -> BoxFuture<'a, Result<ByteStream, FetchError>> {
    let object = manifest.objects.get(object).cloned();
    let local = manifest.local.clone();
    let form = manifest.form;
    Box::pin(async move {
        let (Some(object), Some(local)) = (object, local) else {
            return Err(FetchError::Failed(Error::internal("a file was asked for that is not in the manifest")));
        };
        let path = if form == Form::Directory { local.join(&object.path) } else { local };
        let opened = blocking(move || open_unchanged(&path, &object)).await.map_err(FetchError::Failed)?;
        let file = Arc::new(opened.ok_or(FetchError::Changed)?);
        let chunks = range.clone().step_by(usize::try_from(CHUNK).unwrap_or(usize::MAX));
        let read = move |start: u64| {
            let (file, end) = (Arc::clone(&file), (start + CHUNK).min(range.end));
            async move { blocking(move || Ok(read_at(&file, start, end))).await.map_err(FetchError::Failed)? }
        };
        Ok(stream::iter(chunks).then(read).boxed())
    })
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
    fn a_model_is_looked_for_in_the_order_of_the_forms() {
        let (root, local) = repository(&["m/1/model.onnx", "m.tar.gz", "m.zip", "m.onnx", "team/c.tgz"]);
        let key = |name: &str| local.resolve_blocking(name).map(|manifest| (manifest.key, manifest.form)).unwrap();
        assert_eq!(key("m"), ("m".to_owned(), Form::Directory));
        std::fs::remove_dir_all(root.path().join("m")).unwrap();
        assert_eq!(key("m"), ("m.tar.gz".to_owned(), Form::Archive));
        assert_eq!(key("m.zip"), ("m.zip".to_owned(), Form::Archive));
        assert_eq!(key("m.onnx"), ("m.onnx".to_owned(), Form::File));
        assert_eq!(key("team/c"), ("team/c.tgz".to_owned(), Form::Archive));
        assert_eq!(local.list_blocking().unwrap(), ["m", "team/c"]);
    }

    #[test]
    fn bare_files_are_models_in_three_places() {
        let (_root, local) = repository(&["a.onnx", "b/model.onnx", "team/c/1/model.onnx", "d.pt"]);
        let manifest = local.resolve_blocking("b").unwrap();
        assert_eq!((manifest.form, manifest.objects[0].path.as_str()), (Form::Directory, "model.onnx"));
        assert_eq!(local.resolve_blocking("a").unwrap().form, Form::File);
        assert_eq!(local.list_blocking().unwrap(), ["a", "b", "d", "team/c"]);
    }

    #[tokio::test]
    async fn a_file_that_was_replaced_is_changed_not_mixed() {
        let (root, local) = repository(&["m.tar"]);
        let file = root.path().join("m.tar");
        std::fs::write(&file, vec![7; 600_000]).unwrap();
        let manifest = local.resolve_blocking("m").unwrap();
        let chunks: Vec<_> = local.fetch(&manifest, 0, 5..500_000).await.unwrap().collect().await;
        let bytes: usize = chunks.into_iter().map(|chunk| chunk.unwrap().len()).sum();
        assert_eq!(bytes, 499_995);
        std::fs::write(root.path().join("new"), vec![8; 600_000]).unwrap();
        std::fs::rename(root.path().join("new"), &file).unwrap();
        assert!(matches!(local.fetch(&manifest, 0, 0..10).await, Err(FetchError::Changed)));
    }

    #[test]
    fn what_is_not_there_is_not_found_and_what_leaves_is_refused() {
        let (_root, local) = repository(&["team/c/1/model.onnx", "plain/readme.txt"]);
        for absent in ["x", "team", "plain", "team/c/1/model.onnx/deeper", "team/c/1", "team/c/1/model"] {
            assert_eq!(local.resolve_blocking(absent).unwrap_err().kind(), ErrorKind::NotFound, "{absent}");
        }
        assert_eq!(local.resolve_blocking("../etc").unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

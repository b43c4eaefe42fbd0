//! Models that somebody put on this machine and says where: SageMaker's platform, mostly. Other names are looked for in the
//! repository below.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::RwLock;

use super::layout::MODEL_FILES;
use super::local::{MAX_FILES, manifest_of};
use super::manifest::ModelManifest;
use super::tree::ModelTree;
use super::{ByteStream, FetchError, ModelRepository, check_name};
use crate::error::{Error, Result};

/// Models by the name they were given, over another repository.
#[derive(Clone)]
pub struct Registered(Arc<Inner>);

struct Inner {
    below: Option<Arc<dyn ModelRepository>>,
    places: RwLock<BTreeMap<String, Place>>,
}

/// Where a model lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// As whoever registered it wrote it.
    pub shown: String,
    /// A folder that holds the model as an archive would, or a file; without links in the way there.
    pub path: PathBuf,
}

impl Registered {
    /// No models of its own, and those of the repository below.
    #[must_use]
    pub fn over(below: Option<Arc<dyn ModelRepository>>) -> Self {
        Self(Arc::new(Inner { below, places: RwLock::default() }))
    }

    /// Says where a model lies, instead of where it was said to lie before.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no name.
    pub fn register(&self, name: &str, place: Place) -> Result<()> {
        check_name(name)?;
        self.0.places.write().insert(name.to_owned(), place);
        Ok(())
    }

    /// Forgets where a model lies; says whether that was known.
    pub fn forget(&self, name: &str) -> bool {
        self.0.places.write().remove(name).is_some()
    }

    /// Where a model lies, if somebody said so.
    #[must_use]
    pub fn place(&self, name: &str) -> Option<Place> {
        self.0.places.read().get(name).cloned()
    }

    fn resolve_registered(name: &str, place: &Place) -> Result<ModelManifest> {
        let absent = || Error::not_found(format!("there is nothing in {}", place.shown));
        let metadata = place.path.metadata().map_err(|error| absent().with_source(error))?;
        if metadata.is_file() {
            return manifest_of(name, &place.path);
        }
        check_links(&place.path)?;
        let tree = ModelTree::read_unpacked(name, &place.path)?;
        // A file of any name at the side of others is the model; `model.onnx` belongs to the folder it lies in.
        let is_usual = |file: &Path| MODEL_FILES.iter().any(|(usual, _, _)| file.file_name() == Some(usual.as_ref()));
        if let Some(bundle) = &tree.bundle {
            return manifest_of(name, bundle);
        }
        let lone = tree.bare_file.as_deref().filter(|file| !is_usual(file));
        manifest_of(name, lone.unwrap_or(&tree.directory))
    }
}

/// Checks that no link in a model's folder leads out of it: what others own is no part of it, nor to be read in an error.
fn check_links(root: &Path) -> Result<()> {
    let unreadable = |path: &Path, error| super::tree::unreadable(path, error);
    let mut folders = vec![root.to_owned()];
    let mut seen = 0_usize;
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().map_err(|error| unreadable(&folder, error))? {
            let entry = entry.map_err(|error| unreadable(&folder, error))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(|error| unreadable(&folder, error))?);
            seen += 1;
            if seen > MAX_FILES {
                return Err(Error::too_large(format!("the model's folder holds more than {MAX_FILES} files")));
            }
            if kind.is_dir() {
                folders.push(path);
            } else if !kind.is_file() && !kind.is_symlink() {
                let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                return Err(Error::invalid(format!("'{}' is neither a file nor a folder", name.escape_debug())));
            } else if kind.is_symlink() && !path.canonicalize().is_ok_and(|real| real.starts_with(root)) {
                let link = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                return Err(Error::invalid(format!(
                    "the link '{}' leads out of the model's folder",
                    link.escape_debug()
                )));
            }
        }
    }
    Ok(())
}

impl ModelRepository for Registered {
    fn list(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(async {
            let mut names = match &self.0.below {
                Some(below) => below.list().await?,
                None => Vec::new(),
            };
            names.extend(self.0.places.read().keys().cloned());
            names.sort_unstable();
            names.dedup();
            Ok(names)
        })
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ModelManifest>> {
        Box::pin(async move {
            if let Some(place) = self.place(name) {
                let name = name.to_owned();
                return super::local::blocking(move || Self::resolve_registered(&name, &place)).await;
            }
            check_name(name)?;
            match &self.0.below {
                Some(below) => below.resolve(name).await,
                None => Err(Error::not_found(format!("there is no model '{name}'"))),
            }
        })
    }

    fn expect(&self, name: &str) {
        if let Some(below) = &self.0.below {
            below.expect(name);
        }
    }

    fn fetch<'a>(
        &'a self,
        manifest: &'a ModelManifest,
        object: usize,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, FetchError>> {
        match (&manifest.local, &self.0.below) {
            (Some(_), _) => super::local::fetch(manifest, object, range),
            (None, Some(below)) => below.fetch(manifest, object, range),
            (None, None) => {
                Box::pin(async { Err(FetchError::Failed(Error::internal("a file was asked for that is nowhere"))) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::Form;
    use super::*;
    use crate::error::ErrorKind;
    use crate::repository::local::Local;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
        }
        root
    }

    fn at(path: PathBuf) -> Place {
        Place { shown: "shown".to_owned(), path: path.canonicalize().unwrap_or(path) }
    }

    #[tokio::test]
    async fn a_link_may_lead_to_the_models_own_files_and_nowhere_else() {
        let root = folder(&[("m/1/model.onnx", ""), ("secret/config.pbtxt", "AWS_SECRET: 1")]);
        let model = root.path().join("m");
        std::os::unix::fs::symlink("1/model.onnx", model.join("same")).unwrap();
        let repository = Registered::over(None);
        repository.register("m", at(model.clone())).unwrap();
        assert!(repository.resolve("m").await.is_ok());
        for (link, target) in [("config.pbtxt", "../secret/config.pbtxt"), ("2", "../secret"), ("x", "nowhere")] {
            std::os::unix::fs::symlink(target, model.join(link)).unwrap();
            let error = repository.resolve("m").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{link}");
            assert!(error.report().contains(link) && !error.report().contains("AWS"), "{}", error.report());
            std::fs::remove_file(model.join(link)).unwrap();
        }
    }

    #[tokio::test]
    async fn what_can_hang_a_reader_is_refused() {
        let root = folder(&[("m/1/model.onnx", "")]);
        let fifo = root.path().join("m/config.pbtxt");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        let repository = Registered::over(None);
        repository.register("m", at(root.path().join("m"))).unwrap();
        let error = repository.resolve("m").await.unwrap_err();
        assert!(error.report().contains("'config.pbtxt' is neither a file"), "{}", error.report());
    }

    #[tokio::test]
    async fn a_registered_model_is_found_in_each_layout_an_archive_may_have() {
        let root = folder(&[
            ("root/config.pbtxt", ""),
            ("root/1/model.onnx", ""),
            ("one/inner/config.pbtxt", ""),
            ("ensemble/a/1/model.onnx", ""),
            ("ensemble/b/config.pbtxt", "platform: \"ensemble\""),
            ("bare/resnet.onnx", ""),
            ("flat/config.pbtxt", ""),
            ("flat/model.onnx", ""),
            ("archive/x.tar.gz", ""),
        ]);
        let repository = Registered::over(None);
        for (name, place, end, form) in [
            ("m-1.x", "root", "root", Form::Directory),
            ("m2", "one", "inner", Form::Directory),
            ("m3", "ensemble", "ensemble", Form::Directory),
            ("m4", "bare", "resnet.onnx", Form::File),
            ("m5", "archive/x.tar.gz", "x.tar.gz", Form::Archive),
            ("m6", "flat", "flat", Form::Directory),
        ] {
            repository.register(name, at(root.path().join(place))).unwrap();
            let manifest = repository.resolve(name).await.unwrap();
            assert!(manifest.local.as_ref().unwrap().ends_with(end), "{manifest:?}");
            assert_eq!((manifest.name.as_str(), manifest.form), (name, form));
        }
        assert_eq!(repository.list().await.unwrap(), ["m-1.x", "m2", "m3", "m4", "m5", "m6"]);
    }

    #[tokio::test]
    async fn a_name_has_one_place_until_it_is_forgotten_and_then_that_of_the_repository() {
        let (root, below) = (folder(&[("m/1/model.onnx", "")]), folder(&[("m/2/model.onnx", "")]));
        let repository = Registered::over(Some(Arc::new(Local::open(below.path()).unwrap())));
        let place = at(root.path().join("m"));
        repository.register("m", place.clone()).unwrap();
        assert_eq!(repository.resolve("m").await.unwrap().objects[0].path, "1/model.onnx");
        assert_eq!(repository.place("m"), Some(place));
        assert!(repository.forget("m") && !repository.forget("m"));
        assert_eq!(repository.resolve("m").await.unwrap().objects[0].path, "2/model.onnx");
    }

    #[tokio::test]
    async fn a_place_without_a_model_says_so_and_a_name_that_is_none_is_refused() {
        let root = folder(&[("empty/read.me", "")]);
        let repository = Registered::over(None);
        repository.register("m", at(root.path().join("empty"))).unwrap();
        assert_eq!(repository.resolve("m").await.unwrap_err().kind(), ErrorKind::InvalidArgument);
        repository.register("gone", at(root.path().join("gone"))).unwrap();
        assert_eq!(repository.resolve("gone").await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(repository.resolve("other").await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(repository.register("../m", at("/x".into())).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

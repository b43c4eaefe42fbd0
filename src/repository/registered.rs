//! Models that somebody put on this machine and says where: SageMaker's platform, mostly. Other names are looked for in the
//! repository below.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::RwLock;

use super::local::manifest_of;
use super::manifest::ModelManifest;
use super::tree::ModelTree;
use super::{ByteStream, FetchError, ModelRepository, check_name};
use crate::error::{Error, Result};

/// Models by the name they were given, over another repository.
#[derive(Clone)]
pub struct Registered(Arc<Inner>);

struct Inner {
    below: Option<Arc<dyn ModelRepository>>,
    /// Where each lies: a folder that holds the model as an archive would, or a file.
    places: RwLock<BTreeMap<String, PathBuf>>,
}

impl Registered {
    /// No models of its own, and those of the repository below.
    #[must_use]
    pub fn over(below: Option<Arc<dyn ModelRepository>>) -> Self {
        Self(Arc::new(Inner { below, places: RwLock::default() }))
    }

    /// Says where a model lies. `false` if the name has a place already, which stays.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no name.
    pub fn register(&self, name: &str, place: PathBuf) -> Result<bool> {
        check_name(name)?;
        let mut places = self.0.places.write();
        if places.contains_key(name) {
            return Ok(false);
        }
        places.insert(name.to_owned(), place);
        Ok(true)
    }

    /// Forgets where a model lies, if it is still `place`.
    pub fn forget(&self, name: &str, place: &Path) {
        let mut places = self.0.places.write();
        if places.get(name).is_some_and(|known| known == place) {
            places.remove(name);
        }
    }

    /// Where a model lies, if somebody said so.
    #[must_use]
    pub fn place(&self, name: &str) -> Option<PathBuf> {
        self.0.places.read().get(name).cloned()
    }

    fn resolve_registered(name: &str, place: &Path) -> Result<ModelManifest> {
        let absent = || Error::not_found(format!("there is no model in {}", place.display()));
        let metadata = place.metadata().map_err(|error| absent().with_source(error))?;
        if metadata.is_file() {
            return manifest_of(name, place);
        }
        let tree = ModelTree::read_unpacked(name, place)?;
        manifest_of(
            name,
            tree.bare_file.as_deref().filter(|file| file.parent() == Some(place)).unwrap_or(&tree.directory),
        )
    }
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

    #[tokio::test]
    async fn a_registered_model_is_found_in_each_layout_an_archive_may_have() {
        let root = folder(&[
            ("root/config.pbtxt", ""),
            ("root/1/model.onnx", ""),
            ("one/inner/config.pbtxt", ""),
            ("ensemble/a/1/model.onnx", ""),
            ("ensemble/b/config.pbtxt", "platform: \"ensemble\""),
            ("bare/resnet.onnx", ""),
            ("archive/x.tar.gz", ""),
        ]);
        let repository = Registered::over(None);
        for (name, place, end, form) in [
            ("m-1.x", "root", "root", Form::Directory),
            ("m2", "one", "inner", Form::Directory),
            ("m3", "ensemble", "b", Form::Directory),
            ("m4", "bare", "resnet.onnx", Form::File),
            ("m5", "archive/x.tar.gz", "x.tar.gz", Form::Archive),
        ] {
            assert!(repository.register(name, root.path().join(place)).unwrap());
            let manifest = repository.resolve(name).await.unwrap();
            assert!(manifest.local.as_ref().unwrap().ends_with(end), "{manifest:?}");
            assert_eq!((manifest.name.as_str(), manifest.form), (name, form));
        }
        assert_eq!(repository.list().await.unwrap(), ["m-1.x", "m2", "m3", "m4", "m5"]);
    }

    #[tokio::test]
    async fn a_name_has_one_place_until_it_is_forgotten_and_then_that_of_the_repository() {
        let (root, below) = (folder(&[("m/1/model.onnx", "")]), folder(&[("m/2/model.onnx", "")]));
        let repository = Registered::over(Some(Arc::new(Local::open(below.path()).unwrap())));
        let place = root.path().join("m");
        assert!(repository.register("m", place.clone()).unwrap());
        assert!(!repository.register("m", "/else".into()).unwrap());
        assert_eq!(repository.resolve("m").await.unwrap().objects[0].path, "1/model.onnx");
        repository.forget("m", Path::new("/else"));
        assert_eq!(repository.place("m"), Some(place.clone()));
        repository.forget("m", &place);
        assert_eq!(repository.resolve("m").await.unwrap().objects[0].path, "2/model.onnx");
    }

    #[tokio::test]
    async fn a_place_without_a_model_says_so_and_a_name_that_is_none_is_refused() {
        let root = folder(&[("empty/read.me", "")]);
        let repository = Registered::over(None);
        repository.register("m", root.path().join("empty")).unwrap();
        assert_eq!(repository.resolve("m").await.unwrap_err().kind(), ErrorKind::InvalidArgument);
        repository.register("gone", root.path().join("gone")).unwrap();
        assert_eq!(repository.resolve("gone").await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(repository.resolve("other").await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(repository.register("../m", "/x".into()).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}

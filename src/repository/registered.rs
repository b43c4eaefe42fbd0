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

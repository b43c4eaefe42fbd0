//! Any repository, failing and waiting by script.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::manifest::ModelManifest;
use super::{ByteStream, FetchError, ModelRepository};
use crate::error::{Error, ErrorKind, Result};

/// How a call goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It returns this error.
    Error(Error),
    /// It panics with this text.
    Panic(&'static str),
    /// It reads the repository, then waits for [`Faulty::release`] before it says what it read.
    Hold,
}

/// What the script and the counts are kept by: a model's name for `resolve`, nothing for `list`.
type Call = Option<String>;

/// The repository below, and the test's hand on it.
pub struct Faulty {
    inner: Arc<dyn ModelRepository>,
    script: Mutex<HashMap<Call, VecDeque<Fault>>>,
    begun: Mutex<HashMap<Call, usize>>,
    held: Semaphore,
}

impl Faulty {
    /// `inner`, faithful until a fault is written into the script.
    #[must_use]
    pub fn new(inner: Arc<dyn ModelRepository>) -> Self {
        Self { inner, script: Mutex::default(), begun: Mutex::default(), held: Semaphore::new(0) }
    }

    /// What the next `resolve` of `name` that is not spoken for yet does.
    pub fn next_resolve(&self, name: &str, fault: Fault) {
        self.script.lock().entry(Some(name.to_owned())).or_default().push_back(fault);
    }

    /// What the next `list` that is not spoken for yet does.
    pub fn next_list(&self, fault: Fault) {
        self.script.lock().entry(None).or_default().push_back(fault);
    }

    /// Lets one call go on that holds.
    pub fn release(&self) {
        self.held.add_permits(1);
    }

    /// How often `name` was asked for.
    #[must_use]
    pub fn resolves(&self, name: &str) -> usize {
        self.begun.lock().get(&Some(name.to_owned())).copied().unwrap_or_default()
    }

    #[expect(clippy::panic, reason = "the panic is what the test asked for")]
    async fn answer<T>(&self, call: Call, reading: BoxFuture<'_, Result<T>>) -> Result<T> {
        *self.begun.lock().entry(call.clone()).or_default() += 1;
        let fault = self.script.lock().get_mut(&call).and_then(VecDeque::pop_front);
        match fault {
            None => reading.await,
            Some(Fault::Error(error)) => Err(error),
            Some(Fault::Panic(text)) => panic!("{text}"),
            Some(Fault::Hold) => {
                let read = reading.await;
                let permit = self.held.acquire().await;
                permit.map(tokio::sync::SemaphorePermit::forget).map_err(|closed| {
                    Error::new(ErrorKind::RepositoryFailed, "the repository is gone").with_source(closed)
                })?;
                read
            }
        }
    }
}

impl ModelRepository for Faulty {
    fn list(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(self.answer(None, self.inner.list()))
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ModelManifest>> {
        Box::pin(self.answer(Some(name.to_owned()), self.inner.resolve(name)))
    }

    fn expect(&self, name: &str) {
        self.inner.expect(name);
    }

    fn fetch<'a>(
        &'a self,
        manifest: &'a ModelManifest,
        object: usize,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, FetchError>> {
        self.inner.fetch(manifest, object, range)
    }
}

#[cfg(test)]
mod tests {
    use super::super::local::Local;
    use super::*;

    fn faulty() -> (tempfile::TempDir, Faulty) {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("m/1")).unwrap();
        let local = Local::open(root.path()).unwrap();
        (root, Faulty::new(Arc::new(local)))
    }

    #[tokio::test]
    async fn the_injector_fires_once_and_then_is_faithful() {
        let (_root, faulty) = faulty();
        faulty.next_resolve("m", Fault::Error(Error::new(ErrorKind::RepositoryFailed, "the network is down")));
        faulty.next_list(Fault::Error(Error::new(ErrorKind::RepositoryFailed, "the network is down")));
        assert_eq!(faulty.resolve("m").await.unwrap_err().kind(), ErrorKind::RepositoryFailed);
        assert_eq!(faulty.list().await.unwrap_err().kind(), ErrorKind::RepositoryFailed);
        assert_eq!(faulty.resolve("m").await.unwrap().key, "m");
        assert_eq!(faulty.list().await.unwrap(), ["m"]);
        assert_eq!((faulty.resolves("m"), faulty.resolves("other")), (2, 0));
    }

    #[tokio::test]
    async fn a_held_call_has_read_before_it_waits() {
        let (root, faulty) = faulty();
        faulty.next_resolve("m", Fault::Hold);
        let held = faulty.resolve("m");
        let vanish_then_release = async {
            while faulty.resolves("m") == 0 {
                tokio::task::yield_now().await;
            }
            faulty.release();
        };
        let (manifest, ()) = tokio::join!(held, vanish_then_release);
        assert_eq!(manifest.unwrap().key, "m");
        drop(root);
    }
}

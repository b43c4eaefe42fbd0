//! The S3 repository, the downloader and whole servers over a small S3 in this process, and the former over SeaweedFS.

mod bucket;
mod change;
mod disk;
pub(crate) mod double;
mod download;
mod faults;
mod kill;
mod resolve;
mod seaweed;
mod serving;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use roundhouse::error::Result;
use roundhouse::repository::ModelRepository;
use roundhouse::repository::conformance::Tree;
use roundhouse::repository::s3::{S3, S3Options};

use self::double::S3Double;

/// Options for a store of our own: no credentials are looked for, and no test waits long.
pub(crate) fn options() -> S3Options {
    S3Options {
        anonymous: true,
        region: Some("us-east-1".to_owned()),
        back_off: std::time::Duration::from_millis(1),
        negative_ttl: std::time::Duration::ZERO,
        ..S3Options::default()
    }
}

pub(crate) fn open(double: &S3Double, path: &str, options: S3Options) -> Arc<S3> {
    let uri = double.uri(path).parse().unwrap();
    Arc::new(S3::open(&uri, options, tokio::runtime::Handle::current()).unwrap())
}

/// A repository of the double, below `bucket/models`.
struct DoubleTree {
    double: S3Double,
    repository: Arc<S3>,
}

impl DoubleTree {
    async fn start() -> Self {
        let double = S3Double::start().await;
        let repository = open(&double, "bucket/models", options());
        Self { double, repository }
    }
}

impl Tree for DoubleTree {
    fn repository(&self) -> &dyn ModelRepository {
        &*self.repository
    }

    fn put<'a>(&'a self, path: &'a str, content: &'a [u8]) -> BoxFuture<'a, Result<()>> {
        self.double.put(&format!("bucket/models/{path}"), content.to_vec());
        Box::pin(async { Ok(()) })
    }

    fn remove<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<()>> {
        self.double.remove(&format!("bucket/models/{path}"));
        Box::pin(async { Ok(()) })
    }
}

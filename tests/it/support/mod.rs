//! What the tests stand on: a server in this process, the binary in its own, a folder of models, a small HTTP client.

pub(crate) mod binary;
pub(crate) mod certificates;
pub(crate) mod client;
pub(crate) mod http2;
pub(crate) mod nvml;
pub(crate) mod repository;
pub(crate) mod server;

use std::future::Future;
use std::time::{Duration, Instant};

/// For `alone!`, which looks for them here.
pub(crate) use crate::cuda::{folder_inside, run_inside};

/// Longer than anything takes here that works, on a machine that does other things besides.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// The future's value, or a failure where it would never come.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LONG, future).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("{what}: not within {LONG:?}"),
    }
}

/// Looks again and again until `reached`; for what cannot be waited on.
pub(crate) async fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !reached() {
        assert!(begun.elapsed() < LONG, "{what}: not within {LONG:?}");
        tokio::task::yield_now().await;
    }
}

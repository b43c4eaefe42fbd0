//! SageMaker's port: the contract of its containers and the runtime API of its endpoints.

mod container;
mod runtime;

use std::path::{Path, PathBuf};
use std::time::Duration;

use roundhouse::config::amount::{Amount, Limited, MemoryLimit};
use roundhouse::config::sagemaker::SageMakerMode;
use roundhouse::config::{Eviction, ModelControl, ServerConfig};
use serde_json::json;

use crate::support::client::{Request, delete, infer_body, post};

/// Memory for models of so many KiB, and no protection of the young.
fn memory(config: &mut ServerConfig, kib: u64) {
    config.cache.memory_limits = vec![MemoryLimit { device: Limited::Cpu, amount: Amount::Bytes(kib << 10) }];
    config.cache.min_residency = Duration::ZERO;
}

/// The configuration of a multi-model container: the platform brings its models below `root`, and chooses who leaves.
fn container(root: &Path) -> impl FnOnce(&mut ServerConfig) + use<> {
    let root = root.to_owned();
    move |config| {
        config.model_repository = None;
        config.model_control = ModelControl::Explicit;
        config.cache.eviction = Eviction::External;
        config.sagemaker.mode = SageMakerMode::MultiModel;
        config.sagemaker.model_roots = vec![root];
    }
}

/// What the platform puts below the root for one model: `ROOT/HASH/model/NAME/...`.
struct Platform {
    root: tempfile::TempDir,
}

impl Platform {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    fn root(&self) -> &Path {
        self.root.path()
    }

    /// Puts a model of the `gated` backend that needs so many KiB.
    fn put(&self, hash: &str, kib: u64) -> PathBuf {
        let model = self.root().join(hash).join("model");
        let folder = model.join("inner");
        std::fs::create_dir_all(folder.join("1")).unwrap();
        let text = crate::support::repository::config(hash, "gated", &crate::support::repository::holds(kib, kib));
        std::fs::write(folder.join("config.pbtxt"), text).unwrap();
        model
    }

    /// `POST /models` for it.
    fn load(&self, hash: &str) -> Request {
        let url = self.root().join(hash).join("model");
        post("/models", json!({"model_name": hash, "url": url}).to_string())
    }
}

fn unload(hash: &str) -> Request {
    delete(&format!("/models/{hash}"))
}

fn invoke(hash: &str, tag: i32) -> Request {
    post(&format!("/models/{hash}/invoke"), infer_body(tag).to_string())
}

fn endpoint(target: &str, tag: i32) -> Request {
    post("/endpoints/ep/invocations", infer_body(tag).to_string()).header("x-amzn-sagemaker-target-model", target)
}

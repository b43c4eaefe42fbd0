//! The fake NVML: built from `tests/plugins/fake-nvml`, in a folder of its own with the state that it answers from.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

/// A copy of the library, and its state beside it.
pub(crate) struct FakeNvml {
    folder: TempDir,
}

impl FakeNvml {
    /// The words of the state are explained in the library's source.
    pub(crate) fn saying(state: &str) -> Self {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(BUILT.get_or_init(build), folder.path().join("libnvidia-ml.so.1")).unwrap();
        let fake = Self { folder };
        fake.say(state);
        fake
    }

    /// Changes the state; the next call sees it.
    pub(crate) fn say(&self, state: &str) {
        let (fresh, path) = (self.folder.path().join("fresh"), self.folder.path().join("state"));
        std::fs::write(&fresh, state).unwrap();
        std::fs::rename(fresh, path).unwrap();
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }
}

/// Builds the library into the folder this test was built to: cargo builds no shared library for a test by itself.
fn build() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let target = profile.parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline", "--locked", "--package", "fake-nvml", "--target-dir"]).arg(target);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let built = cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).status().unwrap();
    assert!(built.success(), "the fake NVML cannot be built");
    profile.join("libfake_nvml.so")
}

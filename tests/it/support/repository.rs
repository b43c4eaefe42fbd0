//! A folder of models that goes with the test.

use std::path::Path;

use tempfile::TempDir;

/// A model repository in a temporary folder.
pub(crate) struct Repository {
    root: TempDir,
}

/// The configuration of a model that gives back its input `x`, any number of INT32, as `y`.
pub(crate) fn config(name: &str, backend: &str, more: &str) -> String {
    let tensor = |name| format!("[ {{ name: \"{name}\" data_type: TYPE_INT32 dims: [ -1 ] }} ]");
    format!("name: \"{name}\"\nbackend: \"{backend}\"\ninput {}\noutput {}\n{more}\n", tensor("x"), tensor("y"))
}

/// One instance, whatever the number of executor threads.
pub(crate) const ONE_INSTANCE: &str = "instance_group [ { count: 1 kind: KIND_CPU } ]";

/// Parameters of a gated model that says it needs `needs` KiB and turns out to hold `holds`.
pub(crate) fn holds(needs: u64, holds: u64) -> String {
    let parameter =
        |key, kib: u64| format!("parameters {{ key: \"{key}\" value {{ string_value: \"{}\" }} }}\n", kib << 10);
    parameter("memory_bytes", needs) + &parameter("holds_bytes", holds)
}

impl Repository {
    /// A folder without models.
    pub(crate) fn empty() -> Self {
        Self { root: tempfile::tempdir().unwrap() }
    }

    /// A folder with models of the `gated` backend.
    pub(crate) fn gated(names: &[&str]) -> Self {
        names.iter().fold(Self::empty(), |repository, name| repository.with(name, "gated", ""))
    }

    /// The folder with one model more, of one version.
    pub(crate) fn with(self, name: &str, backend: &str, more: &str) -> Self {
        self.put(&format!("{name}/config.pbtxt"), config(name, backend, more));
        self.add_version(name, 1);
        self
    }

    /// The folder with models more that say they need, and hold, so many KiB.
    pub(crate) fn sized(self, models: &[(&str, u64)]) -> Self {
        models.iter().fold(self, |repository, (name, kib)| repository.with(name, "gated", &holds(*kib, *kib)))
    }

    /// Adds a version folder.
    pub(crate) fn add_version(&self, name: &str, version: u64) {
        std::fs::create_dir_all(self.path().join(name).join(version.to_string())).unwrap();
    }

    /// Writes a file with the folders above it.
    pub(crate) fn put(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Writes a file of the model's first version anew, as it is: what is loaded next is another content.
    pub(crate) fn touch(&self, name: &str) {
        let folder = self.path().join(name).join("1");
        std::fs::create_dir_all(&folder).unwrap();
        let (file, fresh) = (folder.join("weights"), folder.join("weights.fresh"));
        std::fs::write(&fresh, "as ever").unwrap();
        std::fs::rename(&fresh, &file).unwrap();
    }

    /// Removes a model.
    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_dir_all(self.path().join(name)).unwrap();
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.root.path()
    }
}

//! What every model repository must do, wherever it keeps its models: one suite for all of them.

use std::collections::BTreeSet;

use futures_util::future::BoxFuture;

use super::{ModelManifest, ModelRepository};
use crate::error::{Error, ErrorKind, Result};

/// A repository that a test can write to, empty at first.
pub trait Tree: Send + Sync {
    /// The repository over the tree.
    fn repository(&self) -> &dyn ModelRepository;

    /// Writes a file, with the folders above it; `path` is relative, with slashes.
    fn put<'a>(&'a self, path: &'a str, content: &'a [u8]) -> BoxFuture<'a, Result<()>>;

    /// Removes a file, or everything below a folder.
    fn remove<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<()>>;
}

/// The files of the tree, and what each of its models is.
const FILES: &[&str] = &[
    "plain/config.pbtxt",
    "plain/1/model.onnx",
    "plain/3/model.onnx",
    "plain/20/model.onnx",
    "plain/007/model.onnx",
    "plain/notes/read.me",
    "team/region/deep/config.pbtxt",
    "team/region/deep/1/weights",
    "unconfigured/2/model.onnx",
    "folder/model.onnx",
    "file.onnx",
    "torch.pt",
    "config_only/config.pbtxt",
    "no_model/read.me",
    "read.me",
];

const MODELS: &[&str] = &["config_only", "file", "folder", "plain", "team/region/deep", "torch", "unconfigured"];

/// Holds a repository against the contract of [`ModelRepository`].
///
/// # Errors
/// Whatever the repository says where it should have worked.
///
/// # Panics
/// Where it does not do what it must.
pub async fn repository_conformance(tree: &dyn Tree) -> Result<()> {
    let repository = tree.repository();
    assert!(repository.list().await?.is_empty(), "an empty repository has no models");
    for path in FILES {
        tree.put(path, path.as_bytes()).await?;
    }
    assert_eq!(repository.list().await?, MODELS, "the models are listed, ascending and once each");
    every_model_resolves_under_its_key(repository).await?;
    what_is_no_model_is_not_found(repository).await;
    names_that_leave_the_repository_are_refused(repository).await;
    changes_are_seen(tree).await?;
    many_may_ask_at_once(repository).await
}

async fn resolve(repository: &dyn ModelRepository, name: &str) -> Result<ModelManifest> {
    let manifest = repository.resolve(name).await?;
    assert_eq!(manifest.name, name, "a manifest bears the key it was asked for by");
    assert!(!manifest.versions.contains(&0), "{name}: versions begin at 1");
    assert!(manifest.versions.is_sorted(), "{name}: versions ascend");
    let distinct: BTreeSet<_> = manifest.versions.iter().collect();
    assert_eq!(distinct.len(), manifest.versions.len(), "{name}: each version is there once");
    Ok(manifest)
}

async fn every_model_resolves_under_its_key(repository: &dyn ModelRepository) -> Result<()> {
    let plain = resolve(repository, "plain").await?;
    assert_eq!(plain.versions, [1, 3, 20], "folders that are no plain number are no versions");
    assert_eq!(plain.config.as_deref(), Some("plain/config.pbtxt"), "the configuration comes as it was written");
    assert_eq!(plain.bare_file, None);
    let deep = resolve(repository, "team/region/deep").await?;
    assert_eq!((deep.versions.as_slice(), deep.config.is_some()), ([1].as_slice(), true));
    let unconfigured = resolve(repository, "unconfigured").await?;
    assert_eq!((unconfigured.versions.as_slice(), unconfigured.config), ([2].as_slice(), None));
    let config_only = resolve(repository, "config_only").await?;
    assert!(config_only.versions.is_empty() && config_only.config.is_some());
    for (name, ending) in
        [("folder", "folder/model.onnx"), ("file", "file.onnx"), ("file.onnx", "file.onnx"), ("torch", "torch.pt")]
    {
        let manifest = resolve(repository, name).await?;
        assert_eq!(manifest.versions, [1], "{name}: a bare file is version 1");
        assert!(manifest.bare_file.is_some_and(|file| file.ends_with(ending)), "{name}: the file is named");
    }
    Ok(())
}

/// The kind of the error that a name gets.
async fn refusal(repository: &dyn ModelRepository, name: &str) -> Option<ErrorKind> {
    repository.resolve(name).await.err().map(|error: Error| error.kind())
}

async fn what_is_no_model_is_not_found(repository: &dyn ModelRepository) {
    let absent =
        ["nowhere", "no_model", "team", "team/region", "plain/notes", "read.me", "plain/config.pbtxt/x", "Plain"];
    for name in absent {
        assert_eq!(refusal(repository, name).await, Some(ErrorKind::NotFound), "{name}");
    }
}

async fn names_that_leave_the_repository_are_refused(repository: &dyn ModelRepository) {
    for name in
        ["", "..", "../plain", "plain/..", "plain/../plain", "/plain", "plain/", "./plain", "a//b", "a\\b", "a\0b"]
    {
        assert_eq!(refusal(repository, name).await, Some(ErrorKind::InvalidArgument), "{name:?}");
    }
}

async fn changes_are_seen(tree: &dyn Tree) -> Result<()> {
    let repository = tree.repository();
    tree.put("plain/21/model.onnx", b"new").await?;
    tree.put("plain/config.pbtxt", b"another").await?;
    let plain = resolve(repository, "plain").await?;
    assert_eq!((plain.versions.last(), plain.config.as_deref()), (Some(&21), Some("another")), "asked anew each time");
    tree.remove("plain/21").await?;
    tree.remove("plain/20").await?;
    assert_eq!(resolve(repository, "plain").await?.versions, [1, 3]);
    tree.remove("team").await?;
    tree.remove("file.onnx").await?;
    for name in ["team/region/deep", "file"] {
        assert_eq!(refusal(repository, name).await, Some(ErrorKind::NotFound), "{name} was removed");
    }
    let left: Vec<_> = MODELS.iter().filter(|name| !["team/region/deep", "file"].contains(*name)).collect();
    assert!(repository.list().await?.iter().eq(left), "what was removed is not listed");
    tree.put("plain/config.pbtxt", &[0xff, 0xfe]).await?;
    assert_eq!(refusal(repository, "plain").await, Some(ErrorKind::InvalidArgument), "a configuration is text");
    tree.put("plain/config.pbtxt", b"again").await
}

async fn many_may_ask_at_once(repository: &dyn ModelRepository) -> Result<()> {
    let asked = (0..64).map(|_| resolve(repository, "plain"));
    for manifest in futures_util::future::join_all(asked).await {
        assert_eq!(manifest?.versions, [1, 3]);
    }
    Ok(())
}

//! What every model repository must do, wherever it keeps its models: one suite for all of them.

use std::collections::BTreeSet;
use std::ops::Range;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;

use super::manifest::{Form, ModelManifest};
use super::{FetchError, ModelRepository};
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
    "plain-2/1/model.onnx",
    "plain.v2/1/model.onnx",
    "plain2.zip",
    "100% a+b & c/1/weights = more.onnx",
    "team/region/deep/config.pbtxt",
    "team/region/deep/1/weights",
    "unconfigured/2/model.onnx",
    "folder/model.onnx",
    "file.onnx",
    "torch.pt",
    "config_only/config.pbtxt",
    "packed.tar.gz",
    "packed.zip",
    "team/zipped.zip",
    "größe und mehr/1/model.onnx",
    "no_model/read.me",
    "read.me",
];

const MODELS: &[&str] = &[
    "100% a+b & c",
    "config_only",
    "file",
    "folder",
    "größe und mehr",
    "packed",
    "plain",
    "plain-2",
    "plain.v2",
    "plain2",
    "team/region/deep",
    "team/zipped",
    "torch",
    "unconfigured",
];

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
    let paths: Vec<_> = manifest.objects.iter().map(|object| &object.path).collect();
    assert!(paths.is_sorted(), "{name}: objects ascend by path");
    let distinct: BTreeSet<_> = paths.iter().collect();
    assert_eq!(distinct.len(), paths.len(), "{name}: each object is there once");
    for (index, object) in manifest.objects.iter().enumerate() {
        let content = read(repository, &manifest, index, 0..object.size).await?;
        assert_eq!(content.len() as u64, object.size, "{name}: {} is as large as it says", object.path);
    }
    Ok(manifest)
}

async fn read(
    repository: &dyn ModelRepository,
    manifest: &ModelManifest,
    object: usize,
    range: Range<u64>,
) -> Result<Vec<u8>> {
    let stream = repository.fetch(manifest, object, range).await.map_err(FetchError::into_error)?;
    let chunks: Vec<_> = stream.collect().await;
    let mut content = Vec::new();
    for chunk in chunks {
        content.extend_from_slice(&chunk.map_err(FetchError::into_error)?);
    }
    Ok(content)
}

fn paths(manifest: &ModelManifest) -> Vec<&str> {
    manifest.objects.iter().map(|object| object.path.as_str()).collect()
}

async fn every_model_resolves_under_its_key(repository: &dyn ModelRepository) -> Result<()> {
    let plain = resolve(repository, "plain").await?;
    assert_eq!((plain.form, plain.key.as_str()), (Form::Directory, "plain"));
    let expected = ["007/model.onnx", "1/model.onnx", "20/model.onnx", "3/model.onnx", "config.pbtxt", "notes/read.me"];
    assert_eq!(paths(&plain), expected, "every file of the folder is an object");
    assert_eq!(
        read(repository, &plain, 1, 6..9).await?,
        b"1/m",
        "a range is the bytes from its start to before its end"
    );
    assert!(read(repository, &plain, 1, 3..3).await?.is_empty(), "an empty range has no bytes");
    let deep = resolve(repository, "team/region/deep").await?;
    assert_eq!(paths(&deep), ["1/weights", "config.pbtxt"]);
    assert_eq!(paths(&resolve(repository, "unconfigured").await?), ["2/model.onnx"]);
    assert_eq!(paths(&resolve(repository, "config_only").await?), ["config.pbtxt"]);
    assert_eq!(paths(&resolve(repository, "folder").await?), ["model.onnx"]);
    for sibling in ["plain-2", "plain.v2"] {
        assert_eq!(paths(&resolve(repository, sibling).await?), ["1/model.onnx"], "{sibling} is a model of its own");
    }
    let odd = resolve(repository, "100% a+b & c").await?;
    assert_eq!(paths(&odd), ["1/weights = more.onnx"]);
    assert_eq!(read(repository, &odd, 0, 0..odd.bytes()).await?, b"100% a+b & c/1/weights = more.onnx");
    for (name, key) in [("file", "file.onnx"), ("file.onnx", "file.onnx"), ("torch", "torch.pt")] {
        let manifest = resolve(repository, name).await?;
        assert_eq!((manifest.form, manifest.key.as_str()), (Form::File, key), "{name}");
        assert_eq!(paths(&manifest), [key], "{name}: the file is named");
    }
    for (name, key) in [("packed", "packed.tar.gz"), ("packed.zip", "packed.zip"), ("team/zipped", "team/zipped.zip")] {
        let manifest = resolve(repository, name).await?;
        assert_eq!((manifest.form, manifest.key.as_str()), (Form::Archive, key), "{name}");
        assert_eq!(manifest.objects.len(), 1, "{name}: an archive is one object");
    }
    Ok(())
}

/// The kind of the error that a name gets.
async fn refusal(repository: &dyn ModelRepository, name: &str) -> Option<ErrorKind> {
    repository.resolve(name).await.err().map(|error: Error| error.kind())
}

async fn what_is_no_model_is_not_found(repository: &dyn ModelRepository) {
    let absent = [
        "nowhere",
        "no_model",
        "plai",
        "plain.",
        "plain-",
        "plain/1",
        "plain/007",
        "team",
        "team/region",
        "plain/notes",
        "read.me",
        "plain/config.pbtxt/x",
        "Plain",
    ];
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
    let before = resolve(repository, "plain").await?;
    assert_eq!(
        before.fingerprint(),
        resolve(repository, "plain").await?.fingerprint(),
        "the same content, the same tags"
    );
    tree.put("plain/21/model.onnx", b"new").await?;
    tree.put("plain/config.pbtxt", b"another").await?;
    let after = resolve(repository, "plain").await?;
    assert!(paths(&after).contains(&"21/model.onnx"), "asked anew each time");
    assert_ne!(before.fingerprint(), after.fingerprint());
    let config = paths(&before).iter().position(|path| *path == "config.pbtxt").unwrap_or_default();
    let stale = repository.fetch(&before, config, 0..1).await;
    assert!(matches!(stale, Err(FetchError::Changed)), "what was replaced is not fetched for what was there before");
    assert_eq!(refusal(repository, "newcomer").await, Some(ErrorKind::NotFound));
    tree.put("newcomer.tar", b"new").await?;
    assert_eq!(paths(&resolve(repository, "newcomer").await?), ["newcomer.tar"], "what was not there may come");
    tree.remove("newcomer.tar").await?;
    tree.remove("plain/21").await?;
    tree.remove("plain/20").await?;
    let smaller = resolve(repository, "plain").await?;
    assert_eq!(paths(&smaller), ["007/model.onnx", "1/model.onnx", "3/model.onnx", "config.pbtxt", "notes/read.me"]);
    let gone = repository.fetch(&before, 2, 0..1).await;
    assert!(matches!(gone, Err(FetchError::Changed)), "what was removed is not fetched");
    tree.remove("team").await?;
    tree.remove("file.onnx").await?;
    for name in ["team/region/deep", "team/zipped", "file"] {
        assert_eq!(refusal(repository, name).await, Some(ErrorKind::NotFound), "{name} was removed");
    }
    let left: Vec<_> =
        MODELS.iter().filter(|name| !["team/region/deep", "team/zipped", "file"].contains(*name)).collect();
    assert!(repository.list().await?.iter().eq(left), "what was removed is not listed");
    Ok(())
}

async fn many_may_ask_at_once(repository: &dyn ModelRepository) -> Result<()> {
    let asked = (0..64).map(|_| resolve(repository, "plain"));
    for manifest in futures_util::future::join_all(asked).await {
        assert_eq!(manifest?.key, "plain");
    }
    Ok(())
}

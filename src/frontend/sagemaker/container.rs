//! The contract of SageMaker's multi-model containers (developer guide, "Custom Containers Contract for Multi-Model
//! Endpoints"): list, load, describe, unload. The platform decides; what it is told comes from the book.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedMutexGuard;

use super::super::body::Body;
use super::Inner;
use super::invoke::document;
use crate::config::sagemaker::Ping;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::registered::Place;

/// Models on a page where the query does not say.
const LIMIT: usize = 100;

/// The most models on a page.
const MOST: usize = 10_000;

/// The largest body of a control request, in bytes.
pub(super) const CONTROL_BYTES: usize = 1 << 20;

/// A model in memory.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    model_name: &'a str,
    model_url: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    models: Vec<Row<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_page_token: Option<String>,
}

#[derive(Deserialize)]
struct LoadRequest {
    model_name: String,
    url: String,
}

/// Loads and unloads of one name go one after the other: what is registered and what is in memory belong together.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>);

impl Inner {
    /// Whether the platform may send requests.
    pub(super) fn ping(&self) -> http::Response<Body> {
        let ready = match self.config.ping {
            Ping::Live => true,
            Ping::Ready => {
                let model = self.config.model.as_deref();
                self.server.is_ready() && model.is_none_or(|model| !self.server.versions_of(model).is_empty())
            }
        };
        let mut response = http::Response::new(Body::default());
        *response.status_mut() = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        response
    }

    /// A page of the models in memory, by name.
    pub(super) fn list(&self, query: &str) -> Result<http::Response<Body>> {
        let Query { limit, after } = Query::parse(query)?;
        let mut names = self.server.resident_names();
        names.retain(|name| after.as_deref().is_none_or(|after| **name > *after));
        let more = names.len() > limit;
        if more {
            // Only the page itself is sorted.
            names.select_nth_unstable(limit);
            names.truncate(limit);
        }
        names.sort_unstable();
        let models = names.iter().map(|name| Row { model_name: name, model_url: self.url_of(name) }).collect();
        let next_page_token = names.last().filter(|_| more).map(|name| token_of(name));
        json(&Page { models, next_page_token })
    }

    /// One model in memory.
    pub(super) fn describe(&self, name: &str) -> Result<http::Response<Body>> {
        if self.server.versions_of(name).is_empty() {
            return Err(not_loaded(name));
        }
        json(&Row { model_name: name, model_url: self.url_of(name) })
    }

    /// Where a model was said to lie, or its key in the repository.
    fn url_of(&self, name: &str) -> String {
        self.registered.place(name).map_or_else(|| name.to_owned(), |place| place.shown)
    }

    /// Loads what lies at a place of this machine under a name; goes on to the end even if the caller leaves.
    pub(super) async fn load(self: &Arc<Self>, body: Bytes) -> Result<http::Response<Body>> {
        let LoadRequest { model_name, url } = serde_json::from_slice(&body).map_err(|error| {
            Error::invalid("the body must be a JSON object with the texts 'model_name' and 'url'").with_source(error)
        })?;
        let roots = self.config.model_roots.clone();
        let place = blocking(move || check_place(&url, &roots)).await?;
        let inner = Arc::clone(self);
        let load = async move { inner.load_registered(&model_name, place).await };
        tokio::spawn(load)
            .await
            .map_err(|panic| Error::internal("loading the model panicked").with_source(panic))??;
        Ok(http::Response::new(Body::default()))
    }

    async fn load_registered(&self, name: &str, place: Place) -> Result<()> {
        let _turn = self.turns.take(name).await;
        if !self.server.versions_of(name).is_empty() {
            return Err(already_loaded(name));
        }
        // What is left over from a copy that is gone.
        self.registered.forget(name);
        self.registered.register(name, place)?;
        let loaded = self.server.load_model(name, None).await;
        if loaded.is_err() {
            self.forget(name);
        }
        loaded
    }

    /// Forgets what the platform brought: its names do not come again.
    fn forget(&self, name: &str) {
        if self.registered.forget(name) {
            self.server.forget_model(name);
        }
    }

    /// Unloads a model; answers when its memory is back.
    pub(super) async fn unload(self: &Arc<Self>, name: &str) -> Result<http::Response<Body>> {
        let (inner, name) = (Arc::clone(self), name.to_owned());
        let unload = async move {
            let _turn = inner.turns.take(&name).await;
            if inner.server.versions_of(&name).is_empty() {
                return Err(not_loaded(&name));
            }
            inner.server.unload_model(&name, true).await?;
            // Where invocations load as well, one may have come in between.
            while inner.registered.place(&name).is_some() && !inner.server.versions_of(&name).is_empty() {
                inner.server.unload_model(&name, true).await?;
            }
            inner.forget(&name);
            Ok(())
        };
        tokio::spawn(unload).await.map_err(|panic| Error::internal("unloading panicked").with_source(panic))??;
        Ok(http::Response::new(Body::default()))
    }
}

impl Turns {
    /// Waits for the turn at `name`. Not to be given up: its name stays until somebody has had it.
    async fn take(&self, name: &str) -> Turn<'_> {
        let lock = Arc::clone(self.0.lock().entry(name.to_owned()).or_default());
        Turn { held: Some(lock.lock_owned().await), turns: self, name: name.to_owned() }
    }
}

/// A turn at a name.
struct Turn<'a> {
    held: Option<OwnedMutexGuard<()>>,
    turns: &'a Turns,
    name: String,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.held = None;
        let mut turns = self.turns.0.lock();
        if turns.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            turns.remove(&self.name);
        }
    }
}

/// A place that the platform may load from: an absolute path, below one of the roots after all links in it are followed.
fn check_place(url: &str, roots: &[PathBuf]) -> Result<Place> {
    let shown: String = url.chars().take(256).collect();
    let shown = shown.escape_debug();
    let outside = || {
        let roots: Vec<_> = roots.iter().map(|root| root.display().to_string()).collect();
        Error::invalid(format!(
            "url '{shown}' is not below {}: models are loaded from there (--sagemaker-model-root)",
            roots.join(" or ")
        ))
    };
    let path = Path::new(url);
    let is_plain = path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir);
    if !is_plain || !roots.iter().any(|root| path.starts_with(root)) {
        return Err(outside());
    }
    let folder = path.canonicalize().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Error::not_found(format!("there is nothing at url '{shown}'"))
        }
        io::ErrorKind::PermissionDenied => {
            Error::new(ErrorKind::RepositoryFailed, format!("url '{shown}' may not be read")).with_source(error)
        }
        _ => Error::invalid(format!("url '{shown}' is no path")).with_source(error),
    })?;
    let inside = roots.iter().filter_map(|root| root.canonicalize().ok()).any(|root| folder.starts_with(root));
    if inside { Ok(Place { shown: url.to_owned(), path: folder }) } else { Err(outside()) }
}

fn already_loaded(name: &str) -> Error {
    Error::new(ErrorKind::AlreadyLoaded, format!("model '{name}' is loaded already"))
}

/// A model that the platform has not loaded, or has unloaded.
pub(super) fn not_loaded(name: &str) -> Error {
    let shown: String = name.chars().take(64).collect();
    Error::not_found(format!("model '{}' is not loaded", shown.escape_debug()))
}

fn json(content: &impl Serialize) -> Result<http::Response<Body>> {
    let json =
        serde_json::to_vec(content).map_err(|error| Error::internal("cannot write the document").with_source(error))?;
    Ok(document(json.into(), HeaderValue::from_static("application/json")))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|panic| Error::internal("looking at the model's folder panicked").with_source(panic))?
}

/// The last name of a page in hexadecimal digits: nothing in it has to be escaped.
fn token_of(name: &str) -> String {
    name.bytes().fold(String::with_capacity(name.len() * 2), |mut token, byte| {
        let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half & 15)]);
        token.extend([digit(byte >> 4), digit(byte)]);
        token
    })
}

fn name_of(token: &str) -> Option<String> {
    let digits: Option<Vec<u8>> =
        token.chars().map(|digit| digit.to_digit(16).and_then(|it| u8::try_from(it).ok())).collect();
    let pairs = digits?;
    let bytes = pairs.chunks(2).map(|pair| Some(pair.first()? << 4 | pair.get(1)?)).collect::<Option<Vec<u8>>>()?;
    String::from_utf8(bytes).ok()
}

/// The query of `GET /models`.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    limit: usize,
    /// The last name of the page before.
    after: Option<String>,
}

impl Query {
    /// Reads `limit` and `next_page_token`, also as `nextPageToken`; other parameters mean nothing here.
    fn parse(query: &str) -> Result<Self> {
        let mut read = Self { limit: LIMIT, after: None };
        for pair in query.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "limit" => {
                    read.limit = value.parse().ok().filter(|limit| (1..=MOST).contains(limit)).ok_or_else(|| {
                        Error::invalid(format!("query parameter 'limit' must be a number from 1 to {MOST}"))
                    })?;
                }
                "next_page_token" | "nextPageToken" => {
                    let name = name_of(value).ok_or_else(|| {
                        Error::invalid(format!("query parameter '{key}' is no nextPageToken of an earlier page"))
                    })?;
                    read.after = Some(name).filter(|name| !name.is_empty());
                }
                _ => {}
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pages_are_asked_for_in_both_spellings() {
        assert_eq!(Query::parse("").unwrap(), Query { limit: 100, after: None });
        let page = Query { limit: 2, after: Some("a b".to_owned()) };
        let token = token_of("a b");
        assert_eq!(Query::parse(&format!("limit=2&next_page_token={token}")).unwrap(), page);
        assert_eq!(Query::parse(&format!("nextPageToken={token}&limit=2&other=1")).unwrap(), page);
        for wrong in
            ["limit=0", "limit=x", "limit=10001", "next_page_token=ff", "next_page_token=616", "next_page_token=xy"]
        {
            assert!(Query::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_lies_below_a_root_is_loaded() {
        let root = tempfile::tempdir().unwrap();
        let (models, other) = (root.path().join("models"), root.path().join("other"));
        std::fs::create_dir_all(models.join("h/model")).unwrap();
        std::fs::create_dir_all(&other).unwrap();
        std::os::unix::fs::symlink(&other, models.join("link")).unwrap();
        let check = |path: &Path| check_place(path.to_str().unwrap(), std::slice::from_ref(&models));
        let found = check(&models.join("h/model")).unwrap();
        assert_eq!(found.path, models.canonicalize().unwrap().join("h/model"));
        assert_eq!(found.shown, models.join("h/model").to_str().unwrap());
        for outside in [other.clone(), models.join("../other"), models.join("link"), "h/model".into(), "".into()] {
            assert_eq!(check(&outside).unwrap_err().kind(), ErrorKind::InvalidArgument, "{}", outside.display());
        }
        assert_eq!(check(&models.join("none")).unwrap_err().kind(), ErrorKind::NotFound);
        for wrong in ["n\0ul".to_owned(), "x".repeat(300)] {
            assert_eq!(check(&models.join(wrong)).unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
    }

    proptest! {
        #[test]
        fn no_query_makes_reading_panic_and_no_page_is_without_a_bound(query in any::<String>()) {
            if let Ok(Query { limit, .. }) = Query::parse(&query) {
                prop_assert!((1..=MOST).contains(&limit));
            }
        }

        #[test]
        fn every_token_leads_back_to_its_name(name in any::<String>()) {
            prop_assert_eq!(name_of(&token_of(&name)), Some(name));
        }

        #[test]
        fn no_url_leads_out_of_the_root(url in "(/opt/ml/models|/opt|\\.|)(/[a-z.]{0,4}){0,5}") {
            prop_assert!(check_place(&url, &["/opt/ml/models".into()]).is_err() || url.starts_with("/opt/ml/models"));
        }
    }
}

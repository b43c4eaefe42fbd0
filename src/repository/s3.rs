//! A bucket of S3, or of a store that speaks its protocol, as a model repository.
//!
//! Resolving a name takes one request in the ordinary case: one page of a listing shows the folder, the archives and the
//! files that the name may stand for, with their sizes and ETags (see `s3/names.rs`).

mod client;
mod failure;
mod memory;
mod names;
pub mod uri;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

use self::client::{Client, Query};
use self::memory::Memory;
use self::names::{Candidates, Names, Stand, folders_above};
use self::uri::{MAX_KEY_LENGTH, S3Uri};
use super::manifest::{Form, ModelManifest};
use super::{ByteStream, FetchError, ModelRepository, check_name, layout};
use crate::error::{Error, Result};

/// The longest pause between two attempts of a request.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(5);

/// The most names that are remembered as absent, and the most folders as plain ones.
const REMEMBERED: usize = 4096;

/// How long a folder above a model counts as a plain one once it was seen to be one. Who makes a model of a folder that
/// has models in it hides them; a minute later will do.
const FOLDER_MEMORY: Duration = Duration::from_secs(60);

/// A key pair that is given rather than looked for.
#[derive(Clone)]
pub struct Keys {
    /// The access key's id.
    pub id: String,
    /// The secret access key.
    pub secret: String,
    /// Goes with temporary keys.
    pub session_token: Option<String>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

/// How a store is asked.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// Asks without credentials, as public buckets allow.
    pub anonymous: bool,
    /// Instead of the credentials of environment, profile, container or instance.
    pub keys: Option<Keys>,
    /// Instead of the region of environment or profile.
    pub region: Option<String>,
    /// `http://host:port`, instead of the one in the URI.
    pub endpoint: Option<String>,
    /// Whether the bucket stands in the path rather than in the host's name; where an endpoint is given if `None`.
    pub path_style: Option<bool>,
    /// Whether listings come in the order of the keys' bytes and may begin at any key, as S3's do; that of AWS's own
    /// store is trusted if `None`. SeaweedFS, for one, orders folder by folder.
    pub ordered: Option<bool>,
    /// For a connection to stand.
    pub connect_timeout: Duration,
    /// For the first byte of an answer.
    pub read_timeout: Duration,
    /// For an attempt until its answer begins.
    pub attempt_timeout: Duration,
    /// A body from which nothing comes for so long has failed.
    pub stall: Duration,
    /// Of each listing; reading is resumed by the [`Downloader`](super::download::Downloader).
    pub attempts: u32,
    /// The first pause between two attempts; each next one is twice as long.
    pub back_off: Duration,
    /// How long a name that was not found is not asked for again.
    pub negative_ttl: Duration,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            anonymous: false,
            keys: None,
            region: None,
            endpoint: None,
            path_style: None,
            ordered: None,
            connect_timeout: Duration::from_secs(2),
            read_timeout: Duration::from_secs(10),
            attempt_timeout: Duration::from_secs(30),
            stall: Duration::from_secs(5),
            attempts: 5,
            back_off: Duration::from_millis(100),
            negative_ttl: Duration::from_secs(1),
        }
    }
}

/// A repository in S3.
pub struct S3 {
    client: Arc<Client>,
    ordered: bool,
    /// Names that were not there a moment ago.
    absent: Memory,
    /// Folders above models that are no models.
    plain: Memory,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3").field(self.client.uri()).finish()
    }
}

impl S3 {
    /// The repository at `uri`. Asks nothing of the network: the first request looks for credentials. All of them run on
    /// `runtime`.
    ///
    /// # Errors
    /// `InvalidArgument` for options that go against each other, or an endpoint that is none.
    pub fn open(uri: &S3Uri, options: S3Options, runtime: Handle) -> Result<Self> {
        if options.anonymous && options.keys.is_some() {
            return Err(Error::invalid("S3 is to be asked anonymously and with keys: leave one of them out"));
        }
        if let Some(endpoint) = &options.endpoint {
            // Held against the same rules as one in a URI.
            let parsed = format!("s3://{}/bucket", endpoint.trim_end_matches('/')).parse::<S3Uri>();
            if !parsed
                .is_ok_and(|parsed| parsed.bucket == "bucket" && parsed.endpoint.is_some() && parsed.prefix.is_empty())
            {
                return Err(Error::invalid("the S3 endpoint must be written http://host:port or https://host"));
            }
        }
        let absent = Memory::new(options.negative_ttl, REMEMBERED);
        let plain = Memory::new(FOLDER_MEMORY, REMEMBERED);
        let ordered = options.ordered.unwrap_or(options.endpoint.is_none() && uri.endpoint.is_none());
        Ok(Self { client: Client::new(uri.clone(), options, runtime), ordered, absent, plain })
    }

    async fn resolve_here(&self, name: &str) -> Result<ModelManifest> {
        check_name(name)?;
        let absent = || Error::not_found(format!("there is no model '{name}' in the repository"));
        // What is put there while the store is asked may be missed: the memory is as old as the question.
        let asked = Instant::now();
        if self.absent.knows(name, asked) || self.client.uri().key(name).len() > MAX_KEY_LENGTH {
            return Err(absent());
        }
        let (found, is_part) = tokio::try_join!(self.look_for(name), self.is_inside_a_model(name))?;
        match found {
            Some(manifest) if !is_part => Ok(manifest),
            _ => {
                self.absent.remember(name, asked);
                Err(absent())
            }
        }
    }

    /// What the keys say of a name, whatever the folders above it are.
    async fn look_for(&self, name: &str) -> Result<Option<ModelManifest>> {
        let mut candidates = Candidates::new(name);
        let start_after = candidates.start_after().filter(|_| self.ordered);
        let first = Query { prefix: name.to_owned(), start_after, ..Query::default() };
        let (stand, last) = self.read(first, &mut candidates, self.ordered).await?;
        if stand == Stand::Before {
            // A page full of siblings: the folder by itself, then the keys that the page did not reach.
            let folder = Query { prefix: format!("{name}/"), ..Query::default() };
            self.read(folder, &mut candidates, true).await?;
            if !candidates.is_folder_model() {
                for key in candidates.keys_after(&last) {
                    let one = Query { prefix: key, most: 1, ..Query::default() };
                    for entry in self.client.page(one).await?.entries {
                        candidates.take(entry)?;
                    }
                }
            }
        }
        candidates.choose()
    }

    /// Reads pages until nothing of interest comes any more, or until one ended before the name's folder; and the last
    /// key before which all are known. In a listing without order that is known of the last page alone.
    async fn read(&self, mut query: Query, candidates: &mut Candidates, ordered: bool) -> Result<(Stand, String)> {
        loop {
            let page = self.client.page(query.clone()).await?;
            let (mut stand, mut last) = (Stand::Before, String::new());
            for entry in page.entries {
                last.clone_from(&entry.key);
                stand = candidates.take(entry)?;
                if stand == Stand::Past && ordered {
                    return Ok((stand, last));
                }
            }
            match (page.next, stand) {
                (None, _) => return Ok((Stand::Past, last)),
                (Some(_), _) if !ordered => return Ok((Stand::Before, String::new())),
                // An empty page that is not the last one: some stores send them.
                (Some(next), _) if last.is_empty() => query.token = Some(next),
                (Some(_), Stand::Before) => return Ok((stand, last)),
                (Some(next), _) => query.token = Some(next),
            }
        }
    }

    /// Whether a folder above the name is a model: then the name is a part of it, not a model of its own.
    async fn is_inside_a_model(&self, name: &str) -> Result<bool> {
        for folder in folders_above(name) {
            if self.plain.knows(folder, Instant::now()) {
                continue;
            }
            if self.is_model_folder(folder).await? {
                return Ok(true);
            }
            self.plain.remember(folder, Instant::now());
        }
        Ok(false)
    }

    /// Whether what lies right below a folder makes it a model.
    async fn is_model_folder(&self, folder: &str) -> Result<bool> {
        let prefix = format!("{folder}/");
        // Version folders begin with 1 to 9, the files with a letter: nothing of interest sorts before.
        let start_after = self.ordered.then(|| format!("{folder}/1"));
        let page =
            self.client.page(Query { prefix: prefix.clone(), start_after, folders: true, ..Query::default() }).await?;
        let below = |key: &str| key.strip_prefix(&*prefix).map(str::to_owned).unwrap_or_default();
        let is_model = page.folders.iter().any(|folder| layout::version(&below(folder)).is_some())
            || page.entries.iter().any(|entry| names::is_root_file(&below(&entry.key)));
        if is_model || page.next.is_none() {
            return Ok(is_model);
        }
        // A folder of more than a thousand models: what a model has by its name.
        for (file, is_folder) in names::root_files().map(|file| (file, false)).chain([("1", true)]) {
            let key = if is_folder { format!("{prefix}{file}/") } else { format!("{prefix}{file}") };
            let one = self.client.page(Query { prefix: key.clone(), most: 1, ..Query::default() }).await?;
            if one.entries.iter().any(|entry| entry.key == key || is_folder) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn list_here(&self) -> Result<Vec<String>> {
        let mut names = Names::default();
        let mut query = Query::default();
        loop {
            let page = self.client.page(query.clone()).await?;
            page.entries.iter().for_each(|entry| names.take(entry));
            match page.next {
                Some(next) => query.token = Some(next),
                None => return Ok(names.finish()),
            }
        }
    }
}

impl ModelRepository for S3 {
    fn list(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        Box::pin(self.list_here())
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ModelManifest>> {
        Box::pin(self.resolve_here(name))
    }

    fn expect(&self, name: &str) {
        self.absent.forget(name);
    }

    fn fetch<'a>(
        &'a self,
        manifest: &'a ModelManifest,
        object: usize,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, FetchError>> {
        Box::pin(async move {
            let object =
                manifest.objects.get(object).filter(|object| range.start <= range.end && range.end <= object.size);
            let Some(object) = object else {
                return Err(FetchError::Failed(Error::internal("bytes were asked for that are not in the manifest")));
            };
            if range.is_empty() {
                return Ok(Box::pin(futures_util::stream::empty()) as ByteStream);
            }
            let key = match manifest.form {
                Form::Directory => format!("{}/{}", manifest.key, object.path),
                Form::Archive | Form::File => manifest.key.clone(),
            };
            self.client.get(key, object.tag.clone(), object.size, range).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn opening_asks_nothing_and_refuses_options_that_cannot_be() {
        let uri: S3Uri = "s3://127.0.0.1:1/bucket".parse().unwrap();
        let open = |options| S3::open(&uri, options, Handle::current());
        assert!(open(S3Options::default()).is_ok());
        let keys = Keys { id: "id".into(), secret: "hunter2".into(), session_token: None };
        let both = S3Options { anonymous: true, keys: Some(keys), ..S3Options::default() };
        assert!(!format!("{both:?}").contains("hunter2"));
        assert!(open(both).is_err());
        for endpoint in ["minio", "ftp://minio", "http://a/b", "http://key:secret@minio", ""] {
            let options = S3Options { endpoint: Some(endpoint.into()), ..S3Options::default() };
            assert!(open(options).is_err(), "{endpoint}");
        }
        for endpoint in ["http://minio:9000/", "https://minio"] {
            let options = S3Options { endpoint: Some(endpoint.into()), ..S3Options::default() };
            assert!(open(options).is_ok(), "{endpoint}");
        }
    }
}

//! `Client`: the requests we make of S3, each run on the runtime that owns its connections.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use aws_config::BehaviorVersion;
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::region::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    Credentials, ProvideCredentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio_util::task::AbortOnDropHandle;

use super::S3Options;
use super::failure::{failure, fetch_failure, root_cause};
use super::names::Entry;
use super::uri::S3Uri;
use crate::error::{Error, ErrorKind, Result};
use crate::repository::{ByteStream, FetchError};

/// The region of stores that have none.
const ANY_REGION: &str = "us-east-1";

/// Asks for one page of a listing.
#[derive(Clone, Debug, Default)]
pub(super) struct Query {
    /// What the keys begin with, below the repository.
    pub(super) prefix: String,
    /// Keys up to this one are left out.
    pub(super) start_after: Option<String>,
    /// Goes on where a page ended.
    pub(super) token: Option<String>,
    /// Folds what lies in a folder into the folder's name.
    pub(super) folders: bool,
    /// The most entries; S3's 1,000 if 0.
    pub(super) most: u16,
}

/// One page of a listing, keys relative to the repository, ascending.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) entries: Vec<Entry>,
    /// The folders, without the slash at the end, where they were asked for.
    pub(super) folders: Vec<String>,
    /// Where the next page begins.
    pub(super) next: Option<String>,
}

/// A store, its bucket and how it is asked.
pub(super) struct Client {
    uri: S3Uri,
    options: S3Options,
    runtime: Handle,
    /// Made by the first request: looking for credentials may take a request of its own.
    sdk: OnceCell<aws_sdk_s3::Client>,
}

impl Client {
    pub(super) fn new(uri: S3Uri, options: S3Options, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { uri, options, runtime, sdk: OnceCell::new() })
    }

    pub(super) fn uri(&self) -> &S3Uri {
        &self.uri
    }

    /// Runs `work` on the runtime of the connections; it ends with whoever waits for it.
    async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Result<T> {
        AbortOnDropHandle::new(self.runtime.spawn(work)).await.map_err(|error| {
            if error.is_cancelled() {
                Error::not_ready("the server is shutting down")
            } else {
                Error::internal("asking S3 failed").with_source(error)
            }
        })
    }

    /// One page of the keys that begin with the query's prefix.
    pub(super) async fn page(self: &Arc<Self>, query: Query) -> Result<Page> {
        let client = Arc::clone(self);
        self.run(async move { client.page_here(query).await }).await?
    }

    async fn page_here(&self, query: Query) -> Result<Page> {
        let request = self
            .sdk()
            .await?
            .list_objects_v2()
            .bucket(&self.uri.bucket)
            .prefix(self.uri.key(&query.prefix))
            .set_start_after(query.start_after.map(|key| self.uri.key(&key)))
            .set_continuation_token(query.token.clone())
            .set_delimiter(query.folders.then(|| "/".to_owned()))
            .set_max_keys((query.most > 0).then(|| query.most.into()))
            // Keys may hold what XML cannot.
            .encoding_type(EncodingType::Url);
        match request.send().await {
            Ok(output) => self.read_page(output, query.token.as_deref()),
            Err(error) => Err(failure("cannot list the models", &self.uri.to_string(), &error)),
        }
    }

    fn read_page(&self, output: ListObjectsV2Output, token: Option<&str>) -> Result<Page> {
        let wrong = |what: &str| {
            Error::new(ErrorKind::RepositoryFailed, format!("cannot list the models in {}: the store {what}", self.uri))
                .with_retryable(false)
        };
        let encoded = output.encoding_type == Some(EncodingType::Url);
        let decode = |key: String| -> Result<String> {
            if encoded { percent_decoded(&key).ok_or_else(|| wrong("wrote a key that is no text")) } else { Ok(key) }
        };
        let mut page = Page::default();
        for object in output.contents.unwrap_or_default() {
            let Some(key) = object.key else { continue };
            let key = decode(key)?;
            let Some(relative) = self.uri.relative(&key) else { continue };
            let size = object.size.and_then(|size| u64::try_from(size).ok());
            let (Some(size), Some(tag)) = (size, object.e_tag) else {
                return Err(wrong("gives no size or no ETag for its objects"));
            };
            page.entries.push(Entry { key: relative.to_owned(), size, tag });
        }
        for folder in output.common_prefixes.unwrap_or_default() {
            let Some(folder) = folder.prefix else { continue };
            let folder = decode(folder)?;
            page.folders.extend(self.uri.relative(&folder).map(|folder| folder.trim_end_matches('/').to_owned()));
        }
        if output.is_truncated == Some(true) {
            match output.next_continuation_token {
                // Else a broken store would be asked for ever.
                Some(next) if Some(&*next) != token => page.next = Some(next),
                _ => return Err(wrong("does not say where a listing goes on")),
            }
        }
        Ok(page)
    }

    /// The bytes of a range of the object that bears `tag`; `size` is that of the whole object.
    pub(super) async fn get(
        self: &Arc<Self>,
        key: String,
        tag: String,
        size: u64,
        range: Range<u64>,
    ) -> Result<ByteStream, FetchError> {
        let client = Arc::clone(self);
        let work = async move { client.get_here(&key, &tag, size, range).await };
        self.run(work).await.map_err(FetchError::Failed)?
    }

    async fn get_here(&self, key: &str, tag: &str, size: u64, range: Range<u64>) -> Result<ByteStream, FetchError> {
        let whole = range == (0..size);
        let header = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let request = self
            .sdk()
            .await
            .map_err(FetchError::Failed)?
            .get_object()
            .bucket(&self.uri.bucket)
            .key(self.uri.key(key))
            .if_match(tag)
            // Without a range S3 sends the object's checksum with it, and the client checks it.
            .set_range((!whole).then_some(header))
            .customize()
            // A body is resumed by whoever reads it, who counts the attempts.
            .config_override(aws_sdk_s3::config::Config::builder().retry_config(RetryConfig::disabled()));
        let what = format!("cannot read {key}");
        let output = request.send().await.map_err(|error| fetch_failure(&what, &self.uri.to_string(), &error))?;
        if output.e_tag.as_deref().is_some_and(|now| now.trim_matches('"') != tag.trim_matches('"')) {
            return Err(FetchError::Changed);
        }
        let length = range.end - range.start;
        check_range(&output, &range, size).map_err(|wrong| {
            let text = format!("{what} in {}: {wrong}", self.uri);
            FetchError::Failed(Error::new(ErrorKind::RepositoryFailed, text).with_retryable(false))
        })?;
        Ok(exactly(output, length, format!("{what} in {}", self.uri)))
    }

    async fn sdk(&self) -> Result<&aws_sdk_s3::Client> {
        self.sdk.get_or_try_init(|| self.connect()).await
    }

    /// Looks for credentials and region as all AWS tools do: environment, profile, container, instance.
    async fn connect(&self) -> Result<aws_sdk_s3::Client> {
        let options = &self.options;
        let endpoint = options.endpoint.clone().or_else(|| self.uri.endpoint.clone());
        let http =
            aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(options.connect_timeout)
            .read_timeout(options.read_timeout)
            .operation_attempt_timeout(options.attempt_timeout)
            .build();
        let retries = RetryConfig::standard()
            .with_max_attempts(options.attempts.max(1))
            .with_initial_backoff(options.back_off)
            .with_max_backoff(super::LONGEST_BACK_OFF);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .timeout_config(timeouts)
            .retry_config(retries)
            .stalled_stream_protection(StalledStreamProtectionConfig::enabled().grace_period(options.stall).build())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenSupported);
        if let Some(endpoint) = &endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        loader = match (&options.region, &endpoint) {
            (Some(region), _) => loader.region(Region::new(region.clone())),
            // Stores of one's own take any region: none is asked of an instance's metadata, which they seldom run on.
            (None, Some(_)) => loader.region(
                RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
                    .or_else(ProfileFileRegionProvider::new())
                    .or_else(ANY_REGION),
            ),
            (None, None) => loader,
        };
        if options.anonymous {
            loader = loader.no_credentials();
        } else if let Some(keys) = &options.keys {
            let (id, secret, token) = (keys.id.clone(), keys.secret.clone(), keys.session_token.clone());
            loader = loader.credentials_provider(Credentials::new(id, secret, token, None, "configuration"));
        }
        let shared = loader.load().await;
        if shared.region().is_none() && shared.endpoint_url().is_none() {
            let text = "no region is known for the S3 model repository: set AWS_REGION";
            return Err(Error::new(ErrorKind::RepositoryFailed, text).with_retryable(false));
        }
        if let (false, Some(provider)) = (options.anonymous, shared.credentials_provider()) {
            // Asked here, where a failure can be told from one of S3.
            provider.provide_credentials().await.map_err(|error| {
                let text = format!(
                    "there are no credentials for the S3 model repository: set AWS_ACCESS_KEY_ID and \
                     AWS_SECRET_ACCESS_KEY, a profile or a role, or ask anonymously if the bucket is public ({})",
                    root_cause(&error)
                );
                Error::new(ErrorKind::RepositoryFailed, text).with_retryable(false)
            })?;
        }
        // Bucket names as host names need a wildcard in DNS, which stores of one's own lack.
        let path_style = options.path_style.unwrap_or(shared.endpoint_url().is_some());
        let region = shared.region().cloned().unwrap_or(Region::from_static(ANY_REGION));
        let mut config = aws_sdk_s3::config::Builder::from(&shared).region(region).force_path_style(path_style);
        if options.anonymous {
            config = config.allow_no_auth();
        }
        Ok(aws_sdk_s3::Client::from_conf(config.build()))
    }
}

/// What is wrong with an answer to a request for `range` of an object of `size` bytes.
fn check_range(output: &GetObjectOutput, range: &Range<u64>, size: u64) -> Result<(), String> {
    let length = range.end - range.start;
    if let Some(announced) = output.content_length
        && u64::try_from(announced) != Ok(length)
    {
        return Err(format!("{length} bytes were asked for, and {announced} announced"));
    }
    match &output.content_range {
        None if *range == (0..size) => Ok(()),
        None => Err("the store does not answer requests for a range".to_owned()),
        Some(sent) if *sent == format!("bytes {}-{}/{size}", range.start, range.end.saturating_sub(1)) => Ok(()),
        Some(sent) => Err(format!("bytes {}-{}/{size} were asked for, and {sent} sent", range.start, range.end - 1)),
    }
}

/// The body as a stream of exactly `length` bytes, or one with an error.
fn exactly(output: GetObjectOutput, length: u64, what: String) -> ByteStream {
    let failed = move |why: &str| {
        FetchError::Failed(Error::new(ErrorKind::RepositoryFailed, format!("{what}: {why}")).with_retryable(true))
    };
    let state = Some((output.body, length));
    futures_util::stream::unfold((state, failed), |(state, failed)| async move {
        let (mut body, left) = state?;
        Some(match body.next().await {
            Some(Ok(bytes)) if bytes.len() as u64 <= left => {
                let left = left - bytes.len() as u64;
                (Ok(bytes), (Some((body, left)), failed))
            }
            Some(Ok(_)) => (Err(failed("more came than was asked for")), (None, failed)),
            Some(Err(error)) => (Err(failed(&root_cause(&error))), (None, failed)),
            None if left > 0 => (Err(failed("the answer ended early")), (None, failed)),
            None => return None,
        })
    })
    .boxed()
}

/// A key as listings write it: `%20` or `+` for a blank. `None` for what is not UTF-8 then.
fn percent_decoded(key: &str) -> Option<String> {
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = key.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = (byte == b'%').then(|| Some((hex(bytes.get(at + 1))?, hex(bytes.get(at + 2))?))).flatten();
        at += if escaped.is_some() { 3 } else { 1 };
        decoded.push(match (escaped, byte) {
            (Some((high, low)), _) => u8::try_from(high << 4 | low).ok()?,
            (None, b'+') => b' ',
            (None, byte) => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_listings_are_decoded_as_forms_are() {
        for (written, key) in
            [("a%20b+c", "a b c"), ("gr%C3%B6%C3%9Fe/1", "größe/1"), ("100%", "100%"), ("%2B%zz", "+%zz")]
        {
            assert_eq!(percent_decoded(written).as_deref(), Some(key));
        }
        assert_eq!(percent_decoded("%ff"), None);
    }

    #[test]
    fn only_the_range_that_was_asked_for_will_do() {
        let answer = |length: i64, range: Option<&str>| {
            GetObjectOutput::builder().content_length(length).set_content_range(range.map(str::to_owned)).build()
        };
        assert!(check_range(&answer(10, Some("bytes 5-14/100")), &(5..15), 100).is_ok());
        assert!(check_range(&answer(100, None), &(0..100), 100).is_ok());
        for wrong in
            [answer(10, Some("bytes 0-9/100")), answer(10, Some("bytes 5-14/101")), answer(100, None), answer(10, None)]
        {
            assert!(check_range(&wrong, &(5..15), 100).is_err(), "{:?}", wrong.content_range);
        }
        assert!(check_range(&answer(99, None), &(0..100), 100).is_err());
    }
}

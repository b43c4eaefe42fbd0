//! `S3Uri`: which bucket, which prefix below it, and which store where it is not AWS's.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// The longest key of S3, in bytes.
pub const MAX_KEY_LENGTH: usize = 1024;

/// How the URI of a repository in S3 is written; part of every error.
const FORM: &str = "write s3://bucket/prefix, or s3://http://host:port/bucket/prefix for a store that is not AWS's";

/// Where a repository lies in S3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Uri {
    /// `http://host:port` or `https://host`; `None` for AWS's own.
    pub endpoint: Option<String>,
    /// The bucket's name.
    pub bucket: String,
    /// What all keys of the repository begin with, without a slash at either end; may be empty.
    pub prefix: String,
}

/// Whether a repository's URI means S3 at all.
#[must_use]
pub fn is_s3(uri: &str) -> bool {
    uri.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("s3://"))
}

impl S3Uri {
    /// The key of a file of the repository.
    #[must_use]
    pub fn key(&self, relative: &str) -> String {
        if self.prefix.is_empty() { relative.to_owned() } else { format!("{}/{relative}", self.prefix) }
    }

    /// The path below the repository of a key; `None` for one that does not lie below it.
    #[must_use]
    pub fn relative<'a>(&self, key: &'a str) -> Option<&'a str> {
        if self.prefix.is_empty() { Some(key) } else { key.strip_prefix(&*self.prefix)?.strip_prefix('/') }
    }
}

impl FromStr for S3Uri {
    type Err = Error;

    /// Reads `s3://bucket/prefix`, `s3://http://host:port/bucket/prefix` (or https) and Triton's
    /// `s3://host:port/bucket/prefix`, where the port means a store of one's own over http.
    ///
    /// # Errors
    /// `InvalidArgument` saying what is wrong and how it is written.
    fn from_str(uri: &str) -> Result<Self> {
        // The URI itself is not repeated: who puts credentials into it should not find them in a log.
        let wrong = |what: &str| Err(Error::invalid(format!("the S3 model repository {what}: {FORM}")));
        if !is_s3(uri) {
            return wrong("does not begin with s3://");
        }
        let rest = &uri[5..];
        let (endpoint, path) = if let Some((scheme, rest)) = web_scheme(rest) {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            (Some((scheme, authority)), path)
        } else {
            let (first, path) = rest.split_once('/').unwrap_or((rest, ""));
            if first.contains(':') { (Some(("http", first)), path) } else { (None, rest) }
        };
        let endpoint = match endpoint {
            Some((_, authority)) if authority.contains('@') => {
                return wrong("has credentials in it; they belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
            }
            Some((_, authority)) if !is_authority(authority) => {
                return wrong("names no host, or no port it could have");
            }
            Some((scheme, authority)) => Some(format!("{scheme}://{authority}")),
            None => None,
        };
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        if bucket.is_empty() {
            return wrong("names no bucket");
        }
        if !is_bucket(bucket) {
            return wrong("names a bucket that S3 cannot have (letters, digits, '.', '-' and '_', 3 to 255 of them)");
        }
        let prefix = prefix.trim_matches('/');
        if prefix.len() >= MAX_KEY_LENGTH {
            return wrong("has a prefix as long as S3's longest key, 1024 bytes");
        }
        if prefix.chars().any(char::is_control) {
            return wrong("has a control character in its prefix");
        }
        if !prefix.is_empty() && prefix.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return wrong("has an empty part, '.' or '..' in its prefix");
        }
        Ok(Self { endpoint, bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

fn web_scheme(text: &str) -> Option<(&'static str, &str)> {
    let strip = |scheme: &str| {
        let head = text.get(..scheme.len())?;
        head.eq_ignore_ascii_case(scheme).then(|| &text[scheme.len()..])
    };
    strip("http://").map(|rest| ("http", rest)).or_else(|| strip("https://").map(|rest| ("https", rest)))
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None => return false,
        },
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_host = if text.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
    };
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|n| n > 0);
    is_host && port.is_none_or(is_port)
}

/// Names of today's rules, and of those that older buckets in us-east-1 and other stores go by.
fn is_bucket(name: &str) -> bool {
    (3..=255).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        && !name.starts_with(['.', '-'])
        && !name.contains("..")
}

impl fmt::Display for S3Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("s3://")?;
        if let Some(endpoint) = &self.endpoint {
            write!(f, "{endpoint}/")?;
        }
        f.write_str(&self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(uri: &str) -> (Option<String>, String, String) {
        let uri: S3Uri = uri.parse().unwrap();
        (uri.endpoint, uri.bucket, uri.prefix)
    }

    #[test]
    fn each_form_names_store_bucket_and_prefix() {
        let at = |endpoint: Option<&str>, bucket: &str, prefix: &str| {
            (endpoint.map(str::to_owned), bucket.to_owned(), prefix.to_owned())
        };
        assert_eq!(parsed("s3://bucket"), at(None, "bucket", ""));
        assert_eq!(parsed("s3://bucket/"), at(None, "bucket", ""));
        assert_eq!(parsed("S3://bucket/a/b c/"), at(None, "bucket", "a/b c"));
        assert_eq!(parsed("s3://http://minio:9000/bucket/a"), at(Some("http://minio:9000"), "bucket", "a"));
        assert_eq!(parsed("s3://https://store.example/bucket"), at(Some("https://store.example"), "bucket", ""));
        assert_eq!(parsed("s3://localhost:9000/bucket/a"), at(Some("http://localhost:9000"), "bucket", "a"));
        assert_eq!(parsed("s3://[::1]:9000/bucket//a"), at(Some("http://[::1]:9000"), "bucket", "a"));
        assert_eq!(parsed("s3://Old_Bucket/größe"), at(None, "Old_Bucket", "größe"));
    }

    #[test]
    fn what_names_no_bucket_is_refused_with_the_form() {
        let long = format!("s3://bucket/{}", "x".repeat(1024));
        for uri in [
            "",
            "s3:/bucket",
            "bucket/prefix",
            "s3://",
            "s3:///prefix",
            "s3://http://host:9000",
            "s3://http:///bucket",
            "s3://host:/bucket",
            "s3://host:99999/bucket",
            "s3://host:+80/bucket",
            "s3://[::1/bucket",
            "s3://ab/x",
            "s3://buc ket/x",
            "s3://bucket/a//b",
            "s3://bucket/../b",
            "s3://bucket/a\nb",
            &long,
        ] {
            let error = uri.parse::<S3Uri>().unwrap_err().to_string();
            assert!(error.contains("s3://bucket/prefix"), "{uri:?}: {error}");
        }
    }

    #[test]
    fn credentials_in_the_uri_are_refused_and_not_repeated() {
        for uri in ["s3://http://key:hunter2@host:9000/bucket", "s3://key:hunter2@host:9000/bucket"] {
            let error = uri.parse::<S3Uri>().unwrap_err().to_string();
            assert!(error.contains("AWS_SECRET_ACCESS_KEY") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn keys_lie_below_the_prefix_and_come_back() {
        for (uri, key) in [("s3://bucket", "m/1/x"), ("s3://bucket/a/b", "a/b/m/1/x")] {
            let uri: S3Uri = uri.parse().unwrap();
            assert_eq!(uri.key("m/1/x"), key);
            assert_eq!(uri.relative(key), Some("m/1/x"));
        }
        let uri: S3Uri = "s3://bucket/a".parse().unwrap();
        assert_eq!((uri.relative("ab/m"), uri.relative("a")), (None, None));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_is_written_back(text in "(s3://)?(https?://)?[a-z0-9:/.@\\[\\]_ -]{0,40}|\\PC{0,60}") {
            if let Ok(uri) = text.parse::<S3Uri>() {
                prop_assert!(!uri.bucket.contains('/') && !uri.prefix.starts_with('/') && !uri.prefix.ends_with('/'));
                prop_assert_eq!(uri.to_string().parse::<S3Uri>().unwrap(), uri);
            }
        }
    }
}

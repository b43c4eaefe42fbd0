//! `Content-Encoding` and `Accept-Encoding`: gzip and deflate (zlib), both ways, as Triton's HTTP front end has them.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use flate2::write::{GzEncoder, ZlibEncoder};
use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderValue};

use crate::error::{Error, Result};

/// Bodies from this size on are compressed where blocking is allowed.
const LARGE: usize = 32 << 10;

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 1950, which HTTP calls deflate.
    Deflate,
}

impl Encoding {
    fn named(name: &str) -> Option<Self> {
        match name {
            "identity" | "" => Some(Self::Identity),
            "gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            _ => None,
        }
    }

    /// The header's value; `None` for a body as it is.
    #[must_use]
    pub fn header(self) -> Option<HeaderValue> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some(HeaderValue::from_static("gzip")),
            Self::Deflate => Some(HeaderValue::from_static("deflate")),
        }
    }

    /// What is offered, for the answer to a body in another encoding.
    #[must_use]
    pub const fn offered() -> HeaderValue {
        HeaderValue::from_static("gzip, deflate")
    }

    /// How the request's body is encoded.
    ///
    /// # Errors
    /// `Unsupported` for an encoding that is not offered.
    pub fn of_request(headers: &HeaderMap) -> Result<Self> {
        let Some(value) = headers.get(CONTENT_ENCODING) else { return Ok(Self::Identity) };
        value.to_str().ok().map(str::trim).and_then(|name| Self::named(&name.to_ascii_lowercase())).ok_or_else(|| {
            Error::unsupported("Unsupported compression type: send the body as gzip, deflate or identity")
        })
    }

    /// How the answer is best encoded: the offered encoding of the highest weight, the first of equals; what is not
    /// understood counts for nothing.
    #[must_use]
    pub fn for_response(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()) else {
            return Self::Identity;
        };
        let mut best = (0.0_f32, Self::Identity);
        for item in value.split(',') {
            let (name, weight) = match item.split_once(';') {
                None => (item, Some(1.0)),
                Some((name, parameter)) => {
                    (name, parameter.trim().strip_prefix("q=").and_then(|weight| weight.trim().parse::<f32>().ok()))
                }
            };
            let name = name.trim().to_ascii_lowercase();
            let (Some(weight), false) = (weight, name.is_empty()) else { continue };
            if let Some(encoding) = Self::named(&name)
                && weight > best.0
            {
                best = (weight, encoding);
            }
        }
        best.1
    }
}

/// Expands a body to at most `limit` bytes; `flag` is what sets the limit.
///
/// # Errors
/// `InvalidArgument` if it is not what it says, `TooLarge` if it expands beyond `limit` bytes.
pub async fn expand(encoding: Encoding, body: Bytes, limit: usize, flag: &'static str) -> Result<Bytes> {
    if encoding == Encoding::Identity {
        return Ok(body);
    }
    // A kilobyte may become a megabyte, which takes about a millisecond.
    off_the_io_threads(body.len() > 1 << 10, move || expand_blocking(encoding, &body, limit, flag)).await
}

fn expand_blocking(encoding: Encoding, body: &[u8], limit: usize, flag: &str) -> Result<Bytes> {
    let mut expanded = Vec::with_capacity(body.len().saturating_mul(3).min(limit));
    let at_most = limit as u64 + 1;
    let result = match encoding {
        Encoding::Identity => Ok(expanded.write(body).unwrap_or(0)),
        Encoding::Gzip => MultiGzDecoder::new(body).take(at_most).read_to_end(&mut expanded),
        Encoding::Deflate => ZlibDecoder::new(body).take(at_most).read_to_end(&mut expanded),
    };
    result.map_err(|error| Error::invalid("the request body cannot be decompressed").with_source(error))?;
    if expanded.len() > limit {
        return Err(Error::too_large(format!("the request body is larger than {flag} {limit} when decompressed")));
    }
    Ok(expanded.into())
}

/// Compresses the pieces of a body into one.
///
/// # Errors
/// `Internal` if the encoder fails, which writing into memory does not.
pub async fn compress(encoding: Encoding, pieces: Vec<Bytes>) -> Result<Bytes> {
    // Level 1: an answer is compressed once and read once.
    compress_at(encoding, pieces, 1).await
}

/// The same at a level from 1, the fastest, to 9.
///
/// # Errors
/// As [`compress`].
pub async fn compress_at(encoding: Encoding, pieces: Vec<Bytes>, level: u32) -> Result<Bytes> {
    let length: usize = pieces.iter().map(Bytes::len).sum();
    off_the_io_threads(length >= LARGE, move || {
        let failed = |error| Error::internal("compressing the answer failed").with_source(error);
        let room = Vec::with_capacity(length / 2 + 64);
        let level = Compression::new(level);
        match encoding {
            Encoding::Identity => Ok(pieces.concat().into()),
            Encoding::Gzip => {
                let mut encoder = GzEncoder::new(room, level);
                pieces.iter().try_for_each(|piece| encoder.write_all(piece)).map_err(failed)?;
                encoder.finish().map(Bytes::from).map_err(failed)
            }
            Encoding::Deflate => {
                let mut encoder = ZlibEncoder::new(room, level);
                pieces.iter().try_for_each(|piece| encoder.write_all(piece)).map_err(failed)?;
                encoder.finish().map(Bytes::from).map_err(failed)
            }
        }
    })
    .await
}

async fn off_the_io_threads(large: bool, work: impl FnOnce() -> Result<Bytes> + Send + 'static) -> Result<Bytes> {
    if !large {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal("compression failed").with_source(error))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(value: &str) -> Encoding {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, value.parse().unwrap());
        Encoding::for_response(&headers)
    }

    #[test]
    fn the_best_weighted_offer_wins_and_nonsense_counts_for_nothing() {
        assert_eq!(accept("gzip"), Encoding::Gzip);
        assert_eq!(accept("deflate, gzip"), Encoding::Deflate);
        assert_eq!(accept("gzip;q=0.5, deflate;q=0.8"), Encoding::Deflate);
        assert_eq!(accept("gzip;q=0.5, identity;q=0.8"), Encoding::Identity);
        for none in ["", "br", "*", "gzip;q=0", "gzip;q=abc", "identity;q=0", "gzip ; q = x"] {
            assert_eq!(accept(none), Encoding::Identity, "{none}");
        }
    }

    #[tokio::test]
    async fn bodies_round_trip_and_bombs_are_refused() {
        for encoding in [Encoding::Gzip, Encoding::Deflate] {
            let pieces = vec![Bytes::from(vec![7_u8; 1 << 20]), Bytes::from_static(b"end")];
            let packed = compress(encoding, pieces.clone()).await.unwrap();
            assert!(packed.len() < 1 << 14);
            let whole = expand(encoding, packed.clone(), 2 << 20, "--limit").await.unwrap();
            assert_eq!(whole, pieces.concat());
            let error = expand(encoding, packed.clone(), 1 << 20, "--limit").await.unwrap_err();
            assert_eq!(error.kind(), crate::error::ErrorKind::TooLarge);
            let cut = packed.slice(..packed.len() / 2);
            assert!(expand(encoding, cut, 2 << 20, "--limit").await.is_err());
        }
        assert!(expand(Encoding::Gzip, Bytes::from_static(b"plain"), 100, "--limit").await.is_err());
    }
}

//! The one form of a request that is signed.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::super::failure::ServiceError;
use super::{CONTENT_SHA256, Request, incomplete, invalid, single};

/// The largest head of a request in canonical form, in bytes.
pub(super) const MAX_CANONICAL: usize = 65_536;

/// In place of the body's hash where the client left the body out of its signature.
const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// The request in the form that is signed.
pub(super) fn request(request: &Request<'_>, signed: &[&str]) -> Result<Vec<u8>, ServiceError> {
    let mut canonical = Vec::with_capacity(1024);
    canonical.extend_from_slice(request.method.as_str().as_bytes());
    canonical.push(b'\n');
    canonical.extend_from_slice(encoded_path(request.uri.path())?.as_bytes());
    canonical.push(b'\n');
    canonical.extend_from_slice(sorted_query(request.uri.query().unwrap_or_default()).as_bytes());
    canonical.push(b'\n');
    for name in signed {
        canonical.extend_from_slice(name.as_bytes());
        let mut before = b':';
        for value in request.headers.get_all(*name) {
            if before == b',' && name.starts_with("x-amz") {
                return Err(incomplete(&format!("the request has '{name}' twice")));
            }
            canonical.push(before);
            push_trimmed(value.as_bytes(), &mut canonical);
            before = b',';
            if canonical.len() > MAX_CANONICAL {
                return Err(ServiceError::validation(format!("what is signed is larger than {MAX_CANONICAL} bytes")));
            }
        }
        if before == b':' {
            return Err(incomplete(&format!("the request has no header '{name}', which SignedHeaders names")));
        }
        canonical.push(b'\n');
    }
    canonical.push(b'\n');
    canonical.extend_from_slice(signed.join(";").as_bytes());
    canonical.push(b'\n');
    canonical.extend_from_slice(payload(request)?.as_bytes());
    Ok(canonical)
}

/// The path, each byte escaped once more that means something; escapes stand in it already.
fn encoded_path(path: &str) -> Result<String, ServiceError> {
    // Signers leave such parts out before they sign, so that one signature would be good for several paths.
    let Some(inside) = path.strip_prefix('/') else {
        return Err(ServiceError::validation("the path does not begin with a slash"));
    };
    let parts = inside.strip_suffix('/').unwrap_or(inside);
    if !inside.is_empty() && parts.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(ServiceError::validation("the path has an empty part, '.' or '..' in it"));
    }
    let mut canonical = String::with_capacity(path.len() + 16);
    path.bytes().for_each(|byte| push_encoded(byte, byte == b'/', &mut canonical));
    Ok(canonical)
}

/// The query's pairs, escaped in one way and sorted.
fn sorted_query(query: &str) -> String {
    if query.is_empty() {
        return String::new();
    }
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (recoded(name), recoded(value)))
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join("&")
}

/// Undoes escapes and forms' `+` for a blank, and escapes all that has to be.
fn recoded(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let (mut recoded, mut rest) = (String::with_capacity(text.len()), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, digit(after.first()), digit(after.get(1))) {
            (b'%', Some(high), Some(low)) => {
                push_encoded(u8::try_from(high << 4 | low).unwrap_or_default(), false, &mut recoded);
                rest = &after[2..];
            }
            _ => push_encoded(if byte == b'+' { b' ' } else { byte }, false, &mut recoded),
        }
    }
    recoded
}

fn push_encoded(byte: u8, as_it_is: bool, text: &mut String) {
    if as_it_is || byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        text.push(char::from(byte));
    } else {
        // Writing into a String cannot fail.
        let _ = write!(text, "%{byte:02X}");
    }
}

/// A header's value without blanks around it, and with one where there are several.
pub(super) fn push_trimmed(value: &[u8], canonical: &mut Vec<u8>) {
    let words = value.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    for (index, word) in words.enumerate() {
        if index > 0 {
            canonical.push(b' ');
        }
        canonical.extend_from_slice(word);
    }
}

/// The hash of the body, or the word for a body that the client did not sign.
fn payload(request: &Request<'_>) -> Result<String, ServiceError> {
    let claimed = single(request.headers, &CONTENT_SHA256)?;
    if claimed == Some(UNSIGNED_PAYLOAD) {
        return Ok(UNSIGNED_PAYLOAD.to_owned());
    }
    let hash = hex(&Sha256::digest(request.body));
    match claimed {
        Some(claimed) if claimed.starts_with("STREAMING-") => {
            Err(invalid("bodies that are signed chunk by chunk are not taken: sign the whole body"))
        }
        Some(claimed) if claimed != hash => Err(invalid("x-amz-content-sha256 is not the hash of the body")),
        Some(_) | None => Ok(hash),
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

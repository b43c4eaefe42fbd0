//! Requests with keys, and files of keys: whatever they hold, checking answers, and a body that was changed is refused.
//!
//! A request is method, target and headers, each on a line of its own, an empty line, and the body, all as SigV4's signer
//! saw them. What begins with `keys` and a line's end is a file of keys.

#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};
use libfuzzer_sys::fuzz_target;
use roundhouse::frontend::sagemaker::keys::Keys;

/// The seeds are signed with AWS's example, at 2026-11-24T12:10:28Z.
static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let text = "[[key]]\nid = 'AKIAEXAMPLE'\nsecret = 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY'\nmodels = ['team/*']\n\
                [[token]]\nname = 'ci'\ntoken = '0123456789abcdef'\n";
    Keys::parse(text).expect("a file of keys")
});

const AT: u64 = 1_795_522_228;

fuzz_target!(|data: &[u8]| {
    if let Some(text) = data.strip_prefix(b"keys\n") {
        let Ok(text) = std::str::from_utf8(text) else { return };
        match Keys::parse(text) {
            Ok(keys) => assert!(!format!("{keys:?}").is_empty()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        return;
    }
    let Some((method, uri, headers, body)) = request(data) else { return };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(AT);
    match KEYS.check(&method, &uri, &headers, body, now) {
        Ok(grant) => {
            assert_eq!(grant.allows(Some("team/a")), Ok(()));
            let without_body = headers.get("x-amz-content-sha256").is_some_and(|value| value == "UNSIGNED-PAYLOAD");
            if grant.name() == "AKIAEXAMPLE" && !without_body {
                assert!(grant.allows(Some("other/a")).is_err());
                let changed = [body, b"!"].concat();
                assert!(KEYS.check(&method, &uri, &headers, &changed, now).is_err());
                assert!(KEYS.check(&method, &uri, &headers, body, now + Duration::from_secs(601)).is_err());
            }
        }
        Err(error) => assert!(!error.message.is_empty() && (400..=413).contains(&error.code.status().as_u16())),
    }
});

fn request(data: &[u8]) -> Option<(Method, Uri, HeaderMap, &[u8])> {
    let (method, mut rest) = line(data)?;
    let (target, after) = line(rest)?;
    rest = after;
    let mut headers = HeaderMap::new();
    loop {
        let (header, after) = line(rest)?;
        rest = after;
        if header.is_empty() {
            break;
        }
        let colon = header.iter().position(|byte| *byte == b':')?;
        let value = HeaderValue::from_bytes(&header[colon + 1..]).ok()?;
        headers.try_append(HeaderName::from_bytes(&header[..colon]).ok()?, value).ok()?;
    }
    Some((Method::from_bytes(method).ok()?, Uri::try_from(target).ok()?, headers, rest))
}

fn line(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = data.iter().position(|byte| *byte == b'\n')?;
    Some((&data[..end], &data[end + 1..]))
}

//! AWS Signature Version 4 in the header `Authorization`, checked as AWS checks it for `sagemaker-runtime`.
//!
//! A request is signed with a key that is derived from the secret, so that the secret itself never travels. What is signed is the
//! request in one canonical form: AWS's user guide of IAM, "Create a signed AWS API request". Read against botocore's signer,
//! and checked against what botocore and curl sign.
//!
//! Stricter than that form where it would let two different requests have one signature: a path with empty or dot parts is
//! refused, so is a header of AWS's that is there twice, and what steers an invocation has to be signed.

use std::time::{Duration, SystemTime};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, DATE, HOST};
use http::{HeaderMap, HeaderName, Method, Uri};
use sha2::{Digest, Sha256};

use super::super::time::{self, Rfc3339};
use super::failure::{Code, ServiceError};

mod canonical;

/// The algorithm that begins the header.
pub(super) const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The service that requests are signed for.
const SERVICE: &str = "sagemaker";

/// What ends the scope of a credential.
const TERMINATOR: &str = "aws4_request";

/// How far the clocks of the client and the server may be apart.
const MAX_SKEW: Duration = Duration::from_secs(300);

/// The longest header `Authorization`, in bytes: the names of all signed headers are in it.
pub(super) const MAX_AUTHORIZATION: usize = 8192;

/// The most headers that a signature may cover.
const MAX_SIGNED_HEADERS: usize = 64;

const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");

type HmacSha256 = Hmac<Sha256>;

/// A request as it came in.
pub(super) struct Request<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

/// What the header `Authorization` claims, not yet believed.
pub(super) struct Claim<'a> {
    /// The access key id.
    pub(super) id: &'a str,
    /// `20261124`
    date: &'a str,
    region: &'a str,
    /// The names of the signed headers: lower case, in order.
    signed: Vec<&'a str>,
    signature: [u8; 32],
}

impl<'a> Claim<'a> {
    /// Reads what stands behind the algorithm.
    ///
    /// # Errors
    /// `IncompleteSignatureException` naming the part that is missing or wrong.
    pub(super) fn parse(text: &'a str) -> Result<Self, ServiceError> {
        let (mut credential, mut signed, mut signature) = (None, None, None);
        for part in text.split(',') {
            let (name, value) = part.trim().split_once('=').ok_or_else(|| incomplete("a part of it has no '='"))?;
            let slot = match name {
                "Credential" => &mut credential,
                "SignedHeaders" => &mut signed,
                "Signature" => &mut signature,
                _ => return Err(incomplete("it has a part other than Credential, SignedHeaders and Signature")),
            };
            if slot.replace(value).is_some() {
                return Err(incomplete("it has a part twice"));
            }
        }
        let credential = credential.ok_or_else(|| incomplete("Credential is missing"))?;
        let signed = signed.ok_or_else(|| incomplete("SignedHeaders is missing"))?;
        let signature = signature.ok_or_else(|| incomplete("Signature is missing"))?;
        let mut scope = credential.split('/');
        let (Some(id), Some(date), Some(region), Some(service), Some(TERMINATOR), None) =
            (scope.next(), scope.next(), scope.next(), scope.next(), scope.next(), scope.next())
        else {
            return Err(incomplete("Credential is not KEY-ID/YYYYMMDD/REGION/sagemaker/aws4_request"));
        };
        if service != SERVICE {
            return Err(invalid("the credential is scoped to another service: sign for 'sagemaker'"));
        }
        let is_region = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if region.is_empty() || region.len() > 64 || !region.bytes().all(is_region) {
            return Err(incomplete("the region in Credential is none"));
        }
        Ok(Self { id, date, region, signed: signed_headers(signed)?, signature: signature_bytes(signature)? })
    }

    /// Checks that whoever knows `secret` signed this request, at most five minutes before or after `now`.
    ///
    /// # Errors
    /// `InvalidSignatureException` for another request than the signed one or another time, `IncompleteSignatureException` for
    /// what should be signed and is not, `ValidationError` for a path that could be read in two ways.
    pub(super) fn verify(&self, request: &Request<'_>, secret: &str, now: SystemTime) -> Result<(), ServiceError> {
        self.check_covered(request.headers)?;
        let (stamp, at) = moment(request.headers)?;
        if !stamp.starts_with(self.date) {
            return Err(invalid("the date in Credential is another one than that of the request"));
        }
        let skew = now.duration_since(at).unwrap_or_else(|error| error.duration());
        if skew > MAX_SKEW {
            let clock = Rfc3339(now);
            return Err(invalid(&format!("it is of {stamp}, more than 5 minutes from {clock}, the server's time")));
        }
        let canonical = canonical::request(request, &self.signed)?;
        let scope = format!("{}/{}/{SERVICE}/{TERMINATOR}", self.date, self.region);
        let text = format!("{ALGORITHM}\n{stamp}\n{scope}\n{}", canonical::hex(&Sha256::digest(canonical)));
        let mut key = keyed(format!("AWS4{secret}").as_bytes())?;
        for part in [self.date, self.region, SERVICE, TERMINATOR] {
            key.update(part.as_bytes());
            key = keyed(&key.finalize().into_bytes())?;
        }
        key.update(text.as_bytes());
        // Takes the same time wherever the first difference is.
        key.verify_slice(&self.signature).map_err(|_| {
            invalid("it is not that of this request: check the secret key, and what changes requests on their way")
        })
    }

    /// Whether everything that steers an invocation is covered by the signature.
    fn check_covered(&self, headers: &HeaderMap) -> Result<(), ServiceError> {
        if !self.signed.contains(&HOST.as_str()) {
            return Err(incomplete("SignedHeaders lacks 'host'"));
        }
        for name in headers.keys() {
            let is_sagemakers = name.as_str().starts_with("x-amzn-sagemaker-");
            let steers = is_sagemakers || [CONTENT_SHA256, CONTENT_TYPE, CONTENT_ENCODING].contains(name);
            if steers && !self.signed.contains(&name.as_str()) {
                return Err(incomplete(&format!("SignedHeaders lacks '{name}', which the request has")));
            }
        }
        Ok(())
    }
}

/// The names in SignedHeaders, which are lower case, in order and each there once.
fn signed_headers(text: &str) -> Result<Vec<&str>, ServiceError> {
    let names: Vec<&str> = text.split(';').take(MAX_SIGNED_HEADERS + 1).collect();
    if names.len() > MAX_SIGNED_HEADERS {
        return Err(incomplete(&format!("SignedHeaders has more than {MAX_SIGNED_HEADERS} names")));
    }
    let is_name =
        |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase());
    if !names.iter().all(|name| is_name(name)) || !names.is_sorted_by(|one, next| one < next) {
        return Err(incomplete("SignedHeaders is not a list of names in lower case, sorted, with ';' between them"));
    }
    if names.contains(&AUTHORIZATION.as_str()) {
        return Err(incomplete("SignedHeaders has 'authorization', which holds the signature"));
    }
    Ok(names)
}

fn signature_bytes(text: &str) -> Result<[u8; 32], ServiceError> {
    let wrong = || incomplete("Signature is not 64 hexadecimal digits in lower case");
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(wrong()) };
    let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(wrong)
}

/// When the request was signed, as it stands in the signature (`20261124T121159Z`) and as a time.
fn moment(headers: &HeaderMap) -> Result<(String, SystemTime), ServiceError> {
    let wrong = || incomplete("the request has no X-Amz-Date of the form YYYYMMDDTHHMMSSZ and no Date");
    let value = match single(headers, &AMZ_DATE)? {
        Some(value) => value,
        None => single(headers, &DATE)?.ok_or_else(wrong)?,
    };
    if let Some(at) = basic(value) {
        return Ok((value.to_owned(), at));
    }
    // botocore signs a Date that says "-0000", as mails have it.
    let date = value.strip_suffix("-0000").map_or_else(|| value.to_owned(), |rest| format!("{rest}GMT"));
    let date = DateTime::from_str(&date, Format::HttpDate).map_err(|_| wrong())?;
    let seconds = u64::try_from(date.secs()).map_err(|_| wrong())?;
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or_else(wrong)?;
    let text = Rfc3339(at).to_string().replace(['-', ':'], "");
    let whole = text.split('.').next().unwrap_or_default();
    Ok((format!("{whole}Z"), at))
}

/// Reads `20261124T121159Z`.
fn basic(text: &str) -> Option<SystemTime> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    if !text.is_ascii() || (date.len(), clock.len()) != (8, 6) {
        return None;
    }
    let (year, month, day) = (&date[..4], &date[4..6], &date[6..]);
    time::parse(&format!("{year}-{month}-{day}T{}:{}:{}Z", &clock[..2], &clock[2..4], &clock[4..]))
}

/// The value of a header that may be there once.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ServiceError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(incomplete(&format!("the request has '{name}' twice")));
    }
    value.to_str().map(Some).map_err(|_| incomplete(&format!("'{name}' is not ASCII")))
}

fn keyed(key: &[u8]) -> Result<HmacSha256, ServiceError> {
    HmacSha256::new_from_slice(key).map_err(|_| ServiceError::new(Code::Internal, "cannot check the signature"))
}

fn incomplete(what: &str) -> ServiceError {
    ServiceError::new(Code::IncompleteSignature, format!("the header Authorization cannot be used: {what}"))
}

fn invalid(what: &str) -> ServiceError {
    ServiceError::new(Code::InvalidSignature, format!("the signature is not accepted: {what}"))
}

#[cfg(test)]
mod tests;

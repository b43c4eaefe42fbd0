//! Who may ask the runtime API: keys that sign requests (SigV4) and bearer tokens, each with the models it is for.
//!
//! ```toml
//! [[key]]
//! id = "AKIAEXAMPLE"
//! secret = "..."
//! models = ["company_a/*"]
//!
//! [[token]]
//! name = "ci"
//! token = "..."
//! ```
//!
//! `models` are patterns of names as IAM's `StringLike` on `sagemaker:TargetModel` has them: `*` stands for any run of
//! characters, slashes too, `?` for one. Left out, it is `["*"]`.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use hmac::digest::CtOutput;
use hmac::{Hmac, KeyInit, Mac};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Method, Uri};
use sha2::Sha256;

use super::super::access::{pattern, table};
use super::failure::{Code, ServiceError};
use super::sigv4::{ALGORITHM, Claim, MAX_AUTHORIZATION, Request, single};
use crate::error::Result;

mod file;

/// All keys and tokens of one file. Nothing of it prints a secret.
#[derive(Default)]
pub struct Keys {
    /// By access key id.
    keys: HashMap<String, Key>,
    tokens: Vec<Token>,
}

struct Key {
    holder: Holder,
    secret: String,
}

struct Token {
    holder: Holder,
    mac: Fingerprint,
}

/// A token's MAC; two are compared in the same time wherever they differ.
type Fingerprint = CtOutput<Hmac<Sha256>>;

/// Who holds a key, and what it is for.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    /// The access key id, or the token's name.
    name: String,
    /// Patterns of models' names.
    models: Vec<String>,
}

impl Keys {
    /// Reads the file. Warns if everybody on this machine can read it.
    ///
    /// # Errors
    /// `InvalidArgument` naming the file and the line.
    pub fn open(path: &Path) -> Result<Self> {
        let text = table::read("--endpoint-keys", path)?;
        Self::parse(&text).map_err(|error| error.wrap(format!("in --endpoint-keys {}", path.display())))
    }

    /// Reads the text of such a file.
    ///
    /// # Errors
    /// `InvalidArgument` naming the line and what is wrong there: TOML that is none, a field that is unknown, missing or of
    /// the wrong kind, an empty or repeated id, a token of less than 16 characters. Secrets are not repeated in it.
    pub fn parse(text: &str) -> Result<Self> {
        file::parse(text)
    }

    /// Who asks, as the header `Authorization` says and proves. `body` is the body as it came, before it is decompressed.
    ///
    /// # Errors
    /// `MissingAuthenticationTokenException` without the header, `IncompleteSignatureException` if it is malformed,
    /// `UnrecognizedClientException` for an unknown key or token, `InvalidSignatureException` for a signature of another
    /// request or time, `ValidationError` for a signed request that could be read in two ways.
    pub fn check(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        body: &[u8],
        now: SystemTime,
    ) -> Result<Grant<'_>, ServiceError> {
        let incomplete = |what: String| Err(ServiceError::new(Code::IncompleteSignature, what));
        let Some(value) = single(headers, &AUTHORIZATION)? else {
            let text = "the header Authorization is missing: sign the request (SigV4), or send a bearer token";
            return Err(ServiceError::new(Code::MissingAuthenticationToken, text));
        };
        if value.len() > MAX_AUTHORIZATION {
            return incomplete(format!("the header Authorization is longer than {MAX_AUTHORIZATION} bytes"));
        }
        let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
        if scheme == ALGORITHM {
            let claim = Claim::parse(rest)?;
            let key = self.keys.get(claim.id).ok_or_else(|| unknown("the access key id is not known here"))?;
            claim.verify(&Request { method, uri, headers, body }, &key.secret, now)?;
            Ok(Grant(&key.holder))
        } else if scheme.eq_ignore_ascii_case("bearer") {
            self.token(rest.trim()).map(Grant).ok_or_else(|| unknown("the bearer token is not known here"))
        } else {
            incomplete(format!("the header Authorization begins with neither '{ALGORITHM}' nor 'Bearer'"))
        }
    }

    /// The holder of a token. Looks at all of them, so that the time says nothing about which one it was.
    fn token(&self, token: &str) -> Option<&Holder> {
        let mac = fingerprint(token)?;
        self.tokens.iter().fold(None, |found, one| if one.mac == mac { Some(&one.holder) } else { found })
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (keys, tokens) = (self.keys.len(), self.tokens.len());
        f.debug_struct("Keys").field("keys", &keys).field("tokens", &tokens).finish_non_exhaustive()
    }
}

/// What a key or a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant<'a>(&'a Holder);

impl Grant<'_> {
    /// The access key id or the token's name, for logs; never a secret.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether the model may be asked, by the name that the request has for it. `None`, an invocation that names no model,
    /// needs the pattern `*`: other patterns match names only, as IAM's do.
    ///
    /// # Errors
    /// `AccessDeniedException` naming the key and the model.
    pub fn allows(&self, model: Option<&str>) -> Result<(), ServiceError> {
        let Holder { name, models } = self.0;
        if models.iter().any(|one| model.map_or(one == "*", |model| pattern::matches(one, model))) {
            return Ok(());
        }
        let text = match model {
            Some(model) => format!("key '{name}' is not for model '{model}'"),
            None => format!("key '{name}' is only for models by name: send X-Amzn-SageMaker-Target-Model"),
        };
        Err(ServiceError::new(Code::AccessDenied, text))
    }
}

/// The MAC under which tokens are kept and compared. The key is no secret: it only sets this use of the hash apart.
fn fingerprint(token: &str) -> Option<Fingerprint> {
    let mut mac = Hmac::<Sha256>::new_from_slice(b"roundhouse endpoint token").ok()?;
    mac.update(token.as_bytes());
    Some(mac.finalize())
}

fn unknown(what: &str) -> ServiceError {
    ServiceError::new(Code::UnrecognizedClient, what)
}

#[cfg(test)]
mod tests;

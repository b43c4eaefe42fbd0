//! Who may ask what: bearer tokens, each with the kinds of requests and the models it is for.
//!
//! ```toml
//! anonymous = ["health"]
//!
//! [[token]]
//! name = "ci"
//! sha256 = "..."    # printf %s TOKEN | sha256sum
//! allow = ["inference", "metadata"]
//! models = ["team/*"]
//! ```
//!
//! `models` are patterns: `*` stands for any run of characters, slashes too, `?` for one. Left out, it is `["*"]`. The
//! file has no token in it, only what tells whether a token is the right one.

mod file;
pub mod pattern;
pub mod table;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use hmac::digest::CtOutput;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use sha2::{Digest, Sha256};

use super::body::Body;
use super::tensor_json;
use super::watch::Watched;
use crate::error::Result;

/// Stands for the models of what concerns all of them, such as a list: tokens whose patterns are not for every name are
/// refused.
pub const EVERY_MODEL: &str = "*";

/// The longest header that is looked at, in bytes.
const MAX_AUTHORIZATION: usize = 8 << 10;

/// A SHA-256; two are compared in the same time wherever they differ.
type Fingerprint = CtOutput<Sha256>;

macro_rules! classes {
    ($($(#[$doc:meta])* $class:ident = $name:literal,)*) => {
        /// A kind of requests.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Class { $($(#[$doc])* $class,)* }

        impl Class {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$class,)*];

            /// As the file of tokens and refusals have it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$class => $name,)* }
            }
        }
    };
}

classes! {
    /// To run a model.
    Inference = "inference",
    /// What the server is, what a model is and whether it is ready.
    Metadata = "metadata",
    /// Whether the server lives and is ready.
    Health = "health",
    /// To list, load and unload models.
    ModelRepository = "model-repository",
    /// What operators ask: everything below `/v1/`.
    Operators = "operators",
    /// How often models were asked and how long it took.
    Statistics = "statistics",
    /// The page of metrics.
    Metrics = "metrics",
    /// To lend and take back memory that is shared with clients.
    SharedMemory = "shared-memory",
    /// To see and change what is traced.
    Trace = "trace",
    /// To see and change what is logged.
    Logging = "logging",
}

impl Class {
    fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|class| class.name() == name)
    }

    fn names() -> String {
        Self::ALL.iter().map(|class| class.name()).collect::<Vec<_>>().join(", ")
    }
}

/// A set of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Classes(u16);

impl Classes {
    const ALL: Self = Self(u16::MAX);

    fn of(classes: &[Class]) -> Self {
        Self(classes.iter().fold(0, |bits, class| bits | 1 << *class as u16))
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn has(self, class: Class) -> bool {
        self.0 & 1 << class as u16 != 0
    }
}

/// What one file says.
struct Rights {
    /// What needs no token.
    anonymous: Classes,
    holders: Vec<Holder>,
}

/// A token and what it is for.
struct Holder {
    name: String,
    fingerprint: Fingerprint,
    classes: Classes,
    models: Vec<String>,
}

/// Who may ask what. Cheap to clone; clones see the same file.
#[derive(Clone, Default)]
pub struct Access(Option<Arc<ArcSwap<Rights>>>);

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// A token is needed, and none came.
    Missing,
    /// What came is no token that is known.
    Unknown,
    /// The token is known and not for this.
    Forbidden(String),
}

impl Access {
    /// Everybody may ask everything.
    #[must_use]
    pub fn open_to_all() -> Self {
        Self::default()
    }

    /// Reads the file. It is read again when what is returned beside is looked at.
    ///
    /// # Errors
    /// `InvalidArgument` naming the file, the line and what is wrong there.
    pub fn open(path: &Path) -> Result<(Self, Watched)> {
        let read = |path: &Path| {
            let text = table::read("--access-tokens", path)?;
            file::parse(&text).map_err(|error| error.wrap(format!("in --access-tokens {}", path.display())))
        };
        let slot = Arc::new(OnceLock::<Arc<ArcSwap<Rights>>>::new());
        let (again, kept) = (Arc::clone(&slot), path.to_owned());
        let watched = Watched::new("access tokens", vec![path.to_owned()], move || {
            let rights = read(&kept)?;
            if let Some(current) = again.get() {
                current.store(Arc::new(rights));
            }
            Ok(())
        });
        let rights = Arc::new(ArcSwap::from_pointee(read(path)?));
        Ok((Self(Some(Arc::clone(slot.get_or_init(|| rights)))), watched))
    }

    /// Reads the text of such a file.
    ///
    /// # Errors
    /// `InvalidArgument` naming the line and what is wrong there. What stands there is not repeated.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self(Some(Arc::new(ArcSwap::from_pointee(file::parse(text)?)))))
    }

    /// Whether whoever sent these headers may ask this: of the model, where one is named, or of [`EVERY_MODEL`]. To be
    /// called before a body is read.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, headers: &HeaderMap, class: Class, model: Option<&str>) -> Result<(), Denied> {
        match &self.0 {
            None => Ok(()),
            Some(rights) => rights.load().check(headers, class, model),
        }
    }
}

impl Rights {
    fn check(&self, headers: &HeaderMap, class: Class, model: Option<&str>) -> Result<(), Denied> {
        if self.anonymous.has(class) {
            return Ok(());
        }
        let token = bearer(headers)?;
        let Some(holder) = self.holder(token) else { return Err(Denied::Unknown) };
        let Holder { name, classes, models, .. } = holder;
        if !classes.has(class) {
            return Err(Denied::Forbidden(format!("token '{name}' does not have the right '{}'", class.name())));
        }
        let is_for = |model: &str| match model {
            EVERY_MODEL => models.iter().any(|one| one == "*"),
            model => models.iter().any(|one| pattern::matches(one, model)),
        };
        match model {
            Some(model) if !is_for(model) => Err(Denied::Forbidden(match model {
                EVERY_MODEL => format!("token '{name}' is not for all models, which this request is about"),
                model => format!("token '{name}' is not for model '{model}'"),
            })),
            _ => Ok(()),
        }
    }

    /// The holder of a token. Looks at all of them, so that the time says nothing about which one it was.
    fn holder(&self, token: &[u8]) -> Option<&Holder> {
        let fingerprint = Fingerprint::new(Sha256::digest(token));
        self.holders.iter().fold(None, |found, one| if one.fingerprint == fingerprint { Some(one) } else { found })
    }
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750, 2.1).
fn bearer(headers: &HeaderMap) -> Result<&[u8], Denied> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Denied::Missing)?.as_bytes();
    // Two of them could be read in two ways.
    if values.next().is_some() || value.len() > MAX_AUTHORIZATION {
        return Err(Denied::Unknown);
    }
    let (scheme, token) = value.split_at_checked(7).ok_or(Denied::Unknown)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return Err(Denied::Unknown);
    }
    Ok(token.trim_ascii())
}

impl Denied {
    /// Whether the caller is known: 403 and `PERMISSION_DENIED`, else 401 and `UNAUTHENTICATED`.
    #[must_use]
    pub const fn is_forbidden(&self) -> bool {
        matches!(self, Self::Forbidden(_))
    }

    /// The answer over HTTP (RFC 6750, 3).
    #[must_use]
    pub fn response(&self) -> http::Response<Body> {
        let (status, code, challenge) = match self {
            Self::Missing => (StatusCode::UNAUTHORIZED, "unauthenticated", "Bearer realm=\"roundhouse\""),
            Self::Unknown => {
                (StatusCode::UNAUTHORIZED, "unauthenticated", "Bearer realm=\"roundhouse\", error=\"invalid_token\"")
            }
            Self::Forbidden(_) => (
                StatusCode::FORBIDDEN,
                "permission_denied",
                "Bearer realm=\"roundhouse\", error=\"insufficient_scope\"",
            ),
        };
        let mut response = http::Response::new(Body::full(tensor_json::encode_error(&self.to_string(), code)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        response
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "a token is needed: send the header Authorization: Bearer TOKEN",
            Self::Unknown => "the header Authorization has no token that is known here",
            Self::Forbidden(why) => why,
        })
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = self.0.as_ref().map(|rights| rights.load().holders.len());
        f.debug_struct("Access").field("tokens", &tokens).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

//! One error type: a kind set where the failure happens, a context for people, and the source below it.
//!
//! *Architecture invariant:* the kind is never guessed from a text. Each front end maps kinds to its own codes in one
//! closed match without a `_` arm (`frontend/status.rs`), so a new kind fails to compile until every protocol knows it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// What went wrong, as far as a program cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No such model, version, route or file.
    NotFound,
    /// A load of something that is loaded already, where the protocol asks to be told.
    AlreadyLoaded,
    /// The caller's request or the model's configuration is wrong; the text names the field and the mend.
    InvalidArgument,
    /// A limit on size, depth or count was passed; the text names the limit.
    TooLarge,
    /// The model or the server cannot answer now and may be able to later.
    NotReady,
    /// A bounded queue is full.
    Overloaded,
    /// The request's deadline passed; the work was skipped or its answer thrown away.
    DeadlineExceeded,
    /// The book has no room for this on the device.
    OutOfDeviceMemory,
    /// The disk cache has no room for this.
    OutOfDisk,
    /// Known to the protocol or the configuration, but not offered here.
    Unsupported,
    /// The runtime (ONNX Runtime, libtorch, a plugin) failed.
    BackendFailed,
    /// The model repository (a folder, S3) failed.
    RepositoryFailed,
    /// A fault of our own.
    Internal,
}

impl ErrorKind {
    /// Every kind, in the order of the table in ARCHITECTURE.md.
    pub const ALL: [Self; 13] = [
        Self::NotFound,
        Self::AlreadyLoaded,
        Self::InvalidArgument,
        Self::TooLarge,
        Self::NotReady,
        Self::Overloaded,
        Self::DeadlineExceeded,
        Self::OutOfDeviceMemory,
        Self::OutOfDisk,
        Self::Unsupported,
        Self::BackendFailed,
        Self::RepositoryFailed,
        Self::Internal,
    ];

    /// The machine-readable code that stands beside the text in an error body.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::AlreadyLoaded => "already_loaded",
            Self::InvalidArgument => "invalid_argument",
            Self::TooLarge => "too_large",
            Self::NotReady => "not_ready",
            Self::Overloaded => "overloaded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::OutOfDeviceMemory => "out_of_device_memory",
            Self::OutOfDisk => "out_of_disk",
            Self::Unsupported => "unsupported",
            Self::BackendFailed => "backend_failed",
            Self::RepositoryFailed => "repository_failed",
            Self::Internal => "internal",
        }
    }

    /// Whether the same request may succeed later without being changed.
    #[must_use]
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::NotReady
            | Self::Overloaded
            | Self::DeadlineExceeded
            | Self::OutOfDeviceMemory
            | Self::OutOfDisk
            | Self::RepositoryFailed => true,
            Self::NotFound
            | Self::AlreadyLoaded
            | Self::InvalidArgument
            | Self::TooLarge
            | Self::Unsupported
            | Self::BackendFailed
            | Self::Internal => false,
        }
    }
}

type Source = Arc<dyn std::error::Error + Send + Sync + 'static>;

/// A failure: its kind, what was being done, and the cause below. Cheap to clone, since one failed load may answer a
/// hundred waiting requests.
///
/// `Display` prints the context alone; [`Error::report`] prints the whole chain, which is what a user is sent.
#[derive(Clone)]
pub struct Error {
    kind: ErrorKind,
    context: Cow<'static, str>,
    source: Option<Source>,
    retryable: bool,
}

/// `std::result::Result` with our error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a cause below it. Texts are lower case without a full stop, and name the mend where there is
    /// one.
    pub fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, context: context.into(), source: None, retryable: kind.is_retryable() }
    }

    /// The same error with the cause below it.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// The same error, with another word on whether a retry may help.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    /// This error as the cause of one that says what was being done; kind and retryability stay.
    #[must_use]
    pub fn wrap(self, context: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: self.kind, context: context.into(), retryable: self.retryable, source: Some(Arc::new(self)) }
    }

    /// What went wrong.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether the same request may succeed later without being changed.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// The context and every cause below it, joined by `: `.
    #[must_use]
    pub fn report(&self) -> String {
        let mut text = self.context.clone().into_owned();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let part = error.to_string();
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            cause = error.source();
        }
        text
    }

    /// [`ErrorKind::NotFound`].
    pub fn not_found(context: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::NotFound, context)
    }

    /// [`ErrorKind::InvalidArgument`].
    pub fn invalid(context: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidArgument, context)
    }

    /// [`ErrorKind::TooLarge`].
    pub fn too_large(context: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::TooLarge, context)
    }

    /// [`ErrorKind::Unsupported`].
    pub fn unsupported(context: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unsupported, context)
    }

    /// [`ErrorKind::NotReady`].
    pub fn not_ready(context: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::NotReady, context)
    }

    /// [`ErrorKind::Internal`].
    pub fn internal(context: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Internal, context)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.report())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_prints_the_chain_and_a_wrap_keeps_the_kind() {
        let disk = std::io::Error::other("no such device");
        let error = Error::new(ErrorKind::RepositoryFailed, "cannot read model.onnx").with_source(disk);
        let wrapped = error.wrap("cannot load model 'digits'");
        assert_eq!(wrapped.kind(), ErrorKind::RepositoryFailed);
        assert!(wrapped.is_retryable());
        assert_eq!(wrapped.report(), "cannot load model 'digits': cannot read model.onnx: no such device");
    }

    #[test]
    fn every_kind_has_its_own_code() {
        let codes: std::collections::HashSet<_> = ErrorKind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
    }
}

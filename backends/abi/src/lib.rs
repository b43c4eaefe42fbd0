//! The C ABI between Roundhouse and a backend that is its own shared library.
//!
//! Only the version handshake is fixed yet; the table of functions comes with the first plugin.
//! This crate has no dependencies, so that a backend shares nothing with the server but C structs.

/// The ABI version a backend was built against. A server loads a backend whose `major` equals its own and whose
/// `minor` is not above its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbiVersion {
    /// Raised when an existing struct or function changes its meaning or layout.
    pub major: u32,
    /// Raised when something is added at the end of the table.
    pub minor: u32,
}

/// The version of this crate.
pub const ABI_VERSION: AbiVersion = AbiVersion { major: 0, minor: 1 };

impl AbiVersion {
    /// Whether a server of this version can load a backend built against `backend`.
    #[must_use]
    pub const fn accepts(self, backend: Self) -> bool {
        self.major == backend.major && self.minor >= backend.minor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_accepts_older_minors_and_refuses_newer_ones_and_other_majors() {
        let server = AbiVersion { major: 1, minor: 3 };
        assert!(server.accepts(AbiVersion { major: 1, minor: 0 }));
        assert!(server.accepts(AbiVersion { major: 1, minor: 3 }));
        assert!(!server.accepts(AbiVersion { major: 1, minor: 4 }));
        assert!(!server.accepts(AbiVersion { major: 2, minor: 0 }));
    }
}

//! Certificates and tokens, opened at the start and read again when their files change.

use crate::config::security::{SecurityConfig, TlsPort};
use crate::error::Result;
use crate::frontend::access::Access;
use crate::frontend::listener::tls::Tls;
use crate::frontend::watch::Watched;

/// What the ports are given.
pub(super) struct Security {
    config: SecurityConfig,
    tls: Option<Tls>,
    /// Who may ask what.
    pub(super) access: Access,
    /// The files behind it.
    pub(super) watched: Vec<Watched>,
}

impl Security {
    pub(super) fn open(config: &SecurityConfig) -> Result<Self> {
        let mut watched = Vec::new();
        let tls = config.tls.as_ref().map(Tls::open).transpose()?.map(|(tls, files)| {
            watched.push(files);
            tls
        });
        let access = match &config.access_tokens {
            None => Access::open_to_all(),
            Some(path) => {
                let (access, file) = Access::open(path)?;
                watched.push(file);
                if tls.is_none() {
                    tracing::warn!(
                        "--access-tokens without --tls-cert: tokens come in clear text, unless a proxy is before us"
                    );
                }
                access
            }
        };
        Ok(Self { config: config.clone(), tls, access, watched })
    }

    /// The certificate of a port; `None` where it speaks clear text.
    pub(super) fn tls(&self, port: TlsPort) -> Option<Tls> {
        self.tls.clone().filter(|_| self.config.is_tls(port))
    }
}

//! Certificates of a port.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio_rustls::TlsAcceptor;

use super::Wire;

/// A certificate with its key, and whose certificates are asked of clients. Cheap to clone; clones see the same one.
#[derive(Clone)]
pub struct Tls(Arc<ArcSwap<Configs>>);

/// What rustls is told, for each set of protocols that a port offers.
struct Configs {
    both: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
}

impl Configs {
    fn of(config: ServerConfig) -> Self {
        let offering = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        Self { both: offering(&[b"h2", b"http/1.1"]), http2: offering(&[b"h2"]) }
    }
}

impl Tls {
    /// As rustls has been told; the protocols are those of the port.
    #[must_use]
    pub fn new(config: ServerConfig) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Configs::of(config))))
    }

    /// Takes the handshake of one connection.
    pub(super) fn acceptor(&self, wire: Wire) -> TlsAcceptor {
        let configs = self.0.load();
        TlsAcceptor::from(Arc::clone(match wire {
            Wire::Http1AndHttp2 => &configs.both,
            Wire::Http2 => &configs.http2,
        }))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

//! Who may connect, and who may ask what.

use std::path::PathBuf;

use serde::Deserialize;

use super::ServeOptions;
use crate::error::{Error, Result};

/// A port that may speak TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsPort {
    /// KServe v2 HTTP.
    Http,
    /// KServe v2 gRPC.
    Grpc,
    /// Prometheus metrics.
    Metrics,
    /// SageMaker's container contract and runtime API.
    Sagemaker,
}

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those between it and a root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The roots of clients' certificates; clients need none if `None`.
    pub client_ca: Option<PathBuf>,
}

/// TLS and tokens.
#[derive(Clone, Debug, Default)]
pub struct SecurityConfig {
    /// The certificate; clear text everywhere if `None`.
    pub tls: Option<TlsFiles>,
    /// The ports that speak TLS then.
    pub tls_ports: Vec<TlsPort>,
    /// The file of tokens; everybody may ask everything if `None`.
    pub access_tokens: Option<PathBuf>,
}

impl SecurityConfig {
    /// The part of the options that concerns security.
    pub(super) fn of(options: &mut ServeOptions, is_container: bool) -> Result<Self> {
        let files = (options.tls_cert.take(), options.tls_key.take(), options.tls_client_ca.take());
        let tls = match files {
            (Some(certificate), Some(key), client_ca) => Some(TlsFiles { certificate, key, client_ca }),
            (Some(_), None, _) => return Err(Error::invalid("--tls-cert needs --tls-key, its private key")),
            (None, Some(_), _) => return Err(Error::invalid("--tls-key needs --tls-cert, its certificate")),
            (None, None, Some(_)) => {
                return Err(Error::invalid(
                    "--tls-client-ca needs --tls-cert and --tls-key: without them nothing speaks TLS",
                ));
            }
            (None, None, None) => None,
        };
        if tls.is_none() && options.tls_ports.is_some() {
            return Err(Error::invalid("--tls-ports needs --tls-cert and --tls-key"));
        }
        let usual = || match is_container {
            // The platform speaks clear text.
            true => vec![TlsPort::Http, TlsPort::Grpc],
            false => vec![TlsPort::Http, TlsPort::Grpc, TlsPort::Sagemaker],
        };
        let tls_ports = options.tls_ports.take().unwrap_or_else(usual);
        Ok(Self { tls, tls_ports, access_tokens: options.access_tokens.take() })
    }

    /// Whether this port speaks TLS.
    #[must_use]
    pub fn is_tls(&self, port: TlsPort) -> bool {
        self.tls.is_some() && self.tls_ports.contains(&port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(change: impl FnOnce(&mut ServeOptions)) -> Result<SecurityConfig> {
        let mut options = ServeOptions::default();
        change(&mut options);
        SecurityConfig::of(&mut options, false)
    }

    #[test]
    fn half_of_a_pair_is_refused() {
        for (change, missing) in [
            ((|options| options.tls_cert = Some("c".into())) as fn(&mut ServeOptions), "--tls-key"),
            (|options| options.tls_key = Some("k".into()), "--tls-cert"),
            (|options| options.tls_client_ca = Some("a".into()), "--tls-cert"),
            (|options| options.tls_ports = Some(vec![TlsPort::Http]), "--tls-cert"),
        ] {
            assert!(read(change).unwrap_err().to_string().contains(&format!("needs {missing}")));
        }
    }

    #[test]
    fn metrics_stay_in_clear_text_unless_they_are_named() {
        let usual = read(|options| (options.tls_cert, options.tls_key) = (Some("c".into()), Some("k".into()))).unwrap();
        assert!(usual.is_tls(TlsPort::Http) && usual.is_tls(TlsPort::Grpc) && !usual.is_tls(TlsPort::Metrics));
        assert!(!read(|_| ()).unwrap().is_tls(TlsPort::Http));
    }
}

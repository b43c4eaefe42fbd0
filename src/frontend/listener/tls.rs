//! Certificates of ports, from files that are read again when they change.

mod validity;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::super::time::Rfc3339;
use super::super::watch::Watched;
use super::Wire;
use crate::config::security::TlsFiles;
use crate::error::{Error, Result};

/// The largest file of certificates, in bytes: a bundle of every public authority has a quarter of it.
const MAX_FILE: u64 = 1 << 20;

/// A certificate that ends within this is warned of.
const SOON: Duration = Duration::from_secs(7 * 24 * 3600);

/// A certificate with its key, and whose certificates are asked of clients. Cheap to clone; clones see the same one.
#[derive(Clone)]
pub struct Tls(Arc<ArcSwap<Configs>>);

/// What rustls is told, for each set of protocols that a port offers.
struct Configs {
    both: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
}

impl Tls {
    /// Reads the files. They are read again when what is returned beside is looked at.
    ///
    /// # Errors
    /// `InvalidArgument` naming the option, the file and what is wrong with it.
    pub fn open(files: &TlsFiles) -> Result<(Self, Watched)> {
        let slot = Arc::new(std::sync::OnceLock::<Self>::new());
        let (again, kept) = (Arc::clone(&slot), files.clone());
        let paths = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
        let watched = Watched::new("certificates", paths.into_iter().flatten().cloned().collect(), move || {
            let configs = Configs::read(&kept)?;
            if let Some(tls) = again.get() {
                tls.0.store(Arc::new(configs));
            }
            Ok(())
        });
        let tls = Self(Arc::new(ArcSwap::from_pointee(Configs::read(files)?)));
        let tls = slot.get_or_init(|| tls).clone();
        Ok((tls, watched))
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

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Configs {
    fn read(files: &TlsFiles) -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates("--tls-cert", &files.certificate)?;
        let key = private_key(&files.key)?;
        warn_of_time(&chain, &files.certificate);
        let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => Error::invalid(format!(
                "--tls-key {} is not the key of the certificate in --tls-cert {}: the first certificate there has to be \
                 the server's own",
                files.key.display(),
                files.certificate.display()
            )),
            other => Error::invalid(format!(
                "cannot use --tls-cert {} with --tls-key {}",
                files.certificate.display(),
                files.key.display()
            ))
            .with_source(other),
        })?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::internal("no version of TLS is offered").with_source(error))?;
        let builder = match &files.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let roots = Arc::new(roots(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| {
                    Error::invalid(format!("cannot use --tls-client-ca {}", path.display())).with_source(error)
                })?)
            }
        };
        let config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        let offering = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        Ok(Self { both: offering(&[b"h2", b"http/1.1"]), http2: offering(&[b"h2"]) })
    }
}

/// Reads a whole file of PEM. What is in it is in no error.
fn read(option: &str, path: &Path) -> Result<Vec<u8>> {
    let cannot = |error| Error::invalid(format!("cannot read {option} {}", path.display())).with_source(error);
    let mut text = Vec::new();
    File::open(path).map_err(cannot)?.take(MAX_FILE + 1).read_to_end(&mut text).map_err(cannot)?;
    if text.len() as u64 > MAX_FILE {
        return Err(Error::invalid(format!("{option} {} is larger than {MAX_FILE} bytes", path.display())));
    }
    Ok(text)
}

fn certificates(option: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(option, path)?).collect();
    let found = found.map_err(|_| Error::invalid(format!("{option} {} has a broken PEM section", path.display())))?;
    if found.is_empty() {
        return Err(Error::invalid(format!(
            "{option} {} has no certificate in it: PEM with BEGIN CERTIFICATE is expected",
            path.display()
        )));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = read("--tls-key", path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
        let is_encrypted = text.windows(9).any(|words| words == b"ENCRYPTED");
        let what = match is_encrypted {
            true => "is encrypted: write it without a passphrase, readable for the server alone",
            false => "has no private key in it: PEM with BEGIN PRIVATE KEY (or RSA or EC PRIVATE KEY) is expected",
        };
        Error::invalid(format!("--tls-key {} {what}", path.display()))
    })
}

fn roots(path: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates("--tls-client-ca", path)? {
        roots.add(certificate).map_err(|error| {
            Error::invalid(format!("--tls-client-ca {} has a certificate that is none", path.display()))
                .with_source(error)
        })?;
    }
    Ok(roots)
}

/// The server goes on with a certificate that clients will refuse: some do not look.
fn warn_of_time(chain: &[CertificateDer<'_>], path: &Path) {
    let Some((from, until)) = chain.first().and_then(|own| validity::validity(own)) else { return };
    let (now, path) = (SystemTime::now(), path.display());
    if now > until {
        tracing::warn!(%path, until = %Rfc3339(until), "the certificate has expired");
    } else if now < from {
        tracing::warn!(%path, from = %Rfc3339(from), "the certificate is not good yet");
    } else if now + SOON > until {
        tracing::warn!(%path, until = %Rfc3339(until), "the certificate expires soon");
    }
}

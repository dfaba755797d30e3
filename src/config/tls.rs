//! What is TLS made with? `listen.tls`, loaded whole: the certificate with its chain, the key that belongs to it, and
//! whose certificates callers must bear. Loaded where the configuration is checked, so that `flowgate check` finds what
//! is wrong, and so that what is put in place later has no mistake.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::ring::{default_provider, sign};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{Error, InconsistentKeys, RootCertStore, ServerConfig};
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;
use zeroize::Zeroizing;

use super::secrets;

/// `listen.tls`, ready for handshakes.
#[derive(Clone)]
pub struct Tls {
    /// The certificate and its chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Whose certificates callers must bear, PEM; none: callers need no certificate.
    pub client_ca: Option<PathBuf>,
    /// When the certificate ends.
    pub not_after: SystemTime,
    /// The server's side of a handshake.
    pub(crate) server: Arc<ServerConfig>,
}

/// The system's bundle of roots has a quarter of it.
const MAX_CERTIFICATES: usize = 1 << 20;

/// The only protocol that is spoken.
pub(crate) const ALPN: &[u8] = b"http/1.1";

/// The certificates of a PEM file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = secrets::regular(path, MAX_CERTIFICATES)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| "expected certificates in PEM".to_owned())
}

/// When the certificate begins to hold and when it ends.
pub(super) fn validity(
    certificate: &CertificateDer<'_>,
) -> Result<(SystemTime, SystemTime), String> {
    let certificate = CertificateInner::<Raw>::from_der(certificate);
    let certificate = certificate.map_err(|_| "expected an X.509 certificate that can be read")?;
    let validity = certificate.tbs_certificate().validity();
    let at = |time: x509_cert::time::Time| UNIX_EPOCH + time.to_unix_duration();
    Ok((at(validity.not_before), at(validity.not_after)))
}

/// The one private key of a PEM file, read as a secret is.
pub(super) fn private_key(path: &Path) -> Result<Arc<dyn SigningKey>, String> {
    let pem = secrets::regular(path, secrets::MAX_FILE)?;
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| "expected a private key in PEM, not encrypted")?;
    let key = Zeroizing::new(key);
    sign::any_supported_type(&key).map_err(|_| "expected an RSA, ECDSA or Ed25519 key".to_owned())
}

/// The check that callers' certificates come from the authorities of a PEM file.
pub(super) fn client_verifier(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let unusable = "expected certificates of authorities";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|_| unusable)?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(default_provider()));
    Ok(verifier.build().map_err(|_| unusable)?)
}

/// The server's side, TLS 1.2 or 1.3; none if the key is not the certificate's.
pub(super) fn server(
    chain: Vec<CertificateDer<'static>>,
    key: Arc<dyn SigningKey>,
    client_verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Option<Arc<ServerConfig>> {
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(_) => return None,
    }
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring speaks TLS 1.2 and 1.3");
    let builder = match client_verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    server.alpn_protocols = vec![ALPN.to_vec()];
    Some(Arc::new(server))
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cert,
            key,
            client_ca,
            not_after,
            server: _,
        } = self;
        f.debug_struct("Tls")
            .field("cert", cert)
            .field("key", key)
            .field("client_ca", client_ca)
            .field("not_after", not_after)
            .finish_non_exhaustive()
    }
}

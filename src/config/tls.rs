//! Loads `listen.tls`: the certificate chain, its private key, and the CAs of client certificates.
//!
//! The files are loaded when the configuration is checked, so that `flowgate check` reports their
//! mistakes and applying a checked configuration cannot fail.

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
use serde::Serialize;
use x509_cert::certificate::{CertificateInner, Raw};
use x509_cert::der::Decode;
use zeroize::Zeroizing;

use super::secrets;

/// `listen.tls`, ready for handshakes.
#[derive(Clone, Serialize)]
pub struct Tls {
    /// PEM file with the certificate and its chain.
    #[serde(serialize_with = "super::serializers::path")]
    pub cert: PathBuf,
    /// PEM file with the private key.
    #[serde(serialize_with = "super::serializers::path")]
    pub key: PathBuf,
    /// PEM file with the CAs that must have issued callers' certificates. `None`: callers need no
    /// certificate.
    #[serde(serialize_with = "super::serializers::optional_path")]
    pub client_ca: Option<PathBuf>,
    /// When the certificate expires.
    #[serde(serialize_with = "super::serializers::seconds")]
    pub not_after: SystemTime,
    /// rustls' configuration of the listener.
    #[serde(skip)]
    pub(crate) server: Arc<ServerConfig>,
}

/// Maximum size of a file of certificates, in bytes: four times a system's bundle of roots.
const MAX_CERTIFICATES: usize = 1 << 20;

/// The accepted content of a file of CAs, for error messages.
const CA_FORM: &str = "expected CA certificates";

/// The only supported protocol.
pub(crate) const ALPN: &[u8] = b"http/1.1";

/// Reads the certificates of a PEM file; at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = secrets::regular(path, MAX_CERTIFICATES)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    found
        .ok()
        .filter(|found| !found.is_empty())
        .ok_or_else(|| "expected certificates in PEM".to_owned())
}

/// The validity period of a certificate.
pub(super) struct Validity {
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// Reads the validity period of a certificate.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Result<Validity, String> {
    let certificate = CertificateInner::<Raw>::from_der(certificate)
        .map_err(|_| "expected a well-formed X.509 certificate")?;
    let validity = certificate.tbs_certificate().validity();
    Ok(Validity {
        not_before: UNIX_EPOCH + validity.not_before.to_unix_duration(),
        not_after: UNIX_EPOCH + validity.not_after.to_unix_duration(),
    })
}

/// Reads the private key of a PEM file. The file's content is wiped.
pub(super) fn private_key(path: &Path) -> Result<Arc<dyn SigningKey>, String> {
    let pem = secrets::private(path)?;
    let key = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| "expected an unencrypted private key in PEM")?;
    let key = Zeroizing::new(key);
    sign::any_supported_type(&key).map_err(|_| "expected an RSA, ECDSA or Ed25519 key".to_owned())
}

/// Reads the CA certificates of a PEM file; at least one.
pub(super) fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|_| CA_FORM)?;
    }
    Ok(roots)
}

/// Builds the verifier of callers' certificates from the CAs of a PEM file.
pub(super) fn client_verifier(path: &Path) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let roots = Arc::new(roots(path)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::new(default_provider()));
    Ok(verifier.build().map_err(|_| CA_FORM)?)
}

/// Builds rustls' configuration for TLS 1.2 and 1.3; `None` if the key does not match the
/// certificate.
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
        .expect("ring supports TLS 1.2 and 1.3");
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

//! Verification of CAMS's certificate: TLS 1.2 or later, with the system's roots (the public ones
//! if the system has none) and those of `upstream.ca_file`. It cannot be turned off.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::UpstreamError;
use crate::config::{self, Config};

/// The trusted roots, ready to dial with.
#[derive(Clone)]
pub(crate) struct TlsRoots(pub(super) Arc<ClientConfig>);

// === impl TlsRoots ===

impl TlsRoots {
    /// Loads the roots of a configuration, if anything that it connects to uses TLS.
    pub(crate) fn of(config: &Config) -> Result<Option<Self>, UpstreamError> {
        config
            .dials_tls()
            .then(|| Self::load(config.upstream.ca_file.as_deref()))
            .transpose()
    }

    /// Loads the system's roots and those of the file.
    pub(crate) fn load(ca_file: Option<&Path>) -> Result<Self, UpstreamError> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        for error in system.errors {
            tracing::warn!(%error, "some of the system's root certificates cannot be read");
        }
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        if let Some(path) = ca_file {
            add_file(&mut roots, path).map_err(|reason| UpstreamError::CaFile {
                path: path.to_owned(),
                reason,
            })?;
        }
        let mut client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![config::tls::ALPN.to_vec()];
        Ok(Self(Arc::new(client)))
    }

    /// Whether both are the result of one load.
    #[cfg(test)]
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A connector for one connection.
    pub(crate) fn connector(&self) -> TlsConnector {
        self.0.clone().into()
    }
}

/// Adds the file's certificates, or returns the mistake in it.
fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    for certificate in config::tls::certificates(path)? {
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    Ok(())
}

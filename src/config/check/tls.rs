//! Checks `listen.tls`: the certificate, its key, and that they match.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::config::read::Field;
use crate::config::tls::{self, Tls};

/// Checks the table. `None` after a mistake.
pub(super) fn check(table: Field<'_>) -> Option<Tls> {
    let mut section = match table.into_table() {
        Ok(section) => section,
        Err(table) => {
            table.mistake("expected a table: { cert = \"cert.pem\", key = \"key.pem\" }");
            return None;
        }
    };
    let cert_field = section.key("cert");
    let key_field = section.key("key");
    let cert = load(&cert_field, |path| {
        let chain = tls::certificates(path)?;
        let validity = tls::validity(&chain[0])?;
        Ok((chain, validity))
    });
    let key = load(&key_field, tls::private_key);
    let client_ca = section
        .key("client_ca")
        .optional(|field| load(field, tls::client_verifier));
    section.done();
    let (cert, (chain, validity)) = cert?;
    let (key, signing) = key?;
    let (client_ca, verifier) = client_ca?.unzip();
    let path = &cert_field.place.path;
    let now = SystemTime::now();
    if now < validity.not_before {
        let warning = format!("{path}: the certificate is not valid yet");
        cert_field.reader.warn(warning);
    } else if validity.not_after < now {
        let warning = format!("{path}: the certificate has expired");
        cert_field.reader.warn(warning);
    }
    let Some(server) = tls::server(chain, signing, verifier) else {
        key_field.mistake("expected the private key of the certificate in listen.tls.cert");
        return None;
    };
    Some(Tls {
        cert,
        key,
        client_ca,
        not_after: validity.not_after,
        server,
    })
}

/// Loads the file that the field names. Returns its path and what `load` made of it.
fn load<T>(
    field: &Field<'_>,
    load: impl FnOnce(&Path) -> Result<T, String>,
) -> Option<(PathBuf, T)> {
    let path = field.text("the path of a PEM file", |text| {
        (!text.is_empty()).then(|| field.opens(text.as_ref()))
    })?;
    let loaded = load(&path)
        .map_err(|expectation| field.mistake(expectation))
        .ok()?;
    Some((path, loaded))
}

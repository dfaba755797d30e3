//! `listen.tls`: what TLS is made with, and whether it fits together.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::config::read::Field;
use crate::config::tls::{self, Tls};

/// The table, or `None` after a mistake.
pub(super) fn check(table: Field<'_>) -> Option<Tls> {
    let mut section = match table.into_table() {
        Ok(section) => section,
        Err(table) => {
            table.mistake("expected a table: { cert = \"cert.pem\", key = \"key.pem\" }");
            return None;
        }
    };
    let (cert_field, key_field) = (section.key("cert"), section.key("key"));
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
    let ((cert, (chain, (not_before, not_after))), (key, signing), client_ca) =
        (cert?, key?, client_ca?);
    let (client_ca, verifier) = client_ca.unzip();
    let now = SystemTime::now();
    if now < not_before || not_after < now {
        let state = if now < not_before {
            "is not valid yet"
        } else {
            "has expired"
        };
        cert_field.reader.warn(format!(
            "{}: the certificate {state}",
            cert_field.place.path
        ));
    }
    let Some(server) = tls::server(chain, signing, verifier) else {
        key_field.mistake("expected the key of the certificate in listen.tls.cert");
        return None;
    };
    Some(Tls {
        cert,
        key,
        client_ca,
        not_after,
        server,
    })
}

/// A file by its path, and what is in it.
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

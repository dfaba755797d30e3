//! Reads a file of temporary credentials: one JSON object with key, secret, token and expiration,
//! as Alibaba's metadata service returns it for a RAM role, or in the spelling of Alibaba's
//! command line tools. All fields are replaced together.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;

use super::ids::{KEY_FORM, access_key};
use crate::acs::time;
use crate::config::Credentials;
use crate::config::read::Field;
use crate::config::secrets::{
    BYTE_ORDER_MARK, MAX_FILE, STARTS_WITH_MARK, one_line, regular, utf8,
};
use crate::primitives::secret::Secret;

/// The file's object. Other fields (`Code`, `LastUpdated`) are ignored.
#[derive(Deserialize)]
struct Written {
    #[serde(rename = "AccessKeyId", alias = "access_key_id")]
    id: Secret,
    #[serde(rename = "AccessKeySecret", alias = "access_key_secret")]
    secret: Secret,
    #[serde(
        rename = "SecurityToken",
        alias = "security_token",
        alias = "sts_token"
    )]
    token: Option<Secret>,
    #[serde(rename = "Expiration", alias = "expiration")]
    expires: Option<String>,
}

/// Reads the file that the key names. The returned field is `credentials.file`.
pub(super) fn read(key: Field<'_>) -> Option<(Field<'_>, Credentials, PathBuf)> {
    let mut section = match key.into_table() {
        Ok(section) => section,
        Err(key) => {
            key.mistake("expected { file = \"path\" }");
            return None;
        }
    };
    let field = section.key("file");
    section.done();
    let path = field.text("the path of a file", |text| Some(PathBuf::from(text)))?;
    let path = field.opens(&path);
    match parse(&path) {
        Ok(credentials) => {
            if credentials
                .expires
                .is_some_and(|end| end <= SystemTime::now())
            {
                field.reader.warn(format!(
                    "{}: the credentials in the file have expired",
                    field.place.path
                ));
            }
            Some((field, credentials, path))
        }
        Err(expectation) => {
            field.mistake(expectation);
            None
        }
    }
}

fn parse(path: &Path) -> Result<Credentials, String> {
    // serde's own message would contain the value.
    let shape = "expected a JSON object with AccessKeyId, AccessKeySecret and, for temporary \
                 credentials, SecurityToken and Expiration";
    let bytes = regular(path, MAX_FILE)?;
    let text = utf8(&bytes)?;
    if text.starts_with(BYTE_ORDER_MARK) {
        return Err(format!("the file {STARTS_WITH_MARK}"));
    }
    let written: Written = serde_json::from_str(text).map_err(|_| shape)?;
    let expires = written.expires.map(|end| {
        time::parse(&end).ok_or("Expiration: expected a time such as 2026-11-24T08:00:00Z")
    });
    let expires = expires.transpose()?;
    let access_key_id = access_key(written.id.expose())
        .ok_or_else(|| format!("AccessKeyId: expected {KEY_FORM}"))?;
    let secret =
        one_line(written.secret.expose()).map_err(|reason| format!("AccessKeySecret: {reason}"))?;
    let security_token = written
        .token
        .map(|token| one_line(token.expose()))
        .transpose()
        .map_err(|reason| format!("SecurityToken: {reason}"))?;
    Ok(Credentials {
        access_key_id,
        secret,
        security_token,
        expires,
    })
}

//! What stands in a file of temporary credentials? One JSON object with key, secret, token and end, as Alibaba's metadata
//! service hands it out for a RAM role, or in the spelling of its command line tools; all of it belongs together and is
//! taken over as one.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;

use super::Credentials;
use super::check::{KEY_FORM, access_key};
use super::read::Field;
use super::secrets::{MAX_FILE, one_line, regular};
use crate::acs::time;
use crate::primitives::secret::Secret;

/// The file's object. What else stands in it (`Code`, `LastUpdated`) is not read.
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

/// Reads the file that the key names; the field is the file's.
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
                    "{}: what the file holds has expired",
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
    // What serde says of a mistake holds the value.
    let shape = "expected a JSON object with AccessKeyId, AccessKeySecret and, if need be, SecurityToken and Expiration";
    let Written {
        id,
        secret,
        token,
        expires,
    } = serde_json::from_slice(&regular(path, MAX_FILE)?).map_err(|_| shape)?;
    let expires = expires
        .map(|end| time::parse(&end).ok_or("expected an Expiration such as 2026-11-24T08:00:00Z"));
    Ok(Credentials {
        access_key_id: access_key(id.expose())
            .ok_or_else(|| format!("AccessKeyId: expected {KEY_FORM}"))?,
        secret: one_line(secret.expose()).map_err(|reason| format!("AccessKeySecret: {reason}"))?,
        security_token: token
            .map(|token| one_line(token.expose()))
            .transpose()
            .map_err(|r| format!("SecurityToken: {r}"))?,
        expires: expires.transpose()?,
    })
}

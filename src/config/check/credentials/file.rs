//! Reads a file of temporary credentials: one JSON object with key, secret, token and expiration,
//! as Alibaba's metadata service returns it for a RAM role, or in the spelling of Alibaba's
//! command line tools. All fields are replaced together.

use std::path::Path;
use std::time::SystemTime;

use serde::Deserialize;

use super::path;
use crate::acs::time;
use crate::config::check::ids::{KEY_FORM, access_key};
use crate::config::read::Field;
use crate::config::secrets::{json, one_line};
use crate::config::{AccountCredentials, Credentials, LoadedFrom};
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

/// Reads the file that the key names.
pub(super) fn read(key: &Field<'_>) -> Option<AccountCredentials> {
    let path = key.opens(&path(key)?);
    match parse(&path) {
        Ok(credentials) => {
            if credentials
                .expires
                .is_some_and(|end| end <= SystemTime::now())
            {
                key.reader.warn(format!(
                    "{}: the credentials in the file have expired",
                    key.place.path
                ));
            }
            Some(AccountCredentials::Loaded(
                credentials,
                LoadedFrom::File(path),
            ))
        }
        Err(expectation) => {
            key.mistake(expectation);
            None
        }
    }
}

fn parse(path: &Path) -> Result<Credentials, String> {
    let shape = "expected a JSON object with AccessKeyId, AccessKeySecret and, for temporary \
                 credentials, SecurityToken and Expiration";
    let written: Written = json(path, shape)?;
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

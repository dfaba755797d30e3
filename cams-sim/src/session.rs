//! Temporary sessions: what STS and the metadata service issue. `auth` keeps them with the keys, so
//! that a session is a caller of CAMS and STS until its end.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::fault::Fault;
use crate::{Key, date};

/// The beginning of every token; another one is malformed.
pub(crate) const TOKEN_PREFIX: &str = "CAIS";

/// How long ago a session has ended that is expired when it is received.
const EXPIRED_SINCE: Duration = Duration::from_secs(5);

/// A session: its key, its end and its holder.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) key: Key,
    pub(crate) ends: SystemTime,
    pub(crate) holder: Holder,
}

/// Who acts in a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The account's number, whose quota is spent.
    pub(crate) account: String,
    /// The role's name.
    pub(crate) role: String,
    /// The session's name.
    pub(crate) name: String,
}

// === impl Session ===

impl Session {
    /// A new session with random id, secret and token.
    pub(crate) fn issue(
        holder: Holder,
        now: SystemTime,
        lifetime: Duration,
        fault: Option<&Fault>,
        dice: &mut fastrand::Rng,
    ) -> Self {
        let ends = if fault == Some(&Fault::Expired) {
            now - EXPIRED_SINCE
        } else {
            now + lifetime
        };
        // It ends when its time stamp says, which has whole seconds.
        let ends = date::parse(&date::format(ends)).unwrap_or(ends);
        let mut bytes = [0; 420];
        dice.fill(&mut bytes);
        let key = Key {
            access_key_id: format!("STS.{}", letters(24, dice)),
            secret: letters(44, dice),
            account: holder.account.clone(),
            security_token: Some(format!("{TOKEN_PREFIX}{}", STANDARD.encode(bytes))),
        };
        Self { key, ends, holder }
    }

    /// The four members of a session in the answers of STS and the metadata service.
    pub(crate) fn members(&self, fault: Option<&Fault>) -> Map<String, Value> {
        let expiration = match fault {
            Some(Fault::NoExpiration) => None,
            Some(Fault::Expiration(text)) => Some(
                text.parse::<u64>()
                    .map_or_else(|_| json!(text), |number| json!(number)),
            ),
            _ => Some(json!(date::format(self.ends))),
        };
        let members = [
            ("AccessKeyId", Some(json!(self.key.access_key_id))),
            ("AccessKeySecret", Some(json!(self.key.secret))),
            ("SecurityToken", Some(json!(self.key.security_token))),
            ("Expiration", expiration),
        ];
        members
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

// === impl Holder ===

impl Holder {
    /// The id of the role with the session's name.
    pub(crate) fn role_and_name(&self) -> String {
        format!("{}:{}", self.role_id(), self.name)
    }

    /// A number in the form of a role's id, the same for the same role.
    pub(crate) fn role_id(&self) -> String {
        let sum = self
            .role
            .bytes()
            .fold(0_u64, |sum, byte| (sum * 31 + u64::from(byte)) % 1_000_000);
        format!("3{sum:017}")
    }
}

fn letters(count: usize, dice: &mut fastrand::Rng) -> String {
    (0..count).map(|_| dice.alphanumeric()).collect()
}

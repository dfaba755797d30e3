//! Settings of the simulator. The defaults are what Alibaba documents; undocumented behaviour and
//! disturbances are settings.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::{Limit, Rule};

/// How the simulated endpoint behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The known access keys.
    pub keys: Vec<Key>,
    /// Ids of known keys whose sessions have expired.
    pub expired: Vec<String>,
    /// The limits by action, each per account.
    pub limits: BTreeMap<String, Limit>,
    /// Time from counting a call to its response.
    pub latency: Duration,
    /// Maximum random time from receiving a call to counting it, in whole milliseconds.
    pub jitter: Duration,
    /// Seed of jitter, percentages and request ids.
    pub seed: u64,
    /// Whether key, time, signature and nonce are checked.
    pub check_signatures: bool,
    /// Whether to refuse what no correct client sends: duplicate parameters, hop-by-hop headers,
    /// unsigned bodies.
    pub strict: bool,
    /// The only `Host` that is served; `None` serves any.
    pub host: Option<String>,
    /// The time of day at the start, which then follows tokio's clock; `None` is the system's
    /// clock.
    pub now: Option<SystemTime>,
    /// The faults at the start.
    pub faults: Vec<Rule>,
    /// Whether target, headers and body of every call are recorded; turn it off under heavy load.
    pub keep_requests: bool,
}

/// An access key, its account, and its STS token if it is a temporary one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The access key id.
    pub access_key_id: String,
    /// The access key secret.
    pub secret: String,
    /// The account whose quota it spends.
    pub account: String,
    /// The STS token that calls must carry.
    pub security_token: Option<String>,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            expired: Vec::new(),
            limits: BTreeMap::from([("CreateFlow".to_owned(), Limit::default())]),
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            seed: 0,
            check_signatures: true,
            strict: true,
            host: None,
            now: None,
            faults: Vec::new(),
            keep_requests: true,
        }
    }
}

impl Settings {
    /// Adds a key.
    #[must_use]
    pub fn with_key(mut self, access_key_id: &str, secret: &str, account: &str) -> Self {
        self.keys.push(Key {
            access_key_id: access_key_id.to_owned(),
            secret: secret.to_owned(),
            account: account.to_owned(),
            security_token: None,
        });
        self
    }

    /// Replaces the limit of `CreateFlow`.
    #[must_use]
    pub fn with_limit(mut self, limit: Limit) -> Self {
        self.limits.insert("CreateFlow".to_owned(), limit);
        self
    }
}

// === impl Key ===

impl std::str::FromStr for Key {
    type Err = String;

    /// Parses `ID:SECRET[:ACCOUNT[:STS-TOKEN]]`; the default account is the key's id.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let (Some(access_key_id), Some(secret)) =
            (parts.next().filter(|id| !id.is_empty()), parts.next())
        else {
            return Err("expected ID:SECRET[:ACCOUNT[:STS-TOKEN]]".to_owned());
        };
        let account = parts.next().unwrap_or_else(|| access_key_id.clone());
        Ok(Self {
            access_key_id,
            secret,
            account,
            security_token: parts.next(),
        })
    }
}

/// Parses `200ms`, `1s` or `2m`.
///
/// # Errors
/// For any other text.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => {
            return Err(format!(
                "expected a duration like 200ms, 1s or 2m, not {text}"
            ));
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("expected a whole number before the unit in {text}"))?;
    number
        .checked_mul(factor)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations() {
        let read = |text| parse_duration(text).map(|duration| duration.as_millis());
        assert_eq!(
            ["200ms", "1s", "2m"].map(read),
            [Ok(200), Ok(1_000), Ok(120_000)]
        );
        assert_eq!(
            read("5"),
            Err("expected a duration like 200ms, 1s or 2m, not 5".to_owned())
        );
        assert_eq!(
            read("1.5s"),
            Err("expected a whole number before the unit in 1.5s".to_owned())
        );
    }

    #[test]
    fn reads_keys() {
        let key = |text: &str| text.parse::<Key>();
        let expected = |account: &str, token: Option<&str>| Key {
            access_key_id: "id".into(),
            secret: "secret".into(),
            account: account.into(),
            security_token: token.map(Into::into),
        };
        assert_eq!(key("id:secret"), Ok(expected("id", None)));
        assert_eq!(key("id:secret:acme"), Ok(expected("acme", None)));
        assert_eq!(key("id:secret:acme:a:b"), Ok(expected("acme", Some("a:b"))));
        assert_eq!(
            key("id"),
            Err("expected ID:SECRET[:ACCOUNT[:STS-TOKEN]]".to_owned())
        );
    }
}

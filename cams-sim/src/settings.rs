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
    /// STS, which is served beside CAMS.
    pub sts: StsSettings,
    /// The metadata service of an ECS instance; [`crate::Sim::metadata`] serves it.
    pub metadata: MetadataSettings,
    /// What is undocumented about flows.
    pub flows: FlowSettings,
}

/// How flows are created and listed.
#[derive(Debug, Clone)]
pub struct FlowSettings {
    /// Time from a flow's creation until ListFlow shows it. GetFlow shows it at once.
    pub list_lag: Duration,
    /// Maximum number of flows on a page of ListFlow; `None` is no maximum. `Index` counts pages of the
    /// size that results.
    pub page_cap: Option<usize>,
    /// Whether a `Size` above the maximum is refused; otherwise the page is smaller than asked for.
    pub page_cap_refuses: bool,
    /// Whether ListFlow's `FlowName` selects the names that contain it, without regard to case;
    /// otherwise only the equal name.
    pub fuzzy: bool,
    /// Whether CreateFlow creates drafts; otherwise the flows are published.
    pub draft: bool,
}

/// How STS behaves. It shares keys, clock and strictness with CAMS.
#[derive(Debug, Clone)]
pub struct StsSettings {
    /// The only `Host` that STS serves; `None` serves any.
    pub host: Option<String>,
    /// The roles that exist; none means that every well-formed name is a role. A session spends the
    /// quota of the account whose number is in the role's name.
    pub roles: Vec<Role>,
    /// Maximum `DurationSeconds`.
    pub max_session: Duration,
    /// The lifetime of every session, whatever was asked for, also of the metadata service.
    pub lifetime: Option<Duration>,
    /// The accepted OIDC tokens; none means any. Claims that can be read are checked as well.
    pub oidc_tokens: Vec<String>,
    /// The limit of each action per account.
    pub limit: Limit,
}

/// A role of STS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its name, `acs:ram::<account>:role/<name>`.
    pub arn: String,
    /// The external id that its trust policy requires.
    pub external_id: Option<String>,
}

/// How the metadata service behaves.
#[derive(Debug, Clone)]
pub struct MetadataSettings {
    /// The instance's role; without one, role and credentials are not found.
    pub role: Option<String>,
    /// The number of the role's account.
    pub account: String,
    /// Whether only version 2 is served, the one with tokens.
    pub tokens_required: bool,
    /// Whether plain texts end with a newline.
    pub newline: bool,
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
            limits: ["CreateFlow", "ListFlow", "GetFlow", "DeleteFlow"]
                .map(|action| (action.to_owned(), Limit::default()))
                .into(),
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            seed: 0,
            check_signatures: true,
            strict: true,
            host: None,
            now: None,
            faults: Vec::new(),
            keep_requests: true,
            sts: StsSettings::default(),
            metadata: MetadataSettings::default(),
            flows: FlowSettings::default(),
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

// === impl FlowSettings ===

impl Default for FlowSettings {
    fn default() -> Self {
        Self {
            list_lag: Duration::ZERO,
            page_cap: None,
            page_cap_refuses: false,
            fuzzy: false,
            draft: true,
        }
    }
}

// === impl StsSettings ===

impl Default for StsSettings {
    fn default() -> Self {
        Self {
            host: None,
            roles: Vec::new(),
            max_session: Duration::from_secs(43_200),
            lifetime: None,
            oidc_tokens: Vec::new(),
            limit: Limit {
                per_window: 100,
                ..Limit::default()
            },
        }
    }
}

// === impl Role ===

impl std::str::FromStr for Role {
    type Err = std::convert::Infallible;

    /// Parses `ARN[,EXTERNAL-ID]`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (arn, external_id) = match text.split_once(',') {
            Some((arn, id)) => (arn, Some(id.to_owned())),
            None => (text, None),
        };
        Ok(Self {
            arn: arn.to_owned(),
            external_id,
        })
    }
}

// === impl MetadataSettings ===

impl Default for MetadataSettings {
    fn default() -> Self {
        Self {
            role: Some("flowgate-role".to_owned()),
            account: "123456789012".to_owned(),
            tokens_required: false,
            newline: false,
        }
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

/// The time of a clock that is ahead by `20m` or `+20m`, or late by `-20m`.
///
/// # Errors
/// For text that is not a duration with an optional sign.
pub fn parse_skew(text: &str) -> Result<SystemTime, String> {
    skewed(SystemTime::now(), text)
}

fn skewed(now: SystemTime, text: &str) -> Result<SystemTime, String> {
    let time = match text.strip_prefix('-') {
        Some(late) => now.checked_sub(parse_duration(late)?),
        None => now.checked_add(parse_duration(text.strip_prefix('+').unwrap_or(text))?),
    };
    time.ok_or_else(|| format!("{text} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_skews() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000);
        let read = |text| {
            skewed(now, text).map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap())
        };
        assert_eq!(
            ["20m", "+1s", "-20m"].map(read),
            [11_200, 10_001, 8_800].map(|seconds| Ok(Duration::from_secs(seconds)))
        );
        assert_eq!(
            read("late"),
            Err("expected a duration like 200ms, 1s or 2m, not late".to_owned())
        );
    }

    #[test]
    fn reads_roles() {
        let role = |text: &str| text.parse::<Role>().unwrap();
        assert_eq!(role("acs:ram::1:role/a").external_id, None);
        let strict = role("acs:ram::1:role/a,x,y");
        assert_eq!(
            (&*strict.arn, strict.external_id.as_deref()),
            ("acs:ram::1:role/a", Some("x,y"))
        );
    }

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

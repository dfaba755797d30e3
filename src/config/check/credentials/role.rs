//! Checks what STS is asked for: the role, the session's name, its policy and its lifetime. The
//! limits are those of Alibaba's documentation of AssumeRole.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::{Map, Value};

use super::{SourceReader, variables};
use crate::config::Role;
use crate::config::read::{Field, Section};

/// The range of a session's lifetime. The role's own maximum may be lower.
pub(super) const DURATION: RangeInclusive<Duration> =
    Duration::from_secs(900)..=Duration::from_secs(43_200);

pub(super) const ROLE_FORM: &str = "the ARN of a role: acs:ram::<account>:role/<name>";
pub(super) const PROVIDER_FORM: &str =
    "the ARN of an OIDC provider: acs:ram::<account>:oidc-provider/<name>";
pub(super) const SESSION_NAME_FORM: &str =
    "a session's name: 2 to 64 letters, digits, '.', '@', '-' or '_'";
pub(super) const EXTERNAL_ID_FORM: &str =
    "an external id: 2 to 1224 letters, digits and characters of _=,.@:/-";
pub(super) const POLICY_FORM: &str = "a policy: a JSON object of at most 2048 bytes";

/// Maximum length of a session's name.
const MAX_SESSION_NAME: usize = 64;

// === impl SourceReader ===

impl<'a> SourceReader<'a> {
    /// Reads the keys of a role besides its ARN.
    pub(super) fn role(&self, section: &mut Section<'a>, arn: Option<String>) -> Option<Role> {
        let session_name = section
            .key("session_name")
            .or_variable(variables::ROLE_SESSION_NAME)
            .optional(|key| key.text(SESSION_NAME_FORM, session_name));
        let policy = section
            .key("policy")
            .optional(|key| key.text(POLICY_FORM, policy));
        let duration = section.key("duration").optional(duration);
        let sts = self.sts();
        Some(Role {
            arn: arn?,
            session_name: session_name?.unwrap_or_else(|| self.default_session_name()),
            policy: policy?,
            duration: duration?,
            sts: sts?,
        })
    }
}

fn duration(key: &Field<'_>) -> Option<Duration> {
    let duration = key.time(&DURATION)?;
    if duration.subsec_nanos() > 0 {
        key.mistake("expected whole seconds");
        return None;
    }
    Some(duration)
}

pub(super) fn role_arn(text: &str) -> Option<String> {
    arn(text, "role")
}

pub(super) fn provider_arn(text: &str) -> Option<String> {
    arn(text, "oidc-provider")
}

fn arn(text: &str, kind: &str) -> Option<String> {
    let rest = text.strip_prefix("acs:ram::")?;
    let (account, rest) = rest.split_once(':')?;
    let name = rest.strip_prefix(kind)?.strip_prefix('/')?;
    let is_account =
        (1..=32).contains(&account.len()) && account.bytes().all(|b| b.is_ascii_digit());
    let is_name = (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@' | b'/'));
    (is_account && is_name).then(|| text.to_owned())
}

pub(super) fn session_name(text: &str) -> Option<String> {
    let is_name =
        (2..=MAX_SESSION_NAME).contains(&text.len()) && text.bytes().all(is_of_session_name);
    is_name.then(|| text.to_owned())
}

fn is_of_session_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'@' | b'-' | b'_')
}

/// The name of a session of this host: ActionTrail then tells the hosts apart.
pub(super) fn default_session_name(host: &str) -> String {
    let host: String = host
        .bytes()
        .filter(|byte| is_of_session_name(*byte))
        .map(char::from)
        .collect();
    let mut name = if host.is_empty() {
        "flowgate".to_owned()
    } else {
        format!("flowgate-{host}")
    };
    name.truncate(MAX_SESSION_NAME);
    name
}

pub(super) fn external_id(text: &str) -> Option<String> {
    let is_id = (2..=1224).contains(&text.len())
        && text.bytes().all(|b| {
            b.is_ascii_alphanumeric()
                || matches!(b, b'_' | b'=' | b',' | b'.' | b'@' | b':' | b'/' | b'-')
        });
    is_id.then(|| text.to_owned())
}

pub(super) fn policy(text: &str) -> Option<String> {
    let is_policy = (1..=2048).contains(&text.len())
        && serde_json::from_str::<Map<String, Value>>(text).is_ok();
    is_policy.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_names_external_ids_and_policies_have_sts_s_limits() {
        for wrong in ["", "a", &"x".repeat(65), "a b", "a/b", "a\n", "n\u{e4}me"] {
            assert_eq!(session_name(wrong), None, "{wrong}");
        }
        for right in ["flow.gate@1_2-3", "ab", &"x".repeat(64)] {
            assert_eq!(session_name(right).as_deref(), Some(right));
        }
        for wrong in [
            "\u{e9}",
            "\u{e9}\u{e9}",
            "a",
            "a b",
            "a+b",
            &"x".repeat(1225),
        ] {
            assert_eq!(external_id(wrong), None, "{wrong}");
        }
        for right in ["abc/1=2:3@x", "ab", &"x".repeat(1224)] {
            assert_eq!(external_id(right).as_deref(), Some(right));
        }
        let of_length = |length: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(length - 8));
        assert_eq!(of_length(2048).len(), 2048);
        assert!(policy(&of_length(2048)).is_some());
        assert_eq!(policy(&of_length(2049)), None);
        for wrong in ["", "{", "[]", "\"text\"", "{} {}"] {
            assert_eq!(policy(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn an_arn_names_an_account_and_a_role_or_a_provider() {
        for right in [
            "acs:ram::123456789012:role/flowgate",
            "acs:ram::1234567890123456:role/aliyunserviceroleforcs",
        ] {
            assert_eq!(role_arn(right).as_deref(), Some(right));
        }
        for wrong in [
            "",
            "flowgate",
            "acs:ram::123456789012:user/flowgate",
            "acs:ram::123456789012:oidc-provider/flowgate",
            "acs:ram::123456789012:role/",
            "acs:ram::123456789012:role",
            "acs:ram:::role/flowgate",
            "acs:ram::me:role/flowgate",
            "acs:ram:cn-hangzhou:123456789012:role/flowgate",
            "arn:aws:iam::123456789012:role/flowgate",
            " acs:ram::123456789012:role/flowgate",
            "acs:ram::123456789012:role/a b",
        ] {
            assert_eq!(role_arn(wrong), None, "{wrong}");
        }
        assert!(provider_arn("acs:ram::123456789012:oidc-provider/ack-rrsa-c0ffee").is_some());
        assert_eq!(provider_arn("acs:ram::123456789012:role/flowgate"), None);
    }

    #[test]
    fn the_default_session_name_is_made_of_the_host_s_name() {
        for (host, name) in [
            ("gate-1.example", "flowgate-gate-1.example"),
            ("my host/\u{fc}1", "flowgate-myhost1"),
            ("", "flowgate"),
            ("(none)", "flowgate-none"),
        ] {
            assert_eq!(default_session_name(host), name);
        }
        let long = default_session_name(&"h".repeat(253));
        assert_eq!(long.len(), 64);
        assert_eq!(session_name(&long).as_deref(), Some(&*long));
    }
}

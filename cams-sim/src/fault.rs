//! Fault injection. A rule selects calls (the next N, those with a mark in FlowName, a percentage,
//! all) and breaks them in one way. Rules for STS and the metadata service name their action, so
//! that a fault of CAMS spares the credentials. The documentation of each fault says whether the call was
//! processed, which a client cannot see and must not guess.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use crate::refusal::Refusal;
use crate::{Hints, parse_duration};

/// One fault and the calls that it affects. Parsed from text such as
/// `next=3,action=CreateFlow,throttle,acs-retry-after=2000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which calls.
    pub when: When,
    /// Only calls of this action, if set; without it all calls of CAMS. Of STS: its actions, or
    /// `sts` for all of them. Of the metadata service: `MetadataToken`, `MetadataRole`,
    /// `MetadataCredentials` and `CredentialsUri`, or `metadata` for all of them.
    pub action: Option<String>,
    /// The fault.
    pub fault: Fault,
}

/// Selects the calls of a [`Rule`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// The next N calls: `next=3`.
    Next(u32),
    /// Calls whose FlowName (in STS: RoleSessionName) contains this text: `named=doomed`.
    Named(String),
    /// A percentage, by the seeded random numbers: `percent=10`.
    Percent(u8),
    /// All calls: `always`.
    Always,
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// `unavailable`: 503 with CAMS's error body; not processed.
    Unavailable(Hints),
    /// `throttle`: refused as flow control after its nonce was spent; not processed.
    Throttle(Throttle),
    /// `refuse=CODE`: refused with any other code, as for `Ram.PermissionDeny`, with its usual status
    /// or another one, `status=403`; not processed.
    Refuse {
        /// The code.
        code: String,
        /// The HTTP status.
        status: Option<u16>,
    },
    /// `close-before`: the connection is closed; not processed.
    CloseBefore,
    /// `close-after`: the connection is closed without an answer; processed.
    CloseAfter,
    /// `late=60s`: the connection is closed at once without an answer; processed, but a CreateFlow
    /// creates its flow only this much later.
    Late(Duration),
    /// `reset`: the connection is reset without an answer; processed.
    Reset,
    /// `copied`: the request arrives twice; processed once, and answered as the second copy. Only of
    /// CAMS.
    Copied,
    /// `failed`: 500 with CAMS's error body; processed.
    Failed,
    /// `no-data`: a success without `Data`, which only CAMS has; processed.
    NoData,
    /// `slow=5s`: the response is delayed by this; processed.
    Slow(Duration),
    /// `held`: the response is kept until the active faults are replaced; processed.
    Held,
    /// `garbage`: bytes that are not HTTP, then closed; processed.
    Garbage,
    /// `html`: 200 with a page of HTML; processed.
    Html,
    /// `empty`: 200 without a body; processed.
    Empty,
    /// `cut`: the response with a Content-Length that is too large, then closed; processed.
    Cut,
    /// `huge=BYTES`: a success with this much padding; processed.
    Huge(usize),
    /// `redirect`: 302 to another address; not processed.
    Redirect,
    /// `half`: a complete response with the first half of its body; processed.
    Half,
    /// `body=TEXT`: 200, or another status such as `status=403`, with this text; processed.
    Body {
        /// The text.
        text: String,
        /// The HTTP status.
        status: u16,
    },
    /// `status=404`: this status with a short text; not processed.
    Status(u16),
    /// `expired`: the issued session has ended before it is received; processed.
    Expired,
    /// `no-expiration`: the issued session is told without its end; processed.
    NoExpiration,
    /// `expiration=TEXT`: the issued session is told with this end, a number if it is one;
    /// processed.
    Expiration(String),
}

/// The form of a forced throttle: `throttle`, then any of `code=Throttling.User`, `status=429`,
/// `ok` (inside HTTP 200), `xml`, and the hints `acs-retry-after=MS`, `retry-after=S`,
/// `retry-at=S` (the same as an HTTP date), `time-left=MS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Throttle {
    /// The code, by default `System.LimitControl`.
    pub code: String,
    /// The HTTP status, by default 400.
    pub status: u16,
    /// Whether the body is XML.
    pub xml: bool,
    /// The retry hints.
    pub hints: Hints,
}

/// The active rules.
#[derive(Debug)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
    dice: fastrand::Rng,
}

// === impl Throttle ===

impl Default for Throttle {
    fn default() -> Self {
        Self {
            code: "System.LimitControl".to_owned(),
            status: 400,
            xml: false,
            hints: Hints::default(),
        }
    }
}

// === impl Faults ===

impl Faults {
    pub(crate) fn new(rules: Vec<Rule>, seed: u64) -> Self {
        Self {
            rules,
            dice: fastrand::Rng::with_seed(seed),
        }
    }

    pub(crate) fn set(&mut self, rules: Vec<Rule>) {
        self.rules = rules;
    }

    /// The fault of the first rule that matches a call of CAMS.
    pub(crate) fn pick(&mut self, action: &str, flow_name: Option<&str>) -> Option<Fault> {
        let (rules, dice) = (self.rules.iter_mut(), &mut self.dice);
        rules
            .filter(|rule| rule.action.as_deref().is_none_or(|only| only == action))
            .find_map(|rule| rule.strike(flow_name, dice))
    }

    /// The fault of the first rule that matches a request for credentials; `service` is `sts` or
    /// `metadata`.
    pub(crate) fn pick_of(
        &mut self,
        service: &str,
        action: &str,
        name: Option<&str>,
    ) -> Option<Fault> {
        let (rules, dice) = (self.rules.iter_mut(), &mut self.dice);
        rules
            .filter(|rule| {
                let only = rule.action.as_deref();
                only == Some(action) || only == Some(service)
            })
            .find_map(|rule| rule.strike(name, dice))
    }
}

// === impl Fault ===

impl Fault {
    /// The name of this fault in records.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "unavailable",
            Self::Throttle(_) => "throttle",
            Self::Refuse { .. } => "refuse",
            Self::CloseBefore => "close-before",
            Self::CloseAfter => "close-after",
            Self::Late(_) => "late",
            Self::Reset => "reset",
            Self::Copied => "copied",
            Self::Failed => "failed",
            Self::NoData => "no-data",
            Self::Slow(_) => "slow",
            Self::Held => "held",
            Self::Garbage => "garbage",
            Self::Html => "html",
            Self::Empty => "empty",
            Self::Cut => "cut",
            Self::Huge(_) => "huge",
            Self::Redirect => "redirect",
            Self::Half => "half",
            Self::Body { .. } => "body",
            Self::Status(_) => "status",
            Self::Expired => "expired",
            Self::NoExpiration => "no-expiration",
            Self::Expiration(_) => "expiration",
        }
    }

    /// The delay that this fault adds to the response. The longest one ends with the rules.
    pub(crate) fn delay(&self) -> Duration {
        match self {
            Self::Slow(delay) => *delay,
            Self::Held => Duration::MAX,
            _ => Duration::ZERO,
        }
    }

    /// The time that this fault adds before a flow is created.
    pub(crate) fn lateness(&self) -> Duration {
        if let Self::Late(lateness) = self {
            *lateness
        } else {
            Duration::ZERO
        }
    }

    /// The refusal that this fault forces before a call is looked at.
    pub(crate) fn early_refusal(&self) -> Option<Refusal> {
        match self {
            Self::Unavailable(hints) => Some(Refusal::new("ServiceUnavailable").with_hints(*hints)),
            Self::CloseBefore | Self::Redirect => Some(Refusal::new("InternalError")),
            Self::Status(status) => Some(Refusal {
                status: *status,
                ..Refusal::new(&format!("Status.{status}"))
            }),
            _ => None,
        }
    }

    /// Whether the call is lost: its caller is answered, if at all, by another server.
    pub(crate) fn loses(&self) -> bool {
        matches!(self, Self::CloseBefore | Self::Redirect)
    }

    /// The refusal that this fault forces after authentication.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Throttle(Throttle {
                code,
                status,
                xml,
                hints,
            }) => Some(Refusal {
                status: *status,
                xml: *xml,
                ..Refusal::new(code).with_hints(*hints)
            }),
            Self::Refuse { code, status } => {
                let usual = Refusal::new(code);
                Some(Refusal {
                    status: status.unwrap_or(usual.status),
                    ..usual
                })
            }
            _ => None,
        }
    }
}

// === impl Rule ===

impl Rule {
    /// The fault, if this call is one of those that are selected.
    fn strike(&mut self, name: Option<&str>, dice: &mut fastrand::Rng) -> Option<Fault> {
        let strikes = match &mut self.when {
            When::Next(left) => left.checked_sub(1).map(|less| *left = less).is_some(),
            When::Named(mark) => name.is_some_and(|name| name.contains(&**mark)),
            When::Percent(share) => dice.u8(0..100) < *share,
            When::Always => true,
        };
        strikes.then(|| self.fault.clone())
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words: BTreeMap<&str, &str> = text
            .split(',')
            .map(|word| word.trim().split_once('=').unwrap_or((word.trim(), "")))
            .collect();
        let when = read_when(&mut words)?;
        let action = words.remove("action").map(str::to_owned);
        let fault = read_fault(&mut words)?;
        match words.keys().next() {
            None => Ok(Self {
                when,
                action,
                fault,
            }),
            Some(word) => Err(format!("{word} does not belong into the fault {text}")),
        }
    }
}

fn read_when(words: &mut BTreeMap<&str, &str>) -> Result<When, String> {
    if let Some(count) = words.remove("next") {
        return number(count).map(When::Next);
    }
    if let Some(mark) = words.remove("named") {
        return Ok(When::Named(mark.to_owned()));
    }
    if let Some(share) = words.remove("percent") {
        return number(share).map(When::Percent);
    }
    words.remove("always");
    Ok(When::Always)
}

fn read_fault(words: &mut BTreeMap<&str, &str>) -> Result<Fault, String> {
    let kinds = [
        "unavailable",
        "throttle",
        "refuse",
        "close-before",
        "close-after",
        "late",
        "reset",
        "copied",
        "failed",
        "no-data",
        "slow",
        "held",
        "garbage",
        "html",
        "empty",
        "cut",
        "huge",
        "redirect",
        "half",
        "body",
        "expired",
        "no-expiration",
        "expiration",
        // Last, because it is also the status of others.
        "status",
    ];
    let kind = kinds.into_iter().find(|kind| words.contains_key(kind));
    let value = kind.and_then(|kind| words.remove(kind)).unwrap_or_default();
    Ok(
        match kind.ok_or_else(|| format!("expected one of {}", kinds.join(", ")))? {
            "unavailable" => Fault::Unavailable(read_hints(words)?),
            "throttle" => Fault::Throttle(read_throttle(words)?),
            "refuse" => Fault::Refuse {
                code: value.to_owned(),
                status: words.remove("status").map(number).transpose()?,
            },
            "close-before" => Fault::CloseBefore,
            "close-after" => Fault::CloseAfter,
            "late" => Fault::Late(parse_duration(value)?),
            "reset" => Fault::Reset,
            "copied" => Fault::Copied,
            "failed" => Fault::Failed,
            "no-data" => Fault::NoData,
            "slow" => Fault::Slow(parse_duration(value)?),
            "held" => Fault::Held,
            "garbage" => Fault::Garbage,
            "html" => Fault::Html,
            "empty" => Fault::Empty,
            "cut" => Fault::Cut,
            "huge" => Fault::Huge(number(value)?),
            "half" => Fault::Half,
            "body" => Fault::Body {
                text: value.to_owned(),
                status: words.remove("status").map_or(Ok(200), number)?,
            },
            "expired" => Fault::Expired,
            "no-expiration" => Fault::NoExpiration,
            "expiration" => Fault::Expiration(value.to_owned()),
            "status" => Fault::Status(number(value)?),
            _ => Fault::Redirect,
        },
    )
}

fn read_throttle(words: &mut BTreeMap<&str, &str>) -> Result<Throttle, String> {
    let plain = Throttle::default();
    let ok = words.remove("ok").map(|_| 200);
    let status = words
        .remove("status")
        .map(number)
        .transpose()?
        .or(ok)
        .unwrap_or(plain.status);
    let code = words.remove("code").map_or(plain.code, str::to_owned);
    Ok(Throttle {
        code,
        status,
        xml: words.remove("xml").is_some(),
        hints: read_hints(words)?,
    })
}

fn read_hints(words: &mut BTreeMap<&str, &str>) -> Result<Hints, String> {
    Ok(Hints {
        acs_retry_after_ms: words.remove("acs-retry-after").map(number).transpose()?,
        retry_after_s: words.remove("retry-after").map(number).transpose()?,
        retry_at_s: words.remove("retry-at").map(number).transpose()?,
        time_left_ms: words.remove("time-left").map(number).transpose()?,
    })
}

fn number<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse()
        .map_err(|_| format!("expected a number in range, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_rules() {
        let rule = |when, fault| {
            Ok(Rule {
                when,
                action: None,
                fault,
            })
        };
        let hints = Hints {
            acs_retry_after_ms: Some(2_000),
            retry_after_s: Some(2),
            retry_at_s: Some(3),
            time_left_ms: Some(7),
        };
        assert_eq!(
            "next=3,throttle".parse(),
            rule(When::Next(3), Fault::Throttle(Throttle::default()))
        );
        assert_eq!(
            "throttle, ok, xml, code=Throttling.User, acs-retry-after=2000, retry-after=2, retry-at=3, time-left=7".parse(),
            rule(
                When::Always,
                Fault::Throttle(Throttle { code: "Throttling.User".into(), status: 200, xml: true, hints })
            )
        );
        assert_eq!(
            "named=x,slow=2s".parse(),
            rule(When::Named("x".into()), Fault::Slow(Duration::from_secs(2)))
        );
        assert_eq!(
            "percent=5,huge=10".parse(),
            rule(When::Percent(5), Fault::Huge(10))
        );
        assert_eq!(
            "always,action=ListFlow,refuse=Ram.PermissionDeny".parse(),
            Ok(Rule {
                when: When::Always,
                action: Some("ListFlow".into()),
                fault: Fault::Refuse {
                    code: "Ram.PermissionDeny".into(),
                    status: None
                }
            })
        );
        assert_eq!(
            "refuse=InvalidSecurityToken.Expired,status=403".parse(),
            rule(
                When::Always,
                Fault::Refuse {
                    code: "InvalidSecurityToken.Expired".into(),
                    status: Some(403)
                }
            )
        );
        assert_eq!(
            "body=a b,status=403".parse(),
            rule(
                When::Always,
                Fault::Body {
                    text: "a b".into(),
                    status: 403
                }
            )
        );
        assert_eq!("status=404".parse(), rule(When::Always, Fault::Status(404)));
    }

    #[test]
    fn errors_name_the_unreadable_word() {
        let error = |text: &str| text.parse::<Rule>().unwrap_err();
        assert_eq!(
            error("next=x,reset"),
            "expected a number in range, not \"x\""
        );
        assert_eq!(
            error("reset,xml"),
            "xml does not belong into the fault reset,xml"
        );
        assert!(error("next=1,explode").starts_with("expected one of unavailable, throttle,"));
    }

    #[test]
    fn every_word_names_one_fault() {
        for text in [
            "unavailable",
            "throttle",
            "refuse=X",
            "close-before",
            "close-after",
            "late=1m",
            "reset",
            "copied",
            "failed",
            "no-data",
            "slow=1s",
            "held",
            "garbage",
            "html",
            "empty",
            "cut",
            "redirect",
            "half",
            "body=x",
            "expired",
            "no-expiration",
            "expiration=never",
            "status=404",
        ] {
            assert_eq!(
                text.parse::<Rule>().unwrap().fault.name(),
                text.split('=').next().unwrap()
            );
        }
    }

    #[test]
    fn a_fault_of_cams_spares_the_credentials() {
        let rules = [
            "always,reset",
            "action=AssumeRole,cut",
            "action=metadata,half",
        ];
        let mut faults = Faults::new(rules.map(|rule| rule.parse().unwrap()).to_vec(), 0);
        let mut pick = |service, action| faults.pick_of(service, action, None);
        assert_eq!(pick("sts", "AssumeRole"), Some(Fault::Cut));
        assert_eq!(pick("sts", "GetCallerIdentity"), None);
        assert_eq!(pick("metadata", "MetadataRole"), Some(Fault::Half));
        assert_eq!(faults.pick("ListFlow", None), Some(Fault::Reset));
    }

    #[test]
    fn the_first_matching_rule_applies() {
        let rules = [
            "next=1,action=CreateFlow,reset",
            "named=doomed,cut",
            "percent=0,empty",
        ];
        let mut faults = Faults::new(rules.map(|rule| rule.parse().unwrap()).to_vec(), 0);
        assert_eq!(faults.pick("ListFlow", None), None);
        assert_eq!(
            faults.pick("CreateFlow", Some("doomed")),
            Some(Fault::Reset)
        );
        assert_eq!(
            faults.pick("CreateFlow", Some("a doomed one")),
            Some(Fault::Cut)
        );
        assert_eq!(faults.pick("CreateFlow", Some("fine")), None);
    }
}

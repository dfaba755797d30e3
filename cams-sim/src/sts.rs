//! Performs the actions of STS, version 2015-04-01, after its API pages: AssumeRole,
//! AssumeRoleWithOIDC, GetCallerIdentity. `auth` has admitted the call: the second is anonymous, the
//! others are signed like calls of CAMS.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hyper::Request;
use serde_json::{Value, json};

use crate::date;
use crate::refusal::Refusal;
use crate::request::{Call, Scheme, header};
use crate::session::Holder;
use crate::settings::StsSettings;

/// The only version of STS.
pub(crate) const VERSION: &str = "2015-04-01";

/// The audience of a token for STS.
const AUDIENCE: &str = "sts.aliyuncs.com";

/// The session that a call demands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    pub(crate) holder: Holder,
    pub(crate) lifetime: Duration,
    /// The claims of the OIDC token; those that cannot be read are absent.
    pub(crate) claims: Option<Value>,
}

/// Whether a request is for STS: it names the version of STS in its head, query or form.
pub(crate) fn is_call(request: &Request<Bytes>) -> bool {
    let pair = format!("Version={VERSION}");
    let query = request.uri().query().unwrap_or_default();
    let form = std::str::from_utf8(request.body()).unwrap_or_default();
    header(request.headers(), "x-acs-version") == VERSION
        || query.split('&').chain(form.split('&')).any(|it| it == pair)
}

/// Whether an action is called without a key.
pub(crate) fn is_anonymous(action: &str) -> bool {
    action == "AssumeRoleWithOIDC"
}

/// The account of the role that a call names, to count an anonymous call.
pub(crate) fn account_of_role(call: &Call) -> Option<String> {
    read_role(call.parameter("RoleArn")?).map(|(account, _)| account.to_owned())
}

/// What AssumeRole or AssumeRoleWithOIDC demands, if the call keeps the rules.
pub(crate) fn demand(
    call: &Call,
    settings: &StsSettings,
    strict: bool,
    now: SystemTime,
) -> Result<Demand, Refusal> {
    let claims = if is_anonymous(&call.action) {
        if strict && call.scheme != Scheme::Unsigned {
            return Err(Refusal::strict(
                "SignedAnonymous",
                "AssumeRoleWithOIDC is called without a key.".to_owned(),
            ));
        }
        check_token(required(call, "OIDCToken")?, settings, strict, now)?
    } else {
        None
    };
    let arn = required(call, "RoleArn")?;
    let (account, role) = read_role(arn).ok_or_else(|| wrong("RoleArn"))?;
    let name = required(call, "RoleSessionName")?;
    if !is_name(name, ".@-_") || !(2..=64).contains(&name.len()) {
        return Err(wrong("RoleSessionName"));
    }
    let lifetime = read_duration(call.parameter("DurationSeconds"), settings)?;
    check_policy(call.parameter("Policy"))?;
    if is_anonymous(&call.action) {
        check_provider(required(call, "OIDCProviderArn")?, account)?;
    }
    check_role(arn, call.parameter("ExternalId"), settings)?;
    Ok(Demand {
        holder: Holder {
            account: account.to_owned(),
            role: role.to_owned(),
            name: name.to_owned(),
        },
        lifetime: settings.lifetime.unwrap_or(lifetime),
        claims,
    })
}

/// The answer to a session's demand, except the session.
pub(crate) fn describe(holder: &Holder, claims: Option<&Value>) -> Value {
    let mut body = json!({ "AssumedRoleUser": {
        "Arn": format!("acs:ram::{}:role/{}/{}", holder.account, holder.role, holder.name),
        "AssumedRoleId": holder.role_and_name(),
    } });
    if let Some(claims) = claims {
        body["OIDCTokenInfo"] = json!({
            "Subject": claims["sub"], "Issuer": claims["iss"], "ClientIds": AUDIENCE,
            "IssuanceTime": claimed_time(claims, "iat").map(date::format),
            "ExpirationTime": claimed_time(claims, "exp").map(date::format), "VerificationInfo": "Success",
        });
    }
    body
}

/// GetCallerIdentity: a key's user, or a session's role.
pub(crate) fn identity(account: &str, key: &str, holder: Option<&Holder>) -> Value {
    match holder {
        Some(holder) => json!({
            "AccountId": account, "IdentityType": "AssumedRoleUser", "RoleId": holder.role_id(),
            "PrincipalId": holder.role_and_name(),
            "Arn": format!("acs:ram::{account}:assumed-role/{}/{}", holder.role, holder.name),
        }),
        None => json!({
            "AccountId": account, "IdentityType": "RAMUser", "UserId": key, "PrincipalId": key,
            "Arn": format!("acs:ram::{account}:user/{key}"),
        }),
    }
}

fn check_token(
    token: &str,
    settings: &StsSettings,
    strict: bool,
    now: SystemTime,
) -> Result<Option<Value>, Refusal> {
    if !(4..=20_000).contains(&token.chars().count()) {
        return Err(wrong("OIDCToken"));
    }
    let invalid = Refusal::new("AuthenticationFail.OIDCToken.Invalid");
    // Every library sends a file's last newline; no issuer writes one.
    if strict && token.contains(char::is_whitespace) {
        return Err(invalid.with_message("The token contains white space.".to_owned()));
    }
    let token = token.trim();
    let known = &settings.oidc_tokens;
    if !known.is_empty() && !known.iter().any(|other| other == token) {
        return Err(invalid);
    }
    let claims = read_claims(token);
    if let Some(claims) = &claims {
        check_claims(claims, now)?;
    }
    Ok(claims)
}

/// The claims of a JSON web token; tests may use other texts.
fn read_claims(token: &str) -> Option<Value> {
    let mut parts = token.split('.').skip(1);
    let claims = URL_SAFE_NO_PAD.decode(parts.next()?).ok()?;
    serde_json::from_slice(&claims)
        .ok()
        .filter(Value::is_object)
}

fn check_claims(claims: &Value, now: SystemTime) -> Result<(), Refusal> {
    let audience = &claims["aud"];
    let several = audience.as_array().map_or(&[][..], Vec::as_slice);
    if !audience.is_null()
        && !several
            .iter()
            .chain([audience])
            .any(|text| text == AUDIENCE)
    {
        return Err(Refusal::new(
            "AuthenticationFail.OIDCToken.AudienceNotMatch",
        ));
    }
    if claimed_time(claims, "exp").is_some_and(|ends| ends <= now) {
        return Err(Refusal::new("AuthenticationFail.OIDCToken.Expired"));
    }
    Ok(())
}

/// A claim in seconds since 1970.
fn claimed_time(claims: &Value, claim: &str) -> Option<SystemTime> {
    let seconds = claims[claim].as_u64()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

fn read_duration(text: Option<&str>, settings: &StsSettings) -> Result<Duration, Refusal> {
    let duration = text
        .map_or(Ok(3_600), str::parse)
        .map(Duration::from_secs)
        .map_err(|_| wrong("DurationSeconds"))?;
    if duration < Duration::from_secs(900) || duration > settings.max_session {
        return Err(wrong("DurationSeconds"));
    }
    Ok(duration)
}

fn check_policy(policy: Option<&str>) -> Result<(), Refusal> {
    let Some(policy) = policy else { return Ok(()) };
    if !(1..=2_048).contains(&policy.len()) {
        return Err(Refusal::new("InvalidParameter.PolicySize"));
    }
    let grammar = serde_json::from_str::<Value>(policy);
    if !grammar.is_ok_and(|policy| policy["Statement"].is_array()) {
        return Err(Refusal::new("InvalidParameter.PolicyGrammar"));
    }
    Ok(())
}

/// The provider exists in the role's account, whose trust policy can name no other.
fn check_provider(arn: &str, account: &str) -> Result<(), Refusal> {
    let (other, name) = read_arn(arn, "oidc-provider/").ok_or_else(|| wrong("OIDCProviderArn"))?;
    if !is_name(name, ".-_") {
        return Err(wrong("OIDCProviderArn"));
    }
    if other != account {
        return Err(Refusal::new("AuthenticationFail.NoPermission"));
    }
    Ok(())
}

fn check_role(arn: &str, external_id: Option<&str>, settings: &StsSettings) -> Result<(), Refusal> {
    if external_id.is_some_and(|id| !is_name(id, "_+=,.@:/-") || !(2..=1_224).contains(&id.len())) {
        return Err(wrong("ExternalId"));
    }
    if settings.roles.is_empty() {
        return Ok(());
    }
    let role = settings.roles.iter().find(|role| role.arn == arn);
    let role = role.ok_or_else(|| Refusal::new("EntityNotExist.Role"))?;
    if role.external_id.is_some() && role.external_id.as_deref() != external_id {
        return Err(Refusal::new("NoPermission"));
    }
    Ok(())
}

/// Account and name of a role.
fn read_role(arn: &str) -> Option<(&str, &str)> {
    read_arn(arn, "role/").filter(|(_, name)| is_name(name, ".-_") && name.len() <= 64)
}

/// Account and name of `acs:ram::<account>:<kind><name>`.
fn read_arn<'a>(arn: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    let (account, rest) = arn.strip_prefix("acs:ram::")?.split_once(':')?;
    let digits = !account.is_empty() && account.bytes().all(|byte| byte.is_ascii_digit());
    Some((account, rest.strip_prefix(kind)?)).filter(|_| digits)
}

/// Whether a text consists of ASCII letters, digits and these marks, and is not empty.
fn is_name(text: &str, marks: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || marks.contains(letter))
}

fn required<'a>(call: &'a Call, name: &str) -> Result<&'a str, Refusal> {
    call.parameter(name)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| Refusal::missing(name))
}

fn wrong(parameter: &str) -> Refusal {
    Refusal::new(&format!("InvalidParameter.{parameter}"))
}

#[cfg(test)]
mod tests;

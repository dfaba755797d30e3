//! Determines the hold: how long a call may be kept. It is the time that the caller waits for an
//! answer, from the first of these: the header `x-flowgate-hold`, `clients[].hold`, `queue.hold`,
//! the default timeout of the caller's SDK (recognised by User-Agent). `hold/margin.rs` reserves a
//! part of the hold for CAMS's answer.
//!
//! The header may be unsigned: an attacker that can forge it could as well close the connection. An
//! SDK's timeout starts earlier than Flowgate's clock, so a hold derived from it is shorter by an
//! allowance for the network; otherwise Flowgate's answer would reach a closed socket. A hold that
//! the caller or the configuration states is used as it is.

pub(crate) mod margin;

use std::ops::RangeInclusive;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};

use crate::call::identify::{bad, one};
use crate::config::{self, Hold, Time};
use crate::error::Refusal;

const HOLD: HeaderName = HeaderName::from_static("x-flowgate-hold");

/// Valid values of the header. Values above `queue.max_hold` are reduced to it; values out of this
/// range are mistakes.
const VALID: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);

/// Allowance for the network between SDK and Flowgate, and for a busy event loop on both sides.
const NETWORK_ALLOWANCE: Duration = Duration::from_millis(100);

/// The hold of a caller whose timeout is not known.
const DEFAULT: Duration = Duration::from_secs(30);

/// The call's hold. `client` is the caller's entry in the configuration.
pub(crate) fn hold(
    headers: &HeaderMap,
    client: Option<&config::Client>,
    queue: &config::Queue,
) -> Result<Duration, Refusal> {
    let stated = requested(headers)?.or_else(|| client.and_then(|client| client.hold));
    let hold = stated.unwrap_or_else(|| match queue.hold {
        Hold::Fixed(hold) => hold,
        Hold::Auto => read_timeout(headers).map_or(DEFAULT, |timeout| timeout - NETWORK_ALLOWANCE),
    });
    Ok(hold.min(queue.max_hold))
}

/// The hold that the caller requests.
fn requested(headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let Some(value) = one(headers, &HOLD)? else {
        return Ok(None);
    };
    match parse(value).filter(|time| VALID.contains(time)) {
        Some(time) => Ok(Some(time)),
        None => Err(bad(
            "x-flowgate-hold is not a duration from 1ms to 24h, such as 8s or 8000 (milliseconds)",
        )),
    }
}

/// A number of milliseconds, or a duration as in the configuration.
fn parse(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Duration::from_millis);
    }
    text.parse().ok().map(|Time(time)| time)
}

/// Reads a User-Agent such as `AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2`. An
/// application adds its own products at the end.
fn read_timeout(headers: &HeaderMap) -> Option<Duration> {
    let agent = std::str::from_utf8(headers.get(USER_AGENT)?.as_bytes()).ok()?;
    let (_system, products) = agent.strip_prefix("AlibabaCloud (")?.split_once(") ")?;
    let (language, _version) = products.split_once('/')?;
    let seconds = match language {
        "Node.js" => 3,
        "Python" | "PHP" => 10,
        // The new Go SDK and the async Java SDK have no timeout.
        "Golang" if !has_product(products, "TeaDSL/") => 10,
        "Java" if !has_product(products, "AsyncCoreService/") => 10,
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}

/// Whether one of the first three products has this name. Applications may append their own.
fn has_product(products: &str, name: &str) -> bool {
    products
        .split(' ')
        .take(3)
        .any(|product| product.starts_with(name))
}

#[cfg(test)]
mod tests;

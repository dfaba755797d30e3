//! How long may this call be kept? As long as its caller waits for it: as the caller says itself (`x-flowgate-hold`),
//! else as the configuration says of its client or of all, else as its SDK does by default, by User-Agent. How much of
//! that CAMS needs to answer is `hold/margin.rs`; what comes of a call that cannot wait so long is the queue's question.
//!
//! The header is of use to nobody but Flowgate and may be unsigned: whoever forges it on the way could as well close the
//! connection. An SDK's time-out runs from where the SDK stands, so a hold that is derived from one ends a little
//! earlier: at the time-out itself Flowgate's answer would meet a closed socket. Who states a hold states it whole.

pub(crate) mod margin;

use std::ops::RangeInclusive;
use std::time::Duration;

use hyper::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};

use crate::call::identify::{bad, one};
use crate::config::{self, Hold, Time};
use crate::error::Refusal;

const ASKED: HeaderName = HeaderName::from_static("x-flowgate-hold");

/// What may be asked for; the configuration's `max_hold` cuts what is asked for in earnest, the rest is a slip.
const SENSIBLE: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(24 * 3600);

/// How long each of Alibaba's SDKs waits for an answer by default, by the first product in its User-Agent. The Go SDK is
/// not here: it waits for ever.
const READ_TIMEOUTS: [(&str, Duration); 3] = [
    ("Node.js", Duration::from_secs(3)),
    ("Python", Duration::from_secs(10)),
    ("Java", Duration::from_secs(10)),
];

/// The way from an SDK to here and back, with a turn of a busy event loop on both sides.
const WAY: Duration = Duration::from_millis(100);

/// For a caller that nothing is known of.
const DEFAULT: Duration = Duration::from_secs(30);

/// The call's hold. `client` is what the configuration says of the caller.
pub(crate) fn hold(
    headers: &HeaderMap,
    client: Option<&config::Client>,
    queue: &config::Queue,
) -> Result<Duration, Refusal> {
    let said = asked(headers)?.or_else(|| client.and_then(|client| client.hold));
    let hold = said.unwrap_or_else(|| match queue.hold {
        Hold::Fixed(hold) => hold,
        Hold::Auto => read_timeout(headers).map_or(DEFAULT, |timeout| timeout - WAY),
    });
    Ok(hold.min(queue.max_hold))
}

/// What the caller asks for.
fn asked(headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let Some(value) = one(headers, &ASKED)? else {
        return Ok(None);
    };
    let time = parse(value).filter(|time| SENSIBLE.contains(time));
    time.map(Some).ok_or_else(|| {
        bad("x-flowgate-hold is not a time such as 8s or 8000 (milliseconds), from 1ms to 24h")
    })
}

/// A number of milliseconds, or a duration as in the configuration.
fn parse(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Duration::from_millis);
    }
    text.parse().ok().map(|Time(time)| time)
}

/// `AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2`: what an application adds stands behind that.
fn read_timeout(headers: &HeaderMap) -> Option<Duration> {
    let agent = std::str::from_utf8(headers.get(USER_AGENT)?.as_bytes()).ok()?;
    let (_system, products) = agent.strip_prefix("AlibabaCloud (")?.split_once(") ")?;
    let (language, _version) = products.split_once('/')?;
    READ_TIMEOUTS
        .iter()
        .find(|(name, _)| *name == language)
        .map(|(_, timeout)| *timeout)
}

#[cfg(test)]
mod tests;

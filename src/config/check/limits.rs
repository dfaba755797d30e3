//! Checks `[limits]`, which overrides the documented limits. A burst below the rate's count means
//! fewer tokens with a shorter window each.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use crate::acs::limits::DOCUMENTED;
use crate::config::Limit;
use crate::config::read::{Field, Section};
use crate::config::units::Rate;
use crate::primitives::id::ActionName;

const ACTION_FORM: &str = "an action such as CreateFlow: 1 to 64 letters and digits";
const MAX_COUNT: u32 = 10_000;
const MIN_WINDOW: Duration = Duration::from_millis(10);
const MAX_WINDOW: Duration = Duration::from_secs(3600);

/// Checks the section. `None` after a mistake.
pub(super) fn check(mut section: Section<'_>) -> Option<BTreeMap<ActionName, Limit>> {
    let documented = section
        .key("preset")
        .choice(&[("documented", true), ("none", false)]);
    let mut limits = if documented == Some(true) {
        preset()
    } else {
        BTreeMap::new()
    };
    let mut sound = documented.is_some();
    for (name, field) in section.rest("limits.<Action>") {
        if documented_name(&name).is_none() {
            let path = &field.place.path;
            field.reader.warn(format!(
                "{path}: no documented limit has this action: check the spelling"
            ));
        }
        match named(&field, &name).zip(limit(field)) {
            None => sound = false,
            Some((action, None)) => drop(limits.remove(&action)),
            Some((action, Some(limit))) => drop(limits.insert(action, limit)),
        }
    }
    sound.then_some(limits)
}

fn preset() -> BTreeMap<ActionName, Limit> {
    let mut limits = BTreeMap::new();
    for (name, count) in DOCUMENTED {
        let limit = Limit {
            count: NonZeroU32::new(count).expect("no documented limit is zero"),
            window: Duration::from_secs(1),
        };
        limits.insert(ActionName::new(name), limit);
    }
    limits
}

/// Returns the documented spelling of an action, which is found in any case.
fn documented_name(name: &str) -> Option<&'static str> {
    DOCUMENTED
        .iter()
        .map(|(documented, _)| *documented)
        .find(|documented| name.eq_ignore_ascii_case(documented))
}

/// Reads the name of an action, in its exact case.
pub(super) fn action(field: &Field<'_>) -> Option<ActionName> {
    let name = field.text(ACTION_FORM, |text| is_action(text).then(|| text.to_owned()))?;
    named(field, &name)
}

/// Checks the name of an action. CAMS accepts one spelling only, so a limit under another spelling
/// of a documented action would never apply.
fn named(field: &Field<'_>, name: &str) -> Option<ActionName> {
    if !is_action(name) {
        field.mistake(format!("expected {ACTION_FORM}"));
        return None;
    }
    match documented_name(name) {
        Some(documented) if documented != name => {
            field.mistake(format!(
                "expected {documented}: action names are case-sensitive"
            ));
            None
        }
        _ => Some(ActionName::new(name)),
    }
}

fn is_action(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// Reads a rate, a table, or `off` for no limit. The outer `None` is a mistake.
fn limit(field: Field<'_>) -> Option<Option<Limit>> {
    if field.says("off") {
        return Some(None);
    }
    let mut section = match field.into_table() {
        Ok(section) => section,
        Err(field) => {
            let expected = "a rate such as 5/1s, a table with rate and burst, or \"off\"";
            let Rate { count, window } = rate(&field, expected)?;
            return Some(Some(Limit { count, window }));
        }
    };
    let reserve_key = section.key("reserve");
    let reserve = reserve_key.optional(|key| key.count(&(0..=MAX_COUNT)));
    let rate = rate(&section.key("rate"), "a rate such as 5/1s");
    let burst_key = section.key("burst");
    let burst = burst_key.optional(|key| key.count(&(1..=MAX_COUNT)));
    section.done();
    let rate = rate?;
    let burst = burst?;
    let reserve = reserve?.unwrap_or(0);
    let Some(count) = NonZeroU32::new(rate.count.get().saturating_sub(reserve)) else {
        reserve_key.mistake("expected less than the rate's count: a limit needs at least one call");
        return None;
    };
    let window = rate.window;
    let Some(burst) = burst else {
        return Some(Some(Limit { count, window }));
    };
    let limit = lower(Rate { count, window }, burst);
    if limit.is_none() {
        burst_key.mistake(
            "expected a divisor of the rate's count (for 5/1s: 1 or 5) with a window of at least \
             10ms per burst",
        );
    }
    limit.map(Some)
}

fn rate(field: &Field<'_>, expected: &str) -> Option<Rate> {
    if field.starts_with("0/") {
        field.mistake("expected a rate of at least one call: a limit cannot be 0");
        return None;
    }
    let rate: Rate = field.text(expected, |text| text.parse().ok())?;
    if rate.count.get() > MAX_COUNT || !(MIN_WINDOW..=MAX_WINDOW).contains(&rate.window) {
        field.mistake("expected a rate of at most 10000 calls in a window of 10ms to 1h");
        return None;
    }
    Some(rate)
}

/// The same rate in the long run, with at most `burst` calls at once.
fn lower(rate: Rate, burst: u32) -> Option<Limit> {
    let count =
        NonZeroU32::new(burst).filter(|burst| rate.count.get().is_multiple_of(burst.get()))?;
    let parts = rate.count.get() / burst;
    // Rounded up: a nanosecond too early would exceed the limit.
    let nanos = rate.window.as_nanos().div_ceil(u128::from(parts));
    let window = Duration::from_nanos(u64::try_from(nanos).ok()?);
    (window >= MIN_WINDOW).then_some(Limit { count, window })
}

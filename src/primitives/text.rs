//! How values from outside are written in logs, headers and pages.

use std::time::Duration;

/// At most the first 200 bytes of a text from outside, which is logged as an escaped field.
pub(crate) fn capped(text: &str) -> &str {
    capped_at(text, 200)
}

/// At most the first `max` bytes, in whole characters.
pub(crate) fn capped_at(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    &text[..end]
}

/// Whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whole milliseconds, at most 49 days.
pub(crate) fn whole_millis(time: Duration) -> u32 {
    u32::try_from(millis(time)).unwrap_or(u32::MAX)
}

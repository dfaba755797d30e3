//! How values from outside are written in logs, headers and pages.

use std::time::Duration;

/// At most the first 200 bytes of a text from outside, which is logged as an escaped field.
pub(crate) fn capped(text: &str) -> &str {
    let end = (0..=200.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    &text[..end]
}

/// Whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

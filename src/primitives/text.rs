//! How values from outside are written in logs, headers and pages.

use std::time::Duration;

/// Text from outside is logged as an escaped field and not at any length.
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

//! The usual answer time of CAMS for one account and action: running mean and deviation, with the
//! weights of TCP's retransmission timer (RFC 6298). `call/hold/margin.rs` makes a margin of them.

use std::time::Duration;

/// Statistics of answer times.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnswerTime {
    pub(crate) mean: Duration,
    pub(crate) deviation: Duration,
}

// === impl AnswerTime ===

impl AnswerTime {
    pub(crate) fn first(took: Duration) -> Self {
        Self {
            mean: took,
            deviation: took / 2,
        }
    }

    pub(crate) fn add(&mut self, took: Duration) {
        self.deviation = (self.deviation * 3 + self.mean.abs_diff(took)) / 4;
        self.mean = (self.mean * 7 + took) / 8;
    }
}

//! Are calls held to the limits, or is it only counted what the limits would do to them?

use std::fmt;

/// What the limits are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Calls wait for their turn, and what cannot wait is refused.
    Enforce,
    /// Calls are sent at once, each once; what would have waited or been refused is counted.
    Observe,
}

// === impl Mode ===

impl fmt::Display for Mode {
    /// As it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        })
    }
}

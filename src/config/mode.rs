//! Whether limits are enforced or only observed.

use std::fmt;

/// How the limits are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Calls wait for a token; a call that cannot wait is refused.
    Enforce,
    /// Each call is sent immediately and once. Calls that would have waited or been refused are
    /// counted.
    Observe,
}

// === impl Mode ===

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        })
    }
}

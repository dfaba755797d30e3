//! What one row of the comparison measures: a crowd, the endpoint's kind of window, and the path to it.

use std::fmt;
use std::time::Duration;

use cams_sim::{Kind, Limit};

use crate::crowd::Size;

/// A crowd, the endpoint and the path to it.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) size: Size,
    pub(crate) kind: Kind,
    pub(crate) jitter: Duration,
}

// === impl Case ===

impl Case {
    pub(crate) fn limit(self) -> Limit {
        Limit {
            kind: self.kind,
            ..Limit::default()
        }
    }

    pub(crate) fn optimum(self) -> usize {
        self.size
            .optimum(usize::try_from(self.limit().per_window).unwrap())
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.jitter.is_zero() {
            "steady".into()
        } else {
            format!("0-{} ms", self.jitter.as_millis())
        };
        write!(
            f,
            "{} | {} | {way}",
            self.size,
            format!("{:?}", self.kind).to_lowercase()
        )
    }
}

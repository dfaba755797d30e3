//! Counts failed attempts to connect by reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a connection could not be opened, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The name, of the upstream or the proxy, cannot be resolved.
    Resolve,
    /// The address is one of Flowgate's own listeners.
    Itself,
    /// TCP to the upstream failed.
    Connect,
    /// TLS failed.
    Tls,
    /// hyper rejects the connection.
    Http,
    /// Not connected in time.
    Timeout,
    /// Connections close before their first answer.
    ClosedEarly,
    /// TCP to the proxy failed, or was not connected in time.
    ProxyConnect,
    /// The proxy has not answered in time.
    ProxyTimeout,
    /// Status 407 or 401.
    ProxyAuthentication,
    /// Status 403.
    ProxyForbidden,
    /// Status 502, 503 or 504.
    ProxyBadGateway,
    /// Another status.
    ProxyStatus,
    /// The answer is not HTTP, or too long.
    ProxyAnswer,
    /// The proxy closed the connection.
    ProxyClosed,
}

/// The number of failures of one upstream.
#[derive(Default)]
pub(super) struct FailureCounts([AtomicU64; Failure::ALL.len()]);

// === impl Failure ===

impl Failure {
    /// All of them, in the order of their declaration.
    pub(crate) const ALL: [Self; 15] = [
        Self::Resolve,
        Self::Itself,
        Self::Connect,
        Self::Tls,
        Self::Http,
        Self::Timeout,
        Self::ClosedEarly,
        Self::ProxyConnect,
        Self::ProxyTimeout,
        Self::ProxyAuthentication,
        Self::ProxyForbidden,
        Self::ProxyBadGateway,
        Self::ProxyStatus,
        Self::ProxyAnswer,
        Self::ProxyClosed,
    ];

    /// The metric label.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Itself => "itself",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Timeout => "timeout",
            Self::ClosedEarly => "closed_early",
            Self::ProxyConnect => "proxy_connect",
            Self::ProxyTimeout => "proxy_timeout",
            Self::ProxyAuthentication => "proxy_authentication",
            Self::ProxyForbidden => "proxy_forbidden",
            Self::ProxyBadGateway => "proxy_bad_gateway",
            Self::ProxyStatus => "proxy_status",
            Self::ProxyAnswer => "proxy_answer",
            Self::ProxyClosed => "proxy_closed",
        }
    }

    /// Whether only an upstream behind a proxy can fail so.
    pub(super) fn is_of_proxy(self) -> bool {
        self.label().starts_with("proxy_")
    }
}

// === impl FailureCounts ===

impl FailureCounts {
    pub(super) fn count(&self, failure: Failure) {
        self.0[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self, failure: Failure) -> u64 {
        self.0[failure as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_has_its_own_count_and_label() {
        for (place, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, place);
            let counts = FailureCounts::default();
            counts.count(failure);
            assert_eq!(
                Failure::ALL
                    .map(|other| counts.get(other))
                    .iter()
                    .sum::<u64>(),
                counts.get(failure)
            );
            let same = |other: &Failure| other.label() == failure.label();
            assert_eq!(Failure::ALL.iter().filter(|it| same(it)).count(), 1);
        }
    }
}

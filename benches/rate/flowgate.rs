//! Flowgate's binary with the accounts of a crowd.

use std::fmt::Write;

use crate::crowd::key;
use crate::process::Process;

/// All callers have one address, and a crowd of a thousand per second comes at once.
const ROOM: [(&str, &str); 2] = [
    ("FLOWGATE_LISTEN__MAX_CONNECTIONS_PER_SOURCE", "9000"),
    ("TOKIO_WORKER_THREADS", "2"),
];

/// `[limits]` with this many CreateFlow calls per second.
pub(crate) fn limit(count: usize) -> String {
    format!("[limits]\nCreateFlow = \"{count}/1s\"\n")
}

/// Starts Flowgate in front of this endpoint. `more` is added to its configuration.
pub(crate) async fn start(upstream: &str, accounts: usize, more: &str) -> Process {
    let mut toml = format!("[queue]\nmax_hold = \"10m\"\n{more}");
    for key in (0..accounts).map(key) {
        write!(
            toml,
            "[[accounts]]\nid = \"{key}\"\naccess_key_id = \"{key}\"\naccess_key_secret = {{ env = \"MANAGED\" }}\n"
        )
        .unwrap();
    }
    Process::towards(upstream, &toml, tempfile::tempdir().unwrap(), &ROOM).await
}

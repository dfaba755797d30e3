//! The end of every call by its flow's name, and the invariant of all chaos tests: the callers'
//! view agrees with the endpoint's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use cams_sim::{Report, Sim, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::caller::{Call, SECRET};

/// How a call ended for its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// One complete response.
    Answered { status: u16, code: String },
    /// The connection closed without one, or was never opened.
    Closed,
    /// The caller hung up.
    Gone,
}

/// Ends by FlowName.
#[derive(Default)]
pub(crate) struct CallResults(BTreeMap<String, End>);

/// Sends one CreateFlow and returns its end. A caller with `patience` hangs up after it.
pub(crate) async fn create(
    proxy: SocketAddr,
    key: &str,
    name: &str,
    patience: Option<Duration>,
) -> End {
    let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", name)];
    let close = |call: &mut Call| call.push("x-flowgate-hold", "30s");
    let mut call = Call::v3_with(&proxy.to_string(), &query, close, (key, SECRET));
    call.push("connection", "close");
    let exchange = async {
        let mut seen = Vec::new();
        let mut stream = TcpStream::connect(proxy).await.ok()?;
        stream.write_all(&call.bytes()).await.ok()?;
        stream.read_to_end(&mut seen).await.ok()?;
        Some(seen)
    };
    let end = tokio::time::timeout(patience.unwrap_or(Duration::from_secs(120)), exchange).await;
    match end {
        Ok(seen) => read(&String::from_utf8_lossy(&seen.unwrap_or_default())),
        Err(_) if patience.is_some() => End::Gone,
        Err(_) => panic!("{name} hears nothing"),
    }
}

/// The only response on a connection.
fn read(seen: &str) -> End {
    let Some((head, body)) = seen.split_once("\r\n\r\n") else {
        return End::Closed;
    };
    let Ok(body) = serde_json::from_str::<serde_json::Value>(body) else {
        // Incomplete after a kill. Two responses would be no JSON either.
        assert!(!body.contains("HTTP/1.1"), "{seen}");
        return End::Closed;
    };
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status line");
    End::Answered {
        status,
        code: body["Code"].as_str().unwrap_or_default().to_owned(),
    }
}

// === impl CallResults ===

impl CallResults {
    /// Records ends; each name may have one.
    pub(crate) fn note(&mut self, ends: impl IntoIterator<Item = (String, End)>) {
        for (name, end) in ends {
            assert!(
                self.0.insert(name.clone(), end).is_none(),
                "{name} has two ends"
            );
        }
    }

    /// Number of calls that ended with this code.
    pub(crate) fn count(&self, code: &str) -> usize {
        let is = |end: &&End| matches!(end, End::Answered { code: other, .. } if other == code);
        self.0.values().filter(is).count()
    }

    /// Number of calls with this end.
    pub(crate) fn ended(&self, wanted: &End) -> usize {
        self.0.values().filter(|end| *end == wanted).count()
    }

    /// Checks that answered ok ⊆ created ⊆ ok ∪ OutcomeUnknown ∪ gone ∪ closed, and nothing twice.
    pub(crate) fn check(&self, sim: &Sim) -> Report {
        let of = |wanted: fn(&End) -> bool| {
            self.0
                .iter()
                .filter(move |(_, end)| wanted(end))
                .map(|(name, _)| name.clone())
                .collect::<BTreeSet<_>>()
        };
        let ok = of(|end| matches!(end, End::Answered { status: 200, .. }));
        let may = of(|end| match end {
            End::Answered { status: 200, .. } | End::Closed | End::Gone => true,
            End::Answered { code, .. } => code == "Flowgate.OutcomeUnknown",
        });
        let arrivals = sim.arrivals();
        let created: BTreeSet<_> = arrivals
            .iter()
            .filter(|arrival| arrival.verdict == Verdict::Accepted)
            .filter_map(|arrival| arrival.flow_name.clone())
            .collect();
        let missing: Vec<_> = ok.difference(&created).collect();
        assert!(
            missing.is_empty(),
            "answered ok and never created: {missing:?}"
        );
        let misreported: Vec<_> = created
            .difference(&may)
            .map(|name| (name, self.0.get(name)))
            .collect();
        assert!(
            misreported.is_empty(),
            "created, but reported otherwise to their callers: {misreported:?}"
        );
        let report = sim.report();
        assert_eq!(report.duplicates, Vec::<String>::new());
        // The faults' codes; any other code is a malformed call.
        let known = ["System.LimitControl", "ServiceUnavailable"];
        assert!(
            report
                .codes
                .keys()
                .all(|code| known.contains(&code.as_str())),
            "{:?}",
            report.codes
        );
        report
    }
}

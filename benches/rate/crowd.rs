//! A crowd: all calls of a row start at once, each signed like an SDK's and on a connection of its
//! own.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use leaky_bucket::RateLimiter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::caller::{Call, SECRET};

/// The size of a crowd.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) accounts: usize,
    /// Calls of each account.
    pub(crate) calls: usize,
}

/// The target of a crowd.
pub(crate) struct Target<'a> {
    pub(crate) to: SocketAddr,
    /// The host that callers sign.
    pub(crate) host: &'a str,
    /// The callers' own limiters, one for each account, or none.
    pub(crate) limiters: &'a [RateLimiter],
}

/// A response's code and its time.
pub(crate) struct Answer {
    pub(crate) account: usize,
    pub(crate) after: Duration,
    pub(crate) code: String,
}

/// How long a caller waits, which is also its hold at Flowgate.
const PATIENCE: Duration = Duration::from_secs(200);

/// The access key of an account.
pub(crate) fn key(account: usize) -> String {
    format!("LTAI-account-{account}")
}

// === impl Size ===

impl Size {
    pub(crate) fn total(self) -> usize {
        self.accounts * self.calls
    }

    /// The calls of one second at once, then the same number each second.
    pub(crate) fn optimum(self, count: usize) -> usize {
        self.calls.div_ceil(count) - 1
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { accounts, calls } = self;
        if *accounts > 1 {
            write!(f, "{accounts} × {calls}")
        } else {
            write!(f, "{calls}")
        }
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn is_ok(&self) -> bool {
        self.code == "OK"
    }

    pub(crate) fn is_refusal(&self) -> bool {
        self.code == "System.LimitControl"
    }
}

// === impl Target ===

impl Target<'_> {
    /// Starts all calls at once and waits for the last response.
    pub(crate) async fn crowd(&self, size: Size) -> Vec<Answer> {
        let started = Instant::now();
        // Interleaved, so that no account's calls come first.
        let calls = (0..size.calls)
            .flat_map(|number| (0..size.accounts).map(move |account| (number, account)));
        let answers =
            join_all(calls.map(|(number, account)| self.call(started, account, number))).await;
        let others: Vec<_> = answers
            .iter()
            .filter(|answer| !answer.is_ok() && !answer.is_refusal())
            .collect();
        if let Some(other) = others.first() {
            eprintln!(
                "{} calls ended otherwise, the first with {}",
                others.len(),
                other.code
            );
        }
        answers
    }

    async fn call(&self, started: Instant, account: usize, number: usize) -> Answer {
        if let Some(limiter) = self.limiters.get(account) {
            RateLimiter::acquire_one(limiter).await;
        }
        let code = match timeout(PATIENCE, self.exchange(account, &format!("flow-{number}"))).await
        {
            Ok(code) => code.unwrap_or_else(|error| error.to_string()),
            Err(_) => "no answer in time".into(),
        };
        Answer {
            account,
            after: started.elapsed(),
            code,
        }
    }

    /// Sends one CreateFlow and returns the `Code` of the response.
    async fn exchange(&self, account: usize, flow: &str) -> std::io::Result<String> {
        let query = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", flow)];
        let hold = format!("{}s", PATIENCE.as_secs());
        let mut call = Call::v3_with(
            self.host,
            &query,
            |call| call.push("x-flowgate-hold", &hold),
            (&key(account), SECRET),
        );
        // The response then ends with the connection. This hop-by-hop header is not signed.
        call.push("connection", "close");
        let mut stream = TcpStream::connect(self.to).await?;
        stream.write_all(&call.bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let code = serde_json::from_str::<serde_json::Value>(body)
            .ok()
            .and_then(|body| body["Code"].as_str().map(str::to_owned));
        Ok(code.unwrap_or(answer))
    }
}

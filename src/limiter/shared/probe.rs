//! Probes whether the store can deal slots: runs the scripts on separate keys, in a cluster on each
//! master, and checks that slots arrive in time. A store that answers pings may still refuse
//! scripts.

use std::num::NonZeroU32;
use std::time::Duration;

use async_trait::async_trait;
use redis::{RedisResult, Script, Value};
use tokio::time::{Instant, timeout};

use crate::config::{self, Limit};
use crate::limiter::shared::members;
use crate::limiter::shared::protocol::{self, Answer, DealRequest, Op, View};
use crate::limiter::shared::slots::{Slots, Start};
use crate::store::{Connection, Probe, StoreError, within};

/// Runs the scripts on the probe's own keys.
pub(crate) struct DealProbe {
    /// Prefix of the probe's keys.
    prefix: String,
    /// How late a slot may be used.
    slack: Duration,
    /// The probe's replica name.
    me: String,
    take: Script,
    members_script: Script,
}

/// This many consecutive answers must be in time.
const IN_A_ROW: u32 = 3;
/// Maximum number of answers that are awaited.
const TRIES: u32 = 8;
/// The limit of the probe's lane: more tokens than it uses.
const LIMIT: Limit = Limit {
    count: NonZeroU32::new(1000).expect("it is not zero"),
    window: Duration::from_secs(1),
};
const GAP: Duration = Duration::from_millis(5);
/// How long the store remembers the probe's replica name.
const LEASE: Duration = Duration::from_secs(1);

// === impl DealProbe ===

impl DealProbe {
    pub(crate) fn new(config: &config::Store) -> Self {
        Self {
            prefix: format!("{}probe", config.prefix),
            slack: config.slack,
            me: format!("{:016x}", fastrand::u64(..)),
            take: Script::new(protocol::SOURCE),
            members_script: Script::new(members::SOURCE),
        }
    }

    async fn send_heartbeat(&self, connection: &mut Connection, tag: &str) -> RedisResult<()> {
        let mut call = self
            .members_script
            .key(format!("{}:{{{tag}}}:replicas", self.prefix));
        for arg in members::args(
            "beat",
            &self.me,
            &members::OwnConnection::unknown(),
            LEASE,
            None,
        ) {
            call.arg(arg);
        }
        call.invoke_async::<Value>(connection).await.map(drop)
    }

    /// Checks that slots arrive in time, several times in a row.
    async fn take(
        &self,
        connection: &mut Connection,
        tag: &str,
        distance: Duration,
        limit: Duration,
    ) -> Result<(), StoreError> {
        let start = Start {
            limit: LIMIT,
            gap: GAP,
            slack: self.slack,
            distance,
            from: Instant::now(),
        };
        let mut slots = Slots::new(&start);
        let mut in_time = 0;
        let mut longest = Duration::ZERO;
        for _ in 0..TRIES {
            let request = slots.next_request(1, Instant::now());
            let sent = Instant::now();
            let answer = run(limit, self.request(connection, tag, request.slack)).await?;
            let received = Instant::now();
            longest = longest.max(received - sent);
            let view = View::read(answer).filter(|view| !view.slots.is_empty());
            let view = view.ok_or_else(|| {
                StoreError::Unfit("the scripts do not answer as they should".to_owned())
            })?;
            slots.answered(
                request.number,
                &Answer {
                    view,
                    sent,
                    received,
                },
                received,
            );
            in_time = if slots.free(received) > 0 {
                in_time + 1
            } else {
                0
            };
            slots.give_back_all();
            if in_time == IN_A_ROW {
                return Ok(());
            }
        }
        Err(StoreError::TooFar(longest))
    }

    async fn request(
        &self,
        connection: &mut Connection,
        tag: &str,
        slack: Duration,
    ) -> RedisResult<Value> {
        let request = DealRequest {
            replica: &self.me,
            limit: LIMIT,
            tokens: LIMIT.count.get(),
            window: LIMIT.window,
            gap: GAP,
            spacing: Duration::ZERO,
            slack,
            cap: LIMIT.count.get(),
            version: 0,
            pace: None,
            wanted: 1,
            waiting: &[],
            unused: &[],
            late: &[],
            max_pause: LIMIT.window,
        };
        let mut call = self.take.prepare_invoke();
        for what in ["lane", "ring"] {
            call.key(format!("{}:{{{tag}}}:{what}", self.prefix));
        }
        for arg in Op::Take.args(&request) {
            call.arg(arg);
        }
        call.invoke_async(connection).await
    }
}

#[async_trait]
impl Probe for DealProbe {
    fn key(&self) -> &str {
        &self.prefix
    }

    async fn check(
        &self,
        connection: &mut Connection,
        masters: usize,
        distance: Duration,
        limit: Duration,
    ) -> Result<(), StoreError> {
        let tags = within(limit, connection.tags()).await?;
        if tags.len() < masters {
            return Err(StoreError::Unreachable(
                "not every master has slots".to_owned(),
            ));
        }
        // Loaded separately, because each round trip to a far store may use the whole timeout.
        for script in [&self.members_script, &self.take] {
            run(limit, script.prepare_invoke().load_async(connection)).await?;
        }
        for tag in tags {
            run(limit, self.send_heartbeat(connection, &tag)).await?;
            self.take(connection, &tag, distance, limit).await?;
        }
        Ok(())
    }
}

/// Awaits a script's answer with a timeout.
async fn run<T>(
    limit: Duration,
    script: impl Future<Output = RedisResult<T>>,
) -> Result<T, StoreError> {
    match timeout(limit, script).await {
        Ok(answer) => answer.map_err(|error| StoreError::of_script(&error)),
        Err(_elapsed) => Err(StoreError::late(limit)),
    }
}

//! The health check of the store: it answers in time, accepts writes, does not evict keys, and runs
//! the scripts in time. Reports the server's run id, because a restarted server may have lost its
//! data.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{InfoDict, Value, cmd};
use tokio::time::Instant;

use super::Probe;
use super::connect::Connection;
use super::error::{StoreError, within};

/// The result of checking a healthy store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Health {
    /// The server's INFO; `None` if the user may not read it.
    pub(super) server: Option<Server>,
    /// Number of masters, all of which answered.
    pub(super) masters: usize,
    /// Round trip; in a cluster that of the slowest master.
    pub(super) round_trip: Duration,
}

/// The relevant part of a server's INFO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// The run id; in a cluster those of all masters.
    pub(super) runs: String,
    /// The version; in a cluster that of the first master.
    pub(super) version: String,
}

/// Lifetime of the key that is written to check writes, in milliseconds.
const PROBE_MS: u32 = 1000;

/// Checks the store, with the timeout `limit` for each operation. In a cluster every master must
/// answer.
pub(super) async fn check_health(
    connection: &mut Connection,
    probe: &dyn Probe,
    limit: Duration,
) -> Result<Health, StoreError> {
    let masters = within(limit, connection.masters()).await?;
    let sent = Instant::now();
    within(limit, connection.ping(masters)).await?;
    let round_trip = sent.elapsed();
    let server = match within(limit, cmd("INFO").query_async::<Value>(connection)).await {
        Ok(info) => Some(server(&each_master(info)?, masters)?),
        Err(StoreError::Forbids(_)) => None,
        Err(error) => return Err(error),
    };
    let mut set = cmd("SET");
    set.arg(probe.key()).arg(1).arg("PX").arg(PROBE_MS);
    let _ok: Value = within(limit, set.query_async(connection)).await?;
    probe.check(connection, masters, round_trip, limit).await?;
    Ok(Health {
        server,
        masters,
        round_trip,
    })
}

/// Returns the INFO of each master: a cluster answers with a map.
fn each_master(info: Value) -> Result<Vec<InfoDict>, StoreError> {
    if let Value::Map(_) = info {
        let masters: BTreeMap<String, InfoDict> =
            redis::from_redis_value(info).map_err(unreadable)?;
        return Ok(masters.into_values().collect());
    }
    Ok(vec![redis::from_redis_value(info).map_err(unreadable)?])
}

fn unreadable(_: redis::ParsingError) -> StoreError {
    StoreError::Unreachable("the answer to INFO cannot be read".to_owned())
}

fn server(infos: &[InfoDict], masters: usize) -> Result<Server, StoreError> {
    let mut runs = Vec::new();
    for master in infos {
        match master.get::<String>("maxmemory_policy").as_deref() {
            // Without the field it is not a Redis server, but perhaps a proxy in front of one.
            None | Some("noeviction") => {}
            Some(policy) => {
                let text = format!(
                    "the shared store evicts keys (maxmemory-policy {policy}), which would forget spent tokens: set it to noeviction"
                );
                return Err(StoreError::Evicts(text));
            }
        }
        runs.push(master.get::<String>("run_id").unwrap_or_default());
    }
    if infos.len() < masters {
        return Err(StoreError::Unreachable(
            "not every master answers".to_owned(),
        ));
    }
    runs.sort_unstable();
    let version = infos.first().and_then(|master| {
        master
            .get("valkey_version")
            .or_else(|| master.get("redis_version"))
    });
    Ok(Server {
        runs: runs.join(","),
        version: version.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(policy: &str, run: &str) -> String {
        format!(
            "# Server\r\nredis_version:7.0.15\r\nrun_id:{run}\r\n# Memory\r\nmaxmemory_policy:{policy}\r\n"
        )
    }

    #[test]
    fn a_store_that_evicts_keys_is_refused() {
        let one = |policy| {
            server(
                &each_master(Value::BulkString(info(policy, "a1").into_bytes())).unwrap(),
                1,
            )
        };
        assert_eq!(
            one("noeviction"),
            Ok(Server {
                runs: "a1".to_owned(),
                version: "7.0.15".to_owned()
            })
        );
        let text = "the shared store evicts keys (maxmemory-policy volatile-lru), which would forget spent tokens: set it to noeviction";
        assert_eq!(
            one("volatile-lru"),
            Err(StoreError::Evicts(text.to_owned()))
        );
    }

    #[test]
    fn a_cluster_is_refused_if_one_master_is() {
        let entry = |address: &str, policy, run| {
            (
                Value::BulkString(address.into()),
                Value::BulkString(info(policy, run).into_bytes()),
            )
        };
        let two = |policy, masters| {
            let map = Value::Map(vec![
                entry("h:1", "noeviction", "b"),
                entry("h:2", policy, "a"),
            ]);
            server(&each_master(map).unwrap(), masters)
        };
        assert_eq!(
            two("noeviction", 2).map(|server| server.runs),
            Ok("a,b".to_owned())
        );
        assert!(matches!(
            two("noeviction", 3),
            Err(StoreError::Unreachable(_))
        ));
        assert!(matches!(two("allkeys-lru", 2), Err(StoreError::Evicts(_))));
    }

    #[test]
    fn valkey_reports_its_own_version() {
        let info = InfoDict::new(
            "redis_version:7.2.4\r\nvalkey_version:8.1.1\r\nmaxmemory_policy:noeviction\r\n",
        );
        assert_eq!(server(&[info], 1).unwrap().version, "8.1.1");
    }
}

//! Is the store in order? It answers in time, it takes writes, and it drops no keys to make room. Says which run of which
//! server it is, because a server that has started anew may have forgotten everything.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::{InfoDict, RedisResult, Value, cmd};
use tokio::time::timeout;

use super::connect::Connection;
use super::trouble::Trouble;

/// A store in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Health {
    /// The server's run id; of a cluster those of all masters.
    pub(super) runs: String,
    /// The server's version, of a cluster the first master's.
    pub(super) version: String,
    /// How many masters answered: of a cluster all.
    pub(super) masters: usize,
}

/// How long the key lives that is written to see whether writes are taken.
const PROBE_MS: u32 = 1000;

/// Looks the store over; each question may take `limit`. In a cluster every master must answer.
pub(super) async fn look(connection: &mut Connection, probe: &str, limit: Duration) -> Result<Health, Trouble> {
    let masters = within(limit, connection.masters()).await?;
    within(limit, connection.ping(masters)).await?;
    let info: Value = within(limit, cmd("INFO").query_async(connection)).await?;
    let health = health(each_master(info)?)?;
    if health.masters < masters {
        return Err(Trouble::Unreachable("not every master answers".to_owned()));
    }
    let mut set = cmd("SET");
    set.arg(probe).arg(1).arg("PX").arg(PROBE_MS);
    let _ok: Value = within(limit, set.query_async(connection)).await?;
    Ok(health)
}

async fn within<T>(limit: Duration, answer: impl Future<Output = RedisResult<T>>) -> Result<T, Trouble> {
    Ok(timeout(limit, answer).await.map_err(|_elapsed| Trouble::late(limit))??)
}

/// What each master says of itself: a cluster answers with a map of them.
fn each_master(info: Value) -> Result<Vec<InfoDict>, Trouble> {
    let unreadable = |_| Trouble::Unreachable("the answer to INFO cannot be read".to_owned());
    if let Value::Map(_) = info {
        let masters: BTreeMap<String, InfoDict> = redis::from_redis_value(info).map_err(unreadable)?;
        return Ok(masters.into_values().collect());
    }
    Ok(vec![redis::from_redis_value(info).map_err(unreadable)?])
}

fn health(masters: Vec<InfoDict>) -> Result<Health, Trouble> {
    let mut runs = Vec::new();
    for master in &masters {
        match master.get::<String>("maxmemory_policy").as_deref() {
            // A server that does not say so is no Redis; a proxy before one, perhaps.
            None | Some("noeviction") => {}
            Some(policy) => {
                let text = format!(
                    "the shared store evicts keys (maxmemory-policy {policy}), which would forget spent tokens: set it to noeviction"
                );
                return Err(Trouble::Evicts(text));
            }
        }
        runs.push(master.get::<String>("run_id").unwrap_or_default());
    }
    runs.sort_unstable();
    let version = |master: &InfoDict| master.get("valkey_version").or_else(|| master.get("redis_version"));
    let version = masters.first().and_then(version).unwrap_or_default();
    Ok(Health { runs: runs.join(","), version, masters: masters.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(policy: &str, run: &str) -> String {
        format!("# Server\r\nredis_version:7.0.15\r\nrun_id:{run}\r\n# Memory\r\nmaxmemory_policy:{policy}\r\n")
    }

    #[test]
    fn a_store_that_evicts_is_not_in_order() {
        let one = |policy| health(each_master(Value::BulkString(server(policy, "a1").into_bytes())).unwrap());
        assert_eq!(one("noeviction"), Ok(Health { runs: "a1".to_owned(), version: "7.0.15".to_owned(), masters: 1 }));
        let text = "the shared store evicts keys (maxmemory-policy volatile-lru), which would forget spent tokens: set it to noeviction";
        assert_eq!(one("volatile-lru"), Err(Trouble::Evicts(text.to_owned())));
    }

    #[test]
    fn a_cluster_is_as_good_as_the_worst_of_its_masters() {
        let entry = |address: &str, policy, run| {
            (Value::BulkString(address.into()), Value::BulkString(server(policy, run).into_bytes()))
        };
        let two = |policy| {
            health(each_master(Value::Map(vec![entry("h:1", "noeviction", "b"), entry("h:2", policy, "a")])).unwrap())
        };
        assert_eq!(two("noeviction").map(|health| (health.runs, health.masters)), Ok(("a,b".to_owned(), 2)));
        assert!(matches!(two("allkeys-lru"), Err(Trouble::Evicts(_))));
    }

    #[test]
    fn a_valkey_is_known_by_its_own_version() {
        let info = InfoDict::new("redis_version:7.2.4\r\nvalkey_version:8.1.1\r\nmaxmemory_policy:noeviction\r\n");
        assert_eq!(health(vec![info]).unwrap().version, "8.1.1");
    }
}

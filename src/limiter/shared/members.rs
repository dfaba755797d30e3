//! The replicas that share the quota, and the part of each while the store is down. Every replica
//! has the same list, as the store last reported it, and divides the tokens by rank. No I/O.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// The script that keeps the list.
pub(crate) const SOURCE: &str = include_str!("members.lua");
/// An unknown connection id, as in a cluster, where a replica has many connections.
pub(crate) const UNKNOWN: u64 = 0;

/// A replica that is silent for longer has vanished: it may be cut off and use its part. Three
/// heartbeats.
pub(crate) const VANISHED: Duration = Duration::from_millis(750);

/// The replicas, as last reported to this one.
#[derive(Debug)]
pub(super) struct Members {
    me: String,
    /// How long a disconnected replica may use its part.
    lease: Duration,
    seen: BTreeMap<String, Member>,
    /// When the store first answered; reset if the others may have forgotten this replica since.
    joined: Option<Instant>,
    /// When the store last answered.
    contact: Option<Instant>,
}

/// One replica.
#[derive(Debug)]
struct Member {
    /// When the store last received its heartbeat.
    at: Instant,
    /// The server's id of its connection.
    connection_id: u64,
    /// The run id of the server that assigned the connection id; empty if unknown.
    run: String,
    /// When it returned after it had vanished. Tokens that it used meanwhile may still be in use.
    back: Option<Instant>,
    /// It has left after it returned: it is kept only because of those tokens.
    has_left: bool,
}

/// One replica as the store reports it.
pub(super) struct ReportedReplica {
    pub(super) name: String,
    /// The server's id of its connection.
    pub(super) connection_id: u64,
    /// The run id of the server that assigned the connection id; empty if unknown.
    pub(super) run: String,
    /// Time since its last heartbeat.
    pub(super) silent: Duration,
    /// It has left or is dead, and uses no tokens.
    pub(super) has_left: bool,
}

/// The connection of this replica: the server's id of it and the server's run id.
#[derive(Clone, Debug)]
pub(crate) struct OwnConnection {
    pub(crate) connection: u64,
    pub(crate) run: String,
}

/// Returns the script's arguments. `dead` is a dead replica: its name and its closed connection.
pub(crate) fn args(
    op: &str,
    me: &str,
    own: &OwnConnection,
    lease: Duration,
    dead: Option<(&str, u64)>,
) -> [Vec<u8>; 7] {
    let name = dead.map_or_else(String::new, |(name, _)| name.to_owned());
    let connection_id =
        dead.map_or_else(String::new, |(_, connection_id)| connection_id.to_string());
    [
        op.to_owned(),
        me.to_owned(),
        own.connection.to_string(),
        own.run.clone(),
        lease.as_micros().to_string(),
        name,
        connection_id,
    ]
    .map(String::into_bytes)
}

/// Reads the script's answer; `None` if it has another form.
pub(super) fn read(answer: redis::Value) -> Option<Vec<ReportedReplica>> {
    let list: Vec<(String, u64, u64, bool, String)> = redis::from_redis_value(answer).ok()?;
    let mut replicas = Vec::with_capacity(list.len());
    for (name, connection_id, silent, has_left, run) in list {
        replicas.push(ReportedReplica {
            name,
            connection_id,
            run,
            silent: Duration::from_micros(silent),
            has_left,
        });
    }
    Some(replicas)
}

// === impl OwnConnection ===

impl OwnConnection {
    /// An unknown connection.
    pub(crate) fn unknown() -> Self {
        Self {
            connection: UNKNOWN,
            run: String::new(),
        }
    }
}

// === impl Members ===

impl Members {
    pub(super) fn new(me: String, lease: Duration) -> Self {
        Self {
            me,
            lease,
            seen: BTreeMap::new(),
            joined: None,
            contact: None,
        }
    }

    /// Records the store's list. `asked` is when the request was sent.
    pub(super) fn update(
        &mut self,
        list: impl IntoIterator<Item = ReportedReplica>,
        asked: Instant,
    ) {
        for ReportedReplica {
            name,
            connection_id,
            run,
            silent,
            has_left,
        } in list
        {
            if has_left && name != self.me {
                match self.seen.get_mut(&name) {
                    Some(member) if member.back.is_some() => member.has_left = true,
                    _ => self.left(&name),
                }
                continue;
            }
            let at = asked.checked_sub(silent).unwrap_or(asked);
            let member = self.seen.entry(name).or_insert_with(|| Member {
                at,
                connection_id,
                run: run.clone(),
                back: None,
                has_left: false,
            });
            // With another connection it was without the store meanwhile, even if a delayed
            // heartbeat of the earlier connection arrived in between.
            if at > member.at + VANISHED
                || (member.connection_id, &member.run) != (connection_id, &run)
            {
                member.back = Some(asked);
            }
            member.at = at.max(member.at);
            member.connection_id = connection_id;
            member.run = run;
            member.has_left = false;
        }
        self.seen
            .retain(|name, member| *name == self.me || member.at + self.lease > asked);
        let is_known = self
            .contact
            .is_some_and(|contact| asked < contact + self.lease);
        self.joined = self.joined.filter(|_| is_known).or(Some(asked));
        self.contact = Some(asked);
    }

    /// Removes a replica that has left or is dead.
    pub(super) fn left(&mut self, name: &str) {
        self.seen.remove(name);
    }

    /// Returns the number of replicas, including vanished ones.
    pub(super) fn len(&self) -> usize {
        self.seen.values().filter(|member| !member.has_left).count()
    }

    /// Returns the vanished replicas and their connection ids. An id is valid only for the server
    /// run that assigned it: either the run ids agree, or the heartbeat is later than `since`, when
    /// the current server was first seen.
    pub(super) fn vanished(
        &self,
        since: Instant,
        run: &str,
        now: Instant,
    ) -> impl Iterator<Item = (String, u64)> {
        self.seen
            .iter()
            .filter(move |(name, member)| {
                let is_of_this_run = member.at > since || (!run.is_empty() && member.run == run);
                **name != self.me && !member.has_left && member.has_vanished(now) && is_of_this_run
            })
            .map(|(name, member)| (name.clone(), member.connection_id))
    }

    /// Returns this replica's part of `count` tokens while the store is down. `None` until it has
    /// been connected for long enough that all others know it, and shortly before the others stop
    /// withholding its part.
    pub(super) fn part(&self, count: NonZeroU32, now: Instant) -> Option<NonZeroU32> {
        let joined = self.joined?;
        let contact = self.contact?;
        if contact < joined + VANISHED || now + VANISHED >= contact + self.lease {
            return None;
        }
        NonZeroU32::new(self.part_of(&self.me, count))
    }

    /// Returns when this replica's part ends.
    pub(super) fn part_ends(&self) -> Option<Instant> {
        Some(
            (self.contact? + self.lease)
                .checked_sub(VANISHED)
                .unwrap_or_else(Instant::now),
        )
    }

    /// Returns the tokens to withhold while the store is up: the parts of replicas that have
    /// vanished, or that returned within the last `window`.
    pub(super) fn withheld(&self, count: NonZeroU32, window: Duration, now: Instant) -> u32 {
        self.seen
            .iter()
            .filter(|(name, member)| **name != self.me && member.may_use_part(window, now))
            .map(|(name, _)| self.part_of(name, count))
            .sum()
    }

    /// Returns a replica's part among those that have not left.
    fn part_of(&self, name: &str, count: NonZeroU32) -> u32 {
        let present = self
            .seen
            .iter()
            .filter(|(other, member)| !member.has_left || *other == name);
        let all = u32::try_from(present.clone().count())
            .unwrap_or(u32::MAX)
            .max(1);
        let Some(rank) = present
            .map(|(other, _)| other)
            .position(|other| other == name)
        else {
            return 0;
        };
        let over = u32::try_from(rank).unwrap_or(u32::MAX) < count.get() % all;
        count.get() / all + u32::from(over)
    }
}

// === impl Member ===

impl Member {
    fn has_vanished(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) > VANISHED
    }

    /// Whether it may be using its part, or did so within the last `window`.
    fn may_use_part(&self, window: Duration, now: Instant) -> bool {
        (self.has_vanished(now) && !self.has_left)
            || self.back.is_some_and(|back| now < back + window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FIVE: NonZeroU32 = NonZeroU32::new(5).unwrap();

    fn members(me: &str, all: u32, asked: Instant) -> Members {
        let mut members = Members::new(me.to_owned(), 60 * SECOND);
        // Long enough that all replicas know each other.
        for asked in [asked - VANISHED, asked] {
            members.update((0..all).map(|rank| seen(rank, Duration::ZERO)), asked);
        }
        members
    }

    fn seen(rank: u32, silent: Duration) -> ReportedReplica {
        ReportedReplica {
            name: format!("r{rank}"),
            connection_id: 7,
            run: "run1".to_owned(),
            silent,
            has_left: false,
        }
    }

    #[test]
    fn the_tokens_are_dealt_by_rank() {
        let now = Instant::now();
        let parts = |all| -> Vec<u32> {
            (0..all)
                .map(|me| {
                    members(&format!("r{me}"), all, now)
                        .part(FIVE, now)
                        .map_or(0, NonZeroU32::get)
                })
                .collect()
        };
        assert_eq!(parts(1), [5]);
        assert_eq!(parts(2), [3, 2]);
        assert_eq!(parts(3), [2, 2, 1]);
        assert_eq!(parts(8), [1, 1, 1, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn a_replica_that_never_reached_the_store_has_no_part() {
        assert_eq!(
            Members::new("r0".to_owned(), 60 * SECOND).part(FIVE, Instant::now()),
            None
        );
    }

    #[test]
    fn a_new_replica_has_no_part_before_the_others_know_it() {
        let start = Instant::now();
        let ms = Duration::from_millis(1);
        let mut alone = members("r0", 1, start);
        let mut joins = Members::new("r1".to_owned(), 60 * SECOND);
        let both = || [seen(0, Duration::ZERO), seen(1, Duration::ZERO)];
        let parts = |alone: &Members, joins: &Members, now| {
            [alone, joins].map(|members| members.part(FIVE, now))
        };
        let used = |count| NonZeroU32::new(count);
        joins.update(both(), start + 50 * ms);
        assert_eq!(parts(&alone, &joins, start + 100 * ms), [used(5), None]);
        alone.update(both(), start + 250 * ms);
        joins.update(both(), start + 799 * ms);
        assert_eq!(parts(&alone, &joins, start + 799 * ms), [used(3), None]);
        joins.update(both(), start + 800 * ms);
        assert_eq!(parts(&alone, &joins, start + 800 * ms), [used(3), used(2)]);
        // After its lease it is forgotten and joins again.
        let back = start + 800 * ms + 60 * SECOND;
        joins.update(both(), back);
        assert_eq!(joins.part(FIVE, back), None);
        joins.update(both(), back + VANISHED);
        assert_eq!(joins.part(FIVE, back + VANISHED), used(2));
    }

    #[test]
    fn a_part_is_withheld_from_the_others_for_longer_than_it_is_used() {
        let start = Instant::now();
        let cut_off = members("r0", 2, start);
        let mut other = members("r1", 2, start);
        for second in 1..100 {
            let now = start + second * SECOND;
            // The store still lists the replica, with a growing silence.
            let list = [seen(0, second * SECOND), seen(1, Duration::ZERO)];
            other.update(
                list.into_iter().filter(|seen| seen.silent <= 60 * SECOND),
                now,
            );
            let used = cut_off.part(FIVE, now).map_or(0, NonZeroU32::get);
            assert!(
                other.withheld(FIVE, SECOND, now) >= used || second == 1,
                "after {second} s"
            );
        }
        assert_eq!(
            (
                other.len(),
                other.withheld(FIVE, SECOND, start + 99 * SECOND)
            ),
            (1, 0)
        );
    }

    #[test]
    fn nothing_is_withheld_for_a_replica_that_has_left() {
        let start = Instant::now();
        let mut members = members("r0", 3, start);
        assert_eq!(members.withheld(FIVE, SECOND, start + 2 * SECOND), 3);
        members.left("r1");
        assert_eq!(
            (
                members.len(),
                members.withheld(FIVE, SECOND, start + 2 * SECOND)
            ),
            (2, 2)
        );
    }

    #[test]
    fn nothing_is_withheld_for_a_replica_that_is_listed_as_left() {
        let start = Instant::now();
        let mut members = members("r0", 3, start);
        let list = || {
            [
                seen(0, Duration::ZERO),
                ReportedReplica {
                    has_left: true,
                    ..seen(1, SECOND)
                },
                seen(2, Duration::ZERO),
            ]
        };
        for beat in 1..300 {
            let now = start + beat * SECOND / 4;
            members.update(list(), now);
            assert_eq!(
                (members.len(), members.withheld(FIVE, SECOND, now)),
                (2, 0),
                "beat {beat}"
            );
        }
        assert_eq!(members.part(FIVE, start + 75 * SECOND), NonZeroU32::new(3));
    }

    #[test]
    fn the_part_of_a_replica_that_returned_is_withheld_for_a_window_even_if_it_leaves() {
        let start = Instant::now();
        let mut members = members("r0", 2, start);
        let left = || ReportedReplica {
            has_left: true,
            ..seen(1, Duration::ZERO)
        };
        // It was cut off for two seconds, returns, and leaves immediately.
        let back = start + 2 * SECOND;
        members.update([seen(0, Duration::ZERO), seen(1, Duration::ZERO)], back);
        for (millis, withheld) in [(100, 2), (900, 2), (1000, 0), (5000, 0)] {
            let now = back + Duration::from_millis(millis);
            members.update([seen(0, Duration::ZERO), left()], now);
            assert_eq!(
                (members.len(), members.withheld(FIVE, SECOND, now)),
                (1, withheld),
                "after {millis} ms"
            );
        }
    }

    #[test]
    fn a_replica_that_was_considered_dead_is_present_again_after_a_heartbeat() {
        let start = Instant::now();
        let mut members = members("r0", 2, start);
        members.update(
            [
                seen(0, Duration::ZERO),
                ReportedReplica {
                    has_left: true,
                    ..seen(1, Duration::ZERO)
                },
            ],
            start + SECOND,
        );
        assert_eq!(members.len(), 1);
        members.update(
            [seen(0, Duration::ZERO), seen(1, Duration::ZERO)],
            start + 2 * SECOND,
        );
        assert_eq!(
            (members.len(), members.part(FIVE, start + 2 * SECOND)),
            (2, NonZeroU32::new(3))
        );
    }

    #[test]
    fn only_a_connection_of_this_server_run_proves_a_replica_dead() {
        let start = Instant::now();
        let members = members("r0", 2, start);
        let vanished = |since, run| members.vanished(since, run, start + SECOND).count();
        assert_eq!(
            (vanished(start - SECOND, "run2"), vanished(start, "run2")),
            (1, 0)
        );
        assert_eq!(
            (vanished(start, "run1"), vanished(start, "")),
            (1, 0),
            "also a replica that died before this one started"
        );
        assert_eq!(
            members
                .vanished(start - SECOND, "run1", start + VANISHED)
                .count(),
            0
        );
    }

    #[test]
    fn the_part_of_a_replica_that_returned_with_another_connection_is_withheld_for_a_window() {
        let start = Instant::now();
        let mut members = members("r0", 2, start);
        // The store was frozen and processes an earlier heartbeat only now.
        members.update([seen(1, Duration::ZERO)], start + SECOND / 2);
        assert_eq!(members.withheld(FIVE, SECOND, start + SECOND / 2), 0);
        members.update(
            [ReportedReplica {
                connection_id: 8,
                ..seen(1, Duration::ZERO)
            }],
            start + SECOND,
        );
        assert_eq!(members.withheld(FIVE, SECOND, start + SECOND), 2);
        assert_eq!(
            members.withheld(FIVE, SECOND, start + 2 * SECOND - VANISHED),
            2
        );
        for half in [3, 4] {
            members.update(
                [ReportedReplica {
                    connection_id: 8,
                    ..seen(1, Duration::ZERO)
                }],
                start + half * SECOND / 2,
            );
        }
        assert_eq!(members.withheld(FIVE, SECOND, start + 2 * SECOND), 0);
    }

    #[test]
    fn a_store_that_lost_its_data_does_not_remove_other_replicas() {
        let start = Instant::now();
        let mut members = members("r0", 2, start);
        members.update([seen(0, Duration::ZERO)], start + 5 * SECOND);
        assert_eq!(
            (
                members.len(),
                members.withheld(FIVE, SECOND, start + 5 * SECOND)
            ),
            (2, 2)
        );
        members.update([seen(1, Duration::ZERO)], start + 6 * SECOND);
        // Tokens that it used before it returned are back after one window.
        assert_eq!(members.withheld(FIVE, SECOND, start + 6 * SECOND), 2);
        members.update([seen(1, Duration::ZERO)], start + 7 * SECOND - VANISHED);
        assert_eq!(
            members.withheld(FIVE, SECOND, start + 7 * SECOND - VANISHED),
            2
        );
        assert_eq!(members.withheld(FIVE, SECOND, start + 7 * SECOND), 0);
    }
}

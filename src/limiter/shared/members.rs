//! Who shares the quota, and what is each one's part while the store is away? Every replica knows the same list, as the
//! store last told it, and deals the tokens by rank in it. Only decides.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// The script that keeps the list.
pub(crate) const SOURCE: &str = include_str!("members.lua");
/// The connection of a replica of which that is not known: a cluster has many.
pub(crate) const UNKNOWN: u64 = 0;

/// Who has been silent for so long has vanished: it may have been cut off, and use its part. Three beats.
pub(crate) const VANISHED: Duration = Duration::from_millis(750);

/// The replicas as this one knows them.
#[derive(Debug)]
pub(super) struct Members {
    me: String,
    /// How long a replica that is cut off may use its part.
    lease: Duration,
    seen: BTreeMap<String, Member>,
    /// When the store first answered; or again, after so long that the others may have forgotten this replica.
    joined: Option<Instant>,
    /// When the store last answered.
    contact: Option<Instant>,
}

/// One replica.
#[derive(Debug)]
struct Member {
    /// When the store last saw it.
    at: Instant,
    /// The server's number of its connection.
    through: u64,
    /// The run of the server that gave this number; empty if it is not known.
    run: String,
    /// When it was first heard of again after it had vanished: what it did meanwhile is not over yet.
    back: Option<Instant>,
    /// It has left since then: it is listed only for what it did before it was back.
    has_left: bool,
}

/// One of the replicas as the store has it.
pub(super) struct Seen {
    pub(super) name: String,
    /// The server's number of its connection.
    pub(super) through: u64,
    /// The run of the server that gave this number; empty if it is not known.
    pub(super) run: String,
    /// For how long it has said nothing.
    pub(super) silent: Duration,
    /// It has left, or is known to be dead: it uses nothing any more.
    pub(super) has_left: bool,
}

/// The connection of this replica: the server's number of it, and the run of the server that gave it.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) connection: u64,
    pub(crate) run: String,
}

/// The script's arguments. To bury a replica takes its name and the connection that is known to be closed.
pub(crate) fn args(
    op: &str,
    me: &str,
    own: &Own,
    lease: Duration,
    buried: Option<(&str, u64)>,
) -> [Vec<u8>; 7] {
    let (name, through) = buried.map_or((String::new(), String::new()), |(name, through)| {
        (name.to_owned(), through.to_string())
    });
    let (connection, lease) = (own.connection.to_string(), lease.as_micros().to_string());
    [
        op.to_owned(),
        me.to_owned(),
        connection,
        own.run.clone(),
        lease,
        name,
        through,
    ]
    .map(String::into_bytes)
}

/// The script's answer; none if it is not one.
pub(super) fn read(answer: redis::Value) -> Option<Vec<Seen>> {
    let list: Vec<(String, u64, u64, bool, String)> = redis::from_redis_value(answer).ok()?;
    let seen = |(name, through, silent, has_left, run)| {
        let silent = Duration::from_micros(silent);
        Seen {
            name,
            through,
            run,
            silent,
            has_left,
        }
    };
    Some(list.into_iter().map(seen).collect())
}

// === impl Own ===

impl Own {
    /// That is not known.
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

    /// The store has answered who is there, and for how long each has been silent. `asked` is when the question left.
    pub(super) fn heard(&mut self, list: impl IntoIterator<Item = Seen>, asked: Instant) {
        for Seen {
            name,
            through,
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
            let new = || Member {
                at,
                through,
                run: run.clone(),
                back: None,
                has_left: false,
            };
            let member = self.seen.entry(name).or_insert_with(new);
            // Another connection: it was without the store meanwhile, also where what it had said before was heard late.
            if at > member.at + VANISHED || (member.through, &member.run) != (through, &run) {
                member.back = Some(asked);
            }
            member.at = at.max(member.at);
            (member.through, member.run) = (through, run);
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

    /// One has said good-bye, or is known to be dead.
    pub(super) fn left(&mut self, name: &str) {
        self.seen.remove(name);
    }

    /// How many there are, with those that have vanished.
    pub(super) fn len(&self) -> usize {
        self.seen.values().filter(|member| !member.has_left).count()
    }

    /// Those that have vanished, and their connections. The numbers of an earlier run of the server mean nothing to the one
    /// that is there now: a number counts if it is of this run, or if the store has seen the replica after `since`.
    pub(super) fn vanished(
        &self,
        since: Instant,
        run: &str,
        now: Instant,
    ) -> impl Iterator<Item = (String, u64)> {
        let is_of_this_run =
            move |member: &Member| member.at > since || (!run.is_empty() && member.run == run);
        let vanished = self
            .seen
            .iter()
            .filter(move |(name, _)| **name != self.me)
            .filter(move |(_, member)| {
                !member.has_left && member.has_vanished(now) && is_of_this_run(member)
            });
        vanished.map(|(name, member)| (name.clone(), member.through))
    }

    /// This replica's part of `count` tokens while the store is away: none if it has not seen the store for long enough that
    /// all the others have heard of it, none a moment before the others cease to withhold it.
    pub(super) fn part(&self, count: NonZeroU32, now: Instant) -> Option<NonZeroU32> {
        let (joined, contact) = (self.joined?, self.contact?);
        if contact < joined + VANISHED || now + VANISHED >= contact + self.lease {
            return None;
        }
        NonZeroU32::new(self.part_of(&self.me, count))
    }

    /// When the part ends.
    pub(super) fn part_ends(&self) -> Option<Instant> {
        Some(
            (self.contact? + self.lease)
                .checked_sub(VANISHED)
                .unwrap_or_else(Instant::now),
        )
    }

    /// What must not be used while the store is there, since those that have vanished may use it, or have within the last
    /// `window`.
    pub(super) fn withheld(&self, count: NonZeroU32, window: Duration, now: Instant) -> u32 {
        let may_use = |member: &Member| {
            (member.has_vanished(now) && !member.has_left)
                || member.back.is_some_and(|back| now < back + window)
        };
        let others = self
            .seen
            .iter()
            .filter(|(name, member)| **name != self.me && may_use(member));
        others.map(|(name, _)| self.part_of(name, count)).sum()
    }

    /// Its part among those that have not left.
    fn part_of(&self, name: &str, count: NonZeroU32) -> u32 {
        let there = || {
            self.seen
                .iter()
                .filter(|(other, member)| !member.has_left || *other == name)
        };
        let all = u32::try_from(there().count()).unwrap_or(u32::MAX).max(1);
        let Some(rank) = there().position(|(other, _)| other == name) else {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const FIVE: NonZeroU32 = NonZeroU32::new(5).unwrap();

    fn members(me: &str, all: u32, asked: Instant) -> Members {
        let mut members = Members::new(me.to_owned(), 60 * SECOND);
        // For long enough that all know of all.
        for asked in [asked - VANISHED, asked] {
            members.heard((0..all).map(|rank| seen(rank, Duration::ZERO)), asked);
        }
        members
    }

    fn seen(rank: u32, silent: Duration) -> Seen {
        Seen {
            name: format!("r{rank}"),
            through: 7,
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
    fn who_never_saw_the_store_has_no_part() {
        assert_eq!(
            Members::new("r0".to_owned(), 60 * SECOND).part(FIVE, Instant::now()),
            None
        );
    }

    #[test]
    fn who_has_just_joined_has_no_part_before_the_others_know_of_it() {
        let (start, ms) = (Instant::now(), Duration::from_millis(1));
        let mut alone = members("r0", 1, start);
        let mut joins = Members::new("r1".to_owned(), 60 * SECOND);
        let both = || [seen(0, Duration::ZERO), seen(1, Duration::ZERO)];
        let parts = |alone: &Members, joins: &Members, now| {
            [alone, joins].map(|members| members.part(FIVE, now))
        };
        let used = |count| NonZeroU32::new(count);
        joins.heard(both(), start + 50 * ms);
        assert_eq!(parts(&alone, &joins, start + 100 * ms), [used(5), None]);
        alone.heard(both(), start + 250 * ms);
        joins.heard(both(), start + 799 * ms);
        assert_eq!(parts(&alone, &joins, start + 799 * ms), [used(3), None]);
        joins.heard(both(), start + 800 * ms);
        assert_eq!(parts(&alone, &joins, start + 800 * ms), [used(3), used(2)]);
        // After its lease it is forgotten, and joins anew.
        let back = start + 800 * ms + 60 * SECOND;
        joins.heard(both(), back);
        assert_eq!(joins.part(FIVE, back), None);
        joins.heard(both(), back + VANISHED);
        assert_eq!(joins.part(FIVE, back + VANISHED), used(2));
    }

    #[test]
    fn a_part_is_withheld_from_the_others_for_longer_than_it_is_used() {
        let start = Instant::now();
        let cut_off = members("r0", 2, start);
        let mut other = members("r1", 2, start);
        for second in 1..100 {
            let now = start + second * SECOND;
            // The other goes on hearing of it, ever older.
            let list = [seen(0, second * SECOND), seen(1, Duration::ZERO)];
            other.heard(
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
    fn who_has_left_is_withheld_nothing() {
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
    fn one_that_is_listed_as_having_left_is_withheld_nothing_from_then_on() {
        let start = Instant::now();
        let mut members = members("r0", 3, start);
        let list = || {
            [
                seen(0, Duration::ZERO),
                Seen {
                    has_left: true,
                    ..seen(1, SECOND)
                },
                seen(2, Duration::ZERO),
            ]
        };
        for beat in 1..300 {
            let now = start + beat * SECOND / 4;
            members.heard(list(), now);
            assert_eq!(
                (members.len(), members.withheld(FIVE, SECOND, now)),
                (2, 0),
                "beat {beat}"
            );
        }
        assert_eq!(members.part(FIVE, start + 75 * SECOND), NonZeroU32::new(3));
    }

    #[test]
    fn what_one_did_before_it_was_back_is_withheld_for_a_window_though_it_leaves() {
        let start = Instant::now();
        let mut members = members("r0", 2, start);
        let left = || Seen {
            has_left: true,
            ..seen(1, Duration::ZERO)
        };
        // It was cut off for two seconds, comes back, and leaves at once.
        let back = start + 2 * SECOND;
        members.heard([seen(0, Duration::ZERO), seen(1, Duration::ZERO)], back);
        for (millis, withheld) in [(100, 2), (900, 2), (1000, 0), (5000, 0)] {
            let now = back + Duration::from_millis(millis);
            members.heard([seen(0, Duration::ZERO), left()], now);
            assert_eq!(
                (members.len(), members.withheld(FIVE, SECOND, now)),
                (1, withheld),
                "after {millis} ms"
            );
        }
    }

    #[test]
    fn one_that_was_thought_dead_and_is_heard_of_again_is_there() {
        let start = Instant::now();
        let mut members = members("r0", 2, start);
        members.heard(
            [
                seen(0, Duration::ZERO),
                Seen {
                    has_left: true,
                    ..seen(1, Duration::ZERO)
                },
            ],
            start + SECOND,
        );
        assert_eq!(members.len(), 1);
        members.heard(
            [seen(0, Duration::ZERO), seen(1, Duration::ZERO)],
            start + 2 * SECOND,
        );
        assert_eq!(
            (members.len(), members.part(FIVE, start + 2 * SECOND)),
            (2, NonZeroU32::new(3))
        );
    }

    #[test]
    fn only_who_was_seen_by_this_server_can_be_known_to_be_dead() {
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
            "also one that died before this one came"
        );
        assert_eq!(
            members
                .vanished(start - SECOND, "run1", start + VANISHED)
                .count(),
            0
        );
    }

    #[test]
    fn what_a_replica_did_before_it_came_back_through_another_connection_is_not_over() {
        let start = Instant::now();
        let mut members = members("r0", 2, start);
        // The store was frozen, and hears what it said before only now.
        members.heard([seen(1, Duration::ZERO)], start + SECOND / 2);
        assert_eq!(members.withheld(FIVE, SECOND, start + SECOND / 2), 0);
        members.heard(
            [Seen {
                through: 8,
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
            members.heard(
                [Seen {
                    through: 8,
                    ..seen(1, Duration::ZERO)
                }],
                start + half * SECOND / 2,
            );
        }
        assert_eq!(members.withheld(FIVE, SECOND, start + 2 * SECOND), 0);
    }

    #[test]
    fn an_empty_store_that_is_back_does_not_make_others_forgotten() {
        let start = Instant::now();
        let mut members = members("r0", 2, start);
        members.heard([seen(0, Duration::ZERO)], start + 5 * SECOND);
        assert_eq!(
            (
                members.len(),
                members.withheld(FIVE, SECOND, start + 5 * SECOND)
            ),
            (2, 2)
        );
        members.heard([seen(1, Duration::ZERO)], start + 6 * SECOND);
        // What it has sent before it came back is over a window later.
        assert_eq!(members.withheld(FIVE, SECOND, start + 6 * SECOND), 2);
        members.heard([seen(1, Duration::ZERO)], start + 7 * SECOND - VANISHED);
        assert_eq!(
            members.withheld(FIVE, SECOND, start + 7 * SECOND - VANISHED),
            2
        );
        assert_eq!(members.withheld(FIVE, SECOND, start + 7 * SECOND), 0);
    }
}

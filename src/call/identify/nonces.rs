//! Detects replays. Every nonce is remembered for as long as its timestamp would be accepted.
//!
//! The memory is bounded by a floor, not by forgetting nonces that could still be replayed: when
//! the memory of a client is full, the nonces of its earliest second are dropped, and calls with a
//! timestamp at or below that second are refused from then on. After a start the floor is five
//! seconds before the start, because the nonces of the previous process are not known. The floor of
//! relayed callers does not rise when their memory is full: their signatures are not verified here,
//! so any of them could raise it for all, and CAMS rejects their replays itself.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;

use super::signature_fields::WINDOW;
use crate::acs::{time, v3};
use crate::error::{Kind, Refusal};
use crate::primitives::id::{AccessKeyId, AccountId};

/// How much longer than the window a nonce is remembered, to tolerate a step of the clock.
const MARGIN: Duration = Duration::from_secs(60);
const COLD_START: Duration = Duration::from_secs(5);
/// Seconds between sweeps while there is room; a sweep visits all nonces.
const BETWEEN_SWEEPS: u64 = 60;
/// Nonces per client: sixteen minutes of 250 calls per second, the highest documented rate.
const DEFAULT_CAPACITY: usize = 1 << 18;

/// All nonces, by scope.
pub(crate) struct Nonces {
    /// A random key, so that a client cannot choose nonces that collide. A chance collision refuses
    /// about one call in 2^46.
    key: RandomState,
    capacity: usize,
    floor: u64,
    seen_by_scope: DashMap<NonceScope, SeenNonces>,
}

/// Whose nonces are remembered together. There is at most one scope per configured key and account,
/// and one for unknown keys.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum NonceScope {
    /// The key of a verified caller.
    Key(AccessKeyId),
    /// All relayed callers of an account.
    Relayed(AccountId),
    /// All callers with keys that are not configured.
    Unknown,
}

/// One use of a nonce.
pub(super) struct NonceUse<'a> {
    pub(super) scope: NonceScope,
    pub(super) key: &'a AccessKeyId,
    pub(super) nonce: &'a str,
    pub(super) stamp: SystemTime,
}

/// A nonce as replicas share it: a digest that does not reveal it, and until when it must be
/// remembered.
pub(crate) struct Nonce {
    pub(crate) digest: String,
    pub(crate) until: SystemTime,
}

/// The nonces of one scope: timestamps by digest. Times are seconds since 1970.
///
/// A nonce takes 13 bytes in a hash table that is between 1/2 and 7/8 full. Once a minute, and when
/// the table is full, old nonces are dropped and the table is resized.
struct SeenNonces {
    /// Whether the floor rises when the table is full.
    is_verified: bool,
    floor: u64,
    /// Time of the last sweep.
    swept: u64,
    seen: HashMap<Digest, u32>,
}

/// The hash of a nonce, in two parts, so that an entry has no padding.
type Digest = [u32; 2];

// === impl Nonces ===

impl Nonces {
    /// Without nonces, at the start of the process.
    pub(crate) fn new(now: SystemTime) -> Self {
        Self::with_capacity(now, DEFAULT_CAPACITY)
    }

    /// Like [`new`](Self::new), with another capacity per client.
    pub(crate) fn with_capacity(now: SystemTime, capacity: usize) -> Self {
        let floor = time::seconds(now).saturating_sub(COLD_START.as_secs());
        Self {
            key: RandomState::new(),
            capacity,
            floor,
            seen_by_scope: DashMap::new(),
        }
    }

    /// Takes a nonce if it is new. Checking and storing are one atomic step.
    pub(super) fn take(&self, nonce_use: &NonceUse<'_>, now: SystemTime) -> Result<(), Refusal> {
        let digest = self.digest(nonce_use);
        let is_verified = matches!(nonce_use.scope, NonceScope::Key(_));
        let mut seen_nonces = self
            .seen_by_scope
            .entry(nonce_use.scope.clone())
            .or_insert_with(|| SeenNonces::new(is_verified, self.floor, now));
        seen_nonces.take(digest, time::seconds(nonce_use.stamp), self.capacity, now)
    }

    /// Checks whether a nonce could be taken now.
    pub(super) fn check(&self, nonce_use: &NonceUse<'_>) -> Result<(), Refusal> {
        let Some(seen_nonces) = self.seen_by_scope.get(&nonce_use.scope) else {
            return Ok(());
        };
        seen_nonces.check_floor(time::seconds(nonce_use.stamp))?;
        if seen_nonces.seen.contains_key(&self.digest(nonce_use)) {
            return Err(used());
        }
        Ok(())
    }

    fn digest(&self, nonce_use: &NonceUse<'_>) -> Digest {
        let hash = self.key.hash_one((nonce_use.key.as_str(), nonce_use.nonce));
        [hash as u32, (hash >> 32) as u32]
    }

    /// Drops nonces whose timestamps are no longer accepted, also of idle holders. The floors stay.
    pub(crate) fn forget_idle(&self, now: SystemTime) {
        for mut seen_nonces in self.seen_by_scope.iter_mut() {
            if time::seconds(now).abs_diff(seen_nonces.swept) >= BETWEEN_SWEEPS {
                seen_nonces.sweep(now);
            }
        }
    }
}

// === impl Nonce ===

impl Nonce {
    pub(super) fn new(key: &AccessKeyId, nonce: &str, stamp: SystemTime) -> Self {
        // The length distinguishes "a", "bc" from "ab", "c".
        let text = format!("{}:{}:{nonce}", key.as_str().len(), key.as_str());
        Self {
            digest: v3::hash(text.as_bytes()),
            until: stamp + WINDOW + MARGIN,
        }
    }
}

/// The refusal of a nonce that was used before, here or at another replica.
pub(crate) fn used() -> Refusal {
    Refusal::new(
        Kind::NonceUsed,
        "Specified signature nonce was used already.",
    )
}

// === impl SeenNonces ===

impl SeenNonces {
    fn new(is_verified: bool, floor: u64, now: SystemTime) -> Self {
        Self {
            is_verified,
            floor,
            swept: time::seconds(now),
            seen: HashMap::new(),
        }
    }

    fn take(
        &mut self,
        digest: Digest,
        stamp: u64,
        capacity: usize,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        self.check_floor(stamp)?;
        if self.seen.contains_key(&digest) {
            return Err(used());
        }
        if self.seen.len() >= capacity || self.seen.len() == self.seen.capacity() {
            self.sweep(now);
        }
        while self.seen.len() >= capacity && self.drop_earliest() {}
        self.check_floor(stamp)?;
        // The timestamp was checked against the clock, so it is between 1970 and 2106.
        self.seen
            .insert(digest, u32::try_from(stamp).unwrap_or(u32::MAX));
        Ok(())
    }

    fn check_floor(&self, stamp: u64) -> Result<(), Refusal> {
        if stamp > self.floor {
            return Ok(());
        }
        Err(Refusal::new(
            Kind::TimestampExpired,
            "Specified time stamp or date value is expired: it is older than the nonces that \
             Flowgate remembers. Sign the call again with the current time.",
        ))
    }

    /// Drops nonces whose timestamps are no longer accepted, and resizes the table to 9/8 of the
    /// rest.
    fn sweep(&mut self, now: SystemTime) {
        self.swept = time::seconds(now);
        let oldest = time::seconds(now).saturating_sub((WINDOW + MARGIN).as_secs());
        self.drop_until(oldest.saturating_sub(1));
        let room = self.seen.len() + self.seen.len() / 8;
        // Removing entries does not shrink a table, and removed entries still count towards its
        // load.
        if room > self.seen.capacity() || room < self.seen.capacity().div_ceil(4) {
            let mut seen = HashMap::with_capacity(room);
            seen.extend(self.seen.drain());
            self.seen = seen;
        }
    }

    /// Drops the nonces of the earliest second. Returns false if there are none.
    fn drop_earliest(&mut self) -> bool {
        let Some(earliest) = self.seen.values().min().copied() else {
            return false;
        };
        let floor = self.floor;
        self.drop_until(u64::from(earliest));
        if !self.is_verified {
            self.floor = floor;
        }
        true
    }

    /// Drops all nonces up to a second, and raises the floor to the latest dropped timestamp.
    fn drop_until(&mut self, last: u64) {
        let floor = &mut self.floor;
        self.seen.retain(|_, stamp| {
            let stamp = u64::from(*stamp);
            let stays = stamp > last;
            if !stays {
                *floor = stamp.max(*floor);
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const START: u64 = 1_800_000_000;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    struct Client<'a>(&'a Nonces, &'static str);

    impl Client<'_> {
        /// Takes a nonce. Its timestamp and the time of arrival are seconds after the start.
        fn takes(&self, nonce: &str, stamp: u64, now: u64) -> Result<(), Kind> {
            let key = AccessKeyId::new(self.1);
            let nonce_use = NonceUse {
                scope: NonceScope::Key(key.clone()),
                key: &key,
                nonce,
                stamp: at(START + stamp),
            };
            self.0
                .take(&nonce_use, at(START + now))
                .map_err(|refusal| refusal.kind)
        }
    }

    #[test]
    fn a_nonce_is_accepted_once_whatever_its_timestamp() {
        let nonces = Nonces::new(at(START));
        let client = Client(&nonces, "a");
        assert_eq!(client.takes("n", 10, 10), Ok(()));
        assert_eq!(client.takes("n", 10, 10), Err(Kind::NonceUsed));
        assert_eq!(client.takes("n", 11, 11), Err(Kind::NonceUsed));
        assert_eq!(Client(&nonces, "b").takes("n", 10, 10), Ok(()));
    }

    #[test]
    fn a_nonce_is_remembered_longer_than_its_timestamp_is_accepted() {
        let nonces = Nonces::new(at(START));
        let client = Client(&nonces, "a");
        assert_eq!(client.takes("n", 900, 0), Ok(()));
        assert_eq!(client.takes("n", 900, 1860), Err(Kind::NonceUsed));
        // The nonce is dropped now, and its timestamp stays below the floor, even if the clock is
        // set back.
        nonces.forget_idle(at(START + 1861));
        assert_eq!(client.takes("n", 900, 1000), Err(Kind::TimestampExpired));
        assert_eq!(client.takes("n", 901, 1000), Ok(()));
    }

    #[test]
    fn overflow_raises_the_floor_and_replays_stay_refused() {
        let nonces = Nonces::with_capacity(at(START), 4);
        let client = Client(&nonces, "a");
        for (nonce, stamp) in [("1", 10), ("2", 10), ("3", 11), ("4", 12)] {
            assert_eq!(client.takes(nonce, stamp, 12), Ok(()));
        }
        assert_eq!(client.takes("5", 12, 12), Ok(()));
        for nonce in ["1", "2", "new"] {
            assert_eq!(client.takes(nonce, 10, 12), Err(Kind::TimestampExpired));
        }
        assert_eq!(client.takes("3", 11, 12), Err(Kind::NonceUsed));
        // Each client has its own memory.
        assert_eq!(Client(&nonces, "b").takes("1", 10, 12), Ok(()));
    }

    #[test]
    fn unverified_callers_do_not_raise_the_floor_for_others() {
        let nonces = Nonces::with_capacity(at(START), 4);
        for scope in [
            NonceScope::Unknown,
            NonceScope::Relayed(AccountId::new("partner")),
        ] {
            let now = at(START + 1);
            let many = AccessKeyId::new("many");
            for nonce in 0..9 {
                let nonce_use = NonceUse {
                    scope: scope.clone(),
                    key: &many,
                    nonce: &nonce.to_string(),
                    // From a clock that is 15 minutes ahead.
                    stamp: at(START + 899),
                };
                nonces.take(&nonce_use, now).unwrap();
            }
            let honest = AccessKeyId::new("honest");
            let nonce_use = NonceUse {
                scope,
                key: &honest,
                nonce: "1",
                stamp: now,
            };
            assert!(nonces.take(&nonce_use, now).is_ok());
            let refusal = nonces.take(&nonce_use, now).unwrap_err();
            assert_eq!(refusal.kind, Kind::NonceUsed);
        }
    }

    #[test]
    fn a_nonce_can_be_checked_without_being_taken() {
        let nonces = Nonces::new(at(START));
        let key = AccessKeyId::new("a");
        let nonce_use = NonceUse {
            scope: NonceScope::Key(key.clone()),
            key: &key,
            nonce: "n",
            stamp: at(START + 10),
        };
        assert!(nonces.check(&nonce_use).is_ok());
        assert!(nonces.check(&nonce_use).is_ok());
        nonces.take(&nonce_use, at(START + 10)).unwrap();
        let refusal = nonces.check(&nonce_use).unwrap_err();
        assert_eq!(refusal.kind, Kind::NonceUsed);
        let other = NonceUse {
            nonce: "m",
            ..nonce_use
        };
        assert!(nonces.check(&other).is_ok());
    }

    #[test]
    fn replays_after_a_restart_are_refused() {
        let client = |nonces: &Nonces| Client(nonces, "a").takes("n", 94, 95);
        assert_eq!(client(&Nonces::new(at(START))), Ok(()));
        assert_eq!(
            client(&Nonces::new(at(START + 99))),
            Err(Kind::TimestampExpired)
        );
        assert_eq!(client(&Nonces::new(at(START + 98))), Ok(()));
    }

    #[test]
    fn of_concurrent_takers_one_gets_the_nonce() {
        let nonces = Nonces::new(at(START));
        let taken = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| Client(&nonces, "a").takes("n", 1, 1).is_ok()))
                .collect();
            threads
                .into_iter()
                .map(|thread| usize::from(thread.join().unwrap()))
                .sum::<usize>()
        });
        assert_eq!(taken, 1);
    }

    #[test]
    fn old_nonces_are_dropped_without_another_call() {
        let nonces = Nonces::new(at(START));
        Client(&nonces, "a").takes("1", 10, 10).unwrap();
        let kept = (WINDOW + MARGIN).as_secs();
        nonces.forget_idle(at(START + 10 + kept));
        assert_eq!(
            Client(&nonces, "a").takes("1", 10, 10),
            Err(Kind::NonceUsed)
        );
        // The last sweep was a second ago.
        nonces.forget_idle(at(START + 11 + kept));
        assert_eq!(
            Client(&nonces, "a").takes("1", 10, 10),
            Err(Kind::NonceUsed)
        );
        nonces.forget_idle(at(START + 10 + kept + BETWEEN_SWEEPS));
        assert!(
            nonces
                .seen_by_scope
                .iter()
                .all(|seen_nonces| seen_nonces.seen.capacity() == 0)
        );
        assert_eq!(
            Client(&nonces, "a").takes("1", 10, 10),
            Err(Kind::TimestampExpired)
        );
    }

    #[test]
    fn a_steady_client_uses_no_more_memory_than_its_window_needs() {
        let nonces = Nonces::new(at(START));
        let client = Client(&nonces, "a");
        let most = |seconds: std::ops::Range<u64>| {
            let capacity = seconds.map(|second| {
                for call in 0..5 {
                    assert_eq!(
                        client.takes(&format!("{second}-{call}"), second, second),
                        Ok(())
                    );
                }
                if second % 60 == 0 {
                    nonces.forget_idle(at(START + second));
                }
                nonces.seen_by_scope.iter().next().unwrap().seen.capacity()
            });
            capacity.max().unwrap()
        };
        // The window holds 4,800 nonces; a table of 8,192 slots has a capacity of 7,168.
        assert_eq!(most(1..961), 7168);
        assert_eq!(most(961..10_000), 7168);
    }
}

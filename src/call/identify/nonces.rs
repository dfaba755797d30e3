//! Detects replays. Every nonce is remembered for as long as its timestamp would be accepted.
//!
//! The memory is bounded by a floor, not by forgetting nonces that could still be replayed: when
//! the memory of a client is full, the nonces of its earliest second are dropped, and calls with a
//! timestamp at or below that second are refused from then on. After a start the floor is five
//! seconds before the start, because the nonces of the previous process are not known. The floor of
//! relayed callers does not rise when their memory is full: their signatures are not verified here,
//! so any of them could raise it for all, and CAMS rejects their replays itself.
//!
//! A floor is a wall-clock time. If the clock was ahead when a floor was set, and is then
//! corrected, all calls would be refused until the clock has reached it again. A floor that is
//! ahead of the clock therefore lapses, by the monotonic clock, when the nonces that it stands for
//! have left the window.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::signature_fields::WINDOW;
use crate::acs::{time, v3};
use crate::error::{Kind, Refusal};
use crate::primitives::fast_map::{FastDashMap, FastMap};
use crate::primitives::id::{AccessKeyId, AccountId};

/// How much longer than the window a nonce is remembered, to tolerate a step of the clock.
const MARGIN: Duration = Duration::from_secs(60);
const COLD_START: Duration = Duration::from_secs(5);
/// Seconds between sweeps while there is room; a sweep visits all nonces.
const BETWEEN_SWEEPS: u64 = 60;
/// How long a floor that is ahead of the clock stays: the window, and part of the margin, so that
/// it ends within sixteen minutes although it is noticed only by the next [`Nonces::forget_idle`].
const LAPSE: Duration = Duration::from_secs(15 * 60 + 45);
/// How far a floor may be ahead of the clock without a warning.
const STEP: u64 = 30;
/// Nonces per client: sixteen minutes of 250 calls per second, the highest documented rate.
const DEFAULT_CAPACITY: usize = 1 << 18;

/// All nonces, by scope.
pub(crate) struct Nonces {
    /// A random key, so that a client cannot choose nonces that collide. A chance collision refuses
    /// about one call in 2^46.
    key: RandomState,
    capacity: usize,
    /// The floor of the start, which new scopes begin with.
    floor: AtomicU64,
    start: Mutex<StartFloor>,
    seen_by_scope: FastDashMap<NonceScope, SeenNonces>,
}

/// What is known of the floor of the start.
#[derive(Default)]
struct StartFloor {
    age: FloorAge,
    /// Whether it was reported that the clock was set back.
    is_reported: bool,
}

/// Since when a floor has been in force.
#[derive(Clone, Copy, Default)]
struct FloorAge(Option<(u64, Instant)>);

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
    floor_age: FloorAge,
    /// Time of the last sweep.
    swept: u64,
    seen: FastMap<Digest, u32>,
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
            floor: AtomicU64::new(floor),
            start: Mutex::default(),
            seen_by_scope: FastDashMap::default(),
        }
    }

    /// Takes a nonce if it is new. Checking and storing are one atomic step.
    pub(super) fn take(&self, nonce_use: &NonceUse<'_>, now: SystemTime) -> Result<(), Refusal> {
        let digest = self.digest(nonce_use);
        let is_verified = matches!(nonce_use.scope, NonceScope::Key(_));
        let mut seen_nonces = self
            .seen_by_scope
            .entry(nonce_use.scope.clone())
            .or_insert_with(|| {
                SeenNonces::new(is_verified, self.floor.load(Ordering::Relaxed), now)
            });
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

    /// Drops nonces whose timestamps are no longer accepted, also of idle holders. The floors stay,
    /// except those that lapse. `uptime` is the time of the monotonic clock.
    pub(crate) fn forget_idle(&self, now: SystemTime, uptime: Instant) {
        let start_floor = self.floor.load(Ordering::Relaxed);
        let has_lapsed = self.lapse_start(start_floor, now, uptime);
        for mut seen_nonces in self.seen_by_scope.iter_mut() {
            if time::seconds(now).abs_diff(seen_nonces.swept) >= BETWEEN_SWEEPS {
                seen_nonces.sweep(now);
            }
            let floor = seen_nonces.floor;
            if floor == start_floor {
                // A scope that is younger than the process began with the floor of the start.
                if has_lapsed {
                    seen_nonces.floor = 0;
                }
            } else if seen_nonces.floor_age.lapses(floor, now, uptime) {
                seen_nonces.floor = 0;
            }
        }
    }

    /// Ends the floor of the start when it lapses, and reports once that the clock was set back.
    fn lapse_start(&self, floor: u64, now: SystemTime, uptime: Instant) -> bool {
        let mut start = self.start.lock();
        let ahead = floor.saturating_sub(time::seconds(now));
        if ahead > STEP && !std::mem::replace(&mut start.is_reported, true) {
            tracing::warn!(
                seconds = ahead,
                "the clock was set back since the start: calls are refused for up to 16 minutes"
            );
        }
        if !start.age.lapses(floor, now, uptime) {
            return false;
        }
        self.floor.store(0, Ordering::Relaxed);
        true
    }
}

// === impl FloorAge ===

impl FloorAge {
    /// Whether this floor is ahead of the clock and has been in force long enough.
    fn lapses(&mut self, floor: u64, now: SystemTime, uptime: Instant) -> bool {
        match self.0 {
            Some((known, since)) if known == floor => {
                time::seconds(now) < floor && uptime.saturating_duration_since(since) >= LAPSE
            }
            _ => {
                self.0 = Some((floor, uptime));
                false
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
            floor_age: FloorAge::default(),
            swept: time::seconds(now),
            seen: FastMap::default(),
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
        while self.seen.len() >= capacity && self.drop_earliest(now) {}
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
        let seconds = self.floor - stamp + 1;
        Err(Refusal::new(
            Kind::TimestampExpired,
            format!(
                "Specified time stamp or date value is expired: it is {seconds} seconds older than \
                 the nonces that Flowgate remembers, which after a start are those since the start. \
                 Sign the call again. If it is refused again, the caller's clock is slow: correct \
                 it."
            ),
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
            let mut seen = FastMap::with_capacity_and_hasher(room, Default::default());
            seen.extend(self.seen.drain());
            self.seen = seen;
        }
    }

    /// Drops the nonces of the earliest second. Returns false if there are none.
    fn drop_earliest(&mut self, now: SystemTime) -> bool {
        let Some(earliest) = self.seen.values().min().copied() else {
            return false;
        };
        let floor = self.floor;
        self.drop_until(u64::from(earliest));
        // A stamp beyond the window is from before the clock was set back. It is not accepted now,
        // and a floor at it would refuse every call.
        let is_beyond = u64::from(earliest) > time::seconds(now + WINDOW);
        if !self.is_verified || is_beyond {
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
        nonces.forget_idle(at(START + 1861), Instant::now());
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
        nonces.forget_idle(at(START + 10 + kept), Instant::now());
        assert_eq!(
            Client(&nonces, "a").takes("1", 10, 10),
            Err(Kind::NonceUsed)
        );
        // The last sweep was a second ago.
        nonces.forget_idle(at(START + 11 + kept), Instant::now());
        assert_eq!(
            Client(&nonces, "a").takes("1", 10, 10),
            Err(Kind::NonceUsed)
        );
        nonces.forget_idle(at(START + 10 + kept + BETWEEN_SWEEPS), Instant::now());
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
                    nonces.forget_idle(at(START + second), Instant::now());
                }
                nonces.seen_by_scope.iter().next().unwrap().seen.capacity()
            });
            capacity.max().unwrap()
        };
        // The window holds 4,800 nonces; a table of 8,192 slots has a capacity of 7,168.
        assert_eq!(most(1..961), 7168);
        assert_eq!(most(961..10_000), 7168);
    }

    /// The clock is `ahead` seconds ahead at the start and is corrected after a minute. Returns the
    /// uptime in seconds at which a call with the right time is accepted.
    fn served_after(nonces: &Nonces, client: &Client<'_>, ahead: u64) -> u64 {
        let start = Instant::now();
        for uptime in (0..).step_by(2) {
            let wall = if uptime < 60 { ahead + uptime } else { uptime };
            let at_uptime = start + Duration::from_secs(uptime);
            nonces.forget_idle(at(START + wall), at_uptime);
            if uptime > 60 && client.takes(&uptime.to_string(), wall, wall).is_ok() {
                return uptime;
            }
        }
        unreachable!()
    }

    #[test]
    fn calls_are_served_soon_after_a_clock_that_was_ahead_is_corrected() {
        for (ahead, served) in [(600, 596), (8 * 3600, 946), (366 * 86_400, 946)] {
            let nonces = Nonces::new(at(START + ahead));
            let client = Client(&nonces, "a");
            assert_eq!(client.takes("ahead", ahead + 1, ahead + 1), Ok(()));
            assert_eq!(
                served_after(&nonces, &client, ahead),
                served,
                "{ahead} s ahead"
            );
            // Nonces of this process are still known.
            assert_eq!(
                client.takes("ahead", ahead + 1, ahead + 1),
                Err(Kind::NonceUsed)
            );
            // A scope that begins now accepts calls, too.
            assert_eq!(Client(&nonces, "b").takes("1", served, served), Ok(()));
        }
    }

    #[test]
    fn a_floor_that_rose_while_the_clock_was_ahead_lapses_too() {
        let nonces = Nonces::with_capacity(at(START), 2);
        let client = Client(&nonces, "a");
        let start = Instant::now();
        for nonce in 0..4 {
            assert_eq!(client.takes(&nonce.to_string(), 7200 + nonce, 7200), Ok(()));
        }
        nonces.forget_idle(at(START + 60), start);
        assert_eq!(client.takes("n", 60, 60), Err(Kind::TimestampExpired));
        nonces.forget_idle(at(START + 1004), start + LAPSE - Duration::from_secs(1));
        assert_eq!(client.takes("n", 1004, 1004), Err(Kind::TimestampExpired));
        nonces.forget_idle(at(START + 1005), start + LAPSE);
        assert_eq!(client.takes("n", 1005, 1005), Ok(()));
    }

    #[test]
    fn a_floor_behind_the_clock_never_lapses() {
        let nonces = Nonces::new(at(START));
        let start = Instant::now();
        for hours in 0..48 {
            let seconds = hours * 3600;
            nonces.forget_idle(at(START + seconds), start + Duration::from_secs(seconds));
        }
        let now = START - 10;
        let key = AccessKeyId::new("a");
        let nonce_use = NonceUse {
            scope: NonceScope::Key(key.clone()),
            key: &key,
            nonce: "n",
            stamp: at(now),
        };
        let refusal = nonces.take(&nonce_use, at(now)).unwrap_err();
        assert_eq!(refusal.kind, Kind::TimestampExpired);
    }
}

//! Was this call seen before? Every nonce is remembered for as long as its stamp would be accepted. The memory is bounded
//! by a floor and never by forgetting: when a client's part is full, its earliest second goes, and whatever is stamped
//! at or below that is too old from then on. After a start the floor is the start less five seconds, because nobody
//! knows what the process before had seen. Only callers whose signature nobody here can check have no floor that rises when
//! they are too many: any of them could raise it for all, and CAMS itself refuses their replays.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;

use super::words::WINDOW;
use crate::acs::{time, v3};
use crate::error::{Kind, Refusal};
use crate::primitives::id::{AccessKeyId, AccountId};

/// Longer than any step of the clock that is worth surviving.
const MARGIN: Duration = Duration::from_secs(60);
const COLD_START: Duration = Duration::from_secs(5);
/// Seconds that what is too old may stay while there is room: to look for it is to look at all.
const BETWEEN_SWEEPS: u64 = 60;
/// Per client: sixteen minutes of 250 calls a second, the highest documented rate.
const DEFAULT_CAPACITY: usize = 1 << 18;

/// All nonces, by whose memory they fill.
pub(crate) struct Nonces {
    /// A random key, so that nobody can choose nonces that collide. A chance collision refuses a call, once in 2^46.
    key: RandomState,
    capacity: usize,
    floor: u64,
    memories: DashMap<Holder, Memory>,
}

/// Whose memory a nonce fills. There are no more of them than the configuration has keys and accounts, and one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    /// A verified caller's key.
    Key(AccessKeyId),
    /// All relayed callers of an account.
    Relayed(AccountId),
    /// All callers under keys that the configuration does not name.
    Unknown,
}

/// One use of a nonce.
pub(super) struct Use<'a> {
    pub(super) holder: Holder,
    pub(super) key: &'a AccessKeyId,
    pub(super) nonce: &'a str,
    pub(super) stamp: SystemTime,
}

/// A nonce as replicas share it: what nobody can read, and until when it must be remembered.
pub(crate) struct Nonce {
    pub(crate) digest: String,
    pub(crate) until: SystemTime,
}

/// What one holder used, by digest, and its stamp. Times are seconds since 1970, as stamps are.
///
/// A nonce takes thirteen bytes in a table that is filled to between a half and seven eighths: once a minute,
/// and when the table is full, what is too old goes, and the rest moves to a table of its size.
struct Memory {
    /// Its floor rises when it is full.
    is_verified: bool,
    floor: u64,
    /// When what was too old went last.
    swept: u64,
    seen: HashMap<Digest, u32>,
}

/// A nonce's hash, in two parts: so an entry has no padding.
type Digest = [u32; 2];

// === impl Nonces ===

impl Nonces {
    /// An empty memory at the process's start.
    pub(crate) fn new(now: SystemTime) -> Self {
        Self::with_capacity(now, DEFAULT_CAPACITY)
    }

    /// As [`new`](Self::new), with another bound per client.
    pub(crate) fn with_capacity(now: SystemTime, capacity: usize) -> Self {
        let floor = time::seconds(now).saturating_sub(COLD_START.as_secs());
        Self {
            key: RandomState::new(),
            capacity,
            floor,
            memories: DashMap::new(),
        }
    }

    /// Takes a nonce, if it is new: looking and storing are one step.
    pub(super) fn take(&self, usage: &Use<'_>, now: SystemTime) -> Result<(), Refusal> {
        let digest = self.digest(usage);
        let is_verified = matches!(usage.holder, Holder::Key(_));
        let new = || Memory::new(is_verified, self.floor, now);
        let mut memory = self
            .memories
            .entry(usage.holder.clone())
            .or_insert_with(new);
        memory.take(digest, time::seconds(usage.stamp), self.capacity, now)
    }

    /// Whether a nonce could be taken now.
    pub(super) fn check(&self, usage: &Use<'_>) -> Result<(), Refusal> {
        let Some(memory) = self.memories.get(&usage.holder) else {
            return Ok(());
        };
        memory.check_floor(time::seconds(usage.stamp))?;
        match memory.seen.contains_key(&self.digest(usage)) {
            true => Err(used()),
            false => Ok(()),
        }
    }

    fn digest(&self, usage: &Use<'_>) -> Digest {
        let hash = self.key.hash_one((usage.key.as_str(), usage.nonce));
        [hash as u32, (hash >> 32) as u32]
    }

    /// Forgets what no stamp check would let pass again, also of those who do not call any more; the floors stay.
    pub(crate) fn forget_idle(&self, now: SystemTime) {
        let is_due = |memory: &Memory| time::seconds(now).abs_diff(memory.swept) >= BETWEEN_SWEEPS;
        self.memories
            .iter_mut()
            .filter(|memory| is_due(memory))
            .for_each(|mut memory| memory.sweep(now));
    }
}

// === impl Nonce ===

impl Nonce {
    pub(super) fn new(key: &AccessKeyId, nonce: &str, stamp: SystemTime) -> Self {
        // The length keeps "a", "bc" and "ab", "c" apart.
        let text = format!("{}:{}:{nonce}", key.as_str().len(), key.as_str());
        Self {
            digest: v3::hash(text.as_bytes()),
            until: stamp + WINDOW + MARGIN,
        }
    }
}

/// The answer to a nonce that was seen before, here or by another replica.
pub(crate) fn used() -> Refusal {
    Refusal::new(
        Kind::NonceUsed,
        "Specified signature nonce was used already.",
    )
}

// === impl Memory ===

impl Memory {
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
        // The stamp was checked against the clock: it is between 1970 and 2106.
        self.seen
            .insert(digest, u32::try_from(stamp).unwrap_or(u32::MAX));
        Ok(())
    }

    fn check_floor(&self, stamp: u64) -> Result<(), Refusal> {
        match stamp > self.floor {
            true => Ok(()),
            false => Err(Refusal::new(
                Kind::TimestampExpired,
                "Specified time stamp or date value is expired: it is older than what Flowgate remembers of used nonces.",
            )),
        }
    }

    /// Drops what no stamp check would let pass again, and has room for an eighth more in a table that fits.
    fn sweep(&mut self, now: SystemTime) {
        self.swept = time::seconds(now);
        let oldest = time::seconds(now).saturating_sub((WINDOW + MARGIN).as_secs());
        self.drop_until(oldest.saturating_sub(1));
        let room = self.seen.len() + self.seen.len() / 8;
        // A table that only lost entries is no smaller, and what they leave behind counts as taken.
        if room > self.seen.capacity() || room < self.seen.capacity().div_ceil(4) {
            let mut seen = HashMap::with_capacity(room);
            seen.extend(self.seen.drain());
            self.seen = seen;
        }
    }

    /// Drops the earliest second.
    fn drop_earliest(&mut self) -> bool {
        let (floor, earliest) = (self.floor, self.seen.values().min().copied());
        earliest
            .into_iter()
            .for_each(|stamp| self.drop_until(u64::from(stamp)));
        if !self.is_verified {
            self.floor = floor;
        }
        earliest.is_some()
    }

    /// Drops all up to a second, and raises the floor to the last that went.
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
        /// The answer to a nonce stamped and arriving at these seconds after the start.
        fn takes(&self, nonce: &str, stamp: u64, now: u64) -> Result<(), Kind> {
            let key = AccessKeyId::new(self.1);
            let usage = Use {
                holder: Holder::Key(key.clone()),
                key: &key,
                nonce,
                stamp: at(START + stamp),
            };
            self.0
                .take(&usage, at(START + now))
                .map_err(|refusal| refusal.kind)
        }
    }

    #[test]
    fn rule_16_a_nonce_is_new_once_whatever_its_stamp() {
        let nonces = Nonces::new(at(START));
        let client = Client(&nonces, "a");
        assert_eq!(client.takes("n", 10, 10), Ok(()));
        assert_eq!(client.takes("n", 10, 10), Err(Kind::NonceUsed));
        assert_eq!(client.takes("n", 11, 11), Err(Kind::NonceUsed));
        assert_eq!(Client(&nonces, "b").takes("n", 10, 10), Ok(()));
    }

    #[test]
    fn rule_16_nonces_outlive_their_stamps_window() {
        let nonces = Nonces::new(at(START));
        let client = Client(&nonces, "a");
        assert_eq!(client.takes("n", 900, 0), Ok(()));
        assert_eq!(client.takes("n", 900, 1860), Err(Kind::NonceUsed));
        // Now it is forgotten, and its stamp is below the floor for ever, also if the clock is set back.
        nonces.forget_idle(at(START + 1861));
        assert_eq!(client.takes("n", 900, 1000), Err(Kind::TimestampExpired));
        assert_eq!(client.takes("n", 901, 1000), Ok(()));
    }

    #[test]
    fn rule_17_overflow_raises_the_floor_and_replays_stay_refused() {
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
        // Another client's memory is its own.
        assert_eq!(Client(&nonces, "b").takes("1", 10, 12), Ok(()));
    }

    #[test]
    fn who_cannot_be_verified_raises_no_floor_for_the_others() {
        let nonces = Nonces::with_capacity(at(START), 4);
        for holder in [Holder::Unknown, Holder::Relayed(AccountId::new("partner"))] {
            let takes = |key: &str, nonce: &str, stamp: u64| {
                let key = AccessKeyId::new(key);
                nonces.take(
                    &Use {
                        holder: holder.clone(),
                        key: &key,
                        nonce,
                        stamp: at(START + stamp),
                    },
                    at(START + 1),
                )
            };
            // All from a clock that is a quarter of an hour ahead.
            (0..9).for_each(|nonce| takes("many", &nonce.to_string(), 899).unwrap());
            assert!(takes("honest", "1", 1).is_ok());
            assert_eq!(takes("honest", "1", 1).unwrap_err().kind, Kind::NonceUsed);
        }
    }

    #[test]
    fn a_nonce_is_looked_at_without_being_taken() {
        let nonces = Nonces::new(at(START));
        let key = AccessKeyId::new("a");
        let usage = |nonce, stamp| Use {
            holder: Holder::Key(key.clone()),
            key: &key,
            nonce,
            stamp: at(START + stamp),
        };
        let check = |nonce, stamp| {
            nonces
                .check(&usage(nonce, stamp))
                .map_err(|refusal| refusal.kind)
        };
        assert_eq!((check("n", 10), check("n", 10)), (Ok(()), Ok(())));
        nonces.take(&usage("n", 10), at(START + 10)).unwrap();
        assert_eq!(check("n", 10), Err(Kind::NonceUsed));
        assert_eq!(check("m", 10), Ok(()));
    }

    #[test]
    fn rule_17_after_a_restart_replays_are_refused() {
        let client = |nonces: &Nonces| Client(nonces, "a").takes("n", 94, 95);
        assert_eq!(client(&Nonces::new(at(START))), Ok(()));
        assert_eq!(
            client(&Nonces::new(at(START + 99))),
            Err(Kind::TimestampExpired)
        );
        assert_eq!(client(&Nonces::new(at(START + 98))), Ok(()));
    }

    #[test]
    fn of_many_at_once_one_takes_it() {
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
    fn what_is_too_old_goes_without_another_call() {
        let nonces = Nonces::new(at(START));
        Client(&nonces, "a").takes("1", 10, 10).unwrap();
        let kept = (WINDOW + MARGIN).as_secs();
        nonces.forget_idle(at(START + 10 + kept));
        assert_eq!(
            Client(&nonces, "a").takes("1", 10, 10),
            Err(Kind::NonceUsed)
        );
        // It was looked at a second ago.
        nonces.forget_idle(at(START + 11 + kept));
        assert_eq!(
            Client(&nonces, "a").takes("1", 10, 10),
            Err(Kind::NonceUsed)
        );
        nonces.forget_idle(at(START + 10 + kept + BETWEEN_SWEEPS));
        assert!(
            nonces
                .memories
                .iter()
                .all(|memory| memory.seen.capacity() == 0)
        );
        assert_eq!(
            Client(&nonces, "a").takes("1", 10, 10),
            Err(Kind::TimestampExpired)
        );
    }

    #[test]
    fn a_steady_client_takes_no_more_memory_than_its_window_needs() {
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
                nonces.memories.iter().next().unwrap().seen.capacity()
            });
            capacity.max().unwrap()
        };
        // The window holds 4,800, a table of 8,192 places 7,168.
        assert_eq!(most(1..961), 7168);
        assert_eq!(most(961..10_000), 7168);
    }
}

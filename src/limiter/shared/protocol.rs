//! What goes to `take.lua`, and what comes back? One kind of question, whatever the operation, and one kind of answer.
//! Times are microseconds of the store's clock; [`Clock`] turns them into ours without ever being early.

use std::time::Duration;

use tokio::time::Instant;

use crate::acs::v3;
use crate::config::{Learn, Limit, Retry};
use crate::id::ClientId;

/// The script itself.
pub(crate) const SOURCE: &str = include_str!("deal.lua");

/// How far ahead slots are dated: further than the replicas' questions are apart, and nearer than a window.
pub(crate) const AHEAD: Duration = Duration::from_millis(250);

/// A slot as the store knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dated {
    /// Which of the lane's tokens.
    pub(crate) token: u32,
    /// Not to be used before this.
    pub(crate) at: u64,
    /// When the token is back; changed by whoever dates it next.
    pub(crate) back: u64,
    /// It is the one attempt that goes after a pause.
    pub(crate) probe: bool,
}

/// What every operation says.
pub(crate) struct Question<'a> {
    pub(crate) replica: &'a str,
    pub(crate) limit: Limit,
    pub(crate) learn: Learn,
    pub(crate) slack: Duration,
    /// Tokens that may be in use at most, as others' parts are withheld.
    pub(crate) cap: u32,
    /// Calls that wait here without a slot.
    pub(crate) wanted: usize,
    /// The clients that wait here, and how many of their tenants.
    pub(crate) waiting: &'a [Waiting],
    /// Slots that were not used.
    pub(crate) unused: &'a [Dated],
    pub(crate) retry: &'a Retry,
}

/// A client that waits at this replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Nobody can read it, and all replicas make the same of a client's name.
    pub(crate) digest: String,
    pub(crate) weight: u32,
    pub(crate) tenants: usize,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Calls wait.
    Take,
    /// CAMS refused an attempt whose slot was dated `at`; `random` is in 0..1.
    Throttled { at: u64, hint: Option<Duration>, random: f64 },
    /// An attempt has another end.
    Ended { slot: Dated, how: How },
}

/// The end of an attempt that was not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Answered,
    Unknown,
    Unsent,
}

/// The lane as the store has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The store's time.
    pub(crate) now: u64,
    /// Nobody sends before this.
    pub(crate) open: u64,
    /// As the latest episode left it.
    pub(crate) learned: (u64, u32),
    /// Since when it has been quiet; 0 when there was no episode.
    pub(crate) quiet: u64,
    /// The back-off's level.
    pub(crate) level: u32,
    /// The pace of this moment.
    pub(crate) gap: u64,
    pub(crate) usable: u32,
    /// After how long to ask again; 0 for not at all.
    pub(crate) ask: u64,
    /// This replica's part of the lane's grants, in millionths.
    pub(crate) part: u64,
    /// The refusal was news.
    pub(crate) new_episode: bool,
    /// Dealt to this replica.
    pub(crate) slots: Vec<Dated>,
    /// When each token is back.
    pub(crate) back: Vec<u64>,
}

/// Where the store's clock stands against ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// When the question left, at the earliest.
    asked: Instant,
    /// When the answer was here, at the latest.
    answered: Instant,
    store: u64,
}

// === impl Op ===

impl Op {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Throttled { .. } => "throttled",
            Self::Ended { .. } => "ended",
        }
    }

    /// The script's arguments.
    pub(crate) fn args(&self, question: &Question<'_>) -> Vec<Vec<u8>> {
        let Question { replica, limit, learn, slack, cap, wanted, waiting, unused, retry } = question;
        let unused: Vec<String> = unused
            .iter()
            .map(|slot| format!("{}:{}:{}:{}", slot.token, slot.at, slot.back, u8::from(slot.probe)))
            .collect();
        let waiting: Vec<String> =
            waiting.iter().map(|client| format!("{}:{}:{}", client.digest, client.weight, client.tenants)).collect();
        let mut args = vec![
            self.name().to_owned(),
            (*replica).to_owned(),
            limit.count.to_string(),
            micros(limit.window).to_string(),
            micros(learn.gap).to_string(),
            micros(learn.max_gap.min(limit.window / 2).max(learn.gap)).to_string(),
            micros(*slack).to_string(),
            cap.to_string(),
            wanted.to_string(),
            waiting.join(","),
            micros(retry.max_pause).to_string(),
            unused.join(","),
            micros(AHEAD).to_string(),
        ];
        match self {
            Self::Take => {}
            Self::Throttled { at, hint, random } => {
                let hint = hint.map_or("-1".to_owned(), |hint| micros(hint).to_string());
                let (base, max) = (micros(retry.base).to_string(), micros(retry.max).to_string());
                args.extend([at.to_string(), hint, base, max, format!("{random:.6}")]);
            }
            Self::Ended { slot, how } => {
                let how = match how {
                    How::Answered => "answered",
                    How::Unknown => "unknown",
                    How::Unsent => "unsent",
                };
                let Dated { token, at, back, probe } = slot;
                args.extend([token.to_string(), at.to_string(), back.to_string()]);
                args.extend([u8::from(*probe).to_string(), how.to_owned()]);
            }
        }
        args.into_iter().map(String::into_bytes).collect()
    }
}

// === impl Waiting ===

impl Waiting {
    pub(crate) fn new(client: &ClientId, weight: u32, tenants: usize) -> Self {
        let mut digest = v3::hash(client.as_str().as_bytes());
        digest.truncate(16);
        Self { digest, weight, tenants }
    }
}

// === impl View ===

impl View {
    /// The script's answer; none if it is not one.
    pub(crate) fn read(numbers: &[i64]) -> Option<Self> {
        let number = |number: &i64| u64::try_from(*number).ok();
        let (head, rest) = numbers.split_at_checked(14)?;
        let head: Vec<u64> = head.iter().map(number).collect::<Option<_>>()?;
        let small = |number: u64| u32::try_from(number).ok();
        let (slots, back) = rest.split_at_checked(usize::try_from(head[13]).ok()?.checked_mul(4)?)?;
        let slot = |slot: &[i64]| {
            Some(Dated {
                token: u32::try_from(slot[0]).ok()?,
                at: number(&slot[1])?,
                back: number(&slot[2])?,
                probe: slot[3] == 1,
            })
        };
        Some(Self {
            now: head[0],
            open: head[1],
            learned: (head[2], small(head[3])?),
            quiet: head[4],
            level: small(head[5])?,
            gap: head[8],
            usable: small(head[9])?,
            ask: head[10],
            part: head[11],
            new_episode: head[12] == 1,
            slots: slots.chunks_exact(4).map(slot).collect::<Option<_>>()?,
            back: back.iter().map(number).collect::<Option<_>>()?,
        })
    }
}

// === impl Clock ===

impl Clock {
    pub(crate) fn new(asked: Instant, answered: Instant, store: u64) -> Self {
        Self { asked, answered, store }
    }

    /// The store's `at` is not after this.
    pub(crate) fn latest(&self, at: u64) -> Instant {
        shift(self.answered, at, self.store)
    }

    /// The store's `at` is not before this.
    pub(crate) fn earliest(&self, at: u64) -> Instant {
        shift(self.asked, at, self.store)
    }
}

fn shift(ours: Instant, at: u64, store: u64) -> Instant {
    match at.checked_sub(store) {
        Some(ahead) => ours + Duration::from_micros(ahead),
        None => ours.checked_sub(Duration::from_micros(store - at)).unwrap_or(ours),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX >> 12)
}

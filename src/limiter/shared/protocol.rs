//! What goes to `deal.lua`, and what comes back? One kind of question, whatever the operation, and one kind of answer.
//! Times are microseconds of the store's clock; `clock.rs` turns them into ours.

use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use crate::acs::v3;
use crate::config::Limit;
use crate::limiter::pause::PROBE_TIMEOUT;
use crate::primitives::id::ClientId;

/// The script itself.
pub(crate) const SOURCE: &str = include_str!("deal.lua");

/// How far ahead slots are dated: further than the replicas' questions are apart, and nearer than a window.
pub(crate) const AHEAD: Duration = Duration::from_millis(250);
/// How long before a slot's date a replica asks for it: longer than an answer takes, and so much shorter than `AHEAD` that
/// one answer has the slots of a tenth of a second.
const LEAD: Duration = Duration::from_millis(150);
/// The longest silence after which a replica is still dealt to.
const SILENCE: Duration = Duration::from_millis(600);
/// How often a replica asks while others have work, too.
const ASK: Duration = Duration::from_millis(100);
/// How soon it asks again at the earliest.
const SOON: Duration = Duration::from_millis(2);
/// Slots that one question can be dealt: 25 ms of a lane of 10,000 a second. It bounds the time that the store spends on
/// one question, in which every other lane of the server waits.
const SLOTS: u32 = 256;
/// Slots that are kept for other replicas until they ask. It bounds the size of the lane's state, which every question
/// reads and writes.
const KEPT: u32 = 256;
/// How many of the latest uses are searched for one that is given back or was late. One that is not found there stays
/// used for its whole window.
const DEPTH: u32 = 512;
/// Returns of tokens that are kept in the lane's state. More of them get a list of their own in the store, which costs a
/// hundred bytes and more time than a few numbers do.
const SHORT: u32 = 32;
/// The answer tells when each token is back, if they are no more than this.
const TOLD: u32 = 32;
/// Of more it has this many or more, evenly spread over them: one for each 400 ms of the window. Each
/// costs the store a look into the middle of a long list.
const SAMPLES: u32 = 3;
/// Slots given back with one question; more are given back with the next. It bounds the store's work, as `SLOTS` does.
pub(crate) const GIVEN_BACK: usize = 64;

/// A slot as the store knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dated {
    /// Not to be used before this.
    pub(crate) at: u64,
    /// When its token is back; names the slot to the store.
    pub(crate) back: u64,
    /// How long after its date it may be used: the token counts as used then.
    pub(crate) slack: u64,
    /// It is the one attempt that goes after a pause.
    pub(crate) probe: bool,
}

/// A slot that was used later than it allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Late {
    pub(crate) slot: Dated,
    /// It was used no later than this.
    pub(crate) used: u64,
}

/// What every operation says.
pub(crate) struct Question<'a> {
    pub(crate) replica: &'a str,
    pub(crate) limit: Limit,
    /// Tokens that may be in use, as this replica has learned.
    pub(crate) tokens: u32,
    /// The limit's window, stretched as this replica has learned.
    pub(crate) window: Duration,
    /// What is added to the window. Of all replicas with work the largest holds.
    pub(crate) gap: Duration,
    /// The least time between two dates, as this replica has learned.
    pub(crate) spacing: Duration,
    /// How late this replica may use a slot: what is configured, and how little it knows of the store's clock.
    pub(crate) slack: Duration,
    /// Tokens that may be in use at most, as others' parts are withheld.
    pub(crate) cap: u32,
    /// The version of the pace that `tokens` and `window` come from: 0 before the store has one. A question with another
    /// version than the store's is dealt nothing.
    pub(crate) version: u64,
    /// A new pace, if the version is still the store's.
    pub(crate) pace: Option<NewPace<'a>>,
    /// Calls that wait here without a slot. 0 takes back every earlier wish.
    pub(crate) wanted: usize,
    /// The clients that wait here, and how many of their tenants.
    pub(crate) waiting: &'a [Waiting],
    /// Slots that were not used.
    pub(crate) unused: &'a [Dated],
    /// Slots that were used too late.
    pub(crate) late: &'a [Late],
    /// The longest pause that CAMS can ask for.
    pub(crate) max_pause: Duration,
}

/// What the replicas have learned, for the store to keep. The store does not read it, so it has to say of which limit it
/// was learned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewPace<'a> {
    pub(crate) text: &'a str,
    /// How long it is worth keeping.
    pub(crate) lives: Duration,
}

/// A client that waits at this replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Not readable, and the same at all replicas for a client's name.
    pub(crate) digest: String,
    pub(crate) weight: u32,
    pub(crate) tenants: usize,
}

/// What happened.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Calls wait.
    Take,
    /// CAMS refused an attempt whose slot was dated `at`. No pauses: the refusal is isolated, and the lane goes on.
    Throttled { at: u64, pauses: Option<Pauses> },
    /// An attempt has another end.
    Ended { slot: Dated, how: How },
}

/// How long a lane pauses after a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pauses {
    /// If an episode begins with it.
    pub(crate) new: Duration,
    /// If its episode is known. None: the pause stays as it is.
    pub(crate) same: Option<Duration>,
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
    /// No slot is dated before this.
    pub(crate) open: u64,
    /// Episodes in a row: the back-off's level.
    pub(crate) level: u32,
    /// The refusal was news: an episode has begun, or would have if the refusal were not isolated.
    pub(crate) new_episode: bool,
    /// The pace's version was not that of the question, which was dealt nothing.
    pub(crate) stale: bool,
    pub(crate) version: u64,
    /// The pace, as the replica wrote it that wrote it last; empty before.
    pub(crate) pace: String,
    /// The gap in force.
    pub(crate) gap: u64,
    /// For how long a token is away after a slot's date.
    pub(crate) away: u64,
    pub(crate) usable: u32,
    /// Slots that the store still means to deal to this replica.
    pub(crate) wanted: u32,
    /// After how long to ask again if calls wait.
    pub(crate) ask: u64,
    /// This replica's part of the lane's grants, in millionths.
    pub(crate) part: u64,
    /// How many of the usable tokens have been used; the others are free.
    pub(crate) used: u32,
    /// When these are back, in order: all, or some that are evenly spread over them. None when all are back.
    pub(crate) back: Vec<u64>,
    /// Dealt to this replica.
    pub(crate) slots: Vec<Dated>,
}

/// An answer, with what it tells of the store's clock.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) view: View,
    /// The question left no earlier than this.
    pub(crate) sent: Instant,
    /// The answer was here no later than this.
    pub(crate) received: Instant,
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
        let Question {
            replica,
            limit,
            tokens,
            window,
            gap,
            spacing,
            slack,
            cap,
            ..
        } = question;
        let Question {
            version,
            pace,
            wanted,
            max_pause,
            ..
        } = question;
        let constants = [
            micros(AHEAD),
            micros(LEAD),
            micros(SILENCE),
            micros(ASK),
            micros(SOON),
            micros(PROBE_TIMEOUT),
        ];
        let samples = u32::try_from(limit.window.as_millis() / 400)
            .unwrap_or(TOLD)
            .clamp(SAMPLES, TOLD);
        let bounds = [SLOTS, KEPT, DEPTH, SHORT, TOLD, samples].map(u64::from);
        let numbers = [
            u64::from(limit.count.get()),
            micros(limit.window),
            u64::from(*tokens),
            micros(*window),
            micros(*gap),
            micros(*slack),
            u64::from(*cap),
            u64::try_from(*wanted).unwrap_or(u64::from(u32::MAX)),
            micros(*max_pause),
            *version,
            pace.map_or(0, |pace| micros(pace.lives)),
            micros(*spacing),
        ];
        let numbers: Vec<u64> = constants.into_iter().chain(bounds).chain(numbers).collect();
        let texts = [
            pace.map_or(String::new(), |pace| pace.text.to_owned()),
            list(question.waiting, |client| {
                format!("{}:{}:{}", client.digest, client.weight, client.tenants)
            }),
            list(question.unused, Dated::text),
            list(question.late, |late| {
                format!("{}:{}", late.slot.text(), late.used)
            }),
        ];
        let mut args = vec![self.name().into(), (*replica).into(), packed(&numbers)];
        args.extend(texts.map(String::into_bytes));
        match self {
            Self::Take => {}
            Self::Throttled { at, pauses } => {
                let text = |pause: Option<Duration>| {
                    pause.map_or("-1".to_owned(), |pause| micros(pause).to_string())
                };
                let new = pauses.map(|pauses| pauses.new);
                let same = pauses.and_then(|pauses| pauses.same);
                args.extend([at.to_string(), text(new), text(same)].map(String::into_bytes));
            }
            Self::Ended { slot, how } => {
                let how = match how {
                    How::Answered => "answered",
                    How::Unknown => "unknown",
                    How::Unsent => "unsent",
                };
                args.extend([slot.text().into_bytes(), how.into()]);
            }
        }
        args
    }
}

// === impl Dated ===

impl Dated {
    fn text(&self) -> String {
        format!(
            "{}:{}:{}:{}",
            self.at,
            self.back,
            self.slack,
            u8::from(self.probe)
        )
    }
}

// === impl Waiting ===

impl Waiting {
    pub(crate) fn new(client: &ClientId, weight: u32, tenants: usize) -> Self {
        let mut digest = v3::hash(client.as_str().as_bytes());
        digest.truncate(16);
        Self {
            digest,
            weight,
            tenants,
        }
    }
}

// === impl View ===

impl View {
    /// The script's answer; none if it is not one.
    pub(crate) fn read(answer: Value) -> Option<Self> {
        type Parts = (Vec<u64>, String, Vec<u64>, Vec<u64>);
        let (numbers, pace, back, slots): Parts = redis::from_redis_value(answer).ok()?;
        let [
            now,
            open,
            level,
            episode,
            stale,
            version,
            gap,
            away,
            usable,
            wanted,
            ask,
            part,
            used,
        ] = numbers.try_into().ok()?;
        let small = |number: u64| u32::try_from(number).ok();
        let slot = |slot: &[u64]| Dated {
            at: slot[0],
            back: slot[1],
            slack: slot[2],
            probe: slot[3] == 1,
        };
        let slots = slots.chunks_exact(4);
        if !slots.remainder().is_empty() {
            return None;
        }
        Some(Self {
            now,
            open,
            level: small(level)?,
            new_episode: episode == 1,
            stale: stale == 1,
            version,
            pace,
            gap,
            away,
            usable: small(usable)?,
            wanted: small(wanted)?,
            ask,
            part,
            used: small(used)?,
            back,
            slots: slots.map(slot).collect(),
        })
    }
}

fn list<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
    items.iter().map(text).collect::<Vec<_>>().join(",")
}

/// Numbers as MessagePack, an array of 64-bit integers: https://github.com/msgpack/msgpack/blob/master/spec.md.
fn packed(numbers: &[u64]) -> Vec<u8> {
    let length = u16::try_from(numbers.len()).unwrap_or(u16::MAX);
    let mut packed = vec![0xdc];
    packed.extend(length.to_be_bytes());
    for number in numbers {
        packed.push(0xcf);
        packed.extend(number.to_be_bytes());
    }
    packed
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX >> 12)
}

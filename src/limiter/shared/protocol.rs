//! The arguments of `deal.lua` and its answer, which have one form for all operations. Times are in
//! microseconds of the store's clock; `clock.rs` converts them.

use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use crate::acs::v3;
use crate::config::Limit;
use crate::limiter::pause::PROBE_TIMEOUT;
use crate::primitives::id::ClientId;

/// The script.
pub(crate) const SOURCE: &str = include_str!("deal.lua");

/// How far ahead slots are dated: longer than the interval of requests.
pub(crate) const AHEAD: Duration = Duration::from_millis(250);
/// How long before a slot's date a replica requests it: longer than a round trip, and 100 ms
/// shorter than `AHEAD`, so that one answer has the slots of 100 ms.
const LEAD: Duration = Duration::from_millis(150);
/// A replica that has been silent for longer gets no slots.
const VANISHED_AFTER: Duration = Duration::from_millis(600);
/// Interval of requests while other replicas have work too.
const ASK: Duration = Duration::from_millis(100);
/// Minimum interval of requests.
const SOON: Duration = Duration::from_millis(2);
/// Maximum number of slots in one answer: 25 ms of a lane with 10,000 calls per second. It bounds
/// the time that the store spends on one request, during which all other lanes wait.
const SLOTS: u32 = 256;
/// Maximum number of slots kept for other replicas. It bounds the size of the lane's state, which
/// every request reads and writes.
const KEPT: u32 = 256;
/// Number of recent uses that are searched for one that is given back or was late. A use that is
/// not found keeps its token for the whole window.
const DEPTH: u32 = 512;
/// Maximum number of returns of tokens that are kept in the lane's state. More of them get their
/// own list in the store, which costs a hundred bytes and more time than a few numbers do.
const SHORT: u32 = 32;
// The script searches a short ring whole.
const _: () = assert!(SHORT <= DEPTH);
/// Up to this number of tokens, the answer has the return time of each.
const LISTED: u32 = 32;
/// Minimum number of evenly spread samples of more tokens: the first and the last. There is one for
/// each 400 ms of the window. Each costs the store a lookup in the middle of a long list.
const SAMPLES: u32 = 2;
/// Maximum number of slots given back with one request. It bounds the store's work, like `SLOTS`.
pub(crate) const GIVEN_BACK: usize = 64;

/// A slot in the store's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DatedSlot {
    /// The earliest time of use.
    pub(crate) at: u64,
    /// When its token returns; identifies the slot in the store.
    pub(crate) back: u64,
    /// How long after its date it may be used.
    pub(crate) slack: u64,
    /// Whether it is the single attempt after a pause.
    pub(crate) probe: bool,
}

/// A slot that was used too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LateUse {
    pub(crate) slot: DatedSlot,
    /// An upper bound of the time of use.
    pub(crate) used: u64,
}

/// The arguments of every operation.
pub(crate) struct DealRequest<'a> {
    pub(crate) replica: &'a str,
    pub(crate) limit: Limit,
    /// The learned number of tokens.
    pub(crate) tokens: u32,
    /// The learned window.
    pub(crate) window: Duration,
    /// The gap added to the window. The largest of all replicas with work applies.
    pub(crate) gap: Duration,
    /// The learned minimum time between two dates.
    pub(crate) spacing: Duration,
    /// How late this replica may use a slot: the configured slack and the uncertainty of the clock.
    pub(crate) slack: Duration,
    /// Maximum number of tokens in use, because the parts of other replicas are withheld.
    pub(crate) cap: u32,
    /// The version of the pace that `tokens` and `window` come from; 0 before the store has one. A
    /// request with another version than the store's gets no slots.
    pub(crate) version: u64,
    /// A new pace, stored if the version is current.
    pub(crate) pace: Option<NewPace<'a>>,
    /// Number of waiting calls without a slot. 0 withdraws earlier requests.
    pub(crate) wanted: usize,
    /// The waiting clients.
    pub(crate) waiting: &'a [WaitingClient],
    /// Slots that were not used.
    pub(crate) unused: &'a [DatedSlot],
    /// Slots that were used too late.
    pub(crate) late: &'a [LateUse],
    /// The longest pause that CAMS can request.
    pub(crate) max_pause: Duration,
}

/// What the replicas have learned, kept by the store. The store does not interpret it, so the text
/// includes the limit for which it was learned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewPace<'a> {
    pub(crate) text: &'a str,
    /// How long the store keeps it.
    pub(crate) lives: Duration,
}

/// A client that waits at this replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WaitingClient {
    /// A hash of the client's name, equal at all replicas.
    pub(crate) digest: String,
    pub(crate) weight: u32,
    pub(crate) tenants: usize,
}

/// An operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    /// Requests slots for waiting calls.
    Take,
    /// CAMS throttled an attempt whose slot was dated `at`. Without pauses, the refusal is isolated
    /// and the lane continues.
    Throttled { at: u64, pauses: Option<Pauses> },
    /// An attempt ended in another way.
    Ended { slot: DatedSlot, how: AttemptEnd },
}

/// How long a lane pauses after a throttled attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pauses {
    /// If it begins an episode.
    pub(crate) new: Duration,
    /// If its episode is known. `None`: the pause is unchanged.
    pub(crate) same: Option<Duration>,
}

/// The end of an attempt that was not throttled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttemptEnd {
    Answered,
    Unknown,
    Unsent,
}

/// The store's view of the lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The store's time.
    pub(crate) now: u64,
    /// No slot is dated before this.
    pub(crate) open: u64,
    /// The back-off level: the number of consecutive episodes.
    pub(crate) level: u32,
    /// The refusal began a new episode, or would have if it were not isolated.
    pub(crate) new_episode: bool,
    /// The request had an old version of the pace and got no slots.
    pub(crate) stale: bool,
    pub(crate) version: u64,
    /// The latest pace; empty before the first.
    pub(crate) pace: String,
    /// The current gap.
    pub(crate) gap: u64,
    /// How long a token is unavailable after a slot's date.
    pub(crate) away: u64,
    pub(crate) usable: u32,
    /// Number of slots that the store will still deal to this replica.
    pub(crate) wanted: u32,
    /// Time until the next request if calls wait.
    pub(crate) next_request_after: u64,
    /// This replica's share of the lane's grants, in millionths.
    pub(crate) share: u64,
    /// How many of the usable tokens are in use.
    pub(crate) used: u32,
    /// When the used tokens return, sorted: all of them, or evenly spread samples.
    pub(crate) back: Vec<u64>,
    /// Slots dealt to this replica.
    pub(crate) slots: Vec<DatedSlot>,
}

/// An answer, with the times that bound the store's clock.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) view: View,
    /// The request was sent no earlier than this.
    pub(crate) sent: Instant,
    /// The answer arrived no later than this.
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

    /// Returns the script's arguments.
    pub(crate) fn args(&self, request: &DealRequest<'_>) -> Vec<Vec<u8>> {
        let mut args = vec![
            self.name().into(),
            request.replica.into(),
            packed(&request.numbers()),
        ];
        args.extend(request.texts().map(String::into_bytes));
        args.extend(self.own_args().into_iter().map(String::into_bytes));
        args
    }

    /// Returns the arguments that only this operation has.
    fn own_args(&self) -> Vec<String> {
        match self {
            Self::Take => Vec::new(),
            Self::Throttled { at, pauses } => {
                let new = pauses.map(|pauses| pauses.new);
                let same = pauses.and_then(|pauses| pauses.same);
                vec![at.to_string(), pause_text(new), pause_text(same)]
            }
            Self::Ended { slot, how } => vec![slot.text(), how.name().to_owned()],
        }
    }
}

// === impl AttemptEnd ===

impl AttemptEnd {
    fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Unknown => "unknown",
            Self::Unsent => "unsent",
        }
    }
}

// === impl DealRequest ===

impl DealRequest<'_> {
    /// The constants and this lane's numbers, in the order in which `deal.lua` unpacks them.
    fn numbers(&self) -> [u64; 24] {
        let samples = u32::try_from(self.limit.window.as_millis() / 400)
            .unwrap_or(LISTED)
            .clamp(SAMPLES, LISTED);
        [
            micros(AHEAD),
            micros(LEAD),
            micros(VANISHED_AFTER),
            micros(ASK),
            micros(SOON),
            micros(PROBE_TIMEOUT),
            u64::from(SLOTS),
            u64::from(KEPT),
            u64::from(DEPTH),
            u64::from(SHORT),
            u64::from(LISTED),
            u64::from(samples),
            u64::from(self.limit.count.get()),
            micros(self.limit.window),
            u64::from(self.tokens),
            micros(self.window),
            micros(self.gap),
            micros(self.slack),
            u64::from(self.cap),
            u64::try_from(self.wanted).unwrap_or(u64::from(u32::MAX)),
            micros(self.max_pause),
            self.version,
            self.pace.map_or(0, |pace| micros(pace.lives)),
            micros(self.spacing),
        ]
    }

    fn texts(&self) -> [String; 4] {
        [
            self.pace.map_or(String::new(), |pace| pace.text.to_owned()),
            list(self.waiting, |client| {
                format!("{}:{}:{}", client.digest, client.weight, client.tenants)
            }),
            list(self.unused, DatedSlot::text),
            list(self.late, |late| {
                format!("{}:{}", late.slot.text(), late.used)
            }),
        ]
    }
}

// === impl DatedSlot ===

impl DatedSlot {
    /// `numbers` has four elements.
    fn new(numbers: &[u64]) -> Self {
        Self {
            at: numbers[0],
            back: numbers[1],
            slack: numbers[2],
            probe: numbers[3] == 1,
        }
    }

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

// === impl WaitingClient ===

impl WaitingClient {
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
    /// Reads the script's answer; `None` if it has another form.
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
            next_request_after,
            share,
            used,
        ] = numbers.try_into().ok()?;
        let slots = slots.chunks_exact(4);
        if !slots.remainder().is_empty() {
            return None;
        }
        Some(Self {
            now,
            open,
            level: u32::try_from(level).ok()?,
            new_episode: episode == 1,
            stale: stale == 1,
            version,
            pace,
            gap,
            away,
            usable: u32::try_from(usable).ok()?,
            wanted: u32::try_from(wanted).ok()?,
            next_request_after,
            share,
            used: u32::try_from(used).ok()?,
            back,
            slots: slots.map(DatedSlot::new).collect(),
        })
    }
}

/// A pause in microseconds; -1 for none.
fn pause_text(pause: Option<Duration>) -> String {
    pause.map_or("-1".to_owned(), |pause| micros(pause).to_string())
}

fn list<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
    items.iter().map(text).collect::<Vec<_>>().join(",")
}

/// Encodes numbers as a MessagePack array of 64-bit integers
/// (<https://github.com/msgpack/msgpack/blob/master/spec.md>).
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

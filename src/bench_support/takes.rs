//! What does a replica ask of the store for one call? The benchmarks' door to `take.lua` and its arguments.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::config::{Learn, Limit, Retry};
use crate::id::ClientId;
use crate::limiter::shared::protocol::{Op, Question, SOURCE, View, Waiting};

/// The script.
pub const TAKE: &str = SOURCE;

/// The arguments with which a replica takes slots of a lane of 5/s for so many waiting calls.
pub fn take_args(replica: &str, wanted: usize) -> Vec<Vec<u8>> {
    let ms = Duration::from_millis;
    let question = Question {
        replica,
        limit: Limit { count: NonZeroU32::MIN.saturating_add(4), window: ms(1000) },
        learn: Learn { gap: ms(5), max_gap: ms(40) },
        slack: ms(15),
        cap: 5,
        wanted,
        waiting: &[Waiting::new(&ClientId::new("team"), 1, 1)],
        unused: &[],
        retry: &Retry { max_attempts: 10, base: ms(200), max: ms(8000), max_pause: ms(60_000) },
    };
    Op::Take.args(&question)
}

/// How many slots the script has dealt, and after how many microseconds it wants to be asked again; none if the answer is
/// not its own.
pub fn dealt(answer: &[i64]) -> Option<(usize, u64)> {
    View::read(answer).map(|view| (view.slots.len(), view.ask))
}

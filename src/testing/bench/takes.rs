//! Access for the benchmarks to `deal.lua` and its arguments: the store's work for one call.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::config::Limit;
use crate::limiter::shared::protocol::{DealRequest, Op, SOURCE, View, WaitingClient};
use crate::primitives::id::ClientId;

/// The script.
pub const TAKE: &str = SOURCE;

/// The arguments with which a replica takes slots of a lane of `count` per second for `wanted`
/// queued calls.
pub fn take_args(replica: &str, count: NonZeroU32, wanted: usize) -> Vec<Vec<u8>> {
    let ms = Duration::from_millis;
    let request = DealRequest {
        replica,
        limit: Limit {
            count,
            window: ms(1000),
        },
        tokens: count.get(),
        window: ms(1000),
        gap: ms(5),
        spacing: Duration::ZERO,
        slack: ms(15),
        cap: count.get(),
        version: 0,
        pace: None,
        wanted,
        waiting: &[WaitingClient::new(&ClientId::new("team"), 1, 1)],
        unused: &[],
        late: &[],
        max_pause: ms(60_000),
    };
    Op::Take.args(&request)
}

/// The number of slots that the script dealt, and after how many microseconds it must be called
/// again; `None` for an answer of another script.
pub fn dealt(answer: redis::Value) -> Option<(usize, u64)> {
    View::read(answer).map(|view| (view.slots.len(), view.next_request_after))
}

//! When may one more attempt leave? A lane's tokens: as many as its limit allows in a window, each usable again one
//! window plus the gap after *its own* use. A token is the right to send one attempt now; whose turn it is, is the
//! queue's business.
//!
//! No plain token bucket keeps "at most 5 in any second, the first five at once": with capacity 5 at 5/s it lets ten
//! calls into one second, with capacity 1 the fifth call after idleness waits 0.8 s. A clock per token does both.

pub(crate) mod memory;

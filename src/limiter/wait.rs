//! What a lane waits for, as each kind of token source reports it.

use tokio::time::Instant;

/// What a lane without a free token waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// A token becomes free then.
    Token(Instant),
    /// A slot's date, or the time of the next request to the store.
    Until(Instant),
    /// The store's answer; the request is to be sent now.
    SendRequest,
    /// Another event.
    Change,
}

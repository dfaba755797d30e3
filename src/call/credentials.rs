//! Waits until a call's account has a session. The wait is a part of the call's hold; calls of
//! accounts whose credentials are read with the configuration never wait here.

use tokio::time::Instant;

use super::identify::Sendable;
use super::services::CallServices;
use crate::config::SessionSource;
use crate::credentials::error::FetchError;
use crate::credentials::http::place;
use crate::error::{Kind, Refusal};
use crate::operation::Operation;

/// A call that waits for a session.
pub(super) struct SessionWait<'a> {
    pub(super) services: &'a CallServices,
    pub(super) call: &'a mut Sendable,
    pub(super) operation: &'a Operation,
    /// The generation of the configuration that the call was last checked with.
    pub(super) generation: &'a mut u64,
    /// Nothing is sent after this.
    pub(super) send_by: Instant,
}

// === impl SessionWait ===

impl SessionWait<'_> {
    /// Waits until there is a session, at most until the send-by time. A drain ends it only
    /// with its grace. After a reload the call waits for the source that its account has then.
    pub(super) async fn run(self) -> Result<(), Refusal> {
        let Self {
            services,
            call,
            operation,
            generation,
            send_by,
        } = self;
        let config_snapshot = services.current_config.load_full();
        let queue = &config_snapshot.config.queue;
        let _waiting =
            services
                .session_waits
                .enter(operation, queue, "a session of the account")?;
        drop(config_snapshot);
        loop {
            let config_snapshot = services.current_config.load_full();
            config_snapshot.recheck(call, &operation.account, generation)?;
            drop(config_snapshot);
            let Some(keeper) = call.missing_session().cloned() else {
                return Ok(());
            };
            tokio::select! {
                biased;
                () = services.current_config.replaced(*generation) => {}
                ready = keeper.ready(send_by) => {
                    return ready.map_err(|failure| no_session(keeper.source(), failure.as_ref()));
                }
            }
        }
    }
}

/// The refusal of a call whose account had no session by the end of its hold.
fn no_session(source: &SessionSource, failure: Option<&FetchError>) -> Refusal {
    // The cause first: readers of logs may cut the rest.
    let cause = match failure {
        Some(failure) => failure.to_string(),
        None => format!("{}: the source has not answered yet", place(source)),
    };
    let message = format!(
        "No session to sign with: {cause}. The source of this account's credentials ({}) returned \
         none within the call's hold. CAMS has done nothing. Report this to the operator of \
         Flowgate, or repeat the call later.",
        source.name()
    );
    Refusal::new(Kind::NoSession, message)
}

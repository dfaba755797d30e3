//! Sessions that CAMS refuses.

use super::*;
use crate::primitives::secret::Secret;

#[tokio::test(start_paused = true)]
async fn a_new_session_with_the_refused_key_id_is_another_session() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    let keeper = ready(&fake, oidc()).await;
    seconds(60).await;
    // The session that was refused had the same key id and another token.
    let refused = Credentials {
        security_token: Some(Secret::new("the token before")),
        ..credentials("STS.1")
    };
    assert!(keeper.replace(&refused, within(10)).await);
    assert_eq!(fake.requests(), 1, "the newer session is there already");
}

#[tokio::test(start_paused = true)]
async fn twenty_refused_calls_share_one_forced_refresh() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    let keeper = ready(&fake, oidc()).await;
    seconds(60).await;
    fake.set(Behaviour::Session(3600), 3000);
    let old = credentials("STS.1");
    let begun = Instant::now();
    let calls = (0..20_u64).map(|number| {
        let (keeper, old) = (&keeper, &old);
        async move {
            // Their answers arrive over two seconds, during the request.
            sleep(Duration::from_millis(number * 100)).await;
            keeper.replace(old, within(10)).await
        }
    });
    assert_eq!(join_all(calls).await, [true; 20]);
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    assert_eq!(
        (fake.requests(), key(&keeper).as_deref()),
        (2, Some("STS.2"))
    );
    // An answer to an attempt with the old session that comes later costs nothing.
    assert!(keeper.replace(&old, within(10)).await);
    assert_eq!(
        (fake.requests(), begun.elapsed()),
        (2, Duration::from_secs(3))
    );
}

#[tokio::test(start_paused = true)]
async fn a_second_forced_refresh_is_not_within_10_seconds() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    let keeper = ready(&fake, oidc()).await;
    seconds(60).await;
    assert!(keeper.replace(&credentials("STS.1"), within(10)).await);
    let begun = Instant::now();
    // The same session is tried again after its pause.
    assert!(keeper.replace(&credentials("STS.2"), within(10)).await);
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    assert_eq!(
        (fake.requests(), key(&keeper).as_deref()),
        (2, Some("STS.2"))
    );
    seconds(5).await;
    assert!(keeper.replace(&credentials("STS.2"), within(10)).await);
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    assert_eq!(
        (fake.requests(), key(&keeper).as_deref()),
        (3, Some("STS.3"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_session_is_not_used_until_another_one_is_there_or_its_pause_is_over() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    let keeper = ready(&fake, oidc()).await;
    seconds(60).await;
    fake.set(Behaviour::Fails(FailureKind::ServiceError), 0);
    let begun = Instant::now();
    let old = credentials("STS.1");
    let mut refused = Box::pin(keeper.replace(&old, within(20)));
    assert!(futures_util::poll!(&mut refused).is_pending());
    assert_eq!(key(&keeper), None);
    let error = keeper.ready(within(4)).await.unwrap_err().unwrap();
    assert_eq!(error.kind, FailureKind::ServiceError);
    assert_eq!(keeper.ready(within(4)).await, Ok(()));
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    assert_eq!(key(&keeper).as_deref(), Some("STS.1"));
    // The refused call waits for another one; the request is repeated with back-off.
    assert!(futures_util::poll!(&mut refused).is_pending());
    fake.set(Behaviour::Session(3600), 0);
    assert!(refused.await);
    assert_eq!(key(&keeper).as_deref(), Some("STS.2"));
    assert!(begun.elapsed() <= Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_refused_again_after_its_pause_is_replaced_after_10_seconds() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    let keeper = ready(&fake, oidc()).await;
    seconds(60).await;
    let begun = Instant::now();
    assert!(keeper.replace(&credentials("STS.1"), within(30)).await);
    seconds(2).await;
    assert!(keeper.replace(&credentials("STS.2"), within(30)).await);
    assert_eq!(begun.elapsed(), Duration::from_secs(7));
    // Fifty calls try it again, and wait for another one.
    let calls = (0..50).map(|_| async {
        let refused = credentials("STS.2");
        keeper.replace(&refused, within(30)).await
    });
    assert_eq!(join_all(calls).await, [true; 50]);
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    assert_eq!(
        (fake.requests(), key(&keeper).as_deref()),
        (3, Some("STS.3"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_source_that_returns_the_refused_session_again_ends_the_wait() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    let keeper = ready(&fake, oidc()).await;
    seconds(60).await;
    fake.set(Behaviour::Same(3000), 0);
    let begun = Instant::now();
    assert!(keeper.replace(&credentials("STS.1"), within(10)).await);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(
        (fake.requests(), key(&keeper).as_deref()),
        (2, Some("STS.1"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_forced_refresh_goes_ahead_of_the_back_off_and_its_failures_back_off() {
    let fake = Fake::new("STS.", Behaviour::Session(600));
    let keeper = ready(&fake, oidc()).await;
    fake.set(Behaviour::Fails(FailureKind::Refused), 0);
    seconds(430).await;
    let before = fake.requests();
    assert_eq!(before, 2, "once a minute");
    assert!(!keeper.replace(&credentials("STS.1"), within(10)).await);
    assert_eq!(fake.requests(), 3);
    seconds(49).await;
    assert_eq!(fake.requests(), 3);
    seconds(2).await;
    assert_eq!(fake.requests(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_joins_the_request_that_is_under_way_and_gives_up_in_time() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    let keeper = ready(&fake, oidc()).await;
    fake.set(Behaviour::Session(3600), 7000);
    until_under_way(&fake).await;
    let (begun, requests) = (Instant::now(), fake.requests());
    assert!(!keeper.replace(&credentials("STS.1"), within(1)).await);
    assert_eq!(begun.elapsed(), Duration::from_secs(1));
    assert!(keeper.replace(&credentials("STS.1"), within(10)).await);
    assert_eq!((fake.requests(), requests), (2, 2));
    assert_eq!(key(&keeper).as_deref(), Some("STS.2"));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_the_end_of_the_session_waits_for_the_next_request() {
    let fake = Fake::new("STS.", Behaviour::Session(600));
    let keeper = ready(&fake, oidc()).await;
    fake.set(Behaviour::Fails(FailureKind::Refused), 0);
    seconds(601).await;
    let requests = fake.requests();
    assert!(!keeper.replace(&credentials("STS.1"), within(1)).await);
    assert_eq!(fake.requests(), requests, "the back-off decides");
    fake.set(Behaviour::Session(600), 0);
    assert!(keeper.replace(&credentials("STS.1"), within(60)).await);
}

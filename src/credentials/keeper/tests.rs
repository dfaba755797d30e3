//! The policy, in simulated time: when the source is asked, what calls get meanwhile, and what a
//! service that fails, hangs or refuses costs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::super::error::FailureKind;
use super::super::pacing::BACKGROUND_AT_ONCE;
use super::super::service_limits::ServiceLimits;
use super::fake::{
    Behaviour, Fake, ROLE, assumed_from, assumed_with_key, credentials, ecs_role, oidc,
};
use super::*;

mod chain;
mod failures;
mod forced;
mod property;

/// A keeper that asks the fake.
fn keep(fake: &Arc<Fake>, source: SessionSource) -> Arc<Keeper> {
    keep_from(fake, source, None)
}

/// A keeper that assumes a role with the session of another one.
fn keep_from(fake: &Arc<Fake>, source: SessionSource, from: Option<&Arc<Keeper>>) -> Arc<Keeper> {
    keep_within(fake, source, from, &Arc::new(ServiceLimits::new()))
}

/// A keeper that shares the bounds of a service.
fn keep_within(
    fake: &Arc<Fake>,
    source: SessionSource,
    from: Option<&Arc<Keeper>>,
    limits: &Arc<ServiceLimits>,
) -> Arc<Keeper> {
    let obtain = Box::new(fake.clone());
    let keeper = Keeper::new(Arc::new(source), obtain, from.cloned(), limits.clone());
    Arc::new(keeper)
}

/// The key to sign with now.
fn key(keeper: &Keeper) -> Option<String> {
    let current = keeper.current()?;
    Some(current.access_key_id.as_str().to_owned())
}

/// So many seconds from now.
fn within(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

async fn seconds(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

/// Waits until a request is under way.
async fn until_under_way(fake: &Fake) {
    while fake.under_way.load(Ordering::Relaxed) == 0 {
        sleep(Duration::from_millis(100)).await;
    }
}

/// A keeper with its first session.
async fn ready(fake: &Arc<Fake>, source: SessionSource) -> Arc<Keeper> {
    let keeper = keep(fake, source);
    assert_eq!(keeper.ready(within(10)).await, Ok(()));
    keeper
}

#[tokio::test(start_paused = true)]
async fn a_session_of_an_hour_is_refreshed_between_2610_and_2700_seconds() {
    for seed in 0..200 {
        fastrand::seed(seed);
        let fake = Fake::new("STS.", Behaviour::Session(3600));
        let keeper = ready(&fake, oidc()).await;
        seconds(2700).await;
        sleep(Duration::from_millis(1)).await;
        let [gap] = fake.gaps()[..] else {
            panic!("{:?}", fake.begun.lock())
        };
        assert!((2_610_000..=2_700_000).contains(&gap), "{seed}: {gap}");
        assert_eq!(key(&keeper).as_deref(), Some("STS.2"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_calls_a_minute_share_a_session_of_15_minutes_until_570_to_600_seconds() {
    let fake = Fake::new("STS.", Behaviour::Session(900));
    let keeper = ready(&fake, assumed_with_key(ROLE)).await;
    for _ in 0..500 {
        assert_eq!(keeper.ready(within(0)).await, Ok(()));
        assert_eq!(key(&keeper).as_deref(), Some("STS.1"));
        sleep(Duration::from_millis(600)).await;
    }
    assert_eq!(fake.requests(), 1, "in five minutes");
    seconds(301).await;
    let [gap] = fake.gaps()[..] else {
        panic!("{:?}", fake.begun.lock())
    };
    assert!((570_000..=600_000).contains(&gap), "{gap}");
}

#[tokio::test(start_paused = true)]
async fn two_hundred_calls_without_a_session_share_one_request_of_7_seconds() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    fake.set(Behaviour::Session(3600), 7000);
    let keeper = keep(&fake, oidc());
    let begun = Instant::now();
    let calls = (0..200).map(|_| async {
        let ready = keeper.ready(within(10)).await;
        (ready, begun.elapsed(), key(&keeper))
    });
    for call in join_all(calls).await {
        let expected = (Ok(()), Duration::from_secs(7), Some("STS.1".to_owned()));
        assert_eq!(call, expected);
    }
    assert_eq!(fake.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn two_hundred_calls_in_the_refresh_window_share_one_request_and_do_not_wait() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    let keeper = ready(&fake, oidc()).await;
    fake.set(Behaviour::Session(3600), 7000);
    until_under_way(&fake).await;
    let begun = Instant::now();
    let calls = (0..200).map(|_| async { (keeper.ready(within(10)).await, key(&keeper)) });
    for call in join_all(calls).await {
        assert_eq!(call, (Ok(()), Some("STS.1".to_owned())));
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    seconds(7).await;
    assert_eq!(
        (fake.requests(), key(&keeper).as_deref()),
        (2, Some("STS.2"))
    );
}

#[tokio::test(start_paused = true)]
async fn callers_that_give_up_end_no_request() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    fake.set(Behaviour::Session(3600), 7000);
    let keeper = keep(&fake, oidc());
    let calls = join_all((0..20).map(|_| keeper.ready(within(1)))).await;
    assert!(calls.iter().all(|call| *call == Err(None)), "no answer yet");
    assert_eq!(keeper.ready(within(60)).now_or_never(), None);
    assert_eq!(keeper.shared.waiting.load(Ordering::Relaxed), 0);
    seconds(6).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        (fake.requests(), key(&keeper).as_deref()),
        (1, Some("STS.1"))
    );
}

#[tokio::test(start_paused = true)]
async fn the_keeper_and_its_request_end_with_its_last_user() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    fake.set(Behaviour::Session(3600), 7000);
    let keeper = keep(&fake, oidc());
    seconds(1).await;
    assert_eq!(fake.under_way.load(Ordering::Relaxed), 1);
    drop(keeper);
    seconds(1).await;
    assert_eq!(fake.under_way.load(Ordering::Relaxed), 0);
    assert_eq!(Arc::strong_count(&fake), 1, "the task has ended");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_forward_ends_the_session_and_the_next_call_obtains_another() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    let keeper = ready(&fake, oidc()).await;
    seconds(10).await;
    fake.slept.store(3600, Ordering::Relaxed);
    assert_eq!(key(&keeper), None);
    assert_eq!(fake.requests(), 1);
    assert_eq!(keeper.ready(within(1)).await, Ok(()));
    assert_eq!(
        (fake.requests(), key(&keeper).as_deref()),
        (2, Some("STS.2"))
    );
    // The clock is set back: the new session ends by the monotonic clock.
    fake.slept.store(0, Ordering::Relaxed);
    fake.set(Behaviour::Fails(FailureKind::Unreachable), 0);
    seconds(3599).await;
    assert_eq!(key(&keeper).as_deref(), Some("STS.2"));
    seconds(1).await;
    assert_eq!(key(&keeper), None);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_slept_into_the_window_refreshes_within_five_minutes_without_a_call() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    let keeper = ready(&fake, oidc()).await;
    seconds(100).await;
    fake.slept.store(2700, Ordering::Relaxed);
    seconds(200).await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(fake.gaps(), [300_000]);
    assert_eq!(key(&keeper).as_deref(), Some("STS.2"));
}

#[tokio::test(start_paused = true)]
async fn short_sessions_cause_at_most_one_request_a_second() {
    for lifetime in [1, 2, 3, 10] {
        let fake = Fake::new("STS.", Behaviour::Session(lifetime));
        let _keeper = ready(&fake, oidc()).await;
        seconds(120).await;
        let least = fake.gaps().into_iter().min().unwrap();
        assert!(least >= 1000, "{lifetime}: {least}");
        assert!(least >= lifetime * 1000 * 6 / 10, "{lifetime}: {least}");
    }
}

/// The metadata service returns the same session until shortly before its end.
#[tokio::test(start_paused = true)]
async fn a_service_that_repeats_its_session_is_asked_ever_later_but_not_all_the_time() {
    let fake = Fake::new("STS.", Behaviour::Session(21_600));
    let keeper = ready(&fake, ecs_role("flowgate-role")).await;
    let ends = Instant::now() + Duration::from_secs(21_600);
    while Instant::now() < ends - Duration::from_secs(2) {
        let left = (ends - Instant::now()).as_secs();
        fake.set(Behaviour::Same(left), 0);
        seconds(1).await;
        assert_eq!(key(&keeper).as_deref(), Some("STS.1"));
    }
    let requests = fake.requests();
    assert!((6..=10).contains(&requests), "{:?}", fake.begun.lock());
}

#[tokio::test(start_paused = true)]
async fn the_view_counts_by_kind_and_keeps_the_end_of_the_last_session() {
    let fake = Fake::new("STS.", Behaviour::Session(600));
    let keeper = ready(&fake, oidc()).await;
    let view = keeper.view();
    let start = super::fake::start_of_clock();
    assert_eq!(view.obtained_at, Some(start));
    assert_eq!(view.ends_at, Some(start + Duration::from_secs(600)));
    assert_eq!((view.succeeded, view.failed), (1, [0; 9]));
    fake.set(Behaviour::Fails(FailureKind::Throttled), 0);
    seconds(700).await;
    let view = keeper.view();
    assert_eq!(view.ends_at, Some(start + Duration::from_secs(600)));
    let (at, error) = view.failure.unwrap();
    assert_eq!(error, super::fake::error(FailureKind::Throttled));
    assert!(at.elapsed() <= Duration::from_secs(30));
    assert_eq!(
        view.failed[FailureKind::Throttled as usize],
        fake.requests() as u64 - 1
    );
    assert_eq!(view.failed.iter().sum::<u64>(), fake.requests() as u64 - 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_keepers_at_once_keep_the_bounds_and_an_awaited_one_goes_ahead() {
    let fake = Fake::new("STS.", Behaviour::Session(43_200));
    fake.set(Behaviour::Session(43_200), 100);
    let limits = Arc::new(ServiceLimits::new());
    let keepers: Vec<_> = (0..1000)
        .map(|number| {
            let source = assumed_with_key(&format!("{ROLE}-{number}"));
            keep_within(&fake, source, None, &limits)
        })
        .collect();
    seconds(1).await;
    assert!(fake.most.load(Ordering::Relaxed) <= BACKGROUND_AT_ONCE);
    // Calls for the last 20 sources, which are at the end of the queue.
    let begun = Instant::now();
    let calls = keepers[980..].iter().map(|keeper| keeper.ready(within(5)));
    assert!(join_all(calls).await.iter().all(Result::is_ok));
    assert!(
        begun.elapsed() < Duration::from_millis(600),
        "{:?}",
        begun.elapsed()
    );
    while fake.requests() < 1000 {
        seconds(1).await;
    }
    let begun = fake.begun.lock().clone();
    let busiest = begun
        .iter()
        .map(|from| {
            begun
                .iter()
                .filter(|at| (*from..from + 1000).contains(at))
                .count()
        })
        .max();
    assert!(busiest <= Some(51), "{busiest:?} a second");
    assert!(
        (19_000..21_000).contains(&fake.millis()),
        "{}",
        fake.millis()
    );
    seconds(1).await;
    assert!(keepers.iter().all(|keeper| keeper.current().is_some()));
    assert_eq!(fake.requests(), 1000);
}

/// As if STS answered some roles of another account only after a long time, while calls wait for all
/// of them.
#[tokio::test(start_paused = true)]
async fn roles_whose_requests_hang_do_not_take_the_session_of_another_role() {
    let hanging = Fake::new("STS.hanging", Behaviour::Session(3600));
    hanging.set(Behaviour::Session(3600), 30_000);
    let fake = Fake::new("STS.", Behaviour::Session(40));
    let flights = Arc::new(ServiceLimits::new());
    let others: Vec<_> = (0..150)
        .map(|number| {
            let source = assumed_with_key(&format!("{ROLE}-{number}"));
            keep_within(&hanging, source, None, &flights)
        })
        .collect();
    let calls = join_all(others.iter().map(|keeper| keeper.ready(within(200))));
    let good = async {
        seconds(1).await;
        let keeper = keep_within(&fake, assumed_with_key(ROLE), None, &flights);
        assert_eq!(keeper.ready(within(3)).await, Ok(()));
        for _ in 0..180 {
            seconds(1).await;
            assert!(keeper.current().is_some());
        }
    };
    let (calls, ()) = tokio::join!(calls, good);
    assert!(calls.iter().all(Result::is_err));
    assert!(hanging.requests() > 200, "{}", hanging.requests());
}

#[tokio::test(start_paused = true)]
async fn a_throttled_source_slows_all_sources_of_its_service() {
    let (throttled, fake) = (
        Fake::new("STS.", Behaviour::Fails(FailureKind::Throttled)),
        Fake::new("STS.", Behaviour::Session(3600)),
    );
    let flights = Arc::new(ServiceLimits::new());
    let _throttled = keep_within(&throttled, assumed_with_key(ROLE), None, &flights);
    sleep(Duration::from_millis(1)).await;
    let others: Vec<_> = (0..50)
        .map(|number| {
            let source = assumed_with_key(&format!("{ROLE}-{number}"));
            keep_within(&fake, source, None, &flights)
        })
        .collect();
    seconds(1).await;
    assert!((20..=26).contains(&fake.requests()), "{}", fake.requests());
    seconds(2).await;
    assert!(others.iter().all(|keeper| keeper.current().is_some()));
}

/// 100,000 accounts may have a source each. With the source, its session and its task a keeper takes
/// about 2.4 KB.
#[tokio::test]
async fn a_keeper_is_small() {
    let fake = Fake::new("STS.", Behaviour::Session(3600));
    let keeper = keep(&fake, oidc());
    let task = size_of_val(&refresh::run(keeper.shared.clone()));
    assert!(task + size_of::<Shared>() <= 1536, "{task}");
}

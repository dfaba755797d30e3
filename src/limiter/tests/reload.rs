//! Reloads while calls are queued: queued calls stay, used tokens stay used, and a changed limit
//! begins with all tokens just used.

use super::*;
use crate::config::{Account, AccountCredentials, Credentials, FlowNames, LoadedFrom};
use crate::limiter::lane::{Event, StoreTiming};
use crate::limiter::routes::Routes;
use crate::limiter::shared::QuotaSource;
use crate::limiter::view::LaneView;
use crate::primitives::id::{AccessKeyId, KeyPattern};
use crate::primitives::secret::Secret;

/// Reloads with this limit for the tests' action. `change` may change other settings.
pub(super) fn reload(
    harness: &Harness,
    limit: Option<(u32, u64)>,
    change: impl FnOnce(&mut Config),
) {
    let mut config = config::load(None, []).unwrap().config;
    let action = operation("a", SECOND).action;
    config.limits.clear();
    config.limits.extend(limit.map(|(count, ms)| {
        (
            action,
            Limit {
                count: NonZeroU32::new(count).unwrap(),
                window: Duration::from_millis(ms),
            },
        )
    }));
    config.queue = harness.bounds.clone();
    config.learn = config::Learn {
        gap: GAP,
        max_gap: 8 * GAP,
    };
    config.retry = RETRY;
    change(&mut config);
    harness.queue.reload(&config);
}

/// Starts `count` calls. Each returns when it was sent, since now, or its refusal.
fn start_calls(harness: &Harness, count: usize) -> JoinSet<Result<Duration, Refusal>> {
    let mut calls = JoinSet::new();
    let start = Instant::now();
    for _ in 0..count {
        let mut call = harness.arrive(100 * SECOND).unwrap();
        calls.spawn(async move {
            drop(call.permit().await?.spend());
            Ok(start.elapsed())
        });
    }
    calls
}

async fn left(calls: JoinSet<Result<Duration, Refusal>>) -> Vec<u128> {
    let mut left: Vec<_> = calls
        .join_all()
        .await
        .into_iter()
        .map(|left| left.unwrap().as_millis())
        .collect();
    left.sort_unstable();
    left
}

#[tokio::test(start_paused = true)]
async fn a_reload_with_the_same_limit_changes_nothing_for_queued_calls() {
    let harness = Harness::new(GAP).await;
    let calls = start_calls(&harness, 12);
    sleep(Duration::from_millis(300)).await;
    for _ in 0..10 {
        reload(&harness, Some((5, 1000)), |config| {
            config.queue.max_waiting = 20_000
        });
    }
    let expected = [[0_u128; 5].as_slice(), &[1005; 5], &[2010; 2]].concat();
    assert_eq!(left(calls).await, expected);
}

#[tokio::test(start_paused = true)]
async fn another_limit_begins_with_all_tokens_just_used() {
    for (limit, then) in [
        ((2, 1000), vec![1305, 1305, 2310]),
        ((10, 2000), vec![2305; 3]),
        ((5, 500), vec![805; 3]),
    ] {
        let harness = Harness::new(GAP).await;
        let calls = start_calls(&harness, 8);
        sleep(Duration::from_millis(300)).await;
        reload(&harness, Some(limit), |_| {});
        let view: LaneView = harness.view();
        assert_eq!((view.queued, view.tokens), (3, limit.0));
        assert_eq!(
            left(calls).await,
            [[0_u128; 5].as_slice(), &then].concat(),
            "{limit:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_limit_stays_in_force_for_queued_calls() {
    let harness = Harness::new(GAP).await;
    let calls = start_calls(&harness, 6);
    reload(&harness, None, |_| {});
    assert_eq!(left(calls).await, [0, 0, 0, 0, 0, 1005]);
}

#[tokio::test(start_paused = true)]
async fn a_permit_of_the_former_limit_is_invalid() {
    let harness = Harness::new(GAP).await;
    let permit = harness.arrive(SECOND).unwrap().permit().await.unwrap();
    reload(&harness, Some((2, 1000)), |_| {});
    assert!(permit.spend().is_none(), "its token is another limit's");
    let (granted, spent, returned) = harness.tokens();
    assert_eq!((granted, spent, returned), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn calls_that_a_lower_limit_makes_late_are_refused_immediately() {
    let harness = Harness::new(GAP).await;
    let start = Instant::now();
    let mut calls: Vec<_> = (0..10)
        .map(|_| harness.arrive(3 * SECOND).unwrap())
        .collect();
    let mut waiting = JoinSet::new();
    for mut call in calls.drain(..) {
        waiting.spawn(async move {
            call.permit()
                .await
                .map(|permit| drop(permit.spend()))
                .map_err(|_| start.elapsed())
        });
    }
    sleep(Duration::from_millis(100)).await;
    reload(&harness, Some((1, 1000)), |_| {});
    let ends = waiting.join_all().await;
    let refusals: Vec<_> = ends.iter().filter_map(|end| end.as_ref().err()).collect();
    assert_eq!(
        (
            refusals.len(),
            refusals.iter().all(|at| at.as_millis() == 100)
        ),
        (3, true),
        "{refusals:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_what_was_learned_and_a_pause() {
    let harness = Harness::new(GAP).await;
    let receipt = harness
        .arrive(SECOND)
        .unwrap()
        .permit()
        .await
        .unwrap()
        .spend()
        .unwrap()
        .1;
    receipt.throttled(Some(10 * SECOND));
    let before = harness.view();
    reload(&harness, Some((5, 1000)), |config| {
        config.retry.max_attempts = 3
    });
    let after = harness.view();
    assert!(
        after.pause_remaining_seconds > 9.9 && after.effective_per_second < 4.9,
        "{after:?}"
    );
    assert_eq!(before.effective_per_second, after.effective_per_second);
}

#[tokio::test(start_paused = true)]
async fn changed_bounds_apply_to_calls_that_arrive_after_the_reload() {
    let harness = Harness::new(GAP).await;
    let calls = start_calls(&harness, 8);
    sleep(Duration::from_millis(10)).await;
    reload(&harness, Some((5, 1000)), |config| {
        config.queue.max_waiting = 3
    });
    assert_eq!(
        harness
            .arrive(10 * SECOND)
            .unwrap()
            .permit()
            .await
            .err()
            .unwrap()
            .kind,
        Kind::QueueFull
    );
    reload(&harness, Some((5, 1000)), |config| {
        config.queue.max_bytes = 100
    });
    assert!(
        harness.queue.arrive(&operation("b", SECOND), 60).is_err(),
        "a client may use half of the memory"
    );
    assert_eq!(left(calls).await.len(), 8);
}

/// An account with these aliases and credentials.
fn account(id: &str, aliases: &[&str], credentials: Option<(&str, Option<&str>)>) -> Account {
    let credentials = credentials.map(|(key, token)| Credentials {
        access_key_id: AccessKeyId::new(key),
        secret: Secret::new("secret"),
        security_token: token.map(Secret::new),
        expires: None,
    });
    let credentials =
        credentials.map(|credentials| AccountCredentials::Loaded(credentials, LoadedFrom::Keys));
    let aliases = aliases.iter().map(|key| KeyPattern::new(*key)).collect();
    Account {
        id: AccountId::new(id),
        credentials,
        profile: None,
        aliases,
        upstream: None,
        flow_names: FlowNames::Any,
        adopt_repeats: false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_whose_calls_another_one_may_have_sent_begins_with_all_tokens_just_used() {
    let five = Some((5, 1000));
    let accounts = |accounts: &[Account]| {
        let accounts = accounts.to_vec();
        move |config: &mut Config| config.accounts = accounts
    };
    let [acme, other] = ["acme", "other"].map(|id| account(id, &["one"], None));
    let more = account("acme", &["one", "two"], None);
    let managed = |key, token| account("acme", &[], Some((key, token)));
    let cold = [1005, 1005, 1005, 1005, 1005, 2010];
    let warm = [0, 0, 0, 0, 0, 1005];
    for (what, before, limit, after, expected) in [
        ("nothing", &acme, five, &acme, warm),
        ("an id", &other, five, &acme, cold),
        ("an alias", &acme, five, &more, cold),
        (
            "a key",
            &managed("one", None),
            five,
            &managed("two", None),
            cold,
        ),
        (
            "a temporary key",
            &managed("one", Some("first")),
            five,
            &managed("two", Some("second")),
            warm,
        ),
        ("the limit", &acme, None, &acme, cold),
    ] {
        let harness = Harness::new(GAP).await;
        reload(&harness, limit, accounts(std::slice::from_ref(before)));
        sleep(10 * SECOND).await;
        reload(&harness, five, accounts(std::slice::from_ref(after)));
        assert_eq!(left(start_calls(&harness, 6)).await, expected, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_shadow_queue_of_such_a_lane_begins_with_all_tokens_just_used() {
    let mut harness = Harness::new(GAP).await;
    Arc::get_mut(&mut Arc::get_mut(&mut harness.queue).unwrap().inner)
        .unwrap()
        .mode = Mode::Observe;
    reload(&harness, Some((5, 1000)), |config| {
        config.accounts = vec![account("acme", &["one"], None)]
    });
    harness.arrive(SECOND).unwrap();
    assert_eq!(harness.view().shadow.unwrap().predicted_wait_seconds, 1.005);
}

#[tokio::test(start_paused = true)]
async fn every_source_begins_with_all_tokens_of_a_changed_limit_just_used() {
    let mut harness = Harness::new(GAP).await;
    let settings = config::Store::on(config::Topology::Single, &[1]);
    let quota = Quota::open(
        &settings,
        config::OnStoreFailure::Share,
        harness.metrics.clone(),
    )
    .unwrap();
    Arc::get_mut(&mut Arc::get_mut(&mut harness.queue).unwrap().inner)
        .unwrap()
        .quota = Some(quota.clone());
    let lane = harness.queue.lane(&operation("a", SECOND));
    let now = Instant::now();
    let count = NonZeroU32::new(2).unwrap();
    let since = now - 8 * SECOND;
    for (quota_source, limit, free, more) in [
        (
            QuotaSource::Part { count, since },
            (5, 1000),
            2,
            Duration::ZERO,
        ),
        (
            QuotaSource::Part { count, since },
            (4, 1000),
            0,
            SECOND + GAP,
        ),
        (
            QuotaSource::Store { since },
            (3, 1000),
            0,
            SECOND + GAP + quota.slack(),
        ),
    ] {
        reload(&harness, Some(limit), |_| {});
        let mut locked = lane.lock();
        drop(locked.handle(Event::SourceChanged {
            quota_source,
            store: StoreTiming::of(&quota),
        }));
        let source = locked.state.lane.source();
        let next = source
            .forecast(now, now, locked.state.lane.rate(now), Vec::new())
            .unwrap()
            .at(0);
        assert_eq!(
            (source.free(now), next - now),
            (free, more),
            "{quota_source:?}, {limit:?}"
        );
    }
}

#[tokio::test]
async fn a_changed_limit_applies_where_the_store_deals_the_tokens() {
    let server = crate::servers::Redis::start().await;
    let harness = Harness::sharing(&server).await;
    let calls = start_calls(&harness, 8);
    sleep(Duration::from_millis(300)).await;
    reload(&harness, Some((2, 1000)), |_| {});
    let left = left(calls).await;
    assert!(
        left[..5].iter().all(|at| *at < 1000) && left[5] >= 1000,
        "{left:?}"
    );
    assert!(
        left[7] - left[5] >= 1000,
        "two in a second from now on: {left:?}"
    );
    assert_eq!(harness.view().tokens, 2);
}

#[tokio::test]
async fn replicas_with_different_limits_do_not_lock_each_other_out() {
    let server = crate::servers::Redis::start().await;
    let fleet = super::replicas::fleet(&server, 2).await;
    reload(&fleet[1], Some((2, 1000)), |_| {});
    let one = start_calls(&fleet[0], 8);
    let other = start_calls(&fleet[1], 8);
    let (one, other) = tokio::join!(left(one), left(other));
    let mut all = [one, other].concat();
    all.sort_unstable();
    // On a busy machine two tasks may be scheduled some milliseconds late.
    assert!(all.windows(6).all(|six| six[5] - six[0] >= 950), "{all:?}");
}

/// A second connector for all accounts. Returns what it did.
fn reroute(harness: &Harness) -> Arc<ConnectorState> {
    let state = Arc::new(ConnectorState::default());
    harness
        .queue
        .reroute(Routes::from(Arc::new(TestConnector(state.clone()))));
    state
}

#[tokio::test(start_paused = true)]
async fn queued_calls_of_a_moved_account_get_connections_of_its_new_upstream() {
    let harness = Harness::new(GAP).await;
    let calls = start_calls(&harness, 12);
    // The worker holds a connection of the earlier upstream while it waits for a token.
    sleep(Duration::from_millis(300)).await;
    let opened = harness.connector.open.load(Ordering::Relaxed);
    assert_eq!(opened, 1);
    let state = reroute(&harness);
    reload(&harness, Some((5, 1000)), |_| {});
    sleep(Duration::from_millis(1)).await;
    assert_eq!(
        harness.connector.open.load(Ordering::Relaxed),
        0,
        "given back"
    );
    assert_eq!(state.open.load(Ordering::Relaxed), 1, "taken instead");
    let expected = [[0_u128; 5].as_slice(), &[1005; 5], &[2010; 2]].concat();
    assert_eq!(left(calls).await, expected);
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_an_upstream_that_is_down_move_to_the_new_one() {
    let harness = Harness::new(GAP).await;
    harness.connector.is_down.store(true, Ordering::Relaxed);
    let calls = start_calls(&harness, 3);
    sleep(Duration::from_millis(500)).await;
    reroute(&harness);
    reload(&harness, Some((5, 1000)), |_| {});
    assert_eq!(left(calls).await, [500; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_is_created_after_a_reroute_uses_the_new_upstream() {
    let harness = Harness::new(GAP).await;
    let state = reroute(&harness);
    let permit = harness.arrive(SECOND).unwrap().permit().await.unwrap();
    assert_eq!(state.open.load(Ordering::Relaxed), 1);
    assert_eq!(harness.connector.open.load(Ordering::Relaxed), 0);
    drop(permit);
}

//! The pace, in simulated time.

use std::future::{pending, ready};

use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::time::sleep;

use super::super::error::FailureKind;
use super::super::keeper::fake::error;
use super::*;

async fn millis(millis: u64) {
    sleep(Duration::from_millis(millis)).await;
}

/// Sends `count` requests at once, each of which takes `takes` ms. Returns when they began, in
/// milliseconds.
async fn begins(
    pacing: &Arc<Pacing>,
    count: usize,
    asked: Asked,
    is_awaited: bool,
    takes: u64,
) -> Vec<u128> {
    let start = Instant::now();
    let requests = (0..count).map(|_| async {
        let awaited = async {
            if !is_awaited {
                pending::<()>().await;
            }
        };
        let _permit = pacing.permit(asked, awaited).await;
        let begun = start.elapsed().as_millis();
        millis(takes).await;
        begun
    });
    join_all(requests).await
}

fn some(number: u64) -> Asked {
    match number % 3 {
        0 => Asked::Forced,
        1 => Asked::Healthy,
        _ => Asked::Failed,
    }
}

/// A request that is repeated after it was throttled.
fn repeated(throttled_times: u32) -> Asked {
    if throttled_times > 0 {
        Asked::Failed
    } else {
        Asked::Healthy
    }
}

fn throttled() -> FetchError {
    error(FailureKind::Throttled)
}

#[tokio::test(start_paused = true)]
async fn at_most_fifty_requests_begin_in_a_second() {
    let pacing = Pacing::new();
    let begun = begins(&pacing, 500, Asked::Healthy, true, 0).await;
    for (place, at) in begun.iter().enumerate() {
        let second = begun[place..].iter().take_while(|it| **it < at + 1000);
        assert!(second.count() <= 50);
    }
    assert!((9_980..10_500).contains(begun.last().unwrap()));
    // What was not used is not saved up.
    millis(60_000).await;
    let begun = begins(&pacing, 51, Asked::Healthy, true, 0).await;
    assert!(*begun.last().unwrap() >= 1000);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_concurrent_requests_is_bounded_by_their_kind() {
    for (asked, is_awaited, at_once) in [
        (Asked::Healthy, true, AWAITED_AT_ONCE),
        (Asked::Healthy, false, BACKGROUND_AT_ONCE),
        (Asked::Failed, true, FAILED_AT_ONCE),
        (Asked::Failed, false, FAILED_AT_ONCE),
    ] {
        let begun = begins(&Pacing::new(), 300, asked, is_awaited, 10_000).await;
        let of_first = begun.iter().filter(|at| **at < 10_000);
        assert_eq!(of_first.count(), at_once);
    }
}

#[tokio::test(start_paused = true)]
async fn a_throttled_request_halves_the_rate_which_rises_by_one_each_second() {
    let pacing = Pacing::new();
    let first = pacing.permit(Asked::Healthy, ready(())).await;
    let second = pacing.permit(Asked::Healthy, ready(())).await;
    first.failed(&error(FailureKind::Unreachable));
    assert_eq!(pacing.rate(), 50.0);
    millis(10).await;
    second.failed(&throttled());
    assert_eq!(pacing.rate(), 25.0);
    // They began before, or in the same second.
    first.failed(&throttled());
    let third = pacing.permit(Asked::Healthy, ready(())).await;
    third.failed(&throttled());
    assert_eq!(pacing.rate().floor(), 25.0);
    millis(5_000).await;
    assert_eq!(pacing.rate().floor(), 30.0);
    let fourth = pacing.permit(Asked::Healthy, ready(())).await;
    fourth.failed(&throttled());
    assert_eq!(pacing.rate().floor(), 15.0);
    for _ in 0..20 {
        millis(1000).await;
        pacing
            .permit(Asked::Healthy, ready(()))
            .await
            .failed(&throttled());
    }
    assert!(pacing.rate() < 3.0, "{}", pacing.rate());
    assert!(pacing.rate() >= 1.0);
    millis(60_000).await;
    assert_eq!(pacing.rate(), 50.0);
}

#[tokio::test(start_paused = true)]
async fn a_slower_rate_spaces_the_requests() {
    let pacing = Pacing::new();
    for _ in 0..10 {
        millis(1000).await;
        pacing
            .permit(Asked::Healthy, ready(()))
            .await
            .failed(&throttled());
    }
    let rate = pacing.rate();
    let begun = begins(&pacing, 6, Asked::Healthy, true, 0).await;
    let took = *begun.last().unwrap() as f64 / 1000.0;
    assert!((rate..rate + took).contains(&(5.0 / took)), "{begun:?}");
}

#[tokio::test(start_paused = true)]
async fn awaited_requests_go_ahead_also_if_the_call_comes_later() {
    let pacing = Pacing::new();
    let background = begins(&pacing, 100, Asked::Healthy, false, 0);
    let called_later = async {
        let start = Instant::now();
        drop(pacing.permit(Asked::Healthy, millis(1000)).await);
        start.elapsed().as_millis()
    };
    let awaited = async {
        millis(500).await;
        begins(&pacing, 3, Asked::Healthy, true, 0).await
    };
    let (background, called_later, awaited) = tokio::join!(background, called_later, awaited);
    assert!((1000..=1040).contains(&called_later), "{called_later}");
    assert!(awaited.iter().all(|at| *at <= 80), "{awaited:?}");
    assert!(*background.last().unwrap() >= 2000);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_refused_is_replaced_first() {
    let pacing = Pacing::new();
    let awaited = begins(&pacing, 100, Asked::Healthy, true, 0);
    let forced = async {
        millis(500).await;
        begins(&pacing, 1, Asked::Forced, false, 0).await
    };
    let (_, forced) = tokio::join!(awaited, forced);
    assert!(forced[0] <= 40, "{forced:?}");
}

#[tokio::test(start_paused = true)]
async fn sources_that_failed_and_hang_do_not_delay_the_others() {
    let pacing = Pacing::new();
    let hanging = begins(&pacing, 200, Asked::Failed, true, 10_000);
    let healthy = async {
        let mut latest = 0;
        for _ in 0..50 {
            millis(700).await;
            let begun = begins(&pacing, 1, Asked::Healthy, false, 100).await;
            latest = latest.max(begun[0]);
        }
        latest
    };
    let (hanging, latest) = tokio::join!(hanging, healthy);
    assert!(latest <= 40, "{latest}");
    let last = *hanging.last().unwrap();
    assert!((120_000..130_000).contains(&last), "{last}");
}

#[tokio::test(start_paused = true)]
async fn sources_that_failed_get_every_fourth_request_while_others_wait() {
    let pacing = Pacing::new();
    let healthy = begins(&pacing, 300, Asked::Healthy, true, 0);
    let failed = begins(&pacing, 50, Asked::Failed, true, 0);
    let (healthy, failed) = tokio::join!(healthy, failed);
    let last = *failed.last().unwrap();
    assert!((3_900..=4_100).contains(&last), "{last}");
    assert!((6_900..=7_100).contains(healthy.last().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn those_that_give_up_free_their_places() {
    fastrand::seed(1);
    let pacing = Pacing::new();
    let all = (0..400).map(|number: u64| {
        let pacing = &pacing;
        async move {
            let give_up = millis(fastrand::u64(0..3_000));
            let awaited = millis(fastrand::u64(0..3_000));
            let request = async {
                let _permit = pacing.permit(some(number), awaited).await;
                millis(fastrand::u64(0..1_000)).await;
            };
            tokio::select! {
                () = request => {}
                () = give_up => {}
            }
        }
    });
    join_all(all).await;
    {
        let queues = pacing.0.lock();
        assert_eq!(queues.under_way, [0; 3]);
        assert!(queues.healthy.is_empty() && queues.failed.is_empty());
        assert!(!queues.is_beginning);
    }
    assert!(begins(&pacing, 1, Asked::Failed, false, 0).await[0] <= 20);
}

#[tokio::test(start_paused = true)]
async fn one_that_is_dropped_before_its_request_begins_is_followed_by_the_next() {
    let pacing = Pacing::new();
    let first = pacing.permit(Asked::Healthy, ready(())).await;
    let mut given_up = Box::pin(pacing.permit(Asked::Healthy, ready(())));
    assert!((&mut given_up).now_or_never().is_none());
    let mut next = Box::pin(pacing.permit(Asked::Healthy, ready(())));
    assert!((&mut next).now_or_never().is_none());
    drop(given_up);
    drop(next.await);
    drop(first);
    assert_eq!(pacing.0.lock().under_way, [0; 3]);
}

/// An STS with a quota of 100 requests a second, for all replicas.
#[tokio::test(start_paused = true)]
async fn four_replicas_come_to_share_a_quota() {
    let quota = Mutex::new((Instant::now(), 0));
    let is_throttled = || {
        let mut quota = quota.lock();
        if quota.0.elapsed() >= Duration::from_secs(1) {
            *quota = (Instant::now(), 0);
        }
        quota.1 += 1;
        quota.1 > 100
    };
    let (replicas, start) = ([(); 4].map(|()| Pacing::new()), Instant::now());
    let sources = replicas.iter().flat_map(|pacing| vec![pacing; 1500]);
    let served = sources.map(|pacing| async {
        let mut throttled_times = 0;
        loop {
            let permit = pacing.permit(repeated(throttled_times), ready(())).await;
            if !is_throttled() {
                return throttled_times;
            }
            permit.failed(&throttled());
            throttled_times += 1;
            drop(permit);
            millis(1000).await;
        }
    });
    let throttled: u32 = join_all(served).await.iter().sum();
    assert!(throttled < 1_000, "{throttled} of 6000");
    let took = start.elapsed().as_secs();
    assert!((60..120).contains(&took), "{took} s");
}

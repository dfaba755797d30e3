//! Fair shares: which calls delay others, and which do not.

use super::*;

/// Queues a call of a (client, weight, tenant). It returns its client, its result and the time of
/// that.
fn queue(
    harness: &Harness,
    calls: &mut JoinSet<(String, Result<(), Kind>, Instant)>,
    who: (&str, u32, &str),
    hold: Duration,
) {
    let (client, weight, tenant) = who;
    let operation = Operation {
        weight,
        tenant: TenantId::new(tenant),
        ..operation(client, hold)
    };
    let mut call = harness.queue.arrive(&operation, 10).unwrap();
    let client = client.to_owned();
    calls.spawn(async move {
        let end = call
            .permit()
            .await
            .map(|permit| permit.spend().unwrap().1.answered())
            .map_err(|refusal| refusal.kind);
        (client, end, Instant::now())
    });
}

#[tokio::test(start_paused = true)]
async fn a_thousand_invented_tenants_of_one_client_do_not_delay_anothers_first() {
    let harness = Harness::new(GAP).await;
    let mut calls = JoinSet::new();
    for index in 0..1000 {
        queue(
            &harness,
            &mut calls,
            ("A", 1, &format!("tenant-{index}")),
            3600 * SECOND,
        );
    }
    sleep(3 * SECOND).await;
    let start = Instant::now();
    for _ in 0..5 {
        queue(&harness, &mut calls, ("B", 1, ""), 3600 * SECOND);
    }
    let mut calls_of_b = Vec::new();
    while calls_of_b.len() < 5 {
        let (client, end, at) = calls.join_next().await.unwrap().unwrap();
        assert_eq!(end, Ok(()));
        if client == "B" {
            calls_of_b.push(at - start);
        }
    }
    // The next five tokens come at 3 x 1005 - 3000 = 15 ms and a window later: every second one is
    // for B.
    let windows: Vec<_> = calls_of_b.iter().map(Duration::as_millis).collect();
    assert_eq!(windows, [15, 15, 15, 1020, 1020]);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_tenants_with_one_call_each_are_served_at_the_full_rate() {
    let harness = Harness::with(GAP, |bounds| bounds.max_waiting_per_client = 10_000).await;
    let mut calls = JoinSet::new();
    let start = Instant::now();
    for index in 0..10_000 {
        queue(
            &harness,
            &mut calls,
            ("A", 1, &format!("tenant-{index}")),
            3600 * SECOND,
        );
    }
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.unwrap().1, Ok(()));
    }
    assert_eq!(start.elapsed(), (SECOND + GAP) * (10_000 / 5 - 1));
}

#[tokio::test(start_paused = true)]
async fn calls_that_a_later_arrival_makes_late_are_refused_immediately() {
    let harness = Harness::new(GAP).await;
    let mut calls = JoinSet::new();
    let start = Instant::now();
    // The last five of A's thirty calls are due at 5025 ms, just within their hold.
    for _ in 0..30 {
        queue(&harness, &mut calls, ("A", 1, ""), 5100 * SECOND / 1000);
    }
    sleep(Duration::from_millis(100)).await;
    for _ in 0..5 {
        queue(&harness, &mut calls, ("B", 1, ""), 5100 * SECOND / 1000);
    }
    let mut ends = BTreeMap::new();
    while let Some(call) = calls.join_next().await {
        let (client, end, at) = call.unwrap();
        let at = if end.is_ok() {
            "in time".to_owned()
        } else {
            format!("{} ms", (at - start).as_millis())
        };
        *ends.entry((client, format!("{end:?}"), at)).or_insert(0) += 1;
    }
    let line = |client: &str, end: &str, at: &str, count| {
        ((client.to_owned(), end.to_owned(), at.to_owned()), count)
    };
    let expected = [
        line("A", "Err(WaitTooLong)", "120 ms", 5),
        line("A", "Ok(())", "in time", 25),
        line("B", "Ok(())", "in time", 5),
    ];
    assert_eq!(ends, BTreeMap::from(expected));
}

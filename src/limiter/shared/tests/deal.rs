//! The script on a real server. Nothing here says how soon the server must be; only what it may
//! deal, and what it may not.

use tokio::time::sleep;

use super::*;
use crate::limiter::shared::protocol::{AHEAD, AttemptEnd, DatedSlot, LateUse, NewPace, Pauses};
use crate::servers::Redis;

const GAP: Duration = Duration::from_millis(5);
const SLACK: Duration = Duration::from_millis(15);

/// One lane on a server of its own.
struct Lane {
    server: Redis,
    quota: Arc<Quota>,
    limit: Limit,
}

/// A replica's request; the defaults request nothing.
#[derive(Clone)]
struct LaneRequest<'a> {
    tokens: u32,
    gap: Duration,
    version: u64,
    pace: Option<&'a str>,
    wanted: usize,
    unused: &'a [DatedSlot],
    late: &'a [LateUse],
}

// === impl Lane ===

impl Lane {
    async fn of(count: u32, window: Duration) -> Self {
        let server = Redis::start().await;
        let settings = patient(config::Store::on(config::Topology::Single, &[server.port]));
        let quota =
            Quota::open(&settings, OnStoreFailure::Share, Arc::new(Metrics::new())).unwrap();
        quota
            .changes()
            .wait_for(|state| matches!(state, State::Up { .. }))
            .await
            .unwrap();
        Self {
            server,
            quota,
            limit: Limit {
                count: NonZeroU32::new(count).unwrap(),
                window,
            },
        }
    }

    fn lane_request(&self) -> LaneRequest<'static> {
        let tokens = self.limit.count.get();
        LaneRequest {
            tokens,
            gap: GAP,
            version: 0,
            pace: None,
            wanted: 0,
            unused: &[],
            late: &[],
        }
    }

    async fn ask(&self, replica: &str, op: Op, lane_request: LaneRequest<'_>) -> View {
        let request = DealRequest {
            replica,
            limit: self.limit,
            tokens: lane_request.tokens,
            window: self.limit.window,
            gap: lane_request.gap,
            spacing: Duration::ZERO,
            slack: SLACK,
            cap: self.limit.count.get(),
            version: lane_request.version,
            pace: lane_request.pace.map(|text| NewPace {
                text,
                lives: Duration::from_secs(60),
            }),
            wanted: lane_request.wanted,
            waiting: &[],
            unused: lane_request.unused,
            late: lane_request.late,
            max_pause: Duration::from_secs(60),
        };
        let account = AccountId::new("acme");
        let action = ActionName::new("CreateFlow");
        self.quota
            .take(&account, &action, &op, &request)
            .await
            .unwrap()
            .view
    }

    async fn take(&self, replica: &str, wanted: usize) -> View {
        self.ask(
            replica,
            Op::Take,
            LaneRequest {
                wanted,
                ..self.lane_request()
            },
        )
        .await
    }

    /// All slots that can be had now.
    async fn take_all(&self, replica: &str) -> Vec<DatedSlot> {
        let mut slots = Vec::new();
        loop {
            let view = self.take(replica, 20_000).await;
            slots.extend(view.slots.iter().filter(|slot| slot.at <= view.now));
            if view.slots.is_empty() || slots.len() >= self.limit.count.get() as usize {
                return slots;
            }
        }
    }
}

/// The most uses in a half-open window.
fn worst(uses: &[u64], window: Duration) -> usize {
    let mut uses = uses.to_vec();
    uses.sort_unstable();
    let window = u64::try_from(window.as_micros()).unwrap();
    uses.iter()
        .enumerate()
        .map(|(i, use_)| uses[i..].partition_point(|other| *other < use_ + window))
        .max()
        .unwrap_or(0)
}

#[tokio::test]
async fn at_any_count_all_tokens_are_dealt_at_once_and_each_comes_back_after_its_own_use() {
    for count in [1, 5, 32, 33, 200, 10_000] {
        let lane = Lane::of(count, Duration::from_secs(60)).await;
        let slots = lane.take_all("one").await;
        assert_eq!(slots.len(), count as usize);
        let away = u64::try_from((lane.limit.window + GAP + SLACK).as_micros()).unwrap();
        assert!(slots.iter().all(|slot| slot.back == slot.at + away));
        let view = lane.take("one", 1).await;
        assert_eq!(
            (view.slots.len(), view.usable, view.used, view.away),
            (0, count, count, away)
        );
        assert!(
            view.back.len() <= 32 && view.back.is_sorted(),
            "{:?}",
            view.back
        );
        assert_eq!(
            (view.back.first(), view.back.last()),
            (Some(&slots[0].back), slots.last().map(|slot| &slot.back))
        );
    }
}

#[tokio::test]
async fn one_answer_has_no_more_slots_than_its_bound_and_the_replica_asks_again_soon() {
    let lane = Lane::of(10_000, Duration::from_secs(1)).await;
    let view = lane.take("one", 10_000).await;
    assert_eq!((view.slots.len(), view.wanted), (256, 10_000 - 256));
    assert!(
        view.next_request_after <= 2000,
        "{}",
        view.next_request_after
    );
}

#[tokio::test]
async fn of_fewer_usable_tokens_the_others_stay_for_later() {
    let lane = Lane::of(5, Duration::from_secs(60)).await;
    let some = async |tokens| {
        lane.ask(
            "one",
            Op::Take,
            LaneRequest {
                tokens,
                wanted: 9,
                ..lane.lane_request()
            },
        )
        .await
        .slots
        .len()
    };
    assert_eq!(
        [
            some(2).await,
            some(2).await,
            some(4).await,
            some(1).await,
            some(5).await,
            some(5).await
        ],
        [2, 0, 2, 0, 1, 0]
    );
}

#[tokio::test]
async fn a_slot_that_comes_back_unused_is_dealt_again() {
    for count in [5, 33, 200, 1100] {
        let lane = Lane::of(count, Duration::from_secs(60)).await;
        let slots = lane.take_all("one").await;
        let unused = [slots[2], slots[slots.len() - 1]];
        assert_eq!(lane.take("other", 5).await.slots, []);
        lane.ask(
            "one",
            Op::Take,
            LaneRequest {
                unused: &unused[1..],
                ..lane.lane_request()
            },
        )
        .await;
        assert_eq!(lane.take("other", 5).await.slots.len(), 1);
        // Of a long ring only the latest are searched.
        lane.ask(
            "one",
            Op::Take,
            LaneRequest {
                unused: &unused[..1],
                ..lane.lane_request()
            },
        )
        .await;
        assert_eq!(
            lane.take("other", 5).await.slots.len(),
            usize::from(count < 512)
        );
    }
}

#[tokio::test]
async fn a_slot_that_was_used_late_counts_from_its_use() {
    let lane = Lane::of(2, Duration::from_secs(60)).await;
    let first = lane.take("one", 1).await.slots[0];
    lane.take("one", 1).await;
    sleep(Duration::from_millis(30)).await;
    let view = lane.take("one", 1).await;
    let late = [LateUse {
        slot: first,
        used: view.now,
    }];
    let view = lane
        .ask(
            "one",
            Op::Take,
            LaneRequest {
                late: &late,
                ..lane.lane_request()
            },
        )
        .await;
    let back = late[0].used + u64::try_from((lane.limit.window + GAP).as_micros()).unwrap();
    assert_eq!((view.back.len(), view.back[1]), (2, back));
    // Its token is another's by now: another one pays.
    let view = lane
        .ask(
            "one",
            Op::Take,
            LaneRequest {
                late: &late,
                ..lane.lane_request()
            },
        )
        .await;
    assert_eq!((view.back.len(), view.back[1]), (2, back));
    let view = lane
        .ask(
            "one",
            Op::Take,
            LaneRequest {
                late: &[LateUse {
                    slot: DatedSlot { back: 1, ..first },
                    ..late[0]
                }],
                ..lane.lane_request()
            },
        )
        .await;
    assert_eq!(view.back, [back, back]);
}

#[tokio::test]
async fn a_replica_with_an_earlier_pace_is_dealt_nothing_and_learns_the_present_one() {
    let lane = Lane::of(5, Duration::from_secs(60)).await;
    let lane_request = |version, pace| LaneRequest {
        version,
        pace,
        wanted: 1,
        ..lane.lane_request()
    };
    let written = lane
        .ask("one", Op::Take, lane_request(0, Some("slow")))
        .await;
    assert_eq!(
        (written.pace.as_str(), written.stale, written.slots.len()),
        ("slow", false, 1)
    );
    let stale = lane
        .ask("other", Op::Take, lane_request(0, Some("fast")))
        .await;
    assert_eq!(
        (
            stale.pace.as_str(),
            stale.stale,
            stale.slots.len(),
            stale.version
        ),
        ("slow", true, 0, written.version)
    );
    let known = lane
        .ask(
            "other",
            Op::Take,
            lane_request(stale.version, Some("slower")),
        )
        .await;
    assert_eq!(
        (known.pace.as_str(), known.stale, known.slots.len()),
        ("slower", false, 1)
    );
    assert!(known.version > written.version);
    // It outlives the tokens.
    assert!(
        lane.server
            .ask(&["PTTL", "flowgate:lane:{acme}:CreateFlow"])
            .await
            .trim()
            .parse::<u64>()
            .unwrap()
            > 50_000
    );
}

#[tokio::test]
async fn the_largest_gap_of_the_replicas_that_are_there_holds() {
    let lane = Lane::of(5, Duration::from_secs(60)).await;
    let lane_request = |gap| LaneRequest {
        gap,
        wanted: 1,
        ..lane.lane_request()
    };
    let gap = async |replica, gap| lane.ask(replica, Op::Take, lane_request(gap)).await.gap;
    assert_eq!(
        [
            gap("one", GAP).await,
            gap("other", 8 * GAP).await,
            gap("one", GAP).await
        ],
        [5000, 40_000, 40_000]
    );
    sleep(Duration::from_millis(700)).await;
    assert_eq!(gap("one", GAP).await, 5000);
}

#[tokio::test]
async fn an_isolated_refusal_pauses_nothing() {
    let lane = Lane::of(5, Duration::from_secs(60)).await;
    let slot = lane.take("one", 1).await.slots[0];
    let isolated = lane
        .ask(
            "one",
            Op::Throttled {
                at: slot.at,
                pauses: None,
            },
            lane.lane_request(),
        )
        .await;
    assert_eq!(
        (isolated.new_episode, isolated.open, isolated.level),
        (true, 0, 0)
    );
    let again = lane.take("one", 1).await;
    assert_eq!(
        again
            .slots
            .iter()
            .map(|slot| slot.probe)
            .collect::<Vec<_>>(),
        [false]
    );
    let pauses = Some(Pauses {
        new: Duration::from_secs(5),
        same: None,
    });
    let episode = lane
        .ask(
            "one",
            Op::Throttled {
                at: slot.at,
                pauses,
            },
            lane.lane_request(),
        )
        .await;
    assert!(
        episode.new_episode && episode.level == 1 && episode.open >= episode.now + 5_000_000,
        "{episode:?}"
    );
    let same = lane
        .ask(
            "one",
            Op::Throttled {
                at: again.slots[0].at,
                pauses,
            },
            lane.lane_request(),
        )
        .await;
    assert_eq!(
        (same.new_episode, same.open, same.level),
        (false, episode.open, 1)
    );
}

#[tokio::test]
async fn a_replica_that_wants_no_more_gives_way_at_once() {
    let lane = Lane::of(5, Duration::from_secs(60)).await;
    // Five are kept for the other one, or dealt.
    let other = lane
        .ask(
            "other",
            Op::Take,
            LaneRequest {
                tokens: 1,
                wanted: 9,
                ..lane.lane_request()
            },
        )
        .await
        .slots
        .len();
    let one = lane.take("one", 9).await.slots.len();
    assert!(one < 4 && other == 1, "{one}");
    let left = lane.take("other", 0).await;
    assert_eq!((left.slots.len(), left.wanted), (0, 0));
    assert_eq!(lane.take("one", 9).await.slots.len(), 4 - one);
}

#[tokio::test]
async fn a_clock_that_was_set_back_stops_no_lane_for_longer_than_a_window() {
    let lane = Lane::of(5, Duration::from_secs(60)).await;
    let view = lane.take("one", 9).await;
    let ring = "flowgate:ring:{acme}:CreateFlow";
    let far = (view.now + 3_600_000_000).to_string();
    for _ in 0..5 {
        lane.server.ask(&["RPUSH", ring, &far]).await;
        lane.server.ask(&["LPOP", ring]).await;
    }
    let state = "local lane = cmsgpack.unpack(redis.call('GET', KEYS[1])) lane.last = tonumber(ARGV[1]) redis.call('SET', KEYS[1], cmsgpack.pack(lane))";
    lane.server
        .ask(&["EVAL", state, "1", "flowgate:lane:{acme}:CreateFlow", &far])
        .await;
    let view = lane.take("one", 9).await;
    assert_eq!(view.back.len(), 5);
    assert!(
        view.back.iter().all(|back| *back <= view.now + view.away),
        "{view:?}"
    );
}

#[tokio::test]
async fn a_state_that_cannot_be_read_is_replaced_by_a_lane_whose_tokens_are_all_in_use() {
    // Text, a number, and a map.
    for kept in ["text", "5", "\u{1}"] {
        let lane = Lane::of(5, Duration::from_millis(600)).await;
        let key = "flowgate:lane:{acme}:CreateFlow";
        lane.server.ask(&["SET", key, kept]).await;
        let view = lane.take("one", 5).await;
        assert_eq!(view.slots, []);
        assert!(view.open > view.now + 600_000, "{view:?}");
        sleep(Duration::from_micros(view.open - view.now)).await;
        assert_eq!(lane.take("one", 5).await.slots.len(), 5);
    }
}

#[tokio::test]
async fn a_ring_that_was_deleted_costs_its_tokens_and_no_error() {
    let lane = Lane::of(5, Duration::from_secs(60)).await;
    let slots = lane.take("one", 9).await.slots;
    lane.server
        .ask(&["DEL", "flowgate:ring:{acme}:CreateFlow"])
        .await;
    lane.ask(
        "one",
        Op::Take,
        LaneRequest {
            unused: &slots[..1],
            late: &[],
            ..lane.lane_request()
        },
    )
    .await;
    lane.take("one", 9).await;
    let late = [LateUse {
        slot: slots[1],
        used: slots[1].at,
    }];
    assert_eq!(
        lane.ask(
            "one",
            Op::Take,
            LaneRequest {
                late: &late,
                ..lane.lane_request()
            }
        )
        .await
        .usable,
        5
    );
    lane.take("one", 9).await;
}

#[tokio::test]
async fn the_ring_never_expires_before_the_state_and_never_lives_forever() {
    let lane = Lane::of(200, Duration::from_secs(60)).await;
    let expires = async |key: &str| -> i64 {
        let key = format!("flowgate:{key}:{{acme}}:CreateFlow");
        let text = lane.server.ask(&["PEXPIRETIME", &key]).await;
        text.trim_start_matches(':').trim().parse().unwrap()
    };
    let slots = lane.take_all("one").await;
    let first = expires("ring").await;
    assert!(first >= expires("lane").await);
    for _ in 0..3 {
        lane.take("one", 1).await;
        assert!(expires("ring").await >= expires("lane").await);
        assert_eq!(expires("ring").await, first, "few steps prolong it");
    }
    // The ring becomes empty, and is filled again in the same step.
    lane.ask(
        "one",
        Op::Take,
        LaneRequest {
            unused: &slots,
            wanted: 1,
            ..lane.lane_request()
        },
    )
    .await;
    assert!(expires("ring").await >= expires("lane").await);
}

#[tokio::test]
async fn no_window_has_more_than_the_largest_limit_while_replicas_differ() {
    let window = Duration::from_millis(200);
    let mut lane = Lane::of(5, window).await;
    let mut uses = Vec::new();
    for round in 0..400 {
        lane.limit.count = NonZeroU32::new([3, 5][round % 2]).unwrap();
        let view = lane.take(["one", "other"][round % 2], 9).await;
        uses.extend(view.slots.iter().map(|slot| slot.at));
        sleep(Duration::from_millis(5)).await;
    }
    assert!(worst(&uses, window) <= 5, "{}", worst(&uses, window));
    assert!(uses.len() > 10, "none is locked out: {}", uses.len());
}

/// Replicas do at random what they may, and the uses are looked at afterwards.
#[tokio::test]
async fn whatever_replicas_do_no_window_has_more_uses_than_the_count() {
    for (count, window, rounds) in [
        (5, 600, 600),
        (40, 600, 500),
        (200, 600, 400),
        (10_000, 1000, 500),
    ] {
        let seed = fastrand::u64(..);
        let mut random = fastrand::Rng::with_seed(seed);
        let lane = Lane::of(count, Duration::from_millis(window)).await;
        let names = ["one", "other", "third"];
        let ahead = u64::try_from(AHEAD.as_micros()).unwrap();
        let mut hands: [Vec<DatedSlot>; 3] = Default::default();
        let mut uses = Vec::new();
        let mut version = 0;
        let mut now = 0;
        for _ in 0..rounds {
            let who = random.usize(..3);
            let mut unused = Vec::new();
            let mut late = Vec::new();
            let mut last = None;
            for slot in hands[who].drain(..) {
                let until = slot.at + slot.slack;
                match random.u8(..10) {
                    0 if unused.len() < 64 => unused.push(slot),
                    // Later its token may be another's.
                    1 if now > until && now + ahead < slot.back => {
                        let used = random.u64(until..now);
                        uses.push(used);
                        late.push(LateUse { slot, used });
                    }
                    // The script cannot know the time, so any moment must be accepted.
                    fate => uses
                        .push([slot.at, until, random.u64(slot.at..=until)][usize::from(fate % 3)]),
                }
                last = last.filter(|last: &DatedSlot| last.probe).or(Some(slot));
            }
            let ms = |ms| Duration::from_millis(ms);
            let op = match (random.u8(..40), last) {
                (0, Some(slot)) => {
                    let pauses = random.bool().then(|| Pauses {
                        new: ms(random.u64(1..20)),
                        same: random.bool().then(|| ms(5)),
                    });
                    Op::Throttled {
                        at: slot.at,
                        pauses,
                    }
                }
                (fate, Some(slot)) if fate == 1 || (slot.probe && fate > 8) => {
                    let how = [AttemptEnd::Answered, AttemptEnd::Unknown][random.usize(..2)];
                    Op::Ended { slot, how }
                }
                _ => Op::Take,
            };
            let tokens = if random.u8(..5) == 0 {
                random.u32(1..=count)
            } else {
                count
            };
            let wanted = [0, 7, 20_000, 20_000][random.usize(..4)];
            let pace = (random.u8(..30) == 0).then_some("learned");
            let gap = GAP * random.u32(1..4);
            let lane_request = LaneRequest {
                tokens,
                gap,
                version,
                pace,
                wanted,
                unused: &unused,
                late: &late,
            };
            let view = lane.ask(names[who], op, lane_request).await;
            (version, now) = (view.version, view.now);
            assert!(view.slots.len() <= 512, "{}", view.slots.len());
            hands[who].extend(view.slots);
            if random.u8(..3) == 0 {
                sleep(ms(random.u64(..30))).await;
            }
        }
        let worst = worst(&uses, lane.limit.window);
        assert!(
            worst <= count as usize,
            "count {count}, seed {seed}: {worst}"
        );
        assert!(
            uses.len() > count as usize,
            "count {count}, seed {seed}: {}",
            uses.len()
        );
        let length: u32 = lane
            .server
            .ask(&["LLEN", "flowgate:ring:{acme}:CreateFlow"])
            .await
            .trim()
            .parse()
            .unwrap();
        assert!(length <= count, "count {count}, seed {seed}: {length}");
    }
}

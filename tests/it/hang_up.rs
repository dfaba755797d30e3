//! A caller that hangs up while its call is queued spends nothing, for each way to hang up. After
//! the dispatch the attempt continues.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::caller::Call;
use crate::harness::Harness;

/// How a caller hangs up.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Close,
    Reset,
    HalfClose,
    AfterStrayLine,
    AfterPipelinedByte,
}

async fn go(mut stream: TcpStream, manner: Manner) -> Option<TcpStream> {
    match manner {
        Manner::Close => {}
        Manner::Reset => socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap(),
        Manner::HalfClose => {
            stream.shutdown().await.unwrap();
            return Some(stream);
        }
        Manner::AfterStrayLine | Manner::AfterPipelinedByte => {}
    }
    None
}

async fn come(harness: &Harness, name: &str, manner: Manner) -> TcpStream {
    let mut stream = TcpStream::connect(harness.proxy).await.unwrap();
    let mut bytes = Call::v3(&harness.host(), name).bytes();
    match manner {
        Manner::AfterStrayLine => bytes.extend_from_slice(b"\r\n"),
        Manner::AfterPipelinedByte => bytes.push(b'P'),
        _ => {}
    }
    stream.write_all(&bytes).await.unwrap();
    stream
}

/// Has a call throttled, so that its lane is paused and later calls are queued.
async fn paused(harness: &Harness, millis: u64) -> TcpStream {
    harness.sim.set_faults(vec![
        format!("next=1,throttle,acs-retry-after={millis}")
            .parse()
            .unwrap(),
    ]);
    let stays = come(harness, "stays", Manner::Close).await;
    harness.until("flowgate_throttled_total{account=\"acme\",code=\"System.LimitControl\",source=\"body\"}", 1.0).await;
    stays
}

async fn hangs_up_while_queued(manner: Manner) {
    let harness = Harness::new("").await;
    let stays = paused(&harness, 5000).await;
    let mut goes = Vec::new();
    for index in 0..5 {
        goes.push(come(&harness, &format!("goes-{index}"), manner).await);
    }
    let queued = "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}";
    harness.until(queued, 6.0).await;
    let mut half_open = Vec::new();
    for stream in goes {
        half_open.push(go(stream, manner).await);
    }
    harness
        .until(
            "flowgate_cancelled_total{account=\"acme\",stage=\"queued\"}",
            5.0,
        )
        .await;
    assert_eq!(harness.metrics().await.get(queued), 1.0);
    // The lane continues for the remaining and for new calls.
    assert_eq!(
        Call::v3(&harness.host(), "comes later")
            .send(harness.proxy)
            .await
            .status,
        200
    );
    let names: Vec<_> = harness
        .sim
        .arrivals()
        .into_iter()
        .filter_map(|arrival| arrival.flow_name)
        .collect();
    assert_eq!(names, ["stays", "stays", "comes later"], "{manner:?}");
    let metrics = harness.metrics().await;
    assert_eq!(metrics.outcome("acme", "CreateFlow", "cancelled"), 5.0);
    let tokens = |event| {
        metrics.get(&format!(
            "flowgate_tokens_total{{account=\"acme\",event=\"{event}\"}}"
        ))
    };
    assert_eq!(tokens("spent"), 3.0);
    assert_eq!(tokens("granted"), tokens("spent") + tokens("returned"));
    drop(stays);
}

#[tokio::test]
async fn a_call_leaves_the_queue_at_a_close() {
    hangs_up_while_queued(Manner::Close).await;
}

#[tokio::test]
async fn a_call_leaves_the_queue_at_a_reset() {
    hangs_up_while_queued(Manner::Reset).await;
}

#[tokio::test]
async fn a_call_leaves_the_queue_at_a_half_close() {
    hangs_up_while_queued(Manner::HalfClose).await;
}

#[tokio::test]
async fn a_call_leaves_the_queue_at_a_close_after_a_stray_line() {
    hangs_up_while_queued(Manner::AfterStrayLine).await;
}

#[tokio::test]
async fn a_call_leaves_the_queue_at_a_close_after_a_pipelined_byte() {
    hangs_up_while_queued(Manner::AfterPipelinedByte).await;
}

#[tokio::test]
async fn a_hang_up_after_the_dispatch_leaves_the_attempt_running() {
    let harness = Harness::new("").await;
    harness.sim.set_faults(vec!["next=1,held".parse().unwrap()]);
    let stream = come(&harness, "created all the same", Manner::Close).await;
    harness
        .until(
            "flowgate_in_flight{account=\"acme\",action=\"CreateFlow\"}",
            1.0,
        )
        .await;
    drop(stream);
    harness
        .until(
            "flowgate_cancelled_total{account=\"acme\",stage=\"in_flight\"}",
            1.0,
        )
        .await;
    harness.sim.set_faults(vec![]);
    let ended = "flowgate_attempts_total{account=\"acme\",action=\"CreateFlow\",code=\"OK\",status=\"200\"}";
    harness.until(ended, 1.0).await;
    assert_eq!(harness.sim.report().created, 1);
    assert_eq!(
        harness
            .metrics()
            .await
            .get("flowgate_in_flight{account=\"acme\",action=\"CreateFlow\"}"),
        0.0
    );
}

#[tokio::test]
async fn a_crowd_that_hangs_up_together_leaves_no_call_behind() {
    let harness = Harness::new("[queue]\nhold = \"2m\"").await;
    let stays = paused(&harness, 8000).await;
    let mut goes = Vec::new();
    for index in 0..200 {
        goes.push(come(&harness, &format!("goes-{index}"), Manner::Close).await);
    }
    harness
        .until(
            "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}",
            201.0,
        )
        .await;
    let mut stay = JoinSet::new();
    for index in 0..10 {
        let call = Call::v3(&harness.host(), &format!("stays-{index}"));
        let proxy = harness.proxy;
        stay.spawn(async move { call.send(proxy).await.status });
    }
    harness
        .until(
            "flowgate_queued{account=\"acme\",action=\"CreateFlow\"}",
            211.0,
        )
        .await;
    drop(goes);
    assert_eq!(stay.join_all().await, [200; 10]);
    let gone = harness
        .sim
        .arrivals()
        .iter()
        .filter(|arrival| {
            arrival
                .flow_name
                .as_deref()
                .is_some_and(|name| name.starts_with("goes"))
        })
        .count();
    assert_eq!((harness.sim.report().created, gone), (11, 0));
    drop(stays);
}

/// docs/faq.md says so: the end of the caller's sending side is a disconnect, and what was sent by
/// then is in the journal with its end.
#[tokio::test]
async fn a_call_in_flight_at_a_half_close_is_in_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let journal = format!("[journal]\npath = \"{}\"", path.display());
    let harness = Harness::new(&journal).await;
    harness.sim.set_faults(vec!["next=1,held".parse().unwrap()]);
    let mut stream = come(&harness, "in flight", Manner::HalfClose).await;
    harness
        .until(
            "flowgate_tokens_total{account=\"acme\",event=\"spent\"}",
            1.0,
        )
        .await;
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"", "the connection is closed without an answer");
    harness
        .until(
            "flowgate_cancelled_total{account=\"acme\",stage=\"in_flight\"}",
            1.0,
        )
        .await;
    harness.sim.set_faults(vec![]);
    harness.app.drain().await;
    let lines = std::fs::read_to_string(&path).unwrap();
    let events: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.len(), 2, "{lines}");
    assert_eq!(
        (&events[0]["event"], &events[0]["flow_name"]),
        (&"sent".into(), &"in flight".into())
    );
    assert_eq!(
        (
            &events[1]["event"],
            &events[1]["result"],
            &events[1]["attempt"]
        ),
        (&"done".into(), &"ok".into(), &events[0]["attempt"])
    );
}

//! The circuit in simulated time, against a server that is made of a pipe and a few answers; and
//! operations against real servers, which are stopped, frozen and flushed meanwhile.

use std::io;

use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, Value};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::time::sleep;

use super::*;
use crate::config::Topology;
use crate::limiter::shared::probe::DealProbe;
use crate::servers::{Cluster, Redis, SERVICE, Watched};

const TIMEOUT: Duration = Duration::from_millis(250);

fn single(port: u16) -> config::Store {
    config::Store::on(Topology::Single, &[port])
}

fn probe(settings: &config::Store) -> Box<dyn Probe> {
    Box::new(DealProbe::new(settings))
}

fn open(settings: &config::Store) -> Arc<Store> {
    Store::open(settings, probe(settings), Arc::new(Metrics::new())).unwrap()
}

async fn until(store: &Store, wished: impl Fn(State) -> bool) -> State {
    let mut changes = store.changes();
    *timeout(
        Duration::from_secs(60),
        changes.wait_for(|state| wished(*state)),
    )
    .await
    .unwrap()
    .unwrap()
}

async fn up(store: &Store) -> Instant {
    let State::Up { since } = until(store, |state| matches!(state, State::Up { .. })).await else {
        unreachable!()
    };
    since
}

async fn down(store: &Store) -> Instant {
    let State::Down { since } = until(store, |state| matches!(state, State::Down { .. })).await
    else {
        unreachable!()
    };
    since
}

/// How a made-up server behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Healthy,
    /// Takes no connection.
    Away,
    /// Answers nothing.
    Frozen,
    /// Answers every script like this.
    Answers(&'static str),
    /// Answers this command like this.
    Lacks(&'static str, &'static str),
    /// What it deals comes much later than its ping.
    Far,
}

/// A made-up server; counts the connections that were tried, each with its moment.
struct Fake {
    started: Instant,
    behaviour: Mutex<Behaviour>,
    dialled: Mutex<Vec<Instant>>,
}

// === impl Fake ===

impl Fake {
    fn new(behaviour: Behaviour) -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            behaviour: Mutex::new(behaviour),
            dialled: Mutex::default(),
        })
    }

    fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
    }

    fn store(self: &Arc<Self>) -> (Arc<Store>, Arc<Metrics>) {
        let fake = self.clone();
        let metrics = Arc::new(Metrics::new());
        let dial: Dial = Arc::new(move || fake.clone().dial());
        (
            Store::over(dial, &single(0), probe(&single(0)), metrics.clone()),
            metrics,
        )
    }

    fn dial(self: Arc<Self>) -> BoxFuture<'static, RedisResult<Connection>> {
        Box::pin(async move {
            self.dialled.lock().push(Instant::now());
            if *self.behaviour.lock() == Behaviour::Away {
                return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
            }
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move { self.serve(theirs).await });
            let terms = AsyncConnectionConfig::new().set_response_timeout(None);
            let info = RedisConnectionInfo::default();
            let (connection, driver) =
                MultiplexedConnection::new_with_config(&info, ours, terms).await?;
            tokio::spawn(driver);
            Ok(Connection::One(connection))
        })
    }

    async fn serve(&self, stream: DuplexStream) {
        let mut stream = BufReader::new(stream);
        while let Some(command) = read(&mut stream).await {
            let info = "redis_version:7.0.15\r\nrun_id:a\r\nmaxmemory_policy:noeviction\r\n";
            let behaviour = *self.behaviour.lock();
            let answer = match (behaviour, command[0].as_str()) {
                (Behaviour::Frozen, _) => continue,
                (Behaviour::Answers(answer), "EVALSHA") => answer.to_owned(),
                (Behaviour::Lacks(lacking, answer), name) if lacking == name => answer.to_owned(),
                (_, "INFO") => format!("${}\r\n{info}\r\n", info.len()),
                (behaviour, "EVALSHA") if command[3].contains("probe:") => {
                    // The script that deals has two keys.
                    if command[2] == "2" {
                        self.deals(behaviour).await
                    } else {
                        "*0\r\n".to_owned()
                    }
                }
                (_, "SCRIPT") => format!("+{}\r\n", Script::new(&command[2]).get_hash()),
                (_, "EVALSHA") => ":7\r\n".to_owned(),
                _ => "+OK\r\n".to_owned(),
            };
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    /// The answer of a script that deals one slot that is dated now.
    async fn deals(&self, behaviour: Behaviour) -> String {
        let slack = 15_000;
        let now = u64::try_from(self.started.elapsed().as_micros()).unwrap();
        if behaviour == Behaviour::Far {
            sleep(Duration::from_millis(200)).await;
        }
        let list = |numbers: &[u64]| {
            let numbers: String = numbers
                .iter()
                .map(|number| format!(":{number}\r\n"))
                .collect();
            format!("*{}\r\n{numbers}", numbers.lines().count())
        };
        let head = list(&[
            now, 0, 0, 0, 0, 0, 5000, 1_020_000, 1000, 0, 0, 1_000_000, 0,
        ]);
        format!(
            "*4\r\n{head}$0\r\n\r\n*0\r\n{}",
            list(&[now, now + 1_020_000, slack, 0])
        )
    }
}

/// The next command.
async fn read(stream: &mut BufReader<DuplexStream>) -> Option<Vec<String>> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let count: usize = line.trim().strip_prefix('*')?.parse().ok()?;
    let mut command = Vec::new();
    for _ in 0..count {
        line.clear();
        stream.read_line(&mut line).await.ok()?;
        let length: usize = line.trim().strip_prefix('$')?.parse().ok()?;
        let mut bytes = vec![0; length + 2];
        stream.read_exact(&mut bytes).await.ok()?;
        command.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
    }
    Some(command)
}

async fn take(store: &Store) -> Result<Value, Unavailable> {
    store
        .run("take", &Script::new("return 7"), &["flowgate:a"], &[])
        .await
}

#[tokio::test(start_paused = true)]
async fn the_first_late_answer_opens_the_circuit_for_all() {
    let fake = Fake::new(Behaviour::Healthy);
    let (store, metrics) = fake.store();
    assert_eq!(
        (store.state(), take(&store).await),
        (State::NeverSeen, Err(Unavailable::Down))
    );
    up(&store).await;
    assert_eq!(take(&store).await, Ok(Value::Int(7)));
    fake.set(Behaviour::Frozen);
    let start = Instant::now();
    assert_eq!(take(&store).await, Err(Unavailable::Late(TIMEOUT)));
    assert_eq!(
        (start.elapsed(), store.state()),
        (
            TIMEOUT,
            State::Down {
                since: Instant::now()
            }
        )
    );
    for _ in 0..1000 {
        assert_eq!(take(&store).await, Err(Unavailable::Down));
    }
    assert_eq!(start.elapsed(), TIMEOUT);
    let page = metrics.render(&crate::observe::metrics::Scrape::default());
    for line in [
        "flowgate_store_up 0",
        "flowgate_store_errors_total{op=\"take\"} 1",
        "flowgate_store_seconds_count{op=\"take\"} 2",
        "flowgate_store_seconds_sum{op=\"take\"} 0.25",
    ] {
        assert!(
            page.lines().any(|seen| seen == line),
            "{line} is not in {page}"
        );
    }
    fake.set(Behaviour::Healthy);
    let since = up(&store).await;
    assert!(since > start && take(&store).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_frozen_store_is_detected_without_traffic() {
    let fake = Fake::new(Behaviour::Healthy);
    let (store, _) = fake.store();
    let since = up(&store).await;
    sleep(Duration::from_millis(10_500)).await;
    assert_eq!(store.state(), State::Up { since });
    let start = Instant::now();
    fake.set(Behaviour::Frozen);
    let noticed = down(&store).await - start;
    assert!(noticed <= Duration::from_millis(1250), "{noticed:?}");
}

#[tokio::test(start_paused = true)]
async fn reconnects_back_off() {
    let fake = Fake::new(Behaviour::Away);
    let (store, _) = fake.store();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(store.state(), State::NeverSeen);
    let dialled = fake.dialled.lock().clone();
    let pauses: Vec<_> = dialled
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).as_millis())
        .collect();
    assert_eq!(pauses[..7], [50, 100, 200, 400, 800, 1000, 1000]);
    fake.set(Behaviour::Healthy);
    let since = up(&store).await;
    assert_eq!(store.state(), State::Up { since });
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_an_operation_is_down_until_it_runs_the_scripts_again() {
    let fake = Fake::new(Behaviour::Healthy);
    let (store, _) = fake.store();
    up(&store).await;
    let ill = [
        "-READONLY You can't write against a read only replica.\r\n",
        "-LOADING Redis is loading the dataset in memory\r\n",
        "-CLUSTERDOWN The cluster is down\r\n",
        "-MASTERDOWN Link with MASTER is down\r\n",
        "-OOM command not allowed when used memory > 'maxmemory'.\r\n",
        "-BUSY Redis is busy running a script.\r\n",
        "-NOPERM this user has no permissions to run the 'evalsha' command\r\n",
        "-NOSCRIPT No matching script.\r\n",
        "-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
        "-ERR user_script:1: attempt to index a nil value\r\n",
    ];
    for answer in ill {
        fake.set(Behaviour::Answers(answer));
        assert!(
            matches!(take(&store).await, Err(Unavailable::Failed(_))),
            "{answer}"
        );
        let since = Instant::now();
        assert_eq!(store.state(), State::Down { since }, "{answer}");
        sleep(Duration::from_secs(60)).await;
        assert_eq!(store.state(), State::Down { since }, "{answer}");
        fake.set(Behaviour::Healthy);
        up(&store).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_without_the_needed_permissions_is_refused_at_the_start() {
    let refused = async |behaviour| Fake::new(behaviour).store().0.check().await.err();
    let no_scripts = "-NOPERM this user has no permissions to run the 'evalsha' command\r\n";
    let no_key =
        "-NOPERM this user has no permissions to access one of the keys used as arguments\r\n";
    let no_clock =
        "-ERR The user executing the script can't run this command or subcommand script: 7\r\n";
    for behaviour in [
        Behaviour::Answers(no_scripts),
        Behaviour::Answers(no_clock),
        Behaviour::Lacks("SET", no_key),
    ] {
        let reason = refused(behaviour).await.expect("it is refused");
        assert!(
            reason.starts_with("the shared store does not permit what Flowgate needs ("),
            "{reason}"
        );
    }
    let reason = refused(Behaviour::Answers(
        "-ERR unknown command 'LPOS' script: 7\r\n",
    ))
    .await
    .expect("it is refused");
    assert!(
        reason.starts_with("the shared store cannot run Flowgate's scripts: "),
        "{reason}"
    );
    let passes = [
        "-OOM command not allowed\r\n",
        "-READONLY You can't write\r\n",
        "-LOADING it is\r\n",
    ];
    for behaviour in passes.map(Behaviour::Answers).into_iter().chain([
        Behaviour::Away,
        Behaviour::Frozen,
        Behaviour::Healthy,
        Behaviour::Far,
    ]) {
        assert_eq!(refused(behaviour).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_can_be_reached_is_up_when_its_check_returns() {
    let (store, _) = Fake::new(Behaviour::Healthy).store();
    assert_eq!(store.state(), State::NeverSeen);
    assert_eq!(store.check().await, Ok(()));
    let state = store.state();
    assert!(matches!(state, State::Up { .. }), "{state:?}");
}

#[tokio::test(start_paused = true)]
async fn info_may_be_forbidden() {
    let fake = Fake::new(Behaviour::Lacks(
        "INFO",
        "-NOPERM this user has no permissions to run the 'info' command\r\n",
    ));
    let (store, _) = fake.store();
    assert_eq!(store.check().await, Ok(()));
    up(&store).await;
}

#[tokio::test(start_paused = true)]
async fn a_store_whose_slots_are_too_late_is_down_until_they_are_in_time() {
    let fake = Fake::new(Behaviour::Healthy);
    let (store, _) = fake.store();
    up(&store).await;
    fake.set(Behaviour::Far);
    store.mark_too_far();
    let since = Instant::now();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(store.state(), State::Down { since });
    fake.set(Behaviour::Healthy);
    up(&store).await;
}

#[tokio::test(start_paused = true)]
async fn after_failures_that_the_health_check_misses_reconnects_back_off() {
    let fake = Fake::new(Behaviour::Healthy);
    let (store, _) = fake.store();
    let mut pauses = Vec::new();
    for _ in 0..12 {
        up(&store).await;
        store.mark_too_far();
        let start = Instant::now();
        up(&store).await;
        pauses.push(start.elapsed().as_millis());
    }
    assert_eq!(
        pauses,
        [
            100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000, 30_000
        ]
    );
    sleep(Duration::from_secs(10)).await;
    store.mark_too_far();
    let start = Instant::now();
    up(&store).await;
    assert_eq!(start.elapsed().as_millis(), 50);
}

#[tokio::test(start_paused = true)]
async fn operations_of_the_old_connection_do_not_close_the_new_one() {
    let fake = Fake::new(Behaviour::Healthy);
    let (store, _) = fake.store();
    up(&store).await;
    fake.set(Behaviour::Frozen);
    let asking = |store: Arc<Store>, after| async move {
        sleep(Duration::from_millis(after)).await;
        take(&store).await
    };
    let early = tokio::spawn(asking(store.clone(), 0));
    let late = tokio::spawn(asking(store.clone(), 240));
    assert_eq!(early.await.unwrap(), Err(Unavailable::Late(TIMEOUT)));
    fake.set(Behaviour::Healthy);
    let since = up(&store).await;
    assert!(!late.is_finished());
    assert_eq!(late.await.unwrap(), Err(Unavailable::Late(TIMEOUT)));
    assert_eq!(store.state(), State::Up { since });
}

/// A script that counts, so that what was done twice can be seen.
fn counting() -> Script {
    Script::new("return {redis.call('INCRBY', KEYS[1], ARGV[1]), ARGV[2]}")
}

async fn count(store: &Store, key: &str) -> i64 {
    let args = [b"2".to_vec(), b"\xff\x00".to_vec()];
    let answer = store.run("take", &counting(), &[key], &args).await.unwrap();
    let (count, bytes): (i64, Vec<u8>) = redis::from_redis_value(answer).unwrap();
    assert_eq!(bytes, args[1]);
    count
}

#[tokio::test]
async fn scripts_are_loaded_again_after_a_flush() {
    let redis = Redis::start().await;
    let store = open(&single(redis.port));
    let since = up(&store).await;
    assert_eq!(
        (
            count(&store, "flowgate:a").await,
            count(&store, "flowgate:a").await
        ),
        (2, 4)
    );
    redis.flush().await;
    assert_eq!(
        (
            count(&store, "flowgate:a").await,
            count(&store, "flowgate:a").await
        ),
        (2, 4)
    );
    let nonce = |key: &'static str| store.set_new("nonce", key, Duration::from_secs(2));
    assert_eq!(
        (
            nonce("flowgate:n").await,
            nonce("flowgate:n").await,
            nonce("flowgate:m").await
        ),
        (Ok(true), Ok(false), Ok(true))
    );
    sleep(Duration::from_millis(2100)).await;
    assert_eq!(nonce("flowgate:n").await, Ok(true));
    assert_eq!(store.state(), State::Up { since });
    assert_eq!(store.check().await, Ok(()));
}

#[tokio::test]
async fn a_frozen_server_is_detected_without_delays_and_recovers() {
    let redis = Redis::start().await;
    let store = open(&single(redis.port));
    let first = up(&store).await;
    redis.freeze().await;
    down(&store).await;
    let start = Instant::now();
    for _ in 0..1000 {
        assert_eq!(take(&store).await, Err(Unavailable::Down));
    }
    assert!(
        start.elapsed() < 100 * TIMEOUT,
        "not one in ten waits: {:?}",
        start.elapsed()
    );
    redis.thaw().await;
    assert!(up(&store).await > first);
    assert_eq!(count(&store, "flowgate:a").await, 2);
}

#[tokio::test]
async fn in_a_cluster_each_key_has_its_node_and_all_masters_must_answer() {
    let mut cluster = Cluster::start().await;
    let ports: Vec<_> = cluster.nodes.iter().map(|node| node.port).collect();
    let store = open(&config::Store::on(Topology::Cluster, &ports));
    up(&store).await;
    for key in 0..50 {
        assert_eq!(count(&store, &format!("flowgate:{key}")).await, 2);
    }
    for node in &cluster.nodes {
        node.flush().await;
    }
    for key in 0..50 {
        assert_eq!(count(&store, &format!("flowgate:{key}")).await, 2);
    }
    cluster.nodes[2].stop().await;
    down(&store).await;
    cluster.nodes[2].start_again().await;
    up(&store).await;
    assert_eq!(count(&store, "flowgate:new").await, 2);
}

#[tokio::test]
async fn after_a_failover_scripts_run_on_the_new_master() {
    let mut watched = Watched::start().await;
    let ports: Vec<_> = watched
        .sentinels
        .iter()
        .map(|sentinel| sentinel.port)
        .collect();
    let topology = Topology::Sentinel(SERVICE.to_owned());
    let store = open(&config::Store::on(topology, &ports));
    up(&store).await;
    assert_eq!(count(&store, "flowgate:a").await, 2);
    // A sentinel that does not answer does not hide the others.
    watched.sentinels[0].freeze().await;
    watched.master.stop().await;
    down(&store).await;
    up(&store).await;
    assert_eq!(count(&store, "flowgate:b").await, 2);
    assert!(
        watched
            .replica
            .ask(&["GET", "flowgate:b"])
            .await
            .contains('2')
    );
}

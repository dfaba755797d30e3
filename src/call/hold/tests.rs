//! Tables of all sources of a hold.

use std::ffi::OsString;

use super::*;
use crate::config::Config;
use crate::error::Kind;

const PYTHON: &str = "AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2";

fn config(settings: &[(&str, &str)]) -> Config {
    let env = settings
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)));
    crate::config::load(None, env).unwrap().config
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// The hold in milliseconds for this User-Agent, with the default configuration.
fn by_agent(agent: &str) -> u128 {
    hold(&headers(&[("user-agent", agent)]), None, &config(&[]).queue)
        .unwrap()
        .as_millis()
}

#[test]
fn each_sdk_has_its_timeout_less_the_network_allowance() {
    for (agent, expected) in [
        (PYTHON, 9900),
        (
            "AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.3.16 TeaDSL/1",
            9900,
        ),
        (
            "AlibabaCloud (linux; x64) Node.js/v20.20.2 Core/1.0.1 TeaDSL/1",
            2900,
        ),
        (
            "AlibabaCloud (linux; x64) Node.js/v20.20.2 Core/1.0.1 TeaDSL/2",
            2900,
        ),
        (
            "AlibabaCloud (Linux 6.1.0;x86_64) Python/3.11.7 Core/2.16.1 python-requests/2.18.3",
            9900,
        ),
        (
            "AlibabaCloud (Mac OS X; aarch64) Java/17.0.9+9 tea-util/0.2.21 TeaDSL/1",
            9900,
        ),
        (
            "AlibabaCloud (Linux; amd64) Java/17.0.15+6 Core/4.7.10 HTTPClient/ApacheHttpClient",
            9900,
        ),
        (
            "AlibabaCloud (Linux; amd64) Java/17.0.15 AsyncCoreService/0.3.6-beta TeaDSL/1 alibabacloud-pop",
            30_000,
        ),
        (
            "AlibabaCloud (linux; x64) Node.js/v20.20.2 Core/1.8.0",
            2900,
        ),
        (
            "AlibabaCloud (linux; amd64) Golang/1.22.1 Core/0.01 TeaDSL/1",
            30_000,
        ),
        (
            "AlibabaCloud (linux; amd64) Golang/1.26.8 Core/0.01 TeaDSL/2 my-app/1.0",
            30_000,
        ),
        (
            "AlibabaCloud (Linux 6.1.0; x86_64) PHP/8.2.29 Client/1.5.29 Zend/4.2.29 Guzzle/7",
            9900,
        ),
        (
            "AlibabaCloud (linux; amd64) Golang/1.26.8 Core/1.63.107",
            9900,
        ),
        (
            "AlibabaCloud (linux; amd64) Golang/1.26.8 Core/1.63.107 Aliyun-CLI/3.0.0",
            9900,
        ),
        // Products that an application adds are ignored.
        (
            "AlibabaCloud (linux; x64) Node.js/v20.20.2 Core/1.0.1 TeaDSL/1 my-app/1.0 Python/3",
            2900,
        ),
        (
            "AlibabaCloud (Linux; x86_64) Python/3.11.7 Core/0.4.3 TeaDSL/2 店铺/1.0",
            9900,
        ),
        (
            "AlibabaCloud (linux; amd64) Golang/1.22.1 Core/0.01 TeaDSL/1 Node.js/1",
            30_000,
        ),
        (
            "AlibabaCloud (Linux; amd64) Java/17.0.15 tea-util/0.2.26 TeaDSL/1 AsyncCoreService/1",
            9900,
        ),
        ("my-app/1.0 Python/3.11", 30_000),
        ("Node.js/20", 30_000),
        ("AlibabaCloud (Linux; x86_64) Python", 30_000),
        ("AlibabaCloud (Linux; x86_64 Python/3", 30_000),
        ("", 30_000),
    ] {
        assert_eq!(by_agent(agent), expected, "{agent:?}");
    }
    assert_eq!(
        hold(&HeaderMap::new(), None, &config(&[]).queue).unwrap(),
        Duration::from_secs(30)
    );
}

#[test]
fn every_captured_sdk_is_recognised_by_its_user_agent() {
    let mut seen = 0;
    for entry in
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/captures")).unwrap()
    {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let agent = text.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("user-agent").then_some(value)
        });
        // The CONNECT request has no header.
        let Some(agent) = agent else { continue };
        let name = path.file_name().unwrap().to_str().unwrap();
        let expected = match name.split_once('_').unwrap().0 {
            "node1" | "popcoreget" | "popcorepost" => 2900,
            "go" | "javaasync" => 30_000,
            _ => 9900,
        };
        assert_eq!(by_agent(agent), expected, "{name}: {agent}");
        seen += 1;
    }
    assert_eq!(seen, 80);
}

#[test]
fn the_header_overrides_the_client_and_the_client_overrides_the_default() {
    let client = [
        ("FLOWGATE_ACCOUNTS__0__ID", "acme"),
        ("FLOWGATE_ACCOUNTS__0__ACCESS_KEY_ID", "LTAI-acme"),
        ("FLOWGATE_ACCOUNTS__0__ACCESS_KEY_SECRET__ENV", "SECRET"),
        ("FLOWGATE_CLIENTS__0__ACCESS_KEY_ID", "team-a"),
        ("FLOWGATE_CLIENTS__0__ACCESS_KEY_SECRET__ENV", "SECRET"),
        ("FLOWGATE_CLIENTS__0__ACCOUNT", "acme"),
        ("FLOWGATE_CLIENTS__0__ACTIONS", "*"),
        ("SECRET", "a-secret-of-some-length"),
    ];
    let header = ("x-flowgate-hold", "7s");
    let agent = ("user-agent", PYTHON);
    let own = ("FLOWGATE_CLIENTS__0__HOLD", "15s");
    let all = ("FLOWGATE_QUEUE__HOLD", "20s");
    let short = ("FLOWGATE_QUEUE__MAX_HOLD", "5s");
    for (sent, settings, expected) in [
        (vec![header, agent], vec![own, all], 7000),
        (vec![agent], vec![own, all], 15_000),
        (vec![agent], vec![all], 20_000),
        (vec![agent], vec![], 9900),
        (vec![], vec![], 30_000),
        (vec![header], vec![short], 5000),
        (vec![agent], vec![short], 5000),
        (vec![], vec![short], 5000),
    ] {
        let config = config(&[&client[..], &settings].concat());
        let hold = hold(&headers(&sent), config.clients.first(), &config.queue).unwrap();
        assert_eq!(
            hold,
            Duration::from_millis(expected),
            "{sent:?} {settings:?}"
        );
    }
}

#[test]
fn the_hold_header_is_one_duration_within_bounds() {
    let requested = |values: &[&str]| {
        let values: Vec<_> = values
            .iter()
            .map(|value| ("x-flowgate-hold", *value))
            .collect();
        hold(
            &headers(&values),
            None,
            &config(&[("FLOWGATE_QUEUE__MAX_HOLD", "2m")]).queue,
        )
    };
    for (value, expected) in [
        ("8000", 8000),
        ("8000ms", 8000),
        ("8s", 8000),
        ("1m", 60_000),
        ("1", 1),
        ("0001", 1),
        ("2h", 120_000),
        ("86400000", 120_000),
    ] {
        assert_eq!(
            requested(&[value]).unwrap(),
            Duration::from_millis(expected),
            "{value}"
        );
    }
    for values in [
        &[""][..],
        &["0"],
        &["0s"],
        &["-1"],
        &["-1s"],
        &["+1"],
        &["1.5s"],
        &["1,5"],
        &["8 s"],
        &["8S"],
        &["1e3"],
        &["0x10"],
        &["25h"],
        &["86400001"],
        &["99999999999999999999"],
        &["18446744073709551615h"],
        &["forever"],
        &["8s, 8s"],
        &["八"],
        &["8s", "8s"],
        &["", ""],
    ] {
        let refusal = requested(values).unwrap_err();
        assert_eq!(refusal.kind, Kind::BadRequest, "{values:?}");
        assert!(
            refusal.message.contains("x-flowgate-hold"),
            "{}",
            refusal.message
        );
    }
}

//! Rules of the configuration, and that no message shows what was written.

use std::ffi::OsString;
use std::io::Write;
use std::time::Duration;

use super::file::{Item, Node};
use super::keys::KEYS;
use super::*;

mod credential_sources;
mod profiles;

const SENTINEL: &str = "hunter2-hunter2";

/// Variables for [`load`].
fn env(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// Loads this text as a file.
fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Loaded, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let prefix = format!("{}:", file.path().display());
    load(Some(file.path()), env(variables)).map_err(|mistakes| {
        assert!(!format!("{mistakes:?}").contains(SENTINEL), "{mistakes}");
        mistakes.to_string().replace(&prefix, "")
    })
}

fn config(text: &str) -> Config {
    load_text(text, &[("SECRET", SENTINEL)]).unwrap().config
}

/// The key, set to a piece of TOML.
fn written(path: &str, value: &str) -> String {
    let path = path.replace("<Action>", "CreateFlow");
    match path.rsplit_once('.') {
        None => format!("{path} = {value}\n"),
        Some((table, key)) if table.ends_with("[]") => {
            format!("[[{}]]\n{key} = {value}\n", table.trim_end_matches("[]"))
        }
        Some((table, key)) => match table.split_once("[].") {
            Some((list, table)) => format!("[[{list}]]\n{table}.{key} = {value}\n"),
            None => format!("[{table}]\n{key} = {value}\n"),
        },
    }
}

#[test]
fn every_key_of_the_manual_is_read() {
    for key in KEYS {
        // No key takes a date, so each is named in a mistake.
        let mistakes = load_text(&written(key.path, "1979-05-27"), &[]).unwrap_err();
        let path = key
            .path
            .replace("[]", "[0]")
            .replace("<Action>", "CreateFlow");
        assert!(
            mistakes.contains(&format!("{path}: ")),
            "{}: {mistakes}",
            key.path
        );
        assert!(
            !mistakes.contains("unknown key"),
            "{}: {mistakes}",
            key.path
        );
    }
}

#[test]
fn an_empty_variable_does_not_allow_a_client_all_sub_customers() {
    let text = "[[accounts]]\nid = \"acme\"\naccess_key_id = \"LTAI-acme\"\naccess_key_secret = { env = \"SECRET\" }\n\
                [[clients]]\naccess_key_id = \"team-a\"\naccess_key_secret = { env = \"SECRET\" }\naccount = \"acme\"\n\
                actions = [\"*\"]\ncust_space_ids = [\"space-1\"]\n";
    let with = |spaces| {
        load_text(
            text,
            &[
                ("SECRET", SENTINEL),
                ("FLOWGATE_CLIENTS__0__CUST_SPACE_IDS", spaces),
            ],
        )
    };
    for empty in ["", ",", " , "] {
        let mistakes = with(empty).err().unwrap();
        assert!(
            mistakes.contains("expected a CustSpaceId: an empty list would allow all of them"),
            "{mistakes}"
        );
    }
    assert_eq!(
        with("space-2").unwrap().config.clients[0].cust_space_ids,
        ["space-2"]
    );
}

#[test]
fn a_misplaced_secret_is_never_shown() {
    let forms = [
        "\"S\"",
        "S",
        "'S",
        "\"S",
        "\"\"\"\nS",
        "\"a\\S\"",
        "[\"S\"]",
        "[S]",
        "[[\"S\"]]",
        "{ env = \"S\" }",
        "{ file = \"S\" }",
        "{ env = S }",
        "{ value = \"S\" }",
        "\"https://user:S@host\"",
        "\"https://S\"",
        "\"redis://:S@host\"",
        "{ env = \"NAME\" } S",
        "1979-S",
        "0xS",
        "\"a\" # S\nS",
        "\"/S\"",
        "\"unix:S\"",
    ];
    let mut mistaken = 0;
    for key in KEYS {
        for form in forms {
            let form = form.replace('S', SENTINEL);
            let variable = key
                .path
                .replace("[]", ".0")
                .replace("<Action>", "CreateFlow")
                .replace('.', "__");
            let variable = format!("FLOWGATE_{variable}").to_uppercase();
            let results = [
                load_text(&written(key.path, &form), &[]),
                load_text("", &[(&variable, &form)]),
                load_text("", &[(&format!("{variable}__ENV"), &form)]),
                load_text("", &[(&format!("{variable}__FILE"), &form)]),
            ];
            for result in results {
                match result {
                    Err(mistakes) => {
                        assert!(
                            !mistakes.contains(SENTINEL),
                            "{} = {form}: {mistakes}",
                            key.path
                        );
                        mistaken += 1;
                    }
                    Ok(Loaded { warnings, .. }) => {
                        assert!(
                            !warnings.concat().contains(SENTINEL),
                            "{} = {form}: {warnings:?}",
                            key.path
                        );
                    }
                }
            }
        }
    }
    assert!(mistaken > KEYS.len() * forms.len(), "{mistaken}");
}

#[test]
fn the_printed_configuration_holds_no_secret() {
    let text = "
        [[accounts]]
        id = 'acme'
        access_key_id = 'LTAI-acme-1234'
        access_key_secret = { env = 'SECRET' }
        [[clients]]
        access_key_id = 'team'
        access_key_secret = { env = 'SECRET' }
        account = 'acme'
        actions = ['*']
    ";
    let config = config(text);
    assert_eq!(config.clients[0].secrets[0].expose(), SENTINEL);
    let shown = format!("{config:?} {}", effective(&config));
    assert!(!shown.contains(SENTINEL), "{shown}");
    assert!(!effective(&config).to_string().contains("LTAI-acme-1234"));
}

#[test]
fn unknown_keys_are_relayed_by_default_only_locally_and_without_secrets() {
    let account =
        "[[accounts]]\nid = 'a'\naccess_key_id = 'LTAI'\naccess_key_secret = { env = 'SECRET' }\n";
    let aliases = "[[accounts]]\nid = 'a'\naliases = ['LTAI']\n";
    let cases = [
        ("", UnknownKeys::Relay),
        ("[listen]\nproxy = '[::1]:8080'", UnknownKeys::Relay),
        (
            "[listen]\nproxy = 'unix:/run/flowgate.sock'",
            UnknownKeys::Relay,
        ),
        (aliases, UnknownKeys::Relay),
        (account, UnknownKeys::Refuse),
        ("[listen]\nproxy = '0.0.0.0:8080'", UnknownKeys::Refuse),
        (
            "unknown_keys = 'relay'\n[listen]\nproxy = '0.0.0.0:8080'",
            UnknownKeys::Relay,
        ),
        ("unknown_keys = 'refuse'", UnknownKeys::Refuse),
    ];
    for (text, expected) in cases {
        assert_eq!(config(text).unknown_keys, expected, "{text}");
    }
    let warnings = load_text("unknown_keys = 'refuse'", &[]).unwrap().warnings;
    assert_eq!(
        warnings,
        ["no account is configured and unknown keys are refused: every call is refused"]
    );
    let Loaded {
        config, warnings, ..
    } = load_text("mode = 'observe'", &[]).unwrap();
    assert_eq!(config.mode, Mode::Observe);
    assert_eq!(
        warnings,
        ["mode is observe: limits are counted but not enforced"]
    );
}

#[test]
fn a_lower_burst_means_fewer_tokens_with_a_shorter_window() {
    let limit = |text: &str| {
        let limits = config(&format!("[limits]\npreset = 'none'\nCreateFlow = {text}")).limits;
        limits
            .get("CreateFlow")
            .map(|limit| (limit.count.get(), limit.window))
    };
    let millis = Duration::from_millis;
    assert_eq!(limit("'5/1s'"), Some((5, millis(1000))));
    assert_eq!(limit("{ rate = '5/1s' }"), Some((5, millis(1000))));
    assert_eq!(
        limit("{ rate = '5/1s', burst = 5 }"),
        Some((5, millis(1000)))
    );
    assert_eq!(
        limit("{ rate = '5/1s', burst = 1 }"),
        Some((1, millis(200)))
    );
    assert_eq!(
        limit("{ rate = '10/2s', burst = 5, reserve = 0 }"),
        Some((5, millis(1000)))
    );
    assert_eq!(
        limit("{ rate = '3/1s', burst = 1 }"),
        Some((1, Duration::from_nanos(333_333_334)))
    );
    assert_eq!(limit("'off'"), None);
    assert_eq!(config("[limits]\nCreateFlow = 'off'").limits.len(), 61);
}

#[test]
fn host_and_port_come_from_the_url_unless_they_are_written() {
    let upstream = |text: &str| {
        let upstream = config(&format!("[upstream]\n{text}")).upstream;
        (upstream.dial_host, upstream.dial_port, upstream.host)
    };
    let expect = |host: &str, port, header: &str| (host.to_owned(), port, header.to_owned());
    assert_eq!(
        upstream(""),
        expect(
            "cams.ap-southeast-1.aliyuncs.com",
            443,
            "cams.ap-southeast-1.aliyuncs.com"
        )
    );
    assert_eq!(
        upstream("url = 'HTTPS://CAMS.example:443/'"),
        expect("cams.example", 443, "cams.example:443")
    );
    assert_eq!(
        upstream("url = 'http://127.0.0.1:81'"),
        expect("127.0.0.1", 81, "127.0.0.1:81")
    );
    assert_eq!(
        upstream("url = 'http://[::1]'\nhost = 'cams.example'"),
        expect("::1", 80, "cams.example")
    );
    assert_eq!(
        upstream("url = 'http://cams.test'\nplaintext = true"),
        expect("cams.test", 80, "cams.test")
    );
    let pinned = "url = 'http://cams.test'\nconnect_to = ['127.0.0.2:80', '[::1]:80']";
    assert_eq!(upstream(pinned), expect("cams.test", 80, "cams.test"));
}

#[test]
fn urls_with_more_than_scheme_host_and_port_are_refused() {
    let urls = [
        "cams.example",
        "ftp://cams.example",
        "https://",
        "https://cams.example/x",
        "https://cams.example?x",
        "https://cams.example#x",
        "https://@cams.example",
        "https://a:b@cams.example",
        "https://cams.example:",
        "https://cams.example:0",
        "https://cams.example:65536",
        "https://cams..example",
        "https://-cams.example",
        "https://::1",
        "https://[::1",
        "https://cams example",
        "https://cams.example:+443",
        "//cams.example",
        "",
    ];
    for url in urls {
        let mistakes = load_text(&format!("[upstream]\nurl = '{url}'"), &[]).unwrap_err();
        let expected =
            "scheme, host and port only, such as https://cams.ap-southeast-1.aliyuncs.com";
        assert_eq!(
            mistakes,
            format!("2: upstream.url: expected {expected}"),
            "{url}"
        );
    }
}

#[test]
fn a_hold_is_auto_or_a_duration() {
    let hold =
        |text| load_text(&format!("[queue]\n{text}"), &[]).map(|loaded| loaded.config.queue.hold);
    let fixed = |seconds| Ok(Hold::Fixed(Duration::from_secs(seconds)));
    assert_eq!(hold(""), Ok(Hold::Auto));
    assert_eq!(hold("hold = 'auto'\nmax_hold = '2s'"), Ok(Hold::Auto));
    assert_eq!(hold("hold = '2m'"), fixed(120));
    assert_eq!(hold("hold = '3m'\nmax_hold = '3m'"), fixed(180));
    let mistake = |text: &str| Err(format!("2: queue.hold: expected {text}"));
    assert_eq!(
        hold("hold = 'Auto'"),
        mistake("\"auto\" or a duration such as 10s")
    );
    assert_eq!(
        hold("hold = 10"),
        mistake("\"auto\" or a duration such as 10s")
    );
    assert_eq!(hold("hold = '0s'"), mistake("a value from 1ms to 24h"));
    assert_eq!(hold("hold = '3m'"), mistake("at most 2m (queue.max_hold)"));
}

#[test]
fn max_gap_is_at_least_the_gap() {
    let learn = |text| {
        (
            config(text).learn.gap.as_millis(),
            config(text).learn.max_gap.as_millis(),
        )
    };
    assert_eq!(learn(""), (5, 40));
    assert_eq!(learn("[learn]\ngap = '60ms'"), (60, 60));
    assert_eq!(learn("[learn]\ngap = '60ms'\nmax_gap = '1s'"), (60, 1000));
}

#[test]
fn the_tree_of_a_file_keeps_the_line_of_each_key() {
    let id = mistakes::FileNames::default().add("flowgate.toml".as_ref());
    let text = "\n[a]\nb = [\n1,\n2]\n[[c]]\n[[c]]\nd = 1\n";
    let Ok(Node {
        item: Item::Table(root),
        ..
    }) = file::parse(text, id)
    else {
        panic!("is valid TOML");
    };
    let lines = |node: &Node| match &node.item {
        Item::List(nodes) => nodes.iter().map(|node| node.origin.clone()).collect(),
        Item::Table(nodes) => nodes.nodes().map(|node| node.origin.clone()).collect(),
        Item::Scalar { .. } => Vec::new(),
    };
    let at = |line| id.line(line);
    assert_eq!(lines(root.get("a").unwrap()), [at(3)]);
    assert_eq!(lines(root.get("c").unwrap()), [at(6), at(7)]);
    let Item::Table(a) = &root.get("a").unwrap().item else {
        panic!("is a table")
    };
    assert_eq!(lines(a.get("b").unwrap()), [at(4), at(5)]);
}

#[test]
fn a_proxy_is_an_http_url_with_a_port_and_credentials_by_place() {
    let with = |text: &str| {
        let variables = [("SECRET", SENTINEL), ("PAIR", "user:pass:word")];
        load_text(&format!("[upstream]\n{text}"), &variables).map(|loaded| loaded.config.upstream)
    };
    let proxy = "proxy = 'http://proxy.corp:3128'";
    let upstream = with(&format!("{proxy}\nproxy_credentials = {{ env = 'PAIR' }}")).unwrap();
    assert_eq!(
        upstream.proxy.map(|proxy| proxy.to_string()).as_deref(),
        Some("http://proxy.corp:3128")
    );
    assert_eq!(
        upstream.proxy_credentials.unwrap().expose(),
        "user:pass:word"
    );
    let ipv6 = with("proxy = 'http://[::1]:8/'").unwrap().proxy.unwrap();
    assert_eq!((&*ipv6.host, ipv6.port), ("::1", 8));
    assert_eq!(ipv6.to_string(), "http://[::1]:8");

    let form = "expected scheme, host and port of an HTTP proxy, such as http://proxy.example:3128";
    for (text, mistake) in [
        ("proxy = 'http://proxy.corp'", form),
        ("proxy = 'proxy.corp:3128'", form),
        ("proxy = 'socks5://proxy.corp:1080'", form),
        ("proxy = 'http://proxy.corp:3128/x'", form),
        ("proxy = 'http://proxy.corp:0'", form),
        (
            "proxy = 'https://proxy.corp:3128'",
            "expected http://host:port: TLS to the proxy itself is not supported. TLS to CAMS runs \
             end to end through the proxy's tunnel",
        ),
        (
            "proxy = 'http://user:hunter2@proxy.corp:3128'",
            "expected a URL without user and password: set upstream.proxy_credentials instead",
        ),
        (
            "proxy = 'http://127.0.0.1:8080'",
            "this is one of Flowgate's own listeners: expected another address",
        ),
    ] {
        assert_eq!(
            with(text).unwrap_err(),
            format!("2: upstream.proxy: {mistake}"),
            "{text}"
        );
    }
    let both = format!("{proxy}\nconnect_to = ['127.0.0.2:443']");
    assert_eq!(
        with(&both).unwrap_err(),
        "2: upstream.proxy: expected either this key or upstream.connect_to: the proxy resolves \
         CAMS's name"
    );
    let alone = "proxy_credentials = { env = 'PAIR' }";
    assert_eq!(
        with(alone).unwrap_err(),
        "2: upstream.proxy_credentials: has no effect without upstream.proxy: expected \
         http://host:port there"
    );
    let no_colon = format!("{proxy}\nproxy_credentials = {{ env = 'SECRET' }}");
    assert_eq!(
        with(&no_colon).unwrap_err(),
        "3: upstream.proxy_credentials: expected user:password"
    );
    // To another machine's proxy, loopback is that machine.
    let far = format!("url = 'http://127.0.0.1:81'\n{proxy}");
    let plaintext = "2: upstream.url: expected https://: http:// is allowed only to loopback, or \
                     with upstream.plaintext = true";
    assert_eq!(with(&far).unwrap_err(), plaintext);
    assert!(with(&format!("{far}\nplaintext = true")).is_ok());
    assert!(with("url = 'http://127.0.0.1:81'\nproxy = 'http://127.0.0.1:82'").is_ok());
}

#[test]
fn accounts_with_the_same_url_share_an_upstream() {
    let account = |id: &str, url: &str| {
        format!("[[accounts]]\nid = '{id}'\naliases = ['LTAI-{id}-1']\nupstream = '{url}'\n")
    };
    let text = [
        account("a", "https://cams.eu-central-1.aliyuncs.com"),
        account("b", "https://cams.ap-southeast-1.aliyuncs.com:443/"),
        account("c", "HTTPS://CAMS.eu-central-1.aliyuncs.com:443"),
        account("d", "http://127.0.0.1:9"),
        "[upstream]\nhost = 'x.example'\nidle_timeout = '3s'\nconnect_to = ['192.0.2.1:443']\n"
            .to_owned(),
    ]
    .concat();
    let config = config(&text);
    let places: Vec<_> = config
        .accounts
        .iter()
        .map(|account| account.upstream_index().index())
        .collect();
    assert_eq!(places, [1, 0, 1, 2]);
    let upstreams: Vec<_> = config
        .upstreams()
        .map(|it| (it.url(), &*it.host, it.connect_to.len(), it.idle_timeout))
        .collect();
    let three = Duration::from_secs(3);
    assert_eq!(
        upstreams,
        [
            (
                "https://cams.ap-southeast-1.aliyuncs.com:443".to_owned(),
                "x.example",
                1,
                three
            ),
            (
                "https://cams.eu-central-1.aliyuncs.com:443".to_owned(),
                "cams.eu-central-1.aliyuncs.com",
                0,
                three
            ),
            ("http://127.0.0.1:9".to_owned(), "127.0.0.1:9", 0, three),
        ]
    );
}

#[test]
fn the_upstream_of_an_account_is_checked_like_the_default_one() {
    let with = |url: &str, more: &str| {
        let text = format!(
            "[[accounts]]\nid = 'a'\naliases = ['LTAI-first-1']\nupstream = '{url}'\n{more}"
        );
        load_text(&text, &[]).map(|_| ())
    };
    let form =
        "expected scheme, host and port only, such as https://cams.ap-southeast-1.aliyuncs.com";
    let https = "expected https://: http:// is allowed only to loopback, or with \
                 upstream.plaintext = true";
    let own = "this is one of Flowgate's own listeners: expected another address";
    for (url, mistake) in [
        ("cams.example", form),
        ("https://cams.example/x", form),
        ("http://cams.example", https),
        ("http://127.0.0.1:8080", own),
    ] {
        assert_eq!(
            with(url, ""),
            Err(format!("4: accounts[0].upstream: {mistake}")),
            "{url}"
        );
    }
    assert_eq!(
        with("http://cams.example", "[upstream]\nplaintext = true"),
        Ok(())
    );
    // Pinned addresses are those of upstream.url.
    assert_eq!(
        with(
            "http://cams.example",
            "[upstream]\nurl = 'http://cams.test'\nconnect_to = ['127.0.0.1:9']"
        ),
        Err(format!("4: accounts[0].upstream: {https}"))
    );
    let many: String = (0..65)
        .map(|number| {
            format!(
                "[[accounts]]\nid = 'a{number}'\naliases = ['LTAI-alias-{number}']\nupstream = 'https://u{number}.example'\n"
            )
        })
        .collect();
    assert_eq!(
        load_text(&many, &[]).unwrap_err(),
        "260: accounts[64].upstream: expected at most 64 different upstreams"
    );
}

#[test]
fn aliases_with_a_prefix_are_shown_and_warned_of_where_other_hosts_reach_them() {
    let text =
        "[[accounts]]\nid = 'a'\naliases = ['STS.*', 'LTAI-acme-1234', 'LTAI-acme-12*', '*']\n";
    let far = format!("{text}[listen]\nproxy = '0.0.0.0:8080'\n");
    let exact = far
        .replace("'STS.*', ", "")
        .replace(", 'LTAI-acme-12*', '*'", "");
    for (text, warnings) in [(text, 0), (&far, 1), (&exact, 0)] {
        let Loaded {
            config,
            warnings: found,
            ..
        } = load_text(text, &[]).unwrap();
        assert_eq!(found.len(), warnings, "{found:?}");
        assert!(
            found
                .iter()
                .all(|warning| warning.starts_with("aliases with * relay"))
        );
        assert_eq!(config.accounts[0].id.as_str(), "a");
    }
    assert_eq!(
        effective(&config(text))["accounts"][0]["aliases"],
        serde_json::json!(["STS.*", "LTAI***34", "LTAI***12*", "*"])
    );
}

#[test]
fn balancers_are_addresses_and_networks() {
    let listen = |keys: &str| load_text(&format!("[listen]\n{keys}\n"), &[]);
    let shown = |keys: &str| {
        let Loaded {
            config, warnings, ..
        } = listen(keys).unwrap();
        (
            effective(&config)["listen"]["trusted_proxies"].clone(),
            warnings.len(),
        )
    };
    let several = "trusted_proxies = ['10.0.0.0/8', '192.0.2.1', '2001:db8::/32', '::1']";
    let expected = serde_json::json!(["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32", "::1/128"]);
    assert_eq!(shown(several), (expected, 0));
    assert_eq!(shown(""), (serde_json::json!([]), 0));
    assert_eq!(
        shown("trusted_proxies = ['0.0.0.0/0', '::/0']"),
        (serde_json::json!(["0.0.0.0/0", "::/0"]), 2)
    );
    let form =
        "expected an address or a network such as 10.0.0.0/8, without bits beyond its prefix";
    for wrong in ["10.0.0.1/8", "10.0.0.0/33", "10.0.0", "balancer", ""] {
        let mistakes = listen(&format!("trusted_proxies = ['{wrong}']")).unwrap_err();
        assert_eq!(mistakes, format!("2: listen.trusted_proxies[0]: {form}"));
    }
    assert_eq!(
        listen("proxy_protocol = true").unwrap_err(),
        "2: listen.proxy_protocol: expected listen.trusted_proxies to be set too: only connections \
         from these addresses are accepted"
    );
    assert!(listen("proxy_protocol = true\nproxy = 'unix:/run/flowgate.sock'").is_ok());
}

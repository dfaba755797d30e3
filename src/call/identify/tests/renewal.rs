//! Reloads between identification and sending: rotated secrets, renewed sessions, and clients that
//! were restricted or removed.

use super::call::{Call, v1, v3};
use super::*;
use crate::call::current_config::{ConfigSnapshot, Endpoints};
use crate::upstream::Upstreams;

/// A gate whose settings can be reloaded.
struct Gate {
    config_snapshot: ConfigSnapshot,
    nonces: Nonces,
    now: SystemTime,
    folder: tempfile::TempDir,
}

impl Gate {
    fn new(toml: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let now = time::parse(NOW).unwrap();
        let config_snapshot = snapshot(read(&folder, toml));
        Self {
            config_snapshot,
            nonces: Nonces::new(now - Duration::from_secs(3600)),
            now,
            folder,
        }
    }

    fn then(&mut self, toml: &str) {
        let config = read(&self.folder, toml);
        let ConfigSnapshot {
            upstreams, keepers, ..
        } = &self.config_snapshot;
        let endpoints = Endpoints {
            upstreams: upstreams.reloaded(&config, None).unwrap(),
            keepers: keepers.reloaded(&config, None).unwrap(),
        };
        self.config_snapshot = self.config_snapshot.next(config, endpoints);
    }

    fn ask(&self, capture: &Capture) -> Result<Waiting, Refusal> {
        let request = Request::try_from(capture).unwrap();
        let claim = head(
            &request.into_parts().0,
            &self.config_snapshot.directory,
            self.now,
        )?;
        let claim = claim.expect("these calls are signed in their head");
        let caller = claim.prove(Bytes::from(capture.body.clone()), &self.nonces, self.now)?;
        if let Caller::Verified(call) = &caller {
            classify::authorize(call)?;
        }
        Ok(Waiting {
            account: caller.account().clone(),
            call: caller.into_sendable(),
        })
    }

    /// The request that CAMS would get for a call that was identified before.
    fn send(&self, Waiting { account, call }: &mut Waiting) -> Result<Capture, Refusal> {
        let mut generation = 0;
        self.config_snapshot
            .recheck(call, account, &mut generation)?;
        assert_eq!(generation, self.config_snapshot.generation);
        Ok(signed(call, self.now).into())
    }
}

fn endpoints(config: &Config) -> Endpoints {
    Endpoints {
        upstreams: Upstreams::new(config, Vec::new(), None).unwrap(),
        keepers: Keepers::new(config, None).unwrap(),
    }
}

fn snapshot(config: Config) -> ConfigSnapshot {
    let endpoints = endpoints(&config);
    ConfigSnapshot::new(config, endpoints)
}

/// An identified call that is queued.
struct Waiting {
    account: AccountId,
    call: Sendable,
}

fn read(folder: &tempfile::TempDir, toml: &str) -> Config {
    let path = folder.path().join("flowgate.toml");
    std::fs::write(
        &path,
        format!("{toml}\n[listen]\nnames = [\"127.0.0.1\"]\n"),
    )
    .unwrap();
    let env = ["ONE", "TWO"].map(|name| (name.into(), format!("secret-{name}").into()));
    crate::config::load(Some(&path), env).unwrap().config
}

const ACME: &str = "[[accounts]]\nid = \"acme\"\naccess_key_id = \"LTAI-acme-1\"\naccess_key_secret = { env = \"ONE\" }\n";

fn team(more: &str) -> String {
    format!("{ACME}[[clients]]\naccess_key_id = \"team-a\"\naccount = \"acme\"\n{more}\n")
}

fn write_session(folder: &tempfile::TempDir, key: &str, secret: &str) {
    let session = serde_json::json!({
        "AccessKeyId": key,
        "AccessKeySecret": secret,
        "SecurityToken": format!("token of {key}"),
    });
    std::fs::write(folder.path().join("acme.json"), session.to_string()).unwrap();
}

/// A call with each signature version, with separate nonces.
fn calls(key: &'static str, secret: &'static str) -> [Capture; 2] {
    let nonce = format!("nonce-{}", fastrand::u64(..));
    let sign = |call: &mut Call| {
        call.key = key;
        call.secret = secret;
    };
    let third = v3(|call| {
        sign(call);
        call.set("x-acs-signature-nonce", &format!("{nonce}-3"));
    });
    [v1(&[("SignatureNonce", &nonce)], sign), third]
}

fn headers(sent: &Capture) -> String {
    sent.headers
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value)))
        .collect()
}

#[test]
fn both_secrets_are_valid_during_a_rotation() {
    let both = "access_key_secret = { env = \"TWO\" }\nprevious_access_key_secret = { env = \"ONE\" }\nactions = [\"*\"]";
    let mut gate = Gate::new(&team(both));
    for secret in ["secret-ONE", "secret-TWO"] {
        assert!(
            calls("team-a", secret)
                .iter()
                .all(|call| gate.ask(call).is_ok()),
            "{secret}"
        );
    }
    let third = calls("team-a", "secret-THREE");
    assert!(
        third
            .iter()
            .all(|call| gate.ask(call).err().unwrap().kind == Kind::SignatureDoesNotMatch)
    );
    gate.then(&team(
        "access_key_secret = { env = \"TWO\" }\nactions = [\"*\"]",
    ));
    let old = calls("team-a", "secret-ONE");
    assert!(
        old.iter()
            .all(|call| gate.ask(call).err().unwrap().kind == Kind::SignatureDoesNotMatch)
    );
}

#[test]
fn a_disabled_client_is_refused_after_its_signature_is_verified() {
    let gate = Gate::new(&team(
        "access_key_secret = { env = \"ONE\" }\nactions = [\"*\"]\ndisabled = true",
    ));
    for call in calls("team-a", "secret-ONE") {
        assert_eq!(gate.ask(&call).err().unwrap().kind, Kind::Forbidden);
    }
    for call in calls("team-a", "guessed") {
        assert_eq!(
            gate.ask(&call).err().unwrap().kind,
            Kind::SignatureDoesNotMatch
        );
    }
}

#[test]
fn a_queued_call_is_authorized_again_before_it_is_sent() {
    let may = "access_key_secret = { env = \"ONE\" }\nactions = [\"CreateFlow\"]";
    let [call, _] = calls("team-a", "secret-ONE");
    for (then, expected) in [
        (
            team(&format!("{may}\ndisabled = true")),
            Some(Kind::Forbidden),
        ),
        (
            team("access_key_secret = { env = \"ONE\" }\nactions = [\"ListFlow\"]"),
            Some(Kind::Forbidden),
        ),
        (
            team(&format!("{may}\ncust_space_ids = [\"space-2\"]")),
            Some(Kind::Forbidden),
        ),
        (ACME.to_owned(), Some(Kind::Forbidden)),
        (team(&format!("{may}\nweight = 5")), None),
    ] {
        let mut gate = Gate::new(&team(may));
        let mut caller = gate.ask(&call).unwrap();
        gate.then(&then);
        assert_eq!(
            gate.send(&mut caller).err().map(|refusal| refusal.kind),
            expected,
            "{then}"
        );
    }
}

#[test]
fn a_queued_call_is_signed_with_its_accounts_current_credentials() {
    let mut gate = Gate::new(ACME);
    let [call, other] = calls("LTAI-acme-1", "secret-ONE");
    let mut caller = gate.ask(&call).unwrap();
    let mut drained = gate.ask(&other).unwrap();
    gate.then(&ACME.replace("LTAI-acme-1", "LTAI-acme-2"));
    assert!(
        gate.send(&mut caller)
            .unwrap()
            .target
            .contains("AccessKeyId=LTAI-acme-2")
    );
    // The account is removed: new calls are refused, and queued ones are sent with its last
    // credentials.
    gate.then("unknown_keys = \"refuse\"");
    assert!(headers(&gate.send(&mut drained).unwrap()).contains("Credential=LTAI-acme-1"));
    let [again, _] = calls("LTAI-acme-1", "secret-ONE");
    assert_eq!(gate.ask(&again).err().unwrap().kind, Kind::UnknownAccessKey);
}

#[test]
fn a_queued_relayed_call_whose_key_is_no_longer_accepted_is_refused() {
    let account = "[[accounts]]\nid = \"acme\"\naliases = [";
    let refusing = "unknown_keys = \"refuse\"\n";
    let [v1, _] = calls("STS.one", "not-here");
    let mut gate = Gate::new(&format!("{refusing}{account}\"STS.*\"]\n"));
    let mut caller = gate.ask(&v1).unwrap();
    gate.then(&format!("{refusing}{account}\"LTAI-other-1\"]\n"));
    let refused = gate.send(&mut caller).err().map(|refusal| refusal.kind);
    assert_eq!(refused, Some(Kind::UnknownAccessKey));
}

#[test]
fn a_queued_relayed_call_whose_key_moves_to_another_account_is_flushed() {
    let relaying = "unknown_keys = \"relay\"\n";
    let aliases =
        |id: &str, aliases: &str| format!("[[accounts]]\nid = \"{id}\"\naliases = [{aliases}]\n");
    let sessions = aliases("acme", "\"STS.*\"");
    let exact = aliases("acme", "\"STS.one\"");
    let longer = aliases("partner", "\"STS.o*\"");
    let all = aliases("partner", "\"*\"");
    let [v1, _] = calls("STS.one", "not-here");
    let v3 = v3(|call| {
        call.key = "STS.one";
        call.secret = "not-here";
        call.set("host", UPSTREAM);
    });
    for (before, after, is_moved) in [
        (relaying, sessions.clone(), true),
        (relaying, all.clone(), true),
        (&*sessions, format!("{sessions}{longer}"), true),
        (&*sessions, format!("{sessions}{all}"), false),
        (&*sessions, exact.clone(), false),
        (&*exact, format!("{exact}{longer}"), false),
        (&*exact, longer.clone(), true),
        (&*exact, aliases("partner", "\"STS.one\""), true),
        // It was in the queue of its account, so it is sent in that lane.
        (&*sessions, relaying.to_owned(), false),
    ] {
        for call in [&v1, &v3] {
            let mut gate = Gate::new(before);
            let mut caller = gate.ask(call).unwrap();
            gate.then(&after);
            let refused = gate.send(&mut caller).err().map(|refusal| refusal.kind);
            assert_eq!(
                refused,
                is_moved.then_some(Kind::Flushed),
                "{before} then {after}"
            );
        }
    }
}

#[test]
fn a_prefix_does_not_take_a_verified_call_from_its_account() {
    let folder = tempfile::tempdir().unwrap();
    write_session(&folder, "STS.one", "secret-1");
    let toml = "[[accounts]]\nid = \"acme\"\ncredentials = { file = \"acme.json\" }\n";
    let others = "[[accounts]]\nid = \"partner\"\naliases = [\"STS.*\"]\n";
    let now = time::parse(NOW).unwrap();
    let mut gate = Gate {
        config_snapshot: snapshot(read(&folder, toml)),
        nonces: Nonces::new(now - Duration::from_secs(3600)),
        now,
        folder,
    };
    let [_, call] = calls("STS.one", "secret-1");
    let mut queued = gate.ask(&call).unwrap();
    for key in ["STS.two", "STS.three", "STS.four"] {
        write_session(&gate.folder, key, "secret-2");
        gate.then(&format!("{toml}{others}"));
    }
    assert!(headers(&gate.send(&mut queued).unwrap()).contains("Credential=STS.four"));
    // The key is not remembered any more, so a new call is one of an unverified caller.
    let [v1, _] = calls("STS.one", "secret-1");
    assert_eq!(gate.ask(&v1).unwrap().account.as_str(), "partner");
}

#[test]
fn a_queued_call_whose_account_was_renamed_is_flushed() {
    let relaying = "unknown_keys = \"relay\"\n";
    let [relayed, _] = calls("LTAI-acme-1", "not-here");
    let [managed, _] = calls("LTAI-acme-1", "secret-ONE");
    let alias = "[[accounts]]\nid = \"partner\"\naliases = [\"LTAI-acme-1\"]\n";
    for (before, call, after) in [
        (
            ACME,
            &managed,
            ACME.replace("id = \"acme\"", "id = \"acme-prod\""),
        ),
        (ACME, &managed, alias.to_owned()),
        (relaying, &relayed, format!("{relaying}{ACME}")),
        (relaying, &relayed, format!("{relaying}{alias}")),
    ] {
        let mut gate = Gate::new(before);
        let mut caller = gate.ask(call).unwrap();
        gate.then(&after);
        let refusal = gate.send(&mut caller).unwrap_err();
        assert_eq!(
            (refusal.kind, refusal.retry_after),
            (Kind::Flushed, Some(Duration::from_secs(1))),
            "{after}"
        );
    }
}

/// A gate with an account whose credentials are in this file.
fn gate_of_file(content: &serde_json::Value) -> (Gate, &'static str) {
    let toml = "[[accounts]]\nid = \"acme\"\ncredentials = { file = \"acme.json\" }\n";
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("acme.json"), content.to_string()).unwrap();
    let now = time::parse(NOW).unwrap();
    let gate = Gate {
        config_snapshot: snapshot(read(&folder, toml)),
        nonces: Nonces::new(now - Duration::from_secs(3600)),
        now,
        folder,
    };
    (gate, toml)
}

#[test]
fn a_long_lived_key_or_an_expired_session_that_was_replaced_is_refused() {
    for (token, expires, is_accepted) in [
        (None, None, false),
        (None, Some("2999-01-01T00:00:00Z"), false),
        (Some("token"), Some("2020-01-01T00:00:00Z"), false),
        (Some("token"), Some("2999-01-01T00:00:00Z"), true),
        (Some("token"), None, true),
    ] {
        let (mut gate, toml) = gate_of_file(&serde_json::json!({
            "AccessKeyId": "LTAI-leaked",
            "AccessKeySecret": "secret-1",
            "SecurityToken": token,
            "Expiration": expires,
        }));
        let [call, other] = calls("LTAI-leaked", "secret-1");
        let mut queued = gate.ask(&call).unwrap();
        write_session(&gate.folder, "LTAI-new", "secret-2");
        gate.then(&format!("unknown_keys = \"refuse\"\n{toml}"));
        let refused = gate.ask(&other).err().map(|refusal| refusal.kind);
        let expected = (!is_accepted).then_some(Kind::UnknownAccessKey);
        assert_eq!(refused, expected, "{token:?} {expires:?}");
        // A call that was verified before is signed with the new key.
        let sent = gate.send(&mut queued).unwrap();
        assert!(sent.target.contains("AccessKeyId=LTAI-new"));
    }
}

#[test]
fn a_call_whose_query_has_no_room_for_the_token_is_refused_and_version_3_is_sent() {
    for length in [21_000, 22_500, 60_000] {
        let (gate, _) = gate_of_file(&serde_json::json!({
            "AccessKeyId": "STS.one",
            "AccessKeySecret": "secret-1",
            "SecurityToken": "+".repeat(length),
        }));
        for call in calls("STS.one", "secret-1") {
            let caller = gate.ask(&call).unwrap().call;
            let signed = sign::sign(&caller.ready().unwrap(), UPSTREAM, gate.now);
            let is_version_1 = call.target.contains("SignatureVersion");
            match signed {
                Ok(_) => assert!(!is_version_1 || length == 21_000, "{length}"),
                Err(refusal) => {
                    assert!(is_version_1 && length > 21_000, "{length}");
                    assert_eq!(refusal.kind, Kind::TooLarge);
                    assert!(refusal.message.contains("Sign with version 3"));
                }
            }
        }
    }
}

#[test]
fn the_last_three_sessions_are_valid_for_callers_and_the_last_one_signs() {
    const NAMES: [(&str, &str); 4] = [
        ("STS.one", "secret-1"),
        ("STS.two", "secret-2"),
        ("STS.three", "secret-3"),
        ("STS.four", "secret-4"),
    ];
    let toml = "[[accounts]]\nid = \"acme\"\ncredentials = { file = \"acme.json\" }\n";
    let folder = tempfile::tempdir().unwrap();
    write_session(&folder, NAMES[0].0, NAMES[0].1);
    let now = time::parse(NOW).unwrap();
    let config_snapshot = snapshot(read(&folder, toml));
    let mut gate = Gate {
        config_snapshot,
        nonces: Nonces::new(now - Duration::from_secs(3600)),
        now,
        folder,
    };
    let [_, call] = calls(NAMES[0].0, NAMES[0].1);
    let mut oldest = gate.ask(&call).unwrap();
    for (key, secret) in &NAMES[1..] {
        write_session(&gate.folder, key, secret);
        gate.then(toml);
        // A reload for another reason keeps the session.
        gate.then(toml);
    }
    for ((key, secret), good) in NAMES.iter().zip([false, true, true, true]) {
        for call in calls(key, secret) {
            assert_eq!(gate.ask(&call).is_ok(), good, "{key}");
        }
    }
    let headers = headers(&gate.send(&mut oldest).unwrap());
    assert!(
        headers.contains("Credential=STS.four") && !headers.contains("STS.one"),
        "{headers}"
    );
}

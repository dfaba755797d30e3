//! Permissions of clients with their own keys, and the operation of a classified call.

use super::call::{Call, v3};
use super::*;
use Kind::{Forbidden, SignatureDoesNotMatch};

/// A gate with a client that may create flows for two sub-customers, and one that may call
/// everything.
fn clients() -> Gate {
    Gate::with(&[
        ("FLOWGATE_CLIENTS__0__ACCESS_KEY_ID", "team-a"),
        ("FLOWGATE_CLIENTS__0__ACCESS_KEY_SECRET__ENV", "SECRET_A"),
        ("FLOWGATE_CLIENTS__0__ACCOUNT", "acme"),
        ("FLOWGATE_CLIENTS__0__ACTIONS", "CreateFlow"),
        ("FLOWGATE_CLIENTS__0__CUST_SPACE_IDS", "space-1,space-2"),
        ("FLOWGATE_CLIENTS__0__HOLD", "60s"),
        ("FLOWGATE_CLIENTS__1__ACCESS_KEY_ID", "team-b"),
        ("FLOWGATE_CLIENTS__1__ACCESS_KEY_SECRET__ENV", "SECRET_B"),
        ("FLOWGATE_CLIENTS__1__ACCOUNT", "acme"),
        ("FLOWGATE_CLIENTS__1__ACTIONS", "*"),
        ("SECRET_A", "secret-of-team-a-0123456789"),
        ("SECRET_B", "secret-of-team-b-0123456789"),
    ])
}

fn team_a(edit: impl FnOnce(&mut Call)) -> Capture {
    v3(|call| {
        call.key = "team-a";
        call.secret = "secret-of-team-a-0123456789";
        edit(call);
    })
}

#[test]
fn a_client_may_call_only_what_its_entry_lists() {
    let gate = clients();
    let forbidden = |capture: &Capture, why: &str| {
        let refusal = clients().classify(capture).err().unwrap();
        assert_eq!(refusal.kind, Forbidden);
        assert!(refusal.message.contains(why), "{}", refusal.message);
    };
    let operation = gate.classify(&team_a(|_| ())).unwrap();
    assert_eq!(
        (operation.client.as_str(), operation.tenant.as_str()),
        ("team-a", "space-1")
    );
    assert_eq!(
        (operation.hold, operation.wait),
        (Duration::from_secs(60), Duration::from_millis(59_800))
    );
    forbidden(
        &team_a(|call| call.set("x-acs-action", "DeleteFlow")),
        "may not call DeleteFlow",
    );
    for query in [
        "FlowName=a",
        "CustSpaceId=space-3",
        "CustSpaceId=",
        "custspaceid=space-1",
        "CustSpaceId=space-1&CustWabaId=x",
        "CustSpaceId=space-1&isvcode=x",
        "CustSpaceId=space-1&CustSpaceId.1=x",
    ] {
        forbidden(&team_a(|call| call.query = query.into()), "CustSpaceId");
    }
    forbidden(
        &team_a(|call| call.json("{\"CustSpaceId\":\"victim\"}")),
        "CustSpaceId",
    );
    let any = v3(|call| {
        call.key = "team-b";
        call.secret = "secret-of-team-b-0123456789";
        call.query = "CustWabaId=x".into();
        call.set("x-acs-action", "DeleteFlow");
    });
    assert_eq!(gate.classify(&any).unwrap().client.as_str(), "team-b");
    // Only the client's own secret is accepted.
    assert_eq!(
        gate.refuses(&team_a(|call| call.secret = SECRET)).0,
        SignatureDoesNotMatch
    );
}

#[test]
fn a_clients_call_is_signed_with_the_accounts_key() {
    let gate = clients();
    let sent = gate.send(gate.ask(&team_a(|_| ())).unwrap());
    let authorization = sent.header("authorization").unwrap().to_owned();
    assert!(
        authorization.starts_with("ACS3-HMAC-SHA256 Credential=LTAI-test-key-id-1,"),
        "{authorization}"
    );
    let names_client = |text: &str| text.contains("team-a");
    assert!(
        !sent
            .headers
            .iter()
            .any(|(_, value)| names_client(&String::from_utf8_lossy(value)))
    );
    assert!(!names_client(&sent.target));
}

#[test]
fn labels_are_from_closed_sets() {
    let gate = Gate::new();
    let label = |nonce: &str, action: &str| {
        let operation = gate.classify(&v3(|call| {
            call.set("x-acs-signature-nonce", nonce);
            call.set("x-acs-action", action);
        }));
        let operation = operation.unwrap();
        (
            operation.account_label().to_owned(),
            operation.action_label().to_owned(),
            operation.limit.is_some(),
        )
    };
    assert_eq!(
        label("1", "CreateFlow"),
        ("acme".into(), "CreateFlow".into(), true)
    );
    assert_eq!(
        label("2", "Unheard0f"),
        ("acme".into(), "other".into(), false)
    );
}

#[test]
fn tenants_and_holds_are_bounded() {
    let gate = Gate::with(&[
        ("FLOWGATE_QUEUE__HOLD", "40s"),
        ("FLOWGATE_QUEUE__MAX_HOLD", "40s"),
    ]);
    let long = v3(|call| call.query = format!("CustSpaceId={}", "é".repeat(100)));
    let operation = gate.classify(&long).unwrap();
    assert_eq!(operation.tenant.as_str(), "é".repeat(64));
    assert_eq!(operation.hold, Duration::from_secs(40));
}

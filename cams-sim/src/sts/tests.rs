//! Tests of STS, alone and with the sessions that it issues.

use std::path::PathBuf;
use std::time::Duration;

use hyper::Request;
use serde_json::Value;
use tokio::time::advance;

use super::*;
use crate::testing::{Draft, NOON, ask, code, join, noon, settings};
use crate::{Answer, Key, Limit, Role, Settings, Sim, StsSettings, Verdict, fingerprint};

const ROLE: &str = "acs:ram::123456789012:role/flowgate";

/// A signed AssumeRole of the role, with these parameters changed or added.
fn assume(nonce: &str, change: &[(&'static str, &str)]) -> Draft {
    let usual = [("RoleArn", ROLE), ("RoleSessionName", "flowgate")];
    let kept = usual
        .iter()
        .filter(|(name, _)| !change.iter().any(|(other, _)| other == name));
    Draft {
        version: VERSION,
        parameters: kept
            .chain(change)
            .map(|(name, value)| (*name, value.to_string()))
            .collect(),
        ..Draft::of("AssumeRole", nonce)
    }
}

/// An anonymous AssumeRoleWithOIDC as a form.
fn with_oidc(token: &str, change: &[(&str, &str)]) -> Request<Bytes> {
    let mut form: std::collections::BTreeMap<String, String> = [
        ("RoleArn", ROLE),
        ("RoleSessionName", "flowgate"),
        ("OIDCProviderArn", "acs:ram::123456789012:oidc-provider/ack"),
        ("OIDCToken", token),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    form.extend(
        change
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string())),
    );
    Request::post(format!(
        "/?Action=AssumeRoleWithOIDC&Version={VERSION}&Format=JSON"
    ))
    .header("host", "sts.aliyuncs.com")
    .header("content-type", "application/x-www-form-urlencoded")
    .body(Bytes::from(join(&form)))
    .unwrap()
}

/// The same draft, signed with the session of an answer.
fn signed_by(session: &Value, draft: Draft) -> Draft {
    let text = |name: &str| -> &'static str { session[name].as_str().unwrap().to_owned().leak() };
    Draft {
        key: (text("AccessKeyId"), text("AccessKeySecret")),
        token: Some(text("SecurityToken")),
        ..draft
    }
}

fn jwt(claims: &Value) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn with_sts(sts: StsSettings) -> Sim {
    Sim::new(Settings { sts, ..settings() })
}

fn faulty(fault: &str) -> Sim {
    Sim::new(Settings {
        faults: vec![fault.parse().unwrap()],
        ..settings()
    })
}

#[tokio::test(start_paused = true)]
async fn a_session_calls_cams_until_its_end() {
    let sim = Sim::new(settings());
    let (status, body) = ask(&sim, assume("n0", &[("DurationSeconds", "900")]).v3()).await;
    assert_eq!(status, 200);
    assert_eq!(
        body["AssumedRoleUser"]["Arn"],
        "acs:ram::123456789012:role/flowgate/flowgate"
    );
    let session = &body["Credentials"];
    assert_eq!(session["Expiration"], "2026-11-24T12:15:00Z");
    assert!(session["AccessKeyId"].as_str().unwrap().starts_with("STS."));

    let create = |nonce: &str| signed_by(session, Draft::create("a", nonce));
    assert_eq!(code(&sim, create("n1").v3()).await, (200, "OK".into()));
    assert_eq!(code(&sim, create("n2").v1()).await, (200, "OK".into()));
    assert_eq!(sim.arrivals()[0].account.as_deref(), Some("123456789012"));

    advance(Duration::from_secs(899)).await;
    let at = |nonce: &str, time: &str| Draft {
        time: time.into(),
        ..create(nonce)
    };
    assert_eq!(
        code(&sim, at("n3", "2026-11-24T12:14:59Z").v3()).await.0,
        200
    );
    advance(Duration::from_secs(1)).await;
    let expired = (400, "InvalidSecurityToken.Expired".to_owned());
    assert_eq!(
        code(&sim, at("n4", "2026-11-24T12:15:00Z").v3()).await,
        expired
    );
    assert_eq!(
        code(&sim, at("n5", "2026-11-24T12:15:00Z").v1()).await,
        expired
    );
}

#[tokio::test(start_paused = true)]
async fn a_wrong_token_is_refused_by_its_kind() {
    let sim = Sim::new(settings());
    let first = ask(&sim, assume("n0", &[]).v1()).await.1["Credentials"].clone();
    let second = ask(&sim, assume("n1", &[]).v1()).await.1["Credentials"].clone();
    let create = |nonce: &str, token| Draft {
        token,
        ..signed_by(&first, Draft::create("a", nonce))
    };
    let other = second["SecurityToken"].as_str().unwrap().to_owned().leak();
    for (nonce, token, wanted) in [
        ("n2", None, "MissingSecurityToken"),
        ("n3", Some("no token"), "InvalidSecurityToken.Malformed"),
        (
            "n4",
            Some(&*other),
            "InvalidSecurityToken.MismatchWithAccessKey",
        ),
    ] {
        assert_eq!(
            code(&sim, create(nonce, token).v3()).await,
            (400, wanted.to_owned())
        );
    }
    let own = first["SecurityToken"].as_str().unwrap().to_owned().leak();
    assert_eq!(code(&sim, create("n5", Some(own)).v3()).await.0, 200);
    sim.end_sessions();
    assert_eq!(
        code(&sim, create("n6", Some(own)).v3()).await.1,
        "InvalidSecurityToken.Expired"
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_assumes_the_next_role_and_says_who_it_is() {
    let sim = Sim::new(settings());
    let first = ask(&sim, assume("n0", &[]).v3()).await.1["Credentials"].clone();
    let second_role = "acs:ram::210987654321:role/second";
    let chained = signed_by(&first, assume("n1", &[("RoleArn", second_role)]));
    let second = ask(&sim, chained.v3()).await.1["Credentials"].clone();
    let who = |nonce: &str| Draft {
        version: VERSION,
        ..Draft::of("GetCallerIdentity", nonce)
    };
    let (status, identity) = ask(&sim, signed_by(&second, who("n2")).v3()).await;
    assert_eq!(status, 200);
    assert_eq!(identity["AccountId"], "210987654321");
    assert_eq!(
        identity["Arn"],
        "acs:ram::210987654321:assumed-role/second/flowgate"
    );
    assert_eq!(identity["IdentityType"], "AssumedRoleUser");
    let user = ask(&sim, who("n3").v1()).await.1;
    assert_eq!(
        (&user["AccountId"], &user["Arn"]),
        (&json!("acme"), &json!("acs:ram::acme:user/id"))
    );
    let counts = sim.report().credentials;
    assert_eq!((counts["AssumeRole"], counts["GetCallerIdentity"]), (2, 2));
    assert_eq!(sim.report().arrived, 0);
}

#[tokio::test(start_paused = true)]
async fn assume_role_checks_every_parameter() {
    let long = "x".repeat(2_049);
    let wrong = [
        ("RoleArn", "flowgate", "InvalidParameter.RoleArn"),
        ("RoleArn", "acs:ram::12a:role/x", "InvalidParameter.RoleArn"),
        ("RoleArn", "acs:ram::12:role/", "InvalidParameter.RoleArn"),
        ("RoleArn", "acs:ram::12:user/x", "InvalidParameter.RoleArn"),
        ("RoleArn", "", "MissingRoleArn"),
        ("RoleSessionName", "", "MissingRoleSessionName"),
        ("RoleSessionName", "a", "InvalidParameter.RoleSessionName"),
        (
            "RoleSessionName",
            &long[..65],
            "InvalidParameter.RoleSessionName",
        ),
        ("RoleSessionName", "a b", "InvalidParameter.RoleSessionName"),
        ("RoleSessionName", "a/b", "InvalidParameter.RoleSessionName"),
        ("DurationSeconds", "899", "InvalidParameter.DurationSeconds"),
        (
            "DurationSeconds",
            "43201",
            "InvalidParameter.DurationSeconds",
        ),
        ("DurationSeconds", "1h", "InvalidParameter.DurationSeconds"),
        ("ExternalId", "é", "InvalidParameter.ExternalId"),
        ("ExternalId", "x", "InvalidParameter.ExternalId"),
        ("Policy", &long, "InvalidParameter.PolicySize"),
        ("Policy", "{", "InvalidParameter.PolicyGrammar"),
    ];
    let sim = Sim::new(settings());
    for (number, (name, value, wanted)) in wrong.into_iter().enumerate() {
        let call = assume(&format!("n{number}"), &[(name, value)]).v3();
        assert_eq!(
            code(&sim, call).await,
            (400, wanted.to_owned()),
            "{name}={value}"
        );
    }
    let right = [
        ("RoleSessionName", "flow.gate@1_2-3"),
        ("DurationSeconds", "900"),
        ("DurationSeconds", "43200"),
        ("ExternalId", "abc/1=2:3@x"),
        ("Policy", "{\"Version\": \"1\", \"Statement\": []}"),
    ];
    for (number, (name, value)) in right.into_iter().enumerate() {
        let call = assume(&format!("r{number}"), &[(name, value)]).v1();
        assert_eq!(ask(&sim, call).await.0, 200, "{name}={value}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_are_verified_and_answered_in_the_format_that_they_ask_for() {
    let sim = Sim::new(settings());
    let other_key = Draft {
        key: ("id", "wrong"),
        ..assume("n0", &[])
    };
    assert_eq!(code(&sim, other_key.v3()).await.1, "SignatureDoesNotMatch");
    let old = Draft {
        time: "2026-11-24T11:44:59Z".into(),
        ..assume("n1", &[])
    };
    assert_eq!(code(&sim, old.v1()).await.1, "InvalidTimeStamp.Expired");
    assert_eq!(
        ask(&sim, assume("n2", &[("Format", "json")]).v1()).await.0,
        200
    );

    for call in [
        assume("n3", &[("Format", "")]).v1(),
        assume("n4", &[]).odd_v3(&[("accept", "application/xml")], |_| ()),
    ] {
        let Answer::Http(answer) = sim.answer(call).await else {
            panic!("no HTTP answer")
        };
        let text = String::from_utf8(answer.into_body().to_vec()).unwrap();
        assert!(text.contains("<AssumeRoleResponse><"), "{text}");
        assert!(text.contains("<Credentials><AccessKeyId>STS."), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_oidc_token_is_checked_and_recorded_without_itself() {
    let sim = Sim::new(settings());
    let noon = noon()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let claims = |aud: &str, ends: u64| {
        jwt(
            &json!({ "aud": [aud], "exp": ends, "iat": noon, "sub": "system:serviceaccount:a:b", "iss": "https://issuer" }),
        )
    };
    let good = claims("sts.aliyuncs.com", noon + 1);
    let (status, body) = ask(&sim, with_oidc(&good, &[])).await;
    assert_eq!(status, 200);
    assert_eq!(
        body["OIDCTokenInfo"]["Subject"],
        "system:serviceaccount:a:b"
    );
    assert_eq!(body["OIDCTokenInfo"]["IssuanceTime"], NOON);
    let create = signed_by(&body["Credentials"], Draft::create("a", "n0"));
    assert_eq!(code(&sim, create.v3()).await.0, 200);

    let long = "x".repeat(20_001);
    for (token, wanted) in [
        ("", "MissingOIDCToken"),
        ("abc", "InvalidParameter.OIDCToken"),
        (&long, "InvalidParameter.OIDCToken"),
        ("a.b.c\n", "AuthenticationFail.OIDCToken.Invalid"),
        (
            &claims("sts.example", noon + 1),
            "AuthenticationFail.OIDCToken.AudienceNotMatch",
        ),
        (
            &claims("sts.aliyuncs.com", noon),
            "AuthenticationFail.OIDCToken.Expired",
        ),
    ] {
        assert_eq!(
            code(&sim, with_oidc(token, &[])).await,
            (400, wanted.to_owned())
        );
    }
    let other = ("OIDCProviderArn", "acs:ram::1:oidc-provider/ack");
    assert_eq!(
        code(&sim, with_oidc("a.b.c", &[other])).await,
        (403, "AuthenticationFail.NoPermission".to_owned())
    );
    let signed = Draft {
        action: "AssumeRoleWithOIDC",
        ..assume("n1", &[])
    };
    assert_eq!(code(&sim, signed.v1()).await.1, "CamsSim.SignedAnonymous");

    let record = &sim.credential_requests()[0];
    assert_eq!(record.value("OIDCToken"), Some(&*fingerprint(&good)));
    assert!(record.tokens_in_url().is_empty());
    assert_eq!(record.verdict, Verdict::Accepted);
    assert_eq!(
        record.issued.as_deref(),
        body["Credentials"]["AccessKeyId"].as_str()
    );
    let printed = sim.credential_requests_json().to_string();
    assert!(!printed.contains(&good) && printed.contains(&fingerprint(&good)));
}

#[tokio::test(start_paused = true)]
async fn what_the_settings_do_not_know_is_refused() {
    let role = |external_id: Option<&str>| Role {
        arn: ROLE.into(),
        external_id: external_id.map(Into::into),
    };
    let sim = with_sts(StsSettings {
        roles: vec![role(Some("ours"))],
        oidc_tokens: vec!["a.b.c".into()],
        host: Some("cams.test".into()),
        ..StsSettings::default()
    });
    let other = "acs:ram::123456789012:role/other";
    assert_eq!(
        code(&sim, assume("n0", &[("RoleArn", other)]).v3()).await,
        (404, "EntityNotExist.Role".to_owned())
    );
    assert_eq!(
        code(&sim, assume("n1", &[]).v3()).await,
        (403, "NoPermission".to_owned())
    );
    assert_eq!(
        ask(&sim, assume("n2", &[("ExternalId", "ours")]).v3())
            .await
            .0,
        200
    );
    // Its host is another one.
    assert_eq!(
        code(&sim, with_oidc("a.b.c", &[])).await,
        (404, "InvalidProduct.NotFound".to_owned())
    );
    let sim = with_sts(StsSettings {
        oidc_tokens: vec!["a.b.c".into()],
        ..StsSettings::default()
    });
    assert_eq!(ask(&sim, with_oidc("a.b.c", &[])).await.0, 200);
    assert_eq!(
        code(&sim, with_oidc("a.b.d", &[])).await.1,
        "AuthenticationFail.OIDCToken.Invalid"
    );
    let unknown = Draft {
        version: VERSION,
        ..Draft::of("GenerateSessionAccessKey", "n0")
    };
    assert_eq!(
        code(&sim, unknown.v3()).await,
        (404, "InvalidApi.NotFound".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn a_set_lifetime_is_that_of_every_session() {
    let sim = with_sts(StsSettings {
        lifetime: Some(Duration::from_secs(20)),
        max_session: Duration::from_secs(3_600),
        ..StsSettings::default()
    });
    let body = ask(&sim, assume("n0", &[("DurationSeconds", "900")]).v3())
        .await
        .1;
    assert_eq!(body["Credentials"]["Expiration"], "2026-11-24T12:00:20Z");
    let uri = Request::get("/credentials")
        .header("host", "h")
        .body(Bytes::new())
        .unwrap();
    assert_eq!(
        ask(&sim.metadata(), uri).await.1["Expiration"],
        "2026-11-24T12:00:20Z"
    );
    let long = assume("n1", &[("DurationSeconds", "3601")]);
    assert_eq!(
        code(&sim, long.v3()).await.1,
        "InvalidParameter.DurationSeconds"
    );
}

#[tokio::test(start_paused = true)]
async fn the_quota_of_sts_is_its_own() {
    let sim = with_sts(StsSettings {
        limit: Limit {
            per_window: 1,
            ..Limit::default()
        },
        ..StsSettings::default()
    });
    assert_eq!(ask(&sim, assume("n0", &[]).v3()).await.0, 200);
    assert_eq!(
        code(&sim, assume("n1", &[]).v3()).await,
        (400, "Throttling.User".to_owned())
    );
    assert_eq!(ask(&sim, with_oidc("a.b.c", &[])).await.0, 200);
    assert_eq!(code(&sim, Draft::create("a", "n2").v3()).await.0, 200);
    advance(Duration::from_secs(1)).await;
    assert_eq!(ask(&sim, assume("n3", &[]).v3()).await.0, 200);
    let verdicts: Vec<Verdict> = sim
        .credential_requests()
        .into_iter()
        .map(|it| it.verdict)
        .collect();
    assert_eq!(verdicts[1], Verdict::Throttled);
}

#[tokio::test(start_paused = true)]
async fn faults_break_the_answer() {
    for (fault, status, wanted) in [
        ("action=sts,unavailable", 503, "ServiceUnavailable"),
        (
            "action=AssumeRole,throttle,code=Throttling.User",
            400,
            "Throttling.User",
        ),
        (
            "action=sts,refuse=AuthenticationFail.NoPermission",
            403,
            "AuthenticationFail.NoPermission",
        ),
        ("action=sts,failed", 500, "InternalError"),
    ] {
        let sim = faulty(fault);
        assert_eq!(
            code(&sim, assume("n0", &[]).v3()).await,
            (status, wanted.to_owned()),
            "{fault}"
        );
        assert_eq!(
            code(&sim, Draft::create("a", "n1").v3()).await.0,
            200,
            "{fault}"
        );
    }
    let expired = ask(&faulty("action=sts,expired"), assume("n0", &[]).v3())
        .await
        .1;
    assert_eq!(expired["Credentials"]["Expiration"], "2026-11-24T11:59:55Z");
    for (rule, wanted) in [
        (
            "expiration=2026-11-24T20:00:00+08:00",
            json!("2026-11-24T20:00:00+08:00"),
        ),
        ("expiration=1893456000", json!(1_893_456_000)),
    ] {
        let sim = faulty(&format!("action=sts,{rule}"));
        let told = ask(&sim, assume("n0", &[]).v3()).await.1;
        assert_eq!(told["Credentials"]["Expiration"], wanted);
    }
    let leaky = faulty("action=sts,body={\"Code\":\"X\"},status=403");
    assert_eq!(
        code(&leaky, assume("n0", &[]).v3()).await,
        (403, "X".to_owned())
    );
    let endless = ask(&faulty("action=sts,no-expiration"), assume("n0", &[]).v3())
        .await
        .1;
    assert!(endless["Credentials"]["SecurityToken"].is_string());
    assert!(endless["Credentials"]["Expiration"].is_null());

    let body = |answer: Answer| match answer {
        Answer::Http(response) => String::from_utf8(response.into_body().to_vec()).unwrap(),
        other => panic!("no HTTP answer: {other:?}"),
    };
    let half = body(
        faulty("action=sts,half")
            .answer(assume("n0", &[]).v3())
            .await,
    );
    assert!(half.starts_with('{') && serde_json::from_str::<Value>(&half).is_err());
    assert_eq!(
        body(
            faulty("action=sts,body=hello")
                .answer(assume("n0", &[]).v3())
                .await
        ),
        "hello"
    );

    let slow = faulty("action=sts,slow=7s");
    let start = tokio::time::Instant::now();
    assert_eq!(ask(&slow, assume("n0", &[]).v3()).await.0, 200);
    assert_eq!(start.elapsed(), Duration::from_secs(7));
    let lost = faulty("action=sts,close-before");
    assert!(
        matches!(lost.answer(assume("n0", &[]).v3()).await, Answer::Raw(bytes) if bytes.is_empty())
    );
    let record = &lost.credential_requests()[0];
    assert_eq!(
        (&record.verdict, record.fault, &record.issued),
        (&Verdict::Lost, Some("close-before"), &None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_off_shows_in_dates_and_sessions() {
    let sim = Sim::new(Settings {
        now: Some(noon() + Duration::from_secs(1_200)),
        ..settings()
    });
    assert_eq!(
        code(&sim, assume("n0", &[]).v3()).await.1,
        "InvalidTimeStamp.Expired"
    );
    let Answer::Http(answer) = sim.answer(with_oidc("a.b.c", &[])).await else {
        panic!("no HTTP answer")
    };
    assert_eq!(answer.headers()["date"], "Tue, 24 Nov 2026 12:20:00 GMT");
    let body: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!(body["Credentials"]["Expiration"], "2026-11-24T13:20:00Z");
}

/// The request in a file of captured traffic.
fn capture(name: &str) -> Request<Bytes> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/credentials");
    let text = std::fs::read_to_string(path.join(format!("{name}.http"))).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap().split(' ');
    let request = Request::builder()
        .method(first.next().unwrap())
        .uri(first.next().unwrap());
    lines
        .filter_map(|line| line.split_once(": "))
        .fold(request, |request, (name, value)| {
            request.header(name, value)
        })
        .body(Bytes::from(body.to_owned()))
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn captured_requests_of_the_official_libraries_are_judged() {
    let key = |id: &str, secret: &str, token: Option<&str>| Key {
        access_key_id: id.into(),
        secret: secret.into(),
        account: "acme".into(),
        security_token: token.map(Into::into),
    };
    let token = "test-sts-token/with+special=chars==";
    for (name, token, wanted) in [
        ("py_assume_ak", None, "200"),
        ("py_assume_async", None, "200"),
        ("py_assume_chain_two.1", None, "200"),
        ("py_assume_chain_two.2", None, "200"),
        // Python signs the space of the policy as a plus.
        ("py_assume_policy_space", None, "SignatureDoesNotMatch"),
        ("py_assume_sts_external_policy", Some(token), "200"),
        ("node_assume", None, "200"),
        // The token has the newline of its file.
        ("node_oidc", None, "AuthenticationFail.OIDCToken.Invalid"),
        ("py_oidc_ok", None, "200"),
        (
            "py_oidc_newline_policy",
            None,
            "AuthenticationFail.OIDCToken.Invalid",
        ),
        ("py_sts_sdk_assume_role_v3", None, "200"),
        ("py_sts_sdk_assume_role_v3_sts", Some(token), "200"),
        ("py_sts_sdk_get_caller_identity_v3", None, "200"),
        ("py_sts_sdk_oidc_anonymous", None, "200"),
        ("py_sts_sdk_saml_anonymous", None, "MissingAccessKeyId"),
    ] {
        let sim = Sim::new(Settings {
            keys: vec![
                key("LTAI-test-key-id-1", "test-secret-1", token),
                key(
                    "STS.fake1",
                    "fake-session-secret-1",
                    Some("fake-session-token-1"),
                ),
            ],
            now: crate::date::parse("2026-11-29T04:13:00Z"),
            ..Settings::default()
        });
        let (status, body) = ask(&sim, capture(name)).await;
        let seen = body["Code"]
            .as_str()
            .map_or(status.to_string(), str::to_owned);
        assert_eq!(seen, wanted, "{name}: {body}");
    }
}

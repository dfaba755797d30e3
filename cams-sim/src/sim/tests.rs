//! Tests of `sim`.

use hyper::Method;
use serde_json::json;

use super::*;
use crate::testing::{Draft, ask, code, noon, settings};
use crate::{Kind, Scheme};

fn sim() -> Sim {
    Sim::new(settings())
}

fn rules(texts: &[&str]) -> Vec<Rule> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn ok() -> (u16, String) {
    (200, "OK".to_owned())
}

fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test(start_paused = true)]
async fn create_flow_answers_as_the_api_page_shows() {
    let sim = sim();
    for (request, id) in [
        (Draft::create("flow 中", "n1").v3(), "3339938380001"),
        (Draft::create("flow 中", "n2").v1(), "3339938380002"),
    ] {
        let (status, mut body) = ask(&sim, request).await;
        let request_id = body["RequestId"].take();
        assert_eq!(
            request_id
                .as_str()
                .unwrap()
                .split('-')
                .map(str::len)
                .collect::<Vec<_>>(),
            [8, 4, 4, 4, 12]
        );
        let data = json!({ "FlowId": id, "FlowName": "flow 中", "Categories": ["OTHER"] });
        let expected = json!({ "AccessDeniedDetail": "None", "Code": "OK", "Data": data, "Message": "None", "RequestId": null });
        assert_eq!((status, body), (200, expected));
    }
    assert_eq!(sim.report().duplicates, ["flow 中"]);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_nonce_is_spent() {
    let sim = sim();
    for call in 0..5 {
        assert_eq!(
            code(&sim, Draft::create("a", &call.to_string()).v3()).await,
            ok()
        );
    }
    for request in [Draft::create("b", "n3").v3(), Draft::create("b", "n1").v1()] {
        assert_eq!(
            code(&sim, request.clone()).await,
            refused(400, "System.LimitControl")
        );
        assert_eq!(
            code(&sim, request).await,
            refused(400, "SignatureNonceUsed")
        );
    }
    sleep(Duration::from_millis(999)).await;
    assert_eq!(
        code(&sim, Draft::create("b", "later").v3()).await,
        refused(400, "System.LimitControl")
    );
    sleep(Duration::from_millis(1)).await;
    assert_eq!(code(&sim, Draft::create("b", "latest").v3()).await, ok());
}

#[tokio::test(start_paused = true)]
async fn all_keys_of_an_account_share_its_quota() {
    let sim = Sim::new(
        settings()
            .with_key("id2", "secret2", "acme")
            .with_key("id3", "secret3", "other"),
    );
    for call in 0..3 {
        assert_eq!(
            code(&sim, Draft::create("a", &call.to_string()).v3()).await,
            ok()
        );
    }
    let by = |key, nonce| Draft {
        key,
        ..Draft::create("a", nonce)
    };
    let mut codes = Vec::new();
    for nonce in ["3", "4", "5"] {
        codes.push(code(&sim, by(("id2", "secret2"), nonce).v1()).await);
    }
    codes.push(code(&sim, by(("id3", "secret3"), "6").v1()).await);
    assert_eq!(
        codes,
        [ok(), ok(), refused(400, "System.LimitControl"), ok()]
    );
}

#[tokio::test(start_paused = true)]
async fn the_kind_of_window_and_the_outsider_come_from_the_settings() {
    for (kind, accepted) in [(Kind::Sliding, 5), (Kind::Aligned, 10), (Kind::Smooth, 2)] {
        let sim = Sim::new(settings().with_limit(Limit {
            kind,
            ..Limit::default()
        }));
        for at in [900_u64, 1_100] {
            sleep(Duration::from_millis(at) - sim.inner.start.elapsed()).await;
            for call in 0..5 {
                ask(&sim, Draft::create("a", &format!("{at}-{call}")).v3()).await;
            }
        }
        let report = sim.report();
        assert_eq!(
            (report.accepted, report.refused, report.worst_window),
            (accepted, 10 - accepted, 10),
            "{kind:?}"
        );
        assert_eq!(report.worst_accepted, accepted, "{kind:?}");
    }
    let sim = Sim::new(settings().with_limit(Limit {
        outsider_every: Some(Duration::from_millis(400)),
        ..Limit::default()
    }));
    sleep(Duration::from_secs(1)).await;
    for call in 0..5 {
        ask(&sim, Draft::create("a", &call.to_string()).v3()).await;
    }
    let report = sim.report();
    // The outsider came at 0, 400 and 800 ms; at 1 s the first of these is forgotten.
    assert_eq!(
        (report.accepted, report.refused, report.outsiders),
        (3, 2, 3)
    );
}

#[tokio::test(start_paused = true)]
async fn jitter_comes_before_counting_and_latency_after() {
    let milliseconds = Duration::from_millis;
    let sim = Sim::new(Settings {
        latency: milliseconds(20),
        jitter: milliseconds(30),
        seed: 7,
        ..settings()
    });
    let began = Instant::now();
    let calls: Vec<_> = (0..5)
        .map(|call| {
            let sim = sim.clone();
            tokio::spawn(async move { ask(&sim, Draft::create("a", &call.to_string()).v3()).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().0, 200);
    }
    let late: Vec<u128> = sim
        .arrivals()
        .iter()
        .map(|arrival| arrival.at.duration_since(arrival.received).as_millis())
        .collect();
    assert!(
        late.is_sorted() && late[0] < late[4] && late[4] <= 30,
        "{late:?}"
    );
    assert_eq!(began.elapsed().as_millis(), late[4] + 20);
}

#[tokio::test(start_paused = true)]
async fn a_time_stamp_may_be_15_minutes_off() {
    let sim = sim();
    for (index, (seconds, expected)) in
        [(900, ok()), (901, refused(400, "InvalidTimeStamp.Expired"))]
            .into_iter()
            .enumerate()
    {
        for (ahead, now) in [
            (false, noon() - Duration::from_secs(seconds)),
            (true, noon() + Duration::from_secs(seconds)),
        ] {
            sim.set_now(Some(now));
            assert_eq!(
                code(&sim, Draft::of("ListFlow", &format!("{index}{ahead}")).v3()).await,
                expected
            );
        }
    }
    sim.set_now(Some(noon() - Duration::from_secs(900)));
    sleep(Duration::from_secs(1_801)).await;
    assert_eq!(
        code(&sim, Draft::of("ListFlow", "n").v3()).await,
        refused(400, "InvalidTimeStamp.Expired")
    );
    sim.set_now(None);
    assert!(!sim.arrivals().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_wrong_signature_is_answered_with_what_the_server_signed() {
    let sim = sim();
    let wrong = Draft {
        key: ("id", "wrong"),
        ..Draft::of("ListFlow", "n")
    };
    let (status, body) = ask(&sim, wrong.v1()).await;
    assert_eq!(
        (status, &body["Code"]),
        (400, &json!("SignatureDoesNotMatch"))
    );
    assert_eq!(
        body["Message"],
        "Specified signature is not matched with our calculation. server string to sign is:POST&%2F&AccessKeyId%3Did%26Action%3DListFlow\
         %26Format%3DJSON%26SignatureMethod%3DHMAC-SHA1%26SignatureNonce%3Dn%26SignatureVersion%3D1.0%26Timestamp%3D2026-11-24T12%253A00\
         %253A00Z%26Version%3D2020-06-06"
    );
    // A refused signature spends no nonce.
    assert_eq!(code(&sim, Draft::of("ListFlow", "n").v1()).await, ok());
    assert_eq!(
        code(&sim, wrong.v3()).await,
        refused(400, "SignatureDoesNotMatch")
    );
    assert_eq!(
        code(
            &sim,
            Draft {
                key: ("unknown", ""),
                ..wrong
            }
            .v3()
        )
        .await,
        refused(404, "InvalidAccessKeyId.NotFound")
    );
}

#[tokio::test(start_paused = true)]
async fn an_sts_key_needs_its_token() {
    let sim = Sim::new(Settings {
        keys: vec!["id:secret:acme:token".parse().unwrap()],
        ..settings()
    });
    let mismatch = refused(400, "InvalidSecurityToken.MismatchWithAccessKey");
    for (nonce, token, expected) in [
        ("1", Some("token"), ok()),
        ("2", Some("other"), mismatch.clone()),
        ("3", None, mismatch),
    ] {
        let draft = |nonce: String| Draft {
            token,
            ..Draft::of("ListFlow", &nonce)
        };
        assert_eq!(code(&sim, draft(format!("{nonce}v3")).v3()).await, expected);
        assert_eq!(code(&sim, draft(format!("{nonce}v1")).v1()).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_the_missing_parameter() {
    let sim = sim();
    type Parameters = &'static [(&'static str, &'static str)];
    let rows: [(&str, Parameters, (u16, String)); 11] = [
        (
            "CreateFlow",
            &[("Categories", "[\"A\"]")],
            refused(400, "MissingFlowName"),
        ),
        (
            "CreateFlow",
            &[("FlowName", "a")],
            refused(400, "MissingCategories"),
        ),
        (
            "CreateFlow",
            &[("FlowName", "a"), ("Categories", "[]")],
            refused(400, "MissingCategories"),
        ),
        (
            "ListFlow",
            &[("Version", "2020-01-01")],
            refused(400, "InvalidVersion"),
        ),
        (
            "ListFlow",
            &[("Timestamp", "yesterday")],
            refused(400, "InvalidTimeStamp.Format"),
        ),
        (
            "ListFlow",
            &[("SignatureMethod", "HMAC-SHA256")],
            refused(400, "InvalidSignatureMethod"),
        ),
        (
            "ListFlow",
            &[("AccessKeyId", "")],
            refused(400, "MissingAccessKeyId"),
        ),
        ("createflow", &[], refused(404, "InvalidApi.NotFound")),
        ("GetFlow", &[], refused(400, "MissingFlowId")),
        ("DeleteFlow", &[], refused(400, "MissingFlowId")),
        ("PublishFlow", &[], ok()),
    ];
    for (index, (action, parameters, expected)) in rows.into_iter().enumerate() {
        let parameters: Vec<_> = parameters
            .iter()
            .map(|(name, value)| (*name, value.to_string()))
            .collect();
        let draft = Draft {
            action,
            parameters,
            ..Draft::of("", &index.to_string())
        };
        assert_eq!(code(&sim, draft.v1()).await, expected, "{draft:?}");
    }
    let malformed = Draft {
        parameters: vec![("FlowName", "a".into()), ("Categories", "A".into())],
        ..Draft::of("CreateFlow", "n")
    };
    let (status, body) = ask(&sim, malformed.v3()).await;
    assert_eq!(
        (status, &body["Message"]),
        (400, &json!("Categories is not a list of texts."))
    );
}

#[tokio::test(start_paused = true)]
async fn list_flow_lists_what_the_account_created() {
    let sim = Sim::new(settings().with_key("id2", "secret2", "other"));
    for (name, space) in [("a", ""), ("b", "s1"), ("c", "s1")] {
        let mut draft = Draft::create(name, name);
        draft.parameters.push(("CustSpaceId", space.to_owned()));
        assert_eq!(code(&sim, draft.v3()).await, ok());
    }
    let names = async |draft: Draft| {
        let (_, body) = ask(&sim, draft.v1()).await;
        body["Data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|flow| flow["FlowName"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let list = |nonce, parameters: &[(&'static str, &str)]| Draft {
        parameters: parameters
            .iter()
            .map(|(name, value)| (*name, value.to_string()))
            .collect(),
        ..Draft::of("ListFlow", nonce)
    };
    assert_eq!(names(list("1", &[])).await, ["a", "b", "c"]);
    assert_eq!(names(list("2", &[("CustSpaceId", "s1")])).await, ["b", "c"]);
    assert_eq!(names(list("3", &[("FlowName", "b")])).await, ["b"]);
    assert_eq!(
        names(list("4", &[("Page", "{\"Index\":2,\"Size\":2}")])).await,
        ["c"]
    );
    assert_eq!(
        names(Draft {
            key: ("id2", "secret2"),
            ..list("5", &[])
        })
        .await,
        [""; 0]
    );
}

#[tokio::test(start_paused = true)]
async fn v1_without_json_format_is_answered_in_xml() {
    let sim = sim();
    for (format, nonce) in [("", "1"), ("XML", "2"), ("xml", "3")] {
        let draft = Draft {
            parameters: vec![("Format", format.to_owned())],
            ..Draft::of("CreateFlow", nonce)
        };
        let Answer::Http(answer) = sim.answer(draft.v1()).await else {
            panic!("an HTTP answer was expected")
        };
        assert_eq!(answer.headers()["content-type"], "text/xml;charset=utf-8");
        let id = answer.headers()["x-acs-request-id"].to_str().unwrap();
        let expected = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>MissingFlowName</Code><HostId>cams.test</HostId>\
             <Message>FlowName is mandatory for this action.</Message>\
             <Recommend>https://api.alibabacloud.com/troubleshoot?q=MissingFlowName&amp;product=cams</Recommend><RequestId>{id}</RequestId></Error>"
        );
        assert_eq!(std::str::from_utf8(answer.body()).unwrap(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn strict_mode_refuses_malformed_requests() {
    let sim = Sim::new(Settings {
        host: Some("cams.test".to_owned()),
        ..settings()
    });
    let v3 = || Draft::of("ListFlow", "n").v3();
    let v1 = || Draft::of("ListFlow", "n").v1();
    let header = |mut request: Request<Bytes>, name: &'static str, value: &'static str| {
        request.headers_mut().append(name, value.parse().unwrap());
        request
    };
    let target = |mut request: Request<Bytes>, added: &str| {
        *request.uri_mut() = format!("{}{added}", request.uri())
            .replace("/?&", "/?")
            .parse()
            .unwrap();
        request
    };
    let body = |mut request: Request<Bytes>| {
        *request.body_mut() = Bytes::from_static(b"{}");
        request
    };
    let absolute = |mut request: Request<Bytes>| {
        *request.uri_mut() = format!("http://cams.test{}", request.uri())
            .parse()
            .unwrap();
        request
    };
    let method = |mut request: Request<Bytes>, method| {
        *request.method_mut() = method;
        request
    };
    let form = |mut request: Request<Bytes>, text: &'static str| {
        *request.body_mut() = Bytes::from_static(text.as_bytes());
        header(request, "content-type", "application/x-www-form-urlencoded")
    };
    let mut without_host = v1();
    without_host.headers_mut().remove("host");
    let mut elsewhere = v1();
    elsewhere
        .headers_mut()
        .insert("host", "other.test".parse().unwrap());
    let mut path = v1();
    *path.uri_mut() = "/prefix/".parse().unwrap();
    let rows = [
        (target(v1(), "&Action=ListFlow"), "CamsSim.Doubled"),
        (target(v1(), "&action=ListFlow"), "CamsSim.Doubled"),
        (target(v1(), "&x=%zz"), "CamsSim.Unreadable"),
        (
            header(v1(), "proxy-authorization", "Basic eA=="),
            "CamsSim.HopHeader",
        ),
        (header(v1(), "x-flowgate-hold", "1s"), "CamsSim.HopHeader"),
        (header(v1(), "connection", "upgrade"), "CamsSim.HopHeader"),
        (
            header(v1(), "x-acs-action", "CreateFlow"),
            "CamsSim.TwoActions",
        ),
        (body(v1()), "CamsSim.UnsignedBody"),
        (
            header(body(v3()), "content-type", "application/json"),
            "CamsSim.UnsignedBody",
        ),
        (target(v3(), "&Action=ListFlow"), "CamsSim.TwoSchemes"),
        (
            header(v3(), "x-acs-date", "2026-11-24T12:00:00Z"),
            "CamsSim.Doubled",
        ),
        (header(v3(), "x-acs-extra", "1"), "IncompleteSignature"),
        (
            header(v3(), "authorization", "Basic eA=="),
            "CamsSim.Doubled",
        ),
        (absolute(v1()), "CamsSim.AbsoluteForm"),
        (elsewhere, "InvalidProduct.NotFound"),
        (path, "InvalidApi.NotFound"),
        (method(v1(), Method::DELETE), "UnsupportedHTTPMethod"),
        (method(body(v3()), Method::GET), "CamsSim.BodyOfGet"),
        (without_host, "CamsSim.NoHost"),
        (form(v1(), "Action=ListFlow"), "CamsSim.Doubled"),
    ];
    for (request, expected) in rows {
        let shown = format!("{request:?}");
        assert_eq!(code(&sim, request).await.1, expected, "{shown}");
    }
    assert_eq!(code(&sim, v3()).await, ok());
}

#[tokio::test(start_paused = true)]
async fn signed_oddities_are_refused() {
    let draft = Draft::of("ListFlow", "n");
    let plain: fn(&mut Vec<String>) = |_| ();
    let rows = [
        (
            draft.odd_v3(&[("x-acs-content-sha256", "00")], plain),
            "SignatureDoesNotMatch",
        ),
        (
            draft.odd_v3(&[("x-acs-accesskey-id", "other")], plain),
            "CamsSim.TwoKeys",
        ),
        (
            draft.odd_v3(&[], |names| names.reverse()),
            "CamsSim.SignedHeaders",
        ),
        (
            draft.odd_v3(&[], |names| names.insert(0, "host".to_owned())),
            "CamsSim.SignedHeaders",
        ),
        (
            draft.odd_v3(&[], |names| names.insert(0, "absent".to_owned())),
            "CamsSim.SignedButAbsent",
        ),
        (
            draft.odd_v3(&[], |names| drop(names.remove(0))),
            "IncompleteSignature",
        ),
    ];
    for (request, expected) in rows {
        assert_eq!(code(&sim(), request).await.1, expected);
    }
    let lenient = Sim::new(Settings {
        strict: false,
        ..settings()
    });
    assert_eq!(
        code(
            &lenient,
            draft.odd_v3(&[("x-acs-accesskey-id", "id")], |names| names.reverse())
        )
        .await,
        ok()
    );
}

#[tokio::test(start_paused = true)]
async fn the_worst_window_is_half_open() {
    let sim = Sim::new(settings().with_limit(Limit {
        per_window: 100,
        ..Limit::default()
    }));
    for (call, wait) in [0, 400, 599, 1, 399].into_iter().enumerate() {
        sleep(Duration::from_millis(wait)).await;
        ask(&sim, Draft::create("a", &call.to_string()).v3()).await;
    }
    // They came at 0, 400, 999, 1,000 and 1,399 ms: four are within less than a second of the
    // second one.
    let report = sim.report();
    assert_eq!(
        (report.worst_window, report.first_ms, report.last_ms),
        (4, Some(0), Some(1_399))
    );
    sleep(Duration::from_millis(1)).await;
    ask(&sim, Draft::create("a", "last").v3()).await;
    assert_eq!(sim.report().worst_window, 4);
}

#[tokio::test(start_paused = true)]
async fn faults_with_responses_in_cams_format() {
    let sim = sim();
    let rows = [
        (
            "refuse=Product.Unsubscript",
            refused(400, "Product.Unsubscript"),
        ),
        (
            "refuse=Ram.PermissionDeny",
            refused(400, "Ram.PermissionDeny"),
        ),
        (
            "refuse=Unknown.ResourceOwnerId",
            refused(400, "Unknown.ResourceOwnerId"),
        ),
        (
            "refuse=InvalidAccessKeyId.NotFound",
            refused(404, "InvalidAccessKeyId.NotFound"),
        ),
        ("throttle", refused(400, "System.LimitControl")),
        (
            "throttle,status=429,code=Throttling.User",
            refused(429, "Throttling.User"),
        ),
        ("throttle,ok", refused(200, "System.LimitControl")),
        ("unavailable", refused(503, "ServiceUnavailable")),
        ("slow=3s", ok()),
        ("huge=100000", ok()),
    ];
    let began = Instant::now();
    for (text, expected) in &rows {
        sim.set_faults(rules(&[text]));
        assert_eq!(
            code(&sim, Draft::create("a", text).v3()).await,
            *expected,
            "{text}"
        );
    }
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    let report = sim.report();
    assert_eq!(
        (
            report.arrived,
            report.accepted,
            report.refused,
            report.rejected,
            report.lost
        ),
        (10, 2, 3, 5, 0)
    );
    assert_eq!(
        (
            report.created,
            report.codes["System.LimitControl"],
            report.codes["Ram.PermissionDeny"]
        ),
        (2, 3, 1)
    );
    let faults: Vec<_> = sim
        .arrivals()
        .iter()
        .map(|arrival| arrival.fault.unwrap())
        .collect();
    assert_eq!(
        faults,
        [
            "refuse",
            "refuse",
            "refuse",
            "refuse",
            "throttle",
            "throttle",
            "throttle",
            "unavailable",
            "slow",
            "huge"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_throttle_can_have_hints_or_be_xml() {
    let sim = sim();
    sim.set_faults(rules(&[
        "next=1,throttle,acs-retry-after=1500,retry-after=2,time-left=7",
        "next=1,throttle,xml,ok",
    ]));
    let Answer::Http(hinted) = sim.answer(Draft::create("a", "1").v3()).await else {
        panic!("an HTTP answer was expected")
    };
    let names = ["x-acs-retry-after", "retry-after", "x-ratelimit-user"];
    assert_eq!(
        names.map(|name| hinted.headers()[name].to_str().unwrap()),
        ["1500", "2", "Limit:5,Remain:0,TimeLeft:7"]
    );
    let Answer::Http(xml) = sim.answer(Draft::create("a", "2").v3()).await else {
        panic!("an HTTP answer was expected")
    };
    assert_eq!(
        (
            xml.status().as_u16(),
            &xml.headers()["content-type"].to_str().unwrap()
        ),
        (200, &"text/xml;charset=utf-8")
    );
    assert!(xml.body().starts_with(
        b"<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>System.LimitControl</Code>"
    ));
    // The nonce of a forced throttle is spent like that of any other.
    assert_eq!(
        code(&sim, Draft::create("a", "1").v3()).await,
        refused(400, "SignatureNonceUsed")
    );
}

#[tokio::test(start_paused = true)]
async fn arrivals_record_the_received_calls() {
    let sim = sim();
    let request = Draft::create("a", "n").v3();
    let target = request.uri().to_string();
    ask(&sim, request).await;
    let arrival = sim.arrivals().remove(0);
    let recorded = (
        arrival.account.as_deref(),
        arrival.action.as_deref(),
        arrival.flow_name.as_deref(),
        arrival.nonce.as_deref(),
    );
    assert_eq!(
        recorded,
        (Some("acme"), Some("CreateFlow"), Some("a"), Some("n"))
    );
    assert_eq!(
        (arrival.scheme, arrival.verdict, arrival.fault),
        (Some(Scheme::V3), Verdict::Accepted, None)
    );
    assert_eq!((arrival.method.as_str(), arrival.target), ("POST", target));
    assert!(
        arrival
            .headers
            .contains(&("x-acs-action".to_owned(), "CreateFlow".to_owned()))
    );
    sim.reset();
    assert_eq!((sim.report().arrived, sim.report().created), (0, 0));
    assert_eq!(
        code(&sim, Draft::create("a", "n").v3()).await,
        refused(400, "SignatureNonceUsed")
    );
}

#[tokio::test(start_paused = true)]
async fn without_checks_any_client_may_call() {
    let sim = Sim::new(Settings {
        check_signatures: false,
        keep_requests: false,
        ..Settings::default()
    });
    let request = Request::post("/?FlowName=a&Categories=%5B%22OTHER%22%5D").header("host", "h");
    let request = request
        .header("x-acs-action", "CreateFlow")
        .header("x-acs-version", "2020-06-06")
        .body(Bytes::new())
        .unwrap();
    assert_eq!(code(&sim, request).await, ok());
    let arrival = sim.arrivals().remove(0);
    assert_eq!(
        (arrival.account.as_deref(), arrival.scheme),
        (Some("anonymous"), Some(Scheme::Unsigned))
    );
    assert_eq!((arrival.target, arrival.headers.len()), (String::new(), 0));
}

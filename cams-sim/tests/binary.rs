//! The program prints its address first, serves there, and prints its records on SIGTERM.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

#[test]
fn the_program_prints_its_address_serves_and_reports_at_the_end() {
    let options = [
        "--no-signatures",
        "--limit",
        "1",
        "--window",
        "2m",
        "--outsider",
        "0",
        "--hints",
        "--fault",
        "named=b,refuse=Ram.PermissionDeny",
    ];
    let mut program = Command::new(env!("CARGO_BIN_EXE_cams-sim"))
        .args(options)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(program.stdout.take().unwrap());
    let mut first = String::new();
    output.read_line(&mut first).unwrap();
    let address = first
        .trim_end()
        .strip_prefix("cams-sim listening on http://")
        .unwrap();
    let answers = ["a", "a", "b"].map(|name| {
        let mut stream = TcpStream::connect(address).unwrap();
        let target =
            format!("/?Action=CreateFlow&Version=2020-06-06&Format=JSON&FlowName={name}&Categories=%5B%22OTHER%22%5D");
        write!(stream, "GET {target} HTTP/1.1\r\nhost: cams\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(answers[0].starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(
        answers[1].starts_with("HTTP/1.1 400 Bad Request\r\n")
            && answers[1].contains("\r\nx-acs-retry-after: 1")
    );
    assert!(answers[2].contains("\"Code\":\"Ram.PermissionDeny\""));

    let killed = Command::new("kill")
        .args(["-TERM", &program.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let report: serde_json::Value = serde_json::from_reader(output).unwrap();
    assert!(program.wait().unwrap().success());
    let counts = [
        "arrived",
        "accepted",
        "refused",
        "rejected",
        "worst_window",
        "connections",
    ]
    .map(|count| report[count].as_u64().unwrap());
    assert_eq!(counts, [3, 1, 1, 1, 3, 3]);
}

/// The head and body of the answer to a request that ends its connection.
fn ask(address: &str, request: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    let length = body.len();
    write!(
        stream,
        "{request} HTTP/1.1\r\nhost: sts.test\r\nconnection: close\r\n\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn the_program_serves_sts_and_an_instance_as_its_options_say() {
    let options = [
        "--metadata-listen",
        "127.0.0.1:0",
        "--metadata-role",
        "node-role",
        "--metadata-tokens-required",
        "--role",
        "acs:ram::1:role/a",
        "--oidc-token",
        "a.b.c",
        "--sts-host",
        "sts.test",
        "--session-lifetime",
        "20s",
        "--skew",
        "-20m",
        "--fault",
        "next=1,action=sts,unavailable",
    ];
    let mut program = Command::new(env!("CARGO_BIN_EXE_cams-sim"))
        .args(options)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(program.stdout.take().unwrap());
    let mut address = |prefix: &str| {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line.trim_end().strip_prefix(prefix).unwrap().to_owned()
    };
    let sts = address("cams-sim listening on http://");
    let metadata = address("cams-sim metadata on http://");

    let assume = |role: &str, token: &str| {
        let form = format!(
            "RoleArn=acs:ram::1:role/{role}&RoleSessionName=ab&OIDCProviderArn=acs:ram::1:oidc-provider/p&OIDCToken={token}"
        );
        let target = "POST /?Action=AssumeRoleWithOIDC&Version=2015-04-01&Format=JSON";
        ask(&sts, target, &form).unwrap()
    };
    assert!(assume("a", "a.b.c").starts_with("HTTP/1.1 503"));
    assert!(assume("b", "a.b.c").contains("\"EntityNotExist.Role\""));
    assert!(assume("a", "a.b.d").contains("\"AuthenticationFail.OIDCToken.Invalid\""));
    let answer = assume("a", "a.b.c");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let date = head.lines().find_map(|line| line.strip_prefix("date: "));
    let date = httpdate::parse_http_date(date.unwrap()).unwrap();
    let behind = std::time::SystemTime::now().duration_since(date).unwrap();
    assert!((1_200..1_260).contains(&behind.as_secs()), "{behind:?}");
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert!(body["Credentials"]["Expiration"].is_string());

    let list = "GET /latest/meta-data/ram/security-credentials/";
    assert!(
        ask(&metadata, list, "")
            .unwrap()
            .starts_with("HTTP/1.1 403")
    );
    let killed = Command::new("kill")
        .args(["-TERM", &program.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let report: serde_json::Value = serde_json::from_reader(output).unwrap();
    assert!(program.wait().unwrap().success());
    assert_eq!(
        report["credentials"],
        serde_json::json!({ "AssumeRoleWithOIDC": 4, "MetadataRole": 1 })
    );
}

#[test]
fn the_program_shows_and_changes_flows() {
    let options = [
        "--no-signatures",
        "--page-cap",
        "1",
        "--page-cap-refuses",
        "--fuzzy",
        "--draft",
        "false",
        "--list-lag",
        "1ms",
        "--fault",
        "named=late,late=2m",
    ];
    let mut program = Command::new(env!("CARGO_BIN_EXE_cams-sim"))
        .args(options)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(program.stdout.take().unwrap());
    let mut first = String::new();
    output.read_line(&mut first).unwrap();
    let address = first
        .trim_end()
        .strip_prefix("cams-sim listening on http://")
        .unwrap();
    let send = |request: &str, body: &str| {
        let answer = ask(address, request, body).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let body = serde_json::from_str::<serde_json::Value>(body).unwrap_or_default();
        (head.starts_with("HTTP/1.1 200"), body)
    };
    let create = |name: &str| {
        let form = format!("FlowName={name}&Categories=%5B%22OTHER%22%5D&CustSpaceId=s1");
        let target = "POST /?Action=CreateFlow&Version=2020-06-06&Format=JSON&AccessKeyId=acme";
        send(target, &form)
    };
    assert_eq!(create("too-late"), (false, serde_json::Value::Null));
    let (_, created) = create("a");
    let mine = created["Data"]["FlowId"].as_str().unwrap();
    let by_hand = r#"{"account":"acme","name":"b","categories":["SIGN_UP"]}"#;
    let (_, other) = send("POST /__create-flow", by_hand);
    let other = other["id"].as_str().unwrap();
    assert!(!send("POST /__create-flow", "{}").0);
    let renaming = format!(r#"{{"id":"{other}","name":"a fine one"}}"#);
    assert!(send("POST /__rename-flow", &renaming).0);

    let (_, flows) = send("GET /__flows", "");
    let flows = flows.as_array().unwrap();
    let told = |flow: &serde_json::Value| {
        ["id", "account", "space", "name", "status"].map(|member| flow[member].clone())
    };
    assert_eq!(
        flows.iter().map(told).collect::<Vec<_>>(),
        [
            [
                mine.into(),
                "acme".into(),
                "s1".into(),
                "a".into(),
                "PUBLISHED".into()
            ],
            [
                other.into(),
                "acme".into(),
                serde_json::Value::Null,
                "a fine one".into(),
                "DRAFT".into()
            ],
        ]
    );
    assert!(flows[0]["created_ms"].as_u64() <= flows[1]["created_ms"].as_u64());

    let list = |size: u32| {
        let form = format!("FlowName=A&Page=%7B%22Size%22%3A{size}%7D");
        send(
            "POST /?Action=ListFlow&Version=2020-06-06&Format=JSON&AccessKeyId=acme",
            &form,
        )
    };
    assert!(!list(2).0);
    assert_eq!(list(1).1["Data"].as_array().unwrap().len(), 1);
    let deletion = format!(r#"{{"id":"{mine}"}}"#);
    assert!(send("POST /__delete-flow", &deletion).0);
    assert!(!send("POST /__delete-flow", &deletion).0);

    let killed = Command::new("kill")
        .args(["-TERM", &program.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let report: serde_json::Value = serde_json::from_reader(output).unwrap();
    assert!(program.wait().unwrap().success());
    assert_eq!(
        (&report["arrived"], &report["created"]),
        (&4.into(), &1.into())
    );
}

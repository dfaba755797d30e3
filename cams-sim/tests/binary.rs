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

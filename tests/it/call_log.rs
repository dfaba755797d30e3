//! The log at debug shows each step of a call, by its request id.

use cams_sim::{Settings, Sim};

use crate::caller::{Call, KEY, SECRET};
use crate::process::Process;

#[tokio::test]
async fn the_steps_of_a_call_are_logged_at_debug() {
    let sim = Sim::start(Settings::default().with_key(KEY, SECRET, "acme"))
        .await
        .unwrap();
    let env = [("FLOWGATE_LOG__LEVEL", "debug")];
    let process = Process::with_env(&sim, "", &env).await;
    sim.set_faults(vec!["next=1,throttle".parse().unwrap()]);
    let host = process.proxy.to_string();
    let reply = Call::v3(&host, "x").send(process.proxy).await;
    assert_eq!(reply.status, 200);
    let end = process.logged("call", 1).await.remove(0);
    let steps: Vec<_> = process
        .log()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|event| event["request_id"] == end["request_id"])
        .map(|event| format!("{} {}", event["level"], event["message"]).replace('"', ""))
        .collect();
    assert_eq!(
        steps,
        [
            "DEBUG call has arrived",
            "DEBUG call is identified by its head",
            "DEBUG call is queued",
            "DEBUG call may be sent",
            "DEBUG attempt is signed and sent",
            "DEBUG attempt is judged",
            "DEBUG call is queued again",
            "DEBUG call may be sent",
            "DEBUG attempt is signed and sent",
            "DEBUG attempt is judged",
            "INFO call",
        ]
    );
    assert!(!process.log().contains(SECRET));
}

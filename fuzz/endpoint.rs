//! Checks that CAMS accepts what Flowgate signed. The simulated endpoint shares no code with
//! Flowgate and is strict.

use std::time::SystemTime;

use bytes::Bytes;
use cams_sim::{Settings, Sim, Verdict};
use flowgate::testing::fuzz::SIGNER;
use futures_util::FutureExt;
use hyper::Request;

/// Codes that CAMS returns for a wrong form or signature, not for the content of a request.
const ILL_MADE: [&str; 6] = [
    "CamsSim.",
    "Signature",
    "IncompleteSignature",
    "InvalidTimeStamp",
    "InvalidAccessKeyId",
    "MissingAccessKeyId",
];

/// Lets the endpoint judge each request.
pub fn takes(requests: Vec<Request<Bytes>>, now: SystemTime) {
    if requests.is_empty() {
        return;
    }
    let [key, secret, _] = SIGNER;
    let settings = Settings {
        now: Some(now),
        ..Settings::default().with_key(key, secret, "acme")
    };
    let sim = Sim::new(settings);
    for request in requests {
        sim.answer(request)
            .now_or_never()
            .expect("an endpoint without latency answers at once");
    }
    for arrival in sim.arrivals() {
        if let Verdict::Rejected(code) = &arrival.verdict {
            assert!(
                !ILL_MADE.iter().any(|ill| code.starts_with(ill)),
                "{code}: {arrival:?}"
            );
        }
    }
}

"""Stock SDKs send idempotency keys, each in its own ways. Their time-out is shorter than the simulator's answer, so the first call of each key fails in the
application; the repetition ends with the FlowId of the one flow, and so does every later one. The simulator sees no key. Prints one line for each SDK,
signature version and carrier. FLOWGATE_BIN and CAMS_SIM_BIN name the binaries."""

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
import os
from pathlib import Path
import sys

from run import ROOT, Tally, differ
from scenarios import slug
from services import Driver, Flowgate, Simulator

NAMES = 3

# The application's time-out and the simulator's answer time, in seconds. Node's answer must not be later than Flowgate's hold for it.
TIME_OUT, ANSWER = 1, 2


@dataclass(frozen=True)
class Case:
    sdk: str
    scheme: str
    carrier: str

    @property
    def name(self):
        return f"{self.sdk} {self.scheme} by {self.carrier}"

    @property
    def account(self):
        return slug(self.name)

    @property
    def key(self):
        return f"LTAI-{self.account}"

    @property
    def secret(self):
        return f"secret of {self.account}"

    def job(self, endpoint, seconds):
        return {
            "key": self.key,
            "secret": self.secret,
            "endpoint": endpoint,
            "protocol": "HTTP",
            "ca": None,
            "certificate": None,
            "scheme": self.scheme,
            "timeout_ms": seconds * 1000,
            "obeys": False,
            "action": "CreateFlow",
            "keyed": self.carrier,
            "names": [f"{self.account} {number}" for number in range(NAMES)],
        }


CASES = [
    Case(sdk, scheme, carrier)
    for sdk, schemes in (("python", ("V3", "V1")), ("python-old", ("V1",)), ("node", ("V3", "V1")))
    for scheme in schemes
    for carrier in ("header", "token")
]


def configuration(upstream):
    text = f"""\
listen = {{ proxy = "127.0.0.1:0", admin = "127.0.0.1:0" }}
upstream = {{ url = "{upstream}" }}
queue = {{ hold = "30s" }}
log = {{ format = "json" }}
"""
    for number, case in enumerate(CASES):
        text += f'[[accounts]]\nid = "{case.account}"\naccess_key_id = "{case.key}"\naccess_key_secret = {{ env = "SECRET_{number}" }}\n'
    return text, {f"SECRET_{number}": case.secret for number, case in enumerate(CASES)}


def check(case, driver, endpoint, simulator):
    """What is wrong with the case."""
    driver.wait_until_ready()
    simulator.faults([f"slow={ANSWER}s"])
    first = driver.run(case.job(endpoint, TIME_OUT))
    simulator.faults([])
    repeated = driver.run(case.job(endpoint, 20))
    again = driver.run(case.job(endpoint, 20))
    arrivals = [arrival for arrival in simulator.arrivals() if arrival["account"] == case.account]
    ids = [result.get("flow_id") for result in repeated]
    return [
        *differ(timed_out=([result["ok"] for result in first], [False] * NAMES)),
        *differ(repeated=([result["ok"] for result in repeated], [True] * NAMES)),
        *differ(distinct=(len(set(ids)), NAMES)),
        *differ(later=([result.get("flow_id") for result in again], ids)),
        *differ(attempts=(len(arrivals), NAMES)),
        *differ(with_key=([arrival["target"] for arrival in arrivals if "ClientToken" in arrival["target"]], [])),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", type=Path, required=True)
    options = parser.parse_args()
    options.logs.mkdir(parents=True, exist_ok=True)
    binary = os.environ.get("FLOWGATE_BIN", ROOT / "target/release/flowgate")
    simulated = os.environ.get("CAMS_SIM_BIN", ROOT / "target/release/cams-sim")
    tally = Tally()
    with ExitStack() as stack:
        keys = [argument for case in CASES for argument in ("--key", f"{case.key}:{case.secret}:{case.account}")]
        simulator = Simulator("keys-simulator", simulated, options.logs, ["--listen", "127.0.0.1:0", *keys])
        stack.callback(simulator.stop)
        flowgate = Flowgate("keys-flowgate", binary, options.logs, *configuration(simulator.url))
        stack.callback(flowgate.stop)
        for case in CASES:
            driver = Driver(f"keys-{case.account}", case.sdk, options.logs)
            stack.callback(driver.stop)
            tally.add(f"key: {case.name}", check(case, driver, flowgate.proxy, simulator))
    print(f"sdk: {tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())

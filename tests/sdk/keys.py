"""Stock SDKs send idempotency keys, each in its own ways. Their time-out is shorter than the simulator's answer, so the first call of each key fails in the
application; the repetition ends with the FlowId of the one flow, and so does every later one. Then Python's SDK repeats by itself, after its connection was
closed and after a 409. The simulator sees no key. Prints one line for each SDK, signature version and carrier. FLOWGATE_BIN and CAMS_SIM_BIN name the
binaries."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
import hashlib
import json
import os
from pathlib import Path
import socket
import sys
import threading
import time

from run import AT_ONCE, ROOT, Tally, differ, first_failures
from scenarios import slug
from sdks import ALL
from services import Driver, Flowgate, Simulator

NAMES = 3

# The application's time-out and the simulator's answer time, in seconds. Node's answer must not be later than Flowgate's hold for it.
TIME_OUT, ANSWER = 1, 2

# The time-out of an application that waits, in seconds.
PATIENCE = 20

CARRIERS = ("header", "token")

# The states of an answer that was not made for this request.
REPEATED = {"attached", "replayed"}


@dataclass(frozen=True)
class Case:
    sdk: str
    scheme: str
    carrier: str
    variant: str = ""  # of the application

    @property
    def name(self):
        return " ".join(filter(None, (self.sdk, self.variant, self.scheme, "by", self.carrier)))

    @property
    def account(self):
        return slug(self.name)

    @property
    def key(self):
        return f"LTAI-{self.account}"

    @property
    def secret(self):
        return f"secret of {self.account}"

    @property
    def names(self):
        return [f"{self.account} {number}" for number in range(NAMES)]

    def job(self, endpoint, seconds, **more):
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
            "hold": "",
            "action": "CreateFlow",
            "async": self.variant == "async",
            "keyed": self.carrier,
            "names": self.names,
            **more,
        }


def carriers(sdk):
    """A request by hand has the SDK's shape, but not its way to add a header."""
    return ("token",) if sdk.by_hand else CARRIERS


CASES = [Case(sdk.name, scheme, carrier) for sdk in ALL for scheme in sdk.schemes for carrier in carriers(sdk)]
CASES += [Case("python", "V3", carrier, "async") for carrier in CARRIERS]

# Whose SDK repeats by itself, by what it repeats after.
IN_FLIGHT, ANSWERED, REFUSED = "repeats cut calls", "repeats cut answers", "repeats after 409"
RETRIES = [Case("python", "V3", carrier, variant) for variant in (IN_FLIGHT, ANSWERED, REFUSED) for carrier in CARRIERS]


class Relay:
    """Between an application and Flowgate. Closes its first connections: either while a call is in flight, or as soon as its answer arrives."""

    def __init__(self, target, cuts, answered):
        self._target, self._answered = target.rsplit(":", 1), answered
        self._left, self._lock = cuts, threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:{}".format(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                cut, self._left = self._left > 0, max(self._left - 1, 0)
            threading.Thread(target=self._serve, args=(connection, cut), daemon=True).start()

    def _serve(self, connection, cut):
        host, port = self._target
        with connection, socket.create_connection((host, int(port))) as upstream:
            threading.Thread(target=self._pump, args=(connection, upstream), daemon=True).start()
            if not cut:
                self._pump(upstream, connection)
            elif self._answered:
                upstream.recv(1, socket.MSG_PEEK)
            else:
                time.sleep(ANSWER / 4)
            for side in (connection, upstream):
                try:
                    side.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    @staticmethod
    def _pump(source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass

    def cuts_left(self):
        return self._left

    def stop(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def configuration(upstream):
    # The name is that of the relays, which have ports of their own.
    text = f"""\
listen = {{ proxy = "127.0.0.1:0", admin = "127.0.0.1:0", names = ["127.0.0.1"] }}
upstream = {{ url = "{upstream}" }}
queue = {{ hold = "30s" }}
log = {{ format = "json" }}
"""
    cases = [*CASES, *RETRIES]
    for number, case in enumerate(cases):
        text += f'[[accounts]]\nid = "{case.account}"\naccess_key_id = "{case.key}"\naccess_key_secret = {{ env = "SECRET_{number}" }}\n'
    return text, {f"SECRET_{number}": case.secret for number, case in enumerate(cases)}


def sent(case, simulator):
    """What is wrong with what arrived at CAMS: one call a flow, and no key."""
    arrivals = [arrival for arrival in simulator.arrivals() if arrival["account"] == case.account]
    marks = ["ClientToken", "idempotency", *(hashlib.sha256(name.encode()).hexdigest() for name in case.names)]
    keyed = [arrival for arrival in arrivals if any(mark.lower() in json.dumps(arrival).lower() for mark in marks)]
    return differ(attempts=(len(arrivals), NAMES), with_key=(keyed, []))


def ids(results):
    """The FlowIds in the order of the names."""
    return [result.get("flow_id") for result in results]


def simulated_ids(case, simulator):
    """The FlowIds of the flows that exist, in the order of their names."""
    flows = [flow for flow in simulator.flows() if flow["account"] == case.account]
    return [flow["id"] for flow in sorted(flows, key=lambda flow: flow["name"])]


def states(results, allowed):
    """Results whose state is visible in the SDK, and is none of these."""
    return [result["key_state"] for result in results if result.get("key_state") not in {None, *allowed}]


def check(case, driver, flowgate, simulator):
    """What is wrong with the case."""
    driver.wait_until_ready()
    first = driver.run(case.job(flowgate.proxy, TIME_OUT))
    repeated = driver.run(case.job(flowgate.proxy, PATIENCE))
    again = driver.run(case.job(flowgate.proxy, PATIENCE))
    return [
        *differ(timed_out=([result["ok"] for result in first], [False] * NAMES)),
        *first_failures(repeated),
        *differ(ids=(ids(repeated), simulated_ids(case, simulator)), states=(states(repeated, REPEATED), [])),
        *differ(later=(ids(again), ids(repeated)), later_states=(states(again, {"replayed"}), [])),
        *sent(case, simulator),
    ]


def check_retries(case, driver, flowgate, simulator):
    """What is wrong with an application that makes each call once, and whose SDK repeats."""
    driver.wait_until_ready()
    relay = Relay(flowgate.proxy, 0 if case.variant == REFUSED else NAMES, case.variant == ANSWERED)
    hold = "1s" if case.variant == REFUSED else ""
    try:
        results = driver.run(case.job(relay.address, PATIENCE, sdk_retries=5, retries_on=["ThrottlingException", "RetryError"], hold=hold))
    finally:
        relay.stop()
    series = flowgate.counts("keyed_calls_total")
    pending = sum(count for labels, count in series if (labels["account"], labels["result"]) == (case.account, "pending"))
    return [
        *first_failures(results),
        *differ(ids=(ids(results), simulated_ids(case, simulator)), states=({result.get("key_state") for result in results} - REPEATED, set())),
        *differ(cuts_left=(relay.cuts_left(), 0), answered_409=(pending >= NAMES, case.variant == REFUSED)),
        *sent(case, simulator),
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
        keys = [argument for case in [*CASES, *RETRIES] for argument in ("--key", f"{case.key}:{case.secret}:{case.account}")]
        slow = ("--fault", f"action=CreateFlow,slow={ANSWER}s")
        simulator = Simulator("keys-simulator", simulated, options.logs, ["--listen", "127.0.0.1:0", *slow, *keys])
        stack.callback(simulator.stop)
        flowgate = Flowgate("keys-flowgate", binary, options.logs, *configuration(simulator.url))
        stack.callback(flowgate.stop)

        def run(case):
            driver = Driver(f"keys-{case.account}", case.sdk, options.logs)
            try:
                checking = check_retries if case in RETRIES else check
                return case, checking(case, driver, flowgate, simulator)
            finally:
                driver.stop()

        with ThreadPoolExecutor(AT_ONCE) as applications:
            for case, problems in applications.map(run, [*CASES, *RETRIES]):
                tally.add(f"key: {case.name}", problems)
    print(f"sdk: {tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())

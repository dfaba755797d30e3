"""Runs the stock Alibaba SDKs against the real binary. Starts the simulator and Flowgate on free ports, runs every scenario and every row of scenarios.py,
and prints one line for each, and a table of the SDKs. Builds nothing: FLOWGATE_BIN and CAMS_SIM_BIN name the binaries; by default they are in target/release."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
import json
import os
from pathlib import Path
import socket
import sys
import time

import certificates
from parties import (
    configuration,
    of_crowds,
    of_renewals,
    of_rows,
    of_scenarios,
    of_unanswered,
    relayed_retries,
    session_account,
    sidecar_environment,
    simulator_key,
    tls,
)
from renewal import renew, write
from scenarios import CALLS, REAL_HOST, ROWS, TLS, slug
from sdks import SDKS, THROTTLED
from services import Driver, Flowgate, Simulator
from table import Table
import timeouts

ROOT = Path(__file__).resolve().parents[2]

# The number of scenarios at once. More would only wait for the cores.
AT_ONCE = 6

# The hold and the maximum number of attempts in each configuration.
FLOWGATES = {"shared": ("60s", 10), "impatient": ("500ms", 1), "cut-off": ("1s", 10), "auto": ("auto", 10), "unanswered": ("auto", 1)}
FLOWGATES |= dict.fromkeys([*TLS, "renewing"], FLOWGATES["shared"])


class Tally:
    """Counts and prints the results."""

    def __init__(self):
        self.passed = self.failed = 0

    def add(self, what, problems, figures=""):
        self.passed, self.failed = self.passed + (not problems), self.failed + bool(problems)
        print(f"{'FAILED' if problems else 'ok':7}{what:52} {figures}".rstrip(), flush=True)
        for problem in problems:
            print(f"       - {problem}", flush=True)


def worst_window(arrivals):
    """The maximum number of calls that arrived within less than a second, to the millisecond."""
    times = sorted(arrival["received_ms"] for arrival in arrivals)
    return max((sum(1 for other in times if start <= other < start + 1000) for start in times), default=0)


def differ(**pairs):
    """Describes the named (seen, wanted) pairs that are not equal."""
    return [f"{name}: {seen!r} instead of {wanted!r}" for name, (seen, wanted) in pairs.items() if seen != wanted]


def first_failures(results):
    failures = {json.dumps({**result, "message": str(result.get("message"))[:200]}) for result in results if not result["ok"]}
    return sorted(failures)[:3]


def check_scenario(party, results, arrivals, outcomes):
    """The problems of a scenario in which all calls should succeed, and its figures."""
    names, calls, created = party.what.names(), party.what.calls, [arrival["flow_name"] for arrival in arrivals if arrival["verdict"] == "accepted"]
    succeeded = sum(result["ok"] and result["code"] == "OK" for result in results)
    refused = sum(arrival["verdict"] == "throttled" for arrival in arrivals)
    problems = first_failures(results) + differ(
        succeeded=(succeeded, calls),
        echoed=([result.get("flow_name") for result in results], names),
        created=(sorted(created), names),
        attempts=(len(arrivals), calls),
        refused=(refused, 0),
        schemes=({arrival["scheme"] for arrival in arrivals}, {party.scheme}),
        counted=(outcomes, {"ok": calls}),
    )
    worst = worst_window(arrivals)
    if worst > 5:
        problems.append(f"{worst} calls within a second")
    # The sidecar's account has the same temporary key, so its token is forwarded.
    if party.what.sts and party.what.flowgate != "sidecar" and party.token in json.dumps(arrivals):
        problems.append("the caller's token reached the endpoint")
    return problems, f"refused {refused}  worst second {worst}  duplicates {len(created) - len(set(created))}"


def check_crowd(party, results, seconds, arrivals, outcomes):
    """The problems of a crowd: calls that fit into the SDK's default time-out are served within it, the others are refused at once with a time to retry."""
    second = [result["second"] for result in results if "second" in result]
    served, returned = sum(result["ok"] for result in results), sum(result["ok"] for result in second)
    refused = [result for result in results if result.get("code") == "System.LimitControl"]
    accepted = sorted(arrival["flow_name"] for arrival in arrivals if arrival["verdict"] == "accepted")
    problems = [failure for failure in first_failures(results) if "System.LimitControl" not in failure] + differ(
        refused=(len(refused), len(results) - served),
        created=(accepted, sorted(result["flow_name"] for result in results + second if result["ok"])),
        attempts=(len(arrivals), served + returned),
        counted=(outcomes, {"ok": served + returned, "refused": len(refused)}),
        returned=(returned, len(refused) if party.what.obeys else 0),
    )
    # All windows but the last: whether a call fits into that depends on the endpoint's usual answer time.
    least = 5 * int((party.what.time_out - 0.5) / 1.2)
    if not least <= served < len(results):
        problems.append(f"{served} served, at least {least} fit")
    if seconds > party.what.time_out + 1 and not party.what.obeys:
        problems.append(f"the last was answered after {seconds:.1f} s")
    sdk = SDKS[party.sdk]
    problems += differ(exceptions=({result["exception"] for result in refused}, {sdk.errors[THROTTLED].format(code="System.LimitControl")}))
    if sdk.advice:
        problems += [f"retry_after: {result['retry_after']!r}" for result in refused if not (result["retry_after"] or 0) > 0][:3]
    return problems, f"{served}/{len(results)}  {seconds:.1f} s  refused with a time to retry {len(refused)}" + (f", served when retried {returned}" if party.what.obeys else "")


def check_row(party, results, arrivals, outcomes):
    """The problems of a row, in which all calls should fail in one way."""
    row, failures = party.what, [result for result in results if not result["ok"]]
    sdk = SDKS[party.sdk]
    exception = sdk.errors[row.kind].format(code=row.code)
    problems = [] if failures else ["no call failed"]
    for failure in failures[:3]:
        problems += differ(
            exception=(failure["exception"], exception),
            # Of a connection that did not come about Node says more.
            code=(failure.get("code") if row.status else None, row.code),
            status=(failure.get("status_code"), row.status if sdk.says_status else None),
        )
        if row.says not in failure["message"]:
            problems.append(f"message: {failure['message']!r} does not say {row.says!r}")
        advised = sdk.advice == "header" or sdk.advice == "body" and row.is_flowgates_own
        if row.kind == THROTTLED and advised and not (failure.get("retry_after") or 0) > 0:
            problems.append(f"retry_after: {failure.get('retry_after')!r}")
    reaches = row.reaches if row.calls == 1 else row.calls - len(failures)
    problems += differ(reached=(len(arrivals), reaches))
    if row.status is None:
        problems += differ(known=(outcomes, None))
    # A call that is refused before its account is known counts for no account.
    if outcomes is not None or row.counted != "invalid":
        problems += differ(counted=((outcomes or {}).get(row.counted, 0), len(failures)))
    return problems


class Run:
    """The running processes and the scenarios."""

    def __init__(self, stack, options):
        self.stack, self.options, self.tally, self.table = stack, options, Tally(), Table()
        wanted = lambda party: options.only in f"{party.what.name} {party.sdk}"
        self.scenarios, self.rows = list(filter(wanted, of_scenarios())), list(filter(wanted, of_rows()))
        self.retries = list(filter(wanted, relayed_retries()))
        self.crowds = list(filter(wanted, of_crowds()))
        self.renewals = list(filter(wanted, of_renewals()))
        self.unanswered = list(filter(wanted, of_unanswered()))
        parties = self.scenarios + self.rows + self.retries + self.crowds + self.renewals + self.unanswered
        self.certificates = certificates.make(options.logs / "certificates")
        keys = [argument for party in parties for argument in ("--key", simulator_key(party))]
        metadata = ["--metadata-listen", "127.0.0.1:0", "--metadata-account", session_account(parties)]
        self.simulator = self.start(Simulator, "simulator", options.cams_sim, options.logs, ["--host", REAL_HOST, *metadata, *keys])
        self.flowgates = {name: self.start_flowgate(name, parties) for name in FLOWGATES}
        for party in parties:
            if party.what.flowgate == "sidecar":
                environment = sidecar_environment(party, self.simulator.url)
                self.flowgates["sidecar"] = self.start(Flowgate, "sidecar", options.flowgate, options.logs, None, environment)
        self.time_outs = timeouts.TimeOuts(self, self.unanswered)

    def start(self, kind, *arguments):
        service = kind(*arguments)
        self.stack.callback(service.stop)
        return service

    def start_flowgate(self, name, parties):
        upstream = self.simulator.url
        if name == "cut-off":
            # Bound but not listening: connections are refused, and no other process gets the port.
            closed = self.stack.enter_context(socket.socket())
            closed.bind(("127.0.0.1", 0))
            upstream = f"http://127.0.0.1:{closed.getsockname()[1]}"
        if name == "unanswered":
            silent = timeouts.Silent()
            upstream = f"http://{silent.address}"
        own = [party for party in parties if party.what.flowgate == name]
        if name == "renewing":
            for party in own:
                write(self.options.logs, party, 1)
        config, secrets = configuration(own, self.simulator, upstream, tls(name, self.certificates), *FLOWGATES[name])
        flowgate = self.start(Flowgate, name, self.options.flowgate, self.options.logs, config, secrets)
        if name == "unanswered":
            # Stopped before Flowgate, whose attempts would else keep it from ending.
            self.stack.callback(silent.stop)
        return flowgate

    def driver(self, name, sdk, trust=""):
        driver = Driver(name, sdk, self.options.logs, self.certificates.ca if trust == "environment" else None)
        self.stack.callback(driver.stop)
        return driver

    def job(self, party):
        return party.job(self.flowgates[party.what.flowgate].proxy, self.certificates)

    def arrivals_of(self, party):
        return [arrival for arrival in self.simulator.arrivals() if arrival["account"] == party.account]

    def run_scenarios(self):
        for at in range(0, len(self.scenarios), AT_ONCE):
            wave = self.scenarios[at : at + AT_ONCE]
            with ThreadPoolExecutor(AT_ONCE) as threads:
                drivers = [self.driver(f"driver-{party.account}", party.sdk, party.what.trust) for party in wave]
                list(map(Driver.wait_until_ready, drivers))
                for party, (results, seconds) in zip(wave, threads.map(self.timed, wave, drivers)):
                    flowgate = self.flowgates[party.what.flowgate]
                    account = "default" if party.what.flowgate == "sidecar" else party.account
                    problems, figures = check_scenario(party, results, self.arrivals_of(party), flowgate.outcomes().get(account))
                    succeeded = sum(result["ok"] for result in results)
                    self.table.add_calls(party, succeeded)
                    self.tally.add(party.what.name, problems, f"{succeeded}/{CALLS}  {seconds:.1f} s  {figures}")
                list(map(Driver.stop, drivers))

    def timed(self, party, driver):
        start = time.monotonic()
        results = driver.run(self.job(party))
        return results, time.monotonic() - start

    def run_renewals(self):
        flowgate = self.flowgates["renewing"]
        for party, results, waited, problems in renew(self, flowgate, self.renewals):
            outcomes = flowgate.outcomes().get(party.account, {})
            problems += differ(refused=(outcomes.pop("invalid", 0), 1))
            more, figures = check_scenario(party, results, self.arrivals_of(party), outcomes)
            succeeded = sum(result["ok"] for result in results)
            self.tally.add(party.what.name, problems + more, f"{succeeded}/{party.what.calls}  {waited} waited when the secret was replaced  {figures}")

    def run_crowds(self):
        flowgate = self.flowgates["auto"]
        for party in self.crowds:
            driver = self.driver(f"driver-{party.account}", party.sdk)
            driver.wait_until_ready()
            results, seconds = self.timed(party, driver)
            problems, figures = check_crowd(party, results, seconds, self.arrivals_of(party), flowgate.outcomes().get(party.account))
            self.tally.add(party.what.name, problems, figures)

    def run_rows(self):
        self.simulator.faults([f"named={row.mark},{row.fault}" for row in ROWS if row.fault])
        sdks = sorted({party.sdk for party in self.rows})
        drivers = [self.driver(f"driver-rows-{slug(sdk)}", sdk) for sdk in sdks]
        with ThreadPoolExecutor() as threads:
            each = threads.map(self.rows_of, sdks, drivers)
            results = {party: result for answered in each for party, result in answered.items()}
        ended = {name: flowgate.outcomes() for name, flowgate in self.flowgates.items()}
        for party in self.rows:
            outcomes = ended[party.what.flowgate].get(party.account)
            problems = check_row(party, results[party], self.arrivals_of(party), outcomes)
            self.table.add_row(party, problems)
            self.tally.add(f"{party.what.name}: {party.sdk} {party.scheme}", problems, f"{party.what.status} {party.what.code}" if party.what.status else "no answer")
        uncharged = sum(party.account not in ended["shared"] for party in self.rows if party.what.flowgate == "shared")
        counted = ended["shared"].get("unknown", {}).get("invalid", 0)
        self.tally.add("rows that no account is charged with", differ(counted=(counted, uncharged)), f"{counted} counted as invalid")
        strangers = [party.what.flowgate for party in self.rows if party.what.status is None or "protocol" in party.what.change]
        for name in TLS:
            failed, wanted = self.flowgates[name].failed_handshakes(), strangers.count(name)
            self.tally.add(f"handshakes that failed: {TLS[name]}", differ(failed=(failed, wanted)), f"{failed}")

    def rows_of(self, sdk, driver):
        driver.wait_until_ready()
        own = [party for party in self.rows if party.sdk == sdk]
        return {party: driver.run(self.job(party)) for party in own}

    def run_retries(self):
        """A relayed call that is throttled is retried by its own SDK at the given time, with a new signature."""
        for party in self.retries:
            driver = self.driver(f"driver-{party.account}", party.sdk)
            driver.wait_until_ready()
            self.simulator.faults(["next=1,action=CreateFlow,throttle,acs-retry-after=700"])
            job = self.job(party)
            results = driver.run({**job, "names": job["names"][:1]})
            arrivals = self.arrivals_of(party)
            problems = first_failures(results) + differ(
                verdicts=([arrival["verdict"] for arrival in arrivals], ["throttled", "accepted"]),
                nonces=(len({arrival["nonce"] for arrival in arrivals}), 2),
            )
            pause = arrivals[-1]["received_ms"] - arrivals[0]["received_ms"]
            if pause < 700:
                problems.append(f"retried after {pause} ms, retry-after was 700")
            self.tally.add(party.what.name, problems, f"retried after {pause} ms, retry-after was 700")

    def collect_time_outs(self):
        for party, waited, result in self.time_outs.results():
            problems, figures = timeouts.check(party, waited, result)
            self.table.add_time_out(party, problems, figures)
            self.tally.add(f"default time-out: {party.sdk}", problems, figures)

    def check_whole(self):
        """The simulator's record of the whole run."""
        report = self.simulator.report()
        problems = differ(duplicates=(report["duplicates"], []), not_http=(report["not_http"], 0))
        if report["worst_window"] > 5:
            problems.append(f"{report['worst_window']} calls of one account within a second")
        figures = f"{report['arrived']} arrived, worst second {report['worst_window']}, duplicates {len(report['duplicates'])}"
        self.tally.add("the endpoint's whole record", problems, figures)


def control(run):
    """The same twenty calls without Flowgate, for comparison."""
    party = of_scenarios()[0]
    arguments = ["--key", simulator_key(party)]
    simulator = run.start(Simulator, "simulator-control", run.options.cams_sim, run.options.logs, arguments)
    driver = run.driver("driver-control", "python")
    driver.wait_until_ready()
    results = driver.run(party.job(simulator.url.removeprefix("http://"), run.certificates))
    report, succeeded = simulator.report(), sum(result["ok"] for result in results)
    problems = differ(
        succeeded=(succeeded, report["accepted"]),
        refused=(report["refused"], CALLS - succeeded),
        codes=({result["code"] for result in results if not result["ok"]}, {"System.LimitControl"}),
        worst=(report["worst_accepted"], 5),
    )
    run.tally.add("python sync V3 straight at the endpoint", problems, f"{succeeded}/{CALLS}  refused {report['refused']}")


def main():
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flowgate", default=os.environ.get("FLOWGATE_BIN", target / "release/flowgate"), type=Path)
    parser.add_argument("--cams-sim", default=os.environ.get("CAMS_SIM_BIN", target / "release/cams-sim"), type=Path)
    parser.add_argument("--logs", default=target / "test-logs/sdk", type=Path)
    parser.add_argument("--only", default="", help="run only scenarios and rows whose name contains this")
    options = parser.parse_args()
    options.logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        run = Run(stack, options)
        control(run)
        run.run_scenarios()
        run.run_renewals()
        run.run_crowds()
        run.run_rows()
        run.run_retries()
        run.collect_time_outs()
        run.check_whole()
        run.table.print()
    print(f"sdk: {run.tally.passed} passed, {run.tally.failed} failed")
    return 1 if run.tally.failed or not run.tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())

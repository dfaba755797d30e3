"""Replaces clients' secrets while their calls wait: the new secret is written to one file, the previous one to another, and Flowgate reloads both. No call
is lost, with either of the two secrets; a secret that was replaced twice is refused."""

from concurrent.futures import ThreadPoolExecutor
import os
import time

from scenarios import CALLS


def lines(party):
    """The client's secrets in the configuration."""
    return f'access_key_secret = {{ file = "{party.account}.secret" }}\nprevious_access_key_secret = {{ file = "{party.account}.previous" }}'


def secret(party, generation):
    return f"{party.caller[1]}, generation {generation}"


def write(folder, party, generation):
    """Writes a secret and the previous one into their files, each atomically, and the one that more callers use first."""
    for name, number in (("previous", generation - 1), ("secret", generation)):
        draft = folder / f"{party.account}.draft"
        draft.write_text(secret(party, number), encoding="utf-8")
        os.replace(draft, folder / f"{party.account}.{name}")


def renew(run, flowgate, parties):
    """Replaces all parties' secrets; each party calls before, during and after that. Yields for each: the party, the results of its calls, how many of them
    waited at that moment, and the problems."""
    drivers = {party: run.driver(f"driver-{party.account}", party.sdk) for party in parties}

    def call(party, generation, names):
        return drivers[party].run({**run.job(party), "secret": secret(party, generation), "names": names})

    def call_after(party):
        """Calls with the new secret, and with the old one."""
        names, half = party.what.names(), (CALLS + party.what.calls) // 2
        return call(party, 2, names[CALLS:half]) + call(party, 1, names[half:])

    for driver in drivers.values():
        driver.wait_until_ready()
    with ThreadPoolExecutor() as threads:
        early = {party: threads.submit(call, party, 1, party.what.names()[:CALLS]) for party in parties}
        while not all(run.arrivals_of(party) or early[party].done() for party in parties):
            time.sleep(0.02)
        replace(run, flowgate, parties, 2, flowgate.hang_up)
        waited = {party: CALLS - len(run.arrivals_of(party)) for party in parties}
        results = {party: early[party].result() for party in parties}
        for party, more in zip(parties, threads.map(call_after, parties)):
            results[party] += more
    # This time without a signal: Flowgate watches its files.
    replace(run, flowgate, parties, 3, lambda: None)
    for party in parties:
        refused = [result.get("code") for result in call(party, 1, party.what.names()[:1])]
        problems = [] if refused == ["SignatureDoesNotMatch"] else [f"the secret before the previous one: {refused}"]
        if waited[party] == 0:
            problems.append("no call waited as the secret was replaced")
        yield party, results[party], waited[party], problems


def replace(run, flowgate, parties, generation, tell):
    reloads = flowgate.reloads()
    for party in parties:
        write(run.options.logs, party, generation)
    tell()
    if parties:
        flowgate.wait_for_reload(reloads + 1)

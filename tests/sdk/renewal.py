"""Clients' secrets are replaced while their calls wait: the file that holds one is rewritten, the secret before it stands in the file beside it, and
Flowgate reads both anew. No call is lost, whichever of the two it is signed with; what was replaced twice is refused."""

from concurrent.futures import ThreadPoolExecutor
import os
import time

from scenarios import CALLS


def lines(party):
    """What the configuration says of the client's secrets."""
    return f'access_key_secret = {{ file = "{party.account}.secret" }}\nprevious_access_key_secret = {{ file = "{party.account}.previous" }}'


def secret(party, generation):
    return f"{party.caller[1]}, generation {generation}"


def write(folder, party, generation):
    """Puts a secret and the one before it into their files, each of them at once, and the one that more callers have first."""
    for name, number in (("previous", generation - 1), ("secret", generation)):
        draft = folder / f"{party.account}.draft"
        draft.write_text(secret(party, number), encoding="utf-8")
        os.replace(draft, folder / f"{party.account}.{name}")


def renew(run, flowgate, parties):
    """Replaces all parties' secrets and lets each call before, meanwhile and after it. Of each: the party, what became of its calls, how many of them
    waited at that moment, and what was wrong."""
    drivers = {party: run.driver(f"driver-{party.account}", party.sdk) for party in parties}

    def call(party, generation, names):
        return drivers[party].run({**run.job(party), "secret": secret(party, generation), "names": names})

    def call_after(party):
        """With the new secret, and still with the old one."""
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
    # By itself this time: Flowgate looks at its files.
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

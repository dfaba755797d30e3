"""Measures each SDK's default read time-out, and shows that Flowgate answers before it ends: Flowgate knows it by the User-Agent (docs/holds.md). Both take as
long as the time-out, so they run beside the other scenarios."""

from concurrent.futures import ThreadPoolExecutor
import socket
import threading
import time

from sdks import SDKS

# Longer than every default time-out, and than Flowgate's hold for a caller whose time-out it does not know (30 s).
LIMIT = 35

# How much later than its time-out an SDK may hang up, on a busy machine.
LATE = 2


class Silent:
    """A server that reads requests and never answers."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = "127.0.0.1:%d" % self._listener.getsockname()[1]
        self._open = set()
        self.waited = []  # for each request: how many seconds its caller waited, at most LIMIT
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._keep, args=(connection,), daemon=True).start()

    def _keep(self, connection):
        with connection:
            if not connection.recv(65536):
                return
            start = time.monotonic()
            self._open.add(connection)
            try:
                while (left := start + LIMIT - time.monotonic()) > 0:
                    connection.settimeout(left)
                    if not connection.recv(65536):
                        break
            except (TimeoutError, ConnectionError):
                pass
            self.waited.append(time.monotonic() - start)
            self._open.discard(connection)

    def stop(self):
        for end in (self._listener, *self._open):
            end.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class TimeOuts:
    """Measures all parties' SDKs at once, in the background."""

    def __init__(self, run, parties):
        self._run = run
        self._threads = ThreadPoolExecutor(max(1, len(parties)))
        self._measured = {party: self._threads.submit(self._measure, party) for party in parties}

    def _measure(self, party):
        silent = self._run.start(Silent)
        driver = self._run.driver(f"driver-{party.account}", party.sdk)
        driver.wait_until_ready()
        driver.run({**self._run.job(party), "endpoint": silent.address})
        # Only an SDK with a time-out races with Flowgate's answer; the others need not wait for a quiet moment.
        answer = self._ask(party, driver) if SDKS[party.sdk].time_out is None else None
        return silent.waited, driver, answer

    def _ask(self, party, driver):
        """What the SDK gets from Flowgate."""
        return driver.run(self._run.job(party))[0]

    def results(self):
        """For each party: how many seconds each of its SDK's attempts waited, and what the SDK then got from Flowgate. To be called when nothing else runs,
        because Flowgate's answer is a tenth of a second earlier than an SDK's time-out."""
        measured = {party: future.result() for party, future in self._measured.items()}
        asked = {party: self._threads.submit(self._ask, party, driver) for party, (_, driver, answer) in measured.items() if answer is None}
        for party, (waited, _, answer) in measured.items():
            yield party, waited, answer or asked[party].result()


def check(party, waited, result):
    """The problems of an SDK's default time-out, and its figures."""
    sdk = SDKS[party.sdk]
    expected = sdk.time_out or LIMIT
    problems = [f"waited {seconds:.1f} s instead of {expected}" for seconds in waited if not expected - 0.2 < seconds < expected + LATE]
    if len(waited) != sdk.sends:
        problems.append(f"sent {len(waited)} times instead of {sdk.sends}")
    if result.get("code") != "Flowgate.OutcomeUnknown":
        problems.append(f"Flowgate did not answer in time: {result}")
    return problems, figures(sdk, waited)


def figures(sdk, waited):
    if sdk.time_out is None:
        return f"none within {LIMIT} s"
    return f"{min(waited, default=0):.1f} s" + (f", sent {len(waited)} times" if len(waited) > 1 else "")

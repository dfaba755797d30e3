"""Orders under load, by Alibaba's Python SDK: each is one CreateFlow that must be executed exactly once. As an application behind a balancer does, an order
goes to a replica that is ready, and to another one if the first says that nothing was sent. The ledger says what became of each."""

from collections import Counter
import itertools
import json
import threading
import time
import urllib.request

from alibabacloud_cams20200606 import models
from alibabacloud_cams20200606.client import Client
from alibabacloud_tea_openapi.models import Config

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url, token=None, seconds=5):
    """The status and the text of a page."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with _OPENER.open(urllib.request.Request(url, headers=headers), timeout=seconds) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def is_ready(admin):
    try:
        return get(f"http://{admin}/readyz", seconds=1)[0] == 200
    except OSError:
        return False


class Ledger:
    """What was ordered, and what was answered."""

    def __init__(self):
        self.ordered, self.answered, self.refused, self.lost, self.repeats = [], [], [], [], Counter()

    def __str__(self):
        repeats = ", ".join(f"{count} after {reason}" for reason, count in self.repeats.items()) or "none"
        return f"ordered {len(self.ordered)}, answered {len(self.answered)}, refused {len(self.refused)}, lost {len(self.lost)}, repeated: {repeats}"

    def agrees(self, flows):
        """Each answered order became one flow, and no other one did."""
        made = Counter(flows)
        assert not self.lost, f"{self}: {self.lost[:3]}"
        assert len(self.answered) + len(self.refused) == len(self.ordered), str(self)
        assert made == Counter(self.answered), f"{self}, but the endpoint made {sum(made.values())} flows: {made - Counter(self.answered)}"


class Load:
    """Applications that order without pause until they are stopped. Endpoints are (proxy, admin) addresses."""

    def __init__(self, endpoints, applications, prefix, orders=None, repeat=True):
        self.ledger = Ledger()
        self._endpoints, self._prefix, self._repeat = list(endpoints), prefix, repeat
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._numbers = iter(range(orders)) if orders else itertools.count()
        self._turn = itertools.count()
        self._ready = list(endpoints)
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(applications)]
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        for thread in (*self._threads, self._watch):
            thread.start()
        return self

    def __exit__(self, *_):
        self.finish()

    def finish(self):
        """Lets the orders under way end, and returns the ledger."""
        self._stopping.set()
        for thread in (*self._threads, self._watch):
            if thread.is_alive():
                thread.join()
        return self.ledger

    def wait(self):
        """Until all orders have ended."""
        for thread in self._threads:
            thread.join()
        return self.finish()

    def use(self, endpoints):
        """The replicas of now."""
        with self._lock:
            self._endpoints = list(endpoints)

    def _look(self):
        """As a balancer: which replicas are ready."""
        while not self._stopping.wait(0.2):
            ready = [endpoint for endpoint in self._endpoints if is_ready(endpoint[1])]
            with self._lock:
                self._ready = ready

    def _endpoint(self):
        with self._lock:
            found = self._ready or self._endpoints
            return found[next(self._turn) % len(found)][0]

    def _work(self):
        clients = {}
        while not self._stopping.is_set():
            with self._lock:
                number = next(self._numbers, None)
                if number is None:
                    return
                name = f"{self._prefix}-{number}"
                self.ledger.ordered.append(name)
            self._order(clients, name)

    def _order(self, clients, name):
        request = models.CreateFlowRequest(flow_name=name, categories=["SIGN_UP"])
        for _ in range(20):
            endpoint = self._endpoint()
            if endpoint not in clients:
                clients[endpoint] = Client(Config(access_key_id="test-key", access_key_secret="test-secret", endpoint=endpoint, protocol="HTTP"))
            try:
                clients[endpoint].create_flow(request)
                return self._note(self.ledger.answered, name)
            except Exception as error:  # Whatever the SDK raises.
                reason = nothing_was_sent(error)
                if reason is None:
                    return self._note(self.ledger.lost, f"{name}: {type(error).__name__}: {error}")
                if not self._repeat:
                    return self._note(self.ledger.refused, name)
                with self._lock:
                    self.ledger.repeats[reason] += 1
                time.sleep(0.2)
        return self._note(self.ledger.lost, f"{name}: refused 20 times")

    def _note(self, entries, entry):
        with self._lock:
            entries.append(entry)


def nothing_was_sent(error):
    """Why the order may be repeated elsewhere, or None."""
    if getattr(error, "code", None) in ("Flowgate.Draining", "System.LimitControl"):
        return error.code
    text = str(error)
    for reason in ("Connection refused", "No route to host"):
        if reason in text:
            return reason
    return None


def flows(simulator):
    """The names of the flows that the simulated endpoint has made."""
    return [flow["name"] for flow in json.loads(get(f"http://{simulator}/__flows")[1])]

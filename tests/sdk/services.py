"""The processes of a run: the simulator, Flowgate in several configurations, and the drivers. Each has its own log and is ended by its process id."""

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request

from sdks import SDKS

# The drivers do not inherit proxies, credentials or certificate authorities from the environment.
_FOREIGN = re.compile(r"(?i)^(https?_proxy|no_proxy|all_proxy|alibaba.*|aliyun.*|flowgate.*|ssl_cert_.*|node_extra_ca_certs|java_tool_options|jdk_java_options)$")
CLEAN = {name: value for name, value in os.environ.items() if not _FOREIGN.match(name)}

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def http(url, body=None):
    """Sends GET, or POST with JSON. Returns the answer's text."""
    data = None if body is None else json.dumps(body).encode()
    with _OPENER.open(urllib.request.Request(url, data=data), timeout=10) as answer:
        return answer.read().decode()


class Service:
    """A process that prints its address."""

    def __init__(self, name, argv, logs, ready, env=None):
        self._log = open(logs / f"{name}.log", "w", encoding="utf-8")
        self._process = subprocess.Popen(
            argv, env={**CLEAN, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )
        self._found = None
        self._settled = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(ready,))
        self._reader.start()
        if not self._settled.wait(20) or self._found is None:
            self.stop()
            raise RuntimeError(f"{name} did not start, see {self._log.name}")

    def _read(self, ready):
        for line in self._process.stdout:
            self._log.write(line)
            if self._found is None:
                self._found = ready(line)
                if self._found is not None:
                    self._settled.set()
        self._settled.set()
        self._log.close()

    def stop(self):
        """Ends the process and returns its exit code."""
        self._process.terminate()
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._reader.join(10)
        return code


class Simulator(Service):
    def __init__(self, name, binary, logs, arguments):
        found = {}
        wanted = 2 if "--metadata-listen" in arguments else 1

        def ready(line):
            address = re.search(r"(listening|metadata) on (http://\S+)", line)
            if address:
                found[address[1]] = address[2]
            return found if len(found) == wanted else None

        super().__init__(name, [binary, *arguments], logs, ready)
        self.url, self.metadata = found["listening"], found.get("metadata")

    def report(self):
        return json.loads(http(f"{self.url}/__report"))

    def arrivals(self):
        return json.loads(http(f"{self.url}/__arrivals"))

    def flows(self):
        return json.loads(http(f"{self.url}/__flows"))

    def faults(self, rules):
        http(f"{self.url}/__faults", rules)


class Flowgate(Service):
    def __init__(self, name, binary, logs, config=None, env=None):
        def ready(line):
            event = json.loads(line) if line.startswith("{") else {}
            return event if event.get("message") == "flowgate is ready" else None

        arguments = []
        if config is not None:
            path = logs / f"{name}.toml"
            path.write_text(config, encoding="utf-8")
            arguments = ["--config", str(path)]
        super().__init__(name, [binary, *arguments], logs, ready, env)
        self.proxy, self.admin = self._found["proxy"], self._found["admin"]

    def counts(self, metric):
        """Each of the metric's series: its labels and its value."""
        for line in http(f"http://{self.admin}/metrics").splitlines():
            if line.startswith(f"flowgate_{metric}{{"):
                yield dict(re.findall(r'(\w+)="([^"]*)"', line)), int(float(line.rsplit(" ", 1)[1]))

    def outcomes(self):
        """How calls ended: {account: {outcome: count}}."""
        ended = {}
        for labels, count in self.counts("requests_total"):
            outcomes = ended.setdefault(labels["account"], {})
            outcomes[labels["outcome"]] = outcomes.get(labels["outcome"], 0) + count
        return ended

    def failed_handshakes(self):
        return sum(count for labels, count in self.counts("connection_errors_total") if labels["kind"] == "tls")

    def reloads(self):
        """Number of configuration reloads."""
        return sum(count for labels, count in self.counts("config_reloads_total") if labels["result"] == "done")

    def hang_up(self):
        self._process.send_signal(signal.SIGHUP)

    def wait_for_reload(self, number):
        end = time.monotonic() + 20
        while self.reloads() < number:
            if time.monotonic() > end:
                raise RuntimeError("the configuration was not reloaded")
            time.sleep(0.02)


class Application:
    """A process that answers each line of JSON with one. It has finished its imports before its first job."""

    def __init__(self, log, command, environment):
        self._log = open(log, "a", encoding="utf-8")
        self._process = subprocess.Popen(
            command,
            env={**CLEAN, **environment, "PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
        )

    def wait_until_ready(self):
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"an application did not start, see {self._log.name}")

    def run(self, job):
        """The results of the job's calls."""
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"an application died, see {self._log.name}")
        return json.loads(line)

    def stop(self):
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


class Driver(Application):
    """An application with one SDK."""

    def __init__(self, name, sdk, logs, ca=None):
        # In production applications run on other machines; here they have low priority.
        super().__init__(logs / f"{name}.log", ["nice", "-n", "10", *SDKS[sdk].command], SDKS[sdk].environment(ca))

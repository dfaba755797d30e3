"""Follows docs/tutorial.md: runs its application and its commands in order, on free ports, with the pinned SDK and the binaries of run.py. The output must
be that of the page, except for durations; the number of refused calls depends on timing and may differ by a tenth of the calls."""

import argparse
import os
from pathlib import Path
import re
import shlex
import subprocess
import sys
import time

from run import ROOT
from sdks import PYTHON
from services import CLEAN, Flowgate, Simulator

PAGE = ROOT / "docs/tutorial.md"


def counts(text):
    """The number of calls for each answer."""
    return {answer: int(count) for count, answer in re.findall(r"(?m)^ *(\d+) (\S+)$", text)}


class Reader:
    """Runs the steps of the page."""

    def __init__(self, options):
        self.options = options
        self.simulator = self.flowgate = self.burst = None
        self.problems, self.seen = [], []

    def address(self, text):
        """Replaces the page's fixed ports by the ports of this run."""
        for port, service in (("127.0.0.1:9000", self.simulator and self.simulator.url.removeprefix("http://")), ("127.0.0.1:8080", self.flowgate and self.flowgate.proxy)):
            text = text.replace(port, service or "127.0.0.1:0")
        return text

    def sh(self, text):
        variables = dict(word.split("=", 1) for word in shlex.split(text) if re.match(r"[A-Z_]+=", word))
        words = shlex.split(self.address(text))[len(variables):]
        if words[0].endswith("/cams-sim"):
            self.simulator = Simulator("tutorial-cams-sim", self.options.cams_sim, self.options.logs, words[1:])
        elif words == ["target/release/flowgate"]:
            self.restart({name: self.address(value) for name, value in variables.items()})
        elif words[1:2] == ["burst.py"]:
            self.burst = subprocess.Popen(
                [PYTHON, *words[1:]], cwd=self.options.logs, env=CLEAN, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        elif words[1:2] == ["status"]:
            time.sleep(2)
            self.status = subprocess.run(
                [self.options.flowgate, *words[1:], "--admin", self.flowgate.admin], env=CLEAN, capture_output=True, text=True, check=True
            ).stdout

    def restart(self, variables):
        if self.flowgate:
            self.flowgate.stop()
        own = {"FLOWGATE_LISTEN__PROXY": "127.0.0.1:0", "FLOWGATE_LISTEN__ADMIN": "127.0.0.1:0", "FLOWGATE_LOG__FORMAT": "json"}
        self.flowgate = Flowgate("tutorial-flowgate", self.options.flowgate, self.options.logs, env={**variables, **own})

    def python(self, text):
        (self.options.logs / "burst.py").write_text(text, encoding="utf-8")

    def text(self, text):
        if text.startswith("mode "):
            # The numbers change; the columns do not.
            columns = [(lines.splitlines()[1].split(), len(lines.splitlines())) for lines in (text, self.status)]
            self.compare("status", columns[0] == columns[1], text, self.status)
        elif counts(text):
            printed = self.burst.communicate(timeout=60)[0]
            wanted, found = counts(text), counts(printed)
            slack = sum(wanted.values()) // 10
            alike = wanted.keys() == found.keys() and all(abs(found[answer] - count) <= slack for answer, count in wanted.items())
            self.compare("burst", alike and sum(wanted.values()) == sum(found.values()), text, printed)

    def compare(self, what, alike, wanted, found):
        self.seen.append(what)
        if not alike:
            self.problems.append(f"{what}: the page says\n{wanted}and it is\n{found}")

    def follow(self, page):
        for language, text in re.findall(r"(?s)```(\w+)\n(.*?)```", page):
            getattr(self, language)(text)

    def stop(self):
        for service in filter(None, (self.flowgate, self.simulator)):
            service.stop()
        if self.burst and self.burst.poll() is None:
            self.burst.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--flowgate", default=os.environ.get("FLOWGATE_BIN", target / "ci/flowgate"), type=Path)
    parser.add_argument("--cams-sim", default=os.environ.get("CAMS_SIM_BIN", target / "ci/cams-sim"), type=Path)
    parser.add_argument("--logs", default=target / "test-logs/sdk", type=Path)
    options = parser.parse_args()
    options.logs = options.logs.resolve()
    options.logs.mkdir(parents=True, exist_ok=True)
    reader = Reader(options)
    try:
        reader.follow(PAGE.read_text(encoding="utf-8"))
    finally:
        reader.stop()
    for problem in reader.problems:
        print(f"FAILED tutorial: {problem}")
    if reader.seen != ["burst", "burst", "status", "burst", "burst"]:
        print(f"FAILED tutorial: it was followed as {reader.seen}")
        return 1
    print(f"{'FAILED' if reader.problems else 'ok':7}tutorial")
    return 1 if reader.problems else 0


if __name__ == "__main__":
    sys.exit(main())

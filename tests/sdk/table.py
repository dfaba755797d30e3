"""The table of clients that a whole run prints: what was run with each SDK and signature version, and what was measured."""

from dataclasses import dataclass, field

from scenarios import TLS
from sdks import SDKS

# The rows that show a refusal as every SDK's own error, by the table's columns.
REFUSALS = {"no time": "throttled", "wrong secret": "wrong secret", "closed early": "unknown outcome"}

HEADINGS = ("client", "version", "scheme", "ways", "calls", *REFUSALS.values(), "retry advice", "time-out")


@dataclass
class Line:
    """An SDK with a signature version."""

    ways: list = field(default_factory=list)
    succeeded: int = 0
    calls: int = 0
    refusals: dict = field(default_factory=dict)


class Table:
    def __init__(self):
        self._lines, self._time_outs = {}, {}

    def _line(self, party):
        return self._lines.setdefault((party.sdk, party.scheme), Line())

    def add_calls(self, party, succeeded):
        line, way = self._line(party), TLS.get(party.what.flowgate, party.what.style)
        line.ways += [way] if way not in line.ways else []
        line.succeeded, line.calls = line.succeeded + succeeded, line.calls + party.what.calls

    def add_row(self, party, problems):
        if party.what.name in REFUSALS:
            error = SDKS[party.sdk].errors[party.what.kind].format(code="<Code>")
            self._line(party).refusals[REFUSALS[party.what.name]] = "FAILED" if problems else error

    def add_time_out(self, party, problems, figures):
        self._time_outs[party.sdk] = "FAILED" if problems else figures

    def print(self):
        lines = [HEADINGS]
        for (name, scheme), line in sorted(self._lines.items(), key=lambda item: (list(SDKS).index(item[0][0]), item[0][1])):
            sdk = SDKS[name]
            refusals = [line.refusals.get(refusal, "-") for refusal in REFUSALS.values()]
            calls = f"{line.succeeded}/{line.calls}"
            lines.append((f"{name}: {sdk.package}", sdk.version, scheme, ", ".join(line.ways), calls, *refusals, sdk.advice or "none", self._time_outs.get(name, "-")))
        widths = [max(map(len, column)) for column in zip(*lines)]
        print()
        for line in lines:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
        print(flush=True)

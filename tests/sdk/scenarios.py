"""The scenarios and rows: SDK, signature version, route, key, and the expected result. Each has an account of its own and so a lane of its own, so that many
can run at once and the simulator's records of each can be separated."""

from dataclasses import dataclass, field
from functools import partial
import math
import re

from sdks import CUT_OFF, FAILED, REFUSED, SDKS, THROTTLED

# The host that the simulator serves, and the endpoint of an SDK that has Flowgate as its http_proxy.
REAL_HOST = "cams.ap-southeast-1.aliyuncs.com"

CALLS = 20

# The Flowgates with TLS: for all callers, and only for callers with a certificate.
TLS = {"tls": "TLS", "mutual": "mutual TLS"}

# Every reserved character, letters of two, three and four bytes, and text that looks like a throttle refusal to a search for its code.
AWKWARD = "a b+c~d*e'f(g)h!i/j&k=l%m\"n<中文>é€😀;:@,?#[]\\^`{|}\",\"Code\":\"System.LimitControl"

# More than the configuration's max_body.
TOO_LARGE = "x" * 20_000


def slug(text):
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@dataclass(frozen=True)
class Scenario:
    """Parallel calls that all succeed; if the SDK keeps its default time-outs, only as many as fit into them."""

    sdk: str
    scheme: str
    style: str = "endpoint"  # or "proxy": Flowgate is the SDK's http_proxy
    mode: str = "sync"
    # The account's own key; or "client", "relayed"; or "session": a client of an account whose sessions Flowgate obtains from a URI.
    identity: str = "account"
    sts: bool = False  # the caller signs with a temporary key, whose token must not be forwarded
    flowgate: str = "shared"  # or "sidecar": no file, only the environment; "renewing": its clients' secrets are replaced; "unanswered": its upstream never answers; or one of TLS
    trust: str = ""  # with TLS: the CA is set by the SDK's own "option", or by the "environment"
    retries: int = 0  # how often the SDK itself may send a call, if a refusal permits it
    calls: int = CALLS
    hold: str = ""  # the caller's time-out, sent in x-flowgate-hold
    obeys: bool = False  # a refused call is retried once, at the given time
    time_out: float = 0  # the SDK's default time-out in seconds; 0: raised, so that every call may wait

    @property
    def name(self):
        words = [self.sdk, self.mode if self.sdk == "python" else "", self.scheme, "STS" if self.sts else ""]
        way = f"{TLS[self.flowgate]}, CA by {self.trust}" if self.flowgate in TLS else self.style
        words += [f"as {self.identity}", f"by {way}", self.flowgate if self.flowgate in ("sidecar", "renewing", "unanswered") else ""]
        words += ["retrying" if self.retries else "", "saying its hold" if self.hold else ""]
        words += ["in a crowd" if self.time_out and self.flowgate == "auto" else "", "that obeys" if self.obeys else ""]
        return " ".join(filter(None, words))

    def names(self):
        return [f"{slug(self.name)} {number:02} {AWKWARD}" for number in range(self.calls)]


SCENARIOS = [
    Scenario("python", "V3"),
    Scenario("python", "V3", mode="async"),
    Scenario("python", "V1"),
    Scenario("python", "V1", mode="async"),
    Scenario("python", "V3", sts=True),
    Scenario("python", "V1", sts=True),
    Scenario("python", "V3", style="proxy"),
    Scenario("python", "V3", style="proxy", mode="async"),
    Scenario("python", "V1", style="proxy"),
    Scenario("python", "V3", identity="client"),
    Scenario("python", "V1", identity="client", sts=True),
    Scenario("python", "V1", identity="relayed"),
    Scenario("python", "V3", identity="relayed", style="proxy"),
    Scenario("python-old", "V1"),
    Scenario("python-old", "V1", style="proxy"),
    Scenario("python-old", "V1", sts=True),
    Scenario("python-old", "V1", identity="relayed"),
    Scenario("node", "V3"),
    Scenario("node", "V1"),
    Scenario("node", "V3", sts=True),
    Scenario("node", "V1", sts=True),
    Scenario("node", "V1", identity="relayed"),
    Scenario("python", "V3", flowgate="auto", hold="59s"),
    Scenario("python-old", "V1", flowgate="auto", hold="59000"),
    # Twenty calls take four seconds, and the Node SDK waits for three.
    Scenario("node", "V3", flowgate="auto", hold="59s"),
    Scenario("python", "V3", sts=True, flowgate="sidecar"),
    # One only: the simulator's URI issues sessions of one account.
    Scenario("python", "V3", identity="session"),
]

# Every SDK and signature version over TLS. Over mutual TLS only those that support client certificates, which the old Python SDK does not.
SCENARIOS += [
    Scenario(sdk, scheme, mode=mode, identity=identity, flowgate="tls", trust=trust)
    for sdk, scheme, mode in (
        ("python", "V3", "sync"),
        ("python", "V3", "async"),
        ("python", "V1", "sync"),
        ("python", "V1", "async"),
        ("python-old", "V1", "sync"),
        ("node", "V3", "sync"),
        ("node", "V1", "sync"),
    )
    for identity, trust in (("account", "option"), ("client", "environment"))
] + [
    Scenario("python", "V3", identity="client", flowgate="mutual", trust="option"),
    Scenario("python", "V3", mode="async", identity="client", flowgate="mutual", trust="environment"),
    Scenario("node", "V3", identity="client", flowgate="mutual", trust="option"),
]

# The ways in which every other SDK reaches Flowgate, and with which identity.
WAYS = {
    "endpoint": {},
    "proxy": {"style": "proxy", "identity": "relayed"},
    "tls": {"flowgate": "tls", "identity": "client"},
    "mutual": {"flowgate": "mutual", "identity": "client"},
}


def every_way(sdk):
    """The SDK's scenarios, each way with each signature version."""
    trust = {"tls": sdk.trusts[0], "mutual": sdk.trusts[-1]}
    return [Scenario(sdk.name, scheme, trust=trust.get(way, ""), **WAYS[way]) for scheme in sdk.schemes for way in sdk.ways]


for sdk in SDKS.values():
    if not sdk.thorough:
        SCENARIOS += every_way(sdk)

# A secret is replaced while CALLS calls wait; half of the remaining calls are signed with the new one.
RENEWALS = [
    Scenario(sdk, scheme, identity="client", flowgate="renewing", calls=CALLS + 10)
    for sdk, scheme in (("python", "V3"), ("python-old", "V1"), ("node", "V3"))
]

# A hundred calls at once with default time-outs: Flowgate recognises the SDK.
CROWDS = [
    Scenario("python", "V3", flowgate="auto", calls=100, time_out=10),
    Scenario("python-old", "V1", flowgate="auto", calls=100, time_out=10),
    Scenario("node", "V3", flowgate="auto", calls=100, time_out=3),
    # A call that is retried at the given time succeeds. With 40 calls in Node the latest of these times is within ten seconds.
    Scenario("python", "V3", flowgate="auto", calls=80, time_out=10, obeys=True),
    Scenario("node", "V3", flowgate="auto", calls=40, time_out=3, obeys=True),
]

# One call of each SDK with its default time-outs, to a Flowgate that gets no answer.
UNANSWERED = [
    Scenario(sdk.name, sdk.schemes[0], flowgate="unanswered", calls=1, time_out=math.inf if sdk.time_out is None else sdk.time_out)
    for sdk in SDKS.values()
    if not sdk.by_hand
]


@dataclass(frozen=True)
class Row:
    """A call that fails, and how every SDK reports it to the application: Code, HTTP status and Message are Flowgate's or CAMS's, the exception is the SDK's
    own, by the kind of the failure: every answer with a time to retry is THROTTLED. Without a status there was no answer, only the SDK's own error about a
    connection that failed."""

    name: str
    code: str | None
    status: int | None
    says: str
    kind: str = REFUSED
    identity: str = "account"
    mode: str = "sync"
    # Or "impatient": one attempt, a short hold; "cut-off": its upstream refuses connections; or one of TLS.
    flowgate: str = "shared"
    trust: str = "option"
    schemes: tuple = ("V3", "V1")
    sdks: tuple = tuple(name for name, sdk in SDKS.items() if sdk.thorough)
    action: str = "CreateFlow"
    fault: str = ""  # the simulator's fault for this row's calls
    calls: int = 1
    reaches: int = 0  # how many of them the simulator receives, if it is one call
    counted: str = "invalid"  # flowgate_requests_total{outcome}
    change: dict = field(default_factory=dict, hash=False)  # what differs from other rows

    @property
    def mark(self):
        """Text in the FlowName by which the simulator recognises the row's calls."""
        return f"<{slug(self.name)}>"

    @property
    def is_flowgates_own(self):
        """No call of the row reaches the endpoint, so Flowgate writes the answer."""
        return self.reaches == 0

    def names(self):
        return [self.change.get("flow_name", f"{self.mark} {number}") for number in range(self.calls)]


def strangers(name, flowgate, says, **more):
    """Rows in which the TLS handshake fails. The signature does not matter."""
    row = partial(Row, code=None, status=None, says=says, kind=CUT_OFF, flowgate=flowgate, schemes=("V1",), **more)
    return row(name), row(f"{name}, async", mode="async", sdks=("python",))


ROWS = [
    Row("wrong secret", "SignatureDoesNotMatch", 400, "signature is not matched", sdks=tuple(SDKS), change={"secret": "wrong"}),
    Row("unknown key", "InvalidAccessKeyId.NotFound", 404, "access key is not found", change={"key": "nobody"}),
    Row("wrong host", "Flowgate.SignedHostMismatch", 400, "http_proxy", identity="relayed", schemes=("V3",)),
    Row(
        "another product",
        "Flowgate.NotAProxy",
        403,
        "not a general proxy",
        sdks=("python", "python-old"),
        change={"style": "proxy", "endpoint": "ecs.aliyuncs.com"},
    ),
    Row("not allowed", "Flowgate.Forbidden", 403, "ListFlow", identity="client", action="ListFlow", counted="refused"),
    Row(
        "body too large",
        "Flowgate.RequestTooLarge",
        413,
        "16384 bytes",
        action="GetPreValidatePhoneId",
        change={"flow_name": TOO_LARGE},
    ),
    Row(
        "no time",
        "System.LimitControl",
        400,
        "predicted wait",
        kind=THROTTLED,
        sdks=tuple(SDKS),
        flowgate="impatient",
        calls=20,
        counted="refused",
    ),
    Row(
        "last attempt throttled",
        "System.LimitControl",
        400,
        "flow control",
        kind=THROTTLED,
        flowgate="impatient",
        fault="throttle",
        reaches=1,
        counted="throttled",
    ),
    Row(
        "relayed and throttled",
        "System.LimitControl",
        400,
        "flow control",
        kind=THROTTLED,
        identity="relayed",
        change={"style": "proxy"},
        sdks=("python", "python-old"),
        fault="throttle,acs-retry-after=300",
        reaches=1,
        counted="throttled",
    ),
    Row(
        "cannot be reached",
        "Flowgate.UpstreamUnreachable",
        503,
        "CAMS has done nothing",
        kind=THROTTLED,
        flowgate="cut-off",
        counted="unreachable",
    ),
    Row("unavailable", "Flowgate.OutcomeUnknown", 409, "ListFlow", fault="unavailable", reaches=1, counted="outcome_unknown"),
    Row(
        "unavailable for a while",
        "Flowgate.OutcomeUnknown",
        409,
        "ListFlow",
        fault="unavailable,acs-retry-after=300",
        reaches=1,
        counted="outcome_unknown",
    ),
    Row("sent twice on the way", "Flowgate.OutcomeUnknown", 409, "ListFlow", fault="copied", reaches=1, counted="outcome_unknown"),
    Row(
        "a matter of business",
        "Product.Unsubscript",
        400,
        "not subscribed",
        fault="refuse=Product.Unsubscript",
        reaches=1,
        counted="upstream_error",
    ),
    Row("garbage", "Flowgate.OutcomeUnknown", 409, "ListFlow", fault="garbage", reaches=1, counted="outcome_unknown"),
    Row("a web page", "Flowgate.OutcomeUnknown", 409, "ListFlow", fault="html", reaches=1, counted="outcome_unknown"),
    Row("closed early", "Flowgate.OutcomeUnknown", 409, "ListFlow", sdks=tuple(SDKS), fault="close-after", reaches=1, counted="outcome_unknown"),
    Row(
        "the account's key is wrong",
        "Flowgate.AccountCredentials",
        403,
        "access key",
        identity="client",
        reaches=1,
        counted="upstream_error",
        change={"account_secret": "not-the-simulators"},
    ),
    Row("no TLS where it is spoken", "Flowgate.BadRequest", 400, "set the SDK's protocol to HTTPS", flowgate="tls", change={"protocol": "HTTP"}),
    # Before any row with a trusted CA: within one process the Python SDK keeps trusting a CA.
    *strangers("not trusted", "tls", "certificate", trust=""),
    # The SDK's message depends on whether it reads Flowgate's alert before it writes its request.
    *strangers("no certificate to show", "mutual", "", change={"certificate": None}),
    Row("disabled", "Flowgate.Forbidden", 403, "disabled", identity="client", flowgate="tls", counted="refused", change={"disabled": True}),
]

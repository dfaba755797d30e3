"""The callers, as configured in the simulator and in Flowgate: one account for each scenario, and one for each row with each SDK and scheme."""

from dataclasses import dataclass, replace

from renewal import lines
from scenarios import CROWDS, REAL_HOST, RENEWALS, ROWS, SCENARIOS, TLS, UNANSWERED, Row, Scenario, slug
from sdks import SDKS

# The window is longer than the endpoint's: the simulator counts a call when it reads it, and it shares a few cores with a dozen applications that start at
# the same moment. Tests with the cores to themselves check the exact rate.
LIMIT = "5/1200ms"


# Whose callers sign with a key that Flowgate issues.
CLIENTS = ("client", "session")


@dataclass(frozen=True)
class Party:
    """An account and its one caller."""

    what: Scenario | Row
    sdk: str
    scheme: str

    @property
    def account(self):
        return slug(self.what.name if isinstance(self.what, Scenario) else f"{self.what.name} {self.sdk} {self.scheme}")

    @property
    def key(self):
        return f"LTAI-{self.account}"

    @property
    def secret(self):
        return f"secret of {self.account}"

    @property
    def caller(self):
        """The key and secret that the caller signs with."""
        if self.what.identity in CLIENTS:
            return f"team-{self.account}", f"{self.secret}'s team"
        return self.key, self.secret

    @property
    def token(self):
        return f"token-of-{self.account}"

    def job(self, flowgate, certificates):
        """A driver's job, through the Flowgate at this address."""
        what = self.what
        change = getattr(what, "change", {})
        key, secret = self.caller
        by_proxy = change.get("style", getattr(what, "style", "endpoint")) == "proxy"
        return {
            "key": change.get("key", key),
            "secret": change.get("secret", secret),
            "token": self.token if getattr(what, "sts", False) else None,
            "endpoint": change.get("endpoint", REAL_HOST) if by_proxy else flowgate,
            "proxy": f"http://{flowgate}" if by_proxy else None,
            "protocol": change.get("protocol", "HTTPS" if what.flowgate in TLS else "HTTP"),
            "ca": str(certificates.ca) if what.flowgate in TLS and what.trust == "option" else None,
            "certificate": change.get("certificate", certificates.application.paths() if what.flowgate == "mutual" else None),
            "scheme": self.scheme,
            "async": getattr(what, "mode", "sync") == "async",
            "timeout_ms": None if getattr(what, "time_out", 0) else 60_000,
            "obeys": getattr(what, "obeys", False),
            "hold": getattr(what, "hold", ""),
            "action": getattr(what, "action", "CreateFlow"),
            "names": what.names(),
            "sdk_retries": getattr(what, "retries", 0),
        }


def of_scenarios():
    return [Party(scenario, scenario.sdk, scenario.scheme) for scenario in SCENARIOS]


def of_crowds():
    return [Party(scenario, scenario.sdk, scenario.scheme) for scenario in CROWDS]


def of_renewals():
    return [Party(scenario, scenario.sdk, scenario.scheme) for scenario in RENEWALS]


def of_unanswered():
    return [Party(scenario, scenario.sdk, scenario.scheme) for scenario in UNANSWERED]


def of_rows():
    return [
        Party(row, sdk, scheme)
        for row in ROWS
        for sdk in row.sdks
        for scheme in row.schemes
        if scheme in SDKS[sdk].schemes
    ]


def relayed_retries():
    """Relayed callers whose SDK retries by itself at the given time."""
    relayed = Scenario("python", "V3", style="proxy", identity="relayed")
    ways = (("V3", "sync"), ("V1", "async"))
    return [Party(replace(relayed, scheme=scheme, mode=mode, retries=2), "python", scheme) for scheme, mode in ways]


def simulator_key(party):
    """The account's key in the simulator. Only the sidecar's is a temporary one, with a token."""
    token = f":{party.token}" if party.what.flowgate == "sidecar" else ""
    return f"{party.key}:{party.secret}:{party.account}{token}"


def sidecar_environment(party, upstream):
    """The whole configuration of a Flowgate without a file."""
    return {
        "ALIBABA_CLOUD_ACCESS_KEY_ID": party.key,
        "ALIBABA_CLOUD_ACCESS_KEY_SECRET": party.secret,
        "ALIBABA_CLOUD_SECURITY_TOKEN": party.token,
        "FLOWGATE_LISTEN__PROXY": "127.0.0.1:0",
        "FLOWGATE_LISTEN__ADMIN": "127.0.0.1:0",
        "FLOWGATE_UPSTREAM__URL": upstream,
        "FLOWGATE_UPSTREAM__HOST": REAL_HOST,
        "FLOWGATE_QUEUE__HOLD": "60s",
        "FLOWGATE_LIMITS__CREATEFLOW": LIMIT,
        "FLOWGATE_LOG__FORMAT": "json",
    }


def tls(name, certificates):
    """The table listen.tls of the Flowgate of this name, if it uses TLS."""
    if name not in TLS:
        return ""
    client_ca = f', client_ca = "{certificates.ca}"' if name == "mutual" else ""
    return f', tls = {{ cert = "{certificates.server.cert}", key = "{certificates.server.key}"{client_ca} }}'


def session_account(parties):
    """The account whose sessions the simulator's URI issues."""
    return next((party.account for party in parties if party.what.identity == "session"), "none")


def configuration(parties, simulator, upstream, listen, hold, attempts):
    """A configuration file for these accounts, and the environment that holds their secrets."""
    text = f"""\
listen = {{ proxy = "127.0.0.1:0", admin = "127.0.0.1:0", max_body = "16KiB"{listen} }}
upstream = {{ url = "{upstream}", host = "{REAL_HOST}" }}
queue = {{ hold = "{hold}" }}
limits = {{ CreateFlow = "{LIMIT}" }}
retry = {{ max_attempts = {attempts} }}
log = {{ format = "json" }}
"""
    clients, secrets = "", {}
    for number, party in enumerate(parties):
        text += f'\n[[accounts]]\nid = "{party.account}"\n'
        if party.what.identity == "relayed":
            text += f'aliases = ["{party.key}"]\n'
            continue
        if party.what.identity == "session":
            text += f'credentials = {{ uri = "{simulator.metadata}/credentials" }}\n'
        else:
            text += f'access_key_id = "{party.key}"\naccess_key_secret = {{ env = "SECRET_{number}" }}\n'
            secrets[f"SECRET_{number}"] = getattr(party.what, "change", {}).get("account_secret", party.secret)
        if party.what.identity in CLIENTS:
            key, secrets[f"TEAM_SECRET_{number}"] = party.caller
            renewing = party.what.flowgate == "renewing"
            clients += f"""
[[clients]]
access_key_id = "{key}"
{lines(party) if renewing else f'access_key_secret = {{ env = "TEAM_SECRET_{number}" }}'}
disabled = {str("disabled" in getattr(party.what, "change", {})).lower()}
account = "{party.account}"
actions = ["CreateFlow"]
"""
    return text + clients, secrets

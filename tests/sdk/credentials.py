"""Runs Alibaba's own credentials libraries for Python, Node and Go, and the STS SDK for Python, against the simulator's STS, metadata service and
credentials URI, so that these are checked by something that was not written here. Every session is used: STS says whose it is, and CAMS takes a call that
it signs. The simulator's records must show what the library is known to send. Prints one line for each case. CAMS_SIM_BIN names the binary."""

import argparse
from contextlib import ExitStack
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
import re
import sys
from urllib.parse import urlsplit

import certificates
from run import ROOT, Tally, differ
from sdks import HERE, PYTHON
from services import Application, Service, Simulator, http

KEY = ("LTAI-test-key-id-1", "test-secret-1")
ACCOUNT, OTHER = "123456789012", "210987654321"
ROLE, SECOND = f"acs:ram::{ACCOUNT}:role/flowgate", f"acs:ram::{OTHER}:role/second"
PLAIN = {"role_arn": ROLE, "role_session_name": "flowgate"}
OIDC = {"oidc_provider_arn": f"acs:ram::{ACCOUNT}:oidc-provider/ack-rrsa-c1", **PLAIN}
ASSUME = {"access_key_id": KEY[0], "access_key_secret": KEY[1], **PLAIN}
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOlsic3RzLmFsaXl1bmNzLmNvbSJdLCJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQ6ZmxvdzpnYXRlIn0.ZmFrZQ"
POLICY = '{"Version":"1","Statement":[{"Effect":"Allow","Action":["cams:*"],"Resource":"*"}]}'

# The libraries of other languages: a job has their configuration under this name.
OTHERS = {"node": ("node", str(HERE / "drivers/credentials.js")), "go": (str(HERE / "drivers/go/.build/drivers"), "credentials")}

# The identity of a session of the role, and of the instance.
IN_ROLE = f"acs:ram::{ACCOUNT}:assumed-role/flowgate/flowgate"
IN_SECOND = f"acs:ram::{OTHER}:assumed-role/second/hop2"
ON_ECS = f"acs:ram::{ACCOUNT}:assumed-role/flowgate-role/i-simulated"

# The requests for a session of the instance: the library asks for a token before each.
ECS = ["MetadataToken", "MetadataCredentials"]
ECS_UNKNOWN = ["MetadataToken", "MetadataRole", *ECS]


@dataclass(frozen=True)
class Case:
    """One way to a session. `arn` is whose it is, or None if the library must raise an error whose text contains `error`."""

    name: str
    job: dict
    asked: list  # the actions that the simulator receives
    arn: str | None = None
    error: str = ""
    by: str = ""  # the end of the provider's name, if any
    tokens_in_url: set = field(default_factory=set)
    schemes: str = ""  # GET or POST of the request for the session
    faults: tuple = ()
    env: dict = field(default_factory=dict)  # read at import: a process of its own
    strict_ecs: bool = False  # on the instance that requires tokens; a process of its own, because the library keeps connections


def ram(change=None, **job):
    return {"provider": "RamRoleArnCredentialsProvider", "options": {**ASSUME, **(change or {})}, **job}


def oidc(file, **job):
    return {"provider": "OIDCRoleArnCredentialsProvider", "options": {**OIDC, "oidc_token_file_path": str(file)}, **job}


def ecs(**options):
    return {"provider": "EcsRamRoleCredentialsProvider", "options": {"async_update_enabled": False, **options}}


def sdk(method, request, options, key=None):
    return {"method": method, "request": request, "options": options, "key": key}


def node(kind, **more):
    """A job of the Node library."""
    usual = {"accessKeyId": KEY[0], "accessKeySecret": KEY[1], "roleArn": ROLE, "roleSessionName": "flowgate", "oidcProviderArn": OIDC["oidc_provider_arn"]}
    return {"node": {"type": kind, **usual, **more}}


def go(kind, **more):
    """A job of the Go library."""
    return {"go": {"type": kind, **(ASSUME if kind == "ram_role_arn" else OIDC if kind == "oidc_role_arn" else {}), **more}}


def cases(folder, metadata):
    """All cases."""
    token, newline = folder / "token", folder / "token-with-newline"
    token.write_text(TOKEN, encoding="utf-8")
    newline.write_text(f"{TOKEN}\n", encoding="utf-8")
    hop2 = {"provider": "RamRoleArnCredentialsProvider", "options": {"role_arn": SECOND, "role_session_name": "hop2"}}
    uri = {"provider": "URLCredentialsProvider", "options": {"uri": f"{metadata}/credentials?app=flowgate&x=a%20b"}}
    chain = {"provider": "DefaultCredentialsProvider"}
    home = {"HOME": str(folder)}
    rrsa = {
        **home,
        "ALIBABA_CLOUD_ROLE_ARN": ROLE,
        "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": OIDC["oidc_provider_arn"],
        "ALIBABA_CLOUD_OIDC_TOKEN_FILE": str(token),
        "ALIBABA_CLOUD_ROLE_SESSION_NAME": "flowgate",
    }
    in_url = {"OIDCToken"}
    return [
        Case("AssumeRole V1", ram(), ["AssumeRole"], IN_ROLE, schemes="GET"),
        Case("AssumeRole V1 async", ram({"duration_seconds": 900}, **{"async": True}), ["AssumeRole"], IN_ROLE, schemes="GET"),
        Case("AssumeRole V1 policy, external id", ram({"policy": POLICY, "external_id": "abc/1=2:3@x"}), ["AssumeRole"], IN_ROLE),
        # The library signs the space as a plus.
        Case("AssumeRole V1 policy with a space", ram({"policy": POLICY.replace(":", ": ")}), ["AssumeRole"], error="SignatureDoesNotMatch"),
        Case("AssumeRole V1 wrong secret", ram({"access_key_secret": "wrong"}), ["AssumeRole"], error="SignatureDoesNotMatch"),
        Case("AssumeRole V1 unknown key", ram({"access_key_id": "nobody"}), ["AssumeRole"], error="InvalidAccessKeyId.NotFound"),
        Case("AssumeRole V1 session name", ram({"role_session_name": "a/b"}), ["AssumeRole"], error="InvalidParameter.RoleSessionName"),
        Case("AssumeRole V1 too long", ram({"duration_seconds": 43_201}), ["AssumeRole"], error="InvalidParameter.DurationSeconds"),
        Case("two roles", {**hop2, "source": ram()}, ["AssumeRole", "AssumeRole"], IN_SECOND, tokens_in_url={"SecurityToken"}),
        Case("OIDC", oidc(token), ["AssumeRoleWithOIDC"], IN_ROLE, tokens_in_url=in_url, schemes="GET"),
        Case("OIDC async", oidc(token, **{"async": True}), ["AssumeRoleWithOIDC"], IN_ROLE, tokens_in_url=in_url),
        Case("OIDC newline", oidc(newline), ["AssumeRoleWithOIDC"], error="AuthenticationFail.OIDCToken.Invalid", tokens_in_url=in_url),
        Case(
            "OIDC then a role", {**hop2, "source": oidc(token)},
            ["AssumeRoleWithOIDC", "AssumeRole"], IN_SECOND, tokens_in_url={"OIDCToken", "SecurityToken"},
        ),
        Case("SDK AssumeRole V3", sdk("assume_role", "AssumeRoleRequest", {**PLAIN, "policy": POLICY}, KEY), ["AssumeRole"], IN_ROLE, schemes="POST"),
        Case(
            "SDK AssumeRole V3 wrong secret", sdk("assume_role", "AssumeRoleRequest", PLAIN, (KEY[0], "wrong")), ["AssumeRole"],
            error="SignatureDoesNotMatch",
        ),
        Case(
            "SDK AssumeRoleWithOIDC",
            sdk("assume_role_with_oidc", "AssumeRoleWithOIDCRequest", {**PLAIN, "oidcprovider_arn": OIDC["oidc_provider_arn"], "oidctoken": TOKEN}),
            ["AssumeRoleWithOIDC"], IN_ROLE, tokens_in_url=in_url, schemes="POST",
        ),
        Case("ECS v2", ecs(role_name="flowgate-role"), ECS, ON_ECS),
        Case("ECS v2 unknown role", ecs(), ECS_UNKNOWN, ON_ECS),
        Case("ECS v2 required", ecs(disable_imds_v1=True), ECS_UNKNOWN, ON_ECS, strict_ecs=True),
        Case("ECS v1", ecs(), ECS_UNKNOWN, ON_ECS, faults=("action=MetadataToken,status=404",)),
        Case(
            "ECS v1 where tokens are required", ecs(role_name="flowgate-role"), ECS,
            error="HttpCode=403", faults=("action=MetadataToken,status=404",), strict_ecs=True,
        ),
        Case("ECS v1 disabled by the caller", ecs(disable_imds_v1=True), ["MetadataToken"], error="HttpCode=404", faults=("action=MetadataToken,status=404",)),
        Case("ECS other role", ecs(role_name="other", disable_imds_v1=True), ECS, error="HttpCode=404"),
        Case("ECS failed", ecs(role_name="flowgate-role", disable_imds_v1=True), ECS, error="Failed", faults=("action=MetadataCredentials,failed",)),
        Case("URI", uri, ["CredentialsUri"], ON_ECS),
        Case("URI without expiration", uri, ["CredentialsUri"], error="error retrieving credentials", faults=("action=CredentialsUri,no-expiration",)),
        Case("chain: OIDC", chain, ["AssumeRoleWithOIDC"], IN_ROLE, by="oidc_role_arn", env=rrsa, tokens_in_url=in_url),
        Case("chain: ECS", chain, ECS_UNKNOWN, ON_ECS, by="ecs_ram_role", env=home),
        Case(
            "chain: URI", chain,
            ["CredentialsUri"], ON_ECS, by="credential_uri",
            env={**home, "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true", "ALIBABA_CLOUD_CREDENTIALS_URI": f"{metadata}/credentials"},
        ),
        Case(
            "chain: refused OIDC, then ECS", chain, ["AssumeRoleWithOIDC", *ECS_UNKNOWN], ON_ECS, by="ecs_ram_role", env=rrsa, tokens_in_url=in_url,
            faults=("action=AssumeRoleWithOIDC,refuse=AuthenticationFail.NoPermission",),
        ),
        Case("Node AssumeRole V1", node("ram_role_arn", externalId="ab"), ["AssumeRole"], IN_ROLE, schemes="POST"),
        Case("Node AssumeRole V1 policy with a space", node("ram_role_arn", policy=POLICY.replace(":", ": ")), ["AssumeRole"], IN_ROLE, schemes="POST"),
        # The library compares its string to sign with that of the refusal: only if both are the same it says that the secret is wrong.
        Case(
            "Node AssumeRole V1 wrong secret", node("ram_role_arn", accessKeySecret="wrong"), ["AssumeRole"],
            error="the access key secret is invalid", schemes="POST",
        ),
        Case("Node OIDC", node("oidc_role_arn", oidcTokenFilePath=str(token)), ["AssumeRoleWithOIDC"], IN_ROLE, schemes="POST"),
        Case("Node OIDC newline", node("oidc_role_arn", oidcTokenFilePath=str(newline)), ["AssumeRoleWithOIDC"], error="AuthenticationFail.OIDCToken.Invalid"),
        Case("Node ECS v2", node("ecs_ram_role"), ECS_UNKNOWN, ON_ECS),
        Case("Node ECS v1", node("ecs_ram_role"), ECS_UNKNOWN, ON_ECS, faults=("action=MetadataToken,status=404",)),
        Case("Node URI", node("credentials_uri", credentialsURI=f"{metadata}/credentials?x=a%20b"), ["CredentialsUri"], ON_ECS),
        Case("Go AssumeRole V1", go("ram_role_arn", policy=POLICY.replace(":", ": ")), ["AssumeRole"], IN_ROLE, schemes="POST"),
        Case("Go AssumeRole V1 wrong secret", go("ram_role_arn", access_key_secret="wrong"), ["AssumeRole"], error="SignatureDoesNotMatch", schemes="POST"),
        Case("Go OIDC", go("oidc_role_arn", oidc_token=str(token)), ["AssumeRoleWithOIDC"], IN_ROLE, schemes="POST"),
        Case("Go URI", go("credentials_uri", url=f"{metadata}/credentials"), ["CredentialsUri"], ON_ECS),
        Case("STS 503", ram(), ["AssumeRole"], error="ServiceUnavailable", faults=("action=sts,unavailable",)),
        Case("STS throttled", ram(), ["AssumeRole"], error="Throttling.User", faults=("action=AssumeRole,throttle,code=Throttling.User",)),
        Case("STS half an answer", ram(), ["AssumeRole"], error="Unterminated string", faults=("action=AssumeRole,half",)),
        Case("STS garbage", ram(), ["AssumeRole"], error="BadStatusLine", faults=("action=AssumeRole,garbage",)),
        Case("STS closes", oidc(token), ["AssumeRoleWithOIDC"], error="RemoteDisconnected", tokens_in_url=in_url, faults=("action=sts,close-before",)),
        # The library does not give out what has ended; the SDK does, and the simulator refuses it.
        Case("STS expired at receipt", ram(), ["AssumeRole"], error="No cached value", faults=("action=AssumeRole,expired",)),
        Case(
            "SDK expired at receipt", sdk("assume_role", "AssumeRoleRequest", PLAIN, KEY), ["AssumeRole"],
            error="InvalidSecurityToken.Expired", faults=("action=AssumeRole,expired",),
        ),
    ]


class Sources(Simulator):
    """A simulator with HTTPS and an instance's metadata service."""

    def __init__(self, name, binary, logs, certificates, more=()):
        found = {}

        def ready(line):
            address = re.search(r"(listening|metadata) on ((https?)://\S+)", line)
            if address:
                found[address[3] if address[1] == "listening" else "metadata"] = address[2]
            return found if len(found) == 3 else None

        pair = certificates.server
        own = ["--key", f"{KEY[0]}:{KEY[1]}:acme", "--limit", "1000", "--tls-listen", "127.0.0.1:0", "--tls-cert", str(pair.cert), "--tls-key", str(pair.key)]
        Service.__init__(self, name, [binary, *own, "--metadata-listen", "127.0.0.1:0", "--sts-host", "sts.aliyuncs.com", *more], logs, ready)
        self.url, self.https, self.metadata = found["http"], found["https"], found["metadata"]

    def requests(self):
        return json.loads(http(f"{self.url}/__credentials"))

    def hosts(self):
        """The names that the libraries use, and their ports here."""
        return {"sts.aliyuncs.com": urlsplit(self.https).port, "100.100.100.200": urlsplit(self.metadata).port}

    def reset(self):
        http(f"{self.url}/__reset", {})


def start_application(logs, env, command=(PYTHON, str(HERE / "drivers/credentials.py"))):
    """A process with the libraries of one language."""
    started = Application(logs / "driver-credentials.log", command, env)
    started.wait_until_ready()
    return started


def check(case, result, requests, arrivals):
    """The problems of a case."""
    # Requests that use the session come after those for it.
    asked = [request for request in requests if request["action"] != "GetCallerIdentity"]
    secrets = [secret for secret in (TOKEN, *KEY[1:]) if secret in json.dumps(requests)]
    problems = differ(
        asked=(without_repeats(asked), case.asked),
        tokens_in_url=({name for request in asked for name in request["tokens_in_url"]}, case.tokens_in_url),
        secrets=(secrets, []),
    )
    if case.schemes:
        problems += differ(method=({request["method"] for request in asked}, {case.schemes}))
    if case.arn is None:
        message = str(result.get("message"))
        if result["ok"] or case.error not in message:
            problems.append(f"an error with {case.error} was expected, not {json.dumps(result)[:400]}")
        return problems
    if not result["ok"]:
        return [*problems, json.dumps(result)[:600]]
    issued = [request["issued"] for request in asked if request["issued"]]
    return problems + differ(
        arn=(result["arn"], case.arn),
        account=(result["account"], case.arn.split(":")[3]),
        created=(result["created"], "OK"),
        by=(result["by"].endswith(case.by), True),
        issued=(issued[-1:], [result["id"]]),
        quota=([arrival["account"] for arrival in arrivals], [result["account"]]),
    )


def without_repeats(asked):
    """The actions; a request that the library repeats without the metadata token counts once."""
    actions = []
    for before, request in zip([None, *asked], asked):
        names = [name for name, _ in request["headers"]]
        again = before is not None and before["path"] == request["path"] and before["verdict"] != "accepted"
        if not (again and request["action"].startswith("Metadata") and "x-aliyun-ecs-metadata-token" not in names):
            actions.append(request["action"])
    return actions


def main():
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cams-sim", default=os.environ.get("CAMS_SIM_BIN", target / "release/cams-sim"), type=Path)
    parser.add_argument("--logs", default=target / "test-logs/sdk", type=Path)
    options = parser.parse_args()
    folder = options.logs.resolve() / "credentials"
    folder.mkdir(parents=True, exist_ok=True)
    pki, tally = certificates.make(folder / "pki", ["sts.aliyuncs.com"]), Tally()
    with ExitStack() as stack:

        def start(kind, *arguments):
            started = kind(*arguments)
            stack.callback(started.stop)
            return started

        usual = start(Sources, "simulator-credentials", options.cams_sim, options.logs, pki)
        strict = start(Sources, "simulator-credentials-strict", options.cams_sim, options.logs, pki, ["--metadata-tokens-required"])
        shared = start(start_application, options.logs, {})
        others = {name: start(start_application, options.logs, {"NODE_EXTRA_CA_CERTS": str(pki.ca)}, command) for name, command in OTHERS.items()}
        for number, case in enumerate(cases(folder, usual.metadata)):
            simulator = strict if case.strict_ecs else usual
            user = start(start_application, options.logs, case.env) if case.env or case.strict_ecs else shared
            application = next((others[name] for name in others if name in case.job), user)
            simulator.reset()
            simulator.faults(list(case.faults))
            job = {"hosts": simulator.hosts(), "ca": str(pki.ca), "cams": simulator.url.removeprefix("http://"), "name": f"flow-{number}"}
            result = application.run({**job, **case.job})
            if "session" in result:
                result = user.run({**job, "session": result["session"]})
            tally.add(f"credentials: {case.name}", check(case, result, simulator.requests(), simulator.arrivals()))
    print(f"sdk: {tally.passed} passed, {tally.failed} failed")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The SDKs: how an application with each is started, what its errors are called, and what was measured about it.

An application is a driver: a program that prints `ready` and then, for each job that it reads as one line of JSON, makes all calls of the job at once and
prints one line of JSON, a list with a result for each name of the job, in the same order. parties.py builds the jobs. A result is
{"ok": true, "code", "flow_name"}, for keys.py with the "flow_id" and, where the SDK shows headers, the "key_state", or of an error {"ok": false, "exception", "message", and where the error has them "code", "status_code", "retry_after"},
where `exception` is the error's type as an application catches it, and `retry_after` is in milliseconds.

Drivers in compiled languages are built by `scripts/test needs` and are found in drivers/LANGUAGE/.build. One program may serve several SDKs: the SDK's name
is its argument."""

from dataclasses import dataclass, field
import json
from pathlib import Path
import re

HERE = Path(__file__).resolve().parent
PYTHON = str(HERE / ".venv/bin/python")

# What went wrong, for an SDK that has several types of errors: refused by Flowgate or CAMS; refused with a time to retry; a status of 500 or more; no answer.
REFUSED, THROTTLED, FAILED, CUT_OFF = "refused", "throttled", "failed", "cut off"


def one_error(name):
    """The SDK has one type of error for everything."""
    return dict.fromkeys((REFUSED, THROTTLED, FAILED, CUT_OFF), name)


@dataclass(frozen=True)
class Sdk:
    """An SDK and its driver."""

    name: str  # in scenarios and rows
    package: str  # as its registry calls it
    version: str
    command: tuple
    errors: dict = field(hash=False)  # the type of error of each kind; {code} stands for the answer's Code
    time_out: float | None  # the default read time-out in seconds; None: it waits forever
    schemes: tuple = ("V3", "V1")
    authority: str = ""  # the environment variable from which it reads a private certificate authority
    authority_value: str = "{ca}"  # the value of that variable
    advice: str = "header"  # from where its error has the time to retry: the answer's "header", its "body", which CAMS's own refusals lack; "": nowhere
    says_status: bool = True  # its error has the HTTP status
    sends: int = 1  # how often it sends, by default, a call that is not answered
    ways: tuple = ("endpoint", "proxy", "tls", "mutual")  # the ways that it can reach Flowgate, as in scenarios.WAYS
    trusts: tuple = ("option", "environment")  # how a private authority can be given to it, see Scenario.trust
    by_hand: bool = False  # not the SDK itself: see drivers/by_hand.py
    thorough: bool = False  # scenarios.py lists its scenarios one by one, and it takes every row

    def environment(self, ca):
        """The variables that make it trust this authority, if it should be trusted by the environment."""
        return {self.authority: self.authority_value.format(ca=ca)} if ca else {}


def _pinned(pattern, file):
    """The version that a file of requirements pins."""
    return re.search(pattern, (HERE / file).read_text(encoding="utf-8"))[1]


def _npm(package):
    return json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"][package]


def _go(module):
    return _pinned(rf"{re.escape(module)} v(\S+)", "drivers/go/go.mod")


def pop_core(method):
    """The old Node SDK's core. Its error is named after the answer's Code, and it knows no proxy."""
    return Sdk(
        f"pop-core {method}",
        "@alicloud/pop-core",
        _npm("@alicloud/pop-core"),
        ("node", str(HERE / "drivers/pop_core.js"), method),
        one_error("{code}Error"),
        time_out=3,
        schemes=("V1",),
        authority="NODE_EXTRA_CA_CERTS",
        ways=("endpoint", "tls", "mutual"),
    )


def by_hand(name, package):
    """A request of an SDK's shape; its time-out is not measured."""
    return Sdk(
        f"{name} by hand",
        package,
        "-",
        (PYTHON, str(HERE / "drivers/by_hand.py"), name),
        one_error("Answer"),
        time_out=None,
        schemes=("V1",),
        ways=("endpoint",),
        by_hand=True,
    )


def _maven(artifact):
    return _pinned(rf"<artifactId>{re.escape(artifact)}</artifactId>\s*<version>(\S+)</version>", "drivers/java/pom.xml")


# The client compiler alone starts sooner, and a call takes no time.
JAVA_BUILD = HERE / "drivers/java/.build"
JAVA = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", f"{JAVA_BUILD}/classes:{JAVA_BUILD}/lib/*", "Driver")

# The JVM's trust store. The Java SDKs read no variable of their own.
JVM_TRUST = "-Djavax.net.ssl.trustStore={ca}.p12 -Djavax.net.ssl.trustStorePassword=changeit"

GO = str(HERE / "drivers/go/.build/drivers")


ALL = [
    Sdk(
        "python",
        "alibabacloud-cams20200606",
        _pinned(r"alibabacloud-cams20200606==(\S+)", "requirements.txt"),
        (PYTHON, str(HERE / "drivers/python_new.py")),
        {REFUSED: "ClientException", THROTTLED: "ThrottlingException", FAILED: "ServerException", CUT_OFF: "UnretryableException"},
        time_out=10,
        authority="SSL_CERT_FILE",
        thorough=True,
    ),
    Sdk(
        "python-old",
        "aliyun-python-sdk-cams",
        _pinned(r"aliyun-python-sdk-cams==(\S+)", "requirements.txt"),
        (PYTHON, str(HERE / "drivers/python_old.py")),
        {**one_error("ServerException"), CUT_OFF: "ClientException"},
        time_out=10,
        schemes=("V1",),
        authority="ALIBABA_CLOUD_CA_BUNDLE",
        advice="",
        thorough=True,
    ),
    Sdk(
        "node",
        "@alicloud/cams20200606",
        _npm("@alicloud/cams20200606"),
        ("node", str(HERE / "drivers/node.js")),
        one_error("Error"),
        time_out=3,
        authority="NODE_EXTRA_CA_CERTS",
        advice="body",
        thorough=True,
    ),
    pop_core("GET"),
    pop_core("POST"),
    Sdk(
        "go",
        "github.com/alibabacloud-go/darabonba-openapi/v2, as cams-20200606 calls it",
        _go("github.com/alibabacloud-go/darabonba-openapi/v2"),
        (GO, "go"),
        one_error("*tea.SDKError"),
        time_out=None,
        authority="SSL_CERT_FILE",
        advice="body",
    ),
    Sdk(
        "go-old",
        "github.com/aliyun/alibaba-cloud-sdk-go",
        _go("github.com/aliyun/alibaba-cloud-sdk-go"),
        (GO, "go-old"),
        one_error("*errors.ServerError"),
        time_out=10,
        schemes=("V1",),
        authority="SSL_CERT_FILE",
    ),
    # It has no option for an authority, and none for a client certificate.
    Sdk(
        "aliyun-cli",
        "github.com/aliyun/alibaba-cloud-sdk-go, as the aliyun CLI calls it",
        _go("github.com/aliyun/alibaba-cloud-sdk-go"),
        (GO, "aliyun-cli"),
        one_error("*errors.ServerError"),
        time_out=10,
        schemes=("V1",),
        authority="SSL_CERT_FILE",
        ways=("endpoint", "proxy", "tls"),
        trusts=("environment",),
    ),
    by_hand("php", "alibabacloud/client"),
    by_hand("ruby", "aliyunsdkcore"),
    by_hand("cpp", "aliyun-openapi-cpp-sdk"),
    by_hand("dotnet", "aliyun-net-sdk-core"),
    # Its certificate of an application is a Java key store in a string, which no binary format survives.
    Sdk(
        "java",
        "com.aliyun:tea-openapi, as com.aliyun:cams20200606 calls it",
        _maven("tea-openapi"),
        (*JAVA, "java"),
        {**one_error("TeaException"), CUT_OFF: "TeaUnretryableException"},
        time_out=10,
        authority="JAVA_TOOL_OPTIONS",
        authority_value=JVM_TRUST,
        advice="body",
        ways=("endpoint", "proxy", "tls"),
    ),
    Sdk(
        "java-async",
        "com.aliyun:aliyun-gateway-pop, as com.aliyun:alibabacloud-cams20200606 calls it",
        _maven("aliyun-gateway-pop"),
        (*JAVA, "java-async"),
        {**one_error("PopClientException"), FAILED: "PopServerException", CUT_OFF: "SSLHandshakeException"},
        time_out=None,
        schemes=("V1",),
        authority="JAVA_TOOL_OPTIONS",
        authority_value=JVM_TRUST,
        advice="body",
    ),
    Sdk(
        "java-old",
        "com.aliyun:aliyun-java-sdk-core",
        _maven("aliyun-java-sdk-core"),
        (*JAVA, "java-old"),
        {**one_error("ClientException"), FAILED: "ServerException"},
        time_out=10,
        schemes=("V1",),
        authority="JAVA_TOOL_OPTIONS",
        authority_value=JVM_TRUST,
        advice="",
        says_status=False,
    ),
]

SDKS = {sdk.name: sdk for sdk in ALL}

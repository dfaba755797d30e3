"""Checks everything under deploy/ with the tools that read it, and each configuration in it, including those that Helm renders,
with `flowgate check`. Prints one line per check; exit code 1 if one fails. With --update it writes what is made from other files
(the values in the chart's README, and the chart's copies of the alerts and the dashboard), and checks nothing."""

import argparse
import base64
import json
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator.v1 import PodMonitor, PrometheusRule, ServiceMonitor

import board
import readme
from cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "flowgate"
TOOLS = Path(sys.executable).parent
# The oldest version with everything that is used (sleep in preStop), and the newest that the checker supports.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
# Exposure as `systemd-analyze security` reports it, in tenths: 0 is the most restricted, 100 is unrestricted.
EXPOSURE = 20
# Grades of kube-score: 1 is critical, 5 a warning, more is accepted.
WARNING = 5

# Where the token of RRSA is, by the webhook of ACK and in the manifests; and what the webhook sets.
TOKENS = "/var/run/secrets/ack.alibabacloud.com/rrsa-tokens"
WEBHOOK = {
    "ALIBABA_CLOUD_ROLE_ARN": "acs:ram::123456789012:role/flowgate",
    "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": "acs:ram::123456789012:oidc-provider/ack-rrsa-c0123456789",
    "ALIBABA_CLOUD_OIDC_TOKEN_FILE": f"{TOKENS}/token",
    "ALIBABA_CLOUD_STS_ENDPOINT": "sts-vpc.ap-southeast-1.aliyuncs.com",
    "ALIBABA_CLOUD_STS_REGION": "ap-southeast-1",
    "ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED": "true",
}
RRSA = ("ROLE_ARN", "OIDC_PROVIDER_ARN", "OIDC_TOKEN_FILE", "ROLE_SESSION_NAME")
ROLE_NAME = "pod-identity.alibabacloud.com/role-name"

# Where systemd puts the secrets of the service.
CREDENTIALS = "/run/credentials/flowgate.service"

# What the chart shows to Prometheus and Grafana; a chart cannot read files outside of its folder.
COPIES = {
    DEPLOY / "prometheus" / "rules.yaml": CHART / "files" / "rules.yaml",
    DEPLOY / "grafana" / "flowgate.json": CHART / "files" / "flowgate.json",
}
OPERATOR = {"ServiceMonitor": ServiceMonitor, "PodMonitor": PodMonitor, "PrometheusRule": PrometheusRule}
# Objects of the chart, and those that a monitor needs in addition.
GATEWAY = {"ConfigMap", "Deployment", "NetworkPolicy", "Pod", "PodDisruptionBudget", "Secret", "Service"}

# Checks of kube-score that are not for this chart, each with the reason.
POLICY_EXCEPT = {
    "container-image-pull-policy": "the tag is a version, or a digest is given: neither changes",
    "deployment-has-host-podantiaffinity": "topologySpreadConstraints spread the pods",
    "container-ephemeral-storage-request-and-limit": "the root is read-only; a journal's volume is the operator's choice",
    "deployment-replicas": "without a store there must be only one pod",
    "deployment-strategy": "without a store two pods at once would send twice the rate",
}
# The same for one mode or one kind of object only.
POLICY_EXCEPT_IN = {
    ("Pod", "pod-networkpolicy"): "the pod of `helm test` sends one request and ends",
    ("openshift", "container-security-context-user-group-id"): "OpenShift assigns the ids",
    ("extras", "service-type"): "its values ask for NodePort",
}

SELECTORS = {
    "Service": lambda spec: spec["selector"],
    "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
    "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
}
VALUES = {file.name.removesuffix("-values.yaml"): yaml.safe_load(file.read_text()) for file in (CHART / "ci").iterdir()}
# Changes to the values of the gateway that must not render, each with the expected message.
REFUSED = [
    ({"replicas": 2}, "without config.quota.store each pod would spend the whole quota"),
    ({"replicas": 2, "config": {"quota": {"store": "memory"}}}, "without config.quota.store"),
    ({"mode": "daemon"}, "mode"),
    ({"image": {"repository": ""}}, "repository"),
    ({"config": {"accounts": []}}, "accounts"),
    ({"config": {"accounts": [{"id": "a", "access_key_secret": "the secret itself"}]}}, "access_key_secret"),
    ({"config": {"listen": {"admin": "127.0.0.1:1"}}}, "admin"),
    ({"podMonitor": {"enabled": True}}, "serviceMonitor.enabled and podMonitor.enabled: expected one of them"),
    ({"image": {"digest": "sha256:0123"}}, "digest"),
    ({"existingSecret": ""}, "config names the files acme, team-a, but existingSecret is empty"),
    ({"secretKeys": ["acme"]}, "config names the file team-a, but the Secret flowgate-secrets has only the keys acme"),
    ({"secretKeys": ["acme", "team-a"], "config": {"listen": {"tls": {"cert": "tls.crt"}}}}, "config names the file tls.crt"),
    ({"secretKeys": ["acme", "team-a"], "config": {"accounts": [{"id": "b", "credentials": {"file": "b.json"}}]}}, "b.json"),
    ({"terminationGracePeriodSeconds": 30}, "terminationGracePeriodSeconds is 30, but a drain takes up to 30 s"),
    ({"terminationGracePeriodSeconds": 60, "config": {"drain": {"delay": "500ms", "grace": "1m"}}}, "a drain takes up to 66 s"),
    ({"service": {"loadBalancerSourceRanges": "10.0.0.0/8"}}, "loadBalancerSourceRanges"),
    ({"replica": 2}, "replica"),
    ({"rrsa": {"enabled": True, "oidcProviderArn": "acs:ram::1:oidc-provider/p"}}, "roleArn"),
    ({"rrsa": {"enabled": True, "roleArn": "flowgate", "oidcProviderArn": "acs:ram::1:oidc-provider/p"}}, "roleArn"),
    ({"rrsa": {"expirationSeconds": 60}}, "expirationSeconds"),
    ({"serviceAccount": {"annotations": {ROLE_NAME: "flowgate"}}}, "serviceAccount.annotations needs serviceAccount.create"),
    (
        {
            "rrsa": {"enabled": True, "roleArn": "acs:ram::1:role/r", "oidcProviderArn": "acs:ram::1:oidc-provider/p"},
            "serviceAccount": {"create": True, "annotations": {ROLE_NAME: "flowgate"}},
        },
        "rrsa.enabled and the annotation pod-identity.alibabacloud.com/role-name: expected one of them",
    ),
    (
        {"config": {"accounts": [{"id": "a", "credentials": {"assume_role": {"from": {"access_key_secret": "the secret itself"}}}}]}},
        "access_key_secret",
    ),
]


def run(*command, env=None, cwd=None):
    """Runs a command, which must succeed. Returns its output."""
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)
    said = (done.stdout + done.stderr).strip()
    assert done.returncode == 0, f"exit code {done.returncode}: {said}"
    return said


def over(values, changes):
    """Merges maps recursively; any other value is replaced."""
    merged = dict(values)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = over(merged[key], value) if both else value
    return merged


def config(flowgate, toml, env=(), secrets=()):
    """The configuration is loaded in the place where it is used, with its secrets beside it, without errors or warnings."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "flowgate.toml")
        file.write_text(toml.replace(TOKENS, folder).replace(CREDENTIALS, folder))
        for name in ["token", *secrets, *re.findall(r'file = "([^"/]+)"', toml)]:
            Path(folder, name).write_text("a-secret\n")
        env = {name: value.replace(TOKENS, folder) for name, value in dict(env).items()}
        said = run(flowgate, "check", "--config", file, env=env).splitlines()
        others = [line for line in said if not line.startswith("account ")]
        assert others == ["the configuration is valid"], said


def variables(pods):
    """The variables of Flowgate's container, and what the webhook adds, if the pods are for it."""
    containers = [it for pod in pods for it in pod["spec"].get("initContainers", []) + pod["spec"]["containers"] if it["name"] == "flowgate"]
    return {variable["name"]: variable.get("value", "a-secret") for it in containers for variable in it.get("env", [])}


def objects(documents, flowgate):
    """Kubernetes accepts the objects, their references resolve, and their configurations are valid."""
    kinds = [(document["kind"], document) for document in documents]
    maps = {it["metadata"]["name"] for kind, it in kinds if kind == "ConfigMap" and "flowgate.toml" in it["data"]}
    tokens = {(it["metadata"]["name"], key) for kind, it in kinds if kind == "Secret" for key in it["data"]}
    pods = [document["spec"]["template"] for kind, document in kinds if kind == "Deployment"]
    accounts = {document["metadata"]["name"]: document["metadata"] for kind, document in kinds if kind == "ServiceAccount"}
    annotated = any(ROLE_NAME in account.get("annotations", {}) for account in accounts.values())
    env = variables(pods) | (WEBHOOK if annotated else {})
    for kind, document in kinds:
        if kind in OPERATOR:
            # Unknown keys would be dropped, so the output must equal the input.
            known = OPERATOR[kind].model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
            assert known == document, f"{kind}: {known}"
        else:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)
        if kind == "ConfigMap" and "flowgate.toml" in document["data"]:
            config(flowgate, document["data"]["flowgate.toml"], env)
        if kind in SELECTORS:
            wanted = SELECTORS[kind](document["spec"]).items()
            assert any(wanted <= pod["metadata"]["labels"].items() for pod in pods), f"{kind} selects no pod"
    ports(kinds, pods)
    volumes = [volume.get("projected", {}) for pod in pods for volume in pod["spec"]["volumes"]]
    sources = [source for volume in volumes for source in volume.get("sources", [])]
    assert all(pod["spec"].get("serviceAccountName") in accounts for pod in pods) or not accounts, accounts
    audiences = [source["serviceAccountToken"]["audience"] for source in sources if "serviceAccountToken" in source]
    assert set(audiences) <= {"sts.aliyuncs.com"}, audiences
    assert maps == {source["configMap"]["name"] for source in sources if "configMap" in source} or not pods, maps
    mounted = {(it["secret"]["name"], item["key"]) for it in sources for item in it.get("secret", {}).get("items", [])}
    assert tokens <= mounted or not pods, f"{tokens} are not mounted"
    return pods


def ports(kinds, pods):
    """Each port of a Service or a monitor exists, once."""
    containers = [it for pod in pods for it in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]]
    named = {port["name"] for it in containers for port in it.get("ports", [])}
    services = [document for kind, document in kinds if kind == "Service"]
    for service in services:
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named, service
    for kind, document in kinds:
        if kind == "ServiceMonitor":
            wanted = document["spec"]["selector"]["matchLabels"].items()
            chosen = [it for it in services if wanted <= it["metadata"]["labels"].items()]
            scraped = [port["name"] for it in chosen for port in it["spec"]["ports"] if port["name"] == "admin"]
            assert scraped == [endpoint["port"] for endpoint in document["spec"]["endpoints"]], scraped
        if kind == "PodMonitor":
            assert {endpoint["port"] for endpoint in document["spec"]["podMetricsEndpoints"]} <= named, document


def render(chart, values, cluster=None):
    """The objects that Helm renders, without notes and empty documents."""
    with helm.Chart.load(str(chart)) as loaded:
        if cluster:
            made = cluster.render(loaded, values, name="release", namespace="messaging")
        else:
            made = loaded.render(values, name="release", namespace="messaging")
    texts = [text for name, text in made.items() if not name.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def dockerfile(_):
    run(TOOLS / "hadolint", DEPLOY / "Dockerfile")
    pinned = re.search(r'channel = "(\d+\.\d+)', (ROOT / "rust-toolchain.toml").read_text())[1]
    assert f"ARG RUST_BASE=rust:{pinned}-" in (DEPLOY / "Dockerfile").read_text(), f"not built with Rust {pinned}"


def yaml_files(_):
    files = [file for file in DEPLOY.rglob("*.yaml") if "templates" not in file.parts]
    run(TOOLS / "yamllint", "--strict", "-c", Path(__file__).with_name("yamllint.yaml"), *files)


def compose(flowgate):
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    config(flowgate, (DEPLOY / "compose.toml").read_text(), env=services["flowgate"]["environment"])
    for service in services.values():
        for volume in service.get("volumes", []):
            place = volume.split(":")[0]
            assert not place.startswith(".") or (DEPLOY / place).exists(), f"nothing to mount at {place}"


def kubernetes(flowgate):
    for file in sorted((DEPLOY / "kubernetes").iterdir()):
        [pod] = objects(list(yaml.safe_load_all(file.read_text())), flowgate)
        assert pod["spec"]["enableServiceLinks"] is False
        assert pod["spec"]["automountServiceAccountToken"] is False


def helm_chart(flowgate):
    run(TOOLS / "check-jsonschema", "--check-metaschema", CHART / "values.schema.json")
    made = {}
    for mode, values in VALUES.items():
        messages = [it for it in helm.lint(str(CHART), values, strict=True)["messages"] if it["severity"] > 1]
        assert not messages, f"{mode}: {messages}"
        documents = render(CHART, values)
        objects(documents, flowgate)
        made[mode] = {document["kind"]: document for document in documents}
    gateway, replicas = made["gateway"]["Deployment"]["spec"], made["replicas"]["Deployment"]["spec"]
    assert (gateway["replicas"], gateway["strategy"]["type"]) == (1, "Recreate")
    assert (replicas["replicas"], replicas["strategy"]["type"]) == (3, "RollingUpdate")
    assert set(made["gateway"]) == GATEWAY | {"ServiceMonitor"}
    assert set(made["sidecar"]) == {"ConfigMap", "Secret"}
    check_rrsa(made)
    check_options(made)
    for change, replaces in (({"quota": {"on_store_failure": "refuse"}}, True), ({"queue": {"hold": "9s"}}, False)):
        [pod] = objects(render(CHART, over(VALUES["gateway"], {"config": change})), flowgate)
        assert (pod != gateway["template"]) == replaces, f"{change}: only what a restart must change replaces the pods"


def check_options(made):
    """What the values of each mode ask for."""
    pods = {mode: kinds["Deployment"]["spec"]["template"]["spec"] for mode, kinds in made.items() if "Deployment" in kinds}
    periods = {mode: pod["terminationGracePeriodSeconds"] for mode, pod in pods.items()}
    assert (periods["gateway"], periods["loadbalancer"], periods["extras"]) == (45, 5 + 10 + 60 + 15, 120), periods
    [node, zone] = pods["replicas"]["topologySpreadConstraints"]
    assert (node["topologyKey"], zone["topologyKey"]) == ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    assert node["labelSelector"]["matchLabels"] == made["replicas"]["Deployment"]["spec"]["selector"]["matchLabels"]
    ids = [line for line in json.dumps(made["openshift"]).split('"') if line in ("runAsUser", "runAsGroup", "fsGroup")]
    assert not ids, ids

    balanced = made["loadbalancer"]
    image = VALUES["loadbalancer"]["image"]
    assert pods["loadbalancer"]["containers"][0]["image"] == f"{image['repository']}@{image['digest']}"
    assert balanced["PodDisruptionBudget"]["spec"]["minAvailable"] == "50%"
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())
    assert balanced["PrometheusRule"]["spec"] == rules
    [dashboard] = [it for it in render(CHART, VALUES["loadbalancer"]) if it["metadata"]["name"] == "release-flowgate-dashboard"]
    assert dashboard["data"]["flowgate.json"] == (DEPLOY / "grafana" / "flowgate.json").read_text()
    services = [it for it in render(CHART, VALUES["loadbalancer"]) if it["kind"] == "Service"]
    offered = [(it["spec"]["type"], [port["name"] for port in it["spec"]["ports"]]) for it in services]
    assert offered == [("LoadBalancer", ["proxy"]), ("ClusterIP", ["admin"])], offered

    extras = render(CHART, VALUES["extras"])
    names = {it["metadata"]["name"] for it in extras if it["kind"] != "Pod"}
    assert names == {"cams-proxy", "cams-proxy-admin", "roots", "tracing"}, names
    own = [it for it in extras if it["metadata"]["name"] not in ("roots", "tracing")]
    assert all(it["metadata"]["labels"]["example.com/team"] == "messaging" for it in own)
    assert all(it["metadata"]["annotations"]["example.com/owner"] == "messaging" for it in own)
    [tracing] = [it for it in extras if it["metadata"]["name"] == "tracing"]
    assert tracing["data"] == {"OTEL_SERVICE_NAME": "cams-proxy"}
    [volume] = [it["projected"] for it in pods["extras"]["volumes"] if it["name"] == "flowgate"]
    mounted = {"name": "operators", "items": [{"key": "password", "path": "flowgate-admin-token"}]}
    assert mounted in [it.get("secret") for it in volume["sources"]], volume


def check_rrsa(made):
    """The variables, the token and the service account of RRSA, mounted by the chart; and nothing of it where the webhook mounts it."""
    account, pod = made["rrsa"]["ServiceAccount"]["metadata"], made["rrsa"]["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert (account["name"], pod["serviceAccountName"]) == ("flowgate-sts", "flowgate-sts")
    assert {variable["name"] for variable in container["env"]} == {f"ALIBABA_CLOUD_{name}" for name in RRSA}, container["env"]
    assert TOKENS in {mount["mountPath"] for mount in container["volumeMounts"]}
    webhook = made["webhook"]["Deployment"]["spec"]["template"]["spec"]
    assert made["webhook"]["ServiceAccount"]["metadata"]["annotations"] == {ROLE_NAME: "flowgate"}
    assert "env" not in webhook["containers"][0] and len(webhook["volumes"]) == 1
    for spec in (pod, webhook, made["gateway"]["Deployment"]["spec"]["template"]["spec"]):
        assert spec["automountServiceAccountToken"] is False
    assert "ServiceAccount" not in made["gateway"]


def helm_lookup(_):
    """In a cluster, upgrades keep the admin token, and the keys of existingSecret are known."""
    name, kept = "release-flowgate-admin-token", base64.b64encode(b"kept").decode()
    present = {"flowgate-secrets": {"acme": "", "team-a": "", "unused": ""}}
    [first, second] = [secret(render(CHART, VALUES["gateway"])) for _ in range(2)]
    assert first != second and len(first) == 40, "each installation has a token of its own"
    with Cluster(present) as cluster:
        assert secret(render(CHART, VALUES["gateway"], cluster)) not in (first, second, "kept")
    with Cluster(present | {name: {"token": kept}}) as cluster:
        assert secret(render(CHART, VALUES["gateway"], cluster)) == "kept"
    with Cluster({"flowgate-secrets": {"acme": ""}}) as cluster:
        try:
            render(CHART, VALUES["gateway"], cluster)
        except helm.HelmError as error:
            assert "config names the file team-a, but the Secret flowgate-secrets has only the keys acme" in str(error), error
        else:
            raise AssertionError("renders without the key team-a")


def secret(documents):
    """The admin token."""
    [made] = [document for document in documents if document["kind"] == "Secret"]
    return base64.b64decode(made["data"]["token"]).decode()


def helm_test(flowgate):
    """The pod of `helm test` succeeds while Flowgate is ready, and fails when it is not. The admin port opens with the token, at
    every name that the Services have."""
    for mode in ("gateway", "loadbalancer"):
        documents = render(CHART, over(VALUES[mode], {"config": {"quota": {"store": "memory"}}, "replicas": 1}))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        services = [it for it in documents if it["kind"] == "Service"]
        services = [it["metadata"]["name"] for it in services if 9900 in [each["port"] for each in it["spec"]["ports"]]]
        [*arguments, address] = test_arguments(documents)
        [service] = [it for it in services if address == f"{it}.messaging.svc:9900"]
        command = [flowgate, *arguments, f"127.0.0.1:{port}"]
        # All that the test's pod has.
        env = {"FLOWGATE_CONFIG": "/etc/flowgate/flowgate.toml"}

        def ask():
            return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

        with tempfile.TemporaryDirectory() as folder, run_as_rendered(flowgate, documents, folder, port) as process:
            try:
                while not listens(port) and process.poll() is None:
                    time.sleep(0.01)
                done = ask()
                while "returned 503" in done.stderr and process.poll() is None:
                    done = ask()
                assert done.returncode == 0, done.stderr
                for name in services:
                    host = f"{name}.messaging.svc:{port}"
                    answers = [status(port, host, token) for token in ("", "wrong", secret(documents))]
                    assert answers == [401, 401, 200], answers
            finally:
                process.terminate()
            log = process.stderr.read()
            assert process.wait() == 0, log
            assert ask().returncode == 1


def test_arguments(documents):
    """Those of the pod of `helm test`."""
    [container] = [it["spec"]["containers"][0] for it in documents if it["kind"] == "Pod"]
    return container["args"]


def run_as_rendered(flowgate, documents, folder, port):
    """Starts Flowgate with the rendered configuration and token, on another port."""
    [toml] = [it["data"]["flowgate.toml"] for it in documents if "flowgate.toml" in it.get("data", {})]
    for name in re.findall(r'file = "([^"/]+)"', toml):
        Path(folder, name).write_text("a-secret\n")
    Path(folder, "flowgate-admin-token").write_text(secret(documents))
    file = Path(folder, "flowgate.toml")
    file.write_text(toml.replace("0.0.0.0:8080", "127.0.0.1:0").replace(":9900", f":{port}"))
    return subprocess.Popen([flowgate, "--config", file], stderr=subprocess.PIPE, text=True)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def status(port, host, token):
    """The status of the lanes' page."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/lanes", headers={"Host": host})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def helm_policy(_):
    """kube-score has nothing to say about any mode, except what is named above; and each pod keeps Kubernetes' restricted profile."""
    flags = ["--output-format=json", "--kubernetes-version=v1.30", "--ignore-container-cpu-limit"]
    exceptions = set(POLICY_EXCEPT) | set(POLICY_EXCEPT_IN)
    unused, complaints = set(exceptions), []
    for mode, values in VALUES.items():
        documents = [document for document in render(CHART, values) if document["kind"] not in OPERATOR]
        score = subprocess.run(
            [TOOLS / "kube-score", "score", *flags, "--enable-optional-test=container-seccomp-profile", "-"],
            input=yaml.safe_dump_all(documents), capture_output=True, text=True, check=False,
        )
        for scored in json.loads(score.stdout) or []:
            for check in scored["checks"] or []:
                if check["skipped"] or check["grade"] > WARNING:
                    continue
                rule = check["check"]["id"]
                excepted = {rule, (mode, rule), (scored["type_meta"]["kind"], rule)} & exceptions
                unused -= excepted
                if not excepted:
                    complaints.append((mode, scored["object_name"], rule, check["comments"]))
        for document in documents:
            if document["kind"] in ("Deployment", "Pod"):
                restricted(document["spec"].get("template", document)["spec"])
    assert not complaints, complaints
    assert not unused, f"exceptions that nothing needs: {unused}"


def restricted(pod):
    """Kubernetes' pod security standard "restricted"."""
    for container in pod.get("initContainers", []) + pod["containers"]:
        context = container["securityContext"]
        assert context["runAsNonRoot"] is True and context["allowPrivilegeEscalation"] is False, context
        assert context["capabilities"] == {"drop": ["ALL"]} and context["seccompProfile"] == {"type": "RuntimeDefault"}, context
        assert context.get("runAsUser") != 0 and not context.get("privileged"), context
    allowed = {"configMap", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret", "csi"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod.get("volumes", [])), pod["volumes"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), pod


def helm_documents(_):
    """Each value is described, the README has all of them, and the copies are current."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    faults = readme.undescribed(schema) + readme.unequal(schema, values)
    assert not faults, faults
    text = (CHART / "README.md").read_text()
    assert text == readme.current(text, schema, values), "stale: tests/deploy/check.py --update"
    for source, copy in COPIES.items():
        assert source.read_bytes() == copy.read_bytes(), f"{copy} is stale: tests/deploy/check.py --update"
    with tempfile.TemporaryDirectory() as folder, tarfile.open(helm.package(str(CHART), destination=folder)) as package:
        packed = {name.removeprefix("flowgate/") for name in package.getnames()}
    needed = {"README.md", "values.schema.json", "files/rules.yaml", "files/flowgate.json"}
    assert needed <= packed and not [name for name in packed if name.startswith("ci/")], packed


def dashboard(_):
    """Every panel of Grafana's board is explained, and every variable and link leads somewhere."""
    faults = board.faults(ROOT)
    assert not faults, faults


def helm_refusals(_):
    for changes, expected in REFUSED:
        try:
            render(CHART, over(VALUES["gateway"], changes))
        except helm.HelmError as error:
            assert expected in str(error), f"{changes}: {error}"
        else:
            raise AssertionError(f"{changes} renders")


def helm_sidecar(flowgate):
    with tempfile.TemporaryDirectory() as folder:
        for chart in ("application", "flowgate"):
            shutil.copytree(DEPLOY / "helm" / chart, Path(folder, chart))
        helm.dependency_build(str(Path(folder, "application")))
        [pod] = objects(render(Path(folder, "application"), {}), flowgate)
        with_role = {"rrsa": VALUES["rrsa"]["rrsa"], "config": VALUES["rrsa"]["config"]}
        [role_pod] = objects(render(Path(folder, "application"), {"flowgate": with_role}), flowgate)
    [sidecar] = pod["spec"]["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    restricted({"containers": [sidecar]})
    # Only Flowgate gets the token.
    [sidecar], [application] = role_pod["spec"]["initContainers"], role_pod["spec"]["containers"]
    assert TOKENS in {mount["mountPath"] for mount in sidecar["volumeMounts"]}
    assert "volumeMounts" not in application


def systemd(flowgate):
    units = {file.name: file.read_text() for file in (DEPLOY / "systemd").iterdir() if file.suffix in (".service", ".socket")}
    toml = (DEPLOY / "systemd" / "flowgate.toml").read_text()
    account, ecs_role = (Path("flowgate.service.d", f"{name}.conf") for name in ("account", "ecs-role"))
    for drop_in in (None, account, ecs_role):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in units.items():
                Path(folder, name).write_text(text.replace("/usr/bin/flowgate", flowgate))
            if drop_in:
                Path(folder, drop_in.parent).mkdir()
                shutil.copy(DEPLOY / "systemd" / drop_in, Path(folder, drop_in))
            said = run("systemd-analyze", "verify", "--man=no", *units, cwd=folder)
            assert not said, said
            security = ("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", "./flowgate.service")
            run("systemd-analyze", *security, cwd=folder)
    ecs = (DEPLOY / "systemd" / "ecs-role.toml").read_text()
    for drop_in, text in ((account, toml), (ecs_role, ecs)):
        unit = (DEPLOY / "systemd" / drop_in).read_text()
        config(flowgate, text, secrets=re.findall(r"^LoadCredential=([^:\n]+):", unit, re.M))
    restart = int(re.search(r"^RestartSec=(\d+)s$", units["flowgate.service"], re.M)[1])
    assert 4 * restart > 10, "systemd gives up, and closes the sockets, at the fifth start in ten seconds"
    for socket, key in (("flowgate.socket", "proxy"), ("flowgate-admin.socket", "admin")):
        address = re.search(r"^ListenStream=(.*)$", units[socket], re.M)[1]
        assert f'{key} = "{address}"' in toml and f'{key} = "{address}"' in ecs and f"FileDescriptorName={key}\n" in units[socket], socket


def manual(flowgate):
    """The chart renders with the values in the manual."""
    page = (ROOT / "docs" / "credentials.md").read_text() + (CHART / "README.md").read_text()
    blocks = re.findall(r"^```yaml\n# values\.yaml\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) == 4, len(blocks)
    for block in blocks:
        objects(render(CHART, yaml.safe_load(block)), flowgate)


def workflow(_):
    """The release calls each script, except those that another one calls. A job with rights compiles nothing, and each action is pinned."""
    file = ROOT / ".github" / "workflows" / "release.yml"
    run(TOOLS / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", file)
    run(TOOLS / "yamllint", "--strict", "-c", Path(__file__).with_name("yamllint.yaml"), file)
    called = set(re.findall(r"scripts/release/([\w-]+)", file.read_text()))
    assert called == {script.name for script in (ROOT / "scripts" / "release").iterdir()} - {"compile", "notices", "pgo", "sbom"}, called
    for name, job in yaml.safe_load(file.read_text())["jobs"].items():
        commands = "\n".join(step.get("run", "") for step in job["steps"])
        if re.search(r'"write"|secrets\.', json.dumps(job)):
            assert not re.search(r"cargo|rustup|scripts/test|release/(build|package|pgo|crate(?! --publish))", commands), f"{name} compiles"
            assert "release/image " not in commands or "pgo-" in json.dumps(job), f"{name} makes a profile"
        for action in [step["uses"] for step in job["steps"] if "uses" in step]:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", action), action


CHECKS = [
    dockerfile, workflow, yaml_files, compose, kubernetes, helm_chart, helm_refusals, helm_lookup, helm_test, helm_policy, helm_documents,
    helm_sidecar, manual, dashboard, systemd,
]


def update():
    """Writes what is made from other files."""
    for source, copy in COPIES.items():
        shutil.copyfile(source, copy)
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    text = (CHART / "README.md").read_text()
    (CHART / "README.md").write_text(readme.current(text, schema, values))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flowgate", help="the program that checks the configurations")
    parser.add_argument("--update", action="store_true", help="write what is made from other files, and check nothing")
    given = parser.parse_args()
    if given.update:
        return update()
    if not given.flowgate:
        parser.error("--flowgate is required")
    flowgate = str(Path(given.flowgate).resolve(strict=True))
    failed = 0
    for check in CHECKS:
        try:
            check(flowgate)
            print(f"ok      {check.__name__}")
        except Exception as error:  # After a failure the remaining checks still run.
            failed += 1
            print(f"FAILED  {check.__name__}: {type(error).__name__}: {getattr(error, 'message', error)}")
    print(f"deploy: {len(CHECKS) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

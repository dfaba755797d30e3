"""Checks everything under deploy/ with the tools that read it, and each configuration in it, including those that Helm renders,
with `flowgate check`. Prints one line per check; exit code 1 if one fails."""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import yaml
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "flowgate"
TOOLS = Path(sys.executable).parent
# The oldest version with everything that is used (sleep in preStop), and the newest that the checker supports.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
# Exposure as `systemd-analyze security` reports it, in tenths: 0 is the most restricted, 100 is unrestricted.
EXPOSURE = 20

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
    ({"service": {"type": "LoadBalancer"}}, "serviceMonitor.enabled needs service.type ClusterIP"),
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
        file.write_text(toml.replace(TOKENS, folder))
        for name in ["token", *secrets, *re.findall(r'file = "([^"/]+)"', toml)]:
            Path(folder, name).write_text("a-secret\n")
        env = {name: value.replace("%d", folder).replace(TOKENS, folder) for name, value in dict(env).items()}
        said = run(flowgate, "check", "--config", file, env=env).splitlines()
        others = [line for line in said if not line.startswith("account ")]
        assert others == ["the configuration is valid"], said


def variables(pods):
    """The variables of Flowgate's container, and what the webhook adds, if the pods are for it."""
    containers = [it for pod in pods for it in pod["spec"].get("initContainers", []) + pod["spec"]["containers"] if it["name"] == "flowgate"]
    return {variable["name"]: variable["value"] for it in containers for variable in it.get("env", []) if "value" in variable}


def objects(documents, flowgate):
    """Kubernetes accepts the objects, their references resolve, and their configurations are valid."""
    kinds = [(document["kind"], document) for document in documents]
    maps = {document["metadata"]["name"] for kind, document in kinds if kind == "ConfigMap"}
    pods = [document["spec"]["template"] for kind, document in kinds if kind == "Deployment"]
    accounts = {document["metadata"]["name"]: document["metadata"] for kind, document in kinds if kind == "ServiceAccount"}
    annotated = any(ROLE_NAME in account.get("annotations", {}) for account in accounts.values())
    env = variables(pods) | (WEBHOOK if annotated else {})
    for kind, document in kinds:
        if kind == "ServiceMonitor":
            # Unknown keys would be dropped, so the output must equal the input.
            known = ServiceMonitor.model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
            assert known == document, f"ServiceMonitor: {known}"
        else:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)
        if kind == "ConfigMap":
            config(flowgate, document["data"]["flowgate.toml"], env)
        if kind in SELECTORS:
            wanted = SELECTORS[kind](document["spec"]).items()
            assert any(wanted <= pod["metadata"]["labels"].items() for pod in pods), f"{kind} selects no pod"
    volumes = [volume.get("projected", {}) for pod in pods for volume in pod["spec"]["volumes"]]
    sources = [source for volume in volumes for source in volume.get("sources", [])]
    assert all(pod["spec"].get("serviceAccountName") in accounts for pod in pods) or not accounts, accounts
    tokens = [source["serviceAccountToken"] for source in sources if "serviceAccountToken" in source]
    assert all(token["audience"] == "sts.aliyuncs.com" for token in tokens), tokens
    assert maps == {source["configMap"]["name"] for source in sources if "configMap" in source} or not pods, maps
    return pods


def render(chart, values):
    """The objects that Helm renders, without notes and empty documents."""
    with helm.Chart.load(str(chart)) as loaded:
        made = loaded.render(values, name="release", namespace="messaging")
    texts = [text for name, text in made.items() if not name.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def dockerfile(_):
    run(TOOLS / "hadolint", DEPLOY / "Dockerfile")
    pinned = re.search(r'channel = "(\d+\.\d+)', (ROOT / "rust-toolchain.toml").read_text())[1]
    assert f"FROM rust:{pinned}-" in (DEPLOY / "Dockerfile").read_text(), f"not built with Rust {pinned}"


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
    assert set(made["sidecar"]) == {"ConfigMap"}
    check_rrsa(made)
    assert set(made["gateway"]) == {"ConfigMap", "Deployment", "Pod", "ServiceMonitor", *SELECTORS}
    for change, replaces in (({"quota": {"on_store_failure": "refuse"}}, True), ({"queue": {"hold": "9s"}}, False)):
        [pod] = objects(render(CHART, over(VALUES["gateway"], {"config": change})), flowgate)
        assert (pod != gateway["template"]) == replaces, f"{change}: only what a restart must change replaces the pods"


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
    # Only Flowgate gets the token.
    [sidecar], [application] = role_pod["spec"]["initContainers"], role_pod["spec"]["containers"]
    assert TOKENS in {mount["mountPath"] for mount in sidecar["volumeMounts"]}
    assert "volumeMounts" not in application


def systemd(flowgate):
    units = {file.name: file.read_text() for file in (DEPLOY / "systemd").iterdir() if file.suffix in (".service", ".socket")}
    toml = (DEPLOY / "systemd" / "flowgate.toml").read_text()
    drop_in = Path("flowgate.service.d", "ecs-role.conf")
    for with_drop_in in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in units.items():
                Path(folder, name).write_text(text.replace("/usr/bin/flowgate", flowgate))
            if with_drop_in:
                Path(folder, drop_in.parent).mkdir()
                shutil.copy(DEPLOY / "systemd" / drop_in, Path(folder, drop_in))
            said = run("systemd-analyze", "verify", "--man=no", *units, cwd=folder)
            assert not said, said
            security = ("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", "./flowgate.service")
            run("systemd-analyze", *security, cwd=folder)
    ecs = (DEPLOY / "systemd" / "ecs-role.toml").read_text()
    for unit, text in ((units["flowgate.service"], toml), ((DEPLOY / "systemd" / drop_in).read_text(), ecs)):
        env = dict(re.findall(r"^Environment=(\w+)=(.*)$", unit, re.M))
        config(flowgate, text, env, re.findall(r"^LoadCredential=([^:\n]+):", unit, re.M))
    for socket, key in (("flowgate.socket", "proxy"), ("flowgate-admin.socket", "admin")):
        address = re.search(r"^ListenStream=(.*)$", units[socket], re.M)[1]
        assert f'{key} = "{address}"' in toml and f'{key} = "{address}"' in ecs and f"FileDescriptorName={key}\n" in units[socket], socket


def manual(flowgate):
    """The chart renders with the values in the manual."""
    page = (ROOT / "docs" / "credentials.md").read_text()
    blocks = re.findall(r"^```yaml\n# values\.yaml\n(.*?)^```", page, re.M | re.S)
    assert len(blocks) == 2, len(blocks)
    for block in blocks:
        objects(render(CHART, yaml.safe_load(block)), flowgate)


CHECKS = [dockerfile, yaml_files, compose, kubernetes, helm_chart, helm_refusals, helm_sidecar, manual, systemd]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flowgate", required=True, help="the program that checks the configurations")
    flowgate = str(Path(parser.parse_args().flowgate).resolve(strict=True))
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

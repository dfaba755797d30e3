"""Builds the images of deploy/Dockerfile and runs Flowgate's as operators do: without rights, with a read-only root, as a second user, under load while it
is stopped. Prints one line per check."""

import json
import os
from pathlib import Path
import re
import shutil
import tempfile
import time

import containers
from containers import ROOT, bases, daemon, docker, dockerfile_bases, inspect_one, run, until
from load import Load, flows, get

NAME = "flowgate-test-image"  # of the network, and the first part of the containers' names
IMAGE, SIMULATOR = "flowgate:test", "cams-sim:test"
# The profile of the programs, which are not measured here.
PROFILE = os.environ.get("PROFILE", "quick")
# What scripts/release/pgo makes.
PROFDATA = ROOT / "target" / "pgo" / "flowgate.profdata"
LOCKED_DOWN = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--memory", "128m", "--pids-limit", "64")
VARIABLES = {
    "FLOWGATE_CONFIG": "",
    "FLOWGATE_LISTEN__PROXY": "0.0.0.0:8080",
    "FLOWGATE_LISTEN__ADMIN": "0.0.0.0:9900",
    "FLOWGATE_LISTEN__ADMIN_TOKEN__ENV": "ADMIN_TOKEN",
    "ADMIN_TOKEN": "a-token",
    "FLOWGATE_UPSTREAM__URL": "http://cams:9000",
    "FLOWGATE_UPSTREAM__PLAINTEXT": "true",
    "ALIBABA_CLOUD_ACCESS_KEY_ID": "test-key",
    "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "test-secret",
}


# What a build is given by a clone, as far as it matters.
CONTEXT = ("*.toml", "Cargo.lock", "LICENSE", "build.rs", ".dockerignore", "src", "cams-sim", "deploy/Dockerfile", "scripts/release")


def commit():
    return run("git", "rev-parse", "HEAD", cwd=ROOT)


def build(target, *options, context=ROOT):
    """Builds a target of the Dockerfile. The programs of the build are the same for all steps, so that they are compiled once."""
    arguments = ("--build-arg", f"PROFILE={PROFILE}", "--build-arg", f"FLOWGATE_COMMIT={commit()}")
    # The network of this machine: the crates' registry may be reachable in no other.
    return docker("buildx", "build", "--network", "host", "-f", "deploy/Dockerfile", "--target", target, *arguments, *options, context, cwd=context)


def commands(name):
    """The commands of a block of docs/install.md, which begins with its name as a comment."""
    [block] = re.findall(rf"^```sh\n(# {name}\b.*?)^```", (ROOT / "docs/install.md").read_text(), re.M | re.S)
    return f"set -e\n{block}"


def address(container):
    [network] = inspect_one("container", container)["NetworkSettings"]["Networks"].values()
    return network["IPAddress"]


def start(name, image, *options, command=()):
    """Starts a container, and returns its address."""
    docker("run", "--detach", "--name", f"{NAME}-{name}", "--network", NAME, *options, image, *command)
    return address(f"{NAME}-{name}")


def start_flowgate(name, *options):
    variables = [f"--env={variable}={value}" for variable, value in VARIABLES.items()]
    found = start(name, IMAGE, *LOCKED_DOWN, *variables, *options)
    until(f"{name} is healthy", lambda: inspect_one("container", f"{NAME}-{name}")["State"]["Health"]["Status"] == "healthy")
    return found


def clean():
    for name in docker("ps", "--all", "--quiet", "--filter", f"name=^{NAME}-").split():
        docker("rm", "--force", "--volumes", name)
    docker("network", "rm", NAME, check=False)


def profile_is_made():
    """For the optimiser. Only once: another profile would build everything again."""
    if not PROFDATA.exists():
        run(ROOT / "scripts/release/pgo", "--network", "host")
    functions = int(re.search(r"Total functions: (\d+)", run(profdata(), "show", PROFDATA))[1])
    assert functions > 1000, f"{functions} functions"
    return f"{functions} functions"


def profdata():
    return Path(run("rustc", "--print", "target-libdir", cwd=ROOT), "../bin/llvm-profdata")


def builds():
    """The images are built, and have their labels."""
    started = time.monotonic()
    build("flowgate", "--build-arg", "FLOWGATE_VERSION=0.1.0", "-t", IMAGE)
    middle = time.monotonic()
    build("cams-sim", "-t", SIMULATOR)
    image = inspect_one("image", IMAGE)
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in image["Config"]["Labels"].items()}
    assert labels["revision"] == commit() and labels["version"] == "0.1.0" and labels["licenses"] == "Apache-2.0", labels
    assert labels["base.name"] == dockerfile_bases()["distroless"], labels
    assert image["Config"]["User"] == "65532:65532", image["Config"]
    said = docker("run", "--rm", IMAGE, "--version")
    assert commit()[:12] in said, said
    return f"{image['Size'] / 1e6:.1f} MB with its base, {middle - started:.0f} s; the simulator {time.monotonic() - middle:.0f} s"


def keeps_dependencies():
    """A changed source leaves the layers with the dependencies as they were."""
    with tempfile.TemporaryDirectory() as folder:
        for entry in run("git", "ls-files", "--", *CONTEXT, cwd=ROOT).splitlines():
            Path(folder, entry).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / entry, Path(folder, entry))
        Path(folder, "target", "pgo").mkdir(parents=True)
        shutil.copy(PROFDATA, Path(folder, "target", "pgo"))
        with open(Path(folder, "src", "lib.rs"), "a", encoding="utf-8") as source:
            source.write("// changed\n")
        said = build("dependencies", context=folder)
    ran = re.findall(r"^#\d+ \[(?:auditable|dependencies) [\d/]+\] (?:RUN|COPY) .*\n(?:#.*\n)*?#\d+ (CACHED|DONE)", said, re.M)
    assert ran and set(ran) == {"CACHED"}, said
    return f"{len(ran)} layers"


def runs_without_rights():
    """Read-only root, no capability, the image's user: healthy, serves, and writes nothing."""
    at = start_flowgate("replica")
    state = inspect_one("container", f"{NAME}-replica")["State"]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{state['Pid']}/status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split()[0] == "65532" and int(status["CapEff"], 16) == 0 and status["NoNewPrivs"] == "1", status
    docker("exec", f"{NAME}-replica", "flowgate", "health", "--ready")
    assert not docker("diff", f"{NAME}-replica"), docker("diff", f"{NAME}-replica")
    assert get(f"http://{at}:9900/lanes")[0] == 401 and get(f"http://{at}:9900/lanes", "a-token")[0] == 200
    return f"{int(status['VmRSS'].split()[0]) / 1024:.1f} MB of memory"


def runs_as_a_second_user():
    """As OpenShift does: a number that is in no file, in the group root."""
    start_flowgate("second", "--user", "1000680000:0")
    docker("rm", "--force", f"{NAME}-second")
    return ""


def passes_helm_test():
    """The command of the chart's test, in a container that finds Flowgate by the name of the Service."""
    program = "import check, json; print(json.dumps(check.test_arguments(check.render(check.CHART, check.VALUES['gateway']))))"
    python = ROOT / "tests/deploy/.venv/bin/python"
    arguments = json.loads(run(python, "-c", program, cwd=ROOT / "tests/deploy").splitlines()[-1])
    service = arguments[-1].rsplit(":", 1)[0]
    command = ("run", "--rm", *LOCKED_DOWN, "--network", NAME, IMAGE, *arguments)
    assert docker(*command, check=False).returncode == 1, "passed without Flowgate"
    start_flowgate("service", "--network-alias", service, f"--env=FLOWGATE_LISTEN__NAMES={service}")
    docker(*command)
    docker("rm", "--force", f"{NAME}-service")
    return " ".join(arguments)


def follows_the_manual():
    """The commands of docs/install.md build the image and run it."""
    env = {"ALIBABA_CLOUD_ACCESS_KEY_ID": "test-key", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "test-secret"}
    docker("rm", "--force", "flowgate", check=False)
    # As in `build`.
    script = commands("on a machine with Docker").replace("scripts/release/image flowgate", "scripts/release/image flowgate --network host")
    try:
        run("env", *(f"{name}={value}" for name, value in env.items()), "bash", "-c", script, cwd=ROOT)
        assert inspect_one("container", "flowgate")["State"]["ExitCode"] == 0
    finally:
        docker("rm", "--force", "flowgate", check=False)
    return ""


def loses_no_call():
    """docker stop while most orders still wait: each is executed once, or refused and not executed."""
    at, simulator = address(f"{NAME}-replica"), address(f"{NAME}-cams")
    endpoint = (f"{at}:8080", f"{at}:9900")
    with Load([endpoint], applications=40, prefix="stopped", orders=40, repeat=False) as load:
        until("some orders have ended", lambda: len(load.ledger.answered) >= 5)
        waiting = 40 - len(load.ledger.answered)
        started = time.monotonic()
        docker("stop", "--time", "40", f"{NAME}-replica")
        took = time.monotonic() - started
        ledger = load.wait()
    code = inspect_one("container", f"{NAME}-replica")["State"]["ExitCode"]
    assert code == 0, f"exit code {code}"
    assert waiting > 5 and len(ledger.answered) > 10, f"{ledger}; {waiting} waited when it was stopped"
    ledger.agrees(flows(f"{simulator}:9000"))
    return f"{waiting} waited; {ledger}; stopped after {took:.1f} s"


CHECKS = [profile_is_made, builds, keeps_dependencies, runs_without_rights, runs_as_a_second_user, passes_helm_test, follows_the_manual, loses_no_call]


def main():
    containers.ENV.update(PROFILE=PROFILE)
    with daemon():
        bases(**dockerfile_bases())
        clean()
        try:
            for check in CHECKS:
                if check is runs_without_rights:
                    docker("network", "create", NAME)
                    start("cams", SIMULATOR, "--network-alias", "cams", command=("--listen", "0.0.0.0:9000"))
                print(f"ok      {check.__name__}: {check()}", flush=True)
        finally:
            clean()
    print(f"image: {len(CHECKS)} passed, 0 failed")


if __name__ == "__main__":
    main()

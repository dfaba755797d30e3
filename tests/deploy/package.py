"""Installs the Debian package and the tarball in containers: under systemd as process 1 started, served, reloaded, upgraded while it is called, removed,
installed again and purged; on an older C library run. Prints one line per check."""

import hashlib
import json
import re
import shutil
import tarfile
import time

import containers
from containers import ROOT, TARGET, bases, daemon, docker, dockerfile_bases, run, until
from image import PROFILE, commands

NAME = "flowgate-test-package"
SYSTEMD, BULLSEYE = "flowgate-test/systemd", "flowgate-test/debian11"
ARTIFACTS = ROOT / "target" / "artifacts"
RELEASE = ROOT / "scripts" / "release"
# What systemd needs to make its sandboxes. Not --privileged: a machine of CI may lack one of the capabilities that this would ask for.
PRIVILEGED = ("--cgroupns=private", "--cap-add=ALL", "--cap-drop=SYS_RESOURCE", "--security-opt=seccomp=unconfined", "--security-opt=systempaths=unconfined")
# As on a machine, mounts are shared with the services, or they would not see their credentials.
INIT = ("sh", "-c", "mount --make-rshared / && exec /sbin/init")
UNITS = ("flowgate.service", "flowgate.socket", "flowgate-admin.socket")
# The oldest C library that the packages promise.
GLIBC = (2, 31)


def only(pattern):
    [found] = ARTIFACTS.glob(pattern)
    return found


def packages_are_made():
    """By the scripts of a release; the same commit makes the same bytes, under any umask and beside the files of another version."""
    run(RELEASE / "build", "--network", "host")
    run(RELEASE / "package")
    first = (ARTIFACTS / "SHA256SUMS").read_text()
    (ARTIFACTS / "flowgate-0.0.9-x86_64-unknown-linux-gnu.tar.gz").touch()
    run(RELEASE / "package", umask=0o077)
    assert (ARTIFACTS / "SHA256SUMS").read_text() == first, "made again, the packages differ"
    for line in first.splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((ARTIFACTS / name).read_bytes()).hexdigest() == digest, name
    sizes = {"program": ROOT / "target/program/flowgate", "deb": only("*.deb"), "tarball": only("*linux-gnu.tar.gz")}
    return ", ".join(f"{name} {path.stat().st_size / 1e6:.2f} MB" for name, path in sizes.items())


def program_is_portable():
    """It needs no newer C library than promised, and no other library than that of the C compiler."""
    program = ROOT / "target/program/flowgate"
    symbols = run("objdump", "-T", program)
    newest = max(tuple(map(int, version.split("."))) for version in re.findall(r"GLIBC_([\d.]+)", symbols))
    assert newest <= GLIBC, f"needs glibc {newest}"
    needed = set(re.findall(r"NEEDED\s+(\S+)", run("objdump", "-p", program)))
    assert needed <= {"libc.so.6", "libgcc_s.so.1", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux-x86-64.so.2"}, needed
    return f"glibc {'.'.join(map(str, newest))}; {', '.join(sorted(needed))}"


def lists_its_crates():
    """The bill of materials names each crate of the notices, in the version of Cargo.lock. The notices have the texts of the licences."""
    bill = json.loads(only("*.cdx.json").read_text())
    listed = {f"{crate['name']} v{crate['version']}" for crate in bill["components"]}
    notices = (ROOT / "target/program/THIRD-PARTY-NOTICES").read_text()
    head, *texts = notices.split("-" * 70 + "\n")
    noticed = set(re.findall(r"^(\S+ v\S+): ", head, re.M))
    assert noticed and noticed <= listed, f"not in the bill: {sorted(noticed - listed)}"
    assert len(listed) < len(noticed) * 1.5, f"{len(listed)} in the bill, {len(noticed)} noticed"
    # A text follows the names of its crates. Packages of a few crates have none.
    with_text = {crate for text in texts for crate in text.lstrip().split("\n")[0].split(", ")} & noticed
    assert len(with_text) > len(noticed) * 0.9, f"without a text: {sorted(noticed - with_text)}"
    for text in ("Apache License", "Permission is hereby granted, free of charge"):
        assert text in "".join(texts), text
    bare = run(RELEASE / "sbom", shutil.which("true"), check=False)
    assert bare.returncode == 1 and "was not built by cargo auditable" in bare.stdout, bare.stdout
    return f"{len(listed)} crates, {len(noticed)} notices, {len(texts)} texts"


def lintian_is_silent():
    said = run("lintian", "--fail-on", "error,warning", "--allow-root", only("*.deb"))
    return said.replace("\n", "; ")


def tarball_runs_on_the_oldest():
    """Unpacked on Debian 11: checks its example, and verifies by its checksum."""
    script = f"""cp /artifacts/* /tmp; cd /tmp\n{commands('tarball')}
        test -s flowgate-*-linux-gnu/THIRD-PARTY-NOTICES
        ALIBABA_CLOUD_ACCESS_KEY_ID=a ALIBABA_CLOUD_ACCESS_KEY_SECRET=b flowgate check"""
    docker("run", "--rm", "--volume", f"{ARTIFACTS}:/artifacts:ro", BULLSEYE, "sh", "-c", script)
    return ""


# Under systemd.


def inside(command, check=True):
    return docker("exec", NAME, "bash", "-c", command, check=check)


def show(*properties, unit="flowgate.service"):
    said = inside(f"systemctl show {unit} --property={','.join(properties)}")
    return dict(line.split("=", 1) for line in said.splitlines())


def in_force():
    """The configuration of the running service."""
    return json.loads(inside("curl -sf http://127.0.0.1:9900/config"))


def accounts():
    """The accounts that the running service signs for."""
    return [account["id"] for account in in_force()["accounts"] if account["kind"] == "managed"]


def states():
    return inside(f"systemctl is-active {' '.join(UNITS)}", check=False).stdout.split()


def is_installed():
    """Installed on a bare Debian 12 it runs at once, under systemd's sandbox, as a user without rights."""
    docker("run", "--detach", *PRIVILEGED, "--tmpfs", "/run", "--tmpfs", "/tmp", "--name", NAME, "--volume", f"{ARTIFACTS}:/artifacts:ro", SYSTEMD, *INIT)
    until("systemd has started", lambda: inside("systemctl is-system-running", check=False).stdout.strip() in ("running", "degraded"))
    inside(f"cd /artifacts\n{commands('install')}")
    assert show("ActiveState")["ActiveState"] == "active"
    for unit in UNITS:
        assert inside(f"systemctl is-enabled {unit}") == "enabled", unit
    pid = show("MainPID")["MainPID"]
    user = int(inside(f"stat --format %u /proc/{pid}"))
    assert 61184 <= user <= 65519, f"{user} is no user of DynamicUser="
    for file in ("/usr/share/man/man1/flowgate.1.gz", "/usr/share/bash-completion/completions/flowgate", "/usr/share/doc/flowgate/copyright"):
        assert file in inside("dpkg --listfiles flowgate").splitlines(), file
    assert inside("dpkg-query --show --showformat '${Conffiles}' flowgate").count("/etc/") == 2
    assert inside("stat --format %a /etc/default/flowgate") == "600"
    return f"runs as user {user}"


def signs_with_the_key():
    """The key of /etc/default/flowgate, and then an account of the configuration with its secret as a credential."""
    inside(commands("key"))
    assert accounts() == ["default"], accounts()
    inside("truncate --size 0 /etc/default/flowgate")
    inside(commands("account"))
    assert accounts() == ["acme"], accounts()
    return ""


def is_reloaded():
    """A changed key is in force. The check knows the secret: from systemd while the service runs, and else from its file."""
    inside("printf '\\n[queue]\\nmax_waiting = 4321\\n' >>/etc/flowgate/flowgate.toml")
    said = inside(commands("reload"))
    assert "account acme: the access key LTAI***" in said, said
    until("the change is in force", lambda: in_force()["queue"]["max_waiting"] == 4321)
    inside("systemctl stop flowgate.socket flowgate-admin.socket flowgate.service")
    inside(commands("stopped"))
    inside("systemctl start flowgate.socket flowgate-admin.socket flowgate.service")
    return ""


def is_upgraded():
    """A newer version is installed while the page is asked without pause: no connection is refused, and the operator's files stay."""
    before = show("MainPID")["MainPID"]
    inside("touch /run/asking; (while [ -e /run/asking ]; do curl -sf -m 30 -o /dev/null http://127.0.0.1:9900/livez; echo $?; done) >/run/asked 2>&1 &")
    inside("""set -e; cd /tmp; dpkg-deb --raw-extract /artifacts/*.deb newer; sed -i 's/^Version: .*/Version: 99.0-1/' newer/DEBIAN/control
        dpkg-deb --root-owner-group -Znone --build newer newer.deb; dpkg --install newer.deb""")
    until("the newer one is active", lambda: show("ActiveState", "MainPID")["ActiveState"] == "active" and show("MainPID")["MainPID"] not in (before, "0"))
    inside("flowgate health --ready --config /etc/flowgate/flowgate.toml; rm /run/asking")
    asked = until("the asking has ended", lambda: inside("cat /run/asked").split())
    assert set(asked) == {"0"}, f"{asked.count('0')} of {len(asked)} were answered: {sorted(set(asked))}"
    assert inside("dpkg-query --show --showformat '${Version}' flowgate") == "99.0-1"
    assert "acme" in inside("cat /etc/flowgate/flowgate.toml")
    return f"{len(asked)} requests answered"


def is_installed_again():
    """The service runs after a removal, and after a version that has failed."""
    install = "dpkg --install /artifacts/*.deb"
    inside(f"dpkg --remove flowgate && {install}")
    assert states() == ["active"] * 3, states()
    inside("cd /etc/flowgate; cp flowgate.toml /tmp/kept.toml; echo faulty >>flowgate.toml; ! systemctl restart flowgate")
    assert states()[0] == "failed", states()
    inside(f"cp /tmp/kept.toml /etc/flowgate/flowgate.toml; {install}")
    assert states() == ["active"] * 3, states()
    return ""


def is_purged():
    """Removed, the configuration stays; purged, only the operator's secrets do."""
    remove, purge = re.findall("^dpkg .*", commands("remove"), re.M)
    inside(f"{remove} && test -e /etc/flowgate/flowgate.toml && ! test -e /usr/bin/flowgate")
    assert states() == ["inactive"] * 3, states()
    inside(purge)
    left = inside("find / -xdev -path /proc -prune -o \\( -name '*flowgate*' -print \\) 2>/dev/null | grep -v -e '^/artifacts' -e '^/tmp' -e '^/run' || true").splitlines()
    ours = {"/etc/flowgate", "/etc/systemd/system/flowgate.service.d"}
    assert set(left) <= ours, left
    failed = inside("systemctl list-units --failed --no-legend --plain 'flowgate*'")
    assert not failed, failed
    return ""


def tarball_runs_under_systemd():
    """Installed as the head of its unit says."""
    unit = (ROOT / "deploy/systemd/flowgate.service").read_text()
    head = re.findall("^#   (.*)", unit.split("[Unit]")[0], re.M)
    script = "\n".join(head).replace("THE-SECRET", "/tmp/secret")
    inside(f"set -e; echo the-secret >/tmp/secret; cd /tmp; tar -xzf /artifacts/*-linux-gnu.tar.gz; cd flowgate-*-linux-gnu/systemd\n{script}")
    inside("flowgate health --ready --config /etc/flowgate/flowgate.toml")
    assert accounts() == ["acme"], accounts()
    return f"{len(head)} commands"


# The crate and the rest of a release.


def crate_is_ready():
    """The packed sources compile by themselves; `cargo publish` accepts them."""
    run(RELEASE / "crate")
    packed = tarfile.open(next((TARGET / "package").glob("flowgate-*.crate")))
    names = packed.getnames()
    assert not [name for name in names if "/tests" in name], names
    metadata = json.loads(run("cargo", "metadata", "--no-deps", "--format-version", "1", cwd=ROOT))
    [flowgate] = [package for package in metadata["packages"] if package["name"] == "flowgate"]
    triple = only("*linux-gnu.tar.gz").name.removeprefix(f"flowgate-{flowgate['version']}-").removesuffix(".tar.gz")
    values = {"repo": flowgate["repository"], "version": flowgate["version"], "name": "flowgate", "target": triple, "bin": "flowgate", "binary-ext": ""}
    binstall = flowgate["metadata"]["binstall"]
    url, program = (re.sub(r"\{ (\S+) \}", lambda match: values[match[1]], binstall[key]) for key in ("pkg-url", "bin-dir"))
    assert url.rsplit("/", 1)[1] == only("*linux-gnu.tar.gz").name, url
    assert program in tarfile.open(only("*linux-gnu.tar.gz")).getnames(), program
    return f"{len(names)} files"


def release_has_notes_and_a_chart():
    notes = run(RELEASE / "notes")
    assert notes.startswith("- ") and "## " not in notes, notes
    run(RELEASE / "chart")
    version = run(RELEASE / "version")
    chart = tarfile.open(only("flowgate-*.tgz")).extractfile("flowgate/Chart.yaml").read().decode()
    assert re.search(rf"^appVersion: \"?{version}\"?$", chart, re.M) and re.search(rf"^version: {version}$", chart, re.M), chart
    assert run(RELEASE / "version", "v99.0.0", check=False).returncode == 1
    tagged = run(RELEASE / "version", f"v{version}", check=False)
    unreleased = f"## {version} (not released yet)" in (ROOT / "CHANGELOG.md").read_text()
    assert tagged.returncode == (1 if unreleased else 0), tagged.stdout
    return f"{len(notes.splitlines())} lines of notes"


CHECKS = [
    packages_are_made,
    program_is_portable,
    lists_its_crates,
    lintian_is_silent,
    tarball_runs_on_the_oldest,
    is_installed,
    signs_with_the_key,
    is_reloaded,
    is_upgraded,
    is_installed_again,
    is_purged,
    tarball_runs_under_systemd,
    crate_is_ready,
    release_has_notes_and_a_chart,
]


def main():
    containers.ENV.update(PROFILE=PROFILE, PATH=f"{TARGET}/tools/bin:{containers.ENV['PATH']}")
    with daemon():
        bases(**dockerfile_bases(), systemd=SYSTEMD, debian11=BULLSEYE)
        docker("rm", "--force", "--volumes", NAME, check=False)
        try:
            for check in CHECKS:
                started = time.monotonic()
                print(f"ok      {check.__name__}: {check()} ({time.monotonic() - started:.0f} s)", flush=True)
        except Exception:
            print(inside("journalctl --no-pager --lines 40", check=False).stdout)
            raise
        finally:
            docker("rm", "--force", "--volumes", NAME, check=False)
    print(f"package: {len(CHECKS)} passed, 0 failed")


if __name__ == "__main__":
    main()

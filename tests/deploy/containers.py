"""A Docker daemon of the tests' own, with the base images that deploy/ names. No image registry is needed: the bases are made of Debian's packages and
the installed Rust, and imported under the names of the real ones. The daemon has its own data, socket and process id, so it neither sees nor changes
the images of another one."""

from contextlib import contextmanager
import hashlib
import inspect
import json
import os
from pathlib import Path
import re
import shlex
import signal
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
HOME = TARGET / "tools" / "docker"  # what `scripts/test needs` has unpacked
RUN = HOME / "run"
ENV = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "COMPOSE_", "FLOWGATE_", "ALIBABA_"))},
    "PATH": f"{HOME}/usr/bin:{HOME}/usr/sbin:/usr/local/sbin:/usr/sbin:/sbin:{os.environ['PATH']}",
    "DOCKER_HOST": f"unix://{RUN}/docker.sock",
    "DOCKER_CONFIG": f"{HOME}/config",
    "DOCKER_BUILDKIT": "1",
    "BUILDKIT_PROGRESS": "plain",
}


def run(*command, check=True, quiet=True, **options):
    """Runs a command with the daemon's environment. Returns its output, or the completed process if it may fail."""
    command = [str(part) for part in command]
    pipe = subprocess.PIPE if quiet else None
    done = subprocess.run(command, stdout=pipe, stderr=subprocess.STDOUT if quiet else None, text=True, env=ENV, check=False, **options)
    if not check:
        return done
    assert done.returncode == 0, f"{shlex.join(command)}: exit code {done.returncode}\n{(done.stdout or '')[-4000:]}"
    return (done.stdout or "").strip()


def docker(*arguments, **options):
    return run("docker", *arguments, **options)


def until(what, probe, seconds=300):
    """Asks until the answer is true, and returns it. An exception of the last attempt is raised."""
    end = time.monotonic() + seconds
    while True:
        try:
            found, error = probe(), None
        except Exception as failed:  # The answer is not there yet.
            found, error = None, failed
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not in {seconds} s: {what}") from error
        time.sleep(0.1)


@contextmanager
def daemon():
    """Starts dockerd, and ends it by its process id, also if this program is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    RUN.mkdir(parents=True, exist_ok=True)
    config = HOME / "config"
    config.mkdir(exist_ok=True)
    plugins = config / "cli-plugins"
    if not plugins.is_symlink():
        plugins.symlink_to(HOME / "usr/libexec/docker/cli-plugins")
    pid = RUN / "dockerd.pid"
    assert docker("info", check=False).returncode != 0, f"a daemon is running already: process {pid.read_text() if pid.exists() else 'unknown'}"
    pid.unlink(missing_ok=True)
    command = ["dockerd", "--data-root", HOME / "data", "--exec-root", RUN / "exec", "--pidfile", pid, "--host", ENV["DOCKER_HOST"]]
    with open(RUN / "dockerd.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=ENV, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        until(f"dockerd answers, see {RUN}/dockerd.log", lambda: process.poll() is not None or docker("info", check=False).returncode == 0)
        assert process.poll() is None, f"dockerd ended, see {RUN}/dockerd.log"
        print(f"docker: {docker('version', '--format', 'engine {{.Server.Version}}')}, compose {docker('compose', 'version', '--short')}")
        print(f"docker: buildx {docker('buildx', 'version').split()[1]}", flush=True)
        yield
    finally:
        process.terminate()
        process.wait(300)


# The base images, each made once, and again when its recipe changes.

CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


def debian(suite, variant, packages, *hooks):
    """A root file system of Debian as a tar file."""
    tar = HOME / "base.tar"
    tar.unlink(missing_ok=True)
    # The variant extract runs no program of the packages, and none of the later hooks.
    hooks = [f"--{'extract' if variant == 'extract' else 'customize'}-hook={hook}" for hook in hooks]
    trim = [f"--dpkgopt=path-exclude={path}" for path in ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")]
    run("mmdebstrap", "--quiet", "--mode=root", f"--variant={variant}", f"--include={','.join(packages)}", *trim, *hooks, suite, tar, "http://deb.debian.org/debian")
    return tar


def users(*names):
    """A hook that writes the users, name:id, into a file system without programs."""
    passwd = "".join(f"{name}:x:{number}:{number}:{name}:/:/sbin/nologin\\n" for name, number in (it.split(":") for it in names))
    group = "".join(f"{name}:x:{number}:\\n" for name, number in (it.split(":") for it in names))
    return f'printf "root:x:0:0:root:/root:/sbin/nologin\\n{passwd}" >"$1/etc/passwd"; printf "root:x:0:\\n{group}" >"$1/etc/group"'


def rust_base():
    """Debian 11's C compiler and C library, and the installed Rust in the version of rust-toolchain.toml."""
    sysroot = run("rustc", "--print", "sysroot", cwd=ROOT)
    host = re.search(r"host: (\S+)", run("rustc", "-vV", cwd=ROOT))[1]
    rust = (
        f'mkdir -p "$1/usr/local/lib/rustlib" && cp -a {sysroot}/bin/cargo {sysroot}/bin/rustc "$1/usr/local/bin/"'
        f' && cp -a {sysroot}/lib/*.so* "$1/usr/local/lib/" && cp -a {sysroot}/lib/rustlib/{host} "$1/usr/local/lib/rustlib/"'
    )
    tar = debian("bullseye", "essential", ["gcc", "libc6-dev", "ca-certificates"], f'cp {CERTIFICATES} "$1{CERTIFICATES}"', rust)
    return tar, ["ENV PATH=/usr/local/cargo/bin:/usr/local/bin:/usr/bin:/bin", "ENV CARGO_HOME=/usr/local/cargo"]


def distroless_base():
    """As Google's: no shell, the C library and that of gcc, and a user without rights."""
    packages = ["base-files", "libc6", "libgcc-s1", "libstdc++6", "netbase", "tzdata"]
    return debian("bookworm", "extract", packages, users("nobody:65534", "nonroot:65532"), 'mkdir -p "$1/home/nonroot"'), ["USER 65532", "WORKDIR /home/nonroot"]


def redis_base():
    return debian("bookworm", "extract", ["redis-server", "redis-tools"], users("redis:999"), 'mkdir -p "$1/data"'), ["USER 999", "WORKDIR /data"]


def prometheus_base():
    program = run("which", "prometheus")
    hook = f'install -D {program} "$1/bin/prometheus" && install -d -o 65534 -g 65534 "$1/prometheus"'
    tar = debian("bookworm", "extract", ["base-files", "libc6"], users("nobody:65534"), hook)
    return tar, ["USER 65534", "WORKDIR /prometheus", 'ENTRYPOINT ["/bin/prometheus"]', "VOLUME /prometheus"]


def systemd_base():
    """Debian 12 with systemd as process 1, and what an administrator has."""
    # Packages that are installed later have their documents.
    hook = 'rm "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"'
    return debian("bookworm", "essential", ["systemd", "systemd-sysv", "dbus", "curl"], hook), ['CMD ["/sbin/init"]']


def debian11_base():
    """The oldest system that the packages promise to run on."""
    return debian("bullseye", "essential", ["libgcc-s1"]), []


def bases(**makers):
    """Makes the missing base images. A name is what the files under deploy/ say."""
    for kind, name in makers.items():
        maker = globals()[f"{kind}_base"]
        recipe = hashlib.sha256((inspect.getsource(maker) + inspect.getsource(debian) + run("rustc", "-vV", cwd=ROOT)).encode()).hexdigest()
        made = docker("image", "inspect", "--format", "{{.Comment}}", name, check=False)
        if made.returncode == 0 and made.stdout.strip() == recipe:
            continue
        started = time.monotonic()
        tar, changes = maker()
        docker("import", "--message", recipe, *(part for change in changes for part in ("--change", change)), tar, name)
        tar.unlink()
        print(f"docker: made {name} in {time.monotonic() - started:.0f} s", flush=True)


def dockerfile_bases():
    """The names of the Dockerfile's bases."""
    text = (DEPLOY / "Dockerfile").read_text()
    return {kind: re.search(rf"^ARG {kind.upper()}_BASE=(\S+)$", text, re.M)[1] for kind in ("rust", "distroless")}


def inspect_one(kind, name):
    return json.loads(docker(kind, "inspect", name))[0]


if __name__ == "__main__":
    sys.exit("a module of image.py, compose.py and package.py")

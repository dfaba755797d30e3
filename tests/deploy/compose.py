"""Runs deploy/compose.yaml: two replicas, Redis, the simulated endpoint and Prometheus. Grafana's image is made of no package, so it stays out; check.py
looks at its part. Prints one line per check."""

import json
import time

import containers
from containers import DEPLOY, ROOT, bases, daemon, docker, dockerfile_bases, inspect_one, until
from image import PROFILE, commit, profile_is_made
from load import Load, flows, get

PROJECT = "flowgate-test-compose"
SERVICES = ("cams", "redis", "flowgate", "prometheus")
TOKEN = "a-token-of-the-test"
REPLICAS = 2


def compose(*arguments):
    files = ("-f", DEPLOY / "compose.yaml", "-f", ROOT / "tests/deploy/compose.build.yaml")
    return docker("compose", "--project-name", PROJECT, *files, *arguments)


def named(service):
    """The running containers of a service, oldest first."""
    return compose("ps", "--quiet", service).split()


def address(container):
    [network] = inspect_one("container", container)["NetworkSettings"]["Networks"].values()
    return network["IPAddress"]


def replicas():
    return [(f"{address(it)}:8080", f"{address(it)}:9900") for it in named("flowgate")]


def prometheus(path):
    return json.loads(get(f"http://127.0.0.1:9090/api/v1/{path}")[1])["data"]


def builds():
    profile_is_made()
    compose("build", "cams", "flowgate")
    return ""


def starts():
    compose("up", "--detach", "--wait", "--no-build", *SERVICES)
    return ", ".join(f"{service}: {len(named(service))}" for service in SERVICES)


def shows_the_page():
    """On the host, by the ports of the file: the page, and what it shows only with the token."""
    for port in (9901, 9902):
        status, page = get(f"http://127.0.0.1:{port}/")
        assert status == 200 and "<html" in page, f"{status}: {page[:200]}"
        assert get(f"http://127.0.0.1:{port}/lanes")[0] == 401
        assert get(f"http://127.0.0.1:{port}/lanes", TOKEN)[0] == 200
    return ""


def serves_sdks():
    """Orders by Alibaba's SDK at both published ports; their rate is one quota."""
    endpoints = [("127.0.0.1:8081", "127.0.0.1:9901"), ("127.0.0.1:8082", "127.0.0.1:9902")]
    with Load(endpoints, applications=20, prefix="published", orders=40) as load:
        ledger = load.wait()
    ledger.agrees(made("published"))
    assert not ledger.repeats, str(ledger)
    report = json.loads(get(f"http://{address(named('cams')[0])}:9000/__report")[1])
    assert report["refused"] == 0 and report["worst_window"] <= 5, report
    return str(ledger)


def made(prefix):
    return [name for name in flows(f"{address(named('cams')[0])}:9000") if name.startswith(prefix)]


def is_scraped():
    """Prometheus scrapes each replica, and has all rules."""
    # Twice in the file's interval of 15 s.
    until("both replicas are up", lambda: len(prometheus("query?query=flowgate_build_info")["result"]) == REPLICAS)
    targets = prometheus("targets")["activeTargets"]
    assert [it["health"] for it in targets] == ["up"] * REPLICAS, targets
    groups = prometheus("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    written = (DEPLOY / "prometheus/rules.yaml").read_text().count("- alert:") + (DEPLOY / "prometheus/rules.yaml").read_text().count("- record:")
    assert len(rules) == written and all(rule["health"] in ("ok", "unknown") for rule in rules), f"{len(rules)} of {written}: {rules}"
    until("the rules were evaluated", lambda: all(rule["health"] == "ok" for group in prometheus("rules")["groups"] for rule in group["rules"]))
    return f"{len(targets)} targets, {len(rules)} rules"


def are_replaced():
    """Each replica is replaced as the file says, under load without pause: every order is executed once."""
    old = named("flowgate")
    started = time.monotonic()
    with Load(replicas(), applications=6, prefix="replaced") as load:
        until("orders are answered", lambda: len(load.ledger.answered) > 10)
        for container in old:
            docker("stop", container)
            code = inspect_one("container", container)["State"]["ExitCode"]
            assert code == 0, f"exit code {code}"
            docker("rm", container)
            compose("up", "--detach", "--no-deps", "--no-build", "--no-recreate", "--wait", "flowgate")
            load.use(replicas())
            count = len(load.ledger.answered)
            until("the new replica is one of two", lambda: all("\nflowgate_replicas 2" in get(f"http://{admin}/metrics")[1] for _, admin in replicas()))
            until("more orders are answered", lambda seen=count: len(load.ledger.answered) > seen + 10)
        ledger = load.finish()
    new = named("flowgate")
    assert len(new) == REPLICAS and not set(new) & set(old), f"{old} became {new}"
    ledger.agrees(made("replaced"))
    return f"{ledger}; {time.monotonic() - started:.0f} s"


def end_cleanly():
    compose("down", "--volumes", "--timeout", "40")
    assert not docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}")
    return ""


CHECKS = [builds, starts, shows_the_page, serves_sdks, is_scraped, are_replaced, end_cleanly]


def main():
    containers.ENV.update(PROFILE=PROFILE, COMMIT=commit(), ADMIN_TOKEN=TOKEN)
    with daemon():
        bases(**dockerfile_bases(), redis="redis:7-bookworm", prometheus="prom/prometheus:v3.5.0")
        compose("down", "--volumes")
        try:
            for check in CHECKS:
                print(f"ok      {check.__name__}: {check()}", flush=True)
        except Exception:
            print(compose("logs", "--no-color", "--tail", "15"))
            raise
        finally:
            compose("down", "--volumes")
    print(f"compose: {len(CHECKS)} passed, 0 failed")


if __name__ == "__main__":
    main()

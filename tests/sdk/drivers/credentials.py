"""The official libraries alibabacloud-credentials and alibabacloud-sts20150401 as an application uses them. Reads one job per line as JSON, gets a session as
the job says, uses it, and prints one line: what was returned or raised. credentials.py in the folder above writes the jobs.

The libraries build the addresses of STS and of the metadata service themselves. Here their names lead to the ports of the simulator, and no other name
leads anywhere; certificates are verified with the authority of the test."""

import asyncio
import json
import socket
import sys

from alibabacloud_cams20200606 import models as cams_models
from alibabacloud_cams20200606.client import Client as Cams
from alibabacloud_credentials import provider as providers
from alibabacloud_sts20150401 import models as sts_models
from alibabacloud_sts20150401.client import Client as Sts
from alibabacloud_tea_openapi.models import Config
import certifi
import requests.adapters

STS = "sts.aliyuncs.com"

_getaddrinfo = socket.getaddrinfo


def lead(hosts):
    """Replaces the look-up of names, also of literal addresses. Each host leads to one port of this machine."""

    def getaddrinfo(host, port, *rest, **named):
        host = host.decode() if isinstance(host, bytes) else host
        if host not in hosts and host != "127.0.0.1":
            raise socket.gaierror(f"{host} leads nowhere in this test")
        return _getaddrinfo("127.0.0.1", hosts.get(host, port), *rest, **named)

    socket.getaddrinfo = getaddrinfo


def trust(ca):
    """Both HTTP clients below the libraries verify with this authority."""
    certifi.where = lambda: ca
    requests.adapters.DEFAULT_CA_BUNDLE_PATH = ca


def provider(job):
    """The provider of the job, with the provider of its source inside."""
    options = dict(job.get("options", {}))
    if "source" in job:
        options["credentials_provider"] = provider(job["source"])
    return getattr(providers, job["provider"])(**options)


def client(kind, session, job, endpoint, protocol):
    """A client of an SDK with a session, or without any key."""
    key = {}
    if session is not None:
        key = dict(zip(("access_key_id", "access_key_secret", "security_token"), session))
    return kind(Config(**key, endpoint=endpoint, protocol=protocol, ca=job["ca"]))


def fetch(job):
    """A session by the job's way: that of another application, a provider, or an action of the STS SDK."""
    if "session" in job:
        return job["session"], ""
    if "provider" in job:
        found = provider(job)
        credentials = asyncio.run(found.get_credentials_async()) if job.get("async") else found.get_credentials()
        session = (credentials.get_access_key_id(), credentials.get_access_key_secret(), credentials.get_security_token())
        return session, credentials.get_provider_name()
    sdk = client(Sts, job.get("key"), job, STS, "HTTPS")
    request = getattr(sts_models, job["request"])(**job["options"])
    body = getattr(sdk, job["method"])(request).body
    return (body.credentials.access_key_id, body.credentials.access_key_secret, body.credentials.security_token), body.assumed_role_user.arn


def use(session, job):
    """Asks STS whose the session is, and calls CAMS with it."""
    identity = client(Sts, session, job, STS, "HTTPS").get_caller_identity().body
    flow = cams_models.CreateFlowRequest(flow_name=job["name"], categories=["OTHER"])
    created = client(Cams, session, job, job["cams"], "HTTP").create_flow(flow).body
    return {"arn": identity.arn, "account": identity.account_id, "created": created.code}


def run(job):
    try:
        session, by = fetch(job)
        return {"ok": True, "id": session[0], "by": by, **use(session, job)}
    except Exception as error:
        return {"ok": False, "exception": type(error).__name__, "code": getattr(error, "code", None), "message": str(error)}


def main():
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        lead(job["hosts"])
        trust(job["ca"])
        print(json.dumps(run(job)), flush=True)


if __name__ == "__main__":
    main()

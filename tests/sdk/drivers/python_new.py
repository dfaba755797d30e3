"""The new Python SDK (alibabacloud-cams20200606) as an application uses it. Reads one job per line as JSON, makes all calls of the job at once, and
prints one line: what the SDK returned or raised for each. parties.py builds the jobs."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import sys
import time

from alibabacloud_cams20200606 import models
from alibabacloud_cams20200606.client import Client
from alibabacloud_tea_openapi.models import Config, GlobalParameters
from darabonba.policy.retry import RetryOptions
from darabonba.runtime import ExtendsParameters, RuntimeOptions

REQUESTS = {
    "CreateFlow": ("create_flow", lambda name: models.CreateFlowRequest(flow_name=name, categories=["SIGN_UP", "OTHER"])),
    "ListFlow": ("list_flow", lambda name: models.ListFlowRequest(flow_name=name, page=models.ListFlowRequestPage(index=1, size=10))),
    "GetPreValidatePhoneId": (
        "get_pre_validate_phone_id",
        lambda name: models.GetPreValidatePhoneIdRequest(phone_number="1", verify_code=name),
    ),
}


def client(job):
    config = Config(
        access_key_id=job["key"],
        access_key_secret=job["secret"],
        security_token=job.get("token"),
        endpoint=job["endpoint"],
        protocol=job["protocol"],
        ca=job["ca"],
        # The certificate and its key are in one file: the SDK reads no separate key.
        cert=job["certificate"] and job["certificate"]["both"],
        http_proxy=job.get("proxy"),
        connect_timeout=job["timeout_ms"],
        read_timeout=job["timeout_ms"],
    )
    if job.get("hold"):
        config.global_parameters = GlobalParameters(headers={"x-flowgate-hold": job["hold"]})
    if job["scheme"] == "V1":
        config.signature_algorithm = "v2"
    if job.get("sdk_retries"):
        condition = {"maxAttempts": job["sdk_retries"], "exception": job.get("retries_on", ["ThrottlingException"]), "errorCode": []}
        config.retry_options = RetryOptions({"retryable": True, "retryCondition": [condition]})
    return Client(config)


def returned(response):
    data = getattr(response.body, "data", None)
    return {
        "ok": True,
        "code": response.body.code,
        "flow_name": getattr(data, "flow_name", None),
        "flow_id": getattr(data, "flow_id", None),
        "key_state": response.headers.get("x-flowgate-idempotency"),
    }


def raised(error):
    fields = {field: getattr(error, field, None) for field in ("code", "message", "status_code", "retry_after")}
    return {"ok": False, "exception": type(error).__name__, **fields, "message": str(fields["message"] or error)}


def keyed(job, name):
    """The call's idempotency key, as the job wants it carried."""
    key = hashlib.sha256(name.encode()).hexdigest()
    carriers = {"header": {"headers": {"Idempotency-Key": key}}, "token": {"queries": {"ClientToken": key}}}
    return RuntimeOptions(extends_parameters=ExtendsParameters(**carriers[job["keyed"]]))


def call(sdk, job, name):
    method, request = REQUESTS[job["action"]]
    try:
        if job.get("keyed"):
            return returned(getattr(sdk, method + "_with_options")(request(name), keyed(job, name)))
        return returned(getattr(sdk, method)(request(name)))
    except Exception as error:
        return raised(error)


def obey(sdk, job, name):
    """Makes a call, and repeats it once at the time that a refusal gives."""
    first = call(sdk, job, name)
    if first.get("code") != "System.LimitControl" or not first["retry_after"]:
        return first
    time.sleep(first["retry_after"] / 1000)
    return {**first, "second": call(sdk, job, name)}


async def call_async(sdk, job, name):
    method, request = REQUESTS[job["action"]]
    try:
        if job.get("keyed"):
            return returned(await getattr(sdk, method + "_with_options_async")(request(name), keyed(job, name)))
        return returned(await getattr(sdk, method + "_async")(request(name)))
    except Exception as error:
        return raised(error)


async def run_async(job):
    sdk = client(job)
    return await asyncio.gather(*(call_async(sdk, job, name) for name in job["names"]))


def run(job):
    if job.get("async"):
        return asyncio.run(run_async(job))
    sdk = client(job)
    with ThreadPoolExecutor(len(job["names"])) as threads:
        return list(threads.map(lambda name: (obey if job["obeys"] else call)(sdk, job, name), job["names"]))


print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), flush=True)

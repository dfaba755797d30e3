"""Requests of the shape that SDKs send which no registry here serves, or whose languages are not installed: written after the source of each SDK's core, which
SHAPES names. Only the shape is the SDK's: its connections, errors and time-outs are not tested. Input and output are described in ../sdks.py."""

import base64
from concurrent.futures import ThreadPoolExecutor
import datetime
import hashlib
import hmac
import http.client
import json
import sys
from urllib.parse import quote, quote_plus, urlencode
import uuid

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def parameters(job, name):
    """What all of them send, in signature version 1."""
    sent = {
        "Action": "CreateFlow",
        "FlowName": name,
        "Categories": '["SIGN_UP","OTHER"]',
        "Format": "JSON",
        "Version": "2020-06-06",
        "AccessKeyId": job["key"],
        "SignatureMethod": "HMAC-SHA1",
        "SignatureVersion": "1.0",
        "SignatureNonce": uuid.uuid4().hex,
        "Timestamp": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    if job.get("token"):
        sent["SecurityToken"] = job["token"]
    if job.get("keyed"):
        # The idempotency key of the order for this flow, which each repetition has. How these SDKs add a header is not tested.
        sent["ClientToken"] = hashlib.sha256(name.encode()).hexdigest()
    return sent


def signed(method, sent, secret):
    joined = "&".join(f"{encoded(name)}={encoded(value)}" for name, value in sorted(sent.items()))
    digest = hmac.new(f"{secret}&".encode(), f"{method}&%2F&{encoded(joined)}".encode(), hashlib.sha1).digest()
    return {**sent, "Signature": base64.b64encode(digest).decode()}


def encoded(text):
    return quote(text, safe="-_.~")


def php(job, name):
    """alibabacloud/client, src/Request/RpcRequest.php: for POST everything, the signature too, is in the form."""
    sent = signed("POST", parameters(job, name) | {"RegionId": "ap-southeast-1"}, job["secret"])
    agent = "AlibabaCloud (Linux 6.1.0; x86_64) PHP/8.2.29 Client/1.5.29 Zend/4.2.29 Guzzle/7 CURL/7.88.1"
    return "POST", "/", {"User-Agent": agent, **FORM}, urlencode(sent, quote_via=quote_plus)


def ruby(job, name):
    """aliyunsdkcore, lib/aliyunsdkcore/rpc_client.rb, with method: 'POST'. Spaces in the form are %20."""
    sent = signed("POST", parameters(job, name), job["secret"])
    agent = "AlibabaCloud (linux; x86_64) Ruby/3.1.2 Core/0.0.17"
    return "POST", "/", {"User-Agent": agent, **FORM}, urlencode(sent, quote_via=quote)


def cpp(job, name):
    """aliyun-openapi-cpp-sdk, core/src/CommonClient.cc: all in the query, and without a token an empty one."""
    sent = {"SecurityToken": "", "RegionId": "ap-southeast-1", **parameters(job, name)}
    sent = signed("GET", sent, job["secret"])
    return "GET", f"/?{urlencode(sent, quote_via=quote_plus)}", {"x-sdk-client": "CPP/1.36.1992"}, None


def dotnet(job, name):
    """aliyun-net-sdk-core, RpcAcsRequest.cs: all in the query of a POST without a body."""
    sent = signed("POST", parameters(job, name) | {"RegionId": "ap-southeast-1"}, job["secret"])
    agent = "Alibaba Cloud (Linux 6.1.0) Microsoft.NETCore.App/8.0.0 Core/1.6.0.0"
    return "POST", f"/?{urlencode(sent, quote_via=quote)}", {"User-Agent": agent, "x-sdk-client": "Net/2.0.0"}, None


SHAPES = {"php": php, "ruby": ruby, "cpp": cpp, "dotnet": dotnet}


def call(shape, job, name):
    connection = http.client.HTTPConnection(job["endpoint"], timeout=(job.get("timeout_ms") or 60_000) / 1000)
    try:
        method, target, headers, body = shape(job, name)
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        content = json.loads(answer.read())
    except OSError as error:
        return {"ok": False, "exception": type(error).__name__, "message": str(error)}
    finally:
        connection.close()
    if answer.status == 200:
        return {"ok": True, "code": content["Code"], "flow_name": content["Data"]["FlowName"], "flow_id": content["Data"]["FlowId"]}
    retry_after = answer.getheader("x-acs-retry-after")
    error = {"exception": "Answer", "code": content["Code"], "message": content["Message"], "status_code": answer.status}
    return {"ok": False, **error, "retry_after": retry_after and int(retry_after)}


def run(shape, job):
    with ThreadPoolExecutor(len(job["names"])) as threads:
        return list(threads.map(lambda name: call(shape, job, name), job["names"]))


print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(run(SHAPES[sys.argv[1]], json.loads(line))), flush=True)

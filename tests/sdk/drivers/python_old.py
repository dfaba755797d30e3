"""The old Python SDK (aliyun-python-sdk-cams on aliyun-python-sdk-core) as an application uses it. Its input and output are those of python_new.py."""

from concurrent.futures import ThreadPoolExecutor
import hashlib
import json
import sys

from aliyunsdkcams.request.v20200606.CreateFlowRequest import CreateFlowRequest
from aliyunsdkcams.request.v20200606.GetPreValidatePhoneIdRequest import GetPreValidatePhoneIdRequest
from aliyunsdkcams.request.v20200606.ListFlowRequest import ListFlowRequest
from aliyunsdkcore.acs_exception.exceptions import ServerException
from aliyunsdkcore.auth.credentials import AccessKeyCredential, StsTokenCredential
from aliyunsdkcore.client import AcsClient
from aliyunsdkcore.http import protocol_type


def create_flow(name):
    request = CreateFlowRequest()
    request.set_FlowName(name)
    request.set_Categories(["SIGN_UP", "OTHER"])
    return request


def list_flow(name):
    request = ListFlowRequest()
    request.set_FlowName(name)
    request.set_Page({"Index": 1, "Size": 10})
    return request


def get_pre_validate_phone_id(name):
    request = GetPreValidatePhoneIdRequest()
    request.set_PhoneNumber("1")
    request.set_VerifyCode(name)
    return request


REQUESTS = {"CreateFlow": create_flow, "ListFlow": list_flow, "GetPreValidatePhoneId": get_pre_validate_phone_id}


def client(job):
    if job.get("token"):
        credential = StsTokenCredential(job["key"], job["secret"], job["token"])
    else:
        credential = AccessKeyCredential(job["key"], job["secret"])
    proxy = {"http": job["proxy"]} if job.get("proxy") else None
    timeout = job["timeout_ms"] and job["timeout_ms"] / 1000
    return AcsClient(region_id="ap-southeast-1", credential=credential, timeout=timeout, proxy=proxy, verify=job["ca"])


def call(sdk, job, name):
    request = REQUESTS[job["action"]](name)
    request.set_endpoint(job["endpoint"])
    request.set_protocol_type(getattr(protocol_type, job["protocol"]))
    if job.get("hold"):
        request.add_header("x-flowgate-hold", job["hold"])
    key = hashlib.sha256(name.encode()).hexdigest()
    if job.get("keyed") == "header":
        request.add_header("Idempotency-Key", key)
    elif job.get("keyed") == "token":
        request.add_query_param("ClientToken", key)
    try:
        body = json.loads(sdk.do_action_with_exception(request))
        data = body.get("Data")
        data = data if isinstance(data, dict) else {}
        return {"ok": True, "code": body["Code"], "flow_name": data.get("FlowName"), "flow_id": data.get("FlowId")}
    except ServerException as error:
        fields = {"code": error.error_code, "message": error.message, "status_code": error.http_status}
        return {"ok": False, "exception": "ServerException", **fields}
    except Exception as error:
        return {"ok": False, "exception": type(error).__name__, "message": str(error)}


def run(job):
    sdk = client(job)
    with ThreadPoolExecutor(len(job["names"])) as threads:
        return list(threads.map(lambda name: call(sdk, job, name), job["names"]))


print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(run(json.loads(line))), flush=True)

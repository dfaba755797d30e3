"""Records what an SDK sends: runs its driver against a server that keeps the bytes, and writes them to tests/data/captures with their signatures to
tests/data/vectors.json, from which the tests of src/call/identify read them. The signatures are computed here, independently of Flowgate, and must be equal to
the SDK's. The SDK's clock is set to the date at which those tests take place.

    tests/sdk/.venv/bin/python tests/sdk/capture.py go"""

import argparse
import base64
from dataclasses import replace
import datetime
import glob
import hashlib
import hmac
import json
from pathlib import Path
import re
import socket
import subprocess
import tempfile
import threading
import time
from urllib.parse import parse_qsl, quote, urlsplit

from scenarios import AWKWARD, REAL_HOST
from sdks import GO, SDKS
from services import Driver

DATA = Path(__file__).resolve().parents[1] / "data"

KEY, SECRET, TOKEN = "LTAI-test-key-id-1", "test-secret-1", "test-sts-token/with+special=chars=="

# Within 15 minutes of NOW in src/call/identify/tests.rs.
DATE = datetime.datetime(2026, 11, 24, 2, 55, tzinfo=datetime.timezone.utc)

# What a request is signed for again.
AGAIN = {"host": REAL_HOST, "date": "2026-01-02T03:04:05Z", "nonce": "00112233445566778899aabbccddeeff"}

ANSWER = b'{"Code":"OK","Data":{"FlowName":"","FlowId":"1","Categories":["OTHER"]},"RequestId":"1"}'


def jobs(sdk):
    """The suffixes of the captures' names, and the driver's jobs."""
    usual = {"key": KEY, "secret": SECRET, "token": None, "protocol": "HTTP", "proxy": None, "ca": None, "certificate": None, "timeout_ms": 5000}
    usual |= {"async": False, "obeys": False, "hold": "", "action": "CreateFlow", "names": ["flow_001"], "sdk_retries": 0}
    for scheme in sdk.schemes:
        yield f"{scheme.lower()}_ak", {**usual, "scheme": scheme}
        yield f"{scheme.lower()}_ak_special", {**usual, "scheme": scheme, "names": [AWKWARD]}
        yield f"{scheme.lower()}_sts", {**usual, "scheme": scheme, "token": TOKEN}
        if "proxy" in sdk.ways:
            yield f"{scheme.lower()}_fwd", {**usual, "scheme": scheme, "style": "proxy"}


class Recorder:
    """A server that keeps one request."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        connection, _ = self._listener.accept()
        with self._listener, connection:
            data = b""
            while not complete(data):
                data += connection.recv(65536)
            self._request = data
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(ANSWER)}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + ANSWER)

    def request(self):
        self._thread.join(10)
        return self._request


def complete(data):
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return False
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if headers.get(b"transfer-encoding") == b"chunked":
        return body.endswith(b"0\r\n\r\n")
    return len(body) == int(headers.get(b"content-length", 0))


class Request:
    """The parts of a request that its signature covers."""

    def __init__(self, raw):
        head, _, body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        self.method, target, _ = first.split(" ")
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        self.query = parse_qsl(urlsplit(target).query, keep_blank_values=True)
        if self.headers.get("transfer-encoding") == "chunked":
            body = dechunked(body)
        self.body = body
        is_form = self.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        self.form = parse_qsl(body.decode(), keep_blank_values=True) if is_form else []

    def vector(self, file):
        return {"file": file, **(self._v3() if "authorization" in self.headers else self._v1())}

    def _v3(self):
        algorithm, fields = self.headers["authorization"].split(" ", 1)
        fields = dict(field.split("=", 1) for field in fields.split(","))
        signed = fields["SignedHeaders"]
        assert algorithm == "ACS3-HMAC-SHA256" and hashlib.sha256(self.body).hexdigest() == self.headers["x-acs-content-sha256"]

        def sign(headers):
            query = "&".join(f"{name}={encoded(value)}" for name, value in sorted(self.query))
            canonical = "".join(f"{name}:{headers[name].strip()}\n" for name in signed.split(";"))
            request = "\n".join([self.method, "/", query, canonical, signed, headers["x-acs-content-sha256"]])
            text = f"{algorithm}\n{hashlib.sha256(request.encode()).hexdigest()}"
            return request, text, hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()

        request, text, signature = sign(self.headers)
        assert signature == fields["Signature"]
        again = {"host": AGAIN["host"], "x-acs-date": AGAIN["date"], "x-acs-signature-nonce": AGAIN["nonce"]}
        authorization = f"{algorithm} Credential={KEY},SignedHeaders={signed},Signature={sign({**self.headers, **again})[2]}"
        return {
            "kind": algorithm,
            "verifies": "ok",
            "canonical_request": request,
            "string_to_sign": text,
            "signature": signature,
            "access_key_id": fields["Credential"],
            "resigned": {**again, "authorization": authorization},
        }

    def _v1(self):
        parameters = dict(self.query + self.form)
        assert len(parameters) == len(self.query) + len(self.form)
        signature = parameters.pop("Signature")

        def sign(parameters):
            joined = "&".join(f"{encoded(name)}={encoded(value)}" for name, value in sorted(parameters.items()))
            text = f"{self.method}&%2F&{encoded(joined)}"
            return text, base64.b64encode(hmac.new(f"{SECRET}&".encode(), text.encode(), hashlib.sha1).digest()).decode()

        text, own = sign(parameters)
        assert own == signature
        again = {"Timestamp": AGAIN["date"], "SignatureNonce": AGAIN["nonce"]}
        return {
            "kind": "RPC-V1 HMAC-SHA1",
            "verifies": "ok",
            "string_to_sign": text,
            "signature": signature,
            "access_key_id": parameters["AccessKeyId"],
            "resigned": {**again, "Signature": sign({**parameters, **again})[1]},
        }


def encoded(text):
    return quote(text, safe="-_.~")


def dechunked(rest):
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


def capture(sdk, job, logs):
    recorder, driver = Recorder(), Driver(f"capture-{sdk.name}", sdk.name, logs)
    try:
        driver.wait_until_ready()
        by_proxy = job.pop("style", "") == "proxy"
        place = {"endpoint": REAL_HOST, "proxy": f"http://{recorder.address}"} if by_proxy else {"endpoint": recorder.address}
        results = driver.run({**job, **place})
        assert results[0]["ok"], results
        return recorder.request()
    finally:
        driver.stop()


def write(vectors, file, raw):
    """Writes a capture and its vector, or replaces them."""
    (DATA / "captures" / file).write_bytes(raw)
    vector = Request(raw).vector(file)
    at = next((at for at, other in enumerate(vectors) if other["file"] == file), None)
    # Before the old Python SDK's: new vectors of several SDKs then do not meet at the end of the file.
    last = next(at for at, other in enumerate(vectors) if other["file"].startswith("pyv1_"))
    vectors[at if at is not None else last : last if at is None else at + 1] = [vector]


def at_date(sdk, folder):
    """The same SDK in a program whose clock stands at DATE when it starts."""
    if sdk.command[0] == GO:
        return replace(sdk, command=(str(go_at_date(sdk, folder)), *sdk.command[1:]))
    faketime = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")[0]
    variables = (f"LD_PRELOAD={faketime}", f"FAKETIME=@{DATE:%Y-%m-%d %H:%M:%S}", "FAKETIME_DONT_FAKE_MONOTONIC=1", "TZ=UTC")
    return replace(sdk, command=("env", *variables, *sdk.command))


def go_at_date(sdk, folder):
    """Go asks the kernel for the time, not the C library: its driver is built again with another time.Now."""
    root = subprocess.run(["go", "env", "GOROOT"], check=True, capture_output=True, text=True).stdout.strip()
    source = f"{root}/src/time/time.go"
    before = "= runtimeNow()\n"
    text = Path(source).read_text(encoding="utf-8")
    assert before in text
    (folder / "time.go").write_text(text.replace(before, f"{before}\tsec -= {int(time.time() - DATE.timestamp())}\n"), encoding="utf-8")
    (folder / "overlay.json").write_text(json.dumps({"Replace": {source: str(folder / "time.go")}}), encoding="utf-8")
    program = folder / "drivers"
    build = ["go", "build", "-buildvcs=false", "-overlay", str(folder / "overlay.json"), "-o", str(program), "."]
    subprocess.run(build, check=True, cwd=Path(GO).parents[1])
    return program


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sdk", choices=SDKS, nargs="+")
    parser.add_argument("--logs", default=Path("/tmp"), type=Path)
    options = parser.parse_args()
    path = DATA / "vectors.json"
    vectors = json.loads(path.read_text(encoding="utf-8"))
    for name in options.sdk:
        with tempfile.TemporaryDirectory() as folder:
            SDKS[name] = at_date(SDKS[name], Path(folder))
            take(vectors, name, options.logs)
    path.write_text(json.dumps(vectors, indent=1, ensure_ascii=False), encoding="utf-8")


def take(vectors, name, logs):
    for suffix, job in jobs(SDKS[name]):
        file = f"{re.sub(r'[^a-z0-9]', '', name.lower())}_{suffix}.http"
        write(vectors, file, capture(SDKS[name], job, logs))
        print(file)


if __name__ == "__main__":
    main()

"""A stand-in for a cluster's API: as much of it as Helm's `lookup` needs to find Secrets."""

import http.server
import json
import threading

import helm_python as helm

RESOURCES = {
    "kind": "APIResourceList",
    "groupVersion": "v1",
    "resources": [{"name": "secrets", "singularName": "secret", "namespaced": True, "kind": "Secret", "verbs": ["get"]}],
}
NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


class Cluster:
    """Has these Secrets in the namespace messaging: a map of names to data."""

    def __init__(self, secrets):
        self.paths = {
            f"/api/v1/namespaces/messaging/secrets/{name}": {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": name, "namespace": "messaging"},
                "data": data,
            }
            for name, data in secrets.items()
        }
        self.paths["/api/v1"] = RESOURCES

    def __enter__(self):
        paths = self.paths

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                body = paths.get(self.path.split("?")[0], NOT_FOUND)
                data = json.dumps(body).encode()
                self.send_response(body.get("code", 200))
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.config = helm.Config(kube_apiserver=address, namespace="messaging")
        return self

    def __exit__(self, *_):
        self.config.close()
        self.server.shutdown()
        self.server.server_close()

    def render(self, *arguments, **named):
        return self.config.render(*arguments, **named)

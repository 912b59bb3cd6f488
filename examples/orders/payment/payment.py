"""Charges for orders, and says so. Python's own library, and no broker's: orders come in by POST, and what follows goes out the same way."""
import json
import os
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SIDECAR = f"http://127.0.0.1:{os.environ['DAPR_HTTP_PORT']}/v1.0"


class Payment(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/dapr/subscribe":
            return self.answer(200, [{
                "pubsubname": "orders-broker",
                "topic": "orders",
                "deadLetterTopic": "unpayable",
                "routes": {
                    "rules": [{"match": "event.data.amount > 1000", "path": "/review"}],
                    "default": "/charge",
                },
            }])
        self.answer(200 if self.path == "/health" else 404, {})

    def do_POST(self):
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        order = event["data"]
        if not isinstance(order.get("amount", 0), (int, float)):
            return self.answer(200, {"status": "DROP"})  # nobody can charge this: it becomes a dead letter
        payment = {"order": order["id"], "customer": order.get("customer", "guest"), "amount": order.get("amount", 0),
                   "state": "waits for review" if self.path == "/review" else "charged"}
        # What the order's sender asked for, and the trace, are handed on.
        canary = self.headers.get("x-canary")
        query = f"?metadata.partitionKey={payment['customer']}" + (f"&metadata.x-canary={canary}" if canary else "")
        request = urllib.request.Request(f"{SIDECAR}/publish/orders-broker/payments{query}", json.dumps(payment).encode(),
                                         {"content-type": "application/json", "traceparent": event.get("traceparent", "")})
        try:
            # The sidecar is beside us: what the environment says of proxies is not about it.
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10)
            self.answer(200, {"status": "SUCCESS"})
        except OSError:
            self.answer(200, {"status": "RETRY"})

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Payment).serve_forever()

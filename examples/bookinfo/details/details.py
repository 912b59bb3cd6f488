"""The details service of the bookinfo example: what is printed on the back of a book. Python's standard library only."""

import json
import os
import re
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BOOK = {
    "author": "William Shakespeare",
    "year": 1595,
    "type": "paperback",
    "pages": 200,
    "publisher": "PublisherA",
    "language": "English",
    "ISBN-10": "1234567890",
    "ISBN-13": "123-1234567890",
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        match = re.fullmatch(r"/details/(\d+)", self.path.split("?")[0])
        if self.path == "/health":
            self.answer(200, {"status": "Details is healthy"})
        elif match:
            self.answer(200, {"id": int(match.group(1)), **BOOK})
        else:
            self.answer(404, {"error": "not found"})

    def answer(self, status, body):
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format, *args):
        if self.path != "/health":
            print(format % args, flush=True)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    port = int(os.environ.get("PORT", "9080"))
    print(f"details listens on {port}", flush=True)
    Server(("127.0.0.1", port), Handler).serve_forever()

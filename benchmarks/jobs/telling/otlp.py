"""A server on loopback that takes OTLP over HTTP, and says how many spans and how often metrics came. A process of its own, so
that no figure of another one has what reading them costs.

    python -m jobs.telling.otlp --port 4318        GET / gives {"spans": 12, "metrics": 3}
"""

from __future__ import annotations

import argparse
import gzip
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from arguments import positive
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

came = {"spans": 0, "metrics": 0}


class Taking(BaseHTTPRequestHandler):
    """What is sent is read, as its protocol says, and counted."""

    protocol_version = "HTTP/1.1"  # exporters keep their connection

    def do_POST(self) -> None:
        """Take spans or metrics."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            groups = ExportTraceServiceRequest.FromString(body).resource_spans
            came["spans"] += sum(len(scope.spans) for group in groups for scope in group.scope_spans)
        else:
            came["metrics"] += 1
        self._answer("application/x-protobuf", b"")

    def do_GET(self) -> None:
        """Say what came."""
        self._answer("application/json", json.dumps(came).encode())

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=positive, required=True)
    server = ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), Taking)
    print("listens", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

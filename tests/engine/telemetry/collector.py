"""A server on loopback that takes OTLP over HTTP, as a collector does, and keeps what it got."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class SpanSeen(NamedTuple):
    """A span as it came. Ids as hex; `parent`: "" for none. `service`: of the process that sent it. `state`: its tracestate."""

    name: str
    trace: str
    span: str
    parent: str
    attributes: dict[str, Any]
    failed: bool
    seconds: float
    service: str
    state: str


class Collector:
    """Takes what is sent to it, from the begin of its block to the end."""

    def __init__(self) -> None:
        self.spans: list[SpanSeen] = []
        self.metrics: dict[str, list[Any]] = {}
        self.news = threading.Condition()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def take(self, path: str, body: bytes) -> None:
        with self.news:
            if path == "/v1/traces":
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    service = _plain(group.resource.attributes)["service.name"]
                    self.spans += [_seen(span, service) for scope in group.scope_spans for span in scope.spans]
            elif path == "/v1/metrics":
                for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    for metric in (m for scope in group.scope_metrics for m in scope.metrics):
                        self.metrics[metric.name] = [*getattr(metric, metric.WhichOneof("data")).data_points]
            self.news.notify_all()

    def until(self, count: int, name: str = "", timeout: float = 60.0) -> list[SpanSeen]:
        """The spans whose name begins so, once there are so many."""
        with self.news:
            self.news.wait_for(lambda: len(self.named(name)) >= count, timeout)
            return self.named(name)

    def named(self, name: str) -> list[SpanSeen]:
        return [span for span in self.spans if span.name.startswith(name)]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _plain(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def _seen(span: Any, service: str) -> SpanSeen:
    took = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    return SpanSeen(span.name, *ids, _plain(span.attributes), span.status.code == 2, took, service, span.trace_state)

"""Whether anything is exported, and where to: OTLP as OpenTelemetry's own variables say, and Prometheus' text on a port."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog

from dspex.bus import telemetry
from dspex.bus.errors import BusError, ConfigError
from dspex.bus.serving.keys.redaction import Redaction
from dspex.bus.settings.server import TelemetrySettings
from dspex.bus.settings.values import host_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from opentelemetry.sdk.resources import Resource

    from dspex.engine.runtime.walk.timing import NodeTimes
    from dspex.engine.telemetry.gauges import Shown

_log = structlog.get_logger("dspex.telemetry")
LOOK_EVERY: Final = 5.0  # seconds between two looks at the application, where metrics are wanted
_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_SILENT: Final = TelemetrySettings()
_INSTALL: Final = "pip install 'dspex[otel]'"


def otlp(signal: Literal["TRACES", "METRICS"], environment: Mapping[str, str] = os.environ) -> bool:
    """Whether OTLP is asked for, for one kind of thing. Nothing is exported unless an endpoint is named."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get(f"OTEL_{signal}_EXPORTER", "otlp").strip().lower() == "none":
        return False
    return any(environment.get(name) for name in (_ENDPOINT, f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))


def measured(serve: str | None) -> bool:
    """Whether metrics are asked for. `serve`: where they are served; None: nowhere."""
    return serve is not None or otlp("METRICS")


class Exported:
    """What is exported while its block runs. `status`: of the application, as it was seen last."""

    def __init__(self) -> None:
        self.metrics = False
        self.status: Shown | None = None

    async def keep_looking(self, look: Callable[[], Awaitable[Shown]]) -> None:
        """See how the application is, every few seconds, for as long as this runs. At once where nothing needs it."""
        while self.metrics:
            try:
                self.status = await look()
            except BusError as e:
                self.status = None  # no figures rather than old ones
                _log.debug("cannot look now", why=e.message)
            await asyncio.sleep(LOOK_EVERY)


@contextmanager
def exporting(
    app: str,
    role: Literal["engine", "worker", "gateway"],
    instance: str,
    serve: str | None,
    times: NodeTimes | None = None,
    settings: TelemetrySettings = _SILENT,
) -> Generator[Exported]:
    """Export what happens in this process for as long as the block runs; nothing where nobody asks for it.

    Args:
        app: the application. instance: of the process, unique.
        serve: where metrics are served as Prometheus' text, ":9464"; None: nowhere.
        times: what operators take in this process, where that is measured.
        settings: whether spans have content, and what is left out of it.

    Raises:
        ConfigError: DX109, OpenTelemetry is not installed; DX105, nothing can listen there, or a function is not there.
    """
    exported = Exported()
    if not (otlp("TRACES") or measured(serve)):
        yield exported
        return
    with ExitStack() as stack:
        try:
            resource = _resource(app, role, instance)
            if otlp("TRACES"):
                _trace(stack, app, resource, settings)
            if measured(serve):
                _measure(stack, exported, resource, serve, times)
        except ImportError as e:
            what = "telemetry.metrics is set" if serve is not None else f"{_ENDPOINT} is set"
            text = f"{what}, and OpenTelemetry is not installed: {e}"
            raise ConfigError(text, code="DX109", fix=f"{_INSTALL}, or unset it", node="telemetry") from e
        yield exported


def _resource(app: str, role: str, instance: str) -> Resource:
    from importlib.metadata import version

    from opentelemetry.sdk.resources import Resource

    own: dict[str, Any] = {"service.namespace": app, "service.instance.id": instance, "service.version": version("dspex")}
    if not os.environ.get("OTEL_SERVICE_NAME"):
        own["service.name"] = f"dspex-{role}"
    return Resource.create(own)


def _trace(stack: ExitStack, app: str, resource: Resource, settings: TelemetrySettings) -> None:
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from dspex.engine.telemetry.content import Content
    from dspex.engine.telemetry.encoding import QuickExporter
    from dspex.engine.telemetry.traces import HEARD, Traces

    content = Content(Redaction(settings.redact)) if settings.content else None
    processor = BatchSpanProcessor(QuickExporter())
    stack.callback(processor.shutdown)
    stack.callback(telemetry.subscribe(Traces(app, resource, processor, content), HEARD))


def _measure(stack: ExitStack, exported: Exported, resource: Resource, serve: str | None, times: NodeTimes | None) -> None:
    from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

    from dspex.engine.telemetry.measures import HEARD, Measures

    readers: list[MetricReader] = []
    if serve is not None:
        readers.append(_served(stack, serve))
    if otlp("METRICS"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    never = AlwaysOffExemplarFilter()  # spans are made as data: none is ever open where something is measured
    provider = MeterProvider(readers, resource, shutdown_on_exit=False, exemplar_filter=never)
    stack.callback(provider.shutdown)
    stack.callback(telemetry.subscribe(Measures(provider.get_meter("dspex"), lambda: exported.status, times), HEARD))
    exported.metrics = True


def _served(stack: ExitStack, serve: str) -> Any:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import start_http_server

    host, port = host_port(serve)
    try:
        server, thread = start_http_server(port, host)
    except OSError as e:
        fix = "name another port, or let one process serve and the others export: OTEL_EXPORTER_OTLP_ENDPOINT"
        raise ConfigError(
            f"nothing can listen on {serve}: {e.strerror}", code="DX105", node="telemetry.metrics", fix=fix
        ) from e
    stack.callback(thread.join)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    _log.info("metrics", url=f"http://{host}:{port}/metrics")
    return PrometheusMetricReader()

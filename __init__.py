"""dspex: DSPy programs on streams of events, exactly once, replayable.

Names are loaded when they are used: `import dspex` costs nothing and imports neither dspy, nats nor pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Chunk": "engine.client.calls.events",
    "Client": "engine.client.client",
    "Context": "engine.graph.context",
    "Duration": "bus.settings.duration",
    "Engine": "engine.hosting.engine",
    "Event": "bus.message",
    "Field": "operators.native.signature",
    "KeyedStream": "operators.stream",
    "Record": "operators.stream",
    "Result": "engine.client.call",
    "Retry": "engine.graph.nodes",
    "Run": "engine.client.run",
    "Session": "engine.client.calls.session",
    "Settings": "bus.settings.model",
    "Signature": "operators.native.signature",
    "Spec": "operators.recorded.spec",
    "Stream": "operators.stream",
    "Topology": "operators.topology",
    "Windowed": "operators.keyed.windows.windowed",
    "WindowedStream": "operators.keyed.windows.stream",
    "chain_of_thought": "operators.recorded.calls",
    "connect": "engine.client.client",
    "enrich": "operators.recorded.enrich",
    "predict": "operators.recorded.calls",
    "gather": "operators.stream",
    "program": "operators.recorded.calls",
    "react": "operators.recorded.calls",
    "run": "engine.hosting.engine",
}
_MODULES = (
    "asgi",
    "codecs",
    "errors",
    "metrics",
    "sync",
    "testing",
    "workers",
)  # files of these names: `from dspex.errors import Reject`

if TYPE_CHECKING:
    from dspex import asgi as asgi
    from dspex import codecs as codecs
    from dspex import errors as errors
    from dspex import metrics as metrics
    from dspex import sync as sync
    from dspex import testing as testing
    from dspex import workers as workers
    from dspex.bus.message import Event as Event
    from dspex.bus.settings.duration import Duration as Duration
    from dspex.bus.settings.model import Settings as Settings
    from dspex.engine.client.call import Result as Result
    from dspex.engine.client.calls.events import Chunk as Chunk
    from dspex.engine.client.calls.session import Session as Session
    from dspex.engine.client.client import Client as Client
    from dspex.engine.client.client import connect as connect
    from dspex.engine.client.run import Run as Run
    from dspex.engine.graph.context import Context as Context
    from dspex.engine.graph.nodes import Retry as Retry
    from dspex.engine.hosting.engine import Engine as Engine
    from dspex.engine.hosting.engine import run as run
    from dspex.operators.keyed.windows.stream import WindowedStream as WindowedStream
    from dspex.operators.keyed.windows.windowed import Windowed as Windowed
    from dspex.operators.native.signature import Field as Field
    from dspex.operators.native.signature import Signature as Signature
    from dspex.operators.recorded.calls import chain_of_thought as chain_of_thought
    from dspex.operators.recorded.calls import predict as predict
    from dspex.operators.recorded.calls import program as program
    from dspex.operators.recorded.calls import react as react
    from dspex.operators.recorded.enrich import enrich as enrich
    from dspex.operators.recorded.spec import Spec as Spec
    from dspex.operators.stream import KeyedStream as KeyedStream
    from dspex.operators.stream import Record as Record
    from dspex.operators.stream import Stream as Stream
    from dspex.operators.stream import gather as gather
    from dspex.operators.topology import Topology as Topology

__all__ = [
    "Chunk",
    "Client",
    "Context",
    "Duration",
    "Engine",
    "Event",
    "Field",
    "KeyedStream",
    "Record",
    "Result",
    "Retry",
    "Run",
    "Session",
    "Settings",
    "Signature",
    "Spec",
    "Stream",
    "Topology",
    "Windowed",
    "WindowedStream",
    "chain_of_thought",
    "connect",
    "enrich",
    "gather",
    "predict",
    "program",
    "react",
    "run",
    "asgi",
    "codecs",
    "errors",
    "metrics",
    "sync",
    "testing",
    "workers",
]


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562)."""
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        from dspex.bus.settings.not_built import NAMES

        said = "is not built in this version" if name in NAMES else f"is no name of {__name__}"
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it {said}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

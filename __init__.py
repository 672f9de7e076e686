"""dspex: DSPy programs on streams of events, exactly once, replayable.

Names are loaded when they are used: `import dspex` costs nothing and imports neither dspy, nats nor pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Session, Chunk, StateContext, Windowed, WindowedStream, gather, enrich and asgi of the design come later.
_HOMES = {
    "Client": "engine.client",
    "Context": "engine.graph",
    "Duration": "bus.duration",
    "Engine": "engine.engine",
    "Event": "bus.event",
    "Field": "operators.native.signature",
    "KeyedStream": "operators.stream",
    "Record": "operators.stream",
    "Result": "engine.interactive",
    "Retry": "engine.graph",
    "Run": "engine.client",
    "Settings": "bus.settings",
    "Signature": "operators.native.signature",
    "Spec": "operators.specs",
    "Stream": "operators.stream",
    "Topology": "operators.topology",
    "chain_of_thought": "operators.specs",
    "connect": "engine.client",
    "predict": "operators.specs",
    "program": "operators.specs",
    "react": "operators.specs",
    "run": "engine.engine",
}
_MODULES = {
    "codecs": "bus.codecs",
    "errors": "bus.errors",
    "metrics": "operators.native.metrics",
    "sync": "engine.sync",
    "testing": "engine.testing",
    "workers": "workers",
}

if TYPE_CHECKING:
    from dspex import workers as workers
    from dspex.bus import codecs as codecs
    from dspex.bus import errors as errors
    from dspex.bus.duration import Duration as Duration
    from dspex.bus.event import Event as Event
    from dspex.bus.settings import Settings as Settings
    from dspex.engine import sync as sync
    from dspex.engine import testing as testing
    from dspex.engine.client import Client as Client
    from dspex.engine.client import Run as Run
    from dspex.engine.client import connect as connect
    from dspex.engine.engine import Engine as Engine
    from dspex.engine.engine import run as run
    from dspex.engine.graph import Context as Context
    from dspex.engine.graph import Retry as Retry
    from dspex.engine.interactive import Result as Result
    from dspex.operators.native import metrics as metrics
    from dspex.operators.native.signature import Field as Field
    from dspex.operators.native.signature import Signature as Signature
    from dspex.operators.specs import Spec as Spec
    from dspex.operators.specs import chain_of_thought as chain_of_thought
    from dspex.operators.specs import predict as predict
    from dspex.operators.specs import program as program
    from dspex.operators.specs import react as react
    from dspex.operators.stream import KeyedStream as KeyedStream
    from dspex.operators.stream import Record as Record
    from dspex.operators.stream import Stream as Stream
    from dspex.operators.topology import Topology as Topology

__all__ = [
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
    "Settings",
    "Signature",
    "Spec",
    "Stream",
    "Topology",
    "chain_of_thought",
    "connect",
    "predict",
    "program",
    "react",
    "run",
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
        value = import_module(f"{__name__}.{_MODULES[name]}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

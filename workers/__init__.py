"""Worker pools: the only room that imports dspy. Meets the engine on the wire alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dspex.workers.answerers.context import CallContext, context
    from dspex.workers.journal.tools import tool

__all__ = ["CallContext", "context", "tool"]

_HOMES = {"CallContext": "answerers.context", "context": "answerers.context", "tool": "journal.tools"}


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562): a process that runs calls chooses first what it imports (`child`)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value

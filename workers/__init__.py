"""Worker pools: the only room that imports dspy. Meets the engine on the wire alone."""

from dspex.workers.answerers.context import CallContext, context
from dspex.workers.journal.tools import tool

__all__ = ["CallContext", "context", "tool"]

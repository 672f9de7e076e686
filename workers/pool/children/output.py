"""What user code prints, into the log of its pool."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

log: FilteringBoundLogger = structlog.get_logger("dspex.workers")
programs: FilteringBoundLogger = structlog.get_logger("dspex.programs")  # what they print is shown where our own lines are not

_LEVELS = frozenset({"debug", "info", "warning", "error", "critical"})
# Fields that mean something to the log itself: with a program's values under these names it would fail.
_RESERVED = frozenset({"self", "event", "pid", "exc_info", "stack_info", "method_name", "positional_args"})
_TEXTS = frozenset({"exception", "stack", "logger", "timestamp"})  # only where they are no text


async def forward(stream: asyncio.StreamReader, name: str, pool: str, pid: int) -> None:
    """Lines of user code into the log until they end; those of our own child are JSON already, and keep their fields.

    A program may print anything. Where this failed, nobody would read the pipe, and the program would wait for ever where it
    prints next.
    """
    while line := await _line(stream):
        if (said := _event(line)) is not None:
            level, event, fields = said
            getattr(log, level)(event, pid=pid, **fields)
        elif line.strip():
            programs.info("program output", pool=pool, pid=pid, stream=name, line=line.rstrip())


def _event(line: str) -> tuple[str, str, dict[str, Any]] | None:
    """Level, event and fields of a line that the child's log wrote; None where it is another one."""
    if not line.startswith('{"event"'):
        return None
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    event, level = fields.pop("event"), fields.pop("level", "info")
    if not isinstance(event, str) or level not in _LEVELS:
        return None
    return level, event, {f"program_{k}" if _breaks_a_log(k, v) else k: v for k, v in fields.items()}


def _breaks_a_log(name: str, value: object) -> bool:
    return name in _RESERVED or name.startswith("_") or (name in _TEXTS and not isinstance(value, str))


async def _line(stream: asyncio.StreamReader) -> str:
    """One line; "" at the end. A line over the stream's limit comes in parts, cut where they fall."""
    try:
        raw = await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        raw = end.partial
    except asyncio.LimitOverrunError as over:
        raw = await stream.readexactly(over.consumed)
    return raw.decode(errors="replace")

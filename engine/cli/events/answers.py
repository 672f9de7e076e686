"""What `dspex call` prints: a result, or an answer while it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspex.engine.cli.terminal.client import spent
from dspex.engine.cli.terminal.terminal import Terminal, to_json
from dspex.engine.client.calls.events import Accepted, Chunk, Progress

if TYPE_CHECKING:
    from dspex.engine.client.call import Result
    from dspex.engine.client.calls.stream import Answer
    from dspex.engine.client.run import Run


def print_result(t: Terminal, result: Result[Any]) -> None:
    """The fields of a result, and what it cost."""
    width = max(map(len, result.data), default=0)
    lines = [f"{name:<{width}}  {v if isinstance(v, str) else to_json(v)}" for name, v in result.data.items()]
    t.emit(result.as_dict(), *"\n".join(lines).split("\n"))
    _cost(t, result)


async def print_stream(t: Terminal, answer: Answer[Any]) -> None:
    """What comes of an answer, as it comes: for people the text of its fields, one field after the other; then what it cost."""
    field = ""
    try:
        async for event in answer.events():
            t.emit(_object(event))
            match event:
                case Chunk(field=name, text=text):
                    t.part(text if name == field else f"\n{name}  {text}" if field else f"{name}  {text}")
                    field = name
                case Progress(text=text):
                    if field:
                        t.part("\n")
                    field = ""
                    if not t.json:
                        t.note(text)
                case Accepted():
                    pass  # for people there is nothing to see yet
    finally:  # an error stands on a line of its own
        if field:
            t.part("\n")
    result = await answer.result()
    t.emit({"kind": "result", **result.as_dict()})
    _cost(t, result)


def print_submitted(t: Terminal, run: Run) -> None:
    """The run of a call that was submitted."""
    t.emit({"run": run.id, "stream": run.stream, "seq": run.sequence, "duplicate": run.duplicate}, f"run {run.id}")


def _object(event: Accepted | Progress | Chunk) -> dict[str, object]:
    match event:
        case Accepted():
            return {"kind": "accepted", "id": event.call, "worker": event.worker}
        case Progress():
            return {"kind": "progress", "text": event.text}
        case Chunk():
            return {"kind": "chunk", "field": event.field, "text": event.text, "sequence": event.sequence}


def _cost(t: Terminal, result: Result[Any]) -> None:
    if not t.json:
        ms = result.elapsed.total_seconds() * 1000
        lm = f"  lm {result.lm}" if result.lm else ""
        state = f"  {result.state}" if result.state else ""
        t.note(f"{spent(None, result.usage)}{lm}{state}  {result.worker}  {ms:,.0f} ms")
        if result.warning:
            t.note(f"warning: {result.warning}")

"""What is known of the requests of a run's calls: who answered with what, and what models and tools were asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from dspex.bus import subjects
from dspex.bus.errors import BusError, DspexError
from dspex.bus.records import CallRecord, CallRequest
from dspex.bus.serving import payloads
from dspex.bus.serving.programs.exchanges import read_exchanges
from dspex.engine.cli.runs.drawing import short
from dspex.engine.client.runs.steps import exchanges_of
from dspex.engine.gateway.looking.prompts import prompt_of
from dspex.workers.journal.entries import JournalEntry, JournalPart

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.client.runs.tree import Happening

_KEPT: Final = ("route", "lm", "program", "state", "dspy_version", "worker", "elapsed", "cached_from", "warning")


async def requests_of(c: Client, root: Happening) -> dict[str, list[dict[str, Any]]]:
    """What is known of each attempt, by call. Raises BusError."""
    found = dict[str, list[dict[str, Any]]]()
    for told in root:
        for pool, asked, record in told.executions:
            journal = await _journal(c, pool, asked.call) if asked.spec.has_journal else []
            found.setdefault(told.id, []).append(_attempt(asked, record, journal))
    return found


def _attempt(asked: CallRequest, record: CallRecord | None, journal: list[JournalEntry]) -> dict[str, Any]:
    said: dict[str, Any] = {"attempt": asked.try_number, "kind": asked.spec.kind, "recorded": record is not None}
    if record is not None:
        said |= {name: getattr(record, name) for name in _KEPT}
        said |= {"started": record.started, "usage": dict(record.usage), "requests": dict(record.requests)}
        said["routing"] = [list(tried) for tried in record.routing]
        said["exchanges"], said["left_out"] = exchanges_of(record, asked.spec), _left_out(record)
    said["prompt"] = prompt_of(asked)
    said["journal"] = [
        {name: getattr(entry, name) for name in ("kind", "name", "asked", "begun", "answer", "usage")} for entry in journal
    ]
    return said


async def _journal(c: Client, pool: str, call: str) -> list[JournalEntry]:
    """The journal of a call, where it is there still: it is removed at the call's end."""
    stream, subject, at = subjects.requests(c.app), subjects.request(c.app, pool, call), 1
    found = dict[Any, JournalEntry]()
    try:
        while (message := await c.bus.next(stream, subject, at)) is not None:
            at = message.sequence + 1
            whole = await payloads.checked_out(c.bus, c.app, message)
            for entry in JournalPart.unpack(whole.data).entries if whole is not None else ():
                found[entry.place] = entry
    except BusError as error:
        if error.retryable:
            raise
    except DspexError:
        pass  # it was written by something else
    return [*found.values()]


def lines(attempt: Mapping[str, Any], *, everything: bool, before: Mapping[str, Any] | None = None) -> Iterator[str]:
    """One attempt, for people. `everything`: texts in full. `before`: the attempt before it, whose prompt is not said again."""
    there = ("dspy_version", "worker", "program", "state", "cached_from")
    words = [f"{name.replace('_', ' ')} {attempt[name]}" for name in there if attempt.get(name)]
    words += [f"{number} {name}" for name, number in (attempt.get("requests") or {}).items() if number]
    yield f"attempt {attempt['attempt']}  {'  '.join(words) if attempt['recorded'] else 'not recorded yet'}"
    for profile, what, *_ in attempt.get("routing", ()):
        yield f"  {profile}: {what}"
    if attempt.get("warning"):
        yield f"  warning: {attempt['warning']}"
    prompt = attempt["prompt"] or ()
    if before is not None and prompt and prompt == before["prompt"]:
        yield f"  ~ prompt as in attempt {before['attempt']}"
        prompt = ()
    for message in prompt:
        yield from _text(f"  ~ {message['role']}", message["content"], everything=everything)
    for one in attempt.get("exchanges", ()):
        yield from _exchange(one, everything=everything)
    if attempt.get("left_out"):
        yield f"  {attempt['left_out']} more that the record does not keep: pools.*.keep_exchanges"
    for entry in attempt["journal"] if not attempt.get("exchanges") else ():
        yield from _text(f"  {entry['kind']} {entry['name']} asked", entry["asked"], everything=everything)
        answer = "begun, and nothing is known of it" if entry["begun"] and entry["answer"] is None else entry["answer"]
        yield from _text(f"  {entry['kind']} {entry['name']} said", answer, everything=everything)


def _exchange(one: Mapping[str, Any], *, everything: bool) -> Iterator[str]:
    who, usage = f"  {one['kind']} {one['name']}", one["usage"]
    if one["asked"] is not None:
        yield from _text(f"{who} asked", one["asked"], everything=everything)
    words = [f"{1000 * one['seconds']:,.0f} ms"] if one["seconds"] else []
    if tokens := usage.get("input_tokens", 0) + usage.get("output_tokens", 0):
        words.append(f"{tokens} tokens")
    words += [f"${usage['cost']:.4f}"] if usage.get("cost") else []
    words += ["from the journal"] if one["journaled"] else []
    yield from _text(f"{who} said{''.join(f'  {word}' for word in words)}", one["said"], everything=everything)


def _left_out(record: CallRecord) -> int:
    try:
        return read_exchanges(record.exchanges).left_out
    except DspexError:
        return 0


def _text(head: str, data: Any, *, everything: bool) -> Iterator[str]:
    if not everything or not isinstance(data, str):
        yield f"{head}  {short(data)}"
        return
    yield head
    yield from (f"    {line}" for line in data.splitlines())

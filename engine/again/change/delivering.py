"""What a fork gives otherwise goes to the sinks, where that is wanted: of its own, and what it leads to in other runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, cast

from dspex.bus import codecs, subjects
from dspex.bus.errors import RecordingIncomplete
from dspex.bus.message import derived_id
from dspex.bus.port import Bus, NewMessage
from dspex.bus.serving.keys.secret_fields import SECRET
from dspex.engine.client import publish as publishing
from dspex.engine.client.client import Client
from dspex.engine.client.runs.diff import other_than
from dspex.engine.client.runs.export import RunFile
from dspex.engine.client.runs.then.masking import secrets_of
from dspex.engine.graph.graph import Graph
from dspex.engine.log.positions import pages, sequence_before

_APART: Final = 60.0  # seconds by which the clocks of two machines may differ


class _Delivery(NamedTuple):
    id: str
    subject: str
    data: Any


async def deliver(client: Client, file: RunFile, graphs: Sequence[Graph]) -> int:
    """Publish what a fork gives otherwise to the sinks, as these write it, but for what is there. How many.

    Raises RunNotFound where the run that it comes from is kept nowhere any more; RecordingIncomplete where a marker stands for
    something secret in what is to be published: then nothing is; BusError.
    """
    sinks, there = [node.sink for graph in graphs for node in graph.sinks], _There(client.bus, file)
    sending = [one for one in _to_deliver(file, await _then(client, file, there)) if not await there.has(one)]
    if secrets_of(file.root) and (marked := sorted({one.subject for one in sending if _is_marked(one.data)})):
        why = f"{', '.join(marked)}: secret, so what is kept of run {file.info.id} has not got it"
        raise RecordingIncomplete(why, run=file.info.id, fix=f"fork {file.info.parent or file.info.id} anew, with --deliver")
    for one in sending:
        known = [sink.codec for sink in sinks if subjects.matches(sink.pattern, one.subject)]
        body, kind = codecs.encode(one.data, cast("codecs.Codec", known[0] if known else "auto"))
        headers = {subjects.EVENT_ID: one.id, subjects.MESSAGE_ID: one.id, subjects.RUN: file.info.id}
        headers |= {subjects.SESSION: file.session} if file.session is not None else {}
        headers |= {subjects.CONTENT_TYPE: kind} if kind != codecs.JSON else {}
        await publishing.store(client.bus, client.app, NewMessage(one.subject, body, headers))
    return len(sending)


def _is_marked(data: Any) -> bool:
    """Whether the marker of a secret value stands somewhere in what a sink is to be given."""
    return SECRET.encode() in codecs.encode(data, "auto")[0]


class _There:
    """What the sinks have had since a run that was forked: the server knows the ids of the last minutes alone."""

    def __init__(self, bus: Bus, file: RunFile) -> None:
        self._bus, self._since = bus, file.place.time if file.place is not None else 0.0
        self._ids = dict[str, set[str]]()  # by subject

    async def has(self, one: _Delivery) -> bool:
        if one.subject not in self._ids:
            self._ids[one.subject] = await self._read(one.subject)
        return one.id in self._ids[one.subject]

    async def _read(self, subject: str) -> set[str]:
        name = await self._bus.stream_of(subject)
        if name is None or (info := await self._bus.stream(name)) is None:
            return set()
        start = await sequence_before(self._bus, info, self._since - _APART) + 1
        found = pages(self._bus, name, [subject], start=start)
        return {m.headers.get(subjects.EVENT_ID, "") async for page in found for m in page}


async def _then(client: Client, file: RunFile, there: _There) -> RunFile:
    """The run with which a fork is compared: the last one before it that is in the sinks. That is no fork, or was delivered."""
    if file.info.parent is None:
        return file
    parent = await client.run(file.info.parent).file()
    then = await _then(client, parent, there)
    was_delivered = any([await there.has(one) for one in _to_deliver(parent, then)]) if then is not parent else True
    return parent if was_delivered else then


def _to_deliver(file: RunFile, then: RunFile) -> Iterator[_Delivery]:
    other = {id(one) for one in other_than(then.root, file.root)}
    for number, one in enumerate(one for one in file.root if one.kind == "output"):
        if id(one) in other:
            yield _Delivery(derived_id(file.info.id, f"fork/{one.node}", number), one.node, one.data)
    for number, later in enumerate(file.later.outputs if file.later is not None else ()):
        yield _Delivery(derived_id(file.info.id, f"later/{later.subject}", number), later.subject, later.data)

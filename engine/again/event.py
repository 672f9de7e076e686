"""The source event of a run, as it is published again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from dspex.bus import codecs, subjects
from dspex.bus.message import Message, place_id
from dspex.bus.port import NewMessage
from dspex.engine.client.runs.export import RunFile

_CODECS: Final[Mapping[codecs.Codec, str]] = {"msgpack": codecs.MSGPACK, "arrow": codecs.ARROW}
_NOT_AGAIN: Final[Collection[str]] = (subjects.AT, subjects.CLAIM_CHECK, subjects.SEALED)


def id_in(file: RunFile) -> str:
    """The id that the run has by the place of its event: a fork has one of its own, and is done again where its parent lay."""
    if (place := file.place) is None or subjects.RUN in file.headers:
        return file.headers.get(subjects.RUN) or file.info.id
    return place_id(place.stream, place.created, Message(file.root.node, b"", {}, place.sequence, place.time))


def event_of(file: RunFile) -> NewMessage:
    """The event, with the headers that it had. Raises InvalidInput where its data cannot be written."""
    known: list[codecs.Codec] = [name for name, kind in _CODECS.items() if kind == file.content_type]
    codec: codecs.Codec = known[0] if known else "json"
    body, kind = codecs.encode(file.root.data, codec)
    said = {subjects.KEY: file.key, subjects.SESSION: file.session, subjects.TIME: file.time}
    said |= {subjects.CONTENT_TYPE: kind if kind != codecs.JSON else None}
    headers = {name: value for name, value in file.headers.items() if name not in _NOT_AGAIN}
    headers |= {name: value for name, value in said.items() if value is not None}
    if file.place is None:
        headers[subjects.RUN] = file.info.id  # so at least its calls and outputs are those of the run
    return NewMessage(file.root.node, body, headers)

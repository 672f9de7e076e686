"""Streams: made, widened and described."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from dspex.bus.errors import SubjectTaken
from dspex.bus.nats.connection import Connection
from dspex.bus.nats.consumer import NANOSECONDS
from dspex.bus.nats.failures import NAME_IN_USE, NO_STREAM, ServerRefusal
from dspex.bus.nats.stored import timestamp
from dspex.bus.nats.writer import stream_of
from dspex.bus.port import StreamConfig, StreamInfo
from dspex.bus.subjects import matches

_OWN: Final = "dspex"  # metadata key of a stream that dspex made


async def ensure(connection: Connection, config: StreamConfig) -> StreamInfo:
    """`Bus.ensure_stream`."""
    while True:
        found = await _info(connection, config.name)
        if found is None:
            try:
                return _described(await connection.api(f"STREAM.CREATE.{config.name}", _request(config)))
            except SubjectTaken as e:
                raise await _taken(connection, config) from e
            except ServerRefusal as e:
                if e.number != NAME_IN_USE:  # else somebody made it just now
                    raise
                continue
        subjects = _joined(found["config"].get("subjects") or [], config.subjects)
        if subjects == found["config"].get("subjects"):
            return _described(found)
        try:
            return _described(await connection.api(f"STREAM.UPDATE.{config.name}", {**found["config"], "subjects": subjects}))
        except SubjectTaken as e:
            raise await _taken(connection, config) from e


async def info(connection: Connection, name: str) -> StreamInfo | None:
    """`Bus.stream`."""
    found = await _info(connection, name)
    return None if found is None else _described(found)


async def make(connection: Connection, config: Mapping[str, object]) -> None:
    """Create a stream of exactly this configuration, unless one of the name is there."""
    try:
        await connection.api(f"STREAM.CREATE.{config['name']}", config)
    except ServerRefusal as e:
        if e.number != NAME_IN_USE:
            raise


async def _info(connection: Connection, name: str) -> dict[str, Any] | None:
    try:
        return await connection.api(f"STREAM.INFO.{name}", None)
    except ServerRefusal as e:
        if e.number != NO_STREAM:
            raise
        return None


def _request(config: StreamConfig) -> dict[str, object]:
    return {
        "name": config.name,
        "subjects": list(config.subjects),
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "num_replicas": config.replicas,
        "max_bytes": config.max_bytes,
        "max_msgs": config.max_messages,
        "duplicate_window": int(config.duplicate_window * NANOSECONDS),
        "allow_atomic": True,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "metadata": {_OWN: "stream"},
    }


def _described(answer: dict[str, Any]) -> StreamInfo:
    config, state = answer["config"], answer["state"]
    return StreamInfo(
        name=config["name"],
        subjects=tuple(config.get("subjects") or ()),
        created=timestamp(answer["created"]),
        first=state["first_seq"],
        last=state["last_seq"],
        messages=state["messages"],
        bytes=state["bytes"],
        replicas=config["num_replicas"],
        own=_OWN in (config.get("metadata") or {}),
        now=timestamp(answer["ts"]),
    )


def _covers(wide: str, narrow: str) -> bool:
    """Whether every subject of the pattern `narrow` is one of `wide`."""
    return matches(wide, narrow) and (wide.endswith(">") or not narrow.endswith(">"))


def _joined(have: Sequence[str], want: Iterable[str]) -> list[str]:
    """`have` and what it lacks of `want`; a pattern that a wider new one covers gives way, as a stream allows no overlap."""
    lacking = [w for w in want if not any(_covers(h, w) for h in have)]
    return [h for h in have if not any(_covers(w, h) for w in lacking)] + lacking


async def _taken(connection: Connection, config: StreamConfig) -> SubjectTaken:
    for subject in config.subjects:
        owner = await stream_of(connection, subject)
        if owner not in (None, config.name):
            return SubjectTaken(f"{subject} belongs to the stream {owner}")
    return SubjectTaken(f"the subjects of {config.name} overlap with another stream: {', '.join(config.subjects)}")

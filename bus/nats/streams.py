"""Streams: made, widened and described."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from dspex.bus.errors import BusError, StreamFull, SubjectTaken
from dspex.bus.nats.connection import Connection
from dspex.bus.nats.consumer import NANOSECONDS
from dspex.bus.nats.failures import NAME_IN_USE, NO_LIMIT, NO_PEERS, NO_STREAM, OVER_LIMIT, ServerRefusal, what_a_server_says
from dspex.bus.nats.stored import timestamp
from dspex.bus.nats.writer import stream_of, surely
from dspex.bus.port import MOST_ONCE, StreamConfig, StreamInfo
from dspex.bus.subjects import matches

_OWN: Final = "dspex"  # metadata key of a stream that dspex made
_NOTE: Final = "dspex.note"
_ONCE: Final = {"max_msgs_per_subject": 1, "discard_new_per_subject": True, "max_msg_size": MOST_ONCE, "discard": "new"}
_MOST: Final = 20 << 30  # bytes; where the search for the largest stream begins: 16 GiB, so that applications share a server
_LEAST: Final = 1 << 20
_SHARE: Final = 0.8  # of what could be reserved
_SHARES: Final = {"KV_": 0.01, "OBJ_": 0.1, "": 0.05}  # by prefix, of other streams, where the account wants limits
_ONE_AT_A_TIME: Final = WeakKeyDictionary[Connection, asyncio.Lock]()
_NEVER: Final = {"allow_msg_ttl": "message TTL", "allow_msg_schedules": "message schedules"}


async def ensure(connection: Connection, config: StreamConfig) -> StreamInfo:
    """`Bus.ensure_stream`."""
    found = await _info(connection, config.name)
    while found is None:
        try:
            return _described(await _created(connection, config))
        except SubjectTaken as e:
            raise await _taken(connection, config) from e
        except ServerRefusal as e:
            if e.number != NAME_IN_USE:  # else somebody made it just now
                raise
        found = await _info(connection, config.name)
    have = found["config"].get("subjects") or []
    changes: dict[str, object] = {"subjects": subjects} if (subjects := _joined(have, config.subjects)) != have else {}
    if config.max_bytes is not None and config.max_bytes != found["config"]["max_bytes"]:
        changes["max_bytes"] = config.max_bytes
    if found["config"]["max_age"] and config.max_age * NANOSECONDS > found["config"]["max_age"]:
        changes["max_age"] = int(config.max_age * NANOSECONDS)
    if config.once:  # also of one that somebody else has made
        changes |= {key: value for key, value in _ONCE.items() if found["config"].get(key) != value}
    if lacking := _sources(config, _copied(found["config"])):
        changes["sources"] = [*(found["config"].get("sources") or []), *lacking]
    if config.note and _noted(found["config"]) == config.instead_of:
        changes["metadata"] = {**(found["config"].get("metadata") or {}), _NOTE: config.note}
    if _OWN not in (found["config"].get("metadata") or {}):
        changes.pop("max_bytes", None)  # it has the limit that whoever made it wants
        _leave_as_it_is(found["config"], changes)
    try:
        try:
            return _described(await _updated(connection, found, changes))
        except ServerRefusal as e:
            if e.number != NO_LIMIT:
                raise
        changes.pop("max_bytes", None)  # the account wants one: it keeps what it was made with
        return _described(await _updated(connection, found, changes))
    except SubjectTaken as e:
        raise await _taken(connection, config) from e


def _leave_as_it_is(config: Mapping[str, Any], changes: Mapping[str, object]) -> None:
    """Raise BusError where a stream that dspex did not make would have to be changed: whoever made it may set it back."""
    lacking = {**changes, **({"allow_rollup_hdrs": False} if config.get("allow_rollup_hdrs") else {})}
    if lacking and not any(map(config.get, _NEVER)):
        name, wanted = config["name"], ", ".join(f"{key} = {value}" for key, value in lacking.items())
        raise BusError(
            f"stream {name} was not made by dspex, which changes no streams of others, and it needs: {wanted}",
            code="DX414",
            fix=f"change it yourself; or mark it as one of dspex: nats stream edit {name} --metadata dspex=stream; or use "
            "another application name (app)",
        )


async def info(connection: Connection, name: str) -> StreamInfo | None:
    """`Bus.stream`."""
    found = await surely(connection, lambda: _info(connection, name))
    return None if found is None else _described(found)


async def subjects_of(connection: Connection, name: str, pattern: str) -> list[str]:
    """The subjects of which a stream has messages, as its leader says, in order."""
    found: list[str] = []
    while True:  # a server gives so many at a time
        answer = await connection.api(f"STREAM.INFO.{name}", {"subjects_filter": pattern, "offset": len(found)})
        with what_a_server_says():
            page = list(answer["state"].get("subjects") or ())
            total = int(answer.get("total") or 0)
        found += page
        if not page or len(found) >= total:
            return sorted(found)


async def led_for(connection: Connection, name: str) -> float:
    """`Bus.led_for`."""
    found = await surely(connection, lambda: _info(connection, name))
    if found is None or found["config"]["num_replicas"] == 1:
        return math.inf
    with what_a_server_says():
        since = (found.get("cluster") or {}).get("leader_since")  # absent while there is no leader
        return timestamp(found["ts"]) - timestamp(since) if since else 0.0


async def make(connection: Connection, config: Mapping[str, object], always: Mapping[str, object] | None = None) -> None:
    """Make sure that there is a stream of this name without rollup, message TTL and schedules.

    One that is there keeps its configuration otherwise, but for `always`, and to find it needs no more than the right to look
    at it. BusError where one that dspex did not make would have to be changed.
    """
    found = await _info(connection, str(config["name"]))
    if found is None:
        try:
            await _limited(connection, {**config, "metadata": {_OWN: "stream"}})
        except ServerRefusal as e:
            if e.number != NAME_IN_USE:
                raise
    else:
        changes = {key: value for key, value in (always or {}).items() if found["config"].get(key) != value}
        if _OWN not in (found["config"].get("metadata") or {}):
            _leave_as_it_is(found["config"], changes)
        await _updated(connection, found, changes)


async def remove(connection: Connection, name: str) -> bool:
    """Delete a stream with its consumers and all that is in it; whether it was there."""
    try:
        await connection.api(f"STREAM.DELETE.{name}", None)
    except ServerRefusal as e:
        if e.number != NO_STREAM:
            raise
        return False
    return True


async def _info(connection: Connection, name: str) -> dict[str, Any] | None:
    try:
        found = await connection.api(f"STREAM.INFO.{name}", None)
        _described(found)  # else it is no answer of the server's
        return found
    except ServerRefusal as e:
        if e.number != NO_STREAM:
            raise
        return None


async def _created(connection: Connection, config: StreamConfig) -> dict[str, Any]:
    """Create it. `max_bytes` of None: find by trying what the server lets it reserve, and take most of that.

    Only that works everywhere: an account need not have a limit of its own, and no client may ask how large the disk is.
    """
    what = _request(config)
    if config.max_bytes is not None:
        return await _limited(connection, {**what, "max_bytes": config.max_bytes})
    return await _with_share(connection, what, _SHARE)


async def _limited(connection: Connection, config: Mapping[str, object]) -> dict[str, Any]:
    """Create a stream as it is described; with a limit where it has none and the account wants one of each."""
    try:
        return await connection.api(f"STREAM.CREATE.{config['name']}", config)
    except ServerRefusal as e:
        if e.number != NO_LIMIT:
            raise
    share = next((share for prefix, share in _SHARES.items() if str(config["name"]).startswith(prefix)), 0.0)
    return await _with_share(connection, config, share)


async def _with_share(connection: Connection, config: Mapping[str, object], share: float) -> dict[str, Any]:
    """Create a stream with this share of the largest `max_bytes` that the server would take.

    One at a time: a server that creates two at once grants the same bytes to both, and then lets neither be changed.
    """
    async with _ONE_AT_A_TIME.setdefault(connection, asyncio.Lock()):
        return await _with_share_of_the_rest(connection, config, share)


async def _with_share_of_the_rest(connection: Connection, config: Mapping[str, object], share: float) -> dict[str, Any]:
    size, name = _MOST, config["name"]
    while True:
        try:
            made = await connection.api(f"STREAM.CREATE.{name}", {**config, "max_bytes": size})
        except (StreamFull, ServerRefusal) as e:
            if size <= _LEAST or (isinstance(e, ServerRefusal) and e.number not in (NO_PEERS, OVER_LIMIT)):
                raise
            size = size * 4 // 5
        else:
            limited = {**made["config"], "max_bytes": max(int(size * share), _LEAST)}
            return await connection.api(f"STREAM.UPDATE.{name}", limited)


async def _updated(connection: Connection, found: dict[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """The stream with these changes to its configuration, and without rollup. BusError where it can never be safe."""
    config = found["config"]
    wrong = [word for key, word in _NEVER.items() if config.get(key)]
    if wrong:
        raise BusError(
            f"{config['name']} has {' and '.join(wrong)} switched on, and no server switches that off again",
            code="DX412",
            fix=f"choose another application name (app); or remove it: nats stream rm {config['name']}; or with all that the "
            "application has: dspex delete",
        )
    if config.get("allow_rollup_hdrs"):
        changes = {**changes, "allow_rollup_hdrs": False}
    if not changes:
        return found
    return await connection.api(f"STREAM.UPDATE.{config['name']}", {**config, **changes})


def _request(config: StreamConfig) -> dict[str, object]:
    return {
        "name": config.name,
        "subjects": list(config.subjects),
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "num_replicas": config.replicas,
        "max_msgs": config.max_messages,
        "max_age": int(config.max_age * NANOSECONDS),
        "max_consumers": config.max_consumers,
        "duplicate_window": int(config.duplicate_window * NANOSECONDS),
        "allow_atomic": True,
        "allow_direct": True,
        "sources": _sources(config, {}),
        "metadata": {_OWN: "stream", **({_NOTE: config.note} if config.note else {})},
        **(_ONCE if config.once else {}),
    }


@what_a_server_says()
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
        retention=config["retention"],
        max_bytes=config["max_bytes"],
        max_messages=config.get("max_msgs", -1),
        max_age=config.get("max_age", 0) / NANOSECONDS,
        trims=config.get("discard", "old") == "old",
        note=_noted(config),
        copies=_copied(config),
    )


def _sources(config: StreamConfig, have: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """What a stream lacks of its copies, as the server takes it."""
    wanted = [(stream, pattern) for stream, patterns in config.copies.items() for pattern in patterns]
    lacking = [(stream, pattern) for stream, pattern in wanted if pattern not in have.get(stream, ())]
    return [{"name": stream, "filter_subject": pattern} for stream, pattern in lacking]


def _copied(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The streams that a stream copies, with the subjects. One that changes subjects on the way copies nothing."""
    copies: dict[str, list[str]] = {}
    for source in config.get("sources") or []:
        if not source.get("subject_transforms") and not source.get("external"):
            copies.setdefault(source["name"], []).append(source.get("filter_subject") or ">")
    return copies


def _noted(config: Mapping[str, Any]) -> str:
    return str((config.get("metadata") or {}).get(_NOTE, ""))


def covers(wide: str, narrow: str) -> bool:
    """Whether every subject of the pattern `narrow` is one of `wide`."""
    return matches(wide, narrow) and (wide.endswith(">") or not narrow.endswith(">"))


def _joined(have: Sequence[str], want: Iterable[str]) -> list[str]:
    """`have` and what it lacks of `want`; a pattern that a wider new one covers gives way, as a stream allows no overlap."""
    lacking = [w for w in want if not any(covers(h, w) for h in have)]
    return [h for h in have if not any(covers(w, h) for w in lacking)] + lacking


async def _taken(connection: Connection, config: StreamConfig) -> SubjectTaken:
    for subject in config.subjects:
        owner = await stream_of(connection, subject)
        if owner not in (None, config.name):
            return SubjectTaken(f"{subject} belongs to the stream {owner}")
    return SubjectTaken(f"the subjects of {config.name} overlap with another stream: {', '.join(config.subjects)}")

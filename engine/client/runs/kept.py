"""Runs that are in no log, kept as files in a bucket: those that were imported, and those that others make of runs of the past.

    key `run.<id>`              what is known of it, and of its file; see `_Head`
    key `part.<id>.<hash>.<n>`  a piece of its file, sealed with the key of the run's session where payloads are

The pieces are put first, so what is named is there. Nobody changes a file: the same one again is nothing new, and another one
with the id of a run is refused. After `engine.records` they are removed, as records of interactive calls are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import structlog
from typing_extensions import TypedDict

from dspex.bus import codecs, subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.codecs.json import json_bytes, load_json
from dspex.bus.errors import (
    ConfigError,
    DataError,
    DecodeError,
    Fenced,
    NotAllowed,
    RecordingIncomplete,
    RunError,
    RunNotFound,
    Unsettled,
)
from dspex.bus.message import Message, id_time, in_session
from dspex.bus.port import Bucket, Bus, NewMessage
from dspex.bus.serving import payloads
from dspex.bus.serving.keys.clear_text import SETTING, may_store
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.client.runs.export import MAKE, RunFile, read, read_info, written
from dspex.engine.client.runs.history import history
from dspex.engine.client.runs.tree import Tree
from dspex.engine.graph.manifest import Manifest

PIECE: Final = 512 << 10  # bytes of a file in one message
IMPORTED: Final = "imported"
_log = structlog.get_logger("dspex.client")


class _Head(TypedDict):
    """What is known of a kept run. `how` it came to be kept; `pieces` that its file has, and the `hash` of that."""

    v: int
    how: str
    info: dict[str, Any]
    session: str | None
    pieces: int
    hash: str


class _Piece(TypedDict):
    seal: str
    body: bytes


async def keep(bus: Bus, app: str, text: bytes, how: str) -> RunFile:
    """Keep a run. `text`: its file, as `export.written` gives it. `how` it came to be: a word, which `RunInfo.kept` has.

    Raises DecodeError where it is no such file, RunError (DX628) where another run with its id is kept; BusError.
    """
    file = read(text, "what is to be kept")
    info, hash = file.info, sha256(text).hexdigest()
    if id_time(info.id) is None or not subjects.is_token(info.id):
        raise DecodeError(f"{info.id!r} is no id of a run", fix=MAKE)
    await may_store(bus, app)
    bucket, key = await bus.bucket(subjects.kept(app)), subjects.kept_run(info.id)
    if (before := _head(await bucket.get(key))) is None:
        size = min(PIECE, payloads.inline(bus) - payloads.ROOM)
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        for number, piece in enumerate(pieces):
            await bucket.put(subjects.kept_part(info.id, hash[:16], number), await _packed(bus, file.session, piece))
        told = {**vars(info), "usage": vars(info.usage)}
        head = {"v": 1, "how": how, "info": told, "session": file.session, "pieces": len(pieces), "hash": hash}
        try:
            await bucket.put(key, json_bytes(head), revision=0)
        except (Fenced, Unsettled):
            before = _head(await bucket.get(key))
    if before is not None and before["hash"] != hash:
        raise _other(info.id)
    return replace(file, info=replace(info, kept=how if before is None else before["how"]))


async def imported(bus: Bus, app: str, manifests: Mapping[str, Manifest], path: Path) -> RunFile:
    """Keep the run of an exported file. Raises as `keep`; RunError (DX628) where the logs have another one with its id, too."""
    try:
        text = await asyncio.to_thread(path.read_bytes)
    except OSError as error:
        raise DecodeError(f"{path} cannot be read: {error.strerror}", fix=MAKE) from None
    file = read(text, str(path))
    try:
        past = await history(bus, app, manifests, file.info.id)
        here = read(written(RunFile.of(file.info, Tree(past, manifests).root, past)), "what is here")
    except (RunNotFound, RecordingIncomplete):  # of what is nearly past its retention, some may be gone
        return await keep(bus, app, text, IMPORTED)
    if here.root != file.root:
        raise _other(file.info.id)
    return await keep(bus, app, text, IMPORTED)


def _other(id: str) -> RunError:
    fix = "look at what is here: dspex runs show"
    return RunError(f"there is another run {id} here, which did something else", code="DX628", run=id, fix=fix)


async def kept(bus: Bus, app: str, run: str) -> RunFile | None:
    """A kept run by its full id; None where there is none. Raises DataError (DX511) where its session was forgotten, NotAllowed
    where it is sealed and this process has no key; BusError.
    """
    if not subjects.is_token(run) or (bucket := await _opened(bus, app)) is None:
        return None
    if (head := _head(await bucket.get(subjects.kept_run(run)))) is None:
        return None
    pieces = list[bytes]()
    for number in range(head["pieces"]):
        stored = await bucket.get(subjects.kept_part(run, head["hash"][:16], number))
        if stored is None:
            return None  # what is too old goes piece by piece
        pieces.append(await _unpacked(bus, run, head["session"], stored[0]))
    if sha256(text := b"".join(pieces)).hexdigest() != head["hash"]:
        raise DecodeError(f"the kept run {run} is damaged: it is not what was stored", fix="import it again")
    file = read(text, f"the kept run {run}")
    return replace(file, info=replace(file.info, kept=head["how"]))


async def infos(bus: Bus, app: str, run: str = "") -> dict[str, RunInfo]:
    """What is known of all kept runs, by their ids; the latest first. `run`: only of this one. Raises BusError."""
    if (run and not subjects.is_token(run)) or (bucket := await _opened(bus, app)) is None:
        return {}
    some = {"": await bucket.get(subjects.kept_run(run))} if run else await bucket.items(subjects.KEPT_RUN)
    heads = [head for stored in some.values() if (head := _head(stored)) is not None]
    found = [replace(read_info(head["info"]), kept=head["how"]) for head in heads]
    return {info.id: info for info in sorted(found, key=lambda info: info.started, reverse=True)}


async def revision(bus: Bus, app: str) -> int:
    """That of what was kept or removed last; 0 for nothing. Raises BusError."""
    return await bucket.revision() if (bucket := await _opened(bus, app)) is not None else 0


async def of_session(bus: Bus, app: str, session: str) -> list[str]:
    """The kept runs of a session, whether or not they can be read. Raises BusError."""
    if (bucket := await _opened(bus, app)) is None:
        return []
    heads = [head for stored in (await bucket.items(subjects.KEPT_RUN)).values() if (head := _head(stored)) is not None]
    return [str(head["info"]["id"]) for head in heads if head["session"] == session]


async def remove(bus: Bus, app: str, run: str) -> bool:
    """Remove a kept run; whether there was one. Raises BusError."""
    if not subjects.is_token(run) or (bucket := await _opened(bus, app)) is None:
        return False
    if (head := _head(await bucket.get(subjects.kept_run(run)))) is None:
        return False
    await bucket.delete(subjects.kept_run(run))
    for number in range(head["pieces"]):
        await bucket.delete(subjects.kept_part(run, head["hash"][:16], number))
    return True


def not_apart(run: str, session: str | None) -> ConfigError:
    """The error of a run of the logs that is to be forgotten by itself."""
    shared = "it belongs to none" if session is None else f"its session {session} shares one key"
    fix = "publish with session=, which can be forgotten" if session is None else f"dspex runs forget --session {session}"
    return ConfigError(f"run {run} is not sealed apart: {shared}", code="DX125", fix=fix)


async def _opened(bus: Bus, app: str) -> Bucket | None:
    """The bucket, where there is one, and this process may look."""
    try:
        return await bus.bucket(name) if await bus.has("bucket", name := subjects.kept(app)) else None
    except NotAllowed:
        return None


def _head(stored: tuple[bytes, int] | None) -> _Head | None:
    """What is known of a run; None for what is none, whoever wrote it."""
    if stored is None:
        return None
    try:
        head: _Head = checked(_Head, "what is known of a run", load_json(stored[0]))
        read_info(head["info"])
    except (DecodeError, KeyError, TypeError, ValueError) as error:
        _log.warning("a kept run cannot be read", why=str(error))
        return None
    return head


async def _packed(bus: Bus, session: str | None, piece: bytes) -> bytes:
    seal = ""
    if bus.sealing is not None:
        sealed = await bus.sealing.sealed(NewMessage("", piece, in_session(session)))
        piece, seal = sealed.data, (sealed.headers or {})[subjects.SEALED]
    return codecs.msgpack_bytes({"seal": seal, "body": piece})


async def _unpacked(bus: Bus, run: str, session: str | None, stored: bytes) -> bytes:
    piece: _Piece = checked(_Piece, "a piece of a run", codecs.decode(stored, codecs.MSGPACK))
    if not piece["seal"]:
        return piece["body"]
    if bus.sealing is None:
        raise NotAllowed(f"run {run} is sealed, and this process has no key", fix=f'set {SETTING} = "NAME"')
    headers = {subjects.SEALED: piece["seal"], **in_session(session)}
    if (opened := await bus.sealing.opened(Message("", piece["body"], headers, 0, 0.0))) is None:
        raise DataError(
            f"run {run} cannot be read: its session was forgotten", code="DX511", run=run, fix="nothing brings it back"
        )
    return opened.data

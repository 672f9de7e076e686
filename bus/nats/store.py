"""Keys and objects, laid out as NATS tools expect them (ADR-8, ADR-20), so that `nats kv` and `nats object` show them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from dspex.bus.errors import DataError, Fenced, NotAllowed, NotStored
from dspex.bus.message import Message
from dspex.bus.nats import stored, streams, writer
from dspex.bus.nats.connection import Connection
from dspex.bus.port import COMMIT_LIMIT, NewMessage

_CHUNK: Final = 512 * 1024
_CHUNKS_A_PAGE: Final = 16
_TIMEOUT: Final = 5.0
_BIG_TIMEOUT: Final = 60.0  # an object of many chunks is one atomic batch
_OF_MARKS: Final = frozenset({"KV-Operation", "Nats-Rollup", "Nats-TTL", "Nats-Marker-Reason"})  # of a key that was deleted


@dataclass(frozen=True)
class NatsBucket:
    """`dspex.bus.port.Bucket` on a key-value bucket with a history of 1.

    nats-py's own leaves a consumer behind for five minutes after each listing, and the server allows 1000 of them.
    """

    _connection: Connection
    _name: str

    @property
    def _stream(self) -> str:
        return f"KV_{self._name}"

    def _subject(self, key: str) -> str:
        return f"$KV.{self._name}.{key}"

    async def ensure(self, replicas: int, once: bool) -> NatsBucket:
        """Make the bucket if it is missing. Not as the usual clients do: with rollup, who may write may also remove."""
        strict = {"discard_new_per_subject": True} if once else {}
        config = {
            "name": self._stream,
            "subjects": [self._subject(">")],
            "num_replicas": replicas,
            "max_msgs_per_subject": 1,
            "discard": "new",
            "deny_delete": True,
            "allow_direct": True,
            **strict,
        }
        await streams.make(self._connection, config, strict)
        return self

    async def get(self, key: str) -> tuple[bytes, int] | None:
        message = await self._last(key)
        value = _value(message) if message is not None else None
        return None if message is None or value is None else (value, message.sequence)

    async def put(self, key: str, value: bytes, *, revision: int | None = None) -> int:
        draft = NewMessage(self._subject(key), value, expect=revision)
        try:
            return (await writer.publish(self._connection, draft, _TIMEOUT)).sequence
        except Fenced:
            if revision != 0 or (mark := await self._last(key)) is None or _value(mark) is not None:
                raise
            # Another tool deleted the key and left its mark: for us there is no such key, so it may be created.
            return (await writer.publish(self._connection, draft._replace(expect=mark.sequence), _TIMEOUT)).sequence

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        # No delete mark: it would stay for ever, and stand in the way of the next put(revision=0).
        below = {} if revision is None else {"seq": revision + 1}
        await self._connection.api(f"STREAM.PURGE.{self._stream}", {"filter": self._subject(key), **below})

    async def items(self, prefix: str = "", *, after: int = 0) -> dict[str, tuple[bytes, int]]:
        wanted = [self._subject(prefix), self._subject(f"{prefix}.>")] if prefix else [self._subject(">")]
        # Of any replica, so it may lag a little where there are several: enough to see who is alive, and one round trip.
        messages = None if after else await stored.direct(self._connection, self._stream, {"multi_last": wanted})
        if after:  # one by one: who may only look may make no consumer
            messages = [m for subject in wanted async for m in self._behind(subject, after)]
        elif messages is None:  # over 1024 keys
            info = await streams.info(self._connection, self._stream)
            messages = await stored.scan(self._connection, self._stream, wanted, 1, info.last if info else 0)
        start = len(self._subject(""))
        return {m.subject[start:]: (value, m.sequence) for m in messages if (value := _value(m)) is not None}

    async def revision(self) -> int:
        info = await streams.info(self._connection, self._stream)
        return info.last if info is not None else 0

    async def expire(self, prefix: str, before: float) -> None:
        info = await streams.info(self._connection, self._stream)
        low, high = (info.first, info.last + 1) if info is not None else (1, 1)
        while low < high:  # the first message that stays, found by halving
            middle = (low + high) // 2
            found = await stored.message(self._connection, self._stream, {"seq": max(middle, 1), "next_by_subj": ">"})
            if found is not None and found.sequence < high and found.time < before:
                low = found.sequence + 1
            else:
                high = middle
        await stored.purge(self._connection, self._stream, self._subject(f"{prefix}.>"), low)

    async def latest(self, prefix: str) -> bytes | None:
        found = await self.get(f"{prefix}.*")
        return found[0] if found is not None else None

    async def time(self) -> float:
        if (info := await streams.info(self._connection, self._stream)) is None:
            raise NotStored(f"there is no bucket {self._name}")
        return info.now

    async def keys(self) -> list[str]:
        start = len(self._subject(""))
        return [subject[start:] for subject in await streams.subjects_of(self._connection, self._stream, self._subject(">"))]

    async def _behind(self, subject: str, after: int) -> AsyncIterator[Message]:
        ask = {"next_by_subj": subject}
        while (found := await stored.message(self._connection, self._stream, {"seq": after + 1, **ask})) is not None:
            yield found
            after = found.sequence

    async def _last(self, key: str) -> Message | None:
        return await stored.message(self._connection, self._stream, {"last_by_subj": self._subject(key)})


def _value(message: Message) -> bytes | None:
    """What was put under a key; None where another tool deleted it.

    Who puts writes no headers. A message that has some was stored elsewhere, and somebody had the server send it to the key: a
    copy says where it is from, and an event has an id. That is no value: b"", which nothing takes for one.
    """
    if not message.headers:
        return message.data
    is_mark = message.headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in message.headers
    return None if is_mark and message.headers.keys() <= _OF_MARKS else b""


@dataclass(frozen=True)
class NatsObjects:
    """`dspex.bus.port.Objects` on an object store whose names are content hashes.

    An object is removed as the usual clients do it: metadata that says `deleted`, then its chunks. Here that is written only
    behind the metadata that was looked at, and only older chunks go, so that who puts the same at that moment loses nothing.

    nats-py's own puts each chunk with a round trip, and gets by adding to bytes, which is quadratic: 16 MiB take a second.
    """

    _connection: Connection
    _name: str

    @property
    def _stream(self) -> str:
        return f"OBJ_{self._name}"

    def _chunks(self, name: str) -> str:
        return f"$O.{self._name}.C.{name}"

    def _meta(self, name: str) -> str:
        return f"$O.{self._name}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def ensure(self, replicas: int) -> NatsObjects:
        """Make the store if it is missing; without rollup, see NatsBucket."""
        config = {
            "name": self._stream,
            "subjects": [f"$O.{self._name}.C.>", f"$O.{self._name}.M.>"],
            "num_replicas": replicas,
            "discard": "new",
            "allow_direct": True,
            "allow_atomic": True,
        }
        await streams.make(self._connection, config)
        return self

    async def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data)
        name = digest.hexdigest()
        size = min(_CHUNK, self._connection.max_payload // 2)
        chunks = [NewMessage(self._chunks(name), data[i : i + size]) for i in range(0, len(data), size)]
        if len(chunks) >= COMMIT_LIMIT:
            raise DataError(f"an object of {len(data)} bytes: at most {size * (COMMIT_LIMIT - 1)} are possible")
        meta = {
            "name": name,
            "bucket": self._name,
            "nuid": name,
            "size": len(data),
            "chunks": len(chunks),
            "digest": "SHA-256=" + base64.urlsafe_b64encode(digest.digest()).decode(),
        }
        while True:
            try:
                await self._write(name, chunks, json.dumps(meta).encode())
            except Fenced:
                continue  # somebody puts the same, or removes it: look again
            return name

    async def _write(self, name: str, chunks: list[NewMessage], meta: bytes) -> None:
        """All chunks and then the metadata, or only new metadata where the bytes are there: of those the last count."""
        known = await self._info(name)
        head = NewMessage(self._meta(name), meta, expect=known.sequence if known is not None else 0)
        if known is None or "deleted" in _metadata(known):
            await writer.commit(self._connection, [*chunks, head], _BIG_TIMEOUT)
        else:
            if isinstance(_metadata(known).get("chunks"), int):  # other chunks than now, where max_payload was changed since
                head = head._replace(data=known.data)
            await writer.publish(self._connection, head, _TIMEOUT)
            with suppress(NotAllowed):  # who may not remove anything leaves it: the last metadata counts
                await self._connection.api(f"STREAM.PURGE.{self._stream}", {"filter": head.subject, "keep": 1})

    async def get(self, name: str) -> bytes | None:
        info = await self._info(name)
        if info is None or "deleted" in (meta := _metadata(info)):
            return None
        parts: list[bytes] = []
        count, position = meta.get("chunks"), 1
        if not isinstance(count, int) or count >= COMMIT_LIMIT:
            raise DataError(f"object {name} is not one of dspex: its metadata has no number of chunks that it could have")
        while len(parts) < count:
            where = {"seq": position, "next_by_subj": self._chunks(name)}
            page = await stored.direct(self._connection, self._stream, {"batch": _CHUNKS_A_PAGE, **where})
            if not page:  # that replica may lag behind the leader
                page = [m] if (m := await stored.message(self._connection, self._stream, where)) else []
            if not page:
                raise DataError(f"object {name} has {len(parts)} of {count} chunks: it was purged")
            parts += [m.data for m in page]
            position = page[-1].sequence + 1
        data = b"".join(parts)
        if hashlib.sha256(data).hexdigest() != name:
            raise DataError(f"object {name} is damaged: its bytes have another hash", fix="look at the server's disk")
        return data

    async def listing(self) -> dict[str, float]:
        info = await streams.info(self._connection, self._stream)
        pattern = f"$O.{self._name}.M.>"
        found = await stored.scan(self._connection, self._stream, [pattern], 1, info.last if info else 0)
        return {name: m.time for m in found if isinstance(name := _metadata(m).get("name"), str)}  # the last one counts

    async def remove(self, name: str, put: float) -> bool:
        known = await self._info(name)
        if known is None or known.time != put:
            return False
        mark = json.dumps({"name": name, "bucket": self._name, "nuid": name, "size": 0, "chunks": 0, "deleted": True}).encode()
        try:
            draft = NewMessage(self._meta(name), mark, expect=known.sequence)
            marked = (await writer.publish(self._connection, draft, _TIMEOUT)).sequence
        except Fenced:
            return False
        await stored.purge(self._connection, self._stream, self._chunks(name), marked)
        await stored.purge(self._connection, self._stream, draft.subject, marked + 1)
        return True

    async def _info(self, name: str) -> Message | None:
        return await stored.message(self._connection, self._stream, {"last_by_subj": self._meta(name)})


def _metadata(info: Message) -> dict[str, object]:
    """What the last metadata of an object says; {} where it is none."""
    try:
        found = json.loads(info.data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}

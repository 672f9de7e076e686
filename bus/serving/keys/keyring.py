"""Sealed payloads: bodies that only who has the key can read, and that nobody can read once their session's key is deleted.

    header `Dspex-Sealed`    v1, and the name of the key: 32 hex digits of an HMAC of the session's id
    body                     a nonce of 12 bytes, and what AES-256-GCM makes of the body, with that header as additional data

Each session has a key, drawn at random; what belongs to none shares one. They lie in a stream of their own, each sealed with a
key from the environment (`engine.encrypt_key_env`). That stream takes one message of a subject, so who may add keys cannot
replace one, which would destroy all that it has sealed. To forget a session is to delete its key.

The one from the environment names the keys, too. So nobody without it can put something in the place of a key to come; and a
new one seals with keys of its own, so that the old one is done with once all that those of old have sealed is past. Which one
seals now is noted at the stream, by engines: everybody goes by that, and who has not that one neither seals nor gives up
anything.

The nonce is derived from key and body: the same message sealed again, by another process or after a crash, gives the same
bytes, so that its payload is stored once and a second write can be told from another message. GCM breaks where one nonce serves
two bodies; of 96 bits of an HMAC that is to be expected after 2^48 bodies of one session.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import structlog

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, Fenced, NotAllowed, NotStored, Unreachable
from dspex.bus.message import Message
from dspex.bus.port import Bus, NewMessage, StreamConfig
from dspex.bus.serving.keys.ciphers import KEY, SessionKey, Wrapping, unwrapped
from dspex.bus.serving.keys.clear_text import SETTING, need_none
from dspex.bus.serving.keys.hashes import opened_headers
from dspex.bus.serving.keys.new_leader import shown
from dspex.bus.serving.keys.secrets import secrets_of

LIFE: Final = 60.0  # seconds for which a process goes on with a key that somebody may have deleted meanwhile
JUST_NOW: Final = 0.2  # seconds for which it believes that it has the key of the application, before it gives up a message
MOST_KEYS: Final = 10_000  # that a process keeps at hand
_VERSION: Final = "v1 "
_WHERE: Final = (
    "events until they are read and past their topology's retention, logs, requests and events over hops until that, records "
    "until that and engine.records, imported runs until engine.records, sessions until their ttl, answers to submitted calls "
    "for 30 days, cached answers for their time; sinks, dead letters, scores and streams of others until somebody removes them"
)
_log = structlog.get_logger("dspex.bus")


def stream(app: str, replicas: int = 1, note: str = "", instead_of: str = "") -> StreamConfig:
    """The stream of an application's keys. `note`: the name of the key that seals what belongs to no session."""
    return StreamConfig(subjects.keys(app), [subjects.key(app, "*")], replicas, once=True, note=note, instead_of=instead_of)


class Keyring:
    """Seals and opens with the keys of an application: `Bus.sealing`.

    Args:
        named: what the setting says, variables with a comma between them: all of them open, and the first one's key seals from
            when an engine starts with it.
    """

    def __init__(self, bus: Bus, app: str, named: str, environ: Mapping[str, str] = os.environ) -> None:
        self._bus, self.app, self._named, self._environ = bus, app, named, environ
        self._wrapping: list[Wrapping] = []
        self._at_hand: dict[str, SessionKey] = {}
        self._seals: Wrapping | None = None  # the one that seals now, as the stream says
        self._verified = -math.inf  # when that was, on the monotonic clock

    async def verify(self) -> None:
        """Raise ConfigError (DX112) where a variable is not set; (DX124) where the application's keys were sealed with another
        key. (DX105) where the package is missing.
        """
        known = {wrapping.name_of(""): wrapping for wrapping in reversed(self._wrapped_with())}
        info = await self._bus.stream(subjects.keys(self.app))
        if info is None or not info.note:
            return
        if info.note not in known:
            raise ConfigError(
                f"the payloads of {self.app} are sealed with another key than the one in {self._named}",
                code="DX124",
                fix=f"name the variable with that one, too: {SETTING} = 'NEW,OLD'",
                node=SETTING,
            )
        self._seals, self._verified = known[info.note], time.monotonic()

    async def establish(self, replicas: int) -> None:
        """Make the stream of keys; from now on the first key seals. Raises as `verify`."""
        await self.verify()
        first = self._wrapped_with()[0].name_of("")
        before = self._seals.name_of("") if self._seals is not None else ""  # nobody else's is replaced
        await self._bus.ensure_stream(stream(self.app, replicas, first, before))
        await self.verify()

    async def _sealing_with(self, within: float = LIFE) -> Wrapping:
        """The key from the environment that seals now, or did `within` these seconds. Raises NotAllowed where this process has
        it not: nobody else could open what it seals, and what it cannot open is not lost.
        """
        wrappings = self._wrapped_with()
        if time.monotonic() - self._verified > within:
            try:
                await self.verify()
            except ConfigError as e:
                raise NotAllowed(e.message, fix=e.fix) from e
        return self._seals or wrappings[0]

    async def prepare(self, messages: Iterable[NewMessage]) -> None:
        """Ask for the keys of these together, and make those that are missing."""
        seals = await self._sealing_with()
        names = {seals.name_of((m.headers or {}).get(subjects.SESSION, "")) for m in messages}
        await self._fetch(names)
        await asyncio.gather(*(self._made(seals, name) for name in names if not self._fresh(name)))

    async def at_hand(self, messages: Sequence[Message]) -> None:
        """Ask for the keys of these together, of a replica: `opened` asks the leader about the rest, one by one."""
        await self._fetch({name for m in messages if subjects.SEALED in m.headers and (name := self._key_of(m))})

    async def opened_early(self, messages: Sequence[Message]) -> list[Message]:
        """The same messages, those opened whose keys a replica has."""
        await self.at_hand(messages)
        return [self._opened_at_once(m) or m if subjects.SEALED in m.headers else m for m in messages]

    async def sealed(self, message: NewMessage) -> NewMessage:
        """The message with a body that only who has the key can read, under the key of its session. Raises BusError."""
        seals, headers, data = await self._sealing_with(), message.headers or {}, message.data
        name = seals.name_of(headers.get(subjects.SESSION, ""))
        key = self._fresh(name) or await self._made(seals, name)
        if key is None:  # who may add keys put something in the place of one that was deleted: see `forget`
            _log.error("the key of a session cannot be used: its payloads are sealed with that of the application", key=name)
            name = seals.name_of("")
            key = self._fresh(name) or await self._made(seals, name)
        if key is None:
            what, there = "the key of the application cannot be opened any more", subjects.key(self.app, name)
            raise Unreachable(what, fix=f"remove what somebody put at {there} in {subjects.keys(self.app)}")
        label = _VERSION + name
        return message._replace(data=key.sealed(data, label.encode()), headers={**headers, subjects.SEALED: label})

    async def opened(self, message: Message) -> Message | None:
        """The message with its own body; None where its key was deleted, or it is not what the key sealed. Raises BusError;
        NotAllowed where this process has another key than the application.
        """
        whole, name = self._opened_at_once(message), self._key_of(message)
        if whole is None:
            await self._sealing_with(LIFE if name else JUST_NOW)
        if whole is None and name:
            await self._found(name)  # it is not at hand; or its session was forgotten meanwhile, and has a new key
            whole = self._opened_at_once(message)
        if whole is None:
            where = {"subject": message.subject, "sequence": message.sequence, "key": name}
            _log.error("a sealed payload cannot be opened: its session was forgotten, or nobody with a key sealed it", **where)
        return whole

    async def forget(self, session: str) -> int:
        """Delete the keys of a session, and what was put in the place of one; how many could be opened."""
        await self._sealing_with()
        count = 0
        for one in [wrapping.name_of(session) for wrapping in self._wrapped_with()]:
            if (message := await self._stored(one)) is not None:
                count += self._unwrapped(one, message.data) is not None
                await self._bus.delete(subjects.keys(self.app), message.sequence, erase=True)
            self._at_hand.pop(one, None)
        return count

    def _key_of(self, message: Message) -> str:
        """The name of the key that a message says it is sealed with; "" for one that is neither its session's nor that of what
        belongs to none. Whoever may publish can write what they like: under another session it would outlive its own.
        """
        name, session = message.headers[subjects.SEALED].removeprefix(_VERSION), message.headers.get(subjects.SESSION, "")
        for wrapping in self._wrapped_with():
            if name in (wrapping.name_of(session), wrapping.name_of("")):
                return name
        return ""

    def _opened_at_once(self, message: Message) -> Message | None:
        """The message with its own body, if the key is at hand, and is the one."""
        label, data = message.headers[subjects.SEALED], message.data
        key = self._fresh(self._key_of(message))
        body = key.opened(data, label.encode()) if key is not None else None
        if body is None:
            return None
        return message._replace(data=body, headers=opened_headers(message))

    def _fresh(self, name: str) -> SessionKey | None:
        """A key that is at hand, and not for too long."""
        key = self._at_hand.get(name)
        return key if key is not None and key.until > time.monotonic() else None

    async def _fetch(self, names: Iterable[str]) -> None:
        """Ask any replica for the keys that are not at hand: what it has is right, and what it has not the leader may have."""
        missing = [subjects.key(self.app, name) for name in names if not self._fresh(name)]
        if len(missing) > 1:
            with suppress(NotStored):  # there is no such stream
                found = await self._bus.multi_last(subjects.keys(self.app), missing)
                for subject, message in found.items():
                    self._unwrapped(subject.rpartition(".")[2], message.data)

    async def _stored(self, name: str) -> Message | None:
        """A key as it is stored; None where there is none. A replica that is behind would have what was sealed just now for
        lost, and so would one that leads since a moment ago.
        """
        keys, subject = subjects.keys(self.app), subjects.key(self.app, name)
        try:
            return await shown(self._bus, "stream", keys, lambda: self._bus.last(keys, subject))
        except NotStored:  # there is no such stream
            return None

    async def _found(self, name: str) -> SessionKey | None:
        message = await self._stored(name)
        self._at_hand.pop(name, None)
        return self._unwrapped(name, message.data) if message is not None else None

    async def _made(self, seals: Wrapping, name: str) -> SessionKey | None:
        """A key, drawn where there is none; None where what is there is none of ours."""
        subject = subjects.key(self.app, name)
        while True:
            key = os.urandom(KEY)
            draft = NewMessage(subject, seals.wrapped(key, self._label(name)), expect=0)
            try:
                if (message := await self._bus.last(subjects.keys(self.app), subject)) is not None:
                    self._at_hand.pop(name, None)
                    return self._unwrapped(name, message.data)
                await self._bus.publish(draft)
                return self._kept(name, key)
            except Fenced:
                continue  # somebody else was quicker
            except NotStored as e:
                why = f"the keys of {self.app} have no stream yet"
                raise Unreachable(why, fix=f"start an engine that has {SETTING}, or apply: dspex apply") from e

    def _unwrapped(self, name: str, data: bytes) -> SessionKey | None:
        """A key as it is stored."""
        if (key := unwrapped(self._wrapped_with(), data, self._label(name))) is not None:
            return self._kept(name, key)
        _log.error("a key cannot be opened: it was sealed with another one, or is none", key=name, setting=self._named)
        return None

    def _kept(self, name: str, key: bytes) -> SessionKey:
        while len(self._at_hand) >= MOST_KEYS:
            del self._at_hand[next(iter(self._at_hand))]
        made = self._at_hand[name] = SessionKey.of(key, time.monotonic() + LIFE)
        return made

    def _label(self, name: str) -> bytes:
        """What a key is bound to: put under another name, or into another application, it opens nothing."""
        return f"{_VERSION}{self.app}/{name}".encode()

    def _wrapped_with(self) -> list[Wrapping]:
        """What opens the keys; the first one seals new ones. Read when it is needed: most verbs do without."""
        if not self._wrapping:
            found = secrets_of(self._named, "engine", "encrypt_key_env", self._environ)
            try:
                self._wrapping = [Wrapping.of(secret) for secret in found]
            except ImportError as e:
                text = f"{SETTING} needs a package that is not installed: cryptography"
                raise ConfigError(text, code="DX109", fix="pip install 'dspex[encrypt]'", node=SETTING) from e
        return self._wrapping


async def forget(bus: Bus, app: str, session: str, found: Sequence[str] = ()) -> int:
    """Delete the keys of a session, and their bytes on the server's disk: nobody can read any more what they have sealed. How
    many. Processes that have used one lately can go on with it for `LIFE` seconds. `found`: what there is of it, for the error.

    Raises ConfigError: DX125 where the application seals nothing, so that there is nothing that could be forgotten; DX124 where
    this process has no key; DX105 for no session: what belongs to none cannot be forgotten apart.
    """
    if not session:
        raise ConfigError("it is not said which session is to be forgotten", code="DX105", fix="give its id", node="session")
    if not await bus.has("stream", subjects.keys(app)):
        raise ConfigError(
            f"the payloads of {app} are stored in clear text, so no session of it can be forgotten: it keeps {_WHERE}. "
            f"Of this session there are now: {'; '.join(found) or 'no messages'}; logs and events over hops are not told apart",
            code="DX125",
            fix=f"encrypt what is stored from now on: {SETTING}; what lies there is for you to purge",
            node=SETTING,
        )
    if bus.sealing is None:
        await need_none(bus, app)
    return await bus.sealing.forget(session) if bus.sealing is not None else 0

"""Sealed payloads: bodies that only who has the key can read, and that nobody can read once their session's key is deleted.

    header `Dspex-Sealed`    v1, and the name of the key: 32 hex digits of the SHA-256 of the session's id
    body                     a nonce of 12 bytes, and what AES-256-GCM makes of the body, with that header as additional data

Each session has a key, drawn at random; what belongs to none shares one. They lie in a stream of their own, each sealed with a
key from the environment (`engine.encrypt_key_env`). That stream takes one message of a subject, so who may add keys cannot
replace one, which would destroy all that it has sealed. To forget a session is to delete its key.

The nonce is derived from key and body: the same message sealed again, by another process or after a crash, gives the same
bytes, so that its payload is stored once and a second write can be told from another message. GCM breaks where one nonce serves
two bodies; of 96 bits of an HMAC that is to be expected after 2^48 bodies of one session.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, Fenced, NotStored, Unreachable
from dspex.bus.message import Message
from dspex.bus.port import Bus, NewMessage, StreamConfig
from dspex.bus.serving.secrets import secrets_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SETTING: Final = "engine.encrypt_key_env"
LIFE: Final = 60.0  # seconds for which a process goes on with a key that somebody may have deleted meanwhile
MOST_KEYS: Final = 10_000  # that a process keeps at hand
_VERSION: Final = "v1 "
_NONCE: Final = 12
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_log = structlog.get_logger("dspex.bus")


class _Key(NamedTuple):
    """The key of a session. `until`: when it is asked for again, on the monotonic clock."""

    cipher: AESGCM
    nonces: bytes
    until: float


@lru_cache(MOST_KEYS)
def name_of(session: str) -> str:
    """The name of a session's key; "" for what belongs to none."""
    return sha256(session.encode(errors="replace")).hexdigest()[:32]


def stream(app: str, replicas: int = 1) -> StreamConfig:
    """The stream of an application's keys."""
    return StreamConfig(subjects.keys(app), [subjects.key(app, "*")], replicas, once=True)


class Keyring:
    """Seals and opens with the keys of an application: `Bus.sealing`.

    Args:
        named: what the setting says, variables with a comma between them: the first one's key seals the keys of new sessions,
            all of them open.
    """

    def __init__(self, bus: Bus, app: str, named: str, environ: Mapping[str, str] = os.environ) -> None:
        self._bus, self._app, self._named, self._environ = bus, app, named, environ
        self._wrapping: list[AESGCM] = []
        self._at_hand: dict[str, _Key] = {}

    async def verify(self) -> None:
        """Raise ConfigError (DX112) where a variable is not set; (DX124) where the application's keys were sealed with another
        key. (DX105) where the package is missing.
        """
        self._wrapped_with()
        if await self._bus.has("stream", subjects.keys(self._app)) and await self._made(name_of("")) is None:
            raise ConfigError(
                f"the payloads of {self._app} are sealed with another key than the one in {self._named}",
                code="DX124",
                fix=f"name the variable with the old key, too: {SETTING} = 'NEW,OLD'",
                node=SETTING,
            )

    async def prepare(self, messages: Iterable[NewMessage]) -> None:
        """Ask for the keys of these together, and make those that are missing."""
        names = {name_of((m.headers or {}).get(subjects.SESSION, "")) for m in messages}
        await self._fetch(names)
        await asyncio.gather(*(self._made(name) for name in names if not self._fresh(name)))

    async def opened_early(self, messages: Sequence[Message]) -> list[Message]:
        """The same messages, those opened whose keys a replica has: `opened` asks the leader about the rest, one by one."""
        await self._fetch({m.headers[subjects.SEALED].removeprefix(_VERSION) for m in messages if subjects.SEALED in m.headers})
        return [self._opened_at_once(m) or m if subjects.SEALED in m.headers else m for m in messages]

    async def sealed(self, message: NewMessage) -> NewMessage:
        """The message with a body that only who has the key can read, under the key of its session. Raises BusError."""
        headers, data = message.headers or {}, message.data
        name = name_of(headers.get(subjects.SESSION, ""))
        key = self._fresh(name) or await self._made(name)
        if key is None:  # who may add keys added one that is none: the session cannot be forgotten, and is not readable either
            _log.error("the key of a session cannot be used: its payloads are sealed with that of the application", key=name)
            name = name_of("")
            key = self._fresh(name) or await self._made(name)
        if key is None:
            raise Unreachable("the key of the application cannot be opened any more", fix=f"see {SETTING}")
        label = _VERSION + name
        nonce = hmac.digest(key.nonces, data, "sha256")[:_NONCE]
        body = nonce + key.cipher.encrypt(nonce, data, label.encode())
        return message._replace(data=body, headers={**headers, subjects.SEALED: label})

    async def opened(self, message: Message) -> Message | None:
        """The message with its own body; None where its key was deleted, or it is not what the key sealed. Raises BusError."""
        whole = self._opened_at_once(message)
        name = message.headers[subjects.SEALED].removeprefix(_VERSION)
        if whole is None and _NAME.fullmatch(name):  # whoever may publish can write what they like
            await self._found(name)  # it is not at hand; or its session was forgotten meanwhile, and has a new key
            whole = self._opened_at_once(message)
        if whole is None:
            where = {"subject": message.subject, "sequence": message.sequence, "key": name[:32]}
            _log.error("a sealed payload cannot be opened: its session was forgotten, or nobody with a key sealed it", **where)
        return whole

    def _opened_at_once(self, message: Message) -> Message | None:
        """The message with its own body, if the key is at hand, and is the one."""
        label, data = message.headers[subjects.SEALED], message.data
        key = self._fresh(label.removeprefix(_VERSION))
        body = _decrypted(key.cipher, data, label.encode()) if key is not None else None
        if body is None:
            return None
        return message._replace(data=body, headers={h: v for h, v in message.headers.items() if h != subjects.SEALED})

    def _fresh(self, name: str) -> _Key | None:
        """A key that is at hand, and not for too long."""
        key = self._at_hand.get(name)
        return key if key is not None and key.until > time.monotonic() else None

    async def _fetch(self, names: Iterable[str]) -> None:
        """Ask any replica for the keys that are not at hand: what it has is right, and what it has not the leader may have."""
        missing = [subjects.key(self._app, name) for name in names if _NAME.fullmatch(name) and not self._fresh(name)]
        if len(missing) > 1:
            with suppress(NotStored):  # there is no such stream
                found = await self._bus.multi_last(subjects.keys(self._app), missing)
                for subject, message in found.items():
                    self._unwrapped(subject.rpartition(".")[2], message.data)

    async def _found(self, name: str) -> _Key | None:
        """A key as the leader has it: a replica that is behind would have what was sealed just now for lost."""
        try:
            message = await self._bus.last(subjects.keys(self._app), subjects.key(self._app, name))
        except NotStored:  # there is no such stream
            message = None
        self._at_hand.pop(name, None)
        return self._unwrapped(name, message.data) if message is not None else None

    async def _made(self, name: str) -> _Key | None:
        """A key, drawn where there is none; None where what is there is none of ours."""
        subject = subjects.key(self._app, name)
        while True:
            key, label = os.urandom(32), self._label(name)
            cipher, nonce = self._wrapped_with()[0], os.urandom(_NONCE)
            draft = NewMessage(subject, nonce + cipher.encrypt(nonce, key, label), expect=0)
            try:
                if (message := await self._bus.last(subjects.keys(self._app), subject)) is not None:
                    self._at_hand.pop(name, None)
                    return self._unwrapped(name, message.data)
                await self._bus.publish(draft)
                return self._kept(name, key)
            except Fenced:
                continue  # somebody else was quicker
            except NotStored as e:
                why = f"the keys of {self._app} have no stream yet"
                raise Unreachable(why, fix=f"start an engine that has {SETTING}, or apply: dspex apply") from e

    def _unwrapped(self, name: str, data: bytes) -> _Key | None:
        """A key as it is stored."""
        for cipher in self._wrapped_with():
            if (key := _decrypted(cipher, data, self._label(name))) is not None and len(key) == 32:
                return self._kept(name, key)
        _log.error("a key cannot be opened: it was sealed with another one, or is none", key=name, setting=self._named)
        return None

    def _kept(self, name: str, key: bytes) -> _Key:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        while len(self._at_hand) >= MOST_KEYS:
            del self._at_hand[next(iter(self._at_hand))]
        made = _Key(AESGCM(_derived(key, b"seal")), _derived(key, b"nonce"), time.monotonic() + LIFE)
        self._at_hand[name] = made
        return made

    def _label(self, name: str) -> bytes:
        """What a key is bound to: put under another name, or into another application, it opens nothing."""
        return f"{_VERSION}{self._app}/{name}".encode()

    def _wrapped_with(self) -> list[AESGCM]:
        """What opens the keys; the first one seals new ones. Read when it is needed: most verbs do without."""
        if not self._wrapping:
            try:
                from cryptography.hazmat.primitives.ciphers.aead import AESGCM
            except ImportError as e:
                text = f"{SETTING} needs a package that is not installed: cryptography"
                raise ConfigError(text, code="DX105", fix="pip install 'dspex[encrypt]'", node=SETTING) from e
            found = secrets_of(self._named, "engine", "encrypt_key_env", self._environ)
            self._wrapping = [AESGCM(_derived(secret, b"wrap")) for secret in found]
        return self._wrapping


async def need_none(bus: Bus, app: str) -> None:
    """Raise ConfigError (DX124) where the payloads of an application are sealed: this process has no key."""
    if await bus.has("stream", subjects.keys(app)):
        raise ConfigError(
            f"the payloads of {app} are sealed, and no key is named here",
            code="DX124",
            fix=f'name the variable that has it: {SETTING} = "NAME"',
            node=SETTING,
        )


async def forget(bus: Bus, app: str, session: str) -> int:
    """Delete the key of a session, and its bytes on the server's disk: nobody can read any more what it has sealed. How many: 0
    or 1. Raises ConfigError (DX125) where the application seals nothing, so that there is nothing that could be forgotten.

    It needs no key. Processes that have used it lately can go on with it for `LIFE` seconds.
    """
    if not await bus.has("stream", name := subjects.keys(app)):
        raise ConfigError(
            f"the payloads of {app} are stored in clear text, so no session of it can be forgotten",
            code="DX125",
            fix=f"encrypt what is stored from now on: {SETTING}",
            node=SETTING,
        )
    message = await bus.last(name, subjects.key(app, name_of(session)))
    if message is None:
        return 0
    await bus.delete(name, message.sequence, erase=True)
    return 1


def _decrypted(cipher: AESGCM, data: bytes, label: bytes) -> bytes | None:
    """What was encrypted, behind its nonce; None for anything else."""
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(data[:_NONCE], data[_NONCE:], label)
    except (InvalidTag, ValueError):  # ValueError: too short for a nonce
        return None


def _derived(key: bytes, purpose: bytes) -> bytes:
    """A key for one purpose alone (HMAC-SHA256 as a key derivation: the key is random, so it need not be extracted first)."""
    return hmac.digest(key, b"dspex " + purpose, "sha256")

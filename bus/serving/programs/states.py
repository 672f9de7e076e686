"""Saved states of programs, by name and version, and the aliases that point to them.

    draft@4       version 4, which never changes
    draft@prod    the version to which the alias `prod` points now
    draft         the newest version

They lie beside the manifests, in the bucket that takes one value of a key. A version says where its state lies, which is a
payload like any other: sealed where the application seals, by its hash, and kept for as long as the version is. An alias is a
row of changes with a key each: to promote is one write, which lands as a whole or not at all, and each change says what it was
before. Whoever may publish can have an answer of the server put under a key to come: what cannot be read is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import orjson
from typing_extensions import TypedDict

from dspex.bus import subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.codecs.times import is_time
from dspex.bus.errors import ConfigError, DataError, DecodeError, Fenced, RunError
from dspex.bus.message import Message
from dspex.bus.port import Bucket, Bus, NewMessage
from dspex.bus.serving import audit, payloads
from dspex.bus.serving.keys.clear_text import may_store
from dspex.bus.serving.programs.form import ProgramState, digest_of, unpack
from dspex.bus.serving.programs.names import StateName
from dspex.bus.settings.similar import did_you_mean

UNKNOWN: Final = "DX627"
"""The code of what is not there: a program, a version of it, an alias."""
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,14}")


class _StoredVersion(TypedDict):
    digest: str
    size: int
    predictors: list[str]
    dspy_version: str
    time: float
    who: str
    headers: dict[str, str]


class _StoredAlias(TypedDict):
    version: int
    back: int
    time: float
    who: str


@dataclass(frozen=True)
class SavedVersion:
    """A saved state of a program.

    Attributes:
        program, version: its name.
        digest: the SHA-256 of the state. size: its bytes.
        predictors: their names.
        dspy_version: that it was saved under; "" where that is not known.
        time: when it was saved; who: by whom. Both as the client said.
        headers: how the payload is read.
    """

    program: str
    version: int
    digest: str
    size: int
    predictors: Sequence[str]
    dspy_version: str
    time: datetime
    who: str
    headers: Mapping[str, str]

    @property
    def name(self) -> str:
        """`draft@4`."""
        return f"{self.program}@{self.version}"


class AliasChange(NamedTuple):
    """One change of an alias: the version that it points to since then, and the change to which a rollback goes; 0: none."""

    number: int
    version: int
    back: int
    time: datetime
    who: str


@dataclass(frozen=True)
class SavedProgram:
    """All that is saved of a program. `aliases`: the changes of each, the latest last."""

    name: str
    versions: Mapping[int, SavedVersion]
    aliases: Mapping[str, Mapping[int, AliasChange]]

    def points_to(self, alias: str) -> int | None:
        """The version that an alias points to; None where there is no such alias."""
        changes = self.aliases.get(alias)
        return changes[max(changes)].version if changes else None

    def find(self, version: str) -> SavedVersion:
        """What a name means now; see StateName. Raises RunError (DX627)."""
        if version and not version.isdecimal():
            if (number := self.points_to(version)) is None:
                fix = did_you_mean(version, sorted(self.aliases), f"dspex programs promote {self.name} VERSION {version}")
                raise RunError(f"program {self.name} has no alias {version!r}", code=UNKNOWN, fix=fix)
        else:
            number = int(version or max(self.versions, default=0))
        if number not in self.versions:
            has = ", ".join(map(str, self.versions)) or "none"
            raise RunError(f"program {self.name} has no version {number}", code=UNKNOWN, fix=f"versions: {has}")
        return self.versions[number]


class SavedStates:
    """The saved states of an application. All methods may raise BusError.

    Args:
        replicas: of the bucket, where there is none yet.
    """

    def __init__(self, bus: Bus, app: str, replicas: int = 1) -> None:
        self._bus, self._app, self._replicas = bus, app, replicas

    async def listing(self) -> dict[str, SavedProgram]:
        """All programs, by name."""
        bucket = await self._bucket()
        return {} if bucket is None else await _programs(bucket)

    async def find(self, name: StateName) -> SavedVersion:
        """The version that a name means now. Raises RunError (DX627)."""
        bucket = await self._bucket()
        found = {} if bucket is None else await _programs(bucket, name.program)
        if name.program not in found:
            fix = "dspex programs ls shows those that there are; dspex programs put NAME FILE saves one"
            raise RunError(f"no program {name.program!r} is saved", code=UNKNOWN, fix=fix)
        return found[name.program].find(name.version)

    async def load(self, version: SavedVersion) -> ProgramState:
        """Its state. Raises DataError where that is gone, or is not what was saved."""
        where = Message(subjects.saved_prefix(version.program), b"", version.headers)
        body = await payloads.required(self._bus, self._app, where)
        if digest_of(body.data) != version.digest:
            raise DecodeError(f"the state of {version.name} is not what was saved under this name")
        return unpack(body.data)._replace(dspy_version=version.dspy_version)

    async def put(self, program: str, state: ProgramState) -> SavedVersion:
        """Save a state as the next version of a program."""
        _checked_name(program)
        await may_store(self._bus, self._app)
        bucket = await self._bus.bucket(subjects.applied(self._app), replicas=self._replicas, once=True)
        await self._bus.objects(subjects.objects(self._app), replicas=self._replicas)
        body, taken = state.packed, set[int]()
        draft = NewMessage(subjects.saved_prefix(program), body, {})
        ready = await payloads.checked_in(self._bus, self._app, draft, above=0)  # just before it is named
        said = {
            "digest": digest_of(body),
            "size": len(body),
            "predictors": list(state.predictors),
            "dspy_version": state.dspy_version,
            "headers": dict(ready.headers or {}),
            **_now(),
        }
        while True:
            found = (await _programs(bucket, program)).get(program)
            keys = await bucket.items(subjects.saved_prefix(program))
            number = _next(found.versions if found is not None else (), {*map(_number, keys), *taken})
            try:
                await bucket.put(subjects.saved_key(program, number), orjson.dumps(said), revision=0)
            except Fenced:
                taken.add(number)  # by somebody who saved at the same time, or by what another replica does not show yet
            else:
                return _version(program, number, orjson.dumps(said))

    async def promote(self, program: str, version: int, alias: str) -> AliasChange:
        """Have an alias point to a version. Raises RunError (DX627) where there is no such version."""
        StateName.read(f"{program}@{alias}")
        if alias.isdecimal():
            raise ConfigError(f"{alias} is a version and no alias", code="DX105", fix="an alias begins with a letter")
        await self.find(StateName(program, str(version)))
        while True:
            try:
                return await self._change(program, alias, version)
            except Fenced:
                continue  # somebody else promoted at the same time: one of the two is the last

    async def rollback(self, program: str, alias: str) -> AliasChange:
        """Have an alias point to what it pointed to before. Raises RunError (DX627) where that is nothing; Fenced where
        somebody else changes it at the same time: they may have meant something else.
        """
        StateName.read(f"{program}@{alias}")
        return await self._change(program, alias, None)

    async def _change(self, program: str, alias: str, version: int | None) -> AliasChange:
        bucket = await self._bus.bucket(subjects.applied(self._app), replicas=self._replicas, once=True)
        found = (await _programs(bucket, program)).get(program)
        changes = found.aliases.get(alias, {}) if found is not None else {}
        last = changes[max(changes)] if changes else None
        if version is None:
            before = changes.get(last.back) if last is not None else None
            if before is None:
                raise RunError(f"{program}@{alias} has pointed to nothing else", code=UNKNOWN, fix="dspex programs ls")
            version, back = before.version, before.back
        else:
            if last is not None and last.version == version:
                return last  # who says it again has not heard the answer: a rollback goes to what was there before
            back = last.number if last is not None else 0
        keys = await bucket.items(subjects.alias_prefix(program, alias))
        number = _next(changes, set(map(_number, keys)))
        said = orjson.dumps({"version": version, "back": back, **_now()})
        await bucket.put(subjects.alias_key(program, alias, number), said, revision=0)
        return _alias(number, said)

    async def _bucket(self) -> Bucket | None:
        name = subjects.applied(self._app)
        return await self._bus.bucket(name) if await self._bus.has("bucket", name) else None


async def payloads_of(bucket: Bucket) -> set[str]:
    """The payloads that saved states name."""
    programs = (await _programs(bucket)).values()
    return {v.headers.get(subjects.CLAIM_CHECK, "") for program in programs for v in program.versions.values()}


async def _programs(bucket: Bucket, only: str = "") -> dict[str, SavedProgram]:
    versions: dict[str, dict[int, SavedVersion]] = {}
    aliases: dict[str, dict[str, dict[int, AliasChange]]] = {}
    for words, number, value in _read(await bucket.items(subjects.saved_prefix(only)), 1):
        with suppress(ValueError, DataError):
            versions.setdefault(words[0], {})[number] = _version(words[0], number, value)
    for words, number, value in _read(await bucket.items(subjects.alias_prefix(only)), 2):
        with suppress(ValueError, DataError):
            aliases.setdefault(words[0], {}).setdefault(words[1], {})[number] = _alias(number, value)
    named = {name: dict(sorted(found.items())) for name, found in sorted(versions.items()) if found}
    return {name: SavedProgram(name, found, _changed(aliases.get(name, {}))) for name, found in named.items()}


def _changed(aliases: Mapping[str, Mapping[int, AliasChange]]) -> dict[str, Mapping[int, AliasChange]]:
    return {alias: changes for alias, changes in sorted(aliases.items()) if changes}


def _read(items: Mapping[str, tuple[bytes, int]], words: int) -> Iterator[tuple[list[str], int, bytes]]:
    """The words between the kind of a key and its number, the number, and the value; of keys with so many words."""
    for key, (value, _) in items.items():
        between = key.split(".")[1:-1]
        if len(between) == words and (number := _number(key)):
            yield between, number, value


def _number(key: str) -> int:
    last = key.rpartition(".")[2]
    return int(last) if _NUMBER.fullmatch(last) else 0


def _next(read: Iterable[int], taken: Set[int]) -> int:
    """The number behind all that could be read. What nobody can read takes its own place alone: it may have any number."""
    number = max(read, default=0) + 1
    while number in taken:
        number += 1
    return number


def _version(program: str, number: int, value: bytes) -> SavedVersion:
    found: dict[str, Any] = checked(_StoredVersion, "a saved version", orjson.loads(value))
    found["time"] = _time(found["time"])
    return SavedVersion(program, number, **found)


def _alias(number: int, value: bytes) -> AliasChange:
    found: dict[str, Any] = checked(_StoredAlias, "a change of an alias", orjson.loads(value))
    found["time"] = _time(found["time"])
    return AliasChange(number, **found)


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at if is_time(at) else 0.0, UTC)


def _now() -> dict[str, object]:
    return {"time": datetime.now(UTC).timestamp(), "who": audit.whoami()}


def _checked_name(program: str) -> None:
    if StateName.read(program).version:
        raise ConfigError(f"{program!r} names a version", code="DX105", fix="give the name alone: versions are counted")

"""A run as a file of JSON lines: what `runs show --json` prints, with all that is needed to do it again without a server.

The first line says which run it is, the second one is its source event, and the others what came of it, each with the id of
what caused it. Calls have what they were asked and answered. Nothing of other runs is in it, but for what operators kept of the
run's keys when it began, in lines of their own behind those.

Fields that are marked secret are not in it: `(secret)` stands in their place, and the first line has their names.

Each line ends with a hash of it and of the hash before, so a file that was changed is refused with the first line that is not
as it was written. It finds damage and mistakes; who wants to forge a run writes another file. Files of before have no hashes.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from io import FileIO
from os import PathLike
from typing import Any, Final, NamedTuple

from dspex.bus import codecs, subjects
from dspex.bus.codecs.checking import checked
from dspex.bus.codecs.json import json_bytes, load_json
from dspex.bus.errors import DecodeError, InvalidInput, RecordingIncomplete
from dspex.bus.message import Event, plain
from dspex.bus.records import Usage
from dspex.engine.client.following.progress import RunInfo
from dspex.engine.client.runs.history import History
from dspex.engine.client.runs.steps import Step, frozen
from dspex.engine.client.runs.then.builds import Builds
from dspex.engine.client.runs.then.chain import HashChain, chained
from dspex.engine.client.runs.then.changes import KeptChange
from dspex.engine.client.runs.then.later import Later
from dspex.engine.client.runs.then.masking import lost, masked, secrets_of
from dspex.engine.client.runs.then.state import KINDS, NOT_READ, NOT_THERE, StateThen, read_row
from dspex.engine.client.runs.then.woken import WokenNode
from dspex.engine.client.runs.tree import FORGOTTEN, Happening, changed

VERSION: Final = 1
MAKE: Final = "make one: dspex runs export RUN -o FILE"
_BYTES: Final = "base64"  # the key under which data stand that could not be decoded
_OURS: Final = (subjects.KEY, subjects.SESSION, subjects.TIME, subjects.CONTENT_TYPE, subjects.MESSAGE_ID)
_OF_SOURCE: Final = ("key", "session", "headers", "content_type")


class SourcePlace(NamedTuple):
    """Where a source event lies, of which its id is made: a stream, when that was made, the sequence, its time."""

    stream: str
    created: float
    sequence: int
    time: float


@dataclass(frozen=True)
class RunFile:
    """What such a file says.

    Attributes:
        info: of the run. root: its source event, with what came of it.
        key, session, headers: of its source event. time: its event time, where its publisher said one. content_type: of its
            data. place: where it lies; None in files of before. text: the file itself; empty for one that is not written.
        state: what operators kept when it began. changes: of the forks that it comes from. lost: secret fields whose values
            are missing, and are no texts. builds: that wrote what it did, as far as that is known. later: what a
            fork has led to in other runs; None where it is not known.
    """

    info: RunInfo
    root: Happening
    key: str | None
    session: str | None
    headers: Mapping[str, str]
    time: str | None = None
    content_type: str | None = None
    place: SourcePlace | None = None
    text: bytes = b""
    state: StateThen = NOT_THERE
    changes: tuple[KeptChange, ...] = ()
    lost: tuple[str, ...] = ()
    builds: Builds = field(default_factory=dict[str, list[dict[str, str]]])
    later: Later | None = None

    @property
    def hidden(self) -> frozenset[str]:
        """The secret fields whose values it has not got: those of one that is written."""
        return self.root.secrets if self.text else frozenset()

    @classmethod
    def of(
        cls, info: RunInfo, root: Happening, past: History, state: StateThen = NOT_READ, builds: Builds | None = None
    ) -> RunFile:
        """What the file of a run would say."""
        source, h = past.source, plain(past.source).headers
        own = {name: value for name, value in h.items() if name not in _OURS and not name.startswith(subjects.FROM_SERVER)}
        place = SourcePlace(past.stream, past.created, source.sequence, source.time)
        key, session, time, kind = map(h.get, (subjects.KEY, subjects.SESSION, subjects.TIME, subjects.CONTENT_TYPE))
        return cls(info, root, key, session, own, time, kind, place, state=state, builds=builds or {})

    @property
    def outputs(self) -> list[Event[Any]]:
        """What it sent to sinks, in order. Of their headers a file has none."""
        of = self.info.id
        found = [one for one in self.root if one.kind == "output"]
        return [Event(o.id, o.node, o.data, o.time, of, o.cause, session=self.session) for o in found]

    @property
    def steps(self) -> list[Step]:
        """The attempts at its calls, in the order in which those were asked for."""
        return [step for call in self.calls for step in call.attempts]

    @property
    def calls(self) -> list[Happening]:
        """Its calls, in the order in which they were asked for."""
        return sorted((one for one in self.root if one.kind == "call"), key=lambda one: one.time)

    @property
    def keys(self) -> set[str]:
        """The keys that its events had."""
        hops = {one.label.removeprefix(f"{one.node}/") for one in self.root if one.kind == "hop" and one.label != one.node}
        return hops | ({self.key} if self.key is not None else set())


def written(file: RunFile) -> bytes:
    """What a file says, as a file. Raises RecordingIncomplete where a call has no end yet, or its record is not kept."""
    return b"".join(_lines(file))


def _lines(file: RunFile) -> Iterator[bytes]:
    info, secrets = file.info, secrets_of(file.root)
    state = file.state.of_keys(file.keys)
    told = [*_rows(info, masked(file.root, secrets), file), *(state.hidden() if secrets else state).rows()]
    hash, head = b"", {"v": VERSION, "kind": "run", **vars(info), "usage": vars(info.usage), "state": True}
    head |= {"lines": len(told) + 1}
    head |= {"secrets": sorted(secrets.names), "lost": lost(file.root, secrets)} if secrets else {}
    head |= {"builds": file.builds} if file.builds else {}
    head |= {"woken": secrets.masked(state.woken)} if state.woken else {}
    head |= {"changes": [secrets.masked(one._asdict()) for one in file.changes]} if file.changes else {}
    head |= {"later": secrets.masked(file.later.row())} if file.later is not None else {}
    for row in (head, *told):
        text = _text(row)
        hash = chained(hash, text)
        yield b'%b,"hash":"%b"}\n' % (text[:-1], hash)


def _text(row: Mapping[str, Any]) -> bytes:
    """A row as JSON. What that cannot say stands there as bytes, with their type, and the row says so."""
    try:
        return json_bytes(row)
    except InvalidInput:
        return json_bytes({**_packed(row), "packed": True})


def _packed(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {name: _packed(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_packed(value) for value in data]
    try:
        json_bytes(data)
    except InvalidInput:
        body, kind = codecs.encode(data, "auto")
        return {_BYTES: base64.b64encode(body).decode(), "type": kind}
    return data


def _unpacked(data: Any) -> Any:
    """What `_packed` was given."""
    if isinstance(data, dict) and data.keys() == {_BYTES, "type"}:
        return codecs.decode(base64.b64decode(data[_BYTES]), data["type"])
    if isinstance(data, dict):
        return {name: _unpacked(value) for name, value in data.items()}
    return [_unpacked(value) for value in data] if isinstance(data, list) else data


def _rows(info: RunInfo, root: Happening, file: RunFile) -> Iterator[dict[str, Any]]:
    if root.changed:
        raise changed(root)
    for one in root:
        if one.data == FORGOTTEN:
            why = f"of run {info.id}, {one.label} cannot be read here: its session was forgotten, or there is no key"
            raise RecordingIncomplete(why, run=info.id, fix="nothing brings back what was forgotten; else name the key")
        if open_ := next((step for step in one.attempts if not step.ended), None):
            fix = "wait for its end: dspex runs wait; or see what it is about: dspex runs show"
            raise RecordingIncomplete(f"the call {open_.id} of run {info.id} has no record", run=info.id, fix=fix)
        if lost := next((step for step in one.attempts if step.wrong), None):
            raise RecordingIncomplete(f"the record of {lost.id} of run {info.id} is {lost.wrong}", run=info.id)
        row = {name: value for name, value in one.as_dict().items() if name != "attempts"}
        row |= {"data": _plain(one.data), "attempts": [*map(_attempt, one.attempts, one.failures)]}
        if one.kind == "source":
            row |= {name: getattr(file, name) for name in _OF_SOURCE}
            row |= {"event_time": file.time, "place": file.place}
        yield row


def _plain(data: Any) -> Any:
    return {_BYTES: base64.b64encode(data).decode()} if isinstance(data, bytes) else data


def _attempt(step: Step, error: Mapping[str, Any] | None) -> dict[str, Any]:
    return {**vars(step), "elapsed": step.elapsed.total_seconds(), "usage": vars(step.usage), "failure": error}


def load(path: str | PathLike[str]) -> RunFile:
    """Read the file of a run. Raises DecodeError where it is none, or was changed."""
    try:
        with FileIO(path) as file:
            return read(file.readall(), path)
    except OSError as error:
        raise DecodeError(f"{path} cannot be read: {error.strerror}", fix=MAKE) from None


def read(text: bytes, name: str | PathLike[str]) -> RunFile:
    """The file of a run. `name`: of it, for errors. Raises DecodeError where it is none, or was changed."""
    known: dict[str, Happening] = {}
    head, info = dict[str, Any](), None
    first, root = dict[str, Any](), Happening("source", "", "", "", "", datetime.now(UTC), "", None)
    chain, number, then = HashChain(), 0, StateThen()
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = _row(chain.checked(line))
            if info is None:
                head, info = row, _head(row)
                continue
            if row.get("kind") in KINDS:
                then += read_row(row)
                continue
            one = _happening(row)
        except (DecodeError, KeyError, TypeError, ValueError) as error:
            raise DecodeError(f"{name}, line {number}: not the file of a run: {error}", fix=MAKE) from None
        if not known:
            first, root = row, one
        else:
            known.get(one.cause, root).below.append(one)  # what several events made has a cause of its own
        known[one.id] = one
    if info is None or not first:
        raise DecodeError(f"{name}: not the file of a run: it has no event", fix=MAKE)
    if number != head.get("lines", number):
        raise DecodeError(f"{name}: not the whole file of a run: of {head['lines']} lines it has {number}", fix=MAKE)
    key, session, headers, kind = map(first.get, _OF_SOURCE)
    if "secrets" in head:
        root.secrets = frozenset(checked(list[str], "names of fields", head["secrets"]))
    place = checked(SourcePlace, "where its event lies", first["place"]) if first.get("place") else None
    woken = tuple(checked(list[WokenNode], "what woke operators", head["woken"])) if "woken" in head else ()
    then = replace(then if head.get("state") else NOT_THERE, woken=woken)
    changes = tuple(checked(list[KeptChange], "what a fork has changed", head["changes"])) if "changes" in head else ()
    gone = tuple(checked(list[str], "names of fields", head["lost"])) if "lost" in head else ()
    builds = checked(dict[str, list[dict[str, str]]], "builds", head["builds"]) if "builds" in head else {}
    later = Later.read(head["later"]) if "later" in head else None
    more = (text, then, changes, gone, builds, later)
    return RunFile(info, root, key, session, headers or {}, first.get("event_time"), kind, place, *more)


def _row(line: bytes) -> dict[str, Any]:
    """What a line says. Raises DecodeError where it is no object: the keys of one are texts, and need no check of their own."""
    row = load_json(line)
    if not isinstance(row, dict):
        raise DecodeError("a line is no object")
    made: dict[str, Any] = _unpacked(row) if row.get("packed") else row
    return made


def _head(row: Mapping[str, Any]) -> RunInfo:
    if row.get("v") != VERSION or row.get("kind") != "run":
        raise DecodeError("it does not begin as one of this version")
    return read_info(row)


def read_info(row: Mapping[str, Any]) -> RunInfo:
    """What is known of a run, of the JSON object that says it. Raises KeyError, TypeError, ValueError where it does not."""
    made = {name: row[name] for name in RunInfo.__dataclass_fields__ if name != "kept"}
    if not all(isinstance(made[name], str) for name in ("id", "topology", "digest", "status")):
        raise TypeError("its id, its topology, the digest of that and its status are no texts")
    finished = _time(made["finished"]) if made["finished"] is not None else None
    used = frozen(Usage, made["usage"])
    read: dict[str, Any] = {"started": _time(made["started"]), "finished": finished, "usage": used}
    return frozen(RunInfo, made | read | {"kept": ""})


def _happening(row: Mapping[str, Any]) -> Happening:
    made = {name: row[name] for name in ("kind", "id", "cause", "node", "label", "where", "data", "error")}
    if isinstance(made["data"], dict) and [*made["data"]] == [_BYTES]:
        made["data"] = base64.b64decode(made["data"][_BYTES])
    made["recorded"] = bool(row.get("recorded", True))
    attempts = [_step(attempt) for attempt in row["attempts"]]
    return Happening(**made, time=_time(row["time"]), attempts=attempts, failures=[a["failure"] for a in row["attempts"]])


def _step(row: Mapping[str, Any]) -> Step:
    elapsed, used = timedelta(seconds=row["elapsed"]), frozen(Usage, row["usage"])
    made = {**row, "usage": used, "elapsed": elapsed, "started": _time(row["started"])}
    del made["failure"]
    return frozen(Step, made)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)

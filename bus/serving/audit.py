"""The audit: what was changed, by which verb, and who says that it was they.

It is a help and no proof: a client says of itself who it is, and whoever may publish here can say anything. When it was is the
server's word.
"""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog

from dspex.bus import subjects
from dspex.bus.errors import BusError, NotStored
from dspex.bus.message import Message
from dspex.bus.port import Bus, NewMessage

_log = structlog.get_logger("dspex.audit")
MOST_NAMED = 100  # things that an entry names one by one
MOST_SHOWN = 2000  # characters of what others wrote


@dataclass(frozen=True)
class AuditEntry:
    """One change.

    Attributes:
        sequence: of the entry in its stream. time: when it was stored.
        verb: publish, call, cancel (a run), end (a session), redrive, drop, decide, score, replay, forget, import,
            apply, pause, resume, delete, put, promote, rollback, scale, drain, restart (of a pool).
        who: user@host, as the client says; of a gateway, and for whom: user@host for desk.
        what: more of it, by verb: subjects, counts, names.
    """

    sequence: int
    time: datetime
    verb: str
    who: str
    what: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The `--json` object."""
        return {**vars(self), "time": self.time.isoformat()}


_speaks_for: ContextVar[str] = ContextVar("speaks for", default="")


def speak_for(name: str) -> None:
    """Have what this task does from now on, and what it starts, be done in somebody's name; "": in that of this process."""
    _speaks_for.set(name)


def whoami() -> str:
    """The user and the machine of this process, and in whose name it acts."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "nobody"
    name = _speaks_for.get()
    return f"{user}@{socket.gethostname()}" + (f" for {name}" if name else "")


def entry(app: str, verb: str, /, **what: Any) -> NewMessage:
    """An entry, to be stored."""
    # what came from the shell may hold bytes that are no text: they must not turn what has happened into an error
    body = json.dumps({"who": whoami(), "what": what}, ensure_ascii=False).encode(errors="replace")
    return NewMessage(subjects.audit(app, verb), body)


async def leave(bus: Bus, app: str, verb: str, /, **what: Any) -> None:  # topologies may have these names, too
    """Leave an entry. Where that is not possible it is logged, and nothing is raised: what it tells of has happened."""
    try:
        await bus.publish(entry(app, verb, **what))
    except NotStored as e:  # before the first topology is applied there is no stream for it
        _log.debug("no audit entry", verb=verb, why=e.message)
    except BusError as e:
        _log.warning("no audit entry", verb=verb, why=e.message, fix=e.fix)


def read(message: Message) -> AuditEntry:
    """The entry in a message, whoever wrote it."""
    try:
        found = orjson.loads(message.data)
        who, what = str(found["who"])[:MOST_SHOWN], found["what"]
        orjson.dumps(what)  # it can be read deeper than it can be written
    except (ValueError, TypeError, KeyError, RecursionError):
        who, what = "?", None
    if not isinstance(what, dict):
        what = {"unreadable": message.data[:MOST_SHOWN].decode("utf-8", "replace")}
    verb = message.subject.rpartition(".")[2]
    return AuditEntry(message.sequence, datetime.fromtimestamp(message.time, UTC), verb, who, what)

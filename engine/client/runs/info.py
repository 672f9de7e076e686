"""What is known of a run, as its history tells."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from dspex.bus import subjects
from dspex.bus.errors import DataError
from dspex.bus.message import id_time
from dspex.bus.records import CallRecord, Usage
from dspex.engine.client.following.progress import RunInfo, ended
from dspex.engine.client.runs.history import History
from dspex.engine.graph.manifest import Manifest


def info_of(past: History, app: str, applied: Mapping[str, Manifest]) -> RunInfo:
    """What is known of a run. `applied`: by topology."""
    topology, usage = past.topologies[0], Usage()
    for message in past.records:
        try:
            usage = usage + Usage.read(CallRecord.unpack(message.data).usage)
        except DataError:
            continue  # anybody may write to a stream, and what is sealed may be nobody's any more
    letters = [message for message in past.messages if subjects.matches(subjects.dead_pattern(app), message.subject)]
    cancelled = any(subjects.CANCELLED in letter.headers for letter in letters)
    calls = sum(table == "calls" for one in past.taken for table, _ in one.closed)
    finished = datetime.fromtimestamp(past.taken[-1].time, tz=UTC) if past.done and past.taken else None
    return RunInfo(
        id=past.run,
        topology=topology,
        digest=applied[topology].digest if topology in applied else "",
        parent=None,
        status="running" if not past.done else ended(len(letters), cancelled=cancelled),
        started=id_time(past.run) or datetime.fromtimestamp(past.source.time, tz=UTC),
        finished=finished,
        calls=calls,
        usage=usage,
        dead_letters=len(letters),
    )

"""The inputs that a stage has, and what is put into them when it begins."""

from __future__ import annotations

import asyncio
from collections import Counter

from dspex.bus import codecs, subjects
from dspex.bus.port import NewMessage
from dspex.bus.records import NodeEvent, Origin, pack_frame
from dspex.engine.graph.nodes import TOLD
from dspex.engine.runtime.inputs.events import EventsInput
from dspex.engine.runtime.inputs.input import Input
from dspex.engine.runtime.inputs.lost import LostRequests
from dspex.engine.runtime.inputs.position import SourceCheck
from dspex.engine.runtime.inputs.signed import records_input
from dspex.engine.runtime.inputs.source import SourceInput
from dspex.engine.runtime.inputs.timers import TimersInput
from dspex.engine.runtime.services import Services
from dspex.engine.runtime.walk.compile import Stage


def inputs(
    s: Services, stage: Stage, source: tuple[str, int, int], counters: Counter[str], alarm: asyncio.Event, moved: asyncio.Event
) -> dict[str, Input]:
    """They, by name.

    Args:
        source: the stream of its source, its partitions, and the sequence behind which one that never committed begins.
        alarm: set when a timer may be due. moved: set when a watermark may have moved.
    """
    (stream, count, start), settings, found = source, stage.source, list[Input]()
    events_of = None
    if settings is not None:
        check = SourceCheck(s.bus, stream, settings, start, counters)
        clock = s.clock if stage.graph.timed else None
        events_of = SourceInput(s.bus, s.app, stage, settings, stream, count, check, s.room, clock)
        found.append(events_of)
    where = (s.bus, s.app, stage.graph.name, stage.id)
    records = records_input(s.bus, s.app, stage, s.keys, counters)
    found += [EventsInput(*where, events_of, stage.before, (alarm, moved), decided=stage.decided), records]
    found.append(TimersInput(s.bus, s.app, events_of, alarm, records, s.clock, LostRequests(records, s.behind)))
    return {input.name: input for input in found}


async def begin(s: Services, stage: Stage) -> None:
    """Tell operators that begin something that they can: in the log of events, where a replay finds it. Raises BusError."""
    for name, node in stage.states.items():
        if node.state.begins:
            body, content_type = codecs.encode(node.state.begins)
            origin = Origin(f"begins@{stage.id}", stage.name, "", time=s.clock())
            frame = pack_frame([NodeEvent(name + TOLD, origin, content_type, body)])
            await s.bus.publish(NewMessage(subjects.edge(s.app, stage.graph.name, stage.id, 0), frame))

"""What was changed while a run is handled again goes on: over calls and hops, where what is stored would go on otherwise.

A call is answered by its record, whatever it is asked now; what lands then has the data that the call was made for now. What is
not asked, or not handed on, any more does not arrive. State is at each commit what the log says.
"""

from __future__ import annotations

from collections.abc import Sequence

from dspex.bus import subjects
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRequest, NodeEvent, unpack_event, unpack_frame
from dspex.engine.runtime.arrival import Answered, Arrival, Due


class GoingOn:
    """The events of one run that are on their way, as they are now. `run`: its id."""

    def __init__(self, run: str) -> None:
        self._run, self._events = run, dict[str, NodeEvent]()

    def gave(self, messages: Sequence[NewMessage]) -> None:
        """What came of an entry: what it asks and hands on."""
        for m in messages:
            if subjects.is_work(m.subject):
                asked = CallRequest.unpack(m.data)
                if asked.run == self._run and asked.record is not None:
                    self._events[asked.call] = unpack_event(asked.record.event)
            elif subjects.matches("dspex.*.edge.>", m.subject):
                self._events |= {e.origin.id: e for e in unpack_frame(m.data) if e.origin.run == self._run}

    def arrives(self, arrival: Arrival) -> Arrival:
        """An arrival as it is now."""
        match arrival.what:
            case NodeEvent() as event if arrival.place.input == "events" and event.origin.run == self._run:
                now = self._events.get(event.origin.id)
                return arrival._replace(what=event._replace(data=now.data, content_type=now.content_type) if now else None)
            case Answered() as answered:
                return arrival._replace(what=self._answered(answered))
            case Due(what=Answered() as answered):
                return arrival._replace(what=arrival.what._replace(what=self._answered(answered) or answered))
            case _:
                return arrival

    def _answered(self, answered: Answered) -> Answered | None:
        if answered.event is None or answered.event.origin.run != self._run:
            return answered
        now = self._events.get(answered.record.call)
        return answered._replace(event=now) if now is not None else None

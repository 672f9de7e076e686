"""Records of pools with a key: one without a right signature is passed over, before anything else is done about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from dspex.bus.message import Message
from dspex.bus.port import Bus
from dspex.bus.seldom import Seldom, logger
from dspex.bus.serving.keys.signatures import Keys, is_signed
from dspex.engine.runtime.arrival import Arrival
from dspex.engine.runtime.inputs.records import RecordsInput, arrival_of
from dspex.engine.runtime.partition import Partition
from dspex.engine.runtime.walk.compile import Stage

_log = logger("dspex.engine")


class SignedRecords(RecordsInput):
    """Records of a partition's calls, of pools of which some have keys. `counters`: "unsigned" counts what is passed over.

    A record that waits for its turn was looked at when it came. A replay need not look: the log says what was passed over.
    """

    def __init__(self, bus: Bus, app: str, stage: Stage, keys: Mapping[str, Keys], counters: Counter[str]) -> None:
        super().__init__(bus, app, stage)
        self._keys, self._counters, self._seldom = keys, counters, Seldom(_log)

    def at_once(self, p: Partition, message: Message, clock: float) -> Arrival | None:
        """As every input. The pump asks this first, so `arrivals` is asked only about records that are signed."""
        keys = self._keys.get(pool := message.subject.split(".")[3])
        if not keys or is_signed(message, keys):
            return super().at_once(p, message, clock)
        self._counters["unsigned"] += 1
        self._seldom.error("records without a right signature are passed over; dspex status --json counts them", pool=pool)
        _log.debug("a record was passed over", subject=message.subject, sequence=message.sequence)
        return arrival_of(message, clock, None)


def records_input(bus: Bus, app: str, stage: Stage, keys: Mapping[str, Keys], counters: Counter[str]) -> RecordsInput:
    """The records of a partition's calls. Where no pool has a key, they cost nothing more."""
    return SignedRecords(bus, app, stage, keys, counters) if keys else RecordsInput(bus, app, stage)

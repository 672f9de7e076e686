"""What only the runtime knew of an arrival, as the log says it: put back on the arrival when that is replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dspex.engine.runtime.arrival import Answered, Arrival, Due
from dspex.engine.runtime.inputs.records import without_payload


def marked(arrival: Arrival, mark: Sequence[Any]) -> Arrival:
    """The arrival, with what only the runtime knew of it."""
    kind, what = mark[0] if mark else "", arrival.what
    if kind == "refused":
        return arrival._replace(refused=mark[1])
    if kind == "payload_gone":
        return arrival._replace(gone=True)
    if kind == "record_gone" and isinstance(what, Answered):
        return arrival._replace(what=without_payload(what))
    if kind == "record_gone" and isinstance(what, Due) and isinstance(what.what, Answered):
        return arrival._replace(what=what._replace(what=without_payload(what.what)))
    if kind == "gone" and isinstance(what, Due):
        return arrival._replace(what=what._replace(what=None))
    if kind == "again" and isinstance(what, Due):
        return arrival._replace(what=what._replace(timer=what.timer._replace(kind="again")))
    if kind == "gone" and isinstance(what, Answered):
        return arrival._replace(what=what._replace(event=None))
    return arrival

"""cron: events at the times of a schedule. Each time is taken once, by whichever engine runs it then, or the next one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from typing import Any, ClassVar, Final, Literal, cast
from zoneinfo import ZoneInfo

from dspex.bus.codecs import encode
from dspex.bus.errors import InvalidInput
from dspex.bus.message import derived_id
from dspex.bus.records import Origin
from dspex.engine.graph.context import Handler, Rows
from dspex.engine.graph.nodes import Emitted, State
from dspex.operators.keyed.kept import packed, unpacked
from dspex.operators.native.fields.fields import JsonSchema
from dspex.operators.native.problems import wrong
from dspex.operators.operator import Operator
from dspex.operators.parameters import Arguments, ChoiceParameter, Parameter, TextParameter
from dspex.operators.parameters.values import TEXT, mapping
from dspex.operators.typing.shape import Shape

Missed = Literal["skip", "last", "all"]
_LATEST: Final = 60.0  # seconds after its time for which something is not missed yet
_AT_ONCE: Final = 1000  # of what was missed


@dataclass(frozen=True)
class ScheduleParameter(Parameter):
    """A cron expression."""

    noun: ClassVar[str] = 'a cron expression: `"0 3 * * *"`'
    form: ClassVar[JsonSchema] = {**TEXT, "description": "minute hour day month weekday, or second first"}

    def check(self, name: str, value: object) -> object:
        from cronsim import CronSimError

        try:
            _first(str(value), UTC, 0.0)
        except (CronSimError, StopIteration) as e:
            fix = f'"minute hour day month weekday", such as "0 3 * * *": {e or "no day has this date"}'
            raise wrong(name, value, fix) from e
        return value


@dataclass(frozen=True)
class ZoneParameter(TextParameter):
    """A time zone by its name."""

    def check(self, name: str, value: object) -> object:
        try:
            _zone(str(value))
        except (ValueError, LookupError, OSError) as e:
            raise wrong(name, value, 'a time zone such as "Europe/Berlin"; where there are none: pip install tzdata') from e
        return super().check(name, value)


@dataclass(frozen=True)
class RecordParameter(Parameter):
    """A record of plain data."""

    noun: ClassVar[str] = 'fields with their values: `{"report": "daily"}`'
    form: ClassVar[JsonSchema] = {"type": "object"}

    def check(self, name: str, value: object) -> object:
        found = mapping(value)
        try:
            encode(dict(found) if found is not None else found, "json")
        except InvalidInput as e:
            raise wrong(name, value, f"plain data: {e}") from e
        if value is not self.default and (found is None or "due" in found):
            raise wrong(name, value, f'fields with their values: {name}={{"report": "daily"}}; "due" is when it was due')
        return value

    def plain(self, value: object, others: Arguments) -> object:
        return dict(cast("Mapping[str, Any]", value))


@lru_cache
def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)


def _first(schedule: str, zone: tzinfo, after: float, *, before: bool = False) -> float:
    """The first time behind another, in seconds since the epoch; or the last one before it. Raises StopIteration for none."""
    from cronsim import CronSim  # only who has a schedule waits for it

    return float(next(CronSim(schedule, datetime.fromtimestamp(after, tz=zone), reverse=before)).timestamp())


class _Cron:
    """One row: the schedule, and the next time. Its timer lets an event out and sets the next one.

    It is told of its schedule whenever its partition gets an owner: a schedule that is new, or another one, counts from then.
    """

    def __init__(self, schedule: str, zone: str, data: Mapping[str, Any], missed: Missed) -> None:
        self._schedule, self._zone, self._data, self._missed = schedule, _zone(zone), data, missed
        self.text = f"{zone} {schedule}"

    def step(self, out: Handler, inlet: int) -> Callable[[Any, Rows], None]:
        def run(data: Any, rows: Rows) -> None:
            out({**self._data, **(mapping(data) or {}), "due": _text(rows.origin.time)}, rows)

        return run

    def told(self, data: Any, rows: Rows) -> None:
        """Begin with the schedule, where that is not done."""
        known, _ = unpacked(rows.row(), ("", 0.0))
        if known != self.text or rows.alarm_at() is None:
            self._set(rows, _first(self._schedule, self._zone, rows.clock))

    def _set(self, rows: Rows, due: float) -> None:
        rows.put(packed([self.text, due]))
        rows.alarm(due, hold=due)

    def woken(self, rows: Any, name: str) -> Sequence[Emitted]:
        known, due = unpacked(rows.row(), ("", 0.0))
        if known != self.text:  # the schedule has changed, and it was not told so yet
            self.told(None, rows)
            return ()
        times = self._due(due, rows.clock)
        self._set(rows, _first(self._schedule, self._zone, times[-1]))
        if self._missed == "skip" and times[-1] + _LATEST < rows.clock:
            return ()
        return [Emitted(self._origin(rows, at), {**self._data, "due": _text(at)}) for at in times]

    def _due(self, first: float, clock: float) -> list[float]:
        """The times that are due, from the first one on: all, or the last alone."""
        if self._missed != "all":
            return [max(first, _first(self._schedule, self._zone, int(clock) + 1, before=True))]
        times = [first]
        while len(times) < _AT_ONCE and (following := _first(self._schedule, self._zone, times[-1])) <= clock:
            times.append(following)
        return times

    @staticmethod
    def _origin(rows: Any, due: float) -> Origin:
        """An event of a run of its own. Its id is that of the operator and the time alone."""
        ms = f"{int(due * 1000):012x}"
        id = derived_id(f"{ms[:8]}-{ms[8:]}-7000-8000-000000000000", rows.address.node_id(rows.node), 0)
        return Origin(id, rows.origin.subject, id, time=due)


def _text(time: float) -> str:
    return datetime.fromtimestamp(time, tz=UTC).isoformat().replace("+00:00", "Z")


def shown(rows: Mapping[str, bytes], form: str) -> dict[str, Any]:
    """The schedule, and the next time."""
    text, due = unpacked(rows[""], None)
    zone, _, schedule = text.partition(" ")
    return {"schedule": schedule, "zone": zone, "next": datetime.fromtimestamp(due, tz=UTC)}


def build(
    schedule: str, zone: str = "UTC", data: Mapping[str, Any] | None = None, missed: Missed = "last", *, keyed: bool
) -> State:
    """Events at the times of a schedule."""
    cron = _Cron(schedule, zone, data or {}, missed)
    return State(cron.step, cron.woken, form="cron", keyed=False, told=cron.told, begins=cron.text, clocked=True)


def shape(data: Shape, o: Arguments) -> Shape:
    """The fields that are given, and when it was due."""
    return Shape(None, {**{name: type(value) for name, value in (o["data"] or {}).items()}, "due": str})


OPERATOR = Operator(
    "cron",
    main=ScheduleParameter(doc="minute, hour, day, month and weekday; with six fields the first is the second"),
    options={
        "zone": ZoneParameter("UTC", doc="the time zone of the schedule", fix='the name of a time zone: `"Europe/Berlin"`'),
        "data": RecordParameter(None, doc="the fields of its events, which also have `due`, when it was to be (UTC)"),
        "missed": ChoiceParameter(
            "last",
            of=Missed,
            doc="what was to be while no engine ran: `skip` it, the `last` one, or `all`, one after another",
        ),
    },
    build=build,
    shape=shape,
    state=True,
    shown=shown,
)

"""What both kinds of windows take, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from dspex.operators.keyed.values import StateValues
from dspex.operators.keyed.windows.gives import Aggregate, AggregateAtTheEnd, Collect, Count, Gives, Reduce
from dspex.operators.keyed.windows.windowed import Windowed
from dspex.operators.native.problems import problem, wrong
from dspex.operators.parameters import (
    Arguments,
    CallableParameter,
    ChoiceParameter,
    DurationParameter,
    IntegerParameter,
    NothingParameter,
    Parameter,
)
from dspex.operators.typing.names import OnError
from dspex.operators.typing.shape import Shape, returned

LIMIT: Final = 1000
"""Events of a list, where nothing is said."""
GIVES: Final = ("count", "collect", "reduce", "aggregate")
OPTIONS: Mapping[str, Parameter] = {
    "lateness": DurationParameter(0, doc="how long after its end it still takes events, in event time"),
    "late": ChoiceParameter(
        "dead_letter", of=OnError, doc="where an event goes that came later still: its letter says `LateEvent`; `skip`: nowhere"
    ),
    "count": NothingParameter(None, doc="gives how many events there were"),
    "collect": NothingParameter(None, doc="gives a list of them, by their times"),
    "limit": IntegerParameter(None, doc=f"with `collect`: more are dead letters; default: {LIMIT:,}"),
    "reduce": CallableParameter(
        None, takes=("a", "b"), doc="gives one datum made of all, two by two, in no order that it may count on"
    ),
    "aggregate": CallableParameter(
        None, takes=(), doc="makes the state that `fold` begins with, and gives the last one; called once at build, too"
    ),
    "fold": CallableParameter(None, takes=("state", "data"), doc="with `aggregate`: gives the new state"),
}


def gives_of(o: Mapping[str, Any], typed: object, *, merging: bool) -> Gives:
    """What the window gives, by the options that were given. Raises TopologyError.

    `typed`: the type of the data, where that is known. `merging`: windows grow together.
    """
    if o["limit"] is not None and o["collect"] is None:
        raise problem("DX205", "limit= is how many events collect keeps, and nothing else keeps any", "leave it out")
    if (o["fold"] is None) != (o["aggregate"] is None):
        raise problem("DX204", "aggregate takes two functions: one makes a state, fold= makes the next", "give it both")
    if o["count"] is not None:
        return Count()
    if o["collect"] is not None:
        return Collect(o["limit"] or LIMIT, StateValues(of=typed))
    if o["reduce"] is not None:
        return Reduce(o["reduce"], StateValues(of=typed))
    if merging:
        return AggregateAtTheEnd(o["aggregate"], o["fold"], StateValues(of=typed))
    return Aggregate(o["aggregate"], o["fold"])


def milliseconds(name: str, value: float) -> float:
    """A duration of whole milliseconds. Raises TopologyError (DX205)."""
    if value * 1000 != int(value * 1000):
        raise wrong(name, value, "whole milliseconds")
    return value


def shape(data: Shape, o: Arguments) -> Shape:
    """What is known of the result of a window."""
    value: object = Any
    if o.get("count") is not None:
        value = int
    elif o.get("collect") is not None:
        value = list if data.type is None else list[data.type]  # type: ignore[name-defined]
    elif o.get("reduce") is not None:
        value = data.type or Any
    elif callable(fold := o.get("fold")):
        value = returned(fold).type or Any
    whole = Windowed if value is Any else Windowed[value]  # type: ignore[valid-type]
    return Shape(whole, {"key": str, "start": datetime, "end": datetime, "value": value})

"""`dspex watch` and `dspex call`: look at events as they are stored, and ask a worker."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from dspex.bus.errors import ConfigError, ExpressionError, InvalidInput
from dspex.bus.terminal import Terminal, terminal, to_json
from dspex.engine.cli_client import client, short, spent

if TYPE_CHECKING:
    from dspex.bus.event import Event
    from dspex.engine.client import Client
    from dspex.engine.graph import Call
    from dspex.engine.interactive import Result


# -- watch ---------------------------------------------------------------------------------------------------------
def watch(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="WHAT", help="A subject (wildcards too), or topology/node.")],
    start: Annotated[str, typer.Option("--start", metavar="new|all|1h|SEQ", help="Where to begin.")] = "new",
    number: Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="End after N events.")] = None,
    where: Annotated[str | None, typer.Option("--where", metavar="EXPR", help='Only these: "urgency >= 4".')] = None,
    fields: Annotated[str | None, typer.Option("--fields", metavar="A,B", help="Only these fields of the data.")] = None,
) -> None:
    """Print the events of a subject, or the results of a recorded node, as they are stored. Takes nothing from anyone."""
    t = terminal(context)
    assert t.compile_test is not None
    test = _Test(t, t.compile_test(where)) if where else None
    names = [f.strip() for f in fields.split(",") if f.strip()] if fields else None
    begin = _start(start)
    try:
        t.run(_watch(t, what, begin, number, test, names))
    except KeyboardInterrupt:
        return  # the way to end it


def _start(text: str) -> Literal["new", "all"] | int | datetime:
    from dspex.bus.duration import seconds

    names: dict[str, Literal["new", "all"]] = {"new": "new", "all": "all"}  # a test alone does not narrow for every checker
    if text in names:
        return names[text]
    if re.fullmatch(r"\d+", text):
        return int(text)
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds(text))
    except ConfigError as e:
        raise ConfigError(f"--start {text!r} is no place to begin", fix="new, all, a duration (1h) or a sequence") from e


@dataclass
class _Test:
    """A `--where`. Events that it cannot be evaluated on are left out, and the first one is told."""

    t: Terminal
    function: Any
    told: bool = False

    def __call__(self, event: Event[Any]) -> bool:
        try:
            return bool(self.function(event.data, _Context(event)))
        except ExpressionError as e:
            if not self.told:
                self.t.note(f"--where cannot be evaluated on event {event.id}: {e.message}; such events are left out")
            self.told = True
            return False


@dataclass(frozen=True)
class _Context:
    """What an expression may read besides the data."""

    event: Event[Any]


async def _watch(t: Terminal, what: str, start: Any, number: int | None, test: _Test | None, names: list[str] | None) -> None:
    seen = 0
    async with client(t, "watch") as c, aclosing(cast("Any", c.watch(what, start=start))) as events:
        async for event in cast("AsyncIterator[Event[Any]]", events):
            if test is not None and not test(event):
                continue
            _tell_event(t, event, names)
            seen += 1
            if seen == number:
                return


def _tell_event(t: Terminal, event: Event[Any], names: list[str] | None) -> None:
    data = event.data
    if names is not None and isinstance(data, dict):
        data = {name: data[name] for name in names if name in data}
    time = event.time.astimezone().strftime("%H:%M:%S")
    t.emit(event.as_dict() | {"data": data}, f"{time}  {event.subject}  {short(event.run)}  {to_json(data)}")


# -- call ----------------------------------------------------------------------------------------------------------
def call(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="WHAT", help='"text -> lang", topology/node, or pkg.module:Program.')],
    data: Annotated[list[str] | None, typer.Argument(metavar="[DATA]...", help="k=v, k:=json, @file, - (JSON lines).")] = None,
    lm: Annotated[str | None, typer.Option("--lm", metavar="A,B", help="Profiles, in the order they are tried.")] = None,
    pool: Annotated[str | None, typer.Option("--pool", help="Resource class.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Id of the session.")] = None,
    timeout: Annotated[str, typer.Option("--timeout", metavar="DUR", help="Of the whole call.")] = "60s",
    signature: Annotated[str | None, typer.Option("--signature", metavar="SIG", help="Of a program.")] = None,
    route: Annotated[str | None, typer.Option("--route", metavar="ROUTE", help="auto, worker (DSPy) or native.")] = None,
) -> None:
    """Ask a worker and print the answer. WHAT is a signature, a node that is applied, or a program."""
    from dspex.bus.arguments import records
    from dspex.bus.duration import seconds
    from dspex.bus.wire import ROUTES

    t, limit = terminal(context), seconds(timeout)
    more: dict[str, Any] = {"lm": tuple(p.strip() for p in lm.split(",") if p.strip())} if lm else {}
    if route is not None:
        if route not in ROUTES:
            raise ConfigError(f"there is no route {route!r}", code="DX105", fix=f"one of: {', '.join(ROUTES)}")
        more["route"] = route

    async def ask() -> None:
        async with client(t, "call") as c:
            asked = await _asked(c, what, signature, pool, more)
            for inputs in records(data or [], sys.stdin):
                _tell_result(t, await c.call(asked, inputs, timeout=limit, session=session))

    t.run(ask())


@dataclass(frozen=True)
class _Asked:
    """What is called, with the options of the command line."""

    call: Call

    def to_call(self) -> Call:
        return self.call


async def _asked(c: Client, what: str, signature: str | None, pool: str | None, more: Mapping[str, Any]) -> _Asked:
    from dspex.bus.settings import DEFAULT_POOL
    from dspex.bus.wire import CallSpec
    from dspex.engine.graph import Call

    if signature is not None:
        spec, its_pool = CallSpec(kind="program", target=what, signature=signature), DEFAULT_POOL
    elif ":" in what and "->" not in what and "/" not in what:
        fix = f'dspex call {what} --signature "text -> reply" text=…'
        raise ConfigError(f"{what} is a program, and its signature is not known here", code="DX106", fix=fix)
    else:
        spec, its_pool, _ = await c.resolve(what)
    return _Asked(Call(replace(spec, **more), pool or its_pool, _inputs, _outputs))


def _inputs(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise InvalidInput(f"a call takes fields, and this is {type(data).__name__}", fix="text=… or a JSON object")
    return cast("dict[str, Any]", data)


def _outputs(data: Any, outputs: Mapping[str, Any]) -> Any:
    return dict(outputs)


def _tell_result(t: Terminal, result: Result[Any]) -> None:
    width = max(map(len, result.data), default=0)
    lines = [f"{name:<{width}}  {v if isinstance(v, str) else to_json(v)}" for name, v in result.data.items()]
    ms = result.elapsed.total_seconds() * 1000
    lm = f"  lm {result.lm}" if result.lm else ""
    t.emit(result.as_dict(), "\n".join(lines))
    if not t.json:
        t.note(f"{spent(None, result.usage)}{lm}  {result.worker}  {ms:,.0f} ms")

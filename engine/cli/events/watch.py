"""`dspex watch`: look at events as they are stored."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

import typer

from dspex.bus.errors import ConfigError, ExpressionError, NotAllowed
from dspex.bus.tasks import Tasks
from dspex.engine.cli.terminal.client import client
from dspex.engine.cli.terminal.options import how_many
from dspex.engine.cli.terminal.terminal import Terminal, terminal, to_json

if TYPE_CHECKING:
    from dspex.bus.message import Event
    from dspex.engine.client.client import Client
    from dspex.engine.client.following.hidden import HiddenEvents


_Start: TypeAlias = Literal["new", "all"] | int | datetime


def watch(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="WHAT", help="A subject (wildcards too), or topology/node.")],
    start: Annotated[str, typer.Option("--start", metavar="new|all|1h|SEQ", help="Where to begin.")] = "new",
    number: Annotated[int | None, how_many("--count", help="End after N events.")] = None,
    where: Annotated[str | None, typer.Option("--where", metavar="EXPR", help='Only these: "urgency >= 4".')] = None,
    fields: Annotated[str | None, typer.Option("--fields", metavar="A,B", help="Only these fields of the data.")] = None,
    progress: Annotated[bool, typer.Option("--progress", help="With --json: what programs of a node say, too.")] = False,
) -> None:
    """Print the events of a subject, or the results of a recorded node, as they are stored. It only reads them.

    Of a node it prints what its programs say of themselves meanwhile, too.
    """
    t = terminal(context)
    test = _Test(t, _compiled(where)) if where else None
    names = [f.strip() for f in fields.split(",") if f.strip()] if fields else None
    begin = _start(start)
    try:
        t.run(_watch(t, what, begin, number, test, names, "/" in what and (progress or not t.json)))
    except KeyboardInterrupt:
        return  # the way to end it


def _compiled(where: str) -> Callable[[Any, Any], object]:
    from dspex.operators.expressions import language  # here: few commands need it

    return language.compile(where).function


def _start(text: str) -> _Start:
    from dspex.bus.settings.duration import seconds

    names: dict[str, Literal["new", "all"]] = {"new": "new", "all": "all"}  # a test alone does not narrow for every checker
    if text in names:
        return names[text]
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    try:
        return datetime.now(UTC) - timedelta(seconds=seconds(text))
    except ConfigError as e:
        fix = "new, all, a duration (1h) or a sequence"
        raise ConfigError(f"--start {text!r} does not say where to begin", code="DX105", fix=fix) from e


@dataclass
class _Test:
    """A `--where`. Events on which it cannot be evaluated are left out, and the first of them is reported."""

    t: Terminal
    function: Callable[[Any, Any], object]
    reported: bool = False

    def __call__(self, event: Event[object]) -> bool:
        try:
            return bool(self.function(event.data, _Context(event)))
        except ExpressionError as e:
            if not self.reported:
                self.t.note(f"--where cannot be evaluated on event {event.id}: {e.message}; such events are left out")
            self.reported = True
            return False


@dataclass(frozen=True)
class _Context:
    """What an expression may read besides the data."""

    event: Event[object]


async def _watch(
    t: Terminal, what: str, start: _Start, number: int | None, test: _Test | None, names: list[str] | None, progress: bool
) -> None:
    seen = 0
    async with (
        client(t, "watch") as c,
        aclosing(cast("Any", c.watch(what, start=start))) as events,
        _saying(t, c, what if progress else None),
    ):
        if "/" not in what and await c.bus.stream_of(what) is None:
            t.note(f"nothing stores {what} now: what is published there is shown as it comes, and --start means nothing")
        shows = await _shows(t, c)
        async for watched in cast("AsyncIterator[Event[Any]]", events):
            event = await shows.shown(watched)
            if test is not None and not test(event):
                continue
            _print_event(t, event, names)
            seen += 1
            if seen == number:
                return


async def _shows(t: Terminal, c: Client) -> HiddenEvents:
    """How events are shown. Who may read a sink, and not what is applied, cannot know it, and is told that."""
    from dspex.engine.client.following.hidden import HiddenEvents

    try:
        return await HiddenEvents.of(c)
    except NotAllowed:
        t.note("this user may not read what is applied, so fields that are secret are shown as they are")
        return HiddenEvents(c, {})


@asynccontextmanager
async def _saying(t: Terminal, c: Client, node: str | None) -> AsyncGenerator[None]:
    """Print what the programs of a node say, while the block runs."""

    async def print_all(node: str) -> None:
        async for said in c.statuses(node):
            t.emit(said.as_dict(), f"{said.time.astimezone():%H:%M:%S}  {node}  {said.run}  … {said.text}")

    tasks = Tasks("watch", lambda name, error: t.note(f"what programs say is not shown any more: {error}"))
    if node is not None:
        tasks.start(print_all(node), "statuses")
    try:
        yield
    finally:
        await tasks.stop()


def _print_event(t: Terminal, event: Event[Any], names: list[str] | None) -> None:
    data = event.data
    if names is not None and isinstance(data, dict):
        data = {name: data[name] for name in names if name in data}
    time = event.time.astimezone().strftime("%H:%M:%S")
    t.emit(event.as_dict() | {"data": data}, f"{time}  {event.subject}  {event.run}  {to_json(data)}")

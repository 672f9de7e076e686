"""`dspex publish`: one event, or a file of them at full speed, and what became of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dspex.bus.errors import BusError, ConfigError, DataError, DspexError, PayloadTooLarge, StreamFull
from dspex.engine.cli.terminal.client import client, count, short
from dspex.engine.cli.terminal.progress import Bar
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.cli.events.rows import Row, RowSource
    from dspex.engine.client.client import Client
    from dspex.engine.client.run import Run

IN_FLIGHT = 256  # events that wait for their acknowledgement
SAME_ROW_FOR = 30.0  # seconds that a row is tried again while the server is away
MOST_FAULTS = 20  # bad rows that are printed one by one
_DURATION = re.compile(r"(\d+(\.\d+)?(ms|s|m|h|d))+")


class WithWait(TyperCommand):
    """A command whose `--wait` takes a duration or nothing, which typer's options cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: list[str] = []
        for word in args:
            if given and given[-1] == "--wait=" and _DURATION.fullmatch(word):
                given[-1] += word
            else:
                given.append("--wait=" if word == "--wait" else word)
        return super().parse_args(ctx, given)


COMMAND = WithWait


def publish(
    context: typer.Context,
    subject: Annotated[str, typer.Argument(metavar="SUBJECT")],
    data: Annotated[list[str] | None, typer.Argument(metavar="[DATA]...", help="k=v, k:=json, @file, - (JSON lines).")] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="Rows: .csv .jsonl .json .parquet .arrow")] = None,
    rate: Annotated[str | None, typer.Option("--rate", metavar="N/s", help="Not faster than that.")] = None,
    id: Annotated[str | None, typer.Option("--id", help="Of the event; the same id twice is one event.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Keeps order, and spreads over partitions.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Id of the session it belongs to.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", metavar="K=V", help="May be repeated.")] = None,
    wait: Annotated[str | None, typer.Option("--wait", metavar="[DUR]", help="Until the runs are done.")] = None,
) -> None:
    """Publish events to SUBJECT: one from DATA, or many from a file or stdin.

    A row of a file always gets the same event id, so publishing the file again stores nothing twice, as long as the
    stream remembers the ids: two minutes in streams that dspex makes.
    """
    from dspex.bus.settings.duration import seconds
    from dspex.engine.cli.events.rows import RowSource

    t, source = terminal(context), RowSource(tuple(data or ()), file)
    source.check()
    if id is not None and source.many:
        raise ConfigError("one id is for one event", fix="leave --id out: rows of a file have ids of their own")
    given = {"id": id, "key": key, "session": session, "headers": _headers(header or [])}
    verb = _Publish(t, subject, source, _per_second(rate), {k: v for k, v in given.items() if v})
    limit = seconds(wait) if wait else None
    t.run(verb.main(wait is not None, limit))


def _headers(given: Sequence[str]) -> dict[str, str]:
    pairs = [h.partition("=") for h in given]
    if wrong := next((h for h, (name, sign, _) in zip(given, pairs) if not name or not sign), None):
        raise ConfigError(f"{wrong!r} is no header", fix="--header Name=value")
    return {name: value for name, _, value in pairs}


def _per_second(rate: str | None) -> float | None:
    if rate is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:/(s|min|h))?", rate)
    if not match or not float(match[1]):
        raise ConfigError(f"{rate!r} is not a rate", fix="--rate 100/s, 600/min or 50/h")
    return float(match[1]) / {"s": 1, "min": 60, "h": 3600}[match[2] or "s"]


class _Publish:
    """One use of the verb. Rows go out in their order, up to IN_FLIGHT before the first is acknowledged."""

    def __init__(self, t: Terminal, subject: str, source: RowSource, rate: float | None, options: Mapping[str, Any]) -> None:
        self.t, self.subject, self.source, self.rate = t, subject, source, rate
        self.options = dict(options)
        self.runs: list[Run] = []
        self.duplicates = self.faults = 0
        self.fatal: DspexError | None = None
        self.wait = False

    async def main(self, wait: bool, limit: float | None) -> None:
        from dspex.bus.serving import audit

        self.wait = wait
        total, began = self.source.total(), time.monotonic()
        async with client(self.t, "publish", start=True) as c:
            try:
                if self.source.many:
                    with self.t.progress("publish", total) as bar:
                        await self._all(c, bar)
                else:
                    await self._all(c, None)
            finally:  # also when interrupted: the figures say where to go on
                self._print(time.monotonic() - began)
                if self.runs:
                    await audit.leave(c.bus, c.app, "publish", subject=self.subject, events=len(self.runs))
            if self.fatal:
                raise self.fatal
            failed = await self._results(c, limit, began) if wait and self.runs else 0
        if self.faults or failed:
            raise typer.Exit(1)

    async def _results(self, c: Client, limit: float | None, began: float) -> int:
        from dspex.engine.cli.events.results import print_results

        try:
            return await print_results(self.t, c, self.runs, limit, began)
        except DspexError as e:  # to publish is one thing, and to read what comes of it is another
            last = self.runs[-1]
            stored = f"stored in {last.stream} as {last.sequence}"
            what = (
                f"the event is {stored}, and runs" if len(self.runs) == 1 else f"{len(self.runs):,} events are stored, and run"
            )
            e.fix = f"{what}: do not publish again; {e.fix}"
            raise

    # -- publishing -----------------------------------------------------------------------------------------------
    async def _all(self, c: Client, bar: Bar | None) -> None:
        room, began, sent = asyncio.Semaphore(IN_FLIGHT), time.monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            async for row in self._rows():
                if self.rate and (early := began + sent / self.rate - time.monotonic()) > 0:
                    await asyncio.sleep(early)
                await room.acquire()
                if self.fatal:
                    break
                task = tasks.create_task(self._one(c, row, bar))
                task.add_done_callback(lambda _: room.release())
                sent += 1
                if sent == 1:
                    await task  # an error for a subject that nothing stores appears once, not 256 times

    async def _rows(self) -> AsyncIterator[Row]:
        if not self.source.live:
            for row in self.source.rows():
                yield row
            return
        rows: asyncio.Queue[Row | None] = asyncio.Queue(IN_FLIGHT)
        loop = asyncio.get_running_loop()

        def pump() -> None:
            # the loop may have ended before a line arrives
            with suppress(concurrent.futures.CancelledError, RuntimeError):
                for row in (*self.source.rows(), None):
                    asyncio.run_coroutine_threadsafe(rows.put(row), loop).result()

        threading.Thread(target=pump, name="stdin", daemon=True).start()
        while (next_row := await rows.get()) is not None:
            yield next_row

    async def _one(self, c: Client, row: Row, bar: Bar | None) -> None:
        try:
            if row.fault:
                raise row.error()
            run = await self._stored(c, row)
        except DspexError as e:
            self._failed(row, e)
            return
        self.runs.append(run)
        self.duplicates += run.duplicate
        if bar:
            bar.advance(1, count(self.duplicates, "duplicate") if self.duplicates else "")
        if not self.wait:
            data = {"run": run.id, "subject": run.subject, "stream": run.stream, "seq": run.sequence}
            again = "  a duplicate: it was stored before" if run.duplicate else ""
            text = [] if self.source.many else [f"run {short(run.id)}  stored in {run.stream} as {run.sequence}{again}"]
            self.t.emit(data | {"duplicate": run.duplicate}, *text)

    async def _stored(self, c: Client, row: Row) -> Run:
        """Store the row, and wait for a server that is away for a moment: with its id it is safe to send it again."""
        from dspex.bus.message import new_id

        file = Path(self.source.file).name if self.source.file else None
        id = self.options.get("id") or (row.id(self.subject, file) if file else new_id())
        options: dict[str, Any] = {**self.options, "id": id}
        end, pause = time.monotonic() + SAME_ROW_FOR, 0.1
        while True:
            try:
                return await c.publish(self.subject, row.data, **options)
            except BusError as e:
                if not e.retryable or isinstance(e, StreamFull) or time.monotonic() > end:
                    raise
            await asyncio.sleep(pause)
            pause = min(2.0, pause * 2)

    def _failed(self, row: Row, e: DspexError) -> None:
        if not self.source.many or not isinstance(e, DataError | PayloadTooLarge):
            self.fatal = self.fatal or e
            return
        self.faults += 1
        if self.faults <= MOST_FAULTS:
            e.node = row.where
            self.t.error(e)
        elif self.faults == MOST_FAULTS + 1:
            self.t.note("more bad rows follow; only their number is printed")

    def _print(self, took: float) -> None:
        if not self.source.many or self.t.json:
            return
        new = len(self.runs) - self.duplicates
        bad = f", {count(self.faults, 'bad row')}" if self.faults else ""
        again, rate = count(self.duplicates, "duplicate"), len(self.runs) / max(took, 1e-3)
        self.t.line(f"{new:,} published to {self.subject}, {again}{bad}, in {took:.1f} s ({rate:,.0f}/s)")

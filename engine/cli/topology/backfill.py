"""`dspex apply --backfill`: what is built from history, where its results begin, and how far it is."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dspex.bus.errors import BusError
from dspex.engine.cli.terminal.client import count
from dspex.engine.cli.terminal.terminal import Terminal
from dspex.engine.hosting.planning.lines import time_of

if TYPE_CHECKING:
    from dspex.engine.client.client import Client
    from dspex.engine.client.status.rows import StageRow
    from dspex.engine.graph.graph import Lane
    from dspex.engine.hosting.planning.history import ToRead

    Lanes = Mapping[tuple[str, str], tuple[Lane, Mapping[str, ToRead]]]

EVERY = 1.0  # seconds between two looks
SAY_EVERY = 10  # looks between two objects, where they are printed


def announce(t: Terminal, lanes: Lanes) -> None:
    """Print where the results of what is built begin."""
    for (topology, name), (lane, reads) in lanes.items():
        events = sum(read.events for read in reads.values())
        row = {"topology": topology, "lane": name, "operators": list(lane.operators), "events": events}
        times = {"since": time_of(lane.since), "boundary": time_of(lane.boundary)}
        what = f"{', '.join(lane.operators)}: {count(events, 'event')} of history"
        line = f"backfill  {what}; results begin {times['boundary']}"
        t.emit({**row, **times}, line)


async def watch(t: Terminal, c: Client, lanes: Lanes) -> None:
    """Show how far the history is read, until it is; where no engine runs this version and nobody looks on, say so and end."""
    total = sum(read.events for _, reads in lanes.values() for read in reads.values())
    rows, _ = await _rows(c, lanes)
    if not any(row["owners"] for row in rows.values()):
        t.note("no engine runs this version yet: the history is read when one does (dspex run, or start those that run again)")
        if not sys.stderr.isatty():
            return
    t.note("^C ends this display, not the backfill")
    done, looks = 0, 0
    with t.progress("history", total) as bar:
        while done < total or not looks:
            try:
                rows, left_out = await _rows(c, lanes)
                read = total - sum(await asyncio.gather(*(_left(c, lanes, key, row) for key, row in rows.items())))
            except BusError as e:  # a local server is started again with the engine
                if not e.retryable:
                    raise
            else:
                note = next((row["stopped"] for row in rows.values() if row["stopped"]), None)
                bar.advance(read - done, note or f"{count(left_out, 'result')} left out")
                if t.json and (looks % SAY_EVERY == 0 or read >= total):
                    t.emit({"read": read, "of": total, "left_out": left_out, "done": read >= total})
                done, looks = read, looks + 1
            if done < total:
                await asyncio.sleep(EVERY)
    t.note(f"all {count(total, 'event')} of history are read")


async def _rows(c: Client, lanes: Lanes) -> tuple[Mapping[tuple[str, str, str], StageRow], int]:
    """The stages of the lanes' sources, by topology, lane and source; and how many results were left out in the lanes."""
    from dspex.engine.client.status.status import stage_rows

    stages = await stage_rows(c.bus, c.app, await c.manifests())
    rows = {(row["topology"], row["source"]): row for row in stages}
    keys = [(topology, name, source) for (topology, name), (_, reads) in lanes.items() for source in reads]
    left_out = sum(row["left_out"] for row in stages if any(row["source"].startswith(f"{name}/") for _, name in lanes))
    return {key: rows[key[0], key[2]] for key in keys if (key[0], key[2]) in rows}, left_out


async def _left(c: Client, lanes: Lanes, key: tuple[str, str, str], row: StageRow) -> int:
    """How many events before the boundary one source of a lane has not read."""
    read = lanes[key[:2]][1][key[2]]
    behind = await c.bus.count(read.stream, [read.subject], after=read.last)
    return read.events if row["lag"] is None else max(row["lag"] - behind, 0)

"""What `dspex run` writes to its log of what runs, and what its operators took when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from dspex.bus.errors import ConfigError
from dspex.bus.local import whole_file
from dspex.engine.cli.terminal.terminal import Terminal, to_json

if TYPE_CHECKING:
    from dspex.engine.client.status.rows import OperatorRow

LINE_EVERY = 10.0  # seconds between two log lines about the same


async def log_what_runs(statistics: Callable[[], Mapping[str, Any]]) -> None:
    """A line about each stage and operator that did something since the last, for as long as this runs."""
    from dspex.engine.cli.figures import logged

    log, before = structlog.get_logger("dspex.engine"), statistics()
    while True:
        await asyncio.sleep(LINE_EVERY)
        now = statistics()
        old = {(s["topology"], s["stage"]): logged(s) for s in before["stages"]}
        for stage in now["stages"]:
            if old.get((stage["topology"], stage["stage"])) != logged(stage):
                log.info("stage", **logged(stage), rate=stage["rate"])
        known = list(map(_counted, before["operators"]))
        for operator in map(_counted, now["operators"]):
            if operator not in known and (operator["calls"] or operator["dead_letters"]):
                log.info("operator", **operator)
        before = now


def _counted(operator: Mapping[str, Any]) -> dict[str, Any]:
    """Without its time, which changes with each event."""
    return {name: value for name, value in operator.items() if name not in ("handled", "seconds")}


def profile_file(path: Path | None, processes: int) -> Path | None:
    """Where the profile is written, which is looked at before anything runs. Raises ConfigError, DX105."""
    if path is None:
        return None
    if processes > 1:
        why = "--profile measures one process"
        raise ConfigError(why, code="DX105", node="--profile", fix="leave out --processes; dspex status shows the times of all")
    try:
        whole_file.check(path)
    except OSError as e:
        message = f"{path} cannot be written: {e.strerror}"
        raise ConfigError(message, code="DX105", node="--profile", fix="name another file: --profile profile.json") from e
    return path


def show_profile(t: Terminal, path: Path, operators: list[OperatorRow]) -> None:
    """Print what each operator took, and write it to a file as JSON, an object a line."""
    from dspex.engine.cli.figures import times

    names = ("topology", "node", "handled", "seconds")
    measured = sorted((o for o in operators if "seconds" in o), key=lambda o: -o.get("seconds", 0.0))
    total = sum(o.get("seconds", 0.0) for o in measured)
    rows = [
        {**{name: value for name, value in o.items() if name in names}, "share": round(seconds / total, 4) if total else 0.0}
        for o in measured
        for seconds in [o.get("seconds", 0.0)]
    ]
    whole_file.write(path, "".join(f"{to_json(row)}\n" for row in rows).encode())
    if t.json:
        t.emit({"event": "profile", "file": str(path), "operators": rows})
    else:
        t.block(times(measured))
        t.note(f"profile   {path}")

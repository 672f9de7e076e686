"""What clients have done again: the one module that they import from here, when they need it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dspex.bus.errors import ConfigError
from dspex.bus.settings.similar import did_you_mean
from dspex.engine.again import replays
from dspex.engine.again.answering import MODES, Mode
from dspex.engine.again.change import ForkChange
from dspex.engine.again.code import code
from dspex.engine.again.fork import forked
from dspex.engine.client.client import Client
from dspex.engine.client.runs.diff import Replay
from dspex.engine.client.runs.then.built import FolderOf, replayed
from dspex.engine.client.runs.then.built import forked as forked_there
from dspex.engine.graph.graph import HasGraph

if TYPE_CHECKING:
    from dspex.bus.settings.model import Settings


async def replay(
    client: Client,
    settings: Settings | None,
    run: str | None,
    topology: str | HasGraph | None,
    since: float,
    until: datetime | None,
    mode: Mode,
    folder: FolderOf | None = None,
) -> Replay:
    """See `Client.replay`."""
    _check(mode)
    if (run is None and topology is None) or (run is not None and (since or until is not None)):
        fix = "replay(run), or replay(topology=…, since=…)"
        raise ConfigError("what is replayed is a run, or a topology with a time", code="DX105", fix=fix)
    if folder is not None:
        if topology is not None and not isinstance(topology, str):
            why = "topology= is code of this process, and build= is the code of a folder"
            raise ConfigError(why, code="DX105", fix="give the name of the topology")
        return await replayed(folder, run, topology, since, until, mode)
    graphs = code(client.app, settings, () if isinstance(topology, str) or topology is None else [topology])
    if run is not None:
        return (await replays.of_one(client, client.run(run), graphs, mode))[0]
    name = topology if isinstance(topology, str) else graphs[0].name
    return await replays.of_topology(client, name, graphs, mode, since, until)


async def fork(
    client: Client,
    settings: Settings | None,
    run: str,
    at: str,
    given: Mapping[str, Any],
    topology: HasGraph | None,
    folder: FolderOf | None = None,
    *,
    deliver: bool,
    mode: Mode,
) -> tuple[str, dict[str, Any] | None]:
    """See `Client.fork`: the id of the fork, and what it leads to."""
    _check(mode)
    change = ForkChange(**given, topology=topology is not None)
    change.check()
    if folder is not None:
        return await forked_there(
            folder, run, at, given, other=given["spec"] is not None or topology is not None, deliver=deliver, mode=mode
        )
    if settings is not None and change.lm is not None and change.lm not in settings.lm:
        fix = did_you_mean(change.lm, sorted(settings.lm), "see dspex config show")
        raise ConfigError(f"there is no language model {change.lm!r}", code="DX105", fix=fix)
    graphs = code(client.app, settings, [topology] if topology is not None else ())
    made = await forked(client, run, at, change, graphs, deliver=deliver, mode=mode)
    return made.run, made.later.as_dict() if made.later is not None else None


def _check(mode: str) -> None:
    if mode not in MODES:
        raise ConfigError(f"mode={mode!r} is none", code="DX105", fix=f"one of {', '.join(MODES)}")

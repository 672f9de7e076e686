"""`dspex fork`: a run of the past done again with one change, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dspex.bus.errors import ConfigError
from dspex.engine.cli.runs.again.built import ANY_BUILD, BUILD, with_build
from dspex.engine.cli.runs.again.repeated import calls_made, code_of, quietly
from dspex.engine.cli.runs.choice import ReplayChoice
from dspex.engine.cli.runs.verbs import RUN
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.terminal import Terminal, terminal

if TYPE_CHECKING:
    from dspex.engine.again.answering import Mode
    from dspex.engine.again.change import ForkChange
    from dspex.engine.again.fork import Forked

FIELDS = Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="What it gives instead: k=v, or k:=JSON.")]
MODE = Annotated[
    Literal["strict", "hybrid", "live"],
    typer.Option(
        "--mode", help="strict: no call is made; hybrid: those that are asked something else are; live: all of the run."
    ),
]
INPUTS = Annotated[list[str] | None, typer.Option("--input", metavar="K=V", help="What goes into it: k=v, or k:=JSON.")]


def fork(
    context: typer.Context,
    run: RUN,
    at: Annotated[str | None, typer.Option("--at", metavar="NODE", help="The operator, or one step of it: classify#0.")] = None,
    lm: Annotated[str | None, typer.Option("--lm", metavar="NAME", help="The model that its calls ask.")] = None,
    outputs: FIELDS = None,
    inputs: INPUTS = None,
    target: Annotated[str | None, typer.Option("--with", metavar="TARGET", help="Other code, for the whole run.")] = None,
    program: Annotated[str | None, typer.Option("--program", metavar="NAME@V", help="The saved state that they have.")] = None,
    folder: BUILD = None,
    any_build: ANY_BUILD = False,
    mode: MODE = "hybrid",
    deliver: Annotated[bool, typer.Option("--deliver", help="Publish its outputs to the sinks.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="And print what differs from the run.")] = False,
) -> None:
    """Do a run again with one change, as a run of its own. Calls that ask the same are read back, only others are made.

    Of a fork, --deliver alone publishes what it has for sinks, and is not there yet.
    """
    from dspex.engine.again.change import ForkChange
    from dspex.engine.client.runs.judged.beside import change as change_of

    t = terminal(context)
    if target is not None and folder is not None:
        why = "other code is the change, and --build is for another change under the code of then"
        raise ConfigError(f"--with and --build do not go together: {why}", code="DX105", fix="leave one of them out")
    with_build(t, ReplayChoice(run), None, folder, any_build=any_build)
    change = ForkChange(lm, program, None, _fields(inputs), _fields(outputs), target is not None)
    if at is None and deliver and change == ForkChange():
        id, sent = t.run(_delivered(t, run))
        t.emit({"run": id, "delivered": sent}, f"run {id}  {count(sent, 'event')} published to the sinks")
        return
    if at is None:
        raise ConfigError("a fork changes one thing at an operator, and none is named", code="DX105", fix="--at OPERATOR")
    change.check()
    if lm is not None and lm not in t.settings().lm:
        raise ConfigError(f"there is no language model {lm!r}", code="DX105", fix="see dspex config show")
    made = t.run(quietly(t, _forked(t, run, at, change, target, mode, deliver)))
    lines = [
        f"run {made.run}  fork of …{made.parent[-8:]} at {at}",
        f"{count(made.served, 'call')} read back, {made.called:,} made, {made.tokens:,} tokens",
        *([f"{count(made.delivered, 'event')} published to the sinks"] if deliver else []),
    ]
    lines += [f"begins without state: {made.without}"] if made.without else []
    lines += [f"{at} keeps {change_of(*made.keeps)}"] if made.keeps is not None else []
    lines += made.later.lines() if made.later is not None else []
    lines += [] if made.changed else [f"changed nothing: what it did at {at} is the same, or did not come there"]
    said: dict[str, Any] = made.as_dict() | ({"diff": made.diff.as_dict()} if diff else {})
    t.emit(said, *lines, *(made.diff.lines() if diff else []))


async def _delivered(t: Terminal, run: str) -> tuple[str, int]:
    from dspex.engine.again.fork import delivered

    graphs = code_of(t, None)
    async with client(t, "fork") as c:
        return await delivered(c, run, graphs)


async def _forked(t: Terminal, run: str, at: str, change: ForkChange, target: str | None, mode: Mode, deliver: bool) -> Forked:
    from dspex.engine.again.fork import forked

    graphs = code_of(t, target)
    async with client(t, "fork") as c:
        with calls_made(t, "fork", (await c.run(run).info()).calls) as told:
            return await forked(c, run, at, change, graphs, deliver=deliver, mode=mode, told=told)


def _fields(given: list[str] | None) -> Mapping[str, Any] | None:
    """The fields that an option names. Raises ConfigError."""
    from dspex.engine.cli.terminal.arguments import pairs

    return pairs(given) if given else None

"""`dspex call`: call a worker, and print its result."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from dspex.bus.errors import ConfigError, InvalidInput, TopologyError
from dspex.engine.cli.events.answers import print_result, print_stream, print_submitted
from dspex.engine.cli.terminal.client import client
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.terminal import Terminal, terminal
from dspex.engine.cli.topology.targets import importing, search

if TYPE_CHECKING:
    from dspex.bus.serving.call_spec import CallSpec
    from dspex.engine.client.client import Client
    from dspex.engine.graph.nodes import Call


def call(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="WHAT", help='"text -> lang", topology/node, or pkg.module:Program.')],
    data: Annotated[list[str] | None, typer.Argument(metavar="DATA", help="k=v, k:=json, @file, - (JSON lines).")] = None,
    lm: Annotated[str | None, typer.Option("--lm", metavar="A,B", help="Profiles, in the order they are tried.")] = None,
    pool: Annotated[str | None, typer.Option("--pool", help="Pool that answers.")] = None,
    session: Annotated[str | None, typer.Option("--session", help="The call is the next turn of this session.")] = None,
    timeout: Annotated[str | None, duration("--timeout", help="Of the whole call; default 60s.")] = None,
    signature: Annotated[str | None, typer.Option("--signature", metavar="SIG|REF", help="Of a program.")] = None,
    state: Annotated[str | None, typer.Option("--state", metavar="NAME", help="A saved state: draft@4, draft@prod.")] = None,
    route: Annotated[str | None, typer.Option("--route", metavar="ROUTE", help="auto, worker (DSPy) or native.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer while it is made.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Submit the call, and print its run.")] = False,
) -> None:
    """Call a worker and print the result. WHAT is a signature, a node that is applied, or a program."""
    from dspex.bus.records import Route
    from dspex.bus.serving import audit
    from dspex.bus.settings.duration import seconds
    from dspex.engine.cli.terminal.arguments import records

    t, limit = terminal(context), seconds(timeout or "60s")
    if detach and (stream or timeout is not None):
        other = "--stream" if stream else "--timeout"
        fix = "leave one out; a submitted call has the timeout and the deadline of its operator"
        raise ConfigError(f"--detach waits for no answer, so {other} would do nothing", code="DX105", fix=fix)
    search(t.settings())
    more: dict[str, Any] = {"lm": tuple(p.strip() for p in lm.split(",") if p.strip())} if lm else {}
    if state is not None:
        from dspex.bus.serving.programs.names import StateName

        StateName.read(state)
        more["state"] = state
    if route is not None:
        if route not in get_args(Route):
            raise ConfigError(f"there is no route {route!r}", code="DX105", fix=f"one of: {', '.join(get_args(Route))}")
        more["route"] = route

    async def main() -> None:
        async with client(t, "call") as c:
            spec = await spec_of(c, what, signature, pool, more)
            calls = 0
            try:
                for inputs in records(data or [], sys.stdin):
                    calls += 1
                    if detach:
                        print_submitted(t, await c.submit(spec, inputs, session=session))
                    elif stream:
                        async with c.stream(spec, inputs, timeout=limit, session=session) as answer:
                            await print_stream(t, answer)
                    else:
                        print_result(t, await c.call(spec, inputs, timeout=limit, session=session))
                if detach and calls:
                    await _note_nobody(t, c, (await c.resolve(spec)).pool)
            finally:  # also where one failed: it may have been paid
                if calls:
                    await audit.leave(c.bus, c.app, "call", called=what[: audit.MOST_SHOWN], calls=calls)

    t.run(main())


@dataclass(frozen=True)
class AskedSpec:
    """What is called, with the options of the command line."""

    call: Call
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_call(self) -> Call:
        return self.call


async def spec_of(c: Client, what: str, signature: str | None, pool: str | None, more: Mapping[str, Any]) -> AskedSpec | str:
    """What is called, and what `describe` is asked about. Raises ConfigError, TopologyError."""
    from dspex.bus.records import DEFAULT_POOL
    from dspex.engine.graph.nodes import Call
    from dspex.operators.native.signature import Signature

    if signature is not None:
        spec, its_pool = _program(what, signature), DEFAULT_POOL
    elif ":" in what and "->" not in what and "/" not in what:
        fix = f'dspex call {what} --signature "text -> reply" text=…'
        raise ConfigError(f"{what} is a program, and its signature is not known here", code="DX126", fix=fix)
    else:
        if "->" in what:
            Signature(what)  # a mistake in it is told here, and not by a worker
        spec, its_pool, *_ = await c.resolve(what)
        if (pool or its_pool, replace(spec, **more)) == (its_pool, spec):
            return what  # as it is, and by its name: who may call a deployed node need not be allowed to call anything else
    return AskedSpec(Call(replace(spec, **more), pool or its_pool, _inputs, _outputs))


def _program(what: str, signature: str) -> CallSpec:
    """The call of a program by a signature: its text, or the ref of one, which may have types of the user's.

    Raises TopologyError where either cannot be read or imported.
    """
    from dspex.operators.recorded.calls import program
    from dspex.operators.typing.refs import is_ref, resolve

    if is_ref(signature):
        with importing(signature):
            return program(what, resolve(signature)).to_call().spec
    try:
        return program(what, signature).to_call().spec
    except TopologyError as e:
        if e.code == "DX209":
            e.fix = f'in a module: CONTRACT = Signature("{signature}", types={{…}}), and here: --signature module:CONTRACT'
        raise


def _inputs(data: object) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise InvalidInput(f"a call takes fields, and this is {type(data).__name__}", fix="text=… or a JSON object")
    return cast("dict[str, Any]", data)


def _outputs(data: object, outputs: Mapping[str, object]) -> dict[str, object]:
    return dict(outputs)


async def _note_nobody(t: Terminal, c: Client, pool: str) -> None:
    """Say that what was submitted waits for a worker, where it does."""
    from dspex.engine.client.status.pools import processes

    if not await processes(c.bus, c.app, pool):
        t.note(f"note: no process of pool {pool} answers now, so it may wait for one: dspex worker {pool}")

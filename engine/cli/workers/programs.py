"""`dspex programs`: saved states of programs, their versions and aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from dspex.bus.errors import ConfigError, Fenced
from dspex.bus.serving.keys.secret_fields import Secrets
from dspex.engine.cli.runs.scored import credit_lines, credits_of
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.options import MOST
from dspex.engine.cli.terminal.terminal import Terminal, terminal
from dspex.engine.client.following import hidden

if TYPE_CHECKING:
    from dspex.bus.serving.programs.form import ProgramState
    from dspex.bus.serving.programs.states import SavedProgram, SavedVersion
    from dspex.engine.client.runs.judged.scores import Score
    from dspex.engine.client.status.programs import ProgramInfo

_DIGITS = 12  # of a digest in a table
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Of the saved program.")]
AliasArgument = Annotated[str, typer.Argument(metavar="ALIAS", help="prod, canary, …")]


def ls(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only of this program.")] = None,
) -> None:
    """List the saved states of programs, with the aliases that point to them."""
    t = terminal(context)
    found = t.run(_listing(t))
    versions = [(p, v) for p in found.values() if name in (None, p.name) for v in p.versions.values()]
    if t.json:
        for program, version in versions:
            t.emit(_plain(program, version))
    elif versions:
        rows = [_row(program, version) for program, version in versions]
        t.table(
            rows, {key: key for key in ("program", "aliases", "dspy", "predictors", "size", "saved", "by")}, wrap="predictors"
        )
    else:
        t.note(f"nothing is saved of {name}" if name else "no program is saved: dspex programs put NAME FILE")


def show(
    context: typer.Context,
    what: Annotated[str, typer.Argument(metavar="WHAT", help='draft@prod, or as for call: topology/node, "text -> lang", …')],
    signature: Annotated[str | None, typer.Option("--signature", metavar="SIG|REF", help="Of a program.")] = None,
    pool: Annotated[str | None, typer.Option("--pool", help="Pool that is asked.")] = None,
    state: Annotated[str | None, typer.Option("--state", metavar="NAME", help="A saved state: draft@4, draft@prod.")] = None,
) -> None:
    """Show what a saved state has, or what a program is made of: predictors, instructions, fields, demonstrations."""
    t = terminal(context)
    if not (":" in what or "/" in what or "->" in what):
        program, version, saved, scores = t.run(_one(t, what))
        plain = _plain(program, version)
        t.emit(
            {**plain, "predictors": dict(saved.predictors), "scores": credits_of(scores, version.name)}, *_shown(plain, saved)
        )
        for line in credit_lines(scores, version.name):
            t.line(line)
        return
    info = t.run(_described(t, what, signature, pool, {"state": state} if state is not None else {}))
    t.emit(info.as_dict(), *_lines(info))


def put(
    context: typer.Context,
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help='What program.save("state.json") wrote.')],
) -> None:
    """Save a state as the next version of a program."""
    t = terminal(context)
    state = _state_in(file)
    version, models = t.run(_put(t, name, state))
    if models:
        said = ", ".join(models)
        t.note(f"the language model of {said} was left out: profiles say which there is")
    t.emit({"program": version.program, "version": version.version, "digest": version.digest}, version.name)


def promote(
    context: typer.Context,
    name: NameArgument,
    version: Annotated[
        int, typer.Argument(metavar="VERSION", min=1, max=MOST, help="The version that the alias is to point to.")
    ],
    alias: AliasArgument,
) -> None:
    """Have an alias point to a version: the next calls of `NAME@ALIAS` use it."""
    t = terminal(context)
    t.run(_promoted(t, name, version, alias))
    t.emit({"program": name, "alias": alias, "version": version}, f"{name}@{alias} is {name}@{version} now")


def rollback(context: typer.Context, name: NameArgument, alias: AliasArgument) -> None:
    """Have an alias point to the version that it pointed to before."""
    t = terminal(context)
    version = t.run(_rolled_back(t, name, alias))
    t.emit({"program": name, "alias": alias, "version": version}, f"{name}@{alias} is {name}@{version} again")


def _state_in(file: Path) -> Mapping[str, Any]:
    try:
        found = orjson.loads(file.read_bytes())
    except OSError as e:
        raise ConfigError(f"{file} cannot be read: {e.strerror}", code="DX120", fix="name the file that DSPy saved") from e
    except ValueError as e:
        fix = 'save it as JSON: program.save("state.json"); a pickle is never loaded'
        raise ConfigError(f"{file} is no JSON: {e}", code="DX120", fix=fix) from e
    if not isinstance(found, dict):
        raise ConfigError(f"{file} holds no state of a program", code="DX120", fix='program.save("state.json") writes one')
    return found


async def _described(t: Terminal, what: str, signature: str | None, pool: str | None, more: Mapping[str, Any]) -> ProgramInfo:
    from dspex.bus.serving.programs.names import StateName
    from dspex.engine.cli.events.call import spec_of
    from dspex.engine.cli.topology.targets import search

    search(t.settings())
    if "state" in more:
        StateName.read(more["state"])
    async with client(t, "programs") as c:
        asked = await spec_of(c, what, signature, pool, more)
        info, secrets = await c.describe(asked), await hidden.marked_in(c)
        own = Secrets((await c.resolve(asked)).spec.secrets)
        return replace(info, predictors=[hidden.predictor(secrets | own, one) for one in info.predictors])


async def _listing(t: Terminal) -> dict[str, SavedProgram]:
    from dspex.bus.serving.programs.states import SavedStates

    async with client(t, "programs") as c:
        return await SavedStates(c.bus, c.app).listing()


async def _one(t: Terminal, what: str) -> tuple[SavedProgram, SavedVersion, ProgramState, list[Score]]:
    from dspex.bus.serving.programs.names import StateName
    from dspex.bus.serving.programs.states import SavedStates

    name = StateName.read(what)
    async with client(t, "programs") as c:
        states = SavedStates(c.bus, c.app)
        version = await states.find(name)
        scores = [score async for score in c.scores()]
        saved, secrets = await states.load(version), await hidden.marked_in(c)
        return (await states.listing())[name.program], version, hidden.saved(secrets, saved), scores


async def _put(t: Terminal, name: str, state: Mapping[str, Any]) -> tuple[SavedVersion, tuple[str, ...]]:
    from dspex.engine.client.status.programs import ProgramStore

    settings = t.settings()
    async with client(t, "programs", start=True) as c:
        return await ProgramStore(c.bus, c.app, settings.pools, settings.server.replicas).put(name, state)


async def _promoted(t: Terminal, name: str, version: int, alias: str) -> None:
    from dspex.engine.client.status.programs import ProgramStore

    async with client(t, "programs") as c:
        await ProgramStore(c.bus, c.app, t.settings().pools).promote(name, version, alias)


async def _rolled_back(t: Terminal, name: str, alias: str) -> int:
    from dspex.engine.client.status.programs import ProgramStore

    async with client(t, "programs") as c:
        try:
            return await ProgramStore(c.bus, c.app, t.settings().pools).rollback(name, alias)
        except Fenced as e:
            e.fix = "look at what it is now, and decide anew: dspex programs ls"
            raise


def _aliases(program: SavedProgram, version: SavedVersion) -> list[str]:
    return [alias for alias in program.aliases if program.points_to(alias) == version.version]


def _plain(program: SavedProgram, version: SavedVersion) -> dict[str, Any]:
    return {
        "program": version.program,
        "version": version.version,
        "aliases": _aliases(program, version),
        "digest": version.digest,
        "size": version.size,
        "dspy_version": version.dspy_version,
        "predictors": list(version.predictors),
        "time": version.time,
        "who": version.who,
    }


def _row(program: SavedProgram, version: SavedVersion) -> dict[str, Any]:
    return {
        "program": version.name,
        "aliases": " ".join(_aliases(program, version)),
        "dspy": version.dspy_version or "?",
        "predictors": ", ".join(version.predictors),
        "size": f"{version.size:,}",
        "saved": f"{version.time:%Y-%m-%d %H:%M}",
        "by": version.who,
    }


def _lines(info: ProgramInfo) -> list[str]:
    models = ", ".join(f"{name} ({model})" for name, model in info.lms.items()) or "none"
    lines = [
        f"{info.program}  {info.module}  {info.state}".rstrip(),
        f"pool {info.pool}  lm {models}  DSPy {info.dspy_version}",
    ]
    lines += [f"tools {', '.join(info.tools)}"] if info.tools else []
    for one in info.predictors:
        inputs, outputs = (", ".join(f"{n}: {t}" for n, t in fields.items()) for fields in (one.inputs, one.outputs))
        lines.append(f"  {one.name}: {inputs} -> {outputs}; {count(len(one.demos), 'demonstration')}")
        lines += [f"    {line}" for line in one.instructions.splitlines()]
    return lines + ([f"warning: {info.warning}"] if info.warning else [])


def _shown(plain: Mapping[str, Any], state: ProgramState) -> list[str]:
    aliases = f"  {' '.join(plain['aliases'])}" if plain["aliases"] else ""
    lines = [f"{plain['program']}@{plain['version']}{aliases}  {plain['digest'][:_DIGITS]}  {plain['size']:,} bytes"]
    lines.append(
        f"saved {plain['time']:%Y-%m-%d %H:%M} by {plain['who']} under DSPy {plain['dspy_version'] or 'of unknown version'}"
    )
    for name, of in state.predictors.items():
        fields = ", ".join(str(field["prefix"]).rstrip(":") for field in of["signature"]["fields"])
        lines.append(f"  {name}: {fields}; {count(len(of['demos']), 'demonstration')}")
        lines += [f"    {line}" for line in of["signature"]["instructions"].splitlines()]
    return lines

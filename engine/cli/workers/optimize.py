"""`dspex optimize`: a job that makes a program better, from rows to a saved version."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import orjson
import typer

from dspex.bus.errors import ConfigError, Saturated
from dspex.bus.local.whole_file import write
from dspex.engine.cli.events.call import spec_of
from dspex.engine.cli.terminal.client import client, count, spent
from dspex.engine.cli.terminal.options import duration
from dspex.engine.cli.terminal.terminal import Terminal, terminal
from dspex.engine.cli.topology.targets import search

if TYPE_CHECKING:
    from dspex.engine.cli.terminal.progress import Bar
    from dspex.engine.client.client import Client
    from dspex.engine.client.run import Run
    from dspex.operators.recorded.optimize import Optimization

_LOOK_EVERY: Final = 1.0  # seconds between two questions how far it is
_BUDGET: Final = re.compile(r"(\d+)(k|M)? *(requests|tokens)", re.ASCII)
_TIMES: Final[Mapping[str, int]] = {"": 1, "k": 1000, "M": 1_000_000}
_SAID: Final = re.compile(r"(.*) (\d+)/(\d+)", re.ASCII)


@dataclass(frozen=True)
class _Asked:
    """What the command line says. `rows`: the inputs of the job; `save`: the name of the program; None: nothing is saved."""

    t: Terminal
    job: Optimization
    rows: Mapping[str, Any]
    id: str | None
    save: str | None
    anyway: bool
    output: Path | None


def optimize(
    context: typer.Context,
    program: Annotated[str, typer.Argument(metavar="PROGRAM", help='"text -> lang", topology/node, or pkg.module:Program.')],
    metric: Annotated[str, typer.Option("--metric", metavar="NAME", help="Of dspex.metrics, or pkg.module:function.")],
    data: Annotated[str | None, typer.Option("--data", metavar="FILE", help="Rows, as for publish -f.")] = None,
    test: Annotated[str | None, typer.Option("--test", metavar="FILE", help="Rows to score with alone.")] = None,
    held_back: Annotated[
        float, typer.Option("--held-back", metavar="PART", min=0.001, max=0.999, help="Of --data, to score with alone.")
    ] = 0.3,
    types: Annotated[list[str] | None, typer.Option("--types", metavar="COLUMN=TYPE", help="Of a CSV file's column.")] = None,
    using: Annotated[str, typer.Option("--with", metavar="OPTIMIZER", help="BootstrapFewShot, MIPROv2.")] = "BootstrapFewShot",
    option: Annotated[list[str] | None, typer.Option("--option", metavar="K=V", help="Of the optimizer; k:=json.")] = None,
    budget: Annotated[
        str | None, typer.Option("--budget", metavar="MOST", help='"500 requests", "200k tokens", or both.')
    ] = None,
    save: Annotated[str | None, typer.Option("--save", metavar="NAME", help="Save what is better as a version.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Save it where it is not better, too.")] = False,
    output: Annotated[Path | None, typer.Option("-o", metavar="FILE", help="Write the state to a file, too.")] = None,
    signature: Annotated[str | None, typer.Option("--signature", metavar="SIG|REF", help="Of a program.")] = None,
    lm: Annotated[str | None, typer.Option("--lm", metavar="NAME", help="Profile; default: the program's first.")] = None,
    state: Annotated[str | None, typer.Option("--state", metavar="NAME", help="A saved state to begin with.")] = None,
    pool: Annotated[str, typer.Option("--pool", help="Pool that runs the job.")] = "optimizer",
    threads: Annotated[int, typer.Option("--threads", min=1, max=1000, help="Programs side by side.")] = 8,
    timeout: Annotated[str, duration("--timeout", help="Of an attempt.")] = "6h",
    id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Name of the job: the same is one job.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the job with this --id.")] = False,
) -> None:
    """Make a program better with an optimizer of DSPy, and save the version. The job outlives this command."""
    from dspex.operators.recorded.optimize import optimize as job_of

    t = terminal(context)
    search(t.settings())
    if lm is not None and "," in lm:
        fix = "name one profile: scores of two models cannot be compared"
        raise ConfigError(f"a job asks one model, and --lm names several: {lm}", code="DX105", fix=fix)
    more: dict[str, Any] = {"lm": (lm.strip(),)} if lm else {}
    if state is not None:
        more["state"] = state
    requests, tokens = budget_of(budget)
    options = _options_of(option or [])
    if cancel and not id:
        raise ConfigError("--cancel does not say which job", code="DX105", fix="give its --id, too")

    async def main() -> None:
        async with client(t, "optimize") as c:
            found = await c.resolve(await spec_of(c, program, signature, None, more))
            job = job_of(
                found.spec, metric, using=using, options=options, requests=requests, tokens=tokens, pool=pool,
                threads=threads, timeout=timeout, held_back=held_back,
            )  # fmt: skip
            if cancel:
                await _cancelled(_Asked(t, job, {}, id, None, False, None), c)
                return
            await _need_pool(t, c, pool, using)
            await _optimized(_Asked(t, job, rows_of(data, test, types or []), id, save, anyway, output), c)

    t.run(main())


def budget_of(text: str | None) -> tuple[int, int]:
    """Requests and tokens; 0 for any number. Raises ConfigError (DX105)."""
    found = {"requests": 0, "tokens": 0}
    for part in text.split(",") if text is not None else ():
        if (match := _BUDGET.fullmatch(part.strip())) is None:
            fix = '--budget "500 requests", --budget "200k tokens", or both with a comma between'
            raise ConfigError(f"{part.strip()!r} is no budget of requests or tokens", code="DX105", fix=fix)
        found[match[3]] = int(match[1]) * _TIMES[match[2] or ""]
    return found["requests"], found["tokens"]


def _options_of(given: list[str]) -> dict[str, Any]:
    """Options of the optimizer; a value that is JSON is that, and any other is a text."""
    from dspex.engine.cli.terminal.arguments import parted

    found: dict[str, Any] = {}
    for one in given:
        if (assigned := parted(one)) is None:
            raise ConfigError(f"{one!r} is no option of an optimizer", code="DX105", fix="--option max_labeled_demos=8")
        name, _, value = assigned
        found[name] = value
        with suppress(ValueError):
            found[name] = orjson.loads(value)
    return found


def rows_of(data: str | None, test: str | None, types: list[str]) -> Mapping[str, Any]:
    """The inputs of the job. Raises ConfigError and DataError (DX120) for files that cannot be read."""
    if data is None:
        raise ConfigError("there are no rows", code="DX120", fix="--data rows.csv")
    rows = _read(data, types)
    return {"rows": rows} if test is None else {"train": rows, "test": _read(test, types)}


def _read(file: str, types: list[str]) -> list[object]:
    from dspex.engine.cli.events.tables.table import HowToRead, opened
    from dspex.engine.cli.events.tables.typed import readers

    with ExitStack() as stack:
        found = list(opened(file, HowToRead(types=readers(types)), stack).rows())
    if wrong := next((row for row in found if row.fault is not None), None):
        raise wrong.error()
    return [row.data for row in found]


async def _need_pool(t: Terminal, c: Client, pool: str, using: str) -> None:
    """Say where nobody will run the job now. Raises ConfigError where nobody ever will."""
    from dspex.bus import subjects
    from dspex.bus.serving.programs.optimizers import ref_of_optimizer

    try:
        await c.bus.request(subjects.control(c.app, pool), orjson.dumps({"kind": "status"}))
    except Saturated:
        if pool not in t.settings().pools:
            why = f"no pool {pool!r} runs, and the settings have none"
            ref = ref_of_optimizer(using)
            fix = f'add it to dspex.toml, and start one: pools.{pool} = {{ programs = ["{ref}"] }}; dspex worker {pool}'
            raise ConfigError(why, code="DX133", fix=fix, node=pool) from None
        t.note(f"no process of pool {pool} is running: the job waits for one: dspex worker {pool}")


async def _optimized(asked: _Asked, c: Client) -> None:
    """Submit the job, show how far it is until it is over, and save what it gave."""
    from dspex.engine.client.publish import named

    t, id = asked.t, named(asked.id)
    run = await c.submit(asked.job, asked.rows, id=id)
    t.note(f"job {id}{'  which was submitted before' if run.duplicate else ''}")
    try:
        result = await _shown_until_over(asked, c, run)
    except asyncio.CancelledError:
        t.note(f"the job goes on; the same command with --id {id} shows it again, and ends it with --cancel")
        raise
    found = dict(result.data)
    saved = None
    if asked.output is not None:
        _write(asked.output, _without_secrets(asked, found["state"]))
    if asked.save is not None and (found["after"] > found["before"] or asked.anyway):
        saved = await _saved(c, asked.save, found["state"])
    state = found.pop("state")
    lines = [
        f"score     {found['before']:.1f} → {found['after']:.1f} %  {found['metric']}, {count(found['test'], 'row')} held back",
        f"learned   {count(found['train'], 'row')}  {found['optimizer']}",
        f"asked     {count(found['requests'], 'request')}  {spent(None, _usage(found))}",
    ]
    if asked.save is not None:
        why = "not saved: it is no better; --anyway saves it"
        lines.append(f"saved     {saved}" if saved is not None else why)
    t.emit({"job": id, "run": run.id, "saved": saved, **found, "predictors": sorted(set(state) - {"metadata"})}, *lines)


def _without_secrets(asked: _Asked, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state as it is written to a file: its demonstrations are rows of somebody."""
    from dspex.bus.serving.keys.secret_fields import Secrets
    from dspex.engine.client.following import hidden

    shown: Mapping[str, Any] = hidden.learned(Secrets(asked.job.program.secrets), asked.rows, state).masked(state)
    if shown != state:
        asked.t.note(f"{asked.output} has a marker in place of what is secret; what --save stores has the values, sealed")
    return shown


def _write(file: Path, state: Mapping[str, Any]) -> None:
    """As DSPy's own `save` does it. Raises ConfigError (DX120)."""
    try:
        write(file, orjson.dumps(state, option=orjson.OPT_INDENT_2))
    except OSError as e:
        raise ConfigError(f"{file} cannot be written: {e.strerror}", code="DX120", fix="-o FILE in a folder of yours") from e


def _usage(found: Mapping[str, Any]) -> Any:
    from dspex.bus.records import Usage

    return Usage(found["input_tokens"], found["output_tokens"], found["cost"])


async def _saved(c: Client, name: str, state: Mapping[str, Any]) -> str:
    """The version; the newest one where that is the same state: the job was asked for again."""
    from dspex.bus.serving.programs import form
    from dspex.bus.serving.programs.states import SavedStates

    programs = await SavedStates(c.bus, c.app).listing()
    versions = programs[name].versions if name in programs else {}
    if versions and (newest := versions[max(versions)]).digest == form.digest_of(form.read(state).packed):
        return newest.name
    return await c.put_program(name, state)


async def _shown_until_over(asked: _Asked, c: Client, run: Run) -> Any:
    """Its result. Raises what has ended it."""
    from dspex.bus.tasks import Tasks

    tasks = Tasks("job")
    over = tasks.start(run.result(), "result")
    try:
        with ExitStack() as stack:
            bar: Bar | None = None
            done = 0
            while not (await asyncio.wait([over], timeout=_LOOK_EVERY))[0]:
                with suppress(Saturated):  # its pool is restarted
                    if (match := _SAID.fullmatch(await c.job_status(run.id) or "")) is None:
                        continue
                    bar = bar or stack.enter_context(asked.t.progress("optimizing", int(match[3])))
                    bar.advance(max(0, int(match[2]) - done), match[1])
                    done = max(done, int(match[2]))
        return over.result()
    finally:
        await tasks.stop()


async def _cancelled(asked: _Asked, c: Client) -> None:
    """Cancel the job with this id."""
    from dspex.engine.client.calls.jobs import run_of_job

    run = run_of_job(c.bus, asked.job.pool, str(asked.id))
    running = await c.cancel_job(run)
    said = "cancelled" if running else "not running now: it ends where a process of its pool takes it up"
    asked.t.emit({"job": asked.id, "run": run, "running": running}, said)

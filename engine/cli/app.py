"""The command line: its global options, its verbs, and how an error becomes output.

The top of the house: it may import every room, and no room imports it.
"""

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from dspex import __version__
from dspex.bus.errors import ConfigError, DspexError
from dspex.engine.cli import audit, demo, not_built, run, runs, status
from dspex.engine.cli.events import call, dlq, publish, watch
from dspex.engine.cli.server import permissions, server
from dspex.engine.cli.terminal import log
from dspex.engine.cli.terminal.terminal import Terminal, where_raised
from dspex.engine.cli.topology import apply, check, delete, init
from dspex.engine.cli.workers import bench, worker

_WITH_VALUE = ("--config", "--server", "--creds", "--context", "--color")
_ALONE = ("--json", "-q", "--quiet", "-v", "-vv", "--verbose", "--no-progress")


def main(args: list[str]) -> int:
    """Run a command; its exit code."""
    terminal = Terminal(json="--json" in args)
    try:
        return _run(globals_first(args), terminal)
    except SystemExit as e:
        if not isinstance(e.__context__, BrokenPipeError):
            raise
        # `dspex watch … | head`: the reader has closed the pipe. typer would exit with 1.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: list[str], terminal: Terminal) -> int:
    # the base of usage errors: click's own, or since typer carries a copy of click, that copy's
    usage_error: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        code = assemble(terminal)(args, prog_name="dspex", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Abort as e:
        return 130 if isinstance(e.__context__, KeyboardInterrupt) else 1
    except DspexError as e:
        terminal.error(e)
        return e.exit_code
    except usage_error as e:
        terminal.error(_usage_error(e))
        return 2
    except Exception as e:  # noqa: BLE001 - the last stop before the user, who gets a report instead of a traceback
        terminal.error(_bug(e))
        return 1


def _usage_error(error: Any) -> ConfigError:
    """What click says about the command line, as an error of ours."""
    context, text = getattr(error, "ctx", None), str(error.format_message())
    path = str(context.command_path) if context else "dspex"
    return not_built.refusal(path, text, getattr(error, "option_name", None)) or ConfigError(
        text[:1].lower() + text[1:].rstrip("."), code="DX100", fix=f"see {path} -h"
    )


def _bug(error: Exception) -> DspexError:
    found = DspexError(f"{type(error).__name__}: {error}{where_raised(error)}")
    found.__cause__ = error
    return found


def globals_first(args: list[str]) -> list[str]:
    """Global options may stand anywhere: `dspex status --json` is `dspex --json status`."""
    first: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word in _ALONE or word.startswith(tuple(f"{o}=" for o in _WITH_VALUE)):
            first.append(word)
        elif word in _WITH_VALUE:
            first += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            rest.append(word)
    return [*first, *rest]


def assemble(terminal: Terminal) -> typer.Typer:
    """The command line as a typer app; what it prints goes to `terminal`."""
    app = typer.Typer(
        name="dspex",
        help="DSPy programs on streams of events, exactly once, replayable.",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback(invoke_without_command=True)
    def dspex(  # the global options of API.md, section 3
        context: typer.Context,
        config: Annotated[str | None, typer.Option(metavar="PATH", help="Settings file.")] = None,
        server: Annotated[str | None, typer.Option(metavar="URL", help="NATS server.")] = None,
        creds: Annotated[str | None, typer.Option(metavar="PATH", help="NATS credentials file.")] = None,
        nats_context: Annotated[str | None, typer.Option("--context", metavar="NAME", help="Context of the nats CLI.")] = None,
        json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors and results only.")] = False,
        verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="More; twice for all.")] = 0,
        color: Annotated[str, typer.Option(metavar="auto|always|never", help="Colours.")] = "auto",
        no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bars.")] = False,
        version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    ) -> None:
        if version:
            terminal.emit({"version": __version__}, f"dspex {__version__}")
            raise typer.Exit
        if context.invoked_subcommand is None:
            sys.stdout.write(f"{context.get_help()}\n")
            raise typer.Exit
        if color not in ("auto", "always", "never"):
            raise typer.BadParameter(f"{color!r} is not one of auto, always, never", context, param_hint="--color")
        _apply(terminal, json, quiet, verbose, color, no_progress)
        terminal.config = config
        terminal.flags = {"server__url": server, "server__creds": creds, "server__context": nats_context}
        context.obj = terminal

    _add_verbs(app)
    return app


def _apply(terminal: Terminal, json: bool, quiet: bool, verbose: int, color: Any, no_progress: bool) -> None:
    terminal.json, terminal.quiet, terminal.verbosity = json, quiet, verbose
    terminal.color, terminal.bars = color, not no_progress
    log.configure(verbosity=verbose, quiet=quiet)


def _add_verbs(app: typer.Typer) -> None:
    """All verbs, in the order in which help lists them."""
    app.command("init")(init.init)
    app.command("check")(check.check)
    app.command("show")(check.show)
    app.command("run")(run.run)
    app.command("apply")(apply.apply)
    app.command("delete")(delete.delete)
    app.command("worker")(worker.worker)
    app.command("publish", cls=publish.WithWait)(publish.publish)
    app.command("call")(call.call)
    app.command("watch")(watch.watch)
    app.command("status")(status.status)
    _group(app, "dlq", "Dead letters: events that could not be processed.", dlq.ls, dlq.show, dlq.redrive, dlq.drop)
    _group(app, "runs", "Runs: what source events caused.", runs.forget)
    about = "The local nats-server, and permissions on one of yours."
    _group(app, "server", about, server.start, server.stop, server.status, permissions.permissions)
    _group(app, "audit", "Who changed what.", audit.ls)
    _group(app, "config", "The settings.", server.show)
    _group(app, "model", "Language models that run on this machine.", worker.install, worker.ls, worker.rm)
    _group(app, "bench", "What dspex costs on this machine.", bench.native)
    app.command("doctor")(server.doctor)
    app.command("demo")(demo.demo)


def _group(app: typer.Typer, name: str, about: str, *verbs: Callable[..., Any]) -> None:
    """A noun with its verbs: `dspex dlq ls`."""
    group = typer.Typer(help=about, no_args_is_help=True)
    group.callback()(lambda: None)  # without it, a group of one verb would be that verb
    for verb in verbs:
        group.command(verb.__name__)(verb)
    app.add_typer(group, name=name)

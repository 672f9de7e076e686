"""The command line: its global options, its verbs, and how an error becomes output.

The top of the house: it may import every room, and no room imports it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperGroup

from dspex import __version__
from dspex.bus.errors import ConfigError, DspexError
from dspex.engine.cli.terminal.ending import Ending, Interrupted, interruptible
from dspex.engine.cli.terminal.terminal import Terminal, terminal, where_raised


class _Noun(NamedTuple):
    """A word that verbs stand behind: `dspex dlq ls`."""

    about: str
    verbs: tuple[str, ...]


# What help lists, in its order: heading → word → the function of the verb, as a module below engine/cli and a name in it. The
# module is imported when the verb is used: what `dspex run` needs would cost every other verb a third of a second.
VERBS: Final[Mapping[str, Mapping[str, str | _Noun]]] = {
    "Topologies": {
        "init": "topology.init:init",
        "check": "topology.check:check",
        "show": "topology.check:show",
        "test": "topology.testing:test",
        "plan": "topology.apply:plan",
        "apply": "topology.apply:apply",
        "pause": "topology.pause:pause",
        "resume": "topology.pause:resume",
        "delete": "topology.delete:delete",
    },
    "Processes": {
        "run": "run:run",
        "worker": "workers.worker:worker",
        "gateway": "server.gateway:gateway",
        "ui": "server.gateway:ui",
        "mcp": "server.agents.mcp:mcp",
        "demo": "demo.demo:demo",
    },
    "Events and calls": {
        "publish": "events.publish:publish",
        "call": "events.call:call",
        "optimize": "workers.optimize:optimize",
        "watch": "events.watch:watch",
        "runs": _Noun(
            "Runs: what source events caused.",
            (
                *(f"runs.verbs:{verb}" for verb in ("ls", "show", "explain", "wait", "cancel", "forget")),
                "runs.comparing:export",
                "runs.comparing:import_",
                *(f"runs.scoring:{verb}" for verb in ("score", "scores")),
            ),
        ),
        "replay": "runs.replaying:replay",
        "eval": "runs.judging:evaluate",
        "shadow": "runs.shadowing:shadow",
        "fork": "runs.again.forking:fork",
        "diff": "runs.comparing:diff",
        "dlq": _Noun(
            "Dead letters: events that could not be processed.",
            ("events.dlq:ls", "events.dlq:show", "events.dlq:redrive", "events.dlq:drop"),
        ),
        "sessions": _Noun(
            "Sessions: calls in order, with what was said before.",
            tuple(f"events.sessions:{verb}" for verb in ("ls", "show", "end")),
        ),
        "approvals": _Noun(
            "What waits for a person's decision.",
            tuple(f"events.approvals:{verb}" for verb in ("ls", "show", "accept", "reject", "edit")),
        ),
        "pools": _Noun(
            "Pools of workers: how many there are, and how many there shall be.",
            tuple(f"workers.pools:{verb}" for verb in ("ls", "scale", "drain", "restart")),
        ),
        "programs": _Noun(
            "Saved states of programs, by version and alias.",
            tuple(f"workers.programs:{verb}" for verb in ("ls", "show", "put", "promote", "rollback")),
        ),
    },
    "What is going on": {
        "status": "status:status",
        "doctor": "server.server:doctor",
        "state": _Noun("What operators with state keep.", ("events.state:get", "events.state:ls")),
        "audit": _Noun("Who changed what.", ("audit:ls",)),
    },
    "This machine": {
        "config": _Noun("The settings.", ("server.server:show",)),
        "server": _Noun(
            "The local nats-server, and permissions on one of yours.",
            ("server.server:start", "server.server:stop", "server.server:status", "server.permissions:permissions"),
        ),
        "skills": _Noun("What coding agents read.", ("server.agents.skills:install",)),
        "model": _Noun(
            "Language models that run on this machine.", ("workers.worker:install", "workers.worker:ls", "workers.worker:rm")
        ),
        "bench": _Noun("What dspex costs on this machine.", ("workers.bench:native",)),
    },
}

_WITH_VALUE = ("--config", "--server", "--creds", "--context", "--color")
_ALONE = ("--json", "-q", "--quiet", "-v", "-vv", "--verbose", "--no-progress")


def main(args: list[str]) -> int:
    """Run a command; its exit code."""
    terminal = Terminal(json="--json" in args, arguments=args)
    try:
        with Ending(args) as ending:
            return _run(globals_first(args), terminal, ending)
    except SystemExit as e:
        if not isinstance(e.__context__, BrokenPipeError):
            raise
        # `dspex watch … | head`: the reader has closed the pipe. typer would exit with 1.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: list[str], terminal: Terminal, ending: Ending) -> int:
    # the base of usage errors: click's own, or since typer carries a copy of click, that copy's
    usage_error: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        code = assemble(terminal)(args, prog_name="dspex", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except (typer.Abort, Interrupted) as e:
        return ending.code(e.__context__, terminal.note)
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
    from dspex.engine.cli import not_built

    context, text = getattr(error, "ctx", None), str(error.format_message())
    path = str(context.command_path) if context else "dspex"
    # a value that click refuses, and one that we refuse ourselves, are one mistake
    code = "DX105" if isinstance(error, typer.BadParameter) else "DX100"
    return not_built.refusal(path, text, getattr(error, "option_name", None)) or ConfigError(
        text[:1].lower() + text[1:].rstrip("."), code=code, fix=f"see {path} -h"
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
    app = _app(
        name="dspex",
        cls=_Verbs,
        help="DSPy programs on streams of events, exactly once, replayable.",
        context_settings={"help_option_names": ["-h", "--help"]},
        add_completion=True,
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

    return app


def _apply(terminal: Terminal, json: bool, quiet: bool, verbose: int, color: Any, no_progress: bool) -> None:
    terminal.json, terminal.quiet, terminal.verbosity = json, quiet, verbose
    terminal.color, terminal.bars = color, not no_progress
    from dspex.engine.cli.terminal import log

    log.configure(verbosity=verbose, quiet=quiet)


class _Group(TyperGroup):
    """Help that cuts nothing off: typer gives each verb one line, and what is cut helps nobody."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            commands = [(word, self.get_command(ctx, word)) for word in self.list_commands(ctx)]
            formatter.write_dl([(word, command.get_short_help_str(10_000)) for word, command in commands if command])


class _Verbs(_Group):
    """All verbs, by heading. Only what is asked for is imported."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        words: Any = dict.fromkeys(word for words in VERBS.values() for word in words)
        self.commands = words  # what typer lists, and suggests to who mistypes one

    def invoke(self, ctx: Any) -> Any:
        with interruptible():
            return super().invoke(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        for words in VERBS.values():
            if (found := words.get(cmd_name)) is not None:
                return _noun(cmd_name, found) if isinstance(found, _Noun) else typer.main.get_command(_with(_app(), found))
        return None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for heading, words in VERBS.items():
            with formatter.section(heading):
                formatter.write_dl([(word, _about(f) if isinstance(f, str) else f.about) for word, f in words.items()])


def _about(where: str) -> str:
    """The first sentence that a verb's function says of itself: read, since to import all verbs takes a second of a core."""
    import ast

    module, _, name = where.partition(":")
    source = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    found = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name)
    return " ".join((ast.get_docstring(found) or "").split()).partition(". ")[0].rstrip(".") + "."


def _app(*, add_completion: bool = False, **options: Any) -> typer.Typer:
    return typer.Typer(add_completion=add_completion, pretty_exceptions_enable=False, rich_markup_mode=None, **options)


def _with(app: typer.Typer, where: str) -> typer.Typer:
    """`app` with one more verb."""
    module, _, name = where.partition(":")
    found = import_module(f"{__package__}.{module}")
    app.command(name.rstrip("_"), cls=getattr(found, "COMMAND", None))(getattr(found, name))  # `import` is a word of Python
    return app


def _noun(name: str, noun: _Noun) -> Any:
    group = _app(name=name, cls=_Group, help=noun.about)

    @group.callback(invoke_without_command=True)  # without one, a group of one verb would be that verb
    def alone(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            terminal(context).document(context.get_help())

    for verb in noun.verbs:
        _with(group, verb)
    return typer.main.get_command(group)

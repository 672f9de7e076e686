"""The CLI: `dspex` and `python -m dspex`. The one place where the rooms meet, and where an error becomes output."""

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from dspex import __version__

if TYPE_CHECKING:
    import typer

    from dspex.bus.errors import DspexError
    from dspex.bus.terminal import Terminal

_ROOMS = ("dspex.bus.cli", "dspex.engine.cli", "dspex.operators.cli", "dspex.workers.cli", "dspex.topologies.cli")
_WITH_VALUE = ("--config", "--server", "--creds", "--context", "--color")
_ALONE = ("--json", "-q", "--quiet", "-v", "-vv", "--verbose", "--no-progress")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the CLI; the exit code (API.md, section 3)."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if args == ["--version"]:  # before anything is imported: it answers in a few hundredths of a second
        sys.stdout.write(f"dspex {__version__}\n")
        return 0
    from dspex.bus.terminal import Terminal

    terminal = Terminal(json="--json" in args)
    try:
        return _run(_globals_first(args), terminal)
    except SystemExit as e:
        if not isinstance(e.__context__, BrokenPipeError):
            raise
        # `dspex watch … | head`: whoever read us has enough. typer makes an exit with 1 of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: list[str], terminal: "Terminal") -> int:
    import typer

    from dspex.bus.errors import ConfigError, DspexError

    # the base of usage errors: click's own, or since typer carries a copy of click, that copy's
    usage_error: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        code = _assemble(terminal)(args, prog_name="dspex", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except typer.Abort as e:
        return 130 if isinstance(e.__context__, KeyboardInterrupt) else 1
    except DspexError as e:
        terminal.error(e)
        return e.exit_code
    except usage_error as e:
        terminal.error(ConfigError(_usage(e), code="DX100", fix=_help_of(e)))
        return 2
    except Exception as e:  # noqa: BLE001 - the last stop before the user, who gets a report instead of a traceback
        terminal.error(_bug(e))
        return 1


def _usage(error: Any) -> str:
    text: str = error.format_message()
    return text[:1].lower() + text[1:].rstrip(".")


def _help_of(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"see {context.command_path if context else 'dspex'} -h"


def _bug(error: Exception) -> "DspexError":
    from dspex.bus.errors import DspexError

    found = DspexError(f"{type(error).__name__}: {error}{_where(error)}")
    found.__cause__ = error
    return found


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""


def _globals_first(args: list[str]) -> list[str]:
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


def _assemble(terminal: "Terminal") -> "typer.Typer":
    """The app with the verbs of every room. Annotations in here are evaluated, so typer is imported only when needed."""
    import typer

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

    for room in _ROOMS:
        if find_spec(room):
            import_module(room).register(app)
    return app


def _apply(terminal: "Terminal", json: bool, quiet: bool, verbose: int, color: Any, no_progress: bool) -> None:
    from dspex.bus import log

    terminal.json, terminal.quiet, terminal.verbosity = json, quiet, verbose
    terminal.color, terminal.bars = color, not no_progress
    terminal.load_topology, terminal.compile_test, terminal.require_model = _load_topology, _compile_test, _require_model
    log.configure(verbosity=verbose, quiet=quiet)


def _load_topology(target: str) -> Any:
    from dspex.bus.errors import DspexError, TopologyError
    from dspex.operators.topology import Topology

    try:
        return Topology.load(target)
    except DspexError:
        raise
    except Exception as e:  # the user's module runs while it is imported, and may raise anything
        where = "" if isinstance(e, SyntaxError) else _where(e)  # it says so itself
        message = f"{target!r} cannot be imported: {type(e).__name__}: {e}{where}"
        raise TopologyError(message, code="DX221", fix="correct the module; -v shows where") from e


def _compile_test(expression: str) -> Any:
    from dspex.operators import expressions

    return expressions.compile(expression).function


def _require_model(model: str) -> object:
    from dspex.workers.weights import require

    return require(model)


if __name__ == "__main__":
    sys.exit(main())

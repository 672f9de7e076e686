"""What a verb of the CLI prints, and where: results on stdout, everything else on stderr; for people, or as JSON lines.

The only place in dspex that writes to the terminal. `rich` is imported when a table or a bar is drawn, not before.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import traceback
from collections.abc import Coroutine, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar

import orjson

from dspex.bus.errors import ConfigError, DspexError, Problem, TopologyError
from dspex.engine.cli.terminal.live import Block, Draw, live, table_of
from dspex.engine.cli.terminal.printable import printable, printable_json
from dspex.engine.cli.terminal.progress import Bar, Lines, NoBar, rich_bar

if TYPE_CHECKING:
    import typer

    from dspex.bus.settings.model import Settings

T = TypeVar("T")

_COLORS = {"error": "\x1b[1;31m", "warning": "\x1b[1;33m", "note": "\x1b[1m", "fix": "\x1b[2m"}
_PLAIN = "\x1b[0m"
_CLEAR = "\x1b[H\x1b[2J"
_UNLIMITED = 10_000  # columns
_DEEPEST = 200  # levels of data that are written; orjson writes 254


@dataclass
class Terminal:
    """The global options, and printing as they demand.

    Attributes:
        json: one object a line instead of text for people.
        quiet: no notes and no progress.
        verbosity: number of -v; from 1 on tracebacks are shown.
        color: "auto", "always" or "never".
        bars: progress is shown.
        config: the settings file; None: the nearest.
        flags: settings given as options, by key.
        people: who reads the log are people.
        arguments: the command line, as it was typed.
    """

    json: bool = False
    quiet: bool = False
    verbosity: int = 0
    color: Literal["auto", "always", "never"] = "auto"
    bars: bool = True
    config: str | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    people: bool = field(default_factory=lambda: sys.stderr.isatty())
    arguments: Sequence[str] = ()
    _settings: Settings | None = None

    def settings(self) -> Settings:
        """The settings, read once; from then on logging is as they say. Raises ConfigError."""
        if self._settings is None:
            from dspex.bus.settings.model import Settings
            from dspex.engine.cli.terminal import log

            handed = os.environ.get("DSPEX_SETTINGS_JSON")  # from the engine that started this pool
            self._settings = found = Settings.from_json(handed) if handed else Settings.load(self.config, **self.flags)
            chosen = found.origins().get("telemetry.log") != "default"
            # people read what the verbs print; log lines would repeat it. What programs print is nowhere else.
            level = "warning,dspex.programs=info" if self.people and not chosen else found.telemetry.log
            log.configure(level, verbosity=self.verbosity, quiet=self.quiet, people=self.people)
        return self._settings

    def run(self, verb: Coroutine[Any, Any, T]) -> T:
        """Run an asynchronous verb to its end."""
        return asyncio.run(verb)

    # -- results
    def emit(self, data: Mapping[str, object], *lines: str) -> None:
        """One result: the object with --json, else these lines."""
        if self.json:
            _write(sys.stdout, to_json({"v": 1, **data}))
        for line in lines:
            self.line(line)

    def line(self, text: str) -> None:
        """One line of a result that only people get; with --json the result is another one."""
        if not self.json:
            _write(sys.stdout, printable(text))

    def part(self, text: str) -> None:
        """A part of a result that only people get, at once: what follows goes on behind it."""
        if not self.json:
            sys.stdout.write(printable(text, lines=True))
            sys.stdout.flush()

    def clear(self) -> None:
        """Begin again at the top of the screen, where there is one."""
        if not self.json and sys.stdout.isatty():
            sys.stdout.write(_CLEAR)

    def document(self, text: str) -> None:
        """A result that has a form of its own, whatever --json says: YAML, a drawing, a schema."""
        _write(sys.stdout, text.rstrip("\n"))

    def table(
        self, rows: Sequence[Mapping[str, object]], columns: Mapping[str, str], title: str = "", *, wrap: str | None = None
    ) -> None:
        """Rows as a table, or as one object each with --json.

        Args:
            columns: key → heading, for people only.
            wrap: the column that goes over several lines where the terminal is narrow; None: any.
        """
        if self.json:
            for row in rows:
                self.emit(row)
            return
        from rich.console import Console

        table = table_of(Block(rows, columns), _cell, title=title, wrap=wrap, whole=True)
        console = Console(file=sys.stdout, no_color=not self.colored(sys.stdout))
        if sys.stdout.isatty():
            console.width = max(console.width, sum((column.min_width or 0) + 2 for column in table.columns))
        else:
            console.width = _UNLIMITED  # in a file or a pipe each row stays on one line
        console.print(table)

    def block(self, block: Block) -> None:
        """A table of several, for people, and what is to be said below it."""
        self.line("")
        self.table(block.rows, block.columns)
        for remark in block.remarks:
            self.line(remark)

    # -- the rest
    def note(self, text: str) -> None:
        """A remark for people, on stderr."""
        if not self.quiet:
            _write(sys.stderr, printable(text))

    def relay(self, line: str) -> None:
        """A line that another process of ours logged for people, on stderr."""
        _write(sys.stderr, line)

    def error(self, error: DspexError) -> None:
        """What went wrong and what to do, on stderr; with -v also where in the code."""
        if self.json:
            _write(sys.stderr, to_json({"v": 1, "error": _as_object(error)}))
        else:
            for line in error_lines(error, colored=self.colored(sys.stderr)):
                _write(sys.stderr, line)
        if self.verbosity:
            _write(sys.stderr, printable("".join(traceback.format_exception(error)).rstrip(), lines=True))

    @contextmanager
    def reporting(self, event: str) -> Generator[None, None, None]:
        """An error goes to stdout, where the process that started this one reads it and shows it as its own; stderr, which both
        share, is for logs. Raises typer.Exit.
        """
        import typer

        try:
            yield
        except DspexError as e:
            self.emit({"event": event, "error": e.as_dict()})
            raise typer.Exit(e.exit_code) from e

    def problem(self, problem: Problem) -> None:
        """One problem of a topology or of the settings, on stdout: it is the result of `check`."""
        if self.json:
            _write(sys.stdout, to_json({"v": 1, **problem_object(problem)}))
        else:
            for line in problem_lines(problem, colored=self.colored(sys.stdout)):
                _write(sys.stdout, line)

    def colored(self, stream: TextIO) -> bool:
        """Whether to write colours to `stream`."""
        if self.color != "auto":
            return self.color == "always"
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Generator[Bar, None, None]:
        """A bar on stderr if that is a terminal, else a line every 10 s and one at the end."""
        if self.quiet or not self.bars:
            yield NoBar()
        elif sys.stderr.isatty():
            with rich_bar(label, total, colored=self.colored(sys.stderr)) as bar:
                yield bar
        else:
            lines = Lines(label, total, lambda text: _write(sys.stderr, text))
            yield lines
            lines.end()

    @contextmanager
    def live(self) -> Generator[Draw | None, None, None]:
        """Something that draws tables in place on stderr; None where that is no terminal, or nobody wants to see it."""
        if self.json or self.quiet or not self.bars or not sys.stderr.isatty():
            yield None
        else:
            with live(_cell, colored=self.colored(sys.stderr)) as draw:
                yield draw


def terminal(context: typer.Context) -> Terminal:
    """The terminal as the global options set it."""
    found: Terminal = context.find_root().obj
    return found


def to_json(data: object) -> str:
    """One line of JSON; times as RFC 3339, whatever else is unknown as text. What is nested too deep to be written is cut.

    Numbers that JSON has not are the texts "NaN", "Infinity" and "-Infinity".
    """
    options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z
    try:
        text = orjson.dumps(data, default=str, option=options).decode()
    except TypeError:  # whoever publishes can nest what is read deeper than it can be written
        text = ""
    if not text or "null" in text:  # which is written for a number, too
        text = orjson.dumps(_writable(data, _DEEPEST), default=str, option=options).decode()
    return printable_json(text)


def _writable(data: object, levels: int) -> object:
    if isinstance(data, dict):
        return {key: _writable(value, levels - 1) for key, value in data.items()} if levels else "…"
    if isinstance(data, list | tuple):
        return [_writable(value, levels - 1) for value in data] if levels else "…"
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    return data if not isinstance(data, int) or -(1 << 63) <= data < 1 << 64 else str(data)


def error_lines(error: DspexError, *, colored: bool = False) -> list[str]:
    """An error for people: `error[code] node: message`, then the fix; every problem where there are several."""
    problems = error.problems if isinstance(error, ConfigError | TopologyError) else ()
    if problems:
        return [line for p in problems for line in problem_lines(p, colored=colored)]
    node = f"{error.node}: " if error.node and not error.message.startswith(f"{error.node}:") else ""
    return _lines("error", error.code, f"{node}{error.message}", error.fix, colored)


def problem_lines(problem: Problem, *, colored: bool = False) -> list[str]:
    """A problem for people: `error[code] node (file:line): message`, then the fix."""
    return _lines(problem.level, problem.code, f"{problem.place}: {problem.message}", problem.fix, colored)


def problem_object(problem: Problem) -> dict[str, object]:
    """A problem with the keys of `check --json`."""
    names = ("code", "level", "topology", "node", "file", "line", "message", "fix")
    return {name: getattr(problem, name) for name in names}


def _lines(level: str, code: str, text: str, fix: str, colored: bool) -> list[str]:
    text = printable(text, lines=True)
    head, tail = f"{level}[{code}]", f"  fix: {printable(fix, lines=True)}"
    if colored:
        head, tail = f"{_COLORS[level]}{head}{_PLAIN}", f"{_COLORS['fix']}{tail}{_PLAIN}"
    return [f"{head} {text}", tail]


def _as_object(error: DspexError) -> dict[str, object]:
    data = error.as_dict()
    found: dict[str, object] = {name: data[name] for name in ("code", "message", "fix", "node", "run", "retryable")}
    if isinstance(error, ConfigError | TopologyError) and error.problems:
        found["problems"] = [problem_object(p) for p in error.problems]
    return found


def _cell(value: object) -> str:
    if value is None:
        return ""
    return printable(value if isinstance(value, str) else to_json(value))


def _write(stream: TextIO, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()


def where_raised(error: BaseException) -> str:
    """` (triage.py:15)`: where an exception was raised; "" where that is not known."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""

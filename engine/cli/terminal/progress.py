"""How far a verb came: a bar on a terminal, a line now and then elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

LINE_EVERY = 10.0  # seconds between progress lines where there is no terminal


class Bar(Protocol):
    """A progress bar, or what stands for it."""

    def advance(self, by: int = 1, note: str = "") -> None:
        """`by` more are done. `note`: what else there is to say, e.g. "3 duplicates"."""
        ...


class NoBar:
    """Progress that is not shown."""

    def advance(self, by: int = 1, note: str = "") -> None:
        pass


class Lines:
    """Progress as a line now and then, where there is no terminal."""

    def __init__(self, label: str, total: int | None, write: Callable[[str], None]) -> None:
        self._label, self._total, self._write = label, total, write
        self._done, self._note = 0, ""
        self._start = self._last = time.monotonic()

    def advance(self, by: int = 1, note: str = "") -> None:
        self._done += by
        self._note = note or self._note
        if time.monotonic() - self._last >= LINE_EVERY:
            self._last = time.monotonic()
            self._print()

    def end(self) -> None:
        self._print()

    def _print(self) -> None:
        rate = self._done / max(time.monotonic() - self._start, 1e-3)
        of = f"/{self._total}" if self._total is not None else ""
        self._write(f"{self._label}  {self._done}{of}  {rate:.1f}/s  {self._note}".rstrip())


@contextmanager
def rich_bar(label: str, total: int | None, *, colored: bool) -> Generator[Bar, None, None]:
    """A bar on stderr, drawn by rich."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TimeElapsedColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, console=Console(file=sys.stderr, no_color=not colored)) as progress:
        task = progress.add_task(label, total=total, note="")

        class RichBar:
            def advance(self, by: int = 1, note: str = "") -> None:
                if note:
                    progress.update(task, note=note)
                progress.advance(task, by)

        yield RichBar()

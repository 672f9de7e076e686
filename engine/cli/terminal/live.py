"""A view that is drawn again in place, below everything else that is printed.

What is logged or printed meanwhile appears above it, whole: rich hands what goes to stdout and stderr through itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from dspex.engine.cli.terminal.printable import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


class Block(NamedTuple):
    """A table and what is to be said below it. `columns`: key → heading."""

    rows: Sequence[Mapping[str, object]]
    columns: Mapping[str, str]
    remarks: Sequence[str] = ()


Draw = Callable[[Sequence[Block]], None]


def table_of(
    block: Block, cell: Callable[[object], str], *, title: str = "", wrap: str | None = None, whole: bool = False
) -> Table:
    """The rows, drawn.

    Args:
        wrap: the column that goes over several lines where the terminal is narrow; None: any.
        whole: no word is cut, however narrow it is: an id that is cut cannot be used.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, box=None, pad_edge=False, title_justify="left")
    rows = [[cell(row.get(key)) for key in block.columns] for row in block.rows]
    for (key, heading), *cells in zip(block.columns.items(), *rows):
        wraps = wrap in (None, key)
        words = [word for text in (heading, *cells) for word in (text.split() if wraps else [text])]
        least = max(map(cell_len, words), default=0) if whole else None
        table.add_column(heading, no_wrap=not wraps, min_width=least)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _told(block: Block, cell: Callable[[object], str]) -> Iterator[str]:
    """Each row as a line that can be wrapped: names that are cut in a narrow table are of no use."""
    for row in block.rows:
        said = [(heading, cell(row.get(key))) for key, heading in block.columns.items()]
        yield "  ".join(f"{heading} {value}".strip() for heading, value in said if value)


@contextmanager
def live(cell: Callable[[object], str], *, colored: bool) -> Generator[Draw, None, None]:
    """Draws on stderr, a terminal, what it is last given; it stays there at the end."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console(file=sys.stderr, no_color=not colored)
    with Live(console=console, auto_refresh=False, redirect_stdout=sys.stdout.isatty()) as view:

        def draw(blocks: Sequence[Block]) -> None:
            parts: list[RenderableType] = []
            for block in blocks:
                table = table_of(block, cell, whole=True)
                fits = sum((column.min_width or 0) + 2 for column in table.columns) - 2 <= console.width
                parts += ["", *([table] if fits else map(Text, _told(block, cell)))]
                parts += (Text(printable(remark)) for remark in block.remarks)
            view.update(Group(*parts), refresh=True)

        yield draw

"""Record docs/make/demo.svg: `python docs/make/picture.py`.

It runs the demo on a terminal of 100 columns and notes when each line came. The picture plays the lines in these
intervals, three times as fast, again and again.
"""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

COLUMNS = 100
COMMAND = "dspex demo"
PICTURE = Path(__file__).with_name("demo.svg")
REDRAWN = re.compile(r".*\r\x1b\[2K|\x1b\[\?25[lh]")  # what a progress bar draws over, and the cursor that it hides
SPEED = 3
HOLD = 8.0  # seconds for which the whole is shown before it begins anew
GROUP = re.compile(r'(<g class="demo-matrix">)(.*?)(</g>)', re.S)  # the text, as rich writes it
PIECE = re.compile(r'<text [^>]*? y="([\d.]+)"[^>]*>.*?</text>', re.S)


class Line(NamedTuple):
    """A line of the terminal, and the seconds after which it was whole."""

    text: str
    after: float


def record(command: list[str]) -> list[Line]:
    """What the command writes to a terminal, with its colours. Raises SystemExit, with what it wrote, where it fails."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, COLUMNS, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
        os.close(theirs)
        lines = _lines(ours, began)
        if process.wait():
            raise SystemExit("\n".join(line.text for line in lines))
    return lines


def _lines(terminal: int, began: float) -> list[Line]:
    found, rest = list[Line](), b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how the end of a terminal shows itself on Linux
            part = b""
        if not part:
            os.close(terminal)
            return found
        *whole, rest = (rest + part).split(b"\r\n")
        after = time.monotonic() - began
        found += [Line(REDRAWN.sub("", line.decode()), after) for line in whole]


def draw(lines: list[Line]) -> str:
    """An SVG that plays the lines. Without animation, it shows all of them."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(f"$ {COMMAND}", style="bold", highlight=False)
    for line in lines:
        console.print(Text.from_ansi(line.text), highlight=False, overflow="crop", no_wrap=True)
    console.print()  # rich cuts off what hangs below the last line, such as an underscore
    picture = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="dspex", unique_id="demo"), flags=re.S)
    return _animated(picture, [0.0, *(line.after / SPEED for line in lines)])


def _animated(picture: str, after: list[float]) -> str:
    """The picture with each of its lines hidden until its time, by CSS alone: no script runs in a picture of a page."""
    whole = after[-1] + HOLD
    styles = [f".demo-matrix g {{ animation: {whole:.1f}s step-end infinite }}"]
    rows: dict[float, list[str]] = {}

    def gathered(found: re.Match[str]) -> str:
        for piece in PIECE.finditer(found[2]):
            rows.setdefault(float(piece[1]), []).append(piece[0])
        first, step = min(rows), 24.4
        groups = []
        for y, pieces in sorted(rows.items()):
            number = round((y - first) / step)
            at = 100 * after[min(number, len(after) - 1)] / whole
            if at:
                styles.append(
                    f"@keyframes l{number} {{ 0% {{ visibility: hidden }} {at:.2f}% {{ visibility: visible }} }} "
                    f".l{number} {{ animation-name: l{number} }}"
                )
            groups.append(f'<g class="l{number}">{"".join(pieces)}</g>')
        return found[1] + "\n".join(groups) + found[3]

    drawn = GROUP.sub(gathered, picture, count=1)
    return drawn.replace("</style>", "\n".join([*styles, "</style>"]), 1)


def main() -> None:
    """Run the demo and draw it."""
    PICTURE.write_text(draw(record([sys.executable, "-m", *COMMAND.split()])))


if __name__ == "__main__":
    main()

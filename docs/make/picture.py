"""Draw docs/make/demo.svg: `python docs/make/picture.py`.

It runs the demo on a terminal of 100 columns and keeps what is left on it.
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
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, COUNT = 100, "10"
PICTURE = Path(__file__).with_name("demo.svg")
REDRAWN = re.compile(r".*\r\x1b\[2K|\x1b\[\?25[lh]")  # what a progress bar draws over, and the cursor that it hides


def screen(command: list[str]) -> str:
    """What the command leaves on a terminal, with its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, COLUMNS, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
        os.close(theirs)
        text = _all(ours)
        if process.wait():
            raise SystemExit(text)
    return REDRAWN.sub("", text.replace("\r\n", "\n"))


def _all(descriptor: int) -> str:
    parts: list[bytes] = []
    try:
        while part := os.read(descriptor, 65536):
            parts.append(part)
    except OSError:
        pass  # how the end of a terminal shows itself on Linux
    os.close(descriptor)
    return b"".join(parts).decode()


def main() -> None:
    """Run the demo and draw it."""
    text = screen([sys.executable, "-m", "dspex", "demo", "--count", COUNT])
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(f"$ dspex demo --count {COUNT}", style="bold", highlight=False)
    console.print(Text.from_ansi(text.rstrip()), highlight=False)
    picture = console.export_svg(title="dspex", unique_id="demo")
    PICTURE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.S))  # no fonts from the network


if __name__ == "__main__":
    main()

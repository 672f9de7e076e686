"""`dspex skills install`: a guide for coding agents, in the folder in which they look for such."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Final

import typer

from dspex import __version__
from dspex.bus.errors import ConfigError
from dspex.bus.local.whole_file import write
from dspex.engine.cli.terminal.client import shown
from dspex.engine.cli.terminal.terminal import terminal

GUIDE: Final = "SKILL.md"
FOLDER: Final = Path(".claude/skills/dspex")
_MARK: Final = re.compile(r"\n<!-- dspex [^ \n]+ ([0-9a-f]{64}) -->\n\Z")


def install(
    context: typer.Context,
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder of the guide.")] = FOLDER,
    force: Annotated[bool, typer.Option("--force", help="Also over a file that was changed, or is another one.")] = False,
) -> None:
    """Write a guide for coding agents: how to write a topology, test it, find out what a run did, and replay it."""
    t = terminal(context)
    file, text = to / GUIDE, marked(Path(__file__).with_name(GUIDE).read_text(encoding="utf-8"))
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else None
        if before is not None and before != text and not force and not as_written(before):
            why = f"{shown(file)} was changed since it was written, or is another one"
            raise ConfigError(why, code="DX137", fix="--force writes over it; or name another folder: --to DIR")
        if before != text:
            to.mkdir(parents=True, exist_ok=True)
            write(file, text.encode())
    except (OSError, UnicodeDecodeError) as error:
        fix = "name another folder: --to DIR"
        raise ConfigError(f"{shown(file)} cannot be written: {error}", code="DX137", fix=fix) from None
    done = "unchanged" if before == text else "wrote"
    t.emit({"file": str(file), "done": done}, f"{done} {shown(file)}")


def marked(guide: str) -> str:
    """A guide with a last line that tells whether somebody has changed it."""
    return f"{guide}\n<!-- dspex {__version__} {_digest(guide)} -->\n"


def as_written(text: str) -> bool:
    """Whether a file is a guide as this verb wrote it, of whatever version."""
    found = _MARK.search(text)
    return found is not None and _digest(text[: found.start()]) == found[1]


def _digest(guide: str) -> str:
    return hashlib.sha256(guide.encode()).hexdigest()

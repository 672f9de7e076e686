"""Write into the pages what their commands print: `python docs/make/outputs.py [PAGE…]`, in a few minutes.

A block with the fence "```console run" holds commands that are run, in order, in a folder with the files that the page shows
before them. "```console run NAME" runs them in a project that `dspex init NAME --no-key` made. They are run with the language
model that the page names: `dspex model install smollm2`. A test runs them with a stand-in for it and compares; what differs
from run to run (times, ids, ports, tokens) is left out of the comparison by `steady`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OURS = sorted(page for part in ("", "guides/", "start/") for page in DOCS.glob(f"{part}*.md"))
PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *OURS]
BLOCK = re.compile(r"^```(\w+)[ ]*(\S*)[ ]*(\S*)\n(.*?)^```$", re.S | re.M)
NAMED = re.compile(r"# ([\w.]+\.(?:py|yaml|toml))\n")
READY = "ready in"
HEARTBEATS = 3.0  # seconds: what `status` tells is as old as a heartbeat

VARIES = {
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}": "RUN",
    r"\b[0-9a-f]{12}(?=  \d+/\d+)|(?<=-)[0-9a-f]{12}\b": "POOL",
    r"\b[\w-]+-\d+-[0-9a-f]{4}\b": "ENGINE",
    r"^began .*": "began TIME",
    r"(other build: [\w ./]+): .*": r"\1: …",  # of code: another one with another Python
    r"(?<=differs at s1\.0@)\d+": "N",
    r"(?:\d+ \w{3} )?\d\d:\d\d:\d\d": "TIME",
    r"\b\d[\d,.]*/s": "RATE",
    r"\b\d[\d,.]* ?(?:ms|s|m|h|d)\b(?: \d+ s)?(?! ago)": "SPAN",
    r"(SPAN +)\d+ *$": r"\1N",  # the tokens of a row of `status`
    r"\d+ s ago": "AGO",
    r":\d{4,5}\b": ":PORT",
    r"\b\d[\d,.]* (tokens|messages|bytes|KiB|MiB|GiB|streams)": r"N \1",
    r"\b(dead letter|dlq show|pid) \d+": r"\1 N",
    r"^\d+(?=  TIME)": "N",  # a dead letter's number
    r"(lm\.\w+)  .*": r"\1  …",  # of doctor: another model in the test
    r"\b(python|nats-server|dspy) \d[\w.]*": r"\1 VERSION",
}
"""What differs from one run to the next, and what stands for it in a comparison."""


def steady(text: str) -> str:
    """The text without what varies, and without the width of the columns that it had."""
    for pattern, word in VARIES.items():
        text = re.sub(pattern, word, text, flags=re.M)
    return "\n".join(re.sub(r" {2,}", "  ", line).rstrip() for line in text.strip("\n").split("\n"))


@dataclass(frozen=True)
class Block:
    """A block of a page. `language`, `mode` and `project` are the words of its fence."""

    language: str
    mode: str
    project: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The file that it is: a comment in its first line says so, or its fence."""
        found = NAMED.match(self.text)
        return found[1] if found else self.mode if self.language == "csv" else None

    @property
    def commands(self) -> list[tuple[str, str]]:
        """(command, what the page shows behind it)"""
        parts = re.split(r"^\$ ", self.text, flags=re.M)
        assert parts[0] == "", f"line {self.line}: a console block begins with a command"
        return [(command, shown) for command, _, shown in (part.partition("\n") for part in parts[1:])]


def blocks(page: Path) -> list[Block]:
    """Those of a page, in order."""
    text = page.read_text()
    return [Block(m[1], m[2], m[3], m[4], text[: m.start()].count("\n") + 1) for m in BLOCK.finditer(text)]


@dataclass
class Shell:
    """Runs commands of pages in the working directory.

    Attributes:
        home: the folder that the pages call /home/you.
        dspex: runs a command: what it prints.
        run: starts `dspex run`: its first lines, up to READY.
    """

    home: Path
    dspex: Callable[[list[str]], str]
    run: Callable[[list[str]], str]
    _servers: list[Path] = field(default_factory=list[Path])

    @contextmanager
    def within(self, block: Block) -> Iterator[None]:
        """What a block exports holds in it alone, and so does its project."""
        environment, folder = dict(os.environ), Path.cwd()
        if block.project:
            if not Path(block.project).exists():
                self.dspex(["init", block.project, "--no-key"])
            os.chdir(block.project)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(environment)
            if block.project:
                os.chdir(folder)

    def prints(self, command: str) -> str:
        """Run it: what it prints."""
        first, *others = command.split(" | ")
        words = shlex.split(first, comments=True)
        if words[0] == "cd":
            os.chdir(words[1])
            return ""
        if words[0] == "export":
            os.environ.update(dict(word.split("=", 1) for word in words[1:]))
            return ""
        assert words[0] == "dspex", f"no command for a block that runs: {command}"
        if words[1:3] == ["server", "start"]:
            self._servers.append(Path.cwd())
        text = self.run(words[1:]) if words[1] == "run" else self.dspex(words[1:])
        for other in others:
            text = subprocess.run(shlex.split(other), input=text, stdout=subprocess.PIPE, text=True, check=True).stdout
        return "".join(f"{line.rstrip()}\n" for line in text.replace(str(self.home), "/home/you").splitlines())

    def stop(self) -> None:
        """Stop the servers that were started."""
        for folder in self._servers:
            os.chdir(folder)
            self.dspex(["server", "stop"])


class Processes:
    """`dspex` as a process for each command, with the settings of the working directory alone."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []

    def dspex(self, words: list[str]) -> str:
        """What it prints, and then what it tells on stderr."""
        if words[0] in ("status", "call"):
            time.sleep(HEARTBEATS)
        command = [sys.executable, "-m", "dspex", "--no-progress", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        return done.stdout + done.stderr

    def run(self, words: list[str]) -> str:
        """Start an application; what it prints until it is ready."""
        command = [sys.executable, "-m", "dspex", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._running.append(process)
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if READY in line:
                break
        return "".join(lines)

    def stop(self) -> None:
        """End what was started."""
        for process in self._running:
            process.terminate()
            process.communicate()


def page(path: Path) -> str:
    """The page with what its commands print now. Its files and what is started lie in the working directory."""
    processes = Processes()
    shell = Shell(Path.cwd(), processes.dspex, processes.run)

    def made(match: re.Match[str]) -> str:
        block = Block(match[1], match[2], match[3], match[4], 0)
        if block.file:
            Path(block.file).write_text(block.text)
        if block.language != "console" or block.mode != "run":
            return match[0]
        with shell.within(block):
            text = "".join(f"$ {command}\n{shell.prints(command)}" for command, _ in block.commands)
        return f"{match[0].partition(chr(10))[0]}\n{text}```"

    try:
        return BLOCK.sub(made, path.read_text())
    finally:
        processes.stop()
        shell.stop()


def main() -> None:
    """Write the pages that are named, or all."""
    for name in [n for n in os.environ if n.startswith(("NATS_", "DSPEX_"))]:
        del os.environ[name]
    for path in [Path(name).resolve() for name in sys.argv[1:]] or PAGES:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            path.write_text(page(path))
            os.chdir(ROOT)


if __name__ == "__main__":
    main()

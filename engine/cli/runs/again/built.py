"""`--build FOLDER`: with the code as it was, under its own Python; but for candidates, only where it is the recorded build."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dspex.bus import subjects
from dspex.bus.errors import ConfigError
from dspex.bus.settings.layers import BUILD_STARTED, variable
from dspex.engine.cli.terminal.client import client, count
from dspex.engine.cli.terminal.terminal import Terminal

if TYPE_CHECKING:
    from dspex.bus.settings.model import Settings
    from dspex.engine.cli.runs.choice import ReplayChoice
    from dspex.engine.client.runs.then.builds import Builds

_NOT_HERE: Final = "default", "flag", "env ", "context "  # how origins begin of what the command gets in another way
_OF_SERVER: Final = ("server.local.",)  # how it would be started, which is not done here

BUILD = Annotated[
    str | None, typer.Option("--build", metavar="FOLDER", help="With the code of a folder, if it is the recorded build.")
]
ANY_BUILD = Annotated[bool, typer.Option("--any-build", help="With --build: also where it is another one.")]


CANDIDATE = Annotated[
    str | None, typer.Option("--build", metavar="FOLDER", help="The candidate is the code of a folder, under its own Python.")
]


def with_build(t: Terminal, what: ReplayChoice, target: str | None, folder: str | None, *, any_build: bool) -> None:
    """Go on with the code of a folder, where one is named; see `entered`. Where it is not the recorded build, that has to be
    allowed.
    """
    if folder is None and any_build:
        raise ConfigError("--any-build is about --build", code="DX105", fix="name the folder of the code: --build FOLDER")
    if folder is None:
        return
    entered(t, folder)
    if not any_build:
        t.run(check_build(t, what, target))


def entered(t: Terminal, given: str) -> None:
    """Go on with the code of a folder: the command begins anew with the Python of that folder, where there is one, and reads
    the settings that lie there. Where it begins anew, it does not return.

    Raises ConfigError (DX105) where there are none, or that Python has no dspex.
    """
    from dspex.bus.settings.files import find_file

    folder = Path(given).resolve()
    file = find_file(folder) if folder.is_dir() else None
    if file is None or file.parent != folder:
        fix = "name the folder of a checkout, or of a package, with its dspex.toml, which names the topologies"
        raise ConfigError(f"{given} has no dspex.toml", code="DX105", fix=fix)
    if os.environ.pop(BUILD_STARTED, None) == str(folder):
        t.config = str(file)
        return
    python, environ = _python(folder), {**os.environ, **_handed(t), BUILD_STARTED: str(folder)}
    sys.stdout.flush()
    os.execve(python, [python, "-P", "-m", "dspex", *t.arguments], environ)  # -P: nothing of where it is typed is imported


def _python(folder: Path) -> str:
    """Its own interpreter, or this one. Raises ConfigError (DX105) where its own has no dspex."""
    own = folder / ".venv" / "bin" / "python"
    if not own.exists():
        return sys.executable
    try:
        asked = subprocess.run([str(own), "-P", "-m", "dspex", "--version"], capture_output=True, text=True, check=False)
        why = "" if asked.returncode == 0 else (asked.stderr.strip().splitlines() or ["it says nothing"])[-1]
    except OSError as e:
        why = str(e.strerror)
    if why:
        fix = "install there what was installed then"
        raise ConfigError(f"{own} cannot run dspex: {why}", code="DX105", fix=fix)
    return str(own)


def _handed(t: Terminal) -> dict[str, str]:
    """Variables that say which application is meant, where its server is, and how to log in: as it is said here."""
    from dspex.bus.settings.files import find_file

    settings = t.settings()
    if t.config is None and find_file(Path.cwd()) is None:
        return {}  # nothing is said here
    said = {"app": settings.app, "server.local.store": str(settings.store.resolve()), **_written(settings)}
    return {variable(key): value for key, value in said.items()}


def _written(settings: Settings) -> dict[str, str]:
    """What the file of the settings says of the server, and of the key."""
    values, origins = settings.values(), settings.origins()
    names = [name for name in values if name.startswith("server.") and not name.startswith(_OF_SERVER)]
    names.append("engine.encrypt_key_env")
    return {
        name: str(values[name])
        for name in names
        if values[name] is not None and not origins.get(name, "default").startswith(_NOT_HERE)
    }


async def check_build(t: Terminal, what: ReplayChoice, target: str | None) -> None:
    """Raise ConfigError (DX143) unless the code that is here is the build that recorded what is to be replayed. The topology of
    submitted calls is dspex's own, and is not looked at.
    """
    from dspex.engine.cli.runs.again.repeated import OLDER
    from dspex.engine.cli.runs.replaying import graph_of
    from dspex.engine.client.runs.then.builds import others
    from dspex.engine.log.build import FILES, build, names_no_files

    recorded = await _recorded(t, what)
    if not recorded or not all(recorded.values()):
        why, fix = f"which build recorded {what} is not known any more", "replay it with whichever build it was: --any-build"
        raise ConfigError(why, code="DX143", fix=fix)
    then, there = {name: of for name, of in recorded.items() if name != subjects.SUBMITTED}, dict[str, Mapping[str, str]]()
    for topology in then:
        there[topology] = build(graph_of(t, topology, target))
    found = others(then, there)
    if names_no_files(found):
        del found[FILES]
        t.note(OLDER)
    if not found:
        return
    said = "; ".join(f"{name}: {was or '-'} then, {now or '-'} there" for name, (was, now) in sorted(found.items()))
    several = max(map(len, then.values()))
    fix = "name the folder of the code that ran then; with another build all the same: --any-build"
    if several > 1:
        fix = f"{count(several, 'build')} recorded it: narrow it, to one run, or by --since and --until; or add --any-build"
    raise ConfigError(f"the code in {t.settings().root} is not the build that recorded {what}: {said}", code="DX143", fix=fix)


async def _recorded(t: Terminal, what: ReplayChoice) -> Builds:
    """The builds that recorded it, by topology."""
    from dspex.engine.again.files import readable_at
    from dspex.engine.cli.runs.replaying import histories_of
    from dspex.engine.client.runs.then.builds import builds_of, builds_of_topology, merged

    if what.file is not None:
        builds = [file.builds for file in readable_at(what.file)]
        return merged(builds) if all(builds) else {}  # files of before have none
    async with client(t, "replay") as c:
        if what.whole:
            return await builds_of_topology(c.bus, c.app, str(what.topology), (what.since, what.until))
        if what.run is not None and (file := await c.run(what.run).kept()) is not None:
            return merged([file.builds])
        (past, _), claims = await histories_of(t, c, await what.runs(c)), dict[int, dict[str, str]]()
        found = merged([await builds_of(c.bus, c.app, one, claims) for one in past])
        return {name: of for name, of in found.items() if what.topology in (None, name)}

"""What a client has done with the code of a folder: `dspex … --build FOLDER` does it, in a process of that folder's Python."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from os import PathLike
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dspex.bus.codecs.json import json_bytes, load_json
from dspex.bus.errors import ConfigError, DecodeError, DspexError, RecordingIncomplete
from dspex.bus.settings.layers import variable
from dspex.engine.client.runs.diff import Diff, Replay, StepDiff

if TYPE_CHECKING:
    from dspex.bus.settings.model import Settings

_OF_HERE: Final = ("app", "engine.encrypt_key_env", "server.local.store")  # besides what says where the server is
_LOCAL: Final = "server.local."


class FolderOf(NamedTuple):
    """The folder that has the code. `any`: also where it is not the recorded build. `settings`: of who asks."""

    folder: str | PathLike[str] | None
    any: bool
    settings: Settings | None

    def _place(self) -> str:
        """The folder, wherever the process begins. Raises ConfigError where none is named."""
        if self.folder is None:
            raise ConfigError("any_build= is about build=", code="DX105", fix="name the folder of the code: build=FOLDER")
        return os.path.abspath(self.folder)

    async def asked(self, verb: str, *words: str) -> dict[str, Any]:
        """What a verb says. Raises what it ended in, where it says nothing."""
        if self.settings is None:
            fix = "connect with dspex.connect(), which reads dspex.toml or takes settings=…"
            raise ConfigError("build= needs settings that name the application and its server", code="DX135", fix=fix)
        more = ["--build", self._place(), *(["--any-build"] if self.any else [])]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "dspex", "--json", verb, *more, *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.settings.root,
            env={**os.environ, **dict(_said(self.settings))},
        )
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        for row in _rows(out):
            return row
        raise _error(err)


def _said(settings: Settings) -> Iterator[tuple[str, str]]:
    """Variables that say which application is meant, and where its server is."""
    values, origins = settings.values(), settings.origins()
    for name, value in values.items():
        of_server = name.startswith("server.") and not name.startswith(_LOCAL)
        if value is not None and (name in _OF_HERE or (of_server and not origins.get(name, "default").startswith("default"))):
            yield variable(name), str(settings.store.resolve() if name == "server.local.store" else value)


def _rows(text: bytes) -> Iterator[dict[str, Any]]:
    """The objects that a verb printed; what else somebody printed is passed over."""
    for line in text.splitlines():
        try:
            row = load_json(line)
        except DecodeError:
            continue
        if isinstance(row, dict) and row.get("v") == 1:
            yield row


def _error(text: bytes) -> DspexError:
    """What a verb ended in."""
    said: Mapping[str, Any] = next((row["error"] for row in _rows(text) if isinstance(row.get("error"), dict)), {})
    if not said:
        last = (text.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
        return ConfigError(f"the process of that folder ended: {last}", code="DX105", fix="try it there: dspex replay")
    code, left = str(said["code"]), [DspexError]
    kind: type[DspexError] = ConfigError if code.startswith("DX1") else DspexError
    while left:
        one = left.pop()
        kind = one if one.code == code else kind
        left += one.__subclasses__()
    return kind(str(said["message"]), code=code, fix=said.get("fix"), node=said.get("node"), run=said.get("run"))


async def replayed(
    of: FolderOf, run: str | None, topology: str | None, since: float, until: datetime | None, mode: str
) -> Replay:
    """See `Client.replay`."""
    words = ["--mode", mode, *(["--topology", topology] if topology is not None else [])]
    words += ["--since", f"{max(0.001, time.time() - since):.3f}s"] if since else []
    words += ["--until", until.isoformat()] if until is not None else []
    said = await of.asked("replay", *words, *(["--", run] if run is not None else []))
    steps = [_step(one) for one in said.get("steps") or ()]
    first = _step(said["diverged"]) if said.get("diverged") is not None else None
    used = said.get("used") or {"tokens": (0, 0), "cost": (0.0, 0.0)}
    (tokens, later_tokens), (cost, later_cost) = used["tokens"], used["cost"]
    found_steps = steps or ([first] if first is not None else [])
    diff = Diff(first is None, first, found_steps, (int(tokens), int(later_tokens)), (cost, later_cost))
    found = (said["same"], said["runs"], said["served"], said["live"], said["tokens"], first, diff, said.get("without", ""))
    lacking = {
        next(str(one[name]) for name in ("run", "place", "file") if name in one): RecordingIncomplete(
            one["error"], code=one["code"]
        )
        for one in said.get("incomplete", ())
    }
    builds = {name: (str(then), str(now)) for name, (then, now) in said["builds"].items()}
    return Replay(*found, said["cost"], builds, running=tuple(said.get("running", ())), incomplete=lacking)


def _step(row: Mapping[str, Any]) -> StepDiff:
    return StepDiff(str(row["step"]), row.get("field"), row.get("a"), row.get("b"))


async def forked(
    of: FolderOf, run: str, at: str, given: Mapping[str, Any], *, other: bool, deliver: bool, mode: str
) -> tuple[str, dict[str, Any] | None]:
    """See `Client.fork`: the id of the fork, and what it leads to. `other`: code of this process is to run in it."""
    if other:
        why = "spec= and topology= are code of this process, and build= is the code of a folder"
        raise ConfigError(why, code="DX105", fix="leave one of them out")
    words = ["--at", at, "--mode", mode, *(["--deliver"] if deliver else [])]
    words += [word for name in ("lm", "program") if given[name] is not None for word in (f"--{name}", str(given[name]))]
    for option, fields in (("--input", given["inputs"]), ("--set", given["outputs"])):
        for name, value in (fields or {}).items():
            words += [option, f"{name}:={json_bytes(value).decode()}"]
    said = await of.asked("fork", *words, "--", run)
    return said["run"], said["later"]

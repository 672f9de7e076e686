"""What a claim says of the build: with the same one, the same arrivals give the same messages."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from dspex.engine.graph.graph import Graph

CODECS = ("orjson", "msgpack")
FILES: Final = "files"
MOST_FILES: Final = 64  # that a build names, since each claim has it; the others are in the digest of all


def build(graph: Graph) -> dict[str, str]:
    """The graph and its functions (their digests), dspex, Python, what encodes data, and the hash seed, on which the order of
    a set depends; and the files of the functions, all of them, and each by its name.
    """
    codecs = " ".join(f"{name} {_version(name)}" for name in CODECS)
    seed = os.environ.get("PYTHONHASHSEED") or "random"
    of_all = hashlib.sha256(json.dumps(sorted(graph.files.items())).encode()).hexdigest()[:12] if graph.files else ""
    return {
        "graph": graph.digest,
        "functions": graph.functions,
        "dspex": _version("dspex"),
        "python": platform.python_version(),
        "codecs": codecs,
        "hash seed": seed,
        FILES: of_all,
        **dict(sorted(graph.files.items())[:MOST_FILES]),
    }


def differing(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What is another one now: its name → then and now, where a file that is not there is "". Nothing of what is not known.

    A build of before knows no files: of it, see `names_no_files`.
    """
    if FILES not in then:
        older = {FILES: ("", now[FILES])} if then and now.get(FILES) else {}
        return {name: (was, now.get(name, "")) for name, was in then.items() if was != now.get(name, "")} | older
    names = dict.fromkeys([*then, *now])
    found = {name: (then.get(name, ""), now.get(name, "")) for name in names if then.get(name, "") != now.get(name, "")}
    if any(name.endswith(".py") for name in found):  # which says more
        found.pop(FILES, None)
    return found


def names_no_files(found: Mapping[str, tuple[str, str]]) -> bool:
    """Whether what differs was recorded by an older way of naming builds, which did not see the files of functions."""
    return FILES in found and not found[FILES][0]


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from its folder
        return "unknown"

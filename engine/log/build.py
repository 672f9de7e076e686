"""What a claim says of the build: with the same one, the same arrivals give the same messages."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

CODECS = ("orjson", "msgpack")


@cache
def build(digest: str, functions: str) -> Mapping[str, str]:
    """The graph and its functions (their digests), dspex, Python, what encodes data, and the hash seed, on which the order of
    a set depends.
    """
    codecs = " ".join(f"{name} {_version(name)}" for name in CODECS)
    seed = os.environ.get("PYTHONHASHSEED") or "random"
    return {
        "graph": digest,
        "functions": functions,
        "dspex": _version("dspex"),
        "python": platform.python_version(),
        "codecs": codecs,
        "hash seed": seed,
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from its folder
        return "unknown"

"""What is installed for an interpreter of a pool."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

_ASK_INTERPRETER = """
import importlib.metadata as m, json, platform
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return None
print(json.dumps({"python": platform.python_version(), "dspy": version("dspy"), "dspex": version("dspex")}))
"""


async def installed_for(python: str) -> Mapping[str, Any] | str:
    """Versions of what is installed for an interpreter, or why it cannot be started. Imports none of its packages."""
    if python == sys.executable:  # to start it once more costs a tenth of a second
        packages = {name: _version_here(name) for name in ("dspy", "dspex")}
        return {"python": platform.python_version(), **packages}
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-c", _ASK_INTERPRETER, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd="/"
        )
    except OSError as e:
        return f"{python} cannot be run: {e.strerror}"
    try:
        async with asyncio.timeout(20):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"{python} did not answer in 20 s"
    if process.returncode:
        return f"{python} failed: {err.decode(errors='replace').strip()[-200:]}"
    answer: dict[str, Any] = json.loads(out)
    return answer


def _version_here(package: str) -> str | None:
    """That of a package for the interpreter that runs this."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

"""Make store.tar.gz anew: what an earlier commit of dspex wrote, with its own code.

    PYTHONPATH=tests/support python tests/engine/outside/upgrade/make_store.py [COMMIT]

The files of the commit write; the interpreter is this one, and so are the versions of what dspex stands on. Half of
the project's past is over (runs, a session, a window, a dead letter), and half is open: a window, and calls that nobody took.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from waiting import eventually

HERE = Path(__file__).parent
ROOT = HERE.parents[3]
STORE = HERE / "store.tar.gz"
FIRST = "18aaa116"  # the first commit with traces and metrics
SETTINGS = """app = "old"
topologies = ["old.yaml"]
lm.main = { model = "openai/stand-in" }
pools.lightweight = { size = 1 }

[engine]
max_bytes = "64MiB"
records = "36500d"      # that the store may grow old
"""
TOPOLOGY = """dspex: 1
topology: old
retention: 36500d
sources:
  old.in: {}
  old.clicks: { time: sent_at, idle: 36500d }
nodes:
  classify: { from: old.in, predict: "text -> intent, urgency: int", deadline: 36500d, retry: { attempts: 1 } }
  by_customer: { from: old.clicks, key_by: customer }
  per_minute: { from: by_customer, window: 1m, count: {} }
sinks: { old.out: { from: classify }, old.minutes: { from: per_minute } }
"""
DONE = ["where is my card", "my card was stolen"]
BAD = "standin:nonsense, and so a dead letter"
OPEN = ["nobody has answered this", "nor that"]
ASKED = ["hello", "and now?"]
CLICKS = [("ann", "2026-01-01T10:00:05Z"), ("ann", "2026-01-01T10:00:20Z"), ("bob", "2026-01-01T10:02:00Z")]


@contextmanager
def running(folder: Path, *args: str) -> Iterator[None]:
    """`dspex run` in the folder, drained at the end."""
    process = subprocess.Popen([sys.executable, "-m", "dspex", "run", *args], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "ready" in line:
                break
        yield
    finally:
        process.terminate()
        process.communicate(timeout=120)
    assert process.returncode == 0


async def over() -> None:
    """What comes to its end: runs, two turns of a session, the window of ann."""
    import dspex
    from dspex.errors import RunFailed

    async with dspex.connect() as client:
        for text in (*DONE, BAD):
            run = await client.publish("old.in", {"text": text})
            with suppress(RunFailed):  # of the last one
                await run.wait(timeout="60s")
        session = client.session("talk", ttl="36500d")
        for text in ASKED:
            await session.call("history: dspy.History, text -> reply", {"text": text})
        for customer, at in CLICKS:
            await client.publish("old.clicks", {"customer": customer, "sent_at": at})
        async for event in client.watch("old.minutes", start="all"):
            assert event.data["value"] == 2
            break


async def begun() -> None:
    """What stays open: no pool runs."""
    import dspex

    async with dspex.connect() as client:
        for text in OPEN:
            await client.publish("old.in", {"text": text})


async def outstanding() -> int:
    """Calls that are open."""
    import dspex

    async with dspex.connect() as client:
        return sum(sum(stage["calls"].values()) for stage in (await client.status())["stages"])


def write(folder: Path) -> None:
    """The whole past of the project, with the code that is on the path."""
    (folder / "dspex.toml").write_text(SETTINGS)
    (folder / "old.yaml").write_text(TOPOLOGY)
    os.chdir(folder)
    with running(folder):
        asyncio.run(over())
    with running(folder, "--pools", "none"):
        asyncio.run(begun())
        assert eventually(lambda: asyncio.run(outstanding()) == len(OPEN))


def main() -> None:
    commit = sys.argv[1] if len(sys.argv) > 1 else FIRST
    with tempfile.TemporaryDirectory() as name:
        tree, project = Path(name) / "dspex", Path(name) / "project"
        project.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
        tree.mkdir()
        subprocess.run(["tar", "-x"], input=archive.stdout, cwd=tree, check=True)
        model = subprocess.Popen(
            [sys.executable, ROOT / "tests/support/standin.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert model.stdout is not None
        try:
            url = json.loads(model.stdout.readline())["url"]
            env = {k: v for k, v in os.environ.items() if not k.startswith(("NATS_", "DSPEX_"))}
            env |= {"PYTHONPATH": f"{name}:{ROOT / 'tests/support'}", "DSPEX_LM__MAIN__BASE_URL": url}
            subprocess.run([sys.executable, __file__, "--write", project], env=env, check=True)
        finally:
            model.communicate()  # it ends with its input
        shutil.rmtree(project / ".dspex" / "models", ignore_errors=True)
        with tarfile.open(STORE, "w:gz", compresslevel=9) as tar:
            for path in sorted(project.iterdir()):
                tar.add(path, path.name)
    sys.stdout.write(f"{STORE}: {STORE.stat().st_size:,} bytes, written by {commit}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]))
    else:
        main()

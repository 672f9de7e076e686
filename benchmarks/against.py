"""Compare the working tree with another commit: `scripts/bench pipeline --against REF`. Exits 1 when it is slower by over 15 %.

The commit is checked out beside. Each side runs its own code and its own benchmark script, by turns, on one server, over the
same events and in the environment of the working tree. So what differs is the code; the middle of all rounds counts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arguments import positive
from jobs.peers import preload

from dspex.bus.local.server import LocalServer

ROOT = Path(__file__).parents[1]
SLOWER = 1.15  # times as long: what the noise of a quiet machine does not reach
NOW = "working tree"  # no commit, branch or tag has a space in its name


def git(*args: str) -> str | None:
    """What git prints; None where it fails."""
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
    return None if done.returncode else done.stdout.strip()


def commit_of(ref: str) -> str:
    """The id of a commit. Ends the program with exit code 2 where there is none."""
    found = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if found is None:
        print(f"bench: there is no commit, branch or tag {ref!r} in this repository", file=sys.stderr)
        raise SystemExit(2)
    return found


def compared(commit: str, ref: str) -> str:
    """One line that says which code the two sides are."""
    changes = ", with uncommitted changes" if git("status", "--porcelain") else ""
    return f"{NOW}: {(git('rev-parse', 'HEAD') or '?')[:10]}{changes}; {ref}: {commit[:10]}"


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A folder that has the commit as the package `dspex`, as PYTHONPATH wants it. Gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="dspex-bench-") as folder:
        tree = Path(folder) / "dspex"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), commit], cwd=ROOT, check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


async def measure(sides: dict[str, Path], events: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, by round. The side that begins changes with every round."""
    took: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        async with LocalServer(Path(folder) / "jetstream", port=None) as server:
            await preload(server.url, events)
            for number in range(rounds):
                for side in list(sides)[:: 1 if number % 2 else -1]:
                    took[side].append(await once(sides[side], server.url, events))
                    print(f"  {side[:13]:<14}{events / took[side][-1]:>10,.0f} /s", file=sys.stderr)
    return took


async def once(folder: Path, url: str, events: int) -> float:
    """Seconds that the code in `folder` takes, in a process of its own."""
    script = folder / "dspex/benchmarks/pipeline.py"
    command = [sys.executable, str(script), "--one", "dspex", "--url", url, "--events", str(events)]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=env)
    out, _ = await process.communicate()
    if process.returncode:
        print(f"bench: {script} failed", file=sys.stderr)
        raise SystemExit(2)  # 1 says that the working tree is slower
    return float(out.split()[-1])


def verdict(took: dict[str, list[float]], ref: str, events: int) -> tuple[list[str], bool]:
    """The table, and whether the working tree is slower than it may be."""
    medians = {side: statistics.median(times) for side, times in took.items()}
    ratio = medians[NOW] / medians[ref]
    lines = [f"{'side':<14}{'events/s':>12}{'time':>9}   (median of {len(took[NOW])}, {events:,} events)"]
    lines += [f"{side[:13]:<14}{events / t:>12,.0f}{t / medians[ref]:>8.2f}x" for side, t in medians.items()]
    slow = ratio > SLOWER
    lines.append(f"{'SLOWER' if slow else 'ok'}: {ratio:.2f} times as long as {ref}; allowed are {SLOWER:g}")
    if len(took[NOW]) == 1:
        lines.append("one round proves little: a ratio is worth believing from --rounds 5 on")
    return lines, slow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--against", metavar="REF", required=True, help="a commit, branch or tag")
    parser.add_argument("--events", type=positive, default=40_000)
    parser.add_argument("--rounds", type=positive, default=5)
    args = parser.parse_args()
    commit = commit_of(args.against)
    print(compared(commit, args.against))
    with checkout(commit) as folder:
        sides = {NOW: Path(sys.prefix) / "as", args.against: folder}
        took = asyncio.run(measure(sides, args.events, args.rounds))
    lines, slow = verdict(took, args.against, args.events)
    print("\n".join(lines))
    sys.exit(slow)


if __name__ == "__main__":
    main()

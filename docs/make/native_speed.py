"""Write into benchmarks/README.md what is less than ten times as fast as DSPy: `python docs/make/native_speed.py`.

It takes some minutes. The figures are those of `dspex bench native --against dspy` on this machine, the reasons those of
workers/bench/rows.py.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dspex.workers.bench.cases import PEERS
from dspex.workers.bench.rows import REASONS

PAGE = Path(__file__).parents[2] / "benchmarks/README.md"
HEAD = "### Less than ten times as fast as DSPy"
MARK = re.compile(rf"{HEAD}\n.*?(?=\n###? |\Z)", re.DOTALL)
GROUPS = "signature,format,parse,metrics,predict"
SECONDS = "3"  # for an operation, and a quarter of it through a worker
TEN = 10.0


def measured() -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of the benchmark, and the versions that were measured."""
    command = ["bench", "native", "--against", "dspy", "--json", "--quiet", "--seconds", SECONDS, "--only", GROUPS]
    done = subprocess.run([sys.executable, "-m", "dspex", *command], stdout=subprocess.PIPE, text=True, check=True)
    *rows, verdict = map(json.loads, done.stdout.splitlines())
    return [row for row in rows if row["peer"] == PEERS["dspy"]], verdict["versions"]


def section(rows: Sequence[Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    """All of it."""
    slow = sorted((row for row in rows if row["ratio"] < TEN), key=lambda row: row["ratio"])
    lines = [
        f"| {row['operation']} | {digits(row['p50_us'])} | {digits(row['peer_p50_us'])} | {row['ratio']:.1f} "
        f"| {REASONS[row['operation']]} |"
        for row in slow
    ]
    fast = "\n".join(f"* {row['operation']}" for row in rows if row["ratio"] >= TEN)
    found = ", ".join(f"{name} {versions[name]}" for name in ("python", "dspy", "pydantic"))
    return "\n".join(
        [
            HEAD,
            "",
            f"`python docs/make/native_speed.py` wrote this on {datetime.date.today():%Y-%m-%d}: {found}.",
            "Microseconds are the middle of all batches, of the processor's time but for `predict`; the machine is shared",
            "and has two cores. Templates and schemas have no counterpart in DSPy.",
            "",
            "| operation | dspex, µs | DSPy, µs | ratio | why |",
            "|---|---|---|---|---|",
            *lines,
            "",
            f"The other {len(rows) - len(slow)} of {len(rows)} operations are ten times as fast or more:",
            "",
            fast,
            "",
        ]
    )


def digits(value: float) -> str:
    """As many as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    text = PAGE.read_text()
    assert MARK.search(text), f"{PAGE} has no section {HEAD!r}"
    made = section(*measured())
    PAGE.write_text(MARK.sub(lambda _: made, text))

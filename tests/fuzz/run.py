"""Fuzz tests, long: so many mutated inputs for each entry point, or for those named.

python tests/fuzz/run.py --inputs 250000 [NAME…] [--seed N] [--first N] [--seconds S] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

MEMORY = 1 << 30  # bytes that a run may take beyond what the process needs to begin with


def limit_memory() -> None:
    """Have what takes too much memory end in MemoryError, which is a bug of its entry point."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # pyarrow's own begins with 1 GiB, of which it uses little
    used = next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines() if "VmData" in line)
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, resource.RLIM_INFINITY))


def main() -> int:
    import logging

    import structlog
    from entries import ENTRIES, close
    from fuzzing import Done, run

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(ENTRIES)}")
    parser.add_argument("--inputs", type=int, default=250_000, help="for each entry point")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all of them together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--json", action="store_true", help="one object for each entry point")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in ENTRIES]:
        parser.error(f"there is no entry point {unknown[0]!r}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    limit_memory()
    names, failed, shown = args.names or list(ENTRIES), False, [0.0]

    def progress(done: Done) -> None:
        if time.monotonic() - shown[0] > 1.0:
            shown[0] = time.monotonic()
            said = f"{done.name}: {done.inputs:,} inputs, {done.inputs / max(done.seconds, 1e-3):,.0f} a second, {peak()} MiB"
            sys.stderr.write(f"\r{said}\x1b[K" if sys.stderr.isatty() else f"{said}\n")

    try:
        for name in names:
            done = run(
                ENTRIES[name],
                args.inputs,
                seed=args.seed,
                first=args.first,
                seconds=args.seconds / len(names),
                progress=progress,
            )
            failed = failed or bool(done.failures)
            if args.json:
                sys.stdout.write(json.dumps({**vars(done), "peak_mib": peak()}) + "\n")
            else:
                said = f"{name}: {done.inputs:,} inputs in {done.seconds:.1f} s, {peak()} MiB, {len(done.failures)} bugs"
                sys.stdout.write("\n\n".join([said, *done.failures.values()]) + "\n")
            sys.stdout.flush()
    finally:
        close()
    return int(failed)


def peak() -> int:
    """MiB that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    sys.exit(main())

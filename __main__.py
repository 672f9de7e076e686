"""`dspex` and `python -m dspex`. The command line itself is `engine/cli/app.py`."""

import os
import sys
from collections.abc import Sequence

from dspex import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code (API.md, section 3)."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if args == ["--version"]:  # before anything is imported: it answers in a few hundredths of a second
        sys.stdout.write(f"dspex {__version__}\n")
        return 0
    handed = "DSPEX_ENVIRONMENT_FD" in os.environ  # by a process of ours, which has keys
    if arguments is None and (handed or not {"worker", "run"}.isdisjoint(args)):  # programs must not read others' keys there
        from dspex.bus.settings import environment

        environment.seal() if handed or "worker" in args else environment.hide()
    from dspex.bus.settings.imports import lean

    try:
        lean("structlog", without=["rich"])
        from dspex.engine.cli.app import main
    except KeyboardInterrupt:  # as later, where app.py sees to it: without a traceback of ours
        return 130

    return main(args)


if __name__ == "__main__":
    sys.exit(main())

"""`dspex` and `python -m dspex`. The command line itself is `engine/cli/app.py`."""

import sys
from collections.abc import Sequence

from dspex import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code (API.md, section 3)."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    if args == ["--version"]:  # before anything is imported: it answers in a few hundredths of a second
        sys.stdout.write(f"dspex {__version__}\n")
        return 0
    if arguments is None and not {"worker", "run"}.isdisjoint(args):  # programs of pools must not read the keys of others there
        from dspex.bus.settings import environment

        environment.seal() if "worker" in args else environment.hide()
    from dspex.engine.cli.terminal.imports import lean

    lean("structlog", without=["rich"])
    from dspex.engine.cli.app import main

    return main(args)


if __name__ == "__main__":
    sys.exit(main())

"""A process that runs calls. What every one of them imports, hundreds in a large pool, is kept small."""

from dspex.bus.settings.imports import lean

lean("structlog", without=["rich"])

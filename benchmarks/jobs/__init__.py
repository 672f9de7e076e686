"""What the benchmarks of keyed work let engines do, and others beside them: one job a function."""

from dspex.bus.settings.imports import lean_nats

lean_nats()  # as in `dspex run`

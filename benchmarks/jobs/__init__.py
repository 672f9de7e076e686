"""What the benchmarks let engines do, and others beside them, one job a function; and what it costs to start, and to idle."""

from dspex.bus.settings.imports import lean_nats

lean_nats()  # as in `dspex run`

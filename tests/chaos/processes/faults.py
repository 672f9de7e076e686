"""What goes wrong in a chaos run: each fault is a function of the world and of a seeded random.

A fault returns when it is over; who supervises the processes starts again what was killed. To add one, write the function and
name it in FAULTS.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

from processes import processes, servers, sources
from processes.world import World

Fault = Callable[[World, Random], Awaitable[None]]

FAULTS: dict[str, Fault] = {
    f.__name__.replace("_", "-"): f
    for f in (
        processes.kill_engine,
        processes.kill_between_parts,
        processes.kill_pool,
        processes.kill_child,
        processes.kill_worker,
        processes.scale_pool,
        processes.drain_engine,
        processes.drain_pool,
        processes.freeze_engine,
        processes.take_over,
        processes.freeze_pool,
        processes.come_and_go,
        processes.step_engine_clock,
        processes.step_pool_clock,
        servers.kill_server,
        servers.freeze_server,
        servers.fill_disk,
        servers.kill_leader,
        servers.freeze_leader,
        servers.isolate_leader,
        servers.cut_wires,
        servers.hold_wires,
        sources.recreate_source,
        sources.roll_back_source,
    )
}
AT_ONCE = {"kill-between-parts"}  # it waits for its moment itself
TARGETS: dict[str, tuple[str, ...]] = {
    "none": (),
    "engine": ("kill-engine",),
    "worker": ("kill-worker",),
    "scale": ("scale-pool", "kill-worker"),
    "server": ("kill-server",),
    "all": ("kill-engine", "kill-worker", "kill-server"),
    "drain": ("drain-engine", "drain-pool"),
    "parts": ("kill-between-parts",),
    "freeze": ("freeze-engine", "freeze-pool", "freeze-server"),
    "wire": ("cut-wires", "hold-wires"),
    "clocks": ("step-engine-clock", "step-pool-clock", "kill-engine"),
    "source": ("recreate-source", "roll-back-source"),
}

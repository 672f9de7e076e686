"""What a worker runs for `dspex bench native`: one operation, done by the peer, on data that came over the bus."""

from __future__ import annotations

from dspex.workers.bench.cases import Operation, cases
from dspex.workers.dspy import bench as dspy_side

_CASES = {case.name: case for case in cases()}
_BUILT: dict[str, Operation] = {}


async def operation(name: str, data: object) -> dict[str, object]:
    """`name`: of the case."""
    if name not in _BUILT:
        _BUILT[name] = dspy_side.build(_CASES[name])
    return {"result": dspy_side.plain(_CASES[name], _BUILT[name](data))}

"""Two versions of DSPy side by side, each in a pool with an interpreter of its own: where OTHER_PYTHON names a second one."""

from __future__ import annotations

import os
from typing import Any

import pytest
from pool_bench import config, program, running, work

OTHER = os.environ.get("OTHER_PYTHON", "")


@pytest.mark.skipif(not OTHER, reason="OTHER_PYTHON names no interpreter that has dspex and another version of DSPy")
@pytest.mark.asyncio
async def test_each_pool_answers_with_the_dspy_of_its_own_interpreter(model: Any) -> None:
    versions: list[str] = []
    for python in (None, OTHER):
        async with running(config(model.url, python=python)) as bench:
            asked, ran = await bench.ask(work("lost my card"), work("hello", spec=program("Slow")))
            assert (asked.error, ran.error) == (None, None)
            assert ran.dspy_version == bench.pool.status.full()["dspy_version"]
            versions.append(ran.dspy_version)
    assert versions[0] != versions[1]

"""What an engine refuses before it starts anything."""

from __future__ import annotations

import pytest

from dspex.bus.errors import TopologyError
from dspex.bus.settings.model import Settings
from dspex.engine.hosting.engine import Engine


def test_an_engine_refuses_what_is_no_topology() -> None:
    with pytest.raises(TopologyError, match="3 is int, not a Topology") as caught:
        Engine(3, settings=Settings(app="test"))  # type: ignore[arg-type]
    assert caught.value.code == "DX221"

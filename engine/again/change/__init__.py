"""The one thing that a fork changes, and how it is made in an operator."""

from dspex.engine.again.change.changes import (
    ForkChange,
    ForkedGraphs,
    ForkPlace,
    altered,
    before,
    changed,
    fitting,
    is_of_engine,
    kept,
    outputs_of,
    place_of,
)
from dspex.engine.again.change.reached import Reached

__all__ = [
    "ForkChange",
    "ForkPlace",
    "ForkedGraphs",
    "Reached",
    "altered",
    "before",
    "changed",
    "fitting",
    "is_of_engine",
    "kept",
    "outputs_of",
    "place_of",
]

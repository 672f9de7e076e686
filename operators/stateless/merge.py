"""merge: several streams become one. A node with several inlets, and no code of its own: what comes in goes on."""

from __future__ import annotations

from collections.abc import Sequence

from dspex.engine.graph.context import Handler
from dspex.operators.operator import Operator
from dspex.operators.parameters import NothingParameter


def build(outlets: Sequence[Handler]) -> Handler:
    """The next step itself. A merge of streams of one stage needs no hop, so it costs nothing."""
    (out,) = outlets
    return out


OPERATOR = Operator(
    "merge",
    main=NothingParameter(),
    build=lambda main: build,
    many_inputs=True,
)

"""The names that operators have and had: letters lie under the name of their time."""

from __future__ import annotations

from collections.abc import Mapping

from dspex.engine.graph.manifest import Manifest


def names(manifests: Mapping[str, Manifest], topology: str, node: str) -> set[str]:
    """All names of an operator, each alone and behind its topology: `draft`, `support/draft`."""
    renamed = manifests[topology].renamed if topology in manifests else {}
    now = renamed.get(node, node)
    found = {node, now, *(old for old, new in renamed.items() if new == now)}
    return found | {f"{topology}/{name}" for name in found}


def known(manifests: Mapping[str, Manifest]) -> set[str]:
    """The sources and recorded operators of all topologies that are applied; manifests name no others."""
    return {
        name
        for topology, applied in manifests.items()
        for node in (*applied.calls, *applied.stages, *applied.hops)
        for name in names(manifests, topology, node)
    }

"""A log is replayed in pieces, each by itself, and all is found that is found from its begin on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_lab import APP, Lab

from dspex.engine.log.rows import NONE
from dspex.engine.replay import pieces
from dspex.engine.replay.pieces import Diverged, LogPiece, PartitionPieces, PieceReplayed
from dspex.operators.topology import Topology

MakeLab = Callable[..., Lab]


def asked(more: str = "", *, from_: int = 99, step: int = 1) -> Topology:
    """Counts what a model says. `more`: what the texts of sums end with. `step`: by how much, for texts from one on."""

    def total(state: int, data: dict[str, Any], ctx: object) -> tuple[int, list[dict[str, Any]]]:
        now = state + (step if int(str(data["text"]).split()[1]) >= from_ else 1)
        return now, [{"intent": data["intent"], "n": f"{now}{more if int(str(data['text']).split()[1]) >= from_ else ''}"}]

    topology = Topology("asked")
    source = topology.source("in").predict("text -> intent", name="classify")
    source.batch(3, within="20s", name="three").sink("threes")
    source.key_by("intent", name="by_intent").stateful(total, init=int, name="total").sink("sums")
    return topology


@pytest.fixture
def one(lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """What happened, through a kill of engine and workers. Each piece has a few arrivals."""
    monkeypatch.setattr(pieces, "SHARE", 5)
    one = lab(asked())
    one.answers["classify"] = lambda inputs, work: {"intent": str(inputs["text"]).split()[0]}
    one.start()
    one.work()
    for n in range(30):
        one.publish("in", {"text": f"{'card' if n % 3 else 'rate'} {n}"})
        one.advance(2)
        if n == 14:
            one.kill()
            one.kill_workers()
            one.start("b")
            one.work()
    one.advance(60)
    return one


def replayed(one: Lab, code: Topology, *, cut: bool) -> list[tuple[list[Diverged], Any, Any, list[str], int, bool]]:
    """What is found in each partition; in how many pieces, and whether each of them ends with what the log tells."""

    async def found() -> list[tuple[list[Diverged], Any, Any, list[str], int, bool]]:
        applied = (await one.client.manifests())["asked"]
        of, partitions = PartitionPieces(one.client.bus, APP, code.graph, applied), list[Any]()
        for where in ((id, n) for id, (_, count) in of.stages.items() for n in range(count)):
            whole, all_of_it, as_told = LogPiece(*where, 0, 0, NONE), PieceReplayed(), True
            parts = [piece async for piece, _ in of.cut(whole)] if cut else [whole]
            for piece in parts:
                came = await of.replayed(piece)
                as_told = as_told and came.as_told
                all_of_it.add(came)
            it = all_of_it
            partitions.append((it.diverged, it.taken, it.builds, [*it.incomplete], len(parts), as_told))
        return partitions

    result: list[tuple[list[Diverged], Any, Any, list[str], int, bool]] = one.run(found())
    return result


@pytest.mark.parametrize("more", ["", "!"])
def test_a_log_in_pieces_gives_what_it_gives_as_a_whole(one: Lab, more: str) -> None:
    whole, cut = (replayed(one, asked(more, from_=7), cut=cut) for cut in (False, True))
    assert [each[:4] for each in cut] == [each[:4] for each in whole]
    assert any(each[0] for each in cut) == bool(more)
    assert max(each[4] for each in cut) > 4
    assert all(each[5] for each in cut)


def test_a_piece_that_leaves_other_tables_than_the_log_tells_says_so(one: Lab) -> None:
    cut = replayed(one, asked(from_=7, step=2), cut=True)
    assert [each[5] for each in cut if each[0]] == [False] * sum(bool(each[0]) for each in cut)
    assert any(each[0] for each in cut)


def test_a_small_log_is_one_piece(one: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    often = [each[4] for each in replayed(one, asked(), cut=True)]
    monkeypatch.setattr(pieces, "SHARE", 1 << 30)
    assert [each[4] for each in replayed(one, asked(), cut=True)] == [1] * len(often)

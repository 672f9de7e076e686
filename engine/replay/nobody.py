"""What stands for the owner of a partition in a replay: it commits nothing."""

from __future__ import annotations

from collections.abc import Sequence

from dspex.bus.errors import DspexError
from dspex.engine.runtime.batch import Batch
from dspex.engine.runtime.partition import Partition


class Nobody:
    """The owner of a partition that commits nothing."""

    def landed(self, partition: Partition, batch: Batch, /) -> None: ...
    def failed(self, partition: Partition, error: DspexError, /) -> None: ...


def not_committed(p: Partition) -> None:
    """Nothing is written here."""


async def unchecked(partitions: Sequence[Partition], clock: float) -> float:
    """Nothing is read from a position here."""
    return 0.0

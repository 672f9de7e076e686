"""The demo's second act: one of its runs again, and again with one change. No model is asked for either."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspex.engine.again.change import ForkChange
from dspex.engine.again.code import code
from dspex.engine.again.fork import forked
from dspex.engine.again.repeat import repeat
from dspex.topologies.support_triage import topology

if TYPE_CHECKING:
    from dspex.bus.settings.model import Settings
    from dspex.engine.cli.demo.printed import Printed
    from dspex.engine.client.client import Client

CALL, CHANGE = "classify", {"intent": "lost_card"}


async def play(client: Client, settings: Settings, run: str, printed: Printed) -> bool:
    """Replay a run, fork it where the model was asked, and show what differs. Whether the replay gave the same."""
    graphs = code(client.app, settings, [topology])
    again = await repeat(client, await client.run(run).file(), graphs[:1])
    printed.replayed(run, again)
    made = await forked(client, run, CALL, ForkChange(outputs=CHANGE), graphs)
    printed.forked(made, CALL, CHANGE)
    return again.diff.same and not again.called

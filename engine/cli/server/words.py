"""What people are told of a server, and of pools."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from dspex.engine.cli.terminal.client import shown

if TYPE_CHECKING:
    from dspex.bus.local.open import Found
    from dspex.bus.settings.model import Settings


def server_words(settings: Settings, server: Found) -> str:
    """Whose server it is, where its data is, and what a crash can lose."""
    if not server.local:
        return "yours"
    from dspex.bus.settings.duration import human

    sync = settings.server.local.sync_interval
    started, store = "started" if server.started else "was running", shown(settings.store)
    if isinstance(sync, str):
        return f"{started}, data in {store}, every write is synced to disk"
    lost = f"sync_interval {human(sync)} (an OS crash can lose that much: dspex doctor)"
    return f"{started}, data in {store}, {lost}"


def not_started(settings: Settings, started: Collection[str]) -> list[str]:
    """The pools to which calls may be submitted, and which somebody else has to start."""
    return [name for name in settings.pools if name not in started] if settings.engine.submit else []

"""The table of all entry points: a name, valid inputs, how they are changed, and who takes them."""

from __future__ import annotations

import client_entries
import engine_entries
import file_entries
import operator_entries
import sealed_entries
import wire_entries
import worker_entries
from engine_entries import close as close

ROOMS = (wire_entries, engine_entries, client_entries, worker_entries, file_entries, operator_entries, sealed_entries)
ALL = [entry for room in ROOMS for entry in room.ENTRIES]
ENTRIES = {entry.name: entry for entry in ALL}
assert len(ENTRIES) == len(ALL), "two entry points have one name, and one of them would not be tried"

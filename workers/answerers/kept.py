"""What the session of a call keeps, while its program runs: read as it was when the turn began, and saved with the turn."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from dspex.bus.serving.sessions.state import check_data


class SessionData:
    """The data of a session, for one attempt at a call.

    Attributes:
        saved: what the program has saved last; None for nothing.
    """

    def __init__(self, session: str, data: Mapping[str, Any]) -> None:
        self._session, self._data = session, data
        self.saved: dict[str, Any] | None = None

    def load(self) -> dict[str, Any]:
        """A copy, which the program may change."""
        return deepcopy(dict(self._data if self.saved is None else self.saved))

    def save(self, data: Mapping[str, Any]) -> None:
        """Keep this with the answer. Raises InvalidInput, OutputTooLarge."""
        check_data(self._session, data)
        self.saved = deepcopy(dict(data))

    def forget(self) -> None:
        """The program begins anew: nothing was saved."""
        self.saved = None

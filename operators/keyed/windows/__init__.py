"""Windows over the events of a key, each with what it gives of them."""

from dspex.operators.keyed.windows.fixed import OPERATOR as WINDOW
from dspex.operators.keyed.windows.sessions import OPERATOR as SESSION_WINDOW

__all__ = ["SESSION_WINDOW", "WINDOW"]

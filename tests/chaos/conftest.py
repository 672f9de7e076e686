"""Puts the package of the chaos runs on the path: pytest's importlib mode puts no folder of tests there."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

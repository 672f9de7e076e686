"""The differences between the prompts, and the requests, of DSPy's versions.

They were found by comparing the sources. A file of prompts that each version made itself checks them
(tests/operators/native/golden).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import metadata

from dspex.operators.native.problems import problem

_NUMBER = re.compile(r"(\d{1,6})\.(\d{1,6})(?:[^\d]|\Z)", re.ASCII)
_PACKAGES = ("dspy", "dspy-ai")  # one library under two names


@dataclass(frozen=True, slots=True)
class Version:
    """The prompts and requests of a minor version of DSPy. Each flag is True from the version in its comment on."""

    name: str
    completed: bool = True  # 3.0: the answers of chat examples end with the marker `completed`
    enum_values: bool = True  # 3.0: an enum's values are listed; before, its names
    xml: bool = True  # 3.0: there is an XML adapter
    xml_inputs: bool = True  # 3.1: the XML adapter tags inputs too; before, they had the chat adapter's headers
    letters: bool = True  # 3.2: the answers of JSON examples keep letters beyond ASCII; before, \uXXXX
    nested_xml: bool = True  # 3.3: lists, dicts and models are written as XML elements, and text is escaped
    unions: bool = True  # 3.4: `X | Y` is shown as Union[X, Y]; before, as UnionType[X, Y]
    items_as_text: bool = (
        True  # 3.4: a value that pydantic cannot serialize becomes text by itself; before, the whole value around it
    )
    own_client: bool = True  # 3.4: asks a model itself; before, LiteLLM did, which sends parameters as they were given
    unasked: tuple[tuple[str, float], ...] = ()  # parameters that are sent where nobody gave them; none since 3.0


_V34 = Version("3.4")
_V33 = replace(_V34, name="3.3", unions=False, items_as_text=False, own_client=False)
_V32 = replace(_V33, name="3.2", nested_xml=False)
_V31 = replace(_V32, name="3.1", letters=False)
_V30 = replace(_V31, name="3.0", xml_inputs=False)
_DEFAULTS = (("temperature", 0.0), ("max_tokens", 4000))
_V26 = replace(_V30, name="2.6", completed=False, enum_values=False, xml=False, unasked=_DEFAULTS)

VERSIONS: dict[tuple[int, int], Version] = {
    (2, 6): _V26,
    (3, 0): _V30,
    (3, 1): _V31,
    (3, 2): _V32,
    (3, 3): _V33,
    (3, 4): _V34,
}
NEWEST = _V34


@lru_cache(maxsize=256)
def version_of(text: str | None) -> Version:
    """The version whose prompts DSPy `text` ("3.4", "3.3.1") makes; None: the newest known.

    A version newer than all known ones has the prompts of the newest known one. Raises TopologyError (DX205) for a version
    older than 2.6, and for text that is no version.
    """
    if text is None:
        return NEWEST
    found = _NUMBER.match(text)
    fix = f"use one of {', '.join(v.name for v in VERSIONS.values())}, or leave it out for the newest"
    if found is None:
        raise problem("DX205", f"{text!r} is not a version of DSPy", fix)
    wanted = (int(found[1]), int(found[2]))
    if wanted < min(VERSIONS):
        raise problem("DX205", f"prompts of DSPy {text} are not known; the oldest are those of 2.6", fix)
    return VERSIONS[max(v for v in VERSIONS if v <= wanted)]


def usable_dspy(text: str) -> tuple[bool, str]:
    """Whether a worker can run DSPy `text`, and what is to be said of it: "" for a version that dspex is tested with."""
    found = _NUMBER.match(text)
    minor = (int(found[1]), int(found[2])) if found else (0, 0)
    if minor < min(VERSIONS):
        return False, f"DSPy {text} is too old: the oldest that works is {VERSIONS[min(VERSIONS)].name}"
    tested = minor in VERSIONS
    return True, "" if tested else f"DSPy {text} is newer than all that dspex is tested with, up to {NEWEST.name}"


def installed() -> str | None:
    """The version of DSPy that is installed, read without importing DSPy; None if DSPy is not installed."""
    for package in _PACKAGES:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None

"""The properties of OpenAI's models that change a request: which take a JSON schema, and which are reasoning models.

DSPy reads them from a catalog of 4,000 models. These are OpenAI's models in the catalog of DSPy 3.4.1; a test compares them.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

JsonMode: TypeAlias = Literal["schema", "object"]

_TAKE_SCHEMA = (
    "chat-latest daybreak-blue-latest daybreak-red-latest gpt-daybreak-blue-latest gpt-daybreak-red-latest "
    "ft:gpt-4.1-2025-04-14 ft:gpt-4.1-mini-2025-04-14 ft:gpt-4.1-nano-2025-04-14 ft:gpt-4o-2024-08-06 ft:gpt-4o-2024-11-20 "
    "ft:gpt-4o-mini-2024-07-18 ft:o4-mini-2025-04-16 "
    "gpt-4.1 gpt-4.1-2025-04-14 gpt-4.1-mini gpt-4.1-mini-2025-04-14 gpt-4.1-nano gpt-4.1-nano-2025-04-14 "
    "gpt-4o gpt-4o-2024-08-06 gpt-4o-2024-11-20 gpt-4o-mini gpt-4o-mini-2024-07-18 gpt-4o-mini-search-preview "
    "gpt-4o-search-preview gpt-5-chat gpt-5-chat-latest gpt-5.1-chat-latest gpt-5.2-chat-latest gpt-5.3-chat-latest "
    "gpt-6-astra gpt-6-luna gpt-6-sol gpt-6.1-sol"
)
_TAKE_OBJECT = (
    "ft:gpt-4-0613 gpt-3.5-turbo gpt-3.5-turbo-0125 gpt-3.5-turbo-1106 gpt-4 gpt-4-0613 gpt-4-1106-preview gpt-4-turbo "
    "gpt-4-turbo-2024-04-09 gpt-4o-2024-05-13"
)
_SCHEMA, _OBJECT = frozenset(_TAKE_SCHEMA.split()), frozenset(_TAKE_OBJECT.split())
_LISTED = re.compile(r"gpt|claude|gemini|codex|deep-research|\bo\d|davinci|babbage|computer-use|daybreak|latest")
_REASONING = re.compile(r"(?:o[1345](?:-(?:mini|nano|pro))?(?:-\d{4}-\d{2}-\d{2})?|gpt-5(?:\.\d+)*(?!-chat)(?:-.*)?)", re.ASCII)


def json_mode(name: str) -> JsonMode | None:
    """How the JSON adapter asks a model of OpenAI for JSON in addition to the prompt; None: by the prompt alone."""
    return "schema" if name in _SCHEMA else "object" if name in _OBJECT else None


def json_mode_known(name: str, own_server: bool) -> bool:
    """Whether `json_mode` is known to be what DSPy does for this name. A model of one's own server is in no catalog."""
    return json_mode(name) is not None or (own_server and _LISTED.search(name.lower()) is None)


def reasons(name: str) -> bool:
    """Whether DSPy takes the model for one of OpenAI's reasoning models, to which it sends other parameters."""
    return _REASONING.fullmatch(name.rpartition("/")[2].lower()) is not None

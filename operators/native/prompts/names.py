"""Types as DSPy's prompts name them: `list[str]`, `Literal['a', 'b']`, `Union[int, NoneType]`."""

from __future__ import annotations

import types
from typing import Literal, Union, get_args

from dspex.operators.native.fields.fields import Annotation, get_origin
from dspex.operators.native.prompts.versions import NEWEST, Version


def annotation_name(annotation: Annotation, version: Version = NEWEST) -> str:
    """The name that a prompt shows for a type."""
    origin = get_origin(annotation)
    if origin is None:
        return str(annotation.__name__) if hasattr(annotation, "__name__") else str(annotation)
    if origin is types.UnionType and version.unions:
        origin = Union
    literal = origin is Literal
    args = [_quoted(a) if literal and isinstance(a, str) else annotation_name(a, version) for a in get_args(annotation)]
    return f"{annotation_name(origin, version)}[{', '.join(args)}]"


def _quoted(text: str) -> str:
    """A text of a Literal in quotes, as DSPy writes them. Not repr(): only quotes are escaped."""
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text:
        return f'"{text}"'
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"

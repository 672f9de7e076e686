"""Signatures from the wire: read by dspex, then made into classes of DSPy, which never sees a text.

DSPy resolves a type that it does not know by importing a module of that name (`q -> a: this` runs `this`), so a signature
that came over the wire would be code. The engine checks it too, but a worker does not trust what it receives.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from typing import Any

import dspy
import pydantic

from dspex.bus.codecs.media import MARKER
from dspex.bus.errors import InvalidInput, ProgramError, TopologyError
from dspex.operators.native.fields.fields import MISSING, Field
from dspex.operators.native.signature import Signature
from dspex.operators.native.user_types import unfolded
from dspex.operators.native.user_types.described import CODE, leaves
from dspex.workers.dspy.versions import installed

_TYPES: dict[str, Any] = {
    **{t.__name__: t for t in (date, datetime, time, timedelta)},
    **{f"dspy.{name}": known for name, known in installed.TYPES.items()},
}


def read(plain: Mapping[str, Any]) -> Signature:
    """The signature that `Signature.plain` wrote, with DSPy's own types in it. Raises ProgramError, InvalidInput (a marker)."""
    check_text(dict(plain), "signature")
    try:
        made = Signature.from_plain(plain, types={**_TYPES, **_codes(plain)})
    except TopologyError as error:
        raise ProgramError(f"signature {plain['signature']!r}: {error.message}", fix=error.fix) from error
    for field in made.fields:
        _need_types(field.annotation)
    return made


def _need_types(hint: Any) -> None:
    """Raise ProgramError where a class stands for a type that the installed DSPy has not."""
    if getattr(hint, "__module__", "") == "dspy":  # DSPy's own are defined in its modules
        installed.need_type(hint.__name__)
    for inner in typing.get_args(hint):
        _need_types(inner)


def _codes(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The types `dspy.Code["java"]` among the described ones. Whoever reads the description says what is wrong with it."""
    classes = (plain.get("types") or {}).get("classes")
    found = classes.items() if isinstance(classes, Mapping) else ()
    languages = {n: known.get("language") for n, known in found if isinstance(known, Mapping) and known.get("kind") == CODE}
    if languages:
        installed.need_type("Code")
    code: Any = installed.TYPES.get("Code")
    return {name: code[language] for name, language in languages.items() if isinstance(language, str)}


def own_type(name: str) -> Any:
    """DSPy's class of this name; None where a signature may not name it."""
    return _TYPES.get(f"dspy.{name}")


def to_dspy(signature: Signature) -> type[dspy.Signature]:
    """DSPy's class for a signature: the one that DSPy makes of the text, with what the class forms add. Raises ProgramError."""
    fields = {f.name: (_hint(f), _info(f)) for f in signature.fields}
    make: Any = dspy.Signature  # a class whose metaclass makes classes
    try:
        made: type[dspy.Signature] = make(fields, signature.instructions or signature.default_instructions)
    except (ValueError, TypeError, pydantic.errors.PydanticUserError) as error:
        raise ProgramError(f"signature {str(signature)!r}: {error}") from error
    return made


def _hint(field: Field) -> Any:
    """The type with its constraints around it. Not as arguments of DSPy's field: that would show them to the model."""
    if not field.constraints:
        return field.annotation
    constraints: Any = pydantic.Field(**field.constraints)
    return typing.Annotated[field.annotation, constraints]


def _info(field: Field) -> Any:
    said: dict[str, Any] = {} if field.default is MISSING else {"default": field.default}
    if field.description:
        said["desc"] = field.description
    if field.factory:
        default = said.pop("default")
        said["default_factory"] = lambda: copy.deepcopy(default)
    info: Any
    if field.role == "output":
        info = dspy.OutputField(**said)
    else:
        info = dspy.InputField(**said)
        info.json_schema_extra["IS_TYPE_UNDEFINED"] = not field.typed  # older versions do not know it as an argument
    more = {"constraints": field.limits, "prefix": field.own_prefix}  # DSPy warns of the latter as an argument
    info.json_schema_extra |= {k: v for k, v in more.items() if v}
    return info


def refuse_large(signature: type[dspy.Signature]) -> None:
    """Raise ProgramError for an output whose type grows too large where its references are written out."""
    for name, info in signature.output_fields.items():
        hint: Any = info.annotation
        if any(leaves(hint)):
            try:
                unfolded.refuse_large(pydantic.TypeAdapter(hint).json_schema(), name)
            except TopologyError as error:
                raise ProgramError(error.message, fix=error.fix) from error


def check_text(value: Any, name: str) -> None:
    """Raise InvalidInput if a text holds DSPy's marker, which DSPy expands into content of another kind (an image, a file)."""
    if isinstance(value, str):
        if MARKER in value:
            raise InvalidInput(f"{name}: the text holds DSPy's marker {MARKER}, which would become content of its own")
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key, name)  # DSPy expands a marker there too
            check_text(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_text(item, name)

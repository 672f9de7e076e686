"""Data checked against the fields of one side, by an adapter of pydantic that is made once."""

from __future__ import annotations

import copy
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NotRequired, cast

from dspex.bus.errors import DspexError, InvalidOutput
from dspex.operators.native.fields.fields import MISSING, SECRET, Annotation, Field, Values
from dspex.operators.native.fields.types import explain
from dspex.operators.native.problems import problem

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_LONG = 2_000  # characters of the list of problems in an error
_LISTS = ("list", "tuple", "set", "frozenset")
# What validators of the user's and DSPy's own types raise for data beside ValueError, which pydantic takes for itself.
FAILURES = (TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
# The keys under which a schema of pydantic's core holds other schemas.
_SCHEMAS = frozenset((
    "schema", "items_schema", "keys_schema", "values_schema", "definitions", "lax_schema", "strict_schema", "python_schema",
    "json_schema", "steps",
))  # fmt: skip
_BY_NAME = frozenset(("fields", "choices"))


class Check:
    """Checks and types the values of one side.

    Args:
        what: the beginning of the error's message. error: the class of the error.
        untyped_is_any: whether a field without a type takes any value; otherwise it takes text.

    Attributes:
        validate: pydantic's own check. Where it raises ValueError, or gives fewer values than there are `names`, the Check
            has to be called: it says what is wrong, and fills in what may be missing.
    """

    __slots__ = ("_error", "_fills", "_invalid", "_what", "names", "validate")

    def __init__(self, what: str, fields: Iterable[Field], error: type[DspexError], *, untyped_is_any: bool = False) -> None:
        from pydantic_core import ValidationError

        given = list(fields)
        self._what, self._error, self._invalid = what, error, ValidationError
        self.names = [f.name for f in given]
        self._fills = {f.name: None if f.default is MISSING else f.default for f in given}
        self.validate: Callable[..., Values] = validator(adapter(given, untyped_is_any=untyped_is_any))

    def __call__(self, data: Mapping[str, object]) -> Values:
        try:
            found = self.validate(data)
        except self._invalid as e:
            renamed = self._by_name(data)
            if renamed is None:
                raise self._error(f"{self._what}: {explain(e)[:_LONG]}") from e
            found = renamed
        except FAILURES as e:
            raise self._error(f"{self._what}: {type(e).__name__}: {str(e)[:_LONG]}") from e
        if len(found) == len(self.names):
            return found
        return {n: found[n] if n in found else copy.deepcopy(self._fills[n]) for n in self.names}

    def _by_name(self, data: Mapping[str, object]) -> Values | None:
        """The outputs whose fields have their names in place of their aliases, as the XML adapter asks a model for them."""
        if self._error is not InvalidOutput:
            return None
        try:
            return self.validate(data, by_name=True)
        except (self._invalid, *FAILURES):
            return None


def adapter(fields: Iterable[Field], *, untyped_is_any: bool = False) -> TypeAdapter[Values]:
    """A pydantic adapter for one side. It validates a TypedDict, because in a model a field's name could hide a method.

    Raises TopologyError (DX210) for a type that pydantic cannot check.
    """
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError
    from pydantic_core import SchemaError
    from typing_extensions import TypedDict

    hints: dict[str, Annotation] = {}
    for f in fields:
        hint: Annotation = Any if untyped_is_any and not f.typed else hint_of(f)
        hints[f.name] = hint if f.required else NotRequired[hint]
    try:
        return TypeAdapter(TypedDict("Fields", hints))  # type: ignore[operator]  # made at run time
    except (PydanticUserError, SchemaError, TypeError) as e:
        raise problem("DX210", f"the fields {', '.join(hints)} cannot be checked: {e}", "use types that pydantic knows") from e


def validator(adapter: TypeAdapter[Any]) -> Callable[..., Any]:
    """The validation of a pydantic adapter, except that a list fails at its first wrong item.

    Pydantic makes an object for every wrong item: a short text with 300,000 of them took 300 MB. It has no such setting for
    dictionaries.
    """
    schema = cast("object", adapter.core_schema)
    if not isinstance(schema, dict):  # the adapter of a class with forward references is built later
        return adapter.validator.validate_python
    quick = _quick(schema)
    if quick == schema:
        return adapter.validator.validate_python
    from pydantic_core import SchemaValidator

    return SchemaValidator(quick).validate_python


def _quick(schema: Any) -> Any:
    """A schema of pydantic's core whose lists fail fast. Models and dataclasses keep their own validators unchanged."""
    if isinstance(schema, (list, tuple)):
        return type(schema)(_quick(x) for x in schema)
    if not isinstance(schema, dict) or schema.get("type") in ("model", "dataclass"):
        return schema
    made = {k: _quick(v) if k in _SCHEMAS else v for k, v in schema.items()}
    for key in _BY_NAME & made.keys():
        inner = made[key]
        made[key] = {k: _quick(v) for k, v in inner.items()} if isinstance(inner, dict) else _quick(inner)
    return {**made, "fail_fast": True} if schema.get("type") in _LISTS else made


def hint_of(field: Field) -> Annotation:
    """The type of a field with its constraints, its description and the mark of a secret around it."""
    if not field.constraints and not field.description and not field.secret:
        return field.annotation
    from pydantic import Field as Info

    more: Values = {"json_schema_extra": {SECRET: True}} if field.secret else {}
    info: object = Info(description=field.description or None, **field.constraints, **more)
    return typing.Annotated[field.annotation, info]


def typed_default(field: Field, value: object) -> object:
    """A default converted to the field's type; None fits every type. Raises TopologyError (DX210) for one that does not fit."""
    if value is None or (type(value) is field.annotation and field.annotation in (str, int, float, bool)):
        return value
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(field.annotation).validate_python(value)
    except ValidationError as e:
        raise problem(
            "DX210", f"{field.name}: its default does not fit {field.type}: {explain(e)}", "give another default"
        ) from e

"""The `response_format` of a request: what DSPy's JSONAdapter sends to a model that follows a JSON Schema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from dspex.operators.native.fields.fields import MISSING, JsonSchema, Values, get_origin
from dspex.operators.native.user_types.unfolded import refuse_large

if TYPE_CHECKING:
    from dspex.operators.native.signature import Signature

_NAME = "DSPyProgramOutputs"
_JSON_MODE: JsonSchema = {"type": "json_object"}


def response_format(signature: Signature) -> JsonSchema:
    """`response_format` of an OpenAI-compatible request for the outputs: a strict JSON Schema.

    `{"type": "json_object"}` where DSPy falls back to it: an output that is a dict of types has no fixed properties, and
    some types have no schema. The caller must not change what it gets.
    """
    return signature.compiled("response_format", _make)


def _make(signature: Signature) -> JsonSchema:
    from pydantic import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError

    if any(get_origin(f.annotation) is dict for f in signature.outputs.values()):
        return dict(_JSON_MODE)
    try:
        schema = _schema(signature)
        refuse_large(schema, ", ".join(signature.outputs))
        _require_all(schema)
        strict = _strict(schema, schema)
    except (ValueError, PydanticInvalidForJsonSchema, PydanticSchemaGenerationError):
        return dict(_JSON_MODE)
    except RecursionError:  # a recursive reference beside a description; DSPy fails with this error
        return dict(_JSON_MODE)
    return {"type": "json_schema", "json_schema": {"name": _NAME, "schema": strict, "strict": True}}


def _schema(signature: Signature) -> JsonSchema:
    from pydantic import ConfigDict, create_model

    fields: Values = {
        f.name: (f.annotation, ... if f.default is MISSING or f.factory else f.default) for f in signature.outputs.values()
    }
    return create_model(_NAME, __config__=ConfigDict(extra="forbid"), **fields).model_json_schema()


def _require_all(part: JsonSchema) -> None:
    """Step 1, as the adapter does it: every object requires all of its properties and takes no others."""
    if part.get("type") == "object":
        properties: JsonSchema = part.setdefault("properties", {})
        part["required"] = list(properties)
        part["additionalProperties"] = False
        for inner in properties.values():
            if isinstance(inner, dict):
                _require_all(inner)
    if part.get("type") == "array" and isinstance(part.get("items"), dict):
        _require_all(part["items"])
    for inner in part.get("$defs", {}).values():
        _require_all(inner)


def _strict(part: Any, root: JsonSchema) -> Any:
    """Step 2, as the client does it: also inside of `anyOf`, without defaults of None, and no `$ref` beside other keys."""
    if not isinstance(part, dict):
        return part
    made = dict(cast("JsonSchema", part))
    if "$defs" in made:
        made["$defs"] = {name: _strict(inner, root) for name, inner in made["$defs"].items()}
    if made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    if isinstance(made.get("properties"), dict):
        made["required"] = list(made["properties"])
        made["properties"] = {name: _strict(inner, root) for name, inner in made["properties"].items()}
    if "items" in made:
        made["items"] = _strict(made["items"], root)
    if "anyOf" in made:
        made["anyOf"] = [_strict(inner, root) for inner in made["anyOf"]]
    if made.get("default", ...) is None:
        del made["default"]
    reference = made.get("$ref")
    if reference is not None and len(made) > 1:
        del made["$ref"]
        made = {**_strict(root["$defs"][reference.rsplit("/", 1)[-1]], root), **made}
    return made

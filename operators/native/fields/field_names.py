"""The names that fields may have, and which fields can make up a signature."""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Sequence

from dspex.operators.native.fields import tokens
from dspex.operators.native.fields.fields import Field
from dspex.operators.native.fields.tokens import FORM
from dspex.operators.native.problems import problem

MAX_FIELDS = 1000
MAX_PATTERNS = 16

# DSPy's signature classes are pydantic models and its predictors take keyword arguments: fields of these names hide
# methods (`copy`, `json`) or are arguments of another meaning (`config`), in most cases without an error.
SHADOWING = frozenset((
    "self", "cls", "copy", "json", "dict", "schema_json", "construct", "validate", "parse_obj", "parse_raw",
    "parse_file", "from_orm", "update_forward_refs", "fields", "signature", "input_fields", "output_fields", "instructions",
    "with_instructions", "append_instructions", "with_updated_fields", "append", "prepend", "insert", "delete", "equals",
    "dump_state", "load_state", "config", "demos", "lm", "new_signature",
))  # fmt: skip


def refuse_name(spec: str, name: str) -> None:
    """Raise TopologyError for a name that no field can have, or that has another meaning in DSPy."""
    why = None
    if name in SHADOWING or name.startswith("model_"):
        why = "has a meaning of its own in DSPy"
    elif name.startswith("_") or keyword.iskeyword(name) or not tokens.name_of(name):
        why = "cannot be a field"
    if why:
        message = f'the signature "{tokens.shown(spec)}": the name {tokens.shown(name)!r} {why}'
        raise problem("DX210", message, f"use another name: {tokens.shown(name).strip('_')}_text")


def check_fields(fields: Sequence[Field], spec: str) -> None:
    """Raise TopologyError for fields that cannot make up a signature: too many, of the same name, or without an output."""
    if len({f.name for f in fields}) < len(fields):
        _refuse_duplicates(fields, spec)
    if len(fields) > MAX_FIELDS:
        raise problem("DX210", f"the signature has {len(fields)} fields, more than {MAX_FIELDS}", "say less in one signature")
    if sum("pattern" in f.constraints for f in fields if f.constraints) > MAX_PATTERNS:
        raise problem(
            "DX210", f"the signature has more than {MAX_PATTERNS} patterns", "check the rest behind the call: validate"
        )
    if not fields or fields[-1].role != "output":  # inputs come first
        raise problem("DX210", f'the signature "{tokens.shown(spec)}" has no output', FORM)


def _refuse_duplicates(fields: Sequence[Field], spec: str) -> None:
    twice = ", ".join(sorted(n for n, times in Counter(f.name for f in fields).items() if times > 1))
    message = f'the signature "{tokens.shown(spec)}" has {tokens.shown(twice)} twice'
    raise problem("DX210", message, "give each field a name of its own")

"""Rows of a data set that a program is to be measured with: inputs, and the outputs that are right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from dspex.bus.errors import DspexError, InvalidInput
from dspex.operators.native.prompts.values import plain_input
from dspex.operators.native.signature import Signature

_FIX = "correct the row, or name the columns as the signature's fields"


def checked_examples(signature: Signature, rows: Iterable[object], what: str) -> list[dict[str, Any]]:
    """The rows, each with the fields of the signature alone, as plain data. `what`: names them in errors.

    A row has all inputs, and at least one output. Raises InvalidInput, naming the row (from 1) and the field.
    """
    return [_example(signature, row, f"{what}, row {number}") for number, row in enumerate(rows, 1)]


def _example(signature: Signature, row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise InvalidInput(f"{where}: it is {type(row).__name__}, and a row is an object of fields", fix=_FIX)
    given = cast("Mapping[str, Any]", row)
    labels = {name: given[name] for name in signature.outputs if given.get(name) is not None}
    if not labels:
        wanted = ", ".join(signature.outputs)
        raise InvalidInput(f"{where}: it has none of the outputs {wanted}, so nothing can be compared", fix=_FIX)
    try:
        inputs = signature.check_inputs({name: given[name] for name in signature.inputs if name in given})
        if len(labels) == len(signature.outputs):
            labels = dict(signature.check_outputs(labels))
        plain = {name: plain_input(name, value, for_code=True) for name, value in (inputs | labels).items()}
    except DspexError as error:
        raise InvalidInput(f"{where}: {error.message}", fix=_FIX) from error
    return {name: value for name, value in plain.items() if value is not None or name in given}

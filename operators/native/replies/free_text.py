"""Outputs of a signature in text that follows no adapter of DSPy: fenced code, `key: value` lines, numbers, lists.

* code: one output: the first fenced block, or as a list all of them.
* pairs: the lines `name: value`, in upper or lower case; `Due date` is the output `due_date`.
* numbers: the numbers in their order, one for each output; or all of them for one output that is a list.
* list: one output that is a list: the items of the bulleted and numbered lists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from dspex.operators.native.adapters import Parser
from dspex.operators.native.fields.fields import Annotation, Values, get_origin
from dspex.operators.native.problems import problem

if TYPE_CHECKING:
    from dspex.operators.native.signature import Signature

FreeText: TypeAlias = Literal["code", "pairs", "numbers", "list"]
_LISTS = (list, tuple, set, frozenset)


def reader(signature: Signature, kind: FreeText) -> Parser:
    """A function that finds the outputs in a text, typed as the signature says. It raises InvalidOutput.

    Raises TopologyError (DX205) for outputs that the kind of text cannot give.
    """
    from dspex.operators.native.replies.outputs import OutputFields

    lists = {name: _is_list(f.annotation) for name, f in signature.outputs.items()}
    _refuse(signature, kind, lists)
    outputs, find = OutputFields.of(signature), _FINDERS[kind]
    constrained = any(f.constraints for f in signature.outputs.values())

    def read(text: str) -> Values:
        found = outputs.typed(find(text, lists), text)
        return signature.check_outputs(found) if constrained else found

    return read


def _is_list(annotation: Annotation) -> bool:
    return (get_origin(annotation) or annotation) in _LISTS


def _refuse(signature: Signature, kind: str, lists: Mapping[str, bool]) -> None:
    fits = {
        "code": len(lists) == 1,
        "pairs": bool(lists),
        "numbers": len(lists) == 1 or (bool(lists) and not any(lists.values())),
        "list": len(lists) == 1 and all(lists.values()),
    }
    if kind not in get_args(FreeText):
        raise problem("DX205", f"there is no kind of text {kind!r}", f"one of: {', '.join(get_args(FreeText))}")
    if not fits[kind]:
        wants = {"code": "one output", "numbers": "outputs that are numbers, or one list of them", "list": "one output, a list"}
        example = {"code": "-> code", "numbers": "-> low: float, high: float", "list": "-> steps: list[str]"}
        what = f'adapter "{kind}" needs {wants.get(kind, "an output")}, and the signature is "{signature}"'
        raise problem("DX205", what, f'write "{example.get(kind, "-> answer")}"')


def _code(text: str, lists: Mapping[str, bool]) -> Values:
    from dspex.operators.native.replies.responses import code_blocks

    blocks = [code for _, code in code_blocks(text)]
    return {name: blocks if is_list else blocks[0] for name, is_list in lists.items()} if blocks else {}


def _pairs(text: str, lists: Mapping[str, bool]) -> Values:
    from dspex.operators.native.replies.responses import key_values

    found = {_plain(k): v for k, v in reversed(key_values(text).items())}  # the first of two equal names counts
    return {name: found[key] for name in lists if (key := _plain(name)) in found}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().casefold()


def _numbers(text: str, lists: Mapping[str, bool]) -> Values:
    from dspex.operators.native.replies.responses import numbers

    found = numbers(text)
    return dict.fromkeys(lists, found) if any(lists.values()) else dict(zip(lists, found))


def _list(text: str, lists: Mapping[str, bool]) -> Values:
    from dspex.operators.native.replies.responses import items

    return dict.fromkeys(lists, items(text))


_FINDERS: Mapping[str, Callable[[str, Mapping[str, bool]], Values]] = {
    "code": _code,
    "pairs": _pairs,
    "numbers": _numbers,
    "list": _list,
}

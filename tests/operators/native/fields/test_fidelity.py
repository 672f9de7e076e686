"""Signatures are read as DSPy reads them: the same fields of the same types, or a refusal; the differences are listed."""

from __future__ import annotations

import re
import unicodedata
import warnings
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from signature_texts import OWN, SAFE, Refused, mutated, names, read, signatures, types, usable, used_names

from dspex.bus.errors import TopologyError
from dspex.operators.native.fields.fields import MISSING
from dspex.operators.native.fields.types import type_text
from dspex.operators.native.signature import Signature, as_signature


def ask(dspy: Any, text: Any, instructions: str | None = None) -> Any:
    """DSPy's signature. Never with a name that is not in SAFE: DSPy imports modules of names that it does not know."""
    assert not isinstance(text, str) or used_names(text) <= SAFE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dspy.Signature(text, instructions, custom_types={})


def same_type(mine: Any, theirs: Any) -> bool:
    """Equal, and made of the same parts. Our classes for DSPy's own stand for them by name.

    In another order where `typing` gave DSPy an equal type that it had made before; ours is as written, see the test of this.
    """
    ours, shown = (re.sub(r"dspy\.[a-z_.]+\.", "dspy.", str(t)) for t in (mine, theirs))
    return (mine == theirs or "dspy." in shown) and sorted(shown) == sorted(ours)


def assert_same(ours: Signature, theirs: Any) -> None:
    assert [f.name for f in ours.fields] == list(theirs.fields)
    assert ours.objective == theirs.instructions
    for field, info in zip(ours.fields, theirs.fields.values(), strict=True):
        extra = info.json_schema_extra
        assert same_type(field.annotation, info.annotation), (field.annotation, info.annotation)
        assert field.role == extra["__dspy_field_type"]
        assert field.prefix == extra["prefix"]
        assert extra["desc"] == f"${{{field.name}}}"
        assert field.limits == extra.get("constraints", "")
        assert (field.default is MISSING) == info.is_required()
        assert field.default is MISSING or field.default == info.default
        found = {k: v for m in info.metadata for k, v in vars_of(m).items() if v is not None}
        assert dict(field.constraints) == found
        if field.role == "input":
            assert field.typed is not extra["IS_TYPE_UNDEFINED"]


def vars_of(metadata: Any) -> dict[str, Any]:
    return {
        k: getattr(metadata, k)
        for k in dir(metadata)
        if k in ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")
    }


def only_ours(text: str) -> bool:
    """Whether a text says what DSPy cannot read and dspex can: a negative number."""
    return bool(re.search(r"-[\s\\]*[0-9.]", text))


@given(signatures(), st.one_of(st.just(""), st.text(max_size=30)))
@example("a -> b", "\r")
@example("a: list[None], b: dict[str, None] -> c: tuple[None, int], d: Union[None, int]", "")
def test_a_signature_that_dspy_takes_has_the_same_fields(dspy, text, instructions):
    ours = Signature(text, instructions=instructions)
    if not only_ours(text):
        theirs = ask(dspy, text, instructions or None)
        assert_same(ours, theirs)
        assert_taken_from_class(theirs, ours)
    again = Signature(str(ours), instructions=instructions)
    assert again == ours
    assert [(f.annotation, f.constraints, f.default) for f in again.fields] == [
        (f.annotation, f.constraints, f.default) for f in ours.fields
    ]


@settings(max_examples=settings().max_examples // 4)
@given(mutated())
@example("a): pass #->b")
@example("a # open->b")
@example("a->b: Literal['\\400']")
@example("a->b: Literal[Literal[1], 2,]")
@example("a->b: list[Optional]")
@example("a->b: tuple[(),]")
@example("ｄｅｆ->b")
@example("a->b: ｉｎｔ")
@example("a->b: Literal[0777]")
@example("a->b: Literal[1if]")
@example("a->b: Literal['''x'y''']")
@example("a->b: Literal['''x''''']")
def test_a_damaged_signature_is_read_or_refused_as_pythons_parser_does(dspy, text):
    compare(dspy, text)


ALPHABET = [
    "->",
    " ",
    ",",
    ":",
    "a",
    "b",
    "int",
    "str",
    "list",
    "Literal",
    "Optional",
    "Annotated",
    "Field",
    "[",
    "]",
    "(",
    ")",
]
ALPHABET += [
    "|",
    "'x'",
    "1",
    "None",
    ".",
    "...",
    "typing",
    "=",
    "-",
    "#",
    "\n",
    "*",
    "/",
    "\\",
    "ge",
    "tuple",
    "dict",
    '"',
    "'",
]


@given(st.lists(st.sampled_from(ALPHABET), max_size=16).map("".join))
def test_a_signature_of_any_tokens_is_read_or_refused_as_pythons_parser_does(dspy, text):
    compare(dspy, text)
    compare(dspy, f"a -> b: {text}")


def compare(dspy: Any, text: str) -> None:
    """Ours against Python's own parser with the rules of `signature_texts.read`, and what is taken against DSPy."""
    try:
        ours: Signature | None = Signature(text)
    except TopologyError:
        ours = None
    try:
        expected = read(text)
    except Refused:
        assert ours is None, f"taken: {ours}"
        return
    if ours is None:
        # the syntax tree does not show parentheses around a part of a type; dspex takes them around a whole one
        assert re.search(r"\(", text.replace("Field(", "")), "refused"
        return
    assert [f.name for f in ours.fields] == [n for n, _ in expected]
    assert all(same_type(f.annotation, t) for f, (_, t) in zip(ours.fields, expected, strict=True))
    if not only_ours(text) and "description" not in text:
        assert_same(ours, ask(dspy, text))


# what DSPy takes and dspex does not: docs/dspy-compatibility.md says why
REFUSED = [
    "q ->",
    "copy -> a",
    "q -> json",
    "q, q -> a",
    "q, *, b -> a",
    "q, /, b -> a",
    "*q -> a",
    "q=5 -> a",
    "q): pass\nimport os\ndef g(x -> a",
    "q -> a: None",
    "q -> a: list['x']",
    "q -> a: Literal[1.5]",
    "q -> a: Literal[b'x']",
    "q -> a: Annotated[int, 'a remark']",
    "q -> a: Annotated[int, Field(5)]",
    "q -> a: Annotated[int, Field(title='t')]",
    "q -> a: Annotated[int, Field(max_length=3)]",
    "q -> a: list[Annotated[int, Field(gt=0)]]",
    "q -> a: Optional[Annotated[int, Field(gt=0)]]",
    "q -> a: dict[str, int, int]",
    "q -> a: list[int, int]",
    "q -> a: Iterable[int]",
    "q -> a: Type[int]",
    "q -> a: DefaultDict[str, int]",
    "q -> a: tuple[(int, str)]",
    "q -> a: (list)[int]",
]


@pytest.mark.parametrize("text", REFUSED)
def test_signatures_that_dspy_takes_and_dspex_intentionally_refuses(dspy, text):
    assert ask(dspy, text)
    with pytest.raises(TopologyError):
        Signature(text)


# and the other way round
TAKEN = ["q -> a: Literal[-1]", "q -> a: Annotated[int, Field(gt=-1)]", "q -> a: Literal[-0x10, 'x']"]


@pytest.mark.parametrize("text", TAKEN)
def test_signatures_that_dspex_takes_and_dspy_refuses(dspy, text):
    assert Signature(text)
    with pytest.raises(ValueError, match="unhandled AST node"):
        ask(dspy, text)


@given(st.text(max_size=12) | names | st.from_regex(r"\w+", fullmatch=True))
@example("HTMLParser2x")
def test_prefixes_are_those_of_dspy(dspy, name):
    from dspy.signatures.signature import infer_prefix as theirs

    from dspex.operators.native.fields.fields import infer_prefix

    assert infer_prefix(name) == theirs(name)


EDITS = st.lists(
    st.one_of(
        st.tuples(
            st.just("insert"), st.integers(-4, 4), names, st.sampled_from(["input", "output"]), types, st.text(max_size=5)
        ),
        st.tuples(st.just("delete"), names),
        st.tuples(st.just("with_instructions"), st.text(min_size=1, max_size=9)),
        st.tuples(st.just("append_instructions"), st.text(max_size=9)),
        st.tuples(st.just("with_updated_fields"), names, types, st.text(min_size=1, max_size=5)),
    ),
    max_size=3,
)


@settings(max_examples=settings().max_examples // 4)
@given(signatures().filter(lambda t: not only_ours(t) and "Annotated" not in t), EDITS)
def test_edits_give_what_those_of_dspy_give(dspy, text, edits):
    ours, theirs = Signature(text), ask(dspy, text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for what, *args in edits:
            try:
                ours = edited(ours, what, args)
            except TopologyError:
                continue
            theirs = edited_by_dspy(dspy, theirs, what, args)
            assert [f.name for f in ours.fields] == list(theirs.fields)
            assert ours.objective == theirs.instructions
            for field, info in zip(ours.fields, theirs.fields.values(), strict=True):
                assert same_type(field.annotation, info.annotation)
                assert field.description == ("" if (d := info.json_schema_extra["desc"]) == f"${{{field.name}}}" else d)


def edited(s: Signature, what: str, args: list[Any]) -> Signature:
    if what == "insert":
        index, name, role, tp, description = args
        return s.insert(index, unicodedata.normalize("NFKC", name), role, tp, description=description)
    if what == "delete":
        return s.delete(args[0])
    if what == "with_updated_fields":
        return s.with_updated_fields(args[0], type=args[1], description=args[2])
    return getattr(s, what)(args[0])


def edited_by_dspy(dspy: Any, s: Any, what: str, args: list[Any]) -> Any:
    from dspy.signatures.signature import _parse_field_string

    def type_of(text: str) -> Any:
        return next(t for _, t, _ in _parse_field_string(f"b: {text}"))

    if what == "insert":
        index, name, role, tp, description = args
        make = dspy.InputField if role == "input" else dspy.OutputField
        return s.insert(
            index, unicodedata.normalize("NFKC", name), make(**({"desc": description} if description else {})), type_of(tp)
        )
    if what == "with_updated_fields":
        return s.with_updated_fields(args[0], type_of(args[1]), desc=args[2])
    return getattr(s, what)(args[0])


def assert_taken_from_class(theirs: Any, ours: Signature) -> None:
    """What `as_signature` makes of a class of DSPy's: the fields that its text has, with types that can be read again."""
    taken = as_signature(theirs)
    assert_same(taken, theirs)
    assert [(f.name, f.role, f.required, f.default, dict(f.constraints)) for f in taken.fields] == [
        (f.name, f.role, f.required, f.default, dict(f.constraints)) for f in ours.fields
    ]
    for field in taken.fields:
        assert not any(n in field.type for n in ("<", "collections", "adapters"))
        parsed = Signature(f"i -> o: {field.type}").outputs["o"]
        assert type_text(parsed.annotation) == type_text(field.annotation)


WRITTEN = ["Optional[{}]", "List[{}]", "Dict[str, {}]", "{} | None", "Union[list[{}], int]", "Tuple[{}, ...]"]


@pytest.mark.parametrize("form", WRITTEN)
def test_types_keep_the_order_in_which_they_are_written_whatever_was_read_before(form):
    for parts in (["'a'", "'b'"], ["'b'", "'a'"]):
        made = Signature(f"x -> y: {form.format('Literal[' + ', '.join(parts) + ']')}").outputs["y"].annotation
        assert re.findall(r"'[ab]'", str(made)) == parts
    for parts in (["int", "float"], ["float", "int"]):
        made = Signature(f"x -> y: {form.format(' | '.join(parts))}").outputs["y"].annotation
        assert [p for p in re.findall(r"\w+", str(made)) if p in parts][:2] == parts


def test_types_of_dspy_are_known_by_name(dspy):
    for name in OWN:
        assert Signature(f"a -> b: {name}").described.plain == {}
        assert as_signature(ask(dspy, f"a -> b: list[{name}]")).outputs["b"].type == f"list[{name}]"


def test_generated_field_names_are_usable():
    assert usable("question")
    assert not usable("copy")

"""Untrusted signatures: a clear error in bounded time, and nothing is imported, evaluated or read."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex.bus.errors import TopologyError
from dspex.operators.native.signature import Signature

BUDGET = 5  # seconds of the processor for one text; the longest takes a hundredth of it, more where lines are counted
N = 65_000
HUGE = {
    "one name": "a" * 1_000_000 + " -> b",
    "a long name": "a" * N + " -> b",
    "spaces": "a -> b" + " " * N,
    "lines": "a -> b" + "\n" * N,
    "comments": "a -> b" + "#" * N,
    "comment lines": "a -> b" + "#\n" * (N // 2),
    "continued lines": "a -> b" + "\\\n" * (N // 2),
    "backslashes": "a -> b" + "\\" * N,
    "fields": ", ".join(f"a{i}" for i in range(9_000)) + " -> b",
    "the same field": "a, " * 20_000 + "a -> b",
    "commas": "," * N + " -> b",
    "colons": "a" + ":" * N + " -> b",
    "opened": "a -> b: " + "list[" * 12_000,
    "nested": "a -> b: " + "list[" * 9_000 + "int" + "]" * 9_000,
    "parentheses": "a -> b: " + "(" * 30_000 + "int" + ")" * 30_000,
    "annotated": "a -> b: " + "Annotated[" * 6_000,
    "nested literals": "a -> b: " + "Literal[" * 8_000,
    "quotes": "a -> b: Literal[" + "'" * N,
    "double quotes": "a -> b: Literal[" + '"' * N,
    "unclosed": "a -> b: Literal['" + "x" * N,
    "escapes": "a -> b: Literal['" + "\\" * N,
    "an unclosed long text": "a -> b: Literal['''" + "x'\\'" * (N // 4),
    "names of characters": "a -> b: Literal['" + "\\N{X}" * 12_000 + "']",
    "texts side by side": "a -> b: Literal[" + "'' " * 20_000 + "]",
    "choices": "a -> b: Literal[" + ", ".join(f"'{i}'" for i in range(7_000)) + "]",
    "a union": "a -> b: " + " | ".join(["int", "str", "None"] * 3_000),
    "a union of choices": "a -> b: " + " | ".join(f"Literal['{i}']" for i in range(3_500)),
    "parameters": "a -> b: tuple[" + "int, " * 12_000 + "int]",
    "dots": "a -> b: a" + ".a" * 30_000,
    "digits": "a -> b: Literal[" + "9" * N + "]",
    "a number and letters": "a -> b: Literal[" + "1e" * 30_000 + "]",
    "an unknown name": "a -> b: " + "Strin" * 12_000,
    "many unknown names": "a -> " + ", ".join(f"b{i}: T{i}" for i in range(5_000)),
    "constraints": "a -> b: Annotated[int, " + "Field(ge=1), " * 4_000 + "]",
    "letters that are more": "a" + "ﷺ" * 20_000 + " -> b",
    "marks": "a" + "\u0301" * N + " -> b",
    "zeros": "a -> b" + "\0" * N,
    "surrogates": "a -> b: Literal['" + "\ud800" * N + "']",
    "arrows": "->" * 30_000,
    "a pattern": "a -> b: Annotated[str, Field(pattern='" + "(a*)*" * 5_000 + "')]",
    "a pattern that repeats": "a -> b: Annotated[str, Field(pattern='((a{1000}){1000}){1000}')]",
}


@pytest.mark.no_cover  # a budget of time
@pytest.mark.parametrize("name", HUGE)
def test_a_signature_of_any_size_is_read_or_refused_within_seconds(name):
    began = time.process_time()
    problem = refusal(HUGE[name])
    assert time.process_time() - began < BUDGET
    assert problem is None or (problem.code in ("DX209", "DX210") and len(problem.message + problem.fix) < 2000)


def refusal(text: str) -> TopologyError | None:
    try:
        made = Signature(text)
    except TopologyError as e:
        return e
    assert Signature(str(made)) == made
    return None


PIECES = [
    "a",
    "->",
    ":",
    ",",
    "[",
    "]",
    "(",
    ")",
    "'",
    '"',
    "\\",
    "#",
    "\n",
    "|",
    "list[",
    "Literal['x'",
    "Annotated[",
    "Field(",
    "=",
    "*",
    "1",
    ".",
]


@given(st.lists(st.tuples(st.sampled_from(PIECES), st.integers(1, 400)), max_size=6))
def test_a_signature_of_repeated_pieces_is_read_or_refused_within_seconds(parts):
    text = "".join(piece * times for piece, times in parts)
    began = time.process_time()
    with suppress(TopologyError):  # any other exception fails the test
        Signature(text if "->" in text else f"a -> b: {text}")
    assert time.process_time() - began < BUDGET


def test_the_cache_of_signatures_is_bounded_and_has_no_long_texts():
    from dspex.operators.native import signature

    kept = signature._known.cache_info()
    assert kept.maxsize is not None
    long = "a -> b" + " " * 5_000
    assert Signature(long) is not Signature(long)
    assert Signature(long) == Signature("a -> b")


NAMES = [
    "this",
    "os",
    "os.system",
    "antigravity",
    "typing.sys",
    "typing.sys.modules",
    "datetime.sys",
    "collections.OrderedDict",
]
NAMES += [
    "re.Pattern",
    "builtins.int",
    "dspy.LM",
    "dspy.settings",
    "int.__class__",
    "list.__subclasses__",
    "str.join",
    "type",
    "object",
]
NAMES += [
    "T.__class__",
    "T.method",
    "T.Inner.__init__",
    "T._Hidden",
    "T.alias",
    "T.x",
    "__import__('os')",
    "open('x')",
    "(lambda: 1)",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_type_reaches_only_listed_types_and_the_classes_in_a_given_class(name):
    class T:
        class Inner:
            pass

        class _Hidden:
            pass

        x = 5
        alias = property(lambda self: 1 / 0)

        def method(self) -> None: ...

    before = set(sys.modules)
    with pytest.raises(TopologyError):
        Signature(f"a -> b: {name}", types={"T": T})
    assert set(sys.modules) == before
    assert Signature("a -> b: list[T.Inner]", types={"T": T}).outputs["b"].annotation == list[T.Inner]


def test_reading_and_checking_import_no_dspy_and_reading_no_pydantic():
    code = (
        "import sys; from dspex.operators.native.signature import Signature as S\n"
        "s = S('a: dspy.Image, n: int -> b: list[uuid.UUID], c: Literal[1]').insert(0, 'x', 'input', 'str'); str(s), s.digest\n"
        "print('pydantic' in sys.modules); s.plain(); s.check_outputs({'b': [], 'c': 1}); print('dspy' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\nFalse\n"


PLAINS = [{}, {"signature": 5}, *({"signature": "q -> a", **more} for more in (
    {"instructions": [1]}, {"instructions": 5}, {"fields": ["q"]}, {"fields": 5}, {"fields": {"q": 5}},
))]  # fmt: skip


@pytest.mark.parametrize("plain", PLAINS, ids=repr)
def test_plain_data_that_is_not_a_signature_is_refused(plain):
    with pytest.raises(TopologyError):
        Signature.from_plain(plain)


SCHEMAS = [
    {"type": {}}, {"type": [{}]}, {"anyOf": 5}, {"oneOf": {}}, {"enum": 5}, {"enum": [{}]}, {"enum": [[1]]},
    {"const": {}}, {"const": 1.5},
    {"type": "string", "format": []}, {"type": "array", "prefixItems": 5}, {"type": "array", "minItems": []}, {"minItems": {}},
    {"type": "string", "default": [1]}, {"type": "integer", "default": "x"}, {"type": "string", "pattern": 5}, 5, None, [],
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=repr)
def test_a_malformed_json_schema_makes_no_signature(schema):
    answer = {"type": "object", "properties": {"answer": {"type": "string"}}}
    with pytest.raises(TopologyError):
        Signature.from_json_schema({"type": "object", "properties": {"q": schema}}, answer)


@pytest.mark.parametrize("name", ["b: int, c", "a b->", "", "a\n", "1", 5, None, "é" * 40_000, "a-b"])
def test_a_field_needs_a_python_name(name):
    one = {"type": "object", "properties": {name: {"type": "string"}}}
    answer = {"type": "object", "properties": {"answer": {"type": "string"}}}
    with pytest.raises(TopologyError):
        Signature.from_json_schema(one, answer)
    if isinstance(name, str):
        with pytest.raises(TopologyError):
            Signature("q -> a").append(name, "output", "str")


def test_a_json_schema_whose_required_is_not_a_list_is_refused():
    answer = {"type": "object", "properties": {"answer": {"type": "string"}}}
    with pytest.raises(TopologyError):
        Signature.from_json_schema({**answer, "required": 5}, answer)


@pytest.mark.no_cover  # a budget of time
def test_a_field_name_with_thousands_of_combining_marks_is_refused_within_seconds():
    began = time.process_time()
    assert refusal("a" + "\u0300\u0316" * 30_000 + " -> b") is not None
    assert time.process_time() - began < BUDGET


@pytest.mark.parametrize("pattern", ["a" * 201, r"\w{501}", r"(\w{10}){60}", r"((a{9}){9}){9}"])
def test_a_pattern_whose_compilation_takes_much_memory_is_refused(pattern):
    with pytest.raises(TopologyError) as e:
        Signature(f"q -> a: Annotated[str, Field(pattern={pattern!r})]")
    assert "with each repeat written out" in e.value.fix


def test_usual_patterns_are_taken_and_their_number_is_bounded():
    uuid = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
    field = f"Annotated[str, Field(pattern={uuid!r})]"
    assert Signature(f"q -> a: {field}").outputs["a"].constraints == {"pattern": uuid}
    with pytest.raises(TopologyError, match="more than 16 patterns"):
        Signature("q -> " + ", ".join(f"a{i}: {field}" for i in range(17)))

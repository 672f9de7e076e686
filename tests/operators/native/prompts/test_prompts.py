"""Prompts are those of DSPy, byte for byte: of every version by its golden file, of the installed one by generated cases."""

from __future__ import annotations

import datetime
import decimal
import time
import typing
import uuid
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Optional, Union

import corpus
import make
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import Field, create_model

from dspex.bus.errors import DspexError, InvalidInput, TopologyError
from dspex.operators.native.adapters import ADAPTERS
from dspex.operators.native.prompts import versions
from dspex.operators.native.prompts.names import annotation_name
from dspex.operators.native.prompts.values import MARKER, has_a_known_form
from dspex.operators.native.prompts.versions import VERSIONS, installed, version_of
from dspex.operators.native.signature import Signature, as_signature

MARKED = f'{MARKER}[{{"type": "image_url"}}]<<CUSTOM-TYPE-END-IDENTIFIER>>'


@pytest.fixture(autouse=True)
def quiet():
    """pydantic warns of values that are not of their model's types; DSPy and we alike."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


# -- golden files --------------------------------------------------------------------------------------------------
def native(case: corpus.Case) -> Signature:
    if isinstance(case.signature, str):
        return Signature(case.signature, instructions=case.instructions, types={t: corpus.TYPES[t] for t in case.types})
    return Signature.of(*case.signature, instructions=case.instructions)


def pairs(messages: list[dict[str, Any]]) -> list[list[Any]]:
    return [[m["role"], m["content"]] for m in messages]


def test_there_is_a_golden_file_for_every_known_version():
    assert [version_of(v).name for v in make.VERSIONS] == [v.name for v in reversed(VERSIONS.values())]


@pytest.mark.parametrize("version", make.VERSIONS)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_prompts_are_those_that_a_version_of_dspy_made_itself(version, adapter):
    golden = make.read(version)
    assert len(corpus.CASES) >= 60
    for name, case in corpus.CASES.items():
        wanted = golden[f"{name} | {adapter}"]
        if wanted is not None:
            messages = native(case).messages(case.data, adapter=adapter, demos=case.demos, version=version)
            assert pairs(messages) == wanted, name
        elif version != "2.6" or adapter == "xml":  # 2.6 knows no `X | Y`; we show it, see docs/dspy-compatibility.md
            with pytest.raises(DspexError):
                native(case).messages(case.data, adapter=adapter, demos=case.demos, version=version)


def test_the_golden_file_of_the_installed_version_is_what_it_makes_today(dspy):
    version = version_of(installed()).name
    assert make.prompts(dspy, corpus) == make.read(version)


# -- generated -----------------------------------------------------------------------------------------------------
NAMES = ["q", "text", "answer", "réponse", "问题", "X_y2", "completed", "items", "values", "name", "result"]
ALPHABET = "aé«»<>&\"'\\{}[]#$` \t\n\r\x00\x0b\x1c\x85\u2028😀\ud800"
TEXT = st.one_of(
    st.text(ALPHABET, max_size=8),
    st.text(max_size=6),
    st.sampled_from(["[[ ## q ## ]]", "{q}", "${q}", "", " ", corpus.HARD, MARKED, MARKER, "Not supplied.", "</q>"]),
)
READABLE = st.text(ALPHABET.replace("\ud800", ""), max_size=12)  # pydantic refuses lone surrogates in a description
KEYS = st.one_of(READABLE, st.sampled_from(["a-b", "-a", "1a", "a b", "ü.x", "item", "q"]))
LEAVES = [
    *(str, int, float, bool, bytes, list, dict, tuple, set, Any, type(None)),
    *(datetime.date, datetime.datetime, datetime.timedelta, decimal.Decimal, uuid.UUID),
    *(corpus.Color, corpus.Level, corpus.Person, corpus.Address, corpus.Node, corpus.Point, corpus.Movie),
    *(typing.List[int], typing.Dict[str, int], dict[str, corpus.Person], tuple[()]),  # noqa: UP006
]
LITERALS = st.lists(st.one_of(READABLE, st.integers(-3, 3), st.booleans(), st.none()), min_size=1, max_size=4)


def _wider(kinds: list[Any]) -> list[Any]:
    """Types of types: each kind in each of the ways. Lists, because drawing from one is faster than a recursive strategy."""
    pairs = list(zip(kinds, kinds[7:] + kinds[:7], strict=True))
    return [
        *(list[t] for t in kinds),
        *(dict[str, t] for t in kinds),
        *(tuple[t, ...] for t in kinds),
        *(Optional[t] for t in kinds),  # noqa: UP045  # another object than t | None
        *(typing.Sequence[t] for t in kinds),
        *(Union[t, u] for t, u in pairs),  # noqa: UP007
        *(tuple[t, u] for t, u in pairs),
        *(t | None for t in kinds),
        *(t | u for t, u in pairs if str not in (t, u)),
    ]


WIDER = _wider(LEAVES)
TYPES = st.one_of(
    st.just(str),
    st.sampled_from(LEAVES),
    st.sampled_from(WIDER),
    st.sampled_from(_wider(WIDER)),
    LITERALS.map(lambda a: Literal[tuple(a)]),
    LITERALS.map(lambda a: list[Literal[tuple(a)]]),
)


def _values() -> st.SearchStrategy[Any]:
    odd: list[Any] = [corpus.ADA, corpus.Point(1.0), corpus.Color.RED, corpus.Level.LOW, corpus.Odd(), corpus.Stubborn(["x"])]
    odd += [corpus.DAY, corpus.MOMENT, datetime.timedelta(1, 2, 3), decimal.Decimal("1.0"), uuid.UUID(int=3), b"x", b"\xff"]
    odd += [{1}, frozenset("x"), (), 1j, range(3), corpus.Person, 10**30, corpus.Node(value=1), object, ..., bytearray(b"y")]
    odd += [{datetime.date(2020, 1, 1): 1, None: 2, (1, 2): 3, 1.5: 4, True: 5}, SimpleNamespace(a=1)]
    try:
        import numpy as np

        odd += [np.float64(1.5), np.int64(3), np.bool_(True), np.array([1, 2]), np.str_("s")]
    except ImportError:
        pass
    plain = st.one_of(TEXT, st.integers(), st.floats(), st.booleans(), st.none(), st.sampled_from(odd))
    nested = st.recursive(
        plain,
        lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(KEYS, v, max_size=3), st.tuples(v, v)),
        max_leaves=4,
    )
    return st.one_of(TEXT, st.lists(TEXT, max_size=3), nested)


VALUES = _values()


@st.composite
def prompts(draw: st.DrawFn) -> dict[str, Any]:
    """A signature as [(name, type, description)] of either side, with data and examples for it."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    split = draw(st.integers(0, len(names) - 1))
    fields = [(n, draw(TYPES), draw(READABLE)) for n in names]
    some = st.dictionaries(st.sampled_from([*names, "other"]), VALUES, max_size=4)
    every = st.fixed_dictionaries(dict.fromkeys(names, VALUES))
    return {
        "inputs": fields[:split],
        "outputs": fields[split:],
        "instructions": draw(st.one_of(st.just(""), READABLE, st.text("ab \n\t", max_size=20))),
        "data": draw(st.one_of(every, some)),
        "demos": draw(st.one_of(st.just([]), st.lists(st.one_of(every, some), max_size=2))),
        "described": draw(st.booleans()),
        "adapter": draw(st.sampled_from(ADAPTERS)),
    }


def ours(case: dict[str, Any]) -> Signature:
    """By a pair of models, which have descriptions, or by text with a name for each type."""
    sides = [case["inputs"], case["outputs"]]
    if case["described"]:
        models = [create_model("Side", **{n: (t, Field(description=d)) for n, t, d in side}) for side in sides]
        return Signature.of(*models, instructions=case["instructions"])
    types = {f"T{i}": t for i, (_, t, _) in enumerate(sides[0] + sides[1])}
    texts = [f"{n}: T{i}" for i, (n, *_) in enumerate(sides[0] + sides[1])]
    text = f"{', '.join(texts[: len(sides[0])])} -> {', '.join(texts[len(sides[0]) :])}"
    return Signature(text, instructions=case["instructions"], types=types)


def theirs(dspy: Any, case: dict[str, Any]) -> Any:
    kinds = [(case["inputs"], dspy.InputField), (case["outputs"], dspy.OutputField)]
    describe = (lambda d: {"desc": d}) if case["described"] else (lambda d: {})
    fields = {n: (t, kind(**describe(d))) for side, kind in kinds for n, t, d in side}
    return dspy.Signature(fields, case["instructions"] or None)


@given(case=prompts())
def test_any_prompt_is_that_of_the_installed_dspy(dspy, case):
    try:
        signature = theirs(dspy, case)
    except Exception:  # noqa: BLE001  what is a signature is compared elsewhere
        assume(False)
    adapter = getattr(dspy, make.ADAPTERS[case["adapter"]])()
    try:
        wanted = adapter.format(signature, case["demos"], case["data"])
    except Exception:  # noqa: BLE001  whatever it is, DSPy refuses the case
        wanted = None
    expanded = wanted is not None and any(m["role"] == "user" and MARKER in str(m["content"]) for m in wanted)
    if wanted is None or expanded or any(not isinstance(m["content"], str) for m in wanted):
        with pytest.raises(DspexError):
            ours(case).messages(case["data"], adapter=case["adapter"], demos=case["demos"], version=installed())
        return
    assert ours(case).messages(case["data"], adapter=case["adapter"], demos=case["demos"], version=installed()) == wanted


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_number_too_long_to_write_is_shown_or_refused_as_in_dspy(dspy, adapter):
    for value in (10**5000, [10**5000], {"x": -(10**5000)}):
        case = {"inputs": [("q", Any, "")], "outputs": [("a", Any, "")], "instructions": "", "described": False}
        for data, demos in (({"q": value}, []), ({"q": 1}, [{"q": 1, "a": value}])):
            try:
                wanted = getattr(dspy, make.ADAPTERS[adapter])().format(theirs(dspy, case), demos, data)
            except ValueError:
                with pytest.raises(InvalidInput):
                    ours(case).messages(data, adapter=adapter, demos=demos)
            else:
                assert ours(case).messages(data, adapter=adapter, demos=demos) == wanted


@given(annotation=st.one_of(TYPES, st.just(Literal[corpus.Color.RED, "x"])))
def test_any_type_has_the_name_that_dspy_shows(dspy, annotation):
    from dspy.adapters.utils import get_annotation_name

    assert annotation_name(annotation, version_of(installed())) == get_annotation_name(annotation)


def test_a_class_of_dspy_makes_the_prompt_that_it_makes_there(dspy):
    class Rate(dspy.Signature):
        """Rate it.

        In stars.
        """

        text: str = dspy.InputField(desc="what was said", min_length=1)
        hint: str | None = dspy.InputField()
        stars: int = dspy.OutputField(le=5, ge=1)
        share: float = dspy.OutputField(desc="${share}", multiple_of=0.5, allow_inf_nan=False)
        why: list[str] = dspy.OutputField(description="in words", max_length=3)

    data = {"text": "good", "hint": None}
    for adapter in ADAPTERS:
        wanted = getattr(dspy, make.ADAPTERS[adapter])().format(Rate, [], data)
        assert as_signature(Rate).messages(data, adapter=adapter, version=installed()) == wanted


# -- intentional differences ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("value", [MARKED, MARKER, [MARKED], {"x": [MARKED]}, {MARKED: 1}, [{"x": f"a{MARKER}b"}]])
def test_dspys_marker_for_images_and_files_is_refused_in_inputs_and_examples(adapter, value):
    s = Signature("q: Any -> a")
    with pytest.raises(InvalidInput, match="marker"):
        s.messages({"q": value}, adapter=adapter)
    with pytest.raises(InvalidInput, match="marker"):
        s.messages({"q": "x"}, demos=[{"q": value, "a": "y"}], adapter=adapter)


def test_the_marker_in_an_answer_of_an_example_stays_text_as_in_dspy(dspy):
    demos = [{"q": "x", "a": MARKED}]
    wanted = dspy.ChatAdapter().format(dspy.Signature("q -> a"), demos, {"q": "y"})
    assert Signature("q -> a").messages({"q": "y"}, demos=demos) == wanted


def test_prompts_with_types_of_dspy_are_left_to_dspy(dspy):
    class Letter(corpus.BaseModel):
        picture: dspy.Image

    for kind in (dspy.Image, dspy.History, list[dspy.Tool], dspy.Audio | None, Letter, dict[str, list[Letter]]):
        s = Signature("a: T -> b", types={"T": kind})
        assert not has_a_known_form(s.inputs["a"])
        for adapter in ADAPTERS:
            with pytest.raises(TopologyError, match="DSPy's own") as e:
                s.messages({"a": 1}, adapter=adapter)
            assert e.value.fix == 'let DSPy answer: route="worker"'
    assert all(has_a_known_form(f) for f in Signature("a: Person -> b: list[Node]", types=corpus.TYPES).fields)


def test_an_output_type_without_a_json_schema_is_refused_with_its_field():
    s = Signature("a -> b: T", types={"T": typing.Callable[..., str]})
    for adapter in ADAPTERS:
        with pytest.raises(TopologyError, match="cannot be described to a model"):
            s.messages({"a": "x"}, adapter=adapter)


def test_a_value_that_cannot_be_shown_names_its_field():
    with pytest.raises(InvalidInput, match="passages: list cannot be shown"):
        Signature("passages -> a").messages({"passages": [1]})
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidInput, match="q: list cannot be shown"):
        Signature("q: Any -> a").messages({"q": deep})


def test_editing_a_prompt_does_not_change_the_next_one():
    s = Signature("q -> a")
    s.messages({"q": "x"})[0]["content"] = "changed"
    assert s.messages({"q": "x"})[0]["content"].startswith("Your input fields")


@pytest.mark.no_cover  # a budget of time
def test_a_prompt_of_megabytes_is_made_within_seconds():
    text = (MARKER[:-1] + "«\n") * 100_000
    started = time.process_time()
    for adapter in ADAPTERS:
        Signature("q, r: list[str] -> a").messages({"q": [text, text], "r": [text]}, adapter=adapter)
    assert time.process_time() - started < 30


# -- versions ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "name"),
    [
        (None, "3.4"),
        ("3.4", "3.4"),
        ("3.3.1", "3.3"),
        ("3.1.0b1", "3.1"),
        ("2.6.27", "2.6"),
        ("2.9", "2.6"),
        ("3.5.0", "3.4"),
        ("4.0", "3.4"),
    ],
)
def test_a_dspy_version_is_known_by_its_minor_and_a_newer_one_counts_as_the_newest(text, name):
    assert version_of(text).name == name


@pytest.mark.parametrize("text", ["2.5.43", "0.1", "", "three", "3", "3.x", "-3.4", "3." + "9" * 5000])
def test_an_unknown_dspy_version_is_refused_with_a_list_of_known_ones(text):
    with pytest.raises(TopologyError) as e:
        Signature("q -> a").messages({"q": "x"}, version=text)
    assert e.value.code == "DX205"
    assert "2.6, 3.0, 3.1, 3.2, 3.3, 3.4" in e.value.fix


def test_there_is_no_xml_adapter_before_dspy_3_0():
    with pytest.raises(TopologyError, match=r"2\.6 has no XML adapter"):
        Signature("q -> a").messages({"q": "x"}, adapter="xml", version="2.6.27")


def test_the_installed_version_is_read_without_importing_dspy(dspy):
    assert installed() == dspy.__version__
    assert "import dspy" not in Path(str(versions.__file__)).read_text()

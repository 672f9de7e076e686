"""What the declarations promise for every operator and every option: nothing is accepted and ignored."""

from __future__ import annotations

import inspect
from typing import Any, get_args, get_type_hints

import pytest

from dspex.bus.errors import TopologyError
from dspex.bus.settings import not_built
from dspex.operators.parameters import ChoiceParameter, NothingParameter
from dspex.operators.parameters.parameter import REQUIRED, checked
from dspex.operators.recorded.calls import CallOperator, predict
from dspex.operators.recorded.options import CALL_OPTIONS, CallOptions
from dspex.operators.registry import AnyOperator, operators
from dspex.operators.stateless.sink import SINK_OPTIONS
from dspex.operators.stateless.source import SOURCE_OPTIONS, SourceOptions
from dspex.operators.stream import Stream
from dspex.operators.topology import Topology


def problems(make: Any) -> list[tuple[str, str, str]]:
    topology = Topology("t")
    make(topology.source("a.b"))
    return [(p.code, p.message, p.fix) for p in topology.check() if p.code not in ("DX214", "DX320")]


def test_every_call_option_and_every_source_option_of_the_types_is_declared() -> None:
    assert set(CallOptions.__annotations__) == set(CALL_OPTIONS)
    assert {"type", *SourceOptions.__annotations__} == set(SOURCE_OPTIONS)


def test_a_choice_lists_the_words_that_its_type_lists() -> None:
    hints = get_type_hints(CallOptions)
    choices = {name: p.words for name, p in CALL_OPTIONS.items() if isinstance(p, ChoiceParameter)}
    assert choices == {name: get_args(hints[name]) for name in choices}
    assert {"adapter", "affinity", "on_error", "order", "route"} <= choices.keys()


@pytest.mark.parametrize("operator", operators().values(), ids=lambda o: o.name)
def test_the_functions_of_an_operator_have_the_options_and_defaults_of_its_declaration(
    operator: AnyOperator,
) -> None:
    agrees(operator, [*inspect.signature(getattr(Stream, operator.name)).parameters.values()][2:])
    if isinstance(operator, CallOperator):
        agrees(operator, [*inspect.signature(operator.spec).parameters.values()][1:])


def agrees(operator: AnyOperator, behind_the_main_argument: list[inspect.Parameter]) -> None:
    typed = {p.name: p for p in behind_the_main_argument if p.kind is not p.VAR_KEYWORD and p.name != "name"}
    assert set(typed) <= set(operator.options)
    for name, parameter in typed.items():
        required = parameter.default is inspect.Parameter.empty
        assert required == (name in operator.required), name
        assert required or parameter.default == operator.options[name].default, name


@pytest.mark.parametrize("operator", operators().values(), ids=lambda o: o.name)
def test_none_is_taken_for_an_option_of_which_it_is_the_default(operator: AnyOperator) -> None:
    none = {name: None for name, parameter in operator.options.items() if parameter.default is None}
    assert checked(operator.options, none) == (none, [])


def test_none_for_an_option_makes_the_same_topology_as_leaving_it_out() -> None:
    def digest(**left_out: None) -> str:
        topology = Topology("t")
        counts = topology.source("a.b").key_by("k").aggregate(int, max, name="n", **left_out)
        counts.approve(name="a", **dict.fromkeys(("show", "timeout") if left_out else ())).sink("c.d")
        return topology.graph.digest

    assert digest(ttl=None) == digest()


@pytest.mark.parametrize("name", not_built.OPTIONS["call"])
def test_a_call_option_that_is_not_built_is_refused(name: str) -> None:
    (found,) = problems(lambda s: s.predict("a -> b", name="p", **{name: "x"}))
    assert found == ("DX237", f"the option {name!r} is not built in this version, and would do nothing", "leave it out")
    with pytest.raises(TopologyError, match="is not built"):
        predict("a -> b", **{name: "x"})  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match="is not built"):
        predict("a -> b").with_options(**{name: "x"})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", not_built.OPTIONS["source"])
def test_a_source_option_that_is_not_built_is_refused(name: str) -> None:
    topology = Topology("t")
    topology.source("a.b", **{name: "x"}).sink("c.d")  # type: ignore[call-overload, arg-type]
    assert [(p.code, "is not built" in p.message) for p in topology.check()] == [("DX237", True)]


@pytest.mark.parametrize("name", ["DSPEX_shop", "KV_a", "OBJ_a", "a.b", "", 7])
def test_a_public_copy_has_a_name_that_is_nobody_elses(name: Any) -> None:
    (found,) = problems(lambda s: s.sink("c.d", stream=name))
    assert found[0] == "DX205"


@pytest.mark.parametrize("operator", not_built.OPERATORS)
def test_an_operator_that_is_not_built_is_refused_by_name_in_python_and_in_yaml(tmp_path, monkeypatch, operator: str) -> None:
    with pytest.raises(AttributeError, match=f"Stream.{operator} is not built in this version"):
        getattr(Topology("t").source("a.b"), operator)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text(
        "dspex: 1\ntopology: t\nsources: { a.b: }\n"
        f"nodes:\n  n: {{ from: a.b, {operator}: x, name: y }}\nsinks: {{ c.d: {{ from: n }} }}\n"
    )
    (found,) = Topology.load("t.yaml").check()
    assert (found.code, found.line, found.node) == ("DX237", 5, "n")
    assert f"the operator {operator!r} is not built in this version" in found.message


def test_nothing_is_listed_as_not_built_that_is_there() -> None:
    assert not [name for name in not_built.OPERATORS if name in operators() or name in vars(Stream)]
    takes = {"call": set(CALL_OPTIONS), "source": set(SOURCE_OPTIONS), "sink": set(SINK_OPTIONS)}
    for of, names in not_built.OPTIONS.items():
        assert not set(names) & (takes.get(of) or set(operators()[of].options)), of


def test_an_option_that_is_not_built_is_refused_in_yaml_too(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.yaml").write_text(
        "dspex: 1\ntopology: t\nsources: { a.b: { codec: json } }\n"
        "nodes:\n  p: { from: a.b, predict: a -> b }\nsinks: { c.d: { from: p } }\n"
    )
    found = [(p.line, p.node, "is not built" in p.message) for p in Topology.load("t.yaml").check()]
    assert found == [(3, "a.b", True)]


@pytest.mark.parametrize("operator", operators().values(), ids=lambda o: o.name)
def test_every_operator_names_an_option_that_it_has_not_and_lists_those_that_it_has(operator: AnyOperator) -> None:
    topology = Topology("t")
    stream = topology.source("a.b").key_by("k", name="k")
    given: dict[str, Any] = {n: p.default for n, p in operator.options.items() if p.default is REQUIRED} | {"zzz": 1}
    main = [] if isinstance(operator.main, NothingParameter) else [stream if operator.many_inputs else "x"]
    window = "count" in operator.one_of
    made = getattr(stream, operator.name)(*main, **given, **({} if window else {"name": "n"}))
    if window:
        made.count(name="n")
    (found,) = [p for p in topology.check() if "zzz" in p.message]
    listed = found.fix.removeprefix("one of: ").split(", ")
    assert (found.code, found.node) == ("DX204", "n")
    assert found.message.endswith("there is no option 'zzz'")
    assert set(listed) - {"name"} == set(operator.options)


@pytest.mark.parametrize("operator", operators().values(), ids=lambda o: o.name)
def test_every_operator_does_so_in_yaml_with_the_line(tmp_path, monkeypatch, operator: AnyOperator) -> None:
    monkeypatch.chdir(tmp_path)
    more = "".join(f", {name}: 1" for name in operator.required) + (", count: {}" if "count" in operator.one_of else "")
    (tmp_path / "t.yaml").write_text(
        "dspex: 1\ntopology: t\nsources: { a.b: }\nnodes:\n  k: { from: a.b, key_by: k }\n"
        f"  n: {{ from: k, {operator.name}: x, zzz: 1{more} }}\nsinks: {{ c.d: {{ from: n }} }}\n"
    )
    (found,) = [p for p in Topology.load("t.yaml").check() if "zzz" in p.message]
    assert (found.code, found.node, found.line) == ("DX204", "n", 6)
    assert found.message == f"{operator.name} n has no option 'zzz'"
    assert set(found.fix.removeprefix("one of: ").split(", ")) >= {"from", operator.name, *operator.keys}


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda s: s.score("f1", expectd="a", actual="b"),
         [("expectd", "did you mean expected?"), ("expected", "add expected=...")]),
        (lambda s: s.parse("-> a", feld="text"), [("feld", "did you mean field?"), ("field", "add field=...")]),
        (lambda s: s.render("{a}", field="t", sintax="jinja"), [("sintax", "did you mean syntax?")]),
        (lambda s: s.validate({}, on_eror="skip"), [("on_eror", "did you mean on_error?")]),
        (lambda s: s.map(str, nam="x"), [("nam", "did you mean name?")]),
    ],
)  # fmt: skip
def test_a_misspelt_or_missing_option_is_reported_by_check(use: Any, expected: list[tuple[str, str]]) -> None:
    found = problems(use)
    assert [code for code, _, _ in found] == ["DX204"] * len(expected)
    for (_, message, fix), (name, hint) in zip(found, expected):
        assert f"option {name!r}" in message
        assert hint in fix


def test_every_wrong_argument_of_an_operator_is_reported_at_once() -> None:
    found = problems(lambda s: s.score("f2", expected="a +", actual=5, field=""))
    assert [code for code, _, _ in found] == ["DX205", "DX205", "DX208", "DX208"]


def test_the_main_argument_may_be_given_by_its_name() -> None:
    assert problems(lambda s: s.map(fn=str).filter(test="it == 'a'").validate(schema=str).sink("c.d")) == []
    with pytest.raises(TypeError, match="map\\(\\) takes one argument"):
        Topology("t").source("a.b").map(str, int)  # type: ignore[call-overload]


async def awaited(*any: object) -> bool:
    return False


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.map(awaited),
        lambda s: s.filter(awaited),
        lambda s: s.branch(awaited)[1],
        lambda s: s.key_by(awaited, name="k"),
        lambda s: s.key_by("k").stateful(awaited, init=dict, name="s"),
        lambda s: s.key_by("k").aggregate(dict, awaited, name="a"),
    ],
)
def test_a_function_that_nobody_awaits_is_refused(use: Any) -> None:
    assert ("DX219", "awaited is an async def") in [(code, message.split(", and ")[-1]) for code, message, _ in problems(use)]

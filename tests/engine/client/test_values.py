"""Numbers and times: one rule at every door. What cannot stay what it is is refused with its place; nothing is rounded."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
from engine_lab import Lab
from pool_bench import config, work

from dspex.bus import codecs
from dspex.bus.errors import ConfigError, DecodeError, InvalidInput
from dspex.bus.port import NewMessage
from dspex.bus.records import CallRecord
from dspex.bus.serving.call_spec import CallSpec
from dspex.engine.cli.terminal.arguments import records
from dspex.engine.cli.terminal.terminal import to_json
from dspex.engine.testing.driver import Driver
from dspex.operators.topology import Topology
from dspex.workers.answerers.router import Router

MakeLab = Callable[..., Lab]
LONG = 123_456_789_012_345_678_901  # an order number of 21 digits: as a float it is another one
TEXT = f'{{"order": {LONG}}}'
MOST, LEAST = (1 << 64) - 1, -(1 << 63)


def copying() -> Topology:
    topology = Topology("copying")
    topology.source("in").map(dict, name="copy").sink("out")  # without it, nothing would look into the event
    return topology


# -- integers of more than 64 bits -----------------------------------------------------------------------------------
def test_an_event_with_a_longer_integer_is_a_dead_letter_that_shows_it(lab: MakeLab) -> None:
    one = lab(copying())
    one.start()
    for text in (TEXT, '{"n": [18446744073709551616]}', '{"n":\n -9223372036854775809}'):
        one.store(NewMessage("in", text.encode()))
    one.store(NewMessage("in", orjson.dumps({"n": [MOST, LEAST], "text": str(LONG), "float": 1e30})))
    one.advance(1)
    letters = one.letters()
    assert [letter.reason for letter in letters] == ["DecodeError"] * 3
    assert letters[0].message == f"the integer {LONG} at line 1, column 11: an integer has 64 bits at most"
    assert "line 2, column 2" in letters[2].message
    assert "as text" in letters[0].fix
    assert one.outputs("out") == [{"n": [MOST, LEAST], "text": str(LONG), "float": 1e30}]


def test_a_longer_integer_cannot_be_published_stored_or_made() -> None:
    for codec in ("json", "msgpack", "auto"):
        with pytest.raises(InvalidInput, match=r"data\.order is an int of 67 bits"):
            codecs.encode({"order": LONG}, codec)
    with pytest.raises(InvalidInput, match="67 bits"):
        CallRecord("c", 1, 1, "t", "n", outputs={"order": LONG}).pack()
    topology = Topology("making")
    topology.source("in").map(lambda data: {"order": data["a"] * data["a"]}, name="make").sink("out")
    with Driver(topology) as d:
        d.publish("in", {"a": 1 << 40})
        (letter,) = d.dead_letters()
    assert "data.order is an int of 81 bits" in letter.message


def test_a_longer_integer_is_refused_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "order.json"
    file.write_text(TEXT)
    for arguments in ([f"order:={LONG}"], [f"@{file}"], ["-"]):
        with pytest.raises(ConfigError, match=f"the integer {LONG}"):
            list(records(arguments, io.StringIO(TEXT)))
    assert list(records([f"order:={MOST}", f"text={LONG}"], io.StringIO())) == [{"order": MOST, "text": str(LONG)}]


@pytest.mark.asyncio
@pytest.mark.parametrize("route", ["native", "worker"])
async def test_a_reply_with_a_longer_integer_is_exact_or_refused(model: Any, route: str) -> None:
    """A text is not a number: there it stays as the model wrote it."""
    router = Router(config(model.url, programs=()).for_child())
    for kind, text in (("str", str(LONG)), ("int", None), ("Any", None), ("dict[str, Any]", None), ("list[int]", None)):
        value = {"dict[str, Any]": f'{{"k": {LONG}}}', "list[int]": f"[{LONG}]"}.get(kind, str(LONG))
        for adapter, said in (("chat", f"[[ ## a ## ]]\n{value}\n\n[[ ## completed ## ]]"), ("json", f'{{"a": {value}}}')):
            model.replies = {"hello": said}
            spec = CallSpec("predict", f"text -> a: {kind}", f"text -> a: {kind}", route=route, adapter=adapter)
            answer = await router.run(work(spec=spec), None, print)
            if text is not None:
                assert answer.outputs == {"a": text}
                continue
            assert answer.error is not None, (kind, adapter, answer.outputs)
            assert (answer.error["type"], answer.error["retryable"]) == ("InvalidOutput", True)
            assert "an int of 67 bits" in answer.error["message"]
    await router.close()


# -- infinity and NaN ------------------------------------------------------------------------------------------------
def test_a_number_that_json_has_not_is_printed_as_its_name_and_never_as_null() -> None:
    data = {"a": float("inf"), "b": [-float("inf"), None], "c": {"d": float("nan")}, "e": "null", "f": LONG}
    printed = {"a": "Infinity", "b": ["-Infinity", None], "c": {"d": "NaN"}, "e": "null", "f": str(LONG)}
    assert orjson.loads(to_json(data)) == printed


def test_a_number_that_json_has_not_is_refused_in_json_and_kept_in_messagepack() -> None:
    with pytest.raises(InvalidInput, match=r"data\.a is inf, and JSON has no such number"):
        codecs.encode({"a": float("inf")}, "json")
    assert codecs.decode(*codecs.encode({"a": float("inf")}, "msgpack")) == {"a": float("inf")}
    for text in (b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e400}'):
        with pytest.raises(DecodeError):
            codecs.decode(text)


# -- times -----------------------------------------------------------------------------------------------------------
NAIVE = datetime(2026, 1, 2, 3, 4, 5)
TIMES = {
    "naive": (NAIVE, "2026-01-02T03:04:05+00:00"),
    "utc": (NAIVE.replace(tzinfo=UTC), "2026-01-02T03:04:05+00:00"),
    "zone": (NAIVE.replace(tzinfo=timezone(timedelta(hours=2))), "2026-01-02T03:04:05+02:00"),
    "day": (date(2026, 1, 2), "2026-01-02"),
    "wait": (timedelta(days=1, hours=1), 90_000.0),
}


def test_times_are_the_same_in_an_event_a_sink_and_what_a_function_makes() -> None:
    topology = copying()
    made = topology.source("more").map(lambda data: {name: value for name, (value, _) in TIMES.items()}, name="make")
    made.sink("made")
    with Driver(topology) as d:
        d.publish("in", {name: value for name, (value, _) in TIMES.items()})
        d.publish("more", {})
        assert d.outputs("out") == d.outputs("made") == [{name: text for name, (_, text) in TIMES.items()}]


@pytest.mark.asyncio
@pytest.mark.parametrize("route", ["native", "worker"])
async def test_times_in_the_outputs_of_a_call_are_as_in_an_event(model: Any, route: str) -> None:
    signature = "text -> at: datetime.datetime, wait: datetime.timedelta, day: datetime.date"
    said = {"at": "2026-01-02T03:04:05", "wait": "P1DT1H", "day": "2026-01-02"}
    model.replies = {"hello": orjson.dumps(said).decode()}
    router = Router(config(model.url, programs=()).for_child())
    spec = CallSpec("predict", signature, signature, route=route, adapter="json")
    answer = await router.run(work(spec=spec), None, print)
    await router.close()
    assert answer.outputs == {"at": "2026-01-02T03:04:05+00:00", "wait": 90_000.0, "day": "2026-01-02"}

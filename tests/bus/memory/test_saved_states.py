"""Saved states of programs: versions, aliases, and what is refused, on the bus in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from dspex.bus import subjects
from dspex.bus.errors import ConfigError, DataError, InvalidInput, RunError
from dspex.bus.memory.server import MemoryServer
from dspex.bus.port import Bus
from dspex.bus.serving.programs import form
from dspex.bus.serving.programs.names import StateName
from dspex.bus.serving.programs.states import SavedStates, payloads_of

APP = "saved"
T = TypeVar("T")


def state(instructions: str = "Answer.", **more: Any) -> dict[str, Any]:
    """As `dump_state()` of a program with one predictor gives it."""
    fields = [{"prefix": "Text:", "description": "${text}"}, {"prefix": "Reply:", "description": "${reply}"}]
    predictor = {
        "traces": [],
        "train": [],
        "demos": [],
        "lm": None,
        "signature": {"instructions": instructions, "fields": fields},
    }
    return {"write": {**predictor, **more}}


def on_a_bus(test: Callable[[SavedStates, Bus], Awaitable[T]]) -> T:
    async def run() -> T:
        bus = MemoryServer().connect()
        try:
            return await test(SavedStates(bus, APP), bus)
        finally:
            await bus.close()

    return asyncio.run(run())


def test_versions_are_counted_and_two_that_save_at_once_get_two() -> None:
    async def run(states: SavedStates, _: Bus) -> list[str]:
        saved = await asyncio.gather(*(states.put("draft", form.read(state(f"n{i}"))) for i in range(5)))
        for one in saved:
            loaded = await states.load(await states.find(StateName.read(one.name)))
            assert loaded.packed == form.read(state(f"n{saved.index(one)}")).packed
        return sorted(one.name for one in saved)

    assert on_a_bus(run) == [f"draft@{n}" for n in range(1, 6)]


def test_an_alias_is_promoted_and_rolled_back_step_by_step() -> None:
    async def run(states: SavedStates, _: Bus) -> None:
        async def points_to() -> str:
            return (await states.find(StateName.read("draft@prod"))).name

        for n in range(3):
            await states.put("draft", form.read(state(str(n))))
        for version in (1, 3, 2):
            await states.promote("draft", version, "prod")
        assert await points_to() == "draft@2"
        assert (await states.rollback("draft", "prod")).version == 3
        assert await points_to() == "draft@3"
        assert (await states.rollback("draft", "prod")).version == 1, "and not 2 again"
        with pytest.raises(RunError, match="has pointed to nothing else"):
            await states.rollback("draft", "prod")
        await states.promote("draft", 2, "prod")
        assert (await states.rollback("draft", "prod")).version == 1
        assert (await states.find(StateName.read("draft"))).name == "draft@3", "without a version it is the newest"

    on_a_bus(run)


def test_who_promotes_again_because_no_answer_came_can_still_roll_back() -> None:
    async def run(states: SavedStates, _: Bus) -> None:
        for n in range(2):
            await states.put("draft", form.read(state(str(n))))
        for version in (1, 2, 2):
            changed = await states.promote("draft", version, "prod")
        assert (changed.number, changed.version) == (2, 2)
        assert (await states.rollback("draft", "prod")).version == 1

    on_a_bus(run)


def test_no_number_that_others_wrote_ends_the_counting() -> None:
    async def run(states: SavedStates, bus: Bus) -> None:
        await states.put("draft", form.read(state("one")))
        bucket = await bus.bucket(subjects.applied(APP), once=True)
        for key in ("program.draft.999999999", "program.draft.999999999999999", "alias.draft.prod.999999999999999"):
            await bucket.put(key, b"garbage", revision=0)
        saved = [(await states.put("draft", form.read(state(f"n{n}")))).version for n in range(2)]
        assert saved == [2, 3]
        async with asyncio.timeout(5):
            for version in (2, 3):
                await states.promote("draft", version, "prod")
                assert (await states.find(StateName.read("draft@prod"))).version == version

    on_a_bus(run)


def test_what_is_not_there_is_told_with_what_there_is() -> None:
    async def run(states: SavedStates, _: Bus) -> None:
        with pytest.raises(RunError, match="no program 'draft' is saved"):
            await states.find(StateName.read("draft@1"))
        await states.put("draft", form.read(state()))
        for name, why in {"draft@2": "no version 2", "draft@prod": "no alias 'prod'"}.items():
            with pytest.raises(RunError, match=why) as error:
                await states.find(StateName.read(name))
            assert error.value.code == "DX627"
        with pytest.raises(RunError, match="no version 7"):
            await states.promote("draft", 7, "prod")

    on_a_bus(run)


@pytest.mark.parametrize("name", ["", "Draft", "draft@", "draft@0", "draft@1@2", "a b", "x" * 49, "draft.x"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        StateName.read(name)


def test_what_others_wrote_under_a_key_is_passed_over_and_a_state_that_was_changed_is_refused() -> None:
    async def run(states: SavedStates, bus: Bus) -> None:
        first = await states.put("draft", form.read(state("one")))
        bucket = await bus.bucket(subjects.applied(APP), once=True)
        for key in ("program.draft.2", "alias.draft.prod.1"):
            for value in (b"garbage", b"{}", b"[" * 10_000, b'{"version":"1","back":0,"time":1.0,"who":"x"}'):
                await bucket.delete(key)
                await bucket.put(key, value, revision=0)
                assert list((await states.listing())["draft"].versions) == [1]
        assert (await states.put("draft", form.read(state("two")))).version == 3
        assert (await states.promote("draft", 3, "prod")).number == 2
        objects = await bus.objects(subjects.objects(APP))
        other = await objects.put(form.read(state("forged")).packed)
        assert first.headers == {subjects.CLAIM_CHECK: next(iter(first.headers.values()))}
        forged = first.__class__(**{**vars(first), "headers": {subjects.CLAIM_CHECK: other}})
        with pytest.raises(DataError, match="not what was saved"):
            await states.load(forged)
        assert await payloads_of(bucket) >= set(first.headers.values()), "housekeeping leaves them"

    on_a_bus(run)


def test_a_state_keeps_what_describes_prompts_and_nothing_else() -> None:
    model = {"model": "openai/x", "api_base": "http://elsewhere"}
    found = form.read({**state(lm=model), "metadata": {"dependency_versions": {"dspy": "3.2.1"}}})
    assert (found.dspy_version, found.models) == ("3.2.1", ("write",))
    assert b"elsewhere" not in found.packed
    itself = form.read(state()["write"])
    assert list(itself.predictors) == [form.ITSELF], "a program that is a predictor has no names"
    wrong: dict[str, object] = {
        "config": state(config={"api_base": "http://elsewhere"}),
        "callbacks": state(callbacks=[1]),
        "no predictor": {"retrieve": {"k": 3}},
        "no JSON": state(demos=[{"text": object()}]),
        "marker": state(demos=[{"text": "<<CUSTOM-TYPE-START-IDENTIFIER>>[]"}]),
        "demos": state(demos={}),
        "it has no predictor": {"metadata": {}},
        "mapping": [1],
        "16,777,216": state("x" * (form.MOST_STATE + 1)),
    }
    for why, what in wrong.items():
        with pytest.raises(InvalidInput, match=why) as error:
            form.read(what)
        assert error.value.code == "DX518"

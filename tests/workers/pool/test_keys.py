"""Which keys the workers of a pool get."""

from __future__ import annotations

from typing import Any

import pytest
from pool_bench import SIGNATURE, config, program, running, work

from dspex.bus.errors import ConfigError
from dspex.bus.serving.call_spec import CallSpec
from dspex.bus.settings.model import Settings
from dspex.workers.config import Profile, check_keys, resolve

LMS = {name: {"model": f"openai/{name}", "key_env": f"KEY_{name.upper()}"} for name in ("main", "big", "small")}
KEYS = {f"KEY_{name.upper()}": f"secret-{name}" for name in LMS}


def keys(pool: dict[str, Any], **settings: Any) -> list[str]:
    found = resolve(Settings(app="a", lm=LMS, pools={"p": pool, "q": {"lm": "small"}}, **settings), "p").for_child(KEYS).keys
    assert all(found[name] == KEYS[name] for name in found)
    return [name.removeprefix("KEY_").lower() for name in found]


def test_workers_get_the_keys_of_the_profiles_of_their_pool_and_no_others() -> None:
    assert keys({"lm": "big"}) == ["big"]
    assert keys({"lm": "big", "lms": ["small"]}) == ["big", "small"]
    assert keys({"lms": ["small"]}) == ["main", "small"]
    assert keys({"lm": "big"}, defaults={"call": {"lm": ["main"]}}) == ["big", "main"]
    assert keys({}) == ["main", "big", "small"], "a pool that names none may use all"


def test_a_variable_of_a_pool_that_is_not_set_where_it_is_started_is_named() -> None:
    config = resolve(Settings(app="a", pools={"p": {"env": {"DB_PASSWORD": "$DB", "MODE": "fast"}}}), "p")
    check_keys(config, {"DB": ""})
    with pytest.raises(ConfigError, match="DB is not set") as e:
        check_keys(config, {})
    assert (e.value.code, e.value.fix) == ("DX112", "export DB")


def test_a_variable_that_names_another_is_no_secret_in_a_file() -> None:
    assert Settings.load(pools={"p": {"env": {"API_KEY": "$API_KEY"}}}).pools["p"].env == {"API_KEY": "$API_KEY"}
    with pytest.raises(ConfigError, match="a secret is written out"):
        Settings.load(pools={"p": {"env": {"API_KEY": "sk-1"}}})


@pytest.mark.asyncio
async def test_no_record_has_the_key_that_a_models_server_repeats(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may call a pool, or read its dead letters, would have it."""
    monkeypatch.setenv("MODEL_KEY", key := "the-key-of-the-model")
    profiles = {"main": Profile("main", "openai/stand-in", key_env="MODEL_KEY", base_url=model.url)}
    asked = [*(CallSpec("predict", SIGNATURE, SIGNATURE, route=route) for route in ("native", "worker")), program("made")]
    async with running(config(model.url, profiles=profiles)) as bench:
        for spec in asked:
            (record,) = await bench.ask(work("standin:401", spec=spec))
            assert model.last_key == f"bearer {key}"
            said = str(record.error)
            assert ("LMRefused" in said, "asked for 401 with bearer …" in said, key in said) == (True, True, False)

"""LiteLLM is imported where nothing waits for it. That takes seconds, so a module of its name stands for it here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pool_bench import config, running, work

from dspex.bus.serving.call_spec import CallSpec
from dspex.workers.config import PoolConfig, Profile
from dspex.workers.dspy.versions import installed
from dspex.workers.dspy.versions.litellm_import import needed_by

LITELLM = """
import os, threading
with open(os.path.join(os.path.dirname(__file__), "imported"), "a") as file:
    file.write(f"{os.getpid()} {threading.current_thread() is threading.main_thread()}\\n")
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise OSError(f"nobody is asked by {name}")
_dspy_logging_configured = True
def completion(*_, **__): ...
"""
MINE = """
import dspy
class Draft(dspy.Predict): ...
class Own(dspy.Module):
    async def aforward(self, text):
        (said,) = await dspy.LM("mistral/small", api_key="none", num_retries=0).acall(prompt=text)
        return dspy.Prediction(reply=said)
"""
TEXT, SOUND = "text -> reply", "sound: dspy.Audio, text -> reply"

pytestmark = pytest.mark.skipif(installed.MINOR < (3, 4), reason="DSPy imports LiteLLM with itself")


def pool(folder: Path, model: str, url: str, **options: Any) -> PoolConfig:
    """A pool whose processes find this LiteLLM."""
    (folder / "litellm.py").write_text(LITELLM)
    (folder / "mine.py").write_text(MINE)
    profiles = {"main": Profile("main", model, base_url=url, breaker={"failures": 10**6})}
    return config(url, profiles=profiles, programs=("mine:*",), path=(str(folder),), **options)


def imported(folder: Path) -> list[list[str]]:
    """By which processes, and whether in their main thread."""
    found = folder / "imported"
    return [line.split() for line in found.read_text().splitlines()] if found.exists() else []


@pytest.mark.long
@pytest.mark.asyncio
async def test_what_a_profile_needs_is_imported_once_for_all_workers_before_they_are_forked(model: Any, tmp_path: Path) -> None:
    async with running(pool(tmp_path, "mistral/small", model.url, size=2)) as bench:
        workers = {str(child.pid) for child in bench.pool.children.children}
        await bench.ask(*[work(f"hello {n}", spec=CallSpec("predict", TEXT, TEXT)) for n in range(4)])
        ((process, _),) = imported(tmp_path)
        assert process not in workers


@pytest.mark.long
@pytest.mark.asyncio
@pytest.mark.parametrize("why", ["a message", "a program's own model", "a profile, in a pool without programs"])
async def test_what_was_not_imported_ahead_is_imported_in_a_thread(model: Any, tmp_path: Path, why: str) -> None:
    plain = pool(tmp_path, "openai/stand-in", model.url)
    spec, inputs = CallSpec("predict", SOUND, SOUND), {"text": "a", "sound": {"data": "AAAA", "audio_format": "wav"}}
    if why == "a program's own model":
        spec, inputs = CallSpec("program", "mine:Own", TEXT), {"text": "a"}
    elif why != "a message":
        other = replace(plain.profiles["main"], name="other", model="mistral/small")
        plain = replace(plain, programs=(), profiles={**plain.profiles, "other": other})
        spec, inputs = CallSpec("predict", TEXT, TEXT, lm=("other",)), {"text": "a"}
    async with running(plain) as bench:
        (record,) = await bench.ask(work(spec=CallSpec("predict", TEXT, TEXT, route="worker")))
        assert (record.error, imported(tmp_path)) == (None, []), "DSPy asks this model itself"
        await bench.ask(work(spec=spec, inputs=inputs))
        ((_, in_the_main_thread),) = imported(tmp_path)
        assert in_the_main_thread == "False"


@pytest.mark.parametrize(
    ("profile", "needed"),
    [
        (Profile("p", "openai/gpt"), False),
        (Profile("p", "openai/gpt", base_url="http://x/v1"), False),
        (Profile("p", "anthropic/claude"), False),
        (Profile("p", "local/smollm2-135m"), False),
        (Profile("p", "azure/gpt", base_url="http://x"), True),
        (Profile("p", "openai/gpt", params={"headers": {"a": "b"}}), True),
        (Profile("p", "openai/o1", params={"temperature": 0.3}), False),
    ],
    ids=str,
)
def test_which_profiles_need_it(profile: Profile, needed: bool) -> None:
    assert needed_by(profile) is needed

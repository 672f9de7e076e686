"""Nothing is accepted and ignored: every setting names the file that acts on it, and one without effect is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from dspex.bus.errors import ConfigError
from dspex.bus.settings import not_built
from dspex.bus.settings.model import Settings

ROOT = Path(__file__).parents[3]
ACTS: dict[str, str] = {
    "app": "engine/hosting/engine.py",
    "topologies": "engine/cli/topology/targets.py",
    "path": "bus/settings/model.py",
    "server.url": "bus/local/open.py",
    **{
        f"server.{name}": "bus/settings/server.py" for name in ("creds", "nkey", "user", "password_env", "token_env", "context")
    },
    **{f"server.tls.{name}": "bus/local/open.py" for name in ("cert", "key")},
    "server.tls.ca": "bus/local/open.py",
    "server.inbox_prefix": "bus/local/open.py",
    "server.replicas": "engine/hosting/engine.py",
    "server.local.port": "bus/local/open.py",
    "server.local.store": "bus/settings/model.py",
    "server.local.sync_interval": "bus/local/open.py",
    "engine.commit.max_events": "engine/hosting/engine.py",
    "engine.heartbeat": "engine/hosting/engine.py",
    "engine.stall_after": "engine/hosting/engine.py",
    "engine.align": "engine/hosting/engine.py",
    "engine.state_limit": "engine/hosting/engine.py",
    "engine.records": "engine/hosting/engine.py",
    "engine.max_open_calls": "engine/hosting/engine.py",
    "engine.claim_check_above": "engine/hosting/engine.py",
    "engine.encrypt_key_env": "bus/local/open.py",
    **{
        f"defaults.call.{name}": "engine/graph/defaults.py"
        for name in ("lm", "adapter", "route", "cache", "cost", "hedge", "first_token_timeout", "choose")
    },
    **{
        f"defaults.call.{name}": "engine/graph/nodes.py"
        for name in ("pool", "timeout", "deadline", "on_error", "order", "affinity", "priority")
    },
    **{f"defaults.call.retry.{name}": "engine/graph/nodes.py" for name in ("attempts", "backoff", "factor", "cap", "jitter")},
    **{
        f"defaults.call.config.{name}": "operators/recorded/options.py"
        for name in ("temperature", "max_tokens", "top_p", "n", "stop", "rollout_id")
    },
    **{f"lm.*.{name}": "workers/config.py" for name in ("model", "key_env", "base_url", "adapter", "params")},
    **{f"lm.*.breaker.{name}": "workers/pool/routing/breaker.py" for name in ("failures", "within", "open")},
    **{f"lm.*.limits.{name}": "workers/config.py" for name in ("requests", "tokens", "concurrent", "cost")},
    **{
        f"budgets.*.{name}": "workers/config.py"
        for name in ("profile", "tenant", "topology", "requests", "tokens", "cost", "per")
    },
    **{f"lm.*.price.{name}": "workers/config.py" for name in ("input", "output", "cached")},
    "lm.*.price.batch": "workers/answerers/attempt.py",
    **{f"lm.*.batch.{name}": "workers/answerers/batches/lane.py" for name in ("gather", "calls", "poll")},
    **{
        f"pools.*.{name}": "workers/config.py"
        for name in (
            "size",
            "slots",
            "memory",
            "threads",
            "programs",
            "env",
            "python",
            "gpus",
            "devices",
            "hmac_key_env",
            "keep_exchanges",
        )
    },
    **{f"pools.*.{name}": "bus/settings/model.py" for name in ("lm", "lms")},
    **{f"pools.*.recycle.{name}": "workers/config.py" for name in ("calls", "age")},
    "pools.*.zygote": "workers/config.py",
    "pools.*.cpu": "workers/config.py",
    **{f"pools.*.scale.{name}": "workers/config.py" for name in ("min", "max", "cooldown")},
    "pools.*.timeout": "bus/settings/model.py",
    **{f"pools.*.restart.{name}": "workers/config.py" for name in ("max", "within")},
    **{f"engine.{name}": "engine/hosting/engine.py" for name in ("max_bytes", "submit")},
    **{f"http.{name}": "engine/gateway/entrance.py" for name in ("subjects", "calls", "max_body")},
    "http.bind": "engine/cli/server/gateway.py",
    **{f"http.hooks.*.{name}": "engine/gateway/publishing.py" for name in ("scheme", "secret_env", "subject")},
    **{
        f"calls.*.{name}": "engine/gateway/access.py"
        for name in ("token_env", "calls", "subjects", "read", "operate", "requests", "concurrent")
    },
    "telemetry.log": "engine/cli/terminal/terminal.py",
    "telemetry.metrics": "engine/cli/run.py",
    "telemetry.content": "engine/telemetry/exporting.py",
    "telemetry.redact": "workers/config.py",
}


def leaves(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner: Any = field.annotation
        key = f"{above}{name}"
        if get_origin(inner) is UnionType:
            inner = next(a for a in get_args(inner) if a is not type(None))
        if get_origin(inner) is dict:
            inner, key = get_args(inner)[1], f"{key}.*"
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from leaves(inner, f"{key}.")
        else:
            yield key.removesuffix(".*")


def test_every_setting_names_the_file_that_acts_on_it() -> None:
    assert set(leaves(Settings)) == set(ACTS)


@pytest.mark.parametrize("setting", ACTS)
def test_the_file_that_acts_on_a_setting_reads_it(setting: str) -> None:  # N11
    assert re.search(rf"\b{setting.rpartition('.')[2]}\b", (ROOT / ACTS[setting]).read_text())


def test_no_setting_is_there_and_listed_as_not_built() -> None:
    assert [name for name in ACTS if not_built.fix_of(name)] == []


@pytest.mark.parametrize(
    ("overrides", "key", "code"),
    [
        ({"pools": {"gpu": {"devices": [0, 1]}}}, "pools.gpu", "DX108"),
        ({"pools": {"gpu": {"gpus": 2, "devices": [0]}}}, "pools.gpu", "DX105"),
        ({"pools": {"gpu": {"gpus": 1, "devices": [0, 1], "size": 3}}}, "pools.gpu", "DX105"),
        ({"pools": {"a": {"memory": "0"}}}, "pools.a.memory", "DX103"),
        ({"pools": {"a": {"recycle": {"age": "0s"}}}}, "pools.a.recycle.age", "DX102"),
        ({"pools": {"a": {"restart": {"within": 0}}}}, "pools.a.restart.within", "DX102"),
        ({"pools": {"a": {"scale": {"min": 3, "max": 2}}}}, "pools.a.scale", "DX105"),
        ({"pools": {"a": {"scale": {"max": 0}}}}, "pools.a.scale.max", "DX105"),
        ({"pools": {"a": {"scale": {"max": 2, "cooldown": 0}}}}, "pools.a.scale.cooldown", "DX102"),
        ({"lm": {"x": {"model": "local/m", "key_env": "KEY"}}}, "lm.x", "DX108"),
        ({"lm": {"x": {"model": "local/m", "base_url": "http://h"}}}, "lm.x", "DX108"),
        ({"lm": {"x": {"model": "local/m", "adapter": "chat"}}}, "lm.x", "DX108"),
        ({"engine": {"heartbeat": "0s"}}, "engine.heartbeat", "DX102"),
        ({"engine": {"heartbeat": "31s"}}, "engine.heartbeat", "DX105"),
        ({"engine": {"records": "0s"}}, "engine.records", "DX102"),
        ({"server": {"local": {"sync_interval": 0}}}, "server.local.sync_interval", "DX102"),
        ({"server": {"tls": {"key": "k.pem"}}}, "server.tls", "DX108"),
        ({"telemetry": {"log": "bogus"}}, "telemetry.log", "DX121"),
        ({"telemetry": {"log": "info,dspex.engne=debug"}}, "telemetry.log", "DX121"),
        ({"pools": {"gpu": {"gpus": 1, "devices": [-1]}}}, "pools.gpu.devices", "DX105"),
        ({"pools": {"gpu": {"gpus": 1, "devices": [0, 0]}}}, "pools.gpu", "DX105"),
        ({"pools": {"a": {"python": ""}}}, "pools.a.python", "DX105"),
        ({"pools": {"a": {"size": True}}}, "pools.a.size", "DX105"),
        ({"pools": {"gpu": {"gpus": 1, "devices": [True]}}}, "pools.gpu.devices", "DX105"),
        ({"lm": {"x": {"model": ""}}}, "lm.x.model", "DX105"),
        ({"lm": {"x": {"model": "a/b", "limits": {"tokens": "200k"}}}}, "lm.x.limits.tokens", "DX105"),
        ({"lm": {"x": {"model": "a/b", "limits": {"requests": "5 USD/min"}}}}, "lm.x.limits.requests", "DX105"),
        ({"lm": {"x": {"model": "a/b", "limits": {"requests": "0/min"}}}}, "lm.x.limits.requests", "DX105"),
        ({"lm": {"x": {"model": "a/b", "limits": {"cost": "50 USD/day"}}}}, "lm.x", "DX105"),
        ({"lm": {"x": {"model": "a/b", "limits": {"concurrent": 0}}}}, "lm.x.limits.concurrent", "DX105"),
        ({"budgets": {"b": {"per": "day"}}}, "budgets.b", "DX105"),
        ({"budgets": {"b": {"tokens": 100}}}, "budgets.b.per", "DX105"),
        ({"budgets": {"b": {"tokens": "-1", "per": "day"}}}, "budgets.b.tokens", "DX105"),
        ({"budgets": {"b": {"requests": 0, "per": "run"}}}, "budgets.b.requests", "DX105"),
        ({"budgets": {"b": {"tokens": 1, "per": "day", "profile": "none"}}}, "budgets.b.profile", "DX111"),
        ({"budgets": {"b": {"cost": "5 USD", "per": "day"}}, "lm": {"x": {"model": "a/b"}}}, "budgets.b.cost", "DX105"),
        ({"server": {"url": "http://h:4222"}}, "server.url", "DX105"),
        *(
            ({"defaults": {"call": {"config": {name: value}}}}, f"defaults.call.config.{name}", "DX105")
            for name, value in [("n", 0), ("max_tokens", 0), ("temperature", -1), ("top_p", 1.1), ("top_p", -1), ("stop", [])]
        ),
        ({"defaults": {"call": {"timeout": "2m", "deadline": "1m"}}}, "defaults.call", "DX105"),
        ({"defaults": {"call": {"timeout": "11m"}}}, "defaults.call", "DX105"),
        ({"defaults": {"call": {"retry": {"factor": 0.5}}}}, "defaults.call.retry.factor", "DX105"),
        ({"defaults": {"call": {"retry": {"jitter": 1.5}}}}, "defaults.call.retry.jitter", "DX105"),
    ],
    ids=str,
)
def test_a_setting_without_effect_or_out_of_bounds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: Any, key: str, code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        Settings.load(**overrides)
    assert [(p.node, p.code) for p in caught.value.problems] == [(key, code)]
    assert "Value error" not in str(caught.value)

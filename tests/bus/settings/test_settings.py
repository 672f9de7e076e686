"""Settings: where each value comes from, and what is said about a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dspex.bus.errors import ConfigError
from dspex.bus.settings.model import Settings

FULL = """\
app = "bank-support"
topologies = ["triage:topology", "billing.yaml"]
path = ["src"]
[server]
url = "nats://n1:4222,n2:4222"
creds = "/run/secrets/dspex.creds"
replicas = 3
local = { port = 4222, store = ".dspex/jetstream", sync_interval = "2m" }
[engine]
commit = { max_events = 500 }
heartbeat = "5s"
stall_after = "30s"
records = "30d"
[defaults.call]
timeout = "60s"
retry = { attempts = 4, backoff = "1s" }
[lm]
big = { model = "anthropic/claude-sonnet-4-5", key_env = "ANTHROPIC_API_KEY" }
local = { model = "local/smollm2-135m" }
[lm.main]
model = "openai/gpt-4.1-mini"
key_env = "OPENAI_API_KEY"
adapter = "chat"
params = { temperature = 0.0, max_tokens = 800 }
price = { input = 0.40, output = 1.60 }
[pools.lightweight]
size = 4
slots = 16
lm = "main"
memory = "512MiB"
threads = 1
programs = ["programs:*"]
env = { TOKENIZERS_PARALLELISM = "false" }
recycle = { calls = 10000, age = "6h" }
restart = { max = 5, within = "60s" }
[pools.optimizer]
size = 1
slots = 1
python = "/opt/opt-env/bin/python"
memory = "8GiB"
[pools.gpu]
size = 2
slots = 8
python = "/opt/gpu-env/bin/python"
gpus = 1
devices = [0, 1]
lm = "local"
[telemetry]
log = "info,dspex.engine=debug"
"""


@pytest.fixture
def folder(tmp_path: Path, no_settings: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory called `shop`, and an environment without settings."""
    home = tmp_path / "shop"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return home


def problems(**overrides: object) -> dict[str, tuple[str, str, str]]:
    """What load() complains about: {key: (code, where, fix)}."""
    with pytest.raises(ConfigError) as caught:
        Settings.load(**overrides)
    return {str(p.node): (p.code, p.place.removeprefix(f"{p.node} (")[:-1], p.fix) for p in caught.value.problems}


def test_without_a_file_there_is_a_local_model_a_pool_and_the_folders_name(folder: Path) -> None:
    settings = Settings.load()
    assert settings.app == "shop"
    assert settings.root == folder
    assert settings.lm["local"].model == "local/smollm2-135m"
    assert settings.pools["lightweight"].slots == 4
    assert settings.lm_of("lightweight") == "local"
    assert settings.store == folder / ".dspex/jetstream"
    assert settings.origins()["lm.local.model"] == "default"


def test_the_settings_example_of_the_documentation_is_valid(folder: Path) -> None:
    (folder / "dspex.toml").write_text(FULL)
    settings = Settings.load()
    assert settings.engine.commit.max_events == 500
    assert settings.engine.stall_after == 30
    assert settings.engine.records == 30 * 86400
    assert settings.pools["lightweight"].memory == 512 * 2**20
    assert settings.pools["gpu"].devices == (0, 1)
    assert settings.lm["main"].params == {"temperature": 0.0, "max_tokens": 800}
    assert settings.defaults.call.options()["timeout"] == 60.0
    assert settings.lm_of("optimizer") == "main"
    assert settings.lm_of("gpu") == "local"
    assert settings.search_path == [str(folder / "src")]


def test_the_nearest_settings_file_upwards_is_read_pyproject_included(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "x"\n\n[tool.dspex]\napp = "upper"\n[tool.dspex.engine]\nheartbeat = "7s"\n'
    )
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    settings = Settings.load()
    assert (settings.app, settings.engine.heartbeat, settings.root) == ("upper", 7.0, folder)
    assert settings.origins()["engine.heartbeat"] == f"{folder}/pyproject.toml:7"


def test_a_flag_beats_the_environment_and_that_beats_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "dspex.toml").write_text('app = "file"\n[pools.my-pool]\nsize = 2\nslots = 3\n[server]\nurl = "nats://file:1"\n')
    monkeypatch.setenv("DSPEX_POOLS__MY_POOL__SIZE", "5")
    monkeypatch.setenv("DSPEX_SERVER__URL", "nats://env:1")
    monkeypatch.setenv("NATS_URL", "nats://nats:1")
    settings = Settings.load(server__url="nats://flag:1", app=None)
    assert settings.server.url == "nats://flag:1"
    assert Settings.load().server.url == "nats://env:1"
    monkeypatch.delenv("DSPEX_SERVER__URL")
    assert Settings.load().server.url == "nats://nats:1"
    origins = settings.origins()
    assert origins["server.url"] == "flag"
    assert origins["pools.my-pool.size"] == "env DSPEX_POOLS__MY_POOL__SIZE"
    assert origins["pools.my-pool.slots"] == "dspex.toml:4"
    assert origins["app"] == "dspex.toml:1"
    assert origins["engine.heartbeat"] == "default"
    assert settings.pools["my-pool"].size == 5


def test_lists_and_tables_can_come_from_a_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPEX_TOPOLOGIES", "a:b, c.yaml")
    monkeypatch.setenv("DSPEX_POOLS__GPU__DEVICES", "[0, 1]")
    monkeypatch.setenv("DSPEX_POOLS__GPU__GPUS", "1")
    monkeypatch.setenv("DSPEX_ENGINE__COMMIT", '{"max_events": 7}')
    monkeypatch.setenv("DSPEX_ENGINE__HEARTBEAT", "8")
    settings = Settings.load()
    assert settings.topologies == ("a:b", "c.yaml")
    assert settings.pools["gpu"].devices == (0, 1)
    assert settings.engine.commit.max_events == 7
    assert settings.engine.heartbeat == 8.0


def test_all_problems_are_reported_at_once_with_place_and_suggestion(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "dspex.toml").write_text(
        'ap = "x"\n[engine]\nheartbeat = "soon"\n[pools.gpu]\nsise = 2\nsize = "many"\nmemory = "lots"\n'
        'lm = "x"\n[lm.main]\nkey_env = "K"\n'
    )
    monkeypatch.setenv("DSPEX_ENGINE__COMMIT__MAX_EVENT", "3")
    found = problems()
    assert found["ap"] == ("DX104", "dspex.toml:1", "did you mean app?")
    assert found["engine.heartbeat"][:2] == ("DX102", "dspex.toml:3")
    assert found["pools.gpu.sise"] == ("DX104", "dspex.toml:5", "did you mean pools.gpu.size?")
    assert found["pools.gpu.size"][:2] == ("DX105", "dspex.toml:6")
    assert found["pools.gpu.memory"][:2] == ("DX103", "dspex.toml:7")
    assert found["lm.main.model"][:2] == ("DX105", "dspex.toml:10")
    assert found["engine.commit.max_event"] == (
        "DX104",
        "env DSPEX_ENGINE__COMMIT__MAX_EVENT",
        "did you mean engine.commit.max_events?",
    )
    assert len(found) == 7


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[engine]\ncommit = { max_wait = "20ms" }\n', "engine.commit.max_wait"),
        ('[defaults.call]\nfallback = "a:b"\n', "defaults.call.fallback"),
    ],
)
def test_a_setting_that_is_not_built_is_refused_wherever_it_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, key: str
) -> None:
    (folder / "dspex.toml").write_text(text)
    with pytest.raises(ConfigError, match="is not built in this version") as caught:
        Settings.load()
    (problem,) = caught.value.problems
    assert (problem.code, problem.node) == ("DX108", key)
    (folder / "dspex.toml").write_text('[lm.main]\nmodel = "a/b"\n')
    variable = f"DSPEX_{key.upper().replace('.', '__')}"
    monkeypatch.setenv(variable, "1")
    assert problems()[key][:2] == ("DX108", f"env {variable}")
    monkeypatch.delenv(variable)
    assert problems(**{key.replace(".", "__"): "1"})[key][:2] == ("DX108", "flag")


def test_default_call_options_are_checked_as_those_of_an_operator_are(folder: Path) -> None:
    (folder / "dspex.toml").write_text(
        '[defaults.call]\ntimeot = "1s"\ntimeout = "0s"\norder = "random"\npool = "none"\nlm = "big, local"\n'
        "retry = { attempts = 0 }\nconfig = { temprature = 1.0 }\n"
    )
    found = problems()
    assert found["defaults.call.timeot"] == ("DX104", "dspex.toml:2", "did you mean defaults.call.timeout?")
    assert found["defaults.call.timeout"][:2] == ("DX102", "dspex.toml:3")
    assert found["defaults.call.order"][:2] == ("DX105", "dspex.toml:4")
    assert found["defaults.call.retry.attempts"][:2] == ("DX105", "dspex.toml:7")
    assert found["defaults.call.config.temprature"][:1] == ("DX104",)
    (folder / "dspex.toml").write_text('[defaults.call]\npool = "gpu"\nlm = "big, local"\n')
    found = problems()
    assert found["defaults.call.pool"][:2] == ("DX133", "dspex.toml:2")
    assert found["defaults.call.lm"][:2] == ("DX111", "dspex.toml:3")


def test_a_pool_with_more_gpus_than_devices_is_refused(folder: Path) -> None:
    (folder / "dspex.toml").write_text("[pools.gpu]\ngpus = 1\n")
    assert problems()["pools.gpu"][:2] == ("DX105", "dspex.toml:2")


def test_an_unknown_profile_is_named_with_the_nearest(folder: Path) -> None:
    (folder / "dspex.toml").write_text('[lm.main]\nmodel = "a/b"\n[pools.x]\nlm = "mian"\n')
    assert problems()["pools.x.lm"] == ("DX111", "dspex.toml:4", "did you mean 'main'?")
    (folder / "dspex.toml").write_text('[lm.main]\nmodel = "a/b"\n[pools.x]\nlms = ["main", "mian"]\n')
    assert problems()["pools.x.lms"] == ("DX111", "dspex.toml:4", "did you mean 'main'?")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[lm.main]\nmodel = "a/b"\napi_key = "sk-SECRET"\n', "lm.main.api_key"),
        ('[lm.main]\nmodel = "a/b"\nkey = "sk-SECRET"\n', "lm.main.key"),
        ('[lm.main]\nmodel = "a/b"\nparams = { api_key = "sk-SECRET" }\n', "lm.main.params.api_key"),
        ('[server]\npassword = "sk-SECRET"\n', "server.password"),
        ('[server]\ntoken = "sk-SECRET"\n', "server.token"),
        ('[server]\nurl = "nats://u:sk-SECRET@h:4222"\n', "server.url"),
        ('[server]\nurl = "u:sk-SECRET@h:4222"\n', "server.url"),
        ('[server]\nurl = "nats://h:4222, nats://u:sk-SECRET@h2"\n', "server.url"),
        ('[server]\nurl = "nats://sk-SECRET@h:4222"\n', "server.url"),
        ('[lm.main]\nmodel = "a/b"\nbase_url = "https://u:sk-SECRET@h/v1"\n', "lm.main.base_url"),
        ('[lm.main]\nmodel = "a/b"\nparams = { proxy = "http://u:sk-SECRET@h" }\n', "lm.main.params.proxy"),
        ('[pools.a.env]\nDATABASE = "postgres://u:sk-SECRET@db/x"\n', "pools.a.env.DATABASE"),
        ('[pools.a.env]\nDSN = "https://sk-SECRET@sentry.example/1"\n', "pools.a.env.DSN"),
        ('[pools.a.env]\nOPENAI_API_KEY = "sk-SECRET"\n', "pools.a.env.OPENAI_API_KEY"),
        ('[pools.a.env]\nDATABASE = "postgres://u:a,sk-SECRET@db/x"\n', "pools.a.env.DATABASE"),
        ('[pools.a.env]\nDATABASE = "host=db user=u password=sk-SECRET"\n', "pools.a.env.DATABASE"),
        ('[lm.main]\nmodel = "a/b"\nbase_url = "https://u:sk-SECRET[x@h/v1"\n', "lm.main.base_url"),
        (
            '[lm.main]\nmodel = "a/b"\nparams.extra_headers.Authorization = "Bearer sk-SECRET"\n',
            "lm.main.params.extra_headers.Authorization",
        ),
        ('[lm.main]\nmodel = "a/b"\nparams.extra_headers.X-Api-Key = "sk-SECRET"\n', "lm.main.params.extra_headers.X-Api-Key"),
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(folder: Path, text: str, key: str) -> None:
    (folder / "dspex.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    assert {(p.code, p.node) for p in caught.value.problems} == {("DX110", key)}
    assert "sk-SECRET" not in repr(caught.value.problems) + str(caught.value)


def test_a_limit_of_tokens_that_is_misspelt_is_no_secret(folder: Path) -> None:
    (folder / "dspex.toml").write_text('[lm.main]\nmodel = "a/b"\nlimits = { token = "200k/min" }\n')
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    (problem,) = caught.value.problems
    assert (problem.code, problem.node) == ("DX104", "lm.main.limits.token")
    assert "tokens" in problem.fix


def test_a_password_in_a_variables_url_reaches_the_login_but_no_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nats://ann:s3cret@h1:4222,nats://h2:4222")
    settings = Settings.load()
    assert settings.server.url == "nats://h1:4222,nats://h2:4222"
    assert settings.server.login() == {"user": "ann", "password": "s3cret"}
    assert "s3cret" not in settings.to_json() + repr(settings) + json.dumps(settings.values())


@pytest.mark.parametrize("variable", ["NATS_URL", "DSPEX_SERVER__URL"])
@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("nats://h1,nats://ann:s3cret@h2", {"user": "ann", "password": "s3cret"}),
        ("ann:s3cret@h1:4222,ann:s3cret@h2:4222", {"user": "ann", "password": "s3cret"}),
        ("nats://s3cret@h1", {"token": "s3cret"}),
    ],
)
def test_a_login_in_any_of_a_variables_urls_reaches_the_server_and_nobody_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str, url: str, login: dict[str, str]
) -> None:
    monkeypatch.setenv(variable, url)
    settings = Settings.load()
    assert settings.server.login() == login
    assert "s3cret" not in settings.to_json() + repr(settings) + json.dumps(settings.values())
    assert "@" not in str(settings.server.url)


def test_urls_with_two_logins_are_refused_without_showing_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", "nats://ann:s3cret@h1,nats://bob:s3cret@h2")
    with pytest.raises(ConfigError, match="different logins") as caught:
        Settings.load()
    assert "s3cret" not in str(caught.value)


def test_a_missing_password_variable_is_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match="NATS_PW") as caught:
        Settings.load(server__user="ann", server__password_env="NATS_PW").server.login()
    assert caught.value.code == "DX112"


def test_a_nats_context_ranks_just_below_the_layer_that_names_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = tmp_path / "config/nats/context"
    contexts.mkdir(parents=True)
    (contexts / "prod.json").write_text(json.dumps({"url": "nats://prod:1", "user": "bob", "password": "s3cret"}))
    monkeypatch.setenv("NATS_URL", "nats://env:1")
    settings = Settings.load(server__context="prod")
    assert settings.server.url == "nats://prod:1"
    assert settings.origins()["server.url"] == "context prod"
    assert settings.server.login() == {"user": "bob", "password": "s3cret"}
    assert "s3cret" not in settings.to_json()
    monkeypatch.setenv("NATS_CONTEXT", "prod")
    assert Settings.load().server.url == "nats://env:1"
    with pytest.raises(ConfigError, match="no nats context 'none'"):
        Settings.load(server__context="none")


def test_settings_arrive_unchanged_in_a_child_process(folder: Path) -> None:
    (folder / "dspex.toml").write_text(FULL)
    settings = Settings.load(engine__heartbeat="9s")
    again = Settings.from_json(settings.to_json())
    assert again == settings
    assert again.origins() == settings.origins()
    assert again.root == settings.root


@pytest.mark.parametrize(("text", "what"), [("app = ", "not TOML"), (None, "cannot read")])
def test_a_file_that_cannot_be_read_is_a_clear_error(folder: Path, text: str | None, what: str) -> None:
    if text is not None:
        (folder / "x.toml").write_text(text)
    with pytest.raises(ConfigError, match=what) as caught:
        Settings.load(folder / "x.toml")
    assert caught.value.code == "DX106"


def test_several_model_profiles_without_one_named_main_require_a_choice(folder: Path) -> None:
    (folder / "dspex.toml").write_text('[lm]\na = { model = "x/a" }\nb = { model = "x/b" }\n')
    with pytest.raises(ConfigError, match="there are several: a, b"):
        Settings.load().lm_of("lightweight")


def test_a_name_in_a_multi_line_text_moves_no_line_number(folder: Path) -> None:
    (folder / "dspex.toml").write_text('[pools.a]\npython = """\nsize = = 3\n"""\nsize = 0.5\n')
    assert problems()["pools.a.size"][:2] == ("DX105", "dspex.toml:5")


@pytest.mark.parametrize("inner", ["[0, 0],", '["lm"],', '"lm = 1",', '["x"]  # ]', "[{ lm = 1 }],"])
def test_a_list_of_several_lines_moves_no_line_number_and_is_no_error(folder: Path, inner: str) -> None:
    text = f'[pools.a]\nprograms = [\n{inner}\n]\nsize = 0.5\n[lm]\na = {{ model = "x/a" }}\n'
    (folder / "dspex.toml").write_text(text)
    assert problems()["pools.a.size"][:2] == ("DX105", "dspex.toml:5")


@pytest.mark.parametrize(
    "given",
    [
        {"pools": {"x": {"scale": {}}}},
        {"telemetry": {"redact": ["a:b:c"]}},
        {"pools": {"lightweight": {"lm": "nope"}}},
        {"engine": 3},
    ],
    ids=str,
)
def test_settings_made_in_python_raise_the_errors_of_loaded_ones(folder: Path, given: dict[str, Any]) -> None:
    found = []
    for make in (Settings, Settings.load):
        with pytest.raises(ConfigError) as caught:
            make(**given)
        found.append([(p.node, p.code, p.message, p.fix) for p in caught.value.problems])
    assert found[0] == found[1]
    assert len(found[0]) == 1


def test_a_variable_with_one_underscore_between_levels_suggests_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPEX_ENGINE_HEARTBEAT", "9s")
    assert problems()["engine_heartbeat"] == ("DX104", "env DSPEX_ENGINE_HEARTBEAT", "did you mean DSPEX_ENGINE__HEARTBEAT?")


@pytest.mark.parametrize("prefix", ["INBOX", "_INBOX.a", "_INBOX>", "_INBOX a", "mine", ""])
def test_an_inbox_prefix_is_one_token_that_no_sink_can_have(folder: Path, prefix: str) -> None:
    assert Settings.load(server__inbox_prefix="_INBOX_worker-1").server.inbox_prefix == "_INBOX_worker-1"
    with pytest.raises(ConfigError, match="inbox_prefix"):
        Settings.load(server__inbox_prefix=prefix)

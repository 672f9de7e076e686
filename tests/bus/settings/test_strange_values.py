"""Values of settings that are none, whatever they are: a ConfigError says so, and shows no password."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspex.bus.errors import ConfigError
from dspex.bus.settings.model import Settings

pytestmark = pytest.mark.usefixtures("no_settings")
FILES = {
    "nested": "app = " + "[" * 5000,
    "nested tables": "app = " + "{a=" * 5000,
    "a number of thousands of digits": "[pools.a]\nsize = " + "9" * 5000,
    "a size beyond all numbers": '[pools.a]\nmemory = "' + "9" * 400 + '"',
    "a duration beyond all numbers": '[engine]\nheartbeat = "' + "9" * 400 + '"',
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_a_file_of_strange_values_is_refused_as_a_wrong_setting(tmp_path: Path, text: str) -> None:
    (tmp_path / "dspex.toml").write_text(text)
    with pytest.raises(ConfigError) as e:
        Settings.load(tmp_path)
    assert len(e.value.message) < 1000


MODEL = '[lm.a]\nmodel = "openai/x"\n'
POOL = "[pools.a]\ngpus = 1\ndevices = [0]\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (POOL + 'env = {"A=B" = "c"}', "no process can be given the variable"),
        (POOL + 'env = {"" = "c"}', "no process can be given the variable"),
        (POOL + 'env = {A = "b\\u0000c"}', "no process can be given the variable"),
        (POOL + 'env = {CUDA_VISIBLE_DEVICES = "1"}', "has no effect here"),
        (POOL + "cpu = inf", "finite"),
        ('[lm.a]\nmodel = "openai/x"\nprice = { input = inf }', "finite"),
        *((f"[http]\nsubjects = ['{one}']", "is no subject") for one in ("a b", "a..b", ".a", "$JS.API.INFO", "_INBOX.a")),
        ("[http]\nsubjects = ['dspex.bank.log.>']", "of dspex's own"),
        ("[http.hooks.a]\nscheme = 'slack'\nsecret_env = 'S'\nsubject = 'a.*'", "is no subject"),
        ("[calls.a]\ntoken_env = 'T'\nsubjects = ['a b']", "is no subject"),
        *((f"[http]\ncalls.a = '{one}'", "neither a signature nor a node") for one in ("a", "a/", "a b/c", "m:f")),
        ("[calls.a]\ntoken_env = 'T'\n[calls.b]\ntoken_env = 'NEW,T'", "is that of calls.a, too"),
        ("[pools.a]\ngpus = 1\ndevices = [1000000000]", "number of a GPU of one machine"),
        ("[http]\nbind = '127.0.0.1:9464'\n[telemetry]\nmetrics = ':9464'", "is the address of http.bind, too"),
        ("[server.local]\nport = 9464\n[telemetry]\nmetrics = ':9464'", "is the address of telemetry.metrics, too"),
        ("[engine]\nheartbeat = '10s'\nstall_after = '5s'", "shorter than engine.heartbeat"),
        ("[defaults.call]\ntimeout = '5s'\nfirst_token_timeout = '6s'", "longer than defaults.call.timeout"),
        ("[defaults.call.retry]\nfactor = inf", "finite"),
        ("[defaults.call.retry]\nfactor = 1e300", "too much"),
        *((f"[pools.a]\n{name} = {10**9}", "too much") for name in ("size", "slots", "threads", "cpu", "scale.max")),
        *((f'[pools.a]\nprograms = ["{one}"]', "names no program") for one in ("", "a", "a:", ":b", "a:b:c", "a b:*")),
        ('[pools.a]\nmemory = "1MiB"', "too little"),
        ('[engine]\nmax_bytes = "1KB"', "too little"),
        *(
            (f"[{name} = 0.0001", "less than a millisecond")
            for name in ("engine]\nheartbeat", "lm.a]\nmodel = 'x/y'\nbatch.poll")
        ),
        ("[pools.a]\nsize = 5\nscale = { max = 2 }", "more than scale.max"),
        ("[pools.a]\nslots = 2\n[defaults.call]\ncost = 3", "no worker has more than 2"),
        ('[pools.a]\ntimeout = "1h"\n[defaults.call]\ndeadline = "1m"', "longer than defaults.call.deadline"),
        ('[defaults.call.retry]\nbackoff = "10m"\ncap = "1m"', "longer than cap"),
        ('[pools."a b"]', "cannot be part of a subject"),
        ('[lm.""]\nmodel = "openai/x"', "is no name"),
        ('[budgets.a]\ntokens = 0.5\nper = "day"', "no call would ever be made"),
        *((f'[lm.a]\nmodel = "{model}"', "names no model") for model in ("", "openai/", "gpt 4")),
        *((MODEL + f'base_url = "{url}"', "no address") for url in ("", "localhost:8000", "ftp://h", "http://", "http://h:x")),
        (MODEL + 'limits.requests = "0.5/min"', "no call would ever be made"),
        (MODEL + "params.stream = true", "stream is no parameter of a model here"),
        *(
            (MODEL + f"params.{name} = 1", "is no parameter")
            for name in ("model", "messages", "timeout", "cache", "num_retries")
        ),
        (MODEL + "params.n = 2", "answers paid for that nobody reads"),
        *((MODEL + f"params.{value}", "JSON cannot hold") for value in ("temperature = nan", "x = inf", "x.y = [-inf]")),
        *(
            (MODEL + f"params.{value}", "will not do")
            for value in ("temperature = -1", "max_tokens = 0", "top_p = 'high'", "stop = ''")
        ),
    ],
)
def test_what_cannot_work_is_refused_before_a_pool_starts_and_the_error_says_what_to_do(
    tmp_path: Path, text: str, why: str
) -> None:
    (tmp_path / "dspex.toml").write_text(text)
    with pytest.raises(ConfigError, match=why) as e:
        Settings.load(tmp_path)
    assert e.value.fix
    assert "dspex.toml" in str(e.value)


@pytest.mark.parametrize(
    "text",
    [
        "[http]\nbind = '127.0.0.1:9464'\n[telemetry]\nmetrics = '127.0.0.2:9464'",
        "[telemetry]\nmetrics = ':8080'",  # the default of http.bind, which need not be served
        "[http]\nsubjects = ['orders.new', 'a.*.b', '>']\ncalls = { a = 'text -> lang', b = 'shop/draft' }",
        "[calls.a]\ntoken_env = 'T'\nsubjects = ['*']",
    ],
)
def test_what_goes_together_is_taken(tmp_path: Path, text: str) -> None:
    (tmp_path / "dspex.toml").write_text(text)
    assert Settings.load(tmp_path).root == tmp_path


@pytest.mark.parametrize("text", [b'app = "\xed\xa0\x80"', b'app = "\xe4"', 'app = "a"'.encode("utf-16"), b'app = "\\ud800"'])
def test_a_file_that_is_no_unicode_text_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "dspex.toml").write_bytes(text)
    (tmp_path / "pyproject.toml").write_bytes(text)  # looked at in the folder below, and not ours
    with pytest.raises(ConfigError) as e:
        Settings.load(tmp_path)
    assert (e.value.code, e.value.fix) == (
        "DX106",
        "correct the line that the message names" if b"\\" in text else "save it as UTF-8",
    )
    (tmp_path / "dspex.toml").unlink()
    assert Settings.load(tmp_path).root == tmp_path


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DSPEX_APP", "\udce4"),  # a byte that is not UTF-8, as Python has it
        ("DSPEX_TOPOLOGIES", '["\\ud800"]'),
        ("DSPEX_POOLS__GPU__ENV", '{"\\ud800": "x"}'),
        ("NATS_URL", "nats://u:ss-word@h\udce4"),
    ],
)
def test_a_variable_that_is_no_unicode_text_is_refused_without_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as e:
        Settings.load(tmp_path)
    assert (e.value.code, e.value.fix) == ("DX105", "write it in UTF-8")
    assert "ss-word" not in e.value.message
    assert e.value.message.isascii()


@pytest.mark.parametrize("value", ["[" * 5000, '{"a": ' + "9" * 5000 + "}"], ids=["nested", "digits"])
def test_a_variable_of_strange_json_is_refused_as_a_wrong_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("DSPEX_POOLS__GPU__ENV", value)
    with pytest.raises(ConfigError) as e:
        Settings.load(tmp_path)
    assert len(e.value.message) < 1000


@pytest.mark.parametrize("variable", ["NATS_URL", "DSPEX_SERVER__URL"])
@pytest.mark.parametrize(
    "url",
    [
        "nats://user:pa]ss-word@host",
        "nats://[::1",
        "nats://u:ss-word@ho\uff03st",
        "nats://u:ss-word,x@h",
        "nats://u:ss-word#x@h",
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, url: str
) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(ConfigError) as e:
        Settings.load(tmp_path)
    assert e.value.code == "DX105"
    assert "ss-word" not in e.value.message


def test_a_url_on_the_command_line_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.url"):
        Settings.load(tmp_path, server__url="nats://[::1")


@pytest.mark.parametrize("data", ["[1]", "[" * 5000, "7"])
def test_a_nats_context_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "nats" / "context" / "one.json"
    file.parent.mkdir(parents=True)
    file.write_text(data)
    with pytest.raises(ConfigError) as e:
        Settings.load(tmp_path, server__context="one")
    assert e.value.code == "DX107"


def test_a_variable_says_how_many_replicas_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPEX_SERVER__REPLICAS", "3")
    assert Settings.load(tmp_path).server.replicas == 3

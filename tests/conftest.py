"""Fixtures that every room may use: a real NATS server, and unique names on it."""

from __future__ import annotations

import gc
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import threading
import uuid
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import coverage
import hypothesis
import pytest
import pytest_asyncio

# A suite that a shell runs in the background inherits SIGINT as ignored, and so would every process that it starts: the
# tests that send it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How many cases a property is tried on: few in the suite, which everybody runs; many in scripts/fidelity (nightly).
_QUIET = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
hypothesis.settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True, suppress_health_check=_QUIET)
hypothesis.settings.register_profile("nightly", max_examples=20_000, deadline=None, suppress_health_check=_QUIET)
_PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
hypothesis.settings.load_profile(_PROFILE)
_LONG = 7200  # seconds for all cases of a property in a nightly run


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "measured_processes: coverage measures the processes that the test starts, too")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Collecting makes a million objects that stay: the garbage collector looks at them neither now nor in any test.

    Nor does it look for garbage after every 700 objects that a test makes, which would be a tenth of what the tests cost.
    """
    gc.disable()
    yield
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Properties are not measured: tracing makes them three times as long, and examples run over the same lines.

    TEST_ORDER=SEED: the tests of each file in another order, as several processes may take them.
    """
    if seed := os.environ.get("TEST_ORDER"):
        files = [list(tests) for _, tests in itertools.groupby(items, key=lambda item: item.path)]
        items[:] = [test for tests in files for test in random.Random(seed).sample(tests, len(tests))]
    for item in items:
        if hypothesis.is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.no_cover)
            if _PROFILE == "nightly":
                item.add_marker(pytest.mark.timeout(_LONG))


_LEFT_OUT = pytest.StashKey[int]()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Count what scripts/test leaves out. A process of pytest-xdist tells the one that started it, which does not see them."""
    config = items[0].config
    if config.option.markexpr == "not long":
        config.stash[_LEFT_OUT] = found = sum(bool(item.get_closest_marker("long")) for item in items)
        getattr(config, "workeroutput", {})["long"] = found


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if found := getattr(node, "workeroutput", {}).get("long"):  # none where it has crashed
        node.config.stash[_LEFT_OUT] = found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if found := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(f"{found} long tests were left out: scripts/test --long runs them too")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """End what already measures a process of pytest-xdist: pytest-cov, which is about to begin there, would be the second to
    trace every line, and where it pauses (no_cover) the first would go on."""
    if hasattr(session.config, "workerinput"):
        while (early := coverage.Coverage.current()) is not None:
            early.stop()


@pytest.fixture(autouse="COVERAGE_PROCESS_CONFIG" in os.environ)  # set by --cov
def _few_processes_are_measured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coverage costs half a second of CPU in each process, and the suite starts hundreds: most run without it.

    Measured are those of tests that are marked for it (unless coverage pauses for the test), and the pools that the tests of a
    file share, which are started before this.
    """
    marker = request.node.get_closest_marker
    if marker("no_cover") or not marker("measured_processes"):
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


CONFIG = """
listen: "127.0.0.1:-1"
http: "127.0.0.1:-1"
jetstream {{ store_dir: "{store}", max_file: 8796093022208 }}
feature_flags {{ js_ack_fc_v2: false }}
"""


class Nats:
    """A real nats-server with its store in `folder`, on ports that it picks itself. `stop` it. `monitor`: where it tells about
    itself.
    """

    def __init__(self, folder: Path, config: str = CONFIG) -> None:
        file = folder / "nats.conf"
        file.write_text(config.format(store=folder / "js"))
        binary = Path(sys.executable).parent / "nats-server"
        # of what it keeps for tests, a tenth of a gibibyte more costs less than to look for garbage
        env = {**os.environ, "GOGC": "400"}
        self.process = subprocess.Popen([binary, "-c", file], stderr=subprocess.PIPE, text=True, env=env)
        self.monitor = ""
        self.url = self._ready()
        # the pipe has to be emptied for as long as the server lives, or it would stop at a full one
        self._rest = threading.Thread(target=self.process.communicate, daemon=True)
        self._rest.start()

    def _ready(self) -> str:
        assert self.process.stderr is not None
        url, log = "", []
        for line in self.process.stderr:
            log.append(line)
            if found := re.search(r"client connections on (\S+)", line):
                url = f"nats://{found[1]}"
            if found := re.search(r"http monitor on (\S+)", line):
                self.monitor = f"http://{found[1]}"
            if "Server is ready" in line:
                return url
        raise RuntimeError("nats-server did not start:\n" + "".join(log))

    def stop(self) -> None:
        self.process.terminate()
        self._rest.join(60)


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    """A real nats-server with JetStream, one for the whole test session: use unique names on it."""
    server = Nats(tmp_path_factory.mktemp("nats"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def nats_url(nats_server: Nats) -> str:
    """The URL of that server."""
    return nats_server.url


@pytest.fixture
def unique() -> str:
    """A name that no other test has: for streams, subjects, buckets, consumers."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest_asyncio.fixture
async def model() -> AsyncIterator[Any]:
    """A stand-in for a language model's server."""
    import standin  # here: most tests need no model

    async with standin.StandIn() as server:
        yield server


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which nothing is set for dspex."""
    for name in [n for n in os.environ if n.startswith(("NATS_", "DSPEX_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def dspy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The installed DSPy, quiet, and with its cache in a folder of the test's."""
    os.environ.setdefault("DSPY_CACHEDIR", str(tmp_path_factory.mktemp("dspy")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("dspy")

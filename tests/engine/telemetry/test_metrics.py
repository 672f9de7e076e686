"""Metrics, as a collector gets them and as Prometheus reads them."""

from __future__ import annotations

import re
import signal
import urllib.request
from pathlib import Path

import pytest
from cli_bench import NATIVE, Project
from collector import Collector
from waiting import eventually

from dspex.bus import telemetry
from dspex.bus.errors import ConfigError
from dspex.bus.local.launch import free_port
from dspex.engine.telemetry.exporting import exporting

RUN = 'topologies = ["native.yaml"]\nserver.local = { port = -1 }\n'


def written(folder: Path, unique: str, more: str = "", **env: str) -> Project:
    made = Project(folder, unique, RUN + more, **env)
    made.write("native.yaml", NATIVE.format(u=unique))
    return made


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def test_prometheus_reads_how_stages_are_and_what_was_given_up(tmp_path: Path, unique: str) -> None:
    port = free_port(None)
    project = written(tmp_path, unique, f'telemetry.metrics = "127.0.0.1:{port}"\n')
    with project.start("run", "--pools", "none") as run:
        run.until("ready in")
        assert project.publish("text=hello").code == 0
        assert project.publish("text=x").code == 1  # too short
        read_to_the_end = re.compile(r'^dspex_stage_lag\{.*topology="native".* 0\.0$', re.MULTILINE)
        text = eventually(lambda: found if read_to_the_end.search(found := scraped(port)) else None)
        assert run.end(signal.SIGTERM) == 0
    labels = 'topology="native"'
    assert 'dspex_dead_letters_total{node="check"' in text
    assert any(line.startswith("dspex_stage_commits_total{") and labels in line for line in text.splitlines())


def test_a_port_that_is_taken_is_said_before_anything_runs(tmp_path: Path, unique: str) -> None:
    with Collector() as other:
        project = written(tmp_path, unique)
        found = project.dspex("--json", "run", "--pools", "none", "--metrics", other.url.removeprefix("http://"))
    assert found.code == 2
    assert (found.error()["code"], found.error()["node"]) == ("DX105", "telemetry.metrics")


@pytest.mark.parametrize("address", [":x", ":70000", "host:", ":0"])
def test_what_is_no_address_is_refused(tmp_path: Path, unique: str, address: str) -> None:
    project = written(tmp_path, unique, f'telemetry.metrics = "{address}"\n')
    assert project.here("--json", "config", "show").error()["code"] == "DX105"


def test_nothing_listens_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    before = telemetry.listeners
    with exporting("app", "engine", "one", None) as exported:
        assert telemetry.listeners == before
        assert not exported.metrics


def test_an_exporter_that_is_switched_off_by_opentelemetrys_own_variables_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    for name, value in (("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            patch.setenv("OTEL_METRICS_EXPORTER", "none")
            with exporting("app", "engine", "one", None):
                assert not telemetry.listeners


@pytest.mark.long
def test_metrics_are_pushed_to_a_collector(tmp_path: Path, unique: str) -> None:
    with Collector() as collector:
        project = written(tmp_path, unique, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_METRIC_EXPORT_INTERVAL="500")
        with project.start("run", "--pools", "none") as run:
            run.until("ready in")
            assert project.publish("text=hello").code == 0
            assert run.end(signal.SIGTERM) == 0
    assert sum(point.as_int for point in collector.metrics["messaging.client.sent.messages"]) == 1
    assert collector.metrics["messaging.process.duration"][0].count >= 1


def test_where_opentelemetry_is_not_installed_it_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError) as refused, exporting("app", "engine", "one", "127.0.0.1:1"):
        raise AssertionError("it began")
    assert (refused.value.code, "dspex[otel]" in refused.value.fix) == ("DX109", True)

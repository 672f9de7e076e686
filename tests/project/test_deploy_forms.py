"""The files of deploy/ and docker-compose.yml have the form that their readers ask for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

compose_spec = pytest.importorskip("compose_spec")
pytestmark = pytest.mark.no_cover  # it runs none of our code
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_the_compose_file_is_what_the_compose_specification_says() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    described = compose_spec.PyCompose.from_json(json.dumps(yaml.safe_load(text))).to_spec()
    assert set(described.services) == set(SERVICES)
    misspelt = yaml.safe_load(text)
    misspelt["services"]["engine"]["healthcheck"]["intervall"] = "3s"
    with pytest.raises(ValueError, match="intervall"):  # so it would be seen
        compose_spec.PyCompose.from_json(json.dumps(misspelt))


def test_the_linter_of_dockerfiles_has_nothing_to_say() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_scripts_of_containers_are_shell_that_parses() -> None:
    for name in ("entrypoint.sh", "make_secrets", "make_users"):
        done = subprocess.run(["sh", "-n", DEPLOY / name], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), name


def test_what_engines_and_pools_tell_reaches_the_dashboard() -> None:
    """They send to the collector, Prometheus reads what that exports, and Grafana asks Prometheus."""
    collector, prometheus, sources = (
        yaml.safe_load((DEPLOY / "monitoring" / f"{name}.yaml").read_text())
        for name in ("collector", "prometheus", "datasources")
    )
    (told,) = {SERVICES[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] for name in ("engine", "pool")}
    listens = collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert told == f"http://collector:{listens.rpartition(':')[2]}"
    exported = collector["exporters"]["prometheus"]["endpoint"].rpartition(":")[2]
    assert prometheus["scrape_configs"][0]["static_configs"] == [{"targets": [f"collector:{exported}"]}]
    assert [source["url"] for source in sources["datasources"]] == ["http://prometheus:9090"]
    for kind, pipeline in collector["service"]["pipelines"].items():
        for part, names in pipeline.items():
            assert set(names) <= set(collector[part]), (kind, part)
    assert "alerts.yaml" in prometheus["rule_files"]
    (board,) = yaml.safe_load((DEPLOY / "monitoring/dashboards.yaml").read_text())["providers"]
    assert any(f":{board['options']['path']}/" in mount for mount in SERVICES["grafana"]["volumes"])

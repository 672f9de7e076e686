"""The Helm chart: rendered by Helm itself, held against the schemas of Kubernetes, and against what dspex knows of itself."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from dspex.bus import subjects
from dspex.bus.settings.model import Settings
from dspex.engine.cli import app as cli
from dspex.engine.cli.terminal.terminal import Terminal

helm = pytest.importorskip("helm_python", reason="Helm's own package for Python is for Linux on x86-64")
kubernetes = pytest.importorskip("kubernetes_validate")
ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/dspex"
VERSIONS = ("1.29", "1.34")  # of Kubernetes
POOL = {"user": "worker", "passwordSecret": {"name": "gpu", "key": "p"}, "resources": {}, "replicas": 0}
KEDA = {"enabled": True, "bands": [0, 1, 2]}
EVERYTHING = {
    "otlpEndpoint": "http://collector:4318",
    "tlsSecret": "nats-ca",
    "engine": {"envFrom": [{"secretRef": {"name": "models"}}]},
    "pools": {"lightweight": {"keda": KEDA}, "gpu": POOL},
}


def rendered(values: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """What `helm template shop` gives: by kind and name."""
    with helm.Chart.load(str(CHART)) as chart:
        texts = chart.render(dict(values), name="shop", namespace="prod")
    found = [one for text in texts.values() for one in yaml.safe_load_all(text) if one]
    assert len({(one["kind"], one["metadata"]["name"]) for one in found}) == len(found)
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def deployments(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name.removeprefix("shop-"): one for (kind, name), one in rendered(values).items() if kind == "Deployment"}


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["as it comes", "with all that can be said"])
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_what_the_chart_gives(values: Mapping[str, Any], version: str) -> None:
    for (kind, _), one in rendered(values).items():
        if kind != "ScaledObject":  # which is KEDA's
            kubernetes.validate(one, version, strict=True)


def test_each_part_has_its_settings_and_only_one_pod_of_it_goes_at_a_time() -> None:
    found = rendered(EVERYTHING)
    parts = {"shop-engine", "shop-gateway", "shop-pool-lightweight", "shop-pool-gpu"}
    for kind in ("Deployment", "ConfigMap", "PodDisruptionBudget"):
        assert {name for of, name in found if of == kind} == parts
    for name in parts:
        labels = found["Deployment", name]["spec"]["selector"]["matchLabels"]
        assert found["Deployment", name]["spec"]["template"]["metadata"]["labels"] == labels
        budget = found["PodDisruptionBudget", name]["spec"]
        assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": labels}}
        (settings,) = [
            one["configMap"]["name"]
            for one in found["Deployment", name]["spec"]["template"]["spec"]["volumes"]
            if "configMap" in one
        ]
        assert settings == name
    assert (
        found["Service", "shop-gateway"]["spec"]["selector"]
        == (found["Deployment", "shop-gateway"]["spec"]["selector"]["matchLabels"])
    )


def test_no_pod_is_root_or_writes_anywhere_but_in_a_folder_for_what_is_passing() -> None:
    for name, one in deployments(EVERYTHING).items():
        pod = one["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False), name
        assert pod["enableServiceLinks"] is False  # DSPEX_GATEWAY_PORT is no setting
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert [one["mountPath"] for one in container["volumeMounts"] if not one.get("readOnly")] == ["/tmp"]


def test_secrets_are_named_and_never_written_down() -> None:
    for one in deployments(EVERYTHING).values():
        (container,) = one["spec"]["template"]["spec"]["containers"]
        env = {variable["name"]: variable for variable in container["env"]}
        assert "value" not in env["NATS_PASSWORD"]
        assert set(env["NATS_PASSWORD"]["valueFrom"]) == {"secretKeyRef"}
        plain = {name for name, variable in env.items() if "value" in variable}
        assert plain == {"DSPEX_SERVER__USER", "DSPEX_SERVER__INBOX_PREFIX", "OTEL_EXPORTER_OTLP_ENDPOINT"}


def test_engines_and_gateways_are_asked_whether_they_make_progress() -> None:
    for name in ("engine", "gateway"):
        (container,) = deployments({})[name]["spec"]["template"]["spec"]["containers"]
        paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
        assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
        assert container["ports"] == [{"name": "http", "containerPort": 8080}]


def test_pools_are_asked_as_in_the_compose_file_whether_they_make_progress() -> None:
    pool = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["pool"]
    asked = pool["healthcheck"]["test"][1:]
    for name in ("pool-lightweight", "pool-gpu"):
        (container,) = deployments(EVERYTHING)[name]["spec"]["template"]["spec"]["containers"]
        assert [container[f"{probe}Probe"]["exec"]["command"] for probe in ("startup", "liveness")] == [asked, asked]
        assert container["args"][-2:] == pool["command"][-2:] == ["--alive", "/tmp/alive"]


def test_the_commands_of_the_chart_are_verbs_with_options_that_exist() -> None:
    app = typer.main.get_command(cli.assemble(Terminal()))
    for one in deployments(EVERYTHING).values():
        (container,) = one["spec"]["template"]["spec"]["containers"]
        program, verb, *rest = container["args"]
        known = {option for parameter in app.get_command(None, verb).params for option in parameter.opts}  # type: ignore[attr-defined]
        assert program == "dspex"
        assert {word for word in rest if word.startswith("--")} <= known


def test_the_settings_of_the_chart_are_settings(no_settings: None, tmp_path: Path) -> None:
    loaded = {}
    for (kind, name), one in rendered({}).items():
        if kind == "ConfigMap":
            (tmp_path / "dspex.toml").write_text(one["data"]["dspex.toml"])
            loaded[name] = Settings.load(tmp_path / "dspex.toml")
    assert {settings.app for settings in loaded.values()} == {"support"}
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(loaded["shop-engine"].pools) == set(values["pools"])
    assert loaded["shop-gateway"].http.bind == ":8080"


def test_a_pool_is_scaled_by_the_requests_that_no_worker_has_taken() -> None:
    scaled = rendered(EVERYTHING)["ScaledObject", "shop-pool-lightweight"]["spec"]
    assert scaled["scaleTargetRef"] == {"name": "shop-pool-lightweight"}
    triggers = [trigger["metadata"] for trigger in scaled["triggers"]]
    assert {trigger["stream"] for trigger in triggers} == {subjects.stream("support")}
    consumers = {subjects.work_consumer("lightweight", band) for band in map(str, range(3))}
    assert {trigger["consumer"] for trigger in triggers} == consumers
    assert "replicas" not in deployments(EVERYTHING)["pool-lightweight"]["spec"]  # or each upgrade would set it back
    assert deployments({})["pool-lightweight"]["spec"]["replicas"] == 1


@pytest.mark.parametrize(
    "values",
    [
        {"engin": {}},
        {"engine": {"replica": 2}},
        {"engine": {"replicas": 0}},
        {"pools": {"lightweight": {"keda": {"enabled": True, "lags": 3}}}},
        {"pools": {"Big": POOL}},
        {"gateway": {"service": {"type": "Loadbalancer"}}},
    ],
    ids=json.dumps,
)
def test_a_value_that_there_is_not_is_refused(values: Mapping[str, Any]) -> None:
    with pytest.raises(helm.HelmValuesError):
        rendered(values)


def test_the_chart_has_the_version_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (project["version"], project["version"])

"""docker-compose.yml and what it mounts. No Docker engine is needed: the files are held against each other."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from cli_bench import in_this_process

from dspex.bus.local.launch import find_binary
from dspex.bus.settings.model import Settings
from dspex.engine.cli import app as cli
from dspex.engine.cli.terminal.terminal import Terminal
from dspex.topologies.support_triage import topology

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
NODES = ["nats-1", "nats-2", "nats-3"]
PROCESSES = ["engine", "gateway", "pool"]
MONITORS = {"collector": [], "prometheus": ["monitoring"], "grafana": ["monitoring"]}
PEOPLE = ["caller", "operator", "publisher", "reader"]
ROLE = {name: "worker" if name == "pool" else name for name in (*PROCESSES, *PEOPLE)}
NATS_CONF = DEPLOY / "nats.conf"
USERS = [shlex.split(line) for line in re.findall(r"^user (.*)$", (DEPLOY / "make_users").read_text(), re.M)]
OURS = [*NODES, *PROCESSES, *PEOPLE]
TOKENS = {"SITE_TOKEN": "SITE_TOKEN", "DESK_TOKEN": "DESK_TOKEN"}
PUBLISHED = {"nats-1": ["127.0.0.1:4222:4222"], "gateway": ["127.0.0.1:8080:8080"], "grafana": ["127.0.0.1:3000:3000"]}
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def mounted(name: str) -> dict[str, str]:
    """The secrets of a container, by the name of the file that it sees."""
    pairs = [(s, s) if isinstance(s, str) else (s["target"], s["source"]) for s in SERVICES[name]["secrets"]]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def texts(value: Any) -> Iterator[str]:
    """Every text of a YAML value, also the keys."""
    if isinstance(value, dict):
        yield from (text for pair in value.items() for one in pair for text in texts(one))
    elif isinstance(value, list):
        yield from (text for one in value for text in texts(one))
    else:
        yield str(value)


def test_there_are_three_nodes_two_engines_a_pool_a_gateway_and_a_container_for_each_role_of_a_person() -> None:
    assert sorted(SERVICES) == sorted([*OURS, *MONITORS])
    assert sorted(COMPOSE["volumes"]) == [*NODES, "prometheus"]
    assert SERVICES["engine"]["deploy"] == {"replicas": 2}
    people = {key: ["person"] for key in PEOPLE}
    assert {name: service.get("profiles", []) for name, service in SERVICES.items()} == {
        **{key: [] for key in (*NODES, *PROCESSES)},
        **people,
        **MONITORS,
    }
    for name in (*PROCESSES, *PEOPLE):
        assert sorted(SERVICES[name]["depends_on"]) == NODES


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_mounted_file_exists_and_every_volume_is_declared(name: str) -> None:
    for mount in SERVICES[name]["volumes"]:
        source = mount.split(":")[0]
        assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"], mount
        assert not source.startswith(".") or mount.endswith(":ro"), mount
    assert name in MONITORS or (ROOT / SERVICES[name]["build"]["dockerfile"]).is_file()


# -- what a container may --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_container_is_not_root_and_writes_nowhere_but_in_its_volume_or_in_memory(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == ("65534:65534" if name == "prometheus" else "1000:1000")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"privileged", "cap_add", "network_mode", "pid", "devices"}.isdisjoint(service)
    writable = [mount for mount in service["volumes"] if not mount.endswith(":ro")]
    memory = {"grafana": ["/tmp", "/var/lib/grafana"], **{key: ["/tmp"] for key in (*PROCESSES, *PEOPLE)}}
    kept = {"prometheus": ["prometheus:/prometheus"], **{node: [f"{node}:/data"] for node in NODES}}
    assert (writable, service.get("tmpfs", [])) == (kept.get(name, []), memory.get(name, []))


def test_nothing_but_loopback_ports_for_clients_is_published() -> None:
    assert {name: s["ports"] for name, s in SERVICES.items() if "ports" in s} == PUBLISHED
    assert 'http: "127.0.0.1:8222"' in NATS_CONF.read_text()  # it asks for no login


@pytest.mark.parametrize("name", sorted(MONITORS))
def test_an_image_of_others_has_a_whole_version(name: str) -> None:
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?", SERVICES[name]["image"])


def test_the_page_names_the_images_of_others_as_the_files_do_and_no_other_file_names_any() -> None:
    stated = [*re.findall(r"^FROM (\S+) AS ", DOCKERFILE, re.M), *(SERVICES[name]["image"] for name in MONITORS)]
    images = {image.partition("@")[0] for image in stated}
    (told,) = re.findall(r"^\* \*\*Images\*\* (.*?)\n\n", (ROOT / "docs/operations.md").read_text(), re.M | re.S)
    assert set(re.findall(r"`([\w./-]+:v?[\d.]+[\w.-]*)`", told)) == images
    names = "|".join(re.escape(image.partition(":")[0]) for image in images)
    files = [*(ROOT / "deploy").rglob("*"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    others = [file for file in files if file.is_file() and file.name not in ("Dockerfile", "operations.md")]
    versions = re.compile(rf"(?<![\w./-])({names}):v?\d+\.\d")
    assert [(file.name, versions.findall(file.read_text())) for file in others if versions.search(file.read_text())] == []


@pytest.mark.parametrize("name", OURS)
def test_an_image_is_built_here_upon_one_of_a_whole_version(name: str) -> None:
    stages = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S))
    target = SERVICES[name]["build"]["target"]
    assert SERVICES[name]["image"] == {"nats": "dspex-nats", "dspex": "dspex"}[target]
    assert "\nUSER 1000:1000\n" in stages[target]
    for image in re.findall(r"^FROM (.*) AS ", DOCKERFILE, re.M):
        assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-[\w.-]+(@sha256:[0-9a-f]{64})?", image), image


def test_the_server_image_is_the_version_that_the_tests_run_on() -> None:
    told = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^FROM nats:([\d.]+)-alpine", DOCKERFILE, re.M) == [told.split("v")[-1].strip()]


# -- secrets ---------------------------------------------------------------------------------------------------------
def test_no_secret_stands_in_the_description_of_a_container() -> None:
    """`docker inspect` shows the environment, and so does the shell that gives a variable to Docker."""
    keys = {key for service in SERVICES.values() for key in service.get("environment", ())}
    ours = {"NATS_NAME", "DSPEX_SERVER__USER", "DSPEX_SERVER__INBOX_PREFIX", "OTEL_EXPORTER_OTLP_ENDPOINT"}
    assert keys == {*ours, "GF_SECURITY_ADMIN_PASSWORD__FILE", "GF_ANALYTICS_REPORTING_ENABLED"}
    assert [text for text in texts(COMPOSE) if "$" in text or ("://" in text and "@" in text)] == []
    assert {"env_file", "configs"}.isdisjoint(key for service in SERVICES.values() for key in service)


def test_a_container_sees_its_own_secrets_only() -> None:
    for name, role in ROLE.items():
        tokens = TOKENS if name == "gateway" else {}
        assert mounted(name) == {"ca.pem": "ca.pem", "NATS_PASSWORD": f"{role.upper()}_PASSWORD", **tokens}
    passwords = {f"{role.upper()}_PASSWORD" for role in ROLE.values()}
    for name in NODES:
        own = {secret: secret for secret in {"ca.pem", "server.pem", "server.key", *passwords}}
        assert mounted(name) == {**own, "/etc/nats/routes.conf": "routes.conf"}
    assert "secrets" not in SERVICES["collector"] | SERVICES["prometheus"]
    every = {*mounted("nats-1").values(), *TOKENS, *mounted("grafana")}
    assert COMPOSE["secrets"] == {name: {"file": f"deploy/secrets/{name}"} for name in every}


def test_secrets_reach_neither_the_repository_nor_an_image() -> None:
    asked = subprocess.run(["git", "check-ignore", "deploy/secrets/ca.pem"], cwd=ROOT, capture_output=True)
    assert asked.returncode == 0
    assert "deploy/secrets" in (DEPLOY / "Dockerfile.dockerignore").read_text().split()


# -- the configuration files -----------------------------------------------------------------------------------------
def test_the_nodes_have_what_dspex_needs() -> None:
    text = NATS_CONF.read_text()
    assert 'store_dir: "/data"' in text
    assert "feature_flags { js_ack_fc_v2: false }" in text
    for node in NODES:
        assert SERVICES[node]["environment"] == {"NATS_NAME": node}


def test_the_users_are_those_that_dspex_permits(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """deploy/make_users runs with a `dspex` that hands out what the verb printed in this process, which is cheaper."""
    monkeypatch.chdir(DEPLOY)
    stand_in = '#!/bin/sh\n[ "$1 $2 $3" = "server permissions --role" ] || exit 2\ncat "$(dirname "$0")/$4"\n'
    (tmp_path / "dspex").write_text(stand_in)
    for role, *options in USERS:
        done = in_this_process("server", "permissions", "--role", role, *options)
        assert done.code == 0, done.err
        (tmp_path / role).write_text(done.out)
    shutil.copy(DEPLOY / "make_users", tmp_path)
    for script in ("dspex", "make_users"):
        (tmp_path / script).chmod(0o755)
    subprocess.run([tmp_path / "make_users"], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True)
    assert (DEPLOY / "users.conf").read_text() == (tmp_path / "users.conf").read_text(), "run deploy/make_users"


def test_the_users_are_for_all_that_the_topology_has() -> None:
    """Pool, source and sinks stand in make_users by hand."""
    found = {role: {*options} - {"--pool", "--subject"} for role, *options in USERS}
    pools = {node.call.pool for node in topology.graph.calls}
    subjects = {node.source.subject for node in topology.graph.sources}
    sinks = {node.sink.pattern for node in topology.graph.sinks}
    of_all: dict[str, set[str]] = {"engine": set(), "operator": set()}  # the verb looks at the topology itself
    ways = {"worker": pools, "caller": pools, "publisher": subjects, "reader": sinks, "gateway": pools | subjects}
    assert found == {**of_all, **ways}


def test_every_process_reaches_every_node_by_tls_as_its_role(no_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, role in ROLE.items():
        for variable, value in SERVICES[name]["environment"].items():
            monkeypatch.setenv(variable, value)
        file = {mount.split(":")[1]: mount.split(":")[0] for mount in SERVICES[name]["volumes"]}["/app/dspex.toml"]
        server = Settings.load(ROOT / file).server
        assert server.url == ",".join(f"tls://{node}:4222" for node in NODES)
        assert server.tls is not None
        assert server.tls.ca == "/run/secrets/ca.pem"
        assert server.password_env in mounted(name)
        assert (server.user, server.inbox_prefix, server.replicas) == (role, f"_INBOX_{role}", 3)
        assert f'inbox_prefix = "_INBOX_{role}"' in (DEPLOY / "users.conf").read_text()


@pytest.mark.parametrize("name", [*PROCESSES, *PEOPLE])
def test_the_commands_are_verbs_with_options_that_exist(name: str) -> None:
    program, verb, *rest = SERVICES[name]["command"]
    app = typer.main.get_command(cli.assemble(Terminal()))
    assert program == "dspex"
    command = app.get_command(None, verb)  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("-")} <= known
    pools = tomllib.loads((DEPLOY / "dspex.toml").read_text())["pools"]
    if verb == "worker":
        assert {word for word in rest if word[0] not in "-/"} <= set(pools)


def test_the_gateway_offers_what_there_is_to_who_has_a_token(no_settings: None) -> None:
    offered = Settings.load(DEPLOY / "gateway.toml")
    assert set(offered.http.subjects) == {node.source.subject for node in topology.graph.sources}
    assert set(offered.http.calls.values()) == {f"{topology.name}/{node.name}" for node in topology.graph.calls}
    assert {who.token_env for who in offered.calls.values()} == set(TOKENS)
    assert offered.app == Settings.load(DEPLOY / "dspex.toml").app


def test_a_secret_becomes_a_variable_of_the_command_and_a_certificate_does_not(tmp_path: Path) -> None:
    for name, text in {"NATS_PASSWORD": "a b'$c\n", "ca.pem": "x", "lower": "x", "1A": "x"}.items():
        (tmp_path / name).write_text(text)
    script = (DEPLOY / "entrypoint.sh").read_text().replace("/run/secrets", str(tmp_path))
    done = subprocess.run(
        ["sh", "-c", script, "sh", "env", "-0"], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = dict(pair.split("=", 1) for pair in done.stdout.split("\0") if pair)
    assert {name: text for name, text in found.items() if name not in ("PATH", "PWD", "SHLVL", "_", "OLDPWD")} == {
        "NATS_PASSWORD": "a b'$c"
    }
    (tmp_path / "NATS_PASSWORD").unlink()
    for file in tmp_path.iterdir():
        file.unlink()
    assert subprocess.run(["sh", "-c", script, "sh", "true"]).returncode == 0  # no secrets at all

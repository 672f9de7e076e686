"""docker-compose.yml and what it mounts. No Docker engine is needed: the files are held against each other."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from dspex.bus.local.launch import find_binary
from dspex.bus.settings.model import Settings
from dspex.engine.cli import app as cli
from dspex.engine.cli.terminal.terminal import Terminal

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
NODES = ["nats-1", "nats-2", "nats-3"]
NATS_CONF = ROOT / "deploy/nats.conf"


def test_there_are_three_nodes_an_engine_and_a_pool() -> None:
    assert sorted(SERVICES) == ["engine", *NODES, "pool"]
    assert sorted(COMPOSE["volumes"]) == NODES
    for name in ("engine", "pool"):
        assert sorted(SERVICES[name]["depends_on"]) == NODES


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_mounted_file_exists_and_every_volume_is_declared(name: str) -> None:
    for mount in SERVICES[name]["volumes"]:
        source = mount.split(":")[0]
        assert (ROOT / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"], mount
    if "build" in SERVICES[name]:
        assert (ROOT / SERVICES[name]["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("node", NODES)
def test_the_server_accepts_the_configuration_of_each_node(node: str) -> None:
    service = SERVICES[node]
    assert service["environment"]["NATS_NAME"] == node
    assert f"{node}:/data" in service["volumes"]
    env = {**os.environ, "NATS_NAME": node, "NATS_PASSWORD": "secret"}
    done = subprocess.run([find_binary(), "-t", "-c", NATS_CONF], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_nodes_find_each_other_and_keep_what_dspex_needs() -> None:
    text = NATS_CONF.read_text()
    assert [line.strip().strip('"') for line in text.splitlines() if "nats-route:" in line] == [
        f"nats-route://{node}:6222" for node in NODES
    ]
    assert 'store_dir: "/data"' in text
    assert "feature_flags { js_ack_fc_v2: false }" in text


def test_engine_and_pool_reach_every_node_and_ask_for_three_replicas(no_settings: None) -> None:
    settings = Settings.load(ROOT / "deploy/dspex.toml")
    assert settings.server.url == ",".join(f"nats://{node}:4222" for node in NODES)
    assert settings.server.replicas == 3
    assert settings.server.password_env in SERVICES["engine"]["environment"]
    assert "user: dspex, password: $NATS_PASSWORD" in NATS_CONF.read_text()
    assert settings.server.user == "dspex"


@pytest.mark.parametrize("name", ["engine", "pool"])
def test_the_commands_are_verbs_with_options_that_exist(name: str) -> None:
    program, verb, *rest = SERVICES[name]["command"]
    app = typer.main.get_command(cli.assemble(Terminal()))
    assert program == "dspex"
    command = app.commands[verb]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("-")} <= known
    pools = tomllib.loads((ROOT / "deploy/dspex.toml").read_text())["pools"]
    if verb == "worker":
        assert set(rest) <= set(pools)


def test_the_server_image_is_the_version_that_the_tests_run_on() -> None:
    told = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    assert {SERVICES[node]["image"] for node in NODES} == {f"nats:{told.split('v')[-1].strip()}-alpine"}

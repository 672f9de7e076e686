"""The deployment of docker-compose.yml without Docker: its nodes on the real server, its roles as processes of dspex.

Each container becomes a folder. Its secrets are those that docker-compose.yml gives it, made by deploy/make_secrets; its
command runs under deploy/entrypoint.sh, and its environment is the one that stands there. Hosts and ports are the test's.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import ssl
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_bench import Done, Running, stand_in
from waiting import eventually

from dspex.bus.errors import NotAllowed
from dspex.bus.local.launch import free_port
from dspex.bus.nats import connect

pytestmark = pytest.mark.no_cover  # what it runs of ours is measured elsewhere
ROOT = Path(__file__).parents[2]
SERVICES: Mapping[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
NODES = ("nats-1", "nats-2", "nats-3")
ROLES = ("engine", "worker", "publisher", "caller", "reader", "gateway", "operator")
OTHERS = ("SITE_TOKEN", "DESK_TOKEN", "GRAFANA_PASSWORD")
BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    found = set[int]()
    while len(found) < count:
        found.add(free_port(None))
    return list(found)


def make_secrets(folder: Path) -> Path:
    """Run a copy of deploy/make_secrets in a folder."""
    shutil.copy(ROOT / "deploy/make_secrets", folder)
    done = subprocess.run([folder / "make_secrets"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "secrets"


class Deployment:
    """The containers of docker-compose.yml as processes of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secrets = make_secrets(folder)
        ports = iter(free_ports(11))
        self.ports = {node: {4222: next(ports), 6222: next(ports), 8222: next(ports)} for node in NODES}
        self.http = {name: next(ports) for name in ("engine", "gateway")}
        self.nodes: dict[str, Running] = {}

    def place(self, name: str) -> Path:
        """The folder of a container, with what is mounted in it."""
        here = self.folder / name
        if not here.exists():
            (here / "secrets").mkdir(parents=True)
            for secret in SERVICES[name]["secrets"]:
                source, target = (secret, secret) if isinstance(secret, str) else (secret["source"], secret["target"])
                target = target.replace("/etc/nats", str(here))
                (here / "secrets" / target).write_text(self.local(name, (self.secrets / source).read_text()))
            files = [mount.split(":")[:2] for mount in SERVICES[name]["volumes"] if mount.endswith(":ro")]
            for file, seen in (*files, ("deploy/entrypoint.sh", "/entrypoint.sh")):
                (here / Path(seen).name).write_text(self.local(name, (ROOT / file).read_text()))
        return here

    def local(self, name: str, text: str) -> str:
        """The text of a file with the hosts, ports and folders of the test."""
        text = re.sub(r"(nats-\d):(\d{4})", lambda m: f"127.0.0.1:{self.ports[m[1]][int(m[2])]}", text)
        for port, own in self.ports.get(name, {}).items():
            text = re.sub(rf'"(0\.0\.0\.0|127\.0\.0\.1):{port}"', f'"127.0.0.1:{own}"', text)
        if name in self.http:
            text = re.sub(r"(?<![\w.])(127\.0\.0\.1)?:8080", f"127.0.0.1:{self.http[name]}", text)
        text = text.replace("/tmp/alive", str(self.folder / name / "alive"))
        return text.replace("/run/secrets", str(self.folder / name / "secrets")).replace(
            '"/data"', f'"{self.folder / name}/data"'
        )

    def command(self, name: str, *args: str) -> tuple[list[str], Path, dict[str, str]]:
        """Command, folder and environment of a container."""
        here = self.place(name)
        env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(here), **SERVICES[name]["environment"]}
        return ["sh", str(here / "entrypoint.sh"), *[self.local(name, word) for word in args]], here, env

    def start(self, name: str, *args: str, **env: str) -> Running:
        command, here, own = self.command(name, *args)
        return Running(command, here, {**own, **env})

    def run(self, name: str, *args: str, **env: str) -> Done:
        command, here, own = self.command(name, *args)
        done = subprocess.run(command, cwd=here, env={**own, **env}, capture_output=True, text=True, timeout=60)
        return Done(done.returncode, done.stdout, done.stderr)

    def start_nodes(self) -> None:
        (stated,) = re.findall(r"^CMD (\[\"nats-server.*\])", (ROOT / "deploy/Dockerfile").read_text(), re.M)
        for node in NODES:
            command = [word.replace("/etc/nats", str(self.folder / node)) for word in json.loads(stated)]
            self.nodes[node] = self.start(node, *command)
        for node in NODES:
            eventually(lambda node=node: self.healthy(node))
        eventually(lambda: neighbours(self) == {"nats-2", "nats-3"})

    def healthy(self, node: str) -> bool:
        """What the health check of the container asks."""
        assert self.nodes[node].process.poll() is None, self.nodes[node].errors()
        url = SERVICES[node]["healthcheck"]["test"][-1].replace(":8222", f":{self.ports[node][8222]}")
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def stop(self) -> None:
        for node in self.nodes.values():
            node.end()
            node.close()

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def password(self, role: str) -> str:
        return (self.secrets / f"{role.upper()}_PASSWORD").read_text()

    def route_password(self) -> str:
        return re.findall(r'password: "(\w+)"', (self.secrets / "routes.conf").read_text())[0]

    def authority(self) -> ssl.SSLContext:
        """As Python 3.13 checks certificates, which is strict."""
        context = ssl.create_default_context(cafile=self.secrets / "ca.pem")
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("deployment"))
    try:
        made.start_nodes()
        yield made
    finally:
        made.stop()


# -- secrets ---------------------------------------------------------------------------------------------------------
def test_secrets_are_made_once_and_only_their_owner_reaches_them(tmp_path: Path) -> None:
    secrets = make_secrets(tmp_path)
    made = {file.name: file.read_text() for file in secrets.iterdir()}
    passwords = [text for name, text in made.items() if name.isupper()]
    others = {"ca.pem", "server.pem", "server.key", "routes.conf"}  # and not the authority's key
    assert set(made) == {*others, *OTHERS, *(f"{role.upper()}_PASSWORD" for role in ROLES)}
    assert len(set(passwords)) == len(passwords)
    assert all(re.fullmatch("[a-z][0-9a-f]{48}", text) for text in passwords)
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    (secrets / "READER_PASSWORD").unlink()
    make_secrets(tmp_path)
    again = {file.name: file.read_text() for file in secrets.iterdir()}
    assert {name for name in made if made[name] != again[name]} == {"READER_PASSWORD"}


# -- clients ---------------------------------------------------------------------------------------------------------
@pytest.mark.asyncio
@pytest.mark.parametrize("role", ROLES)
async def test_a_role_enters_with_its_own_password_only(deployment: Deployment, role: str) -> None:
    url = f"tls://127.0.0.1:{deployment.ports['nats-2'][4222]}"
    tls = deployment.authority()
    bus = await connect(url, user=role, password=deployment.password(role), tls=tls, inbox_prefix=f"_INBOX_{role}")
    await bus.close()
    other = "reader" if role == "engine" else "engine"
    for wrong in ({"password": deployment.password(other)}, {"password": "x"}, {"password": deployment.route_password()}, {}):
        with pytest.raises(NotAllowed):
            await connect(url, user=role, tls=tls, **wrong)


@pytest.mark.asyncio
async def test_who_has_no_login_does_not_enter(deployment: Deployment) -> None:
    with pytest.raises(NotAllowed):
        await connect(f"tls://127.0.0.1:{deployment.ports['nats-1'][4222]}", tls=deployment.authority())


@pytest.mark.asyncio
async def test_a_client_that_does_not_encrypt_is_turned_away(deployment: Deployment) -> None:
    """Also with the right password: nothing of it would be hidden."""
    reader, writer = await asyncio.open_connection("127.0.0.1", deployment.ports["nats-1"][4222])
    try:
        assert json.loads((await reader.readline()).removeprefix(b"INFO "))["tls_required"] is True
        login = {"user": "engine", "pass": deployment.password("engine"), "verbose": False, "lang": "test", "version": "0"}
        writer.write(f"CONNECT {json.dumps(login)}\r\nPING\r\n".encode())
        with suppress(ConnectionError):
            async with asyncio.timeout(30):
                assert b"PONG" not in await reader.read()
    finally:
        writer.close()


@pytest.mark.asyncio
async def test_a_server_whose_certificate_another_authority_signed_is_not_believed(
    deployment: Deployment, tmp_path: Path
) -> None:
    strange = ssl.create_default_context(cafile=make_secrets(tmp_path) / "ca.pem")
    url = f"tls://127.0.0.1:{deployment.ports['nats-1'][4222]}"
    with pytest.raises(NotAllowed, match="certificate"):
        await connect(url, user="engine", password=deployment.password("engine"), tls=strange)


# -- nodes -----------------------------------------------------------------------------------------------------------
STRANGER = """
listen: "127.0.0.1:-1"
cluster {{
  name: dspex
  listen: "127.0.0.1:-1"
  tls {{ cert_file: "{secrets}/server.pem", key_file: "{secrets}/server.key", ca_file: "{ca}", verify: true }}
  routes: [ "nats-route://route:{password}@127.0.0.1:{port}" ]
}}
"""


@pytest.mark.parametrize(
    ("lacks", "told"), [("password", "authentication error"), ("certificate", "TLS route handshake error")]
)
def test_a_node_joins_with_certificate_and_password_only(deployment: Deployment, tmp_path: Path, lacks: str, told: str) -> None:
    """Each alone is not enough: who is a node could read and change everything."""
    config = STRANGER.format(
        secrets=deployment.secrets if lacks == "password" else make_secrets(tmp_path),
        ca=deployment.secrets / "ca.pem",
        password="wrong" if lacks == "password" else deployment.route_password(),
        port=deployment.ports["nats-1"][6222],
    )
    (tmp_path / "stranger.conf").write_text(config)
    before = deployment.nodes["nats-1"].errors().count(told)
    stranger = Running([str(BIN / "nats-server"), "-c", str(tmp_path / "stranger.conf")], tmp_path, dict(os.environ))
    try:
        eventually(lambda: deployment.nodes["nats-1"].errors().count(told) > before)
        assert neighbours(deployment) == {"nats-2", "nats-3"}
    finally:
        stranger.end(signal.SIGKILL)
        stranger.close()


def neighbours(deployment: Deployment) -> set[str]:
    """Nodes with a route to the first one."""
    url = f"http://127.0.0.1:{deployment.ports['nats-1'][8222]}/routez"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return {route["remote_name"] for route in json.load(answer)["routes"]}


# -- all of it -------------------------------------------------------------------------------------------------------
def replicas(deployment: Deployment) -> dict[str, int]:
    """How many nodes hold each stream."""
    url = f"http://127.0.0.1:{deployment.ports['nats-1'][8222]}/jsz?accounts=true&config=true&streams=true"
    with urllib.request.urlopen(url, timeout=30) as answer:
        (account,) = json.load(answer)["account_details"]
    return {stream["name"]: stream["config"]["num_replicas"] for stream in account["stream_detail"]}


def asked(deployment: Deployment, path: str, body: Mapping[str, Any], token: str | None, *, key: str = "") -> tuple[int, Any]:
    """What the gateway says to somebody on this machine. `key`: the same for what is asked once more."""
    request = urllib.request.Request(f"http://127.0.0.1:{deployment.http['gateway']}{path}", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if key:
        request.add_header("Idempotency-Key", key)
    if token:
        request.add_header("Authorization", f"Bearer {deployment.secret(token)}")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


@pytest.mark.long
def test_every_role_does_its_part_of_the_triage_on_three_nodes(deployment: Deployment) -> None:
    with stand_in() as url, ExitStack() as stack:
        # where there is no collector, nothing is told
        told = {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
        model = {"DSPEX_LM__LOCAL__MODEL": "openai/stand-in", "DSPEX_LM__LOCAL__BASE_URL": url, **told}
        running = {
            name: deployment.start(name, *SERVICES[name]["command"], **(told if name == "gateway" else model))
            for name in ("engine", "pool", "gateway")
        }
        for one in running.values():
            stack.callback(one.close)
        running["engine"].until("ready")
        running["pool"].until("2/2 ready")
        running["gateway"].until("gateway")
        for person in ("publisher", "reader", "caller", "operator"):
            done = deployment.run(person, *SERVICES[person]["command"])
            assert done.code == 0, (person, done.out, done.err, *[one.errors() for one in running.values()])
            if person == "reader":
                assert "My card was stolen!" in done.out
        for name in ("engine", "gateway", "pool"):
            eventually(lambda name=name: deployment.run(name, *SERVICES[name]["healthcheck"]["test"][1:]).code == 0)
        text = {"text": "My card was stolen!"}
        assert [asked(deployment, "/v1/call/classify", text, who)[0] for who in (None, "DESK_TOKEN", "SITE_TOKEN")] == [
            401,
            404,
            200,
        ]
        stored = asked(deployment, "/v1/publish/support.messages", {"customer": "c1", **text}, "SITE_TOKEN")
        assert stored[0] == 202
        assert {name: number for name, number in replicas(deployment).items() if number != 3} == {}
        assert neighbours(deployment) == {"nats-2", "nats-3"}
        errors = {name: (one.end(), one.errors()) for name, one in running.items()}
        assert {name: code for name, (code, _) in errors.items()} == dict.fromkeys(errors, 0), errors
        assert "permissions violation" not in str(errors).lower()


def published(deployment: Deployment, number: int) -> str:
    """The run of an event that the gateway took: it is asked until it did, since a node may be gone just now."""
    event = {"customer": f"c{number}", "text": f"Message {number}: my card was stolen!"}
    found: list[str] = []

    def taken() -> bool:
        with suppress(OSError):
            status, said = asked(deployment, "/v1/publish/support.messages", event, "SITE_TOKEN", key=f"event {number}")
            assert status in (202, 429, 503), said
            found.extend([said["run"]] if status == 202 else [])
        return bool(found)

    eventually(taken, 120)
    return found[0]


def outputs(deployment: Deployment, run: str) -> list[Any]:
    """What came of a run once it was over."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{deployment.http['gateway']}/v1/runs/{run}?wait=10s&outputs=true",
        headers={"Authorization": f"Bearer {deployment.secret('DESK_TOKEN')}"},
    )
    found: list[dict[str, Any]] = []

    def over() -> bool:
        with suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
            found.append(json.load(answer))
        return bool(found) and found[-1]["status"] != "running"

    eventually(over, 180)
    assert found[-1]["status"] == "done", found[-1]
    return list(found[-1]["outputs"])


@pytest.mark.long
def test_a_node_and_an_engine_that_are_killed_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    made, told = Deployment(tmp_path), {"OTEL_SDK_DISABLED": "true"}
    with stand_in() as url, ExitStack() as stack:
        stack.callback(made.stop)
        made.start_nodes()
        model = {"DSPEX_LM__LOCAL__MODEL": "openai/stand-in", "DSPEX_LM__LOCAL__BASE_URL": url, **told}
        command, http = SERVICES["engine"]["command"], free_port(None)
        engines = [made.start("engine", *command, **model)]
        other = [word.replace(":8080", f":{http}") for word in command]
        engines.append(made.start("engine", *other, **model))
        pool = made.start("pool", *SERVICES["pool"]["command"], **model)
        gateway = made.start("gateway", *SERVICES["gateway"]["command"], **told)
        for one in (*engines, pool, gateway):
            stack.callback(one.close)
        for one, said in ((engines[0], "ready"), (engines[1], "ready"), (pool, "2/2 ready"), (gateway, "gateway")):
            one.until(said)
        runs = [published(made, number) for number in range(15)]
        made.nodes["nats-1"].end(signal.SIGKILL)  # clients know it first
        engines[0].end(signal.SIGKILL)
        runs += [published(made, number) for number in range(15, 30)]
        found = [outputs(made, run) for run in runs]
        assert [len(each) for each in found] == [1] * len(runs)
        texts = sorted(int(each[0]["data"]["text"].split()[1].rstrip(":")) for each in found)
        assert texts == list(range(30))

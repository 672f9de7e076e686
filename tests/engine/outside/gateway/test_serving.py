"""How the gateway listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from cli_bench import Project

from dspex.bus.errors import ConfigError
from dspex.bus.local.launch import free_port
from dspex.engine.gateway.serving import listening_on


def test_what_the_gateway_answers_does_not_wait_for_an_acknowledgement_of_what_it_sent_before() -> None:
    with listening_on(f"127.0.0.1:{free_port(None)}") as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_where_something_listens_already_the_error_says_so() -> None:
    with listening_on(f"127.0.0.1:{free_port(None)}") as server, pytest.raises(ConfigError, match="nothing can listen on"):
        listening_on(f"127.0.0.1:{server.getsockname()[1]}")


def test_a_gateway_says_where_it_is_only_once_it_listens(tmp_path: Path) -> None:
    with listening_on(f"127.0.0.1:{free_port(None)}") as server:
        done = Project(tmp_path, "taken").here("--json", "gateway", "--bind", f"127.0.0.1:{server.getsockname()[1]}")
    assert (done.out, done.error()["code"]) == ("", "DX105"), "who waits for the line would ask somebody else"

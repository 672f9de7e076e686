"""Fixtures that every room may use: a real NATS server, and unique names on it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

CONFIG = """
listen: "127.0.0.1:-1"
jetstream {{ store_dir: "{store}" }}
feature_flags {{ js_ack_fc_v2: false }}
"""


def start_nats(folder: Path, config: str = CONFIG) -> tuple[subprocess.Popen[str], str]:
    """Start a real nats-server with its store in `folder`, on a port that it picks itself; the process and its URL."""
    file = folder / "nats.conf"
    file.write_text(config.format(store=folder / "js"))
    binary = Path(sys.executable).parent / "nats-server"
    process = subprocess.Popen([binary, "-c", file], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url, log = "", []
    for line in process.stderr:
        log.append(line)
        if found := re.search(r"client connections on (\S+)", line):
            url = f"nats://{found[1]}"
        if "Server is ready" in line:
            # the pipe has to be emptied for as long as the server lives, or it would stop at a full one
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, url
    raise RuntimeError("nats-server did not start:\n" + "".join(log))


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real nats-server with JetStream, one for the whole test session: use unique names on it."""
    process, url = start_nats(tmp_path_factory.mktemp("nats"))
    yield url
    process.terminate()
    process.wait(10)


@pytest.fixture
def unique() -> str:
    """A name that no other test has: for streams, subjects, buckets, consumers."""
    return f"t{uuid.uuid4().hex[:12]}"

"""A codec of the user's own: its types travel in its form, and its failures are errors of the data."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dspex.bus.codecs import JSON, Codec, decode, encode, register_codec
from dspex.bus.errors import ConfigError, DecodeError, InvalidInput


class Temperature:
    def __init__(self, degrees: int) -> None:
        self.degrees = degrees


class Fever(Temperature):
    pass


TEMPERATURE = "application/x-temperature"


def to_bytes(value: Temperature) -> bytes:
    if value.degrees < -273:
        raise ValueError("colder than cold")
    return str(value.degrees).encode()


register_codec(TEMPERATURE, encode=to_bytes, decode=lambda b: Temperature(int(b)), types=[Temperature])


@pytest.mark.parametrize("codec", ["json", "auto"])
def test_a_registered_type_travels_in_its_own_form(codec: Codec) -> None:
    for value in (Temperature(37), Fever(37)):
        encoded, content_type = encode(value, codec)
        assert (encoded, content_type) == (b"37", TEMPERATURE)
        assert decode(encoded, content_type + "; v=1").degrees == 37
    assert encode({"a": 1}, codec)[1] == JSON


def test_failures_of_a_registered_codec_are_data_errors() -> None:
    with pytest.raises(InvalidInput, match="colder than cold"):
        encode(Temperature(-300))
    with pytest.raises(DecodeError, match="x-temperature"):
        decode(b"warm", TEMPERATURE)


@pytest.mark.parametrize("name", [JSON, "Application/JSON", "nonsense", "a/b/c", "a/b; c=d", ""])
def test_a_codec_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError):
        register_codec(name, encode=bytes, decode=bytes)


def test_a_codec_registered_for_maps_encodes_what_a_sink_sends() -> None:
    """In a process of its own: it holds for the whole process, and cannot be taken back."""
    program = """
from dspex.codecs import register_codec
from dspex.testing import Driver
from dspex.operators.topology import Topology
register_codec("application/x-own", encode=lambda d: b"own", decode=lambda b: {"read": b.decode()}, types=[dict])
topology = Topology("own")
topology.source("in").map(lambda d: {**d, "more": 1}, name="more").sink("out")
with Driver(topology) as d:
    d.publish("in", {"n": 1})
    print(d.outputs("out"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[{'read': 'own'}]"

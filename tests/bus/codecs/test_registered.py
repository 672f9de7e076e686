"""A codec of the user's own: its types travel in its form, and its failures are errors of the data."""

from __future__ import annotations

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

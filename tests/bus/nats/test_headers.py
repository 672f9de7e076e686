"""Headers as other clients write them."""

from __future__ import annotations

import pytest

from dspex.bus.nats import protocol


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["X-Tag: a", "X-Tag: b", "Y: 1", "X-Tag: c"], {"X-Tag": "a, b, c", "Y": "1"}),
        (["X-Tag:a", "X-Tag: b"], {"X-Tag": "a, b"}),
        (["Dspex-Key: first", "Dspex-Key: second"], {"Dspex-Key": "first"}),
        (["Nats-Msg-Id: first", "Nats-Msg-Id: second"], {"Nats-Msg-Id": "first"}),
        (["content-type: application/msgpack", "content-type: application/json"], {"content-type": "application/msgpack"}),
    ],
)
def test_of_headers_with_one_name_none_is_lost_and_of_those_that_are_read_the_first_counts(
    lines: list[str], found: dict[str, str]
) -> None:
    assert protocol.headers("\r\n".join(["NATS/1.0", *lines, "", ""]).encode()) == found

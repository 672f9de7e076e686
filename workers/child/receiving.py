"""Frames before there is a loop: from a blocking socket."""

from __future__ import annotations

import socket

from dspex.workers.frames import HEAD, Frame, unpack


def receive(sock: socket.socket) -> Frame | None:
    """One frame from a blocking socket; None when the other side has closed. Raises DecodeError for what is no frame."""
    head = _exactly(sock, HEAD.size)
    body = _exactly(sock, HEAD.unpack(head)[0]) if head else None
    return None if body is None else unpack(body)


def _exactly(sock: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        try:
            part = sock.recv(size - len(data))
        except ConnectionError:
            return None
        if not part:
            return None
        data += part
    return bytes(data)

"""Connections to the real server."""

from real_nats import bus, js  # noqa: F401 - fixtures

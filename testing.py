"""Topologies in tests, without a broker, a model or a wait: `Driver`, `Faults`."""

from dspex.engine.testing.driver import *

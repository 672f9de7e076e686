"""Codecs: how data becomes bytes, and `register_codec` for types of your own."""

from dspex.bus.codecs import *

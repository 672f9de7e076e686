"""The client without `await`: `with dspex.sync.connect() as client`."""

from dspex.engine.client.sync import *

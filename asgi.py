"""A dspex application over HTTP: `app`, to be mounted in FastAPI or Starlette. Needs dspex[asgi]."""

from dspex.engine.gateway.app import *

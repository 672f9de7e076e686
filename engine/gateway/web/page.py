"""The web page at `/ui/`: files as they lie here. They hold no data: what is shown, the browser asks for as any client does."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

_TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_FOLDER: Final = files("dspex.engine.gateway.web")
_KINDS: Final = {one.name: _TYPES[end] for one in _FOLDER.iterdir() if (end := one.name.rpartition(".")[2]) in _TYPES}
_read = cache(lambda name: (_FOLDER / name).read_bytes())  # they are those of this version
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",  # nothing of other sites, and nothing inline: what an event holds can then not become a script
        *(f"{kind} 'self'" for kind in ("script-src", "style-src", "connect-src")),
        "img-src data:",  # that it has no icon
        *(f"{kind} 'none'" for kind in ("base-uri", "form-action", "frame-ancestors")),
    )
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # the files of another version have the same names
}


def routes() -> list[BaseRoute]:
    """Where the page is. Who may see it is not asked: it is the same for everybody."""
    return [Route("/ui", _to_the_page), Route("/ui/", _file), Route("/ui/{name}", _file)]


async def _to_the_page(request: Request) -> Response:
    """A relative address, since a proxy may have put the gateway below a path that nobody here knows."""
    return Response(None, 307, {**HEADERS, "Location": "ui/"})


async def _file(request: Request) -> Response:
    name = request.path_params.get("name", "index.html")
    if name not in _KINDS:
        raise HTTPException(404, f"the page has no file {name!r}")
    return Response(_read(name), 200, HEADERS, _KINDS[name])

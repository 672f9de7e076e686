"""The web page at `/ui/`: one document that holds its style, its scripts, and the list of runs that was read last, so that a
browser asks for nothing more before it shows runs. What else is shown it asks for as any client does.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

First = Callable[[Request], str | None]
"""The list with which the page opens, as JSON, where who asks for the page may have it."""

_FOLDER: Final = files("dspex.engine.gateway.web")
_IMPORT: Final = re.compile(r'^import (\{.*\}) from "\./(\w+)\.js";$', re.MULTILINE)
_EXPORT: Final = re.compile(r"^export ((?:async )?(?:function\*?|const|let|class) (\w+))", re.MULTILINE)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text("utf-8")


def bundle(name: str) -> str:
    """A module and all that it imports as one script, in which each is a function, called once, that gives what it exports."""
    made = dict[str, str]()

    def add(name: str) -> None:
        text = _read(f"{name}.js")
        for _, other in _IMPORT.findall(text):
            if other not in made:
                add(other)
        given = ", ".join(kept for _, kept in _EXPORT.findall(text))
        own = _EXPORT.sub(r"\1", _IMPORT.sub(r"const \1 = of_\2;", text))
        made[name] = f"const of_{name} = (() => {{\n{own}return {{ {given} }};\n}})();\n"

    add(name)
    return "".join(made.values())


_STYLE, _SCRIPT = _read("style.css"), bundle("app")  # those of this version
_BEGIN, _END = (
    _read("index.html")
    .replace('<link rel="stylesheet" href="style.css">', f"<style>{_STYLE}</style>")
    .replace('<script type="module" src="app.js"></script>', f'<script type="module">{_SCRIPT}</script>')
    .encode()
    .split(b"<!-- first -->")
)


def _sum(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_POLICY: Final = "; ".join(
    (
        "default-src 'none'",  # nothing of other sites, and nothing else inline: what an event holds can then become no script
        f"script-src {_sum(_SCRIPT)}",
        f"style-src {_sum(_STYLE)}",
        "connect-src 'self'",
        "img-src data:",  # that it has no icon
        *(f"{kind} 'none'" for kind in ("base-uri", "form-action", "frame-ancestors")),
    )
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # it may hold runs, and has the same address in another version
}


def routes(first: First) -> list[BaseRoute]:
    """Where the page is. Who may see it is not asked: but for the list it is the same for everybody."""

    async def shown(request: Request) -> Response:
        return Response(_BEGIN + _within(first(request) or "null") + _END, 200, HEADERS, "text/html")

    return [Route("/ui", _to_the_page), Route("/ui/", shown)]


def _within(json: str) -> bytes:
    """JSON in a document: no text in it can end the element that it lies in."""
    safe = json.replace("<", "\\u003c")
    return f'<script type="application/json" id="first">{safe}</script>'.encode()


async def _to_the_page(request: Request) -> Response:
    """A relative address, since a proxy may have put the gateway below a path that nobody here knows."""
    return Response(None, 307, {**HEADERS, "Location": "ui/"})

"""What the site has besides the pages: hooks of mkdocs, which scripts/docs builds it with.

* Decisions (docs/adr) get their place behind the other pages, by their titles.
* A fence is known by its first word alone, and a link out of docs/ becomes the words that it stands on: such a file is not
  in the site.
* `llms.txt` lists all pages for language models, each as the Markdown that lies beside its HTML.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
_FENCE = re.compile(r"^(\s*```\w+)[ ].*$", re.M)
_OUTWARD = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(?:#[\w-]+)?\)")
_TITLE = re.compile(r"^# (.+)$", re.M)
_STYLE = (
    "pre { line-height: 1.4 } .rst-content table.docutils td { white-space: normal } .rst-content img { max-width: 100% }\n"
)
_ABOUT = "DSPy programs on streams of events on NATS JetStream: exactly once, replayable."


def title(page: Path) -> str:
    """What a page calls itself."""
    found = _TITLE.search(page.read_text())
    assert found is not None, page
    return found[1]


def on_config(config: Any) -> Any:
    """Add the decisions to the menu."""
    pages = sorted((DOCS / "adr").rglob("*.md"), key=lambda page: page.name)
    config.nav = [*config.nav, {"Decisions": [{title(page): page.relative_to(DOCS).as_posix()} for page in pages]}]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """A page as mkdocs understands it."""
    here = (DOCS / page.file.src_uri).parent

    def inward(found: re.Match[str]) -> str:
        return found[0] if (here / found[2]).resolve().is_relative_to(DOCS) else found[1]

    return _OUTWARD.sub(inward, _FENCE.sub(r"\1", markdown))


def on_post_build(config: Any) -> None:
    """Write what is beside the pages."""
    from pygments.formatters import HtmlFormatter

    site = Path(config.site_dir)
    (site / "code.css").write_text(HtmlFormatter().get_style_defs(".codehilite") + "\n" + _STYLE)
    lines = ["# dspex", "", f"> {_ABOUT}"]
    for part in config.nav:
        for heading, pages in part.items():
            lines += ["", f"## {heading}", ""]
            for name, path in [(heading, pages)] if isinstance(pages, str) else [one for page in pages for one in page.items()]:
                target = site / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text((DOCS / path).read_text())
                lines.append(f"- [{name}]({path})")
    (site / "llms.txt").write_text("\n".join(lines) + "\n")

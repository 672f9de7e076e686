"""The site that scripts/docs builds: every page is there, as HTML and as Markdown, and nothing in it leads nowhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md"))
FETCHED = re.compile(
    r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"|<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"|@import|url\(https?:'
)


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built."""
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT, folder)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.mark.long
def test_the_site_has_every_page_as_html_and_as_markdown(site: Path) -> None:
    for page in PAGES:
        html = page.with_name("index.html") if page.name == "README.md" else page.with_suffix(".html")
        assert (site / html).is_file(), page
        assert (site / page).read_bytes() == (ROOT / "docs" / page).read_bytes()


def test_llms_txt_of_the_site_lists_every_page_once(site: Path) -> None:
    lines = (site / "llms.txt").read_text().splitlines()
    assert lines[0] == "# dspex"
    listed = [found[1] for line in lines if (found := re.match(r"- \[.+\]\((.+)\)$", line))]
    assert sorted(listed) == [page.as_posix() for page in PAGES]


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        for found in FETCHED.finditer(file.read_text()):
            source = found[1] or found[2] or found[0]
            assert not source.startswith(("http", "//", "url(http", "@import")), f"{file.name}: {source}"


def test_code_in_the_site_is_code_whatever_its_fence_says_besides(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.search(r"<p>```|```\w+ (?:run|\w+\.csv)", page.read_text()), page


@pytest.mark.long
@pytest.mark.parametrize("link", ["nowhere.md", "errors.md#no-such-heading"])
def test_the_site_is_not_built_where_a_link_leads_nowhere(tmp_path: Path, link: str) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with open(tmp_path / "docs/glossary.md", "a") as page:
        page.write(f"\nSee [there]({link}).\n")
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode == 1
    assert link in built.stderr + built.stdout

"""The documentation site: it builds without a warning, no link is broken, nothing is missing, nothing is fetched."""

from __future__ import annotations

import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from bitwright import experiment
from bitwright.cli.app import command
from bitwright.cli.help import topics
from bitwright.cli.registry import stored
from bitwright.transforms import recipes

pytest.importorskip("mkdocs", reason="needs the extra docs")
pytest.importorskip("material", reason="needs the extra docs")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}


class Page(html.parser.HTMLParser):
    """What one page links to, loads, and can be linked at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.anchors |= {given[key] for key in ("id", "name") if key in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADING and LOADING[tag] in given:
            self.loads.append(given[LOADING[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; `--strict` makes every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_every_internal_link_resolves(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # served from any folder, so its links begin at the root
            continue
        for link in [*page.links, *page.loads]:
            place, anchor = urldefrag(link)
            if urlsplit(link).scheme:
                continue
            target = (path.parent / unquote(place)).resolve() if place else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                broken.append(f"{path.relative_to(site)}: {link}")
            elif anchor and target.suffix == ".html" and unquote(anchor) not in pages[target].anchors:
                broken.append(f"{path.relative_to(site)}: {link}: no such anchor")
    assert not broken, "\n".join(broken)
    assert sum(len(page.links) for page in pages.values()) > 1000  # the reader of pages does read


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    outside = {load for page in pages.values() for load in page.loads if urlsplit(load).scheme or load.startswith("//")}
    assert {load for load in outside if not load.startswith("data:")} == set()
    charts = [path.name for path in pages if 'class="mermaid"' in path.read_text(encoding="utf-8")]
    assert charts == [], "for such a chart the theme's own script fetches another one"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", text), sheet.name


def test_every_thing_has_its_page(site: Path) -> None:
    groups = {
        "methods": list(stored()),
        "recipes": recipes(),
        "experiments": experiment.names(),
        "commands": [name for name, found in command().commands.items() if not found.hidden],
        "errors": [name for name in topics() if name != "errors"],
    }
    missing = [f"{folder}/{name}" for folder, names in groups.items() for name in names
               if not (site / folder / f"{name}.html").is_file()]  # fmt: skip
    assert not missing
    assert all(groups.values())


def test_the_code_that_makes_pages_is_no_page(site: Path) -> None:
    assert not list(site.rglob("*.py"))


def test_pages_hold_what_the_code_says(site: Path) -> None:
    """One of each kind, so that a page that came out empty is noticed."""
    said = {
        "methods/ttq.html": ("Zhu et al. 2017", "threshold", "<svg class=\"part-picture\""),
        "recipes/xnor.html": ("[[rule]]", "1603.05279"),
        "experiments/schema.html": ("label_smoothing", "checkpoint_every"),
        "commands/bench.html": ("Usage: bitwright bench", "--against"),
        "errors/index.html": ("recipe-nomatch",),
        "reference/python.html": ("bw.apply", "Packs a trained net"),
    }  # fmt: skip
    for page, words in said.items():
        text = re.sub(r"</?(?:span|code|a)[^>]*>", "", (site / page).read_text(encoding="utf-8"))
        assert [word for word in words if word not in text] == [], page

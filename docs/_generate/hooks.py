"""Called by mkdocs: pages made from code join the site, and the navigation below the index page of their folder."""

from __future__ import annotations

import from_commands
import from_errors
import from_experiments
import from_parts
import from_python
import from_recipes
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SOURCES = (from_parts, from_recipes, from_experiments, from_commands, from_errors, from_python)
_pages: dict[str, str] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Writes the pages, and puts each one that the navigation does not name behind the index of its folder."""
    _pages.clear()
    for source in SOURCES:
        _pages.update(source.pages())
    nav = config.nav or []
    named = set(_names(nav))
    _extend(nav, [path for path in _pages if path not in named])
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The pages, as files that exist only in this build."""
    for path, text in _pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def _names(nav: list | dict | str) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [name for item in (nav.values() if isinstance(nav, dict) else nav) for name in _names(item)]


def _extend(nav: list, paths: list[str]) -> None:
    """Appends every path to the list that holds the index.md of its folder."""
    for item in list(nav):
        if isinstance(item, dict):
            for value in item.values():
                if isinstance(value, list):
                    _extend(value, paths)
        elif item.endswith("/index.md"):
            nav += [path for path in paths if path.rpartition("/")[0] == item.removesuffix("/index.md")]

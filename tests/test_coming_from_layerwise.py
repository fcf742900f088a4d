"""docs/coming-from/l-obs, l-dnq: what the pages say to type is taken, and does what they say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from bitwright import procedures
from bitwright.cli.method import options_of
from bitwright.fn.levels import level_grid

FOLDER = Path(__file__).parent.parent / "docs" / "coming-from"
COMMAND = {"--batches", "-o", "--test", "--data-root"}  # of the command, not of the procedure


def typed(page: str) -> dict[str, str]:
    """First column of the table of settings -> what to type."""
    part = (FOLDER / page).read_text(encoding="utf-8").split("## Setting by setting")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in part.splitlines() if line.startswith("| ")][1:]
    found = {left.removeprefix("| "): re.findall(r"`([^`]*)`", right)[0] for left, right, *_ in rows}
    assert all(text.startswith(("--", "bitwright ")) for text in found.values())
    return found


def options(text: str) -> dict[str, Any]:
    words = shlex.split(text)
    pairs = [(a, b) for a, b in zip(words[::2], words[1::2], strict=True) if a not in COMMAND]
    return options_of("prune", [word for pair in pairs for word in pair])


@pytest.mark.parametrize(("page", "name"), [("l-obs.md", "l_obs"), ("l-dnq.md", "l_dnq")])
def test_every_setting_is_an_option(page: str, name: str) -> None:
    for text in typed(page).values():
        if text.startswith("--"):
            procedures.get(name).check(options(text))


def test_the_number_of_levels_is_the_one_of_the_published_code() -> None:
    rows = typed("l-dnq.md")
    for count in (3, 5, 7, 9, 11):
        grid = level_grid(options(rows[f"`kbits` {count}"])["levels"])
        assert len(grid) == count and grid[-1] == 2 ** ((count - 3) // 2)


def test_kept_shares() -> None:
    rows = typed("l-obs.md")
    assert options(rows["compression ratio, CR"]) == {"keep": 0.05}
    table = options(rows["ratios of AlexNet"])["keep"]
    assert table == {"*": 0.35, "conv1": 0.8, "fc6": 0.1, "fc7": 0.1}

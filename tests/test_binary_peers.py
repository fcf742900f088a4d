"""`bench/binary_peers.py`: programs that are missing or end are rows that say why; slices are asked for in turn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FAKE = """
import sys
sys.path.insert(0, {folder!r})
from serve import Missing, serve
def build(case):
    print("a word of the program itself")
    if case["kind"] == "linear":
        raise Missing("has no such layer")
    if case["kind"] == "end":
        sys.exit(3)
    return {{"fast": lambda: None, "slow": lambda: sum(range(20000))}}
serve(build, lambda: {{"fake": "1.0"}})
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import binary_peers  # pyright: ignore[reportMissingImports]

    (tmp_path / "fake.py").write_text(FAKE.format(folder=str(ROOT / "bench" / "peers")))
    monkeypatch.setattr(binary_peers, "SCRIPTS", tmp_path)
    monkeypatch.setitem(binary_peers.REQUIREMENTS, "none", ["there-is-no-such-package-as-this==0"])
    return binary_peers


def test_a_program_is_asked_and_timed(bench: Any, tmp_path: Path) -> None:
    program = bench.Program("fake", Path(sys.executable), tmp_path / "log")
    assert program.ask(versions=1) == {"fake": "1.0"}
    assert program.ask(case={"kind": "linear"}) == {"error": "has no such layer"}
    assert program.ask(case={"kind": "convolutions"}) == ["fast", "slow"]
    found = bench.timed({name: program.slice(name) for name in ("fast", "slow")}, rounds=3)
    assert list(found) == ["fast", "slow"] and all(t.runs >= 3 and t.median >= 0 for t in found.values())
    assert program.ask(slice="other", calls=1)["error"].startswith("KeyError")
    assert "it ended" in program.ask(case={"kind": "end"})["error"]
    assert "it ended" in program.ask(versions=1)["error"]
    program.end()
    assert "a word of the program itself" in (tmp_path / "log").read_text()


def test_what_is_not_there_is_a_row_with_its_reason(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.environment("none", tmp_path, "/nonexistent/python") == (
        None,
        "/nonexistent/python: No such file or directory",
    )
    small = {"small": {"kind": "linear", "inputs": 8, "outputs": 4, "batch": 1}}
    monkeypatch.setattr(bench, "CASES", small)
    program = bench.Program("fake", Path(sys.executable), tmp_path / "log")
    found = bench.rows("small", {"larq_engine": "pip install x: no", "fake": program}, rounds=2)
    program.end()
    assert [(r["program"], r["note"]) for r in found] == [
        ("bitwright", ""), ("larq_engine", "unavailable: pip install x: no"), ("fake", "unavailable: has no such layer")
    ]  # fmt: skip
    assert float(found[0]["us"]) > 0 and found[0]["ratio"] == "1"

"""The house: imports run down the floors and never in a circle, a class name means one thing. All read with ast."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import bitwright

ROOT = Path(bitwright.__file__).parent
FLOORS = {
    "atomic": 0,
    "errors": 0,
    "download": 0,
    "numbers": 0,
    "tabular": 0,
    "timing": 0,
    "types": 0,
    "tensors": 0,
    "version": 0,
    "zeros": 0,
    "fn": 0,
    "usercode": 0,
    "trust": 0,
    "toml": 0,
    "quiet": 0,
    "parts": 1,
    "experiment": 1,
    "nn": 2,
    "models": 2,
    "transforms": 3,
    "data": 4,
    "analysis": 5,
    "procedures": 5,
    "engine": 6,
    "export": 6,
    "export_c": 6,
    "export_circuit": 6,
    "measure": 6,
    "ort": 6,
    "runs": 6,
    "zoo": 6,
    "training": 7,
    "reporting": 7,
    "importers": 7,
    "cli": 8,
    "testing": 8,
    "__init__": 8,
    "__main__": 8,
}
FILES = sorted(p for p in ROOT.rglob("*.py") if "__pycache__" not in p.parts)


def top(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST, package: str) -> set[str]:
    """Names below `bitwright` that a module imports: "" is the package itself."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # from . import x
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    own = {n for n in found if n == "bitwright" or n.startswith("bitwright.")}
    return {n.removeprefix("bitwright").removeprefix(".").split(".")[0] for n in own}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports_of(path: Path) -> set[str]:
    return imported(tree_of(path), ".".join(["bitwright", *path.relative_to(ROOT).parent.parts]))


def test_a_file_imports_only_its_own_floor_or_a_lower_one() -> None:
    for path in FILES:
        mine, file = top(path), path.relative_to(ROOT)
        assert mine in FLOORS, f"{mine} has no floor: add it to FLOORS"
        for name in imports_of(path):
            # what is no module of the package is a name of bitwright/__init__.py, the top floor
            floor = FLOORS.get(name, FLOORS["__init__"])
            assert floor <= FLOORS[mine], (
                f"{file} of floor {FLOORS[mine]} imports {name or 'bitwright'} of floor {floor}"
            )


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """The nodes of one circle in the order of its arrows; empty where there is none."""
    done: set[str] = set()

    def visit(node: str, way: list[str]) -> list[str]:
        if node in way:
            return way[way.index(node) :]
        if node in done:
            return []
        found = next(filter(None, (visit(n, [*way, node]) for n in sorted(arrows.get(node, ())))), [])
        done.add(node)
        return found

    return next(filter(None, (visit(node, []) for node in sorted(arrows))), [])


def test_folders_do_not_import_each_other_in_a_circle() -> None:
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        name = top(path)
        if FLOORS[name] < FLOORS["__init__"]:
            arrows.setdefault(name, set()).update(imports_of(path) & FLOORS.keys() - {name, "__init__"})
    assert circle(arrows) == []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_a_class_name_means_one_thing() -> None:
    homes: dict[str, list[str]] = {}
    for path in FILES:
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_no_file_is_long() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {str(path.relative_to(ROOT)): n for path, n in lines.items() if n > 450} == {}


def test_training_and_reports_meet_in_the_files_of_a_run_alone() -> None:
    others = {"training": "reporting", "reporting": "training"}
    for path in FILES:
        assert others.get(top(path)) not in imports_of(path), path
        assert top(path) != "runs" or not others.keys() & imports_of(path), path


@pytest.mark.parametrize(
    ("text", "package", "names"),
    [
        ("from bitwright.parts import bwn", "bitwright.nn", {"parts"}),
        ("import bitwright.engine.pack", "bitwright.fn", {"engine"}),
        ("import bitwright as bw", "bitwright.fn", {""}),
        ("from bitwright import nn", "bitwright.fn", {"nn"}),
        ("from .. import cli\nfrom . import chain", "bitwright.parts", {"cli", "parts"}),
        ("from ..engine.pack import rows", "bitwright.parts", {"engine"}),
        ("def f():\n    from bitwright.cli import main", "bitwright.fn", {"cli"}),
        ("if TYPE_CHECKING:\n    from bitwright.measure import bench", "bitwright.fn", {"measure"}),
        ("import torch, bitwrighted", "bitwright.fn", set()),
    ],
)
def test_the_reader_sees_every_form_of_import(text: str, package: str, names: set[str]) -> None:
    assert imported(ast.parse(text), package) == names

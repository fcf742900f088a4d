"""`bitwright help`: every error code of the source and every topic that a message names has its text."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bitwright
from bitwright.cli.app import command
from bitwright.cli.help import codes, topics
from bitwright.cli.run import run

ROOT = Path(bitwright.__file__).parent
COMPUTED = {"bench-batch", "bench-rounds", "bench-threads"}  # code=f"bench-{name}"


def used() -> dict[str, str]:
    """Code -> file, for every `code="..."` in a call and every default of a parameter called code."""
    found: dict[str, str] = dict.fromkeys(COMPUTED, "measure/bench.py")
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            values = []
            if isinstance(node, ast.Call):
                values = [k.value for k in node.keywords if k.arg == "code"]
                if isinstance(node.func, ast.Name) and node.func.id == "_error" and path.name == "run.py":
                    values += node.args[:1]
            elif isinstance(node, ast.FunctionDef):
                values = [
                    d for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if a.arg == "code" and d
                ]
                named = node.args.args[len(node.args.args) - len(node.args.defaults) :]
                values += [d for a, d in zip(named, node.args.defaults, strict=True) if a.arg == "code"]
            for value in values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[value.value] = str(path.relative_to(ROOT))
    return found


@pytest.mark.slow
def test_every_error_code_of_the_source_is_explained():
    known = codes(topics()["errors"])
    missing = {code: file for code, file in used().items() if code not in known}
    assert not missing, f"no line in cli/topics/errors.md for {missing}"
    assert {"data-missing", "internal", "own-data", "input", "stopped"} <= set(used())


@pytest.mark.slow
def test_no_code_is_explained_that_nothing_raises():
    assert set(codes(topics()["errors"])) <= set(used())


def test_codes_are_sorted_and_short():
    lines = [line for line in topics()["errors"].splitlines() if line.startswith("- ")]
    assert lines == sorted(lines, key=lambda line: line.split(":")[0])
    assert all(len(line) <= 98 for name, text in topics().items() if name != "errors" for line in text.splitlines())


def test_every_topic_that_a_message_names_exists():
    """`bitwright help WORD` in the source and in the topics themselves."""
    texts = [p.read_text(encoding="utf-8") for p in ROOT.rglob("*") if p.suffix in (".py", ".md", ".html", ".j2")]
    named = {word for text in texts for word in re.findall(r"bitwright help ([a-z][a-z-]+[a-z])", text)}
    known = {*topics(), *codes(topics()["errors"])}
    assert named <= known and "flips" in named, named - known


def test_every_setting_that_a_page_names_exists():
    """`stage.1.teacher=previous` and the like go into an experiment of two stages."""
    from bitwright import experiment

    found = {s for text in topics().values() for s in re.findall(r"`([a-z]+\.[\w.]+=[\w.+-]+)`", text)}
    assert len(found) >= 4
    for setting in found:
        experiment.load("cifar10-resnet20-xnor", [setting])


@pytest.mark.parametrize("name", topics())
def test_a_page_is_printed_whole(name: str, capsys: pytest.CaptureFixture[str]):
    assert run(["help", name]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == topics()[name].splitlines()[0]
    assert run(["help", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["topic"]["text"] == topics()[name].rstrip()


def test_codes_in_any_spelling(capsys: pytest.CaptureFixture[str]):
    for word in ("data-missing", "BW-data-missing"):
        assert run(["help", word]) == 0
        assert capsys.readouterr().out.startswith("data-missing: ")


def test_list_and_commands(capsys: pytest.CaptureFixture[str]):
    assert run(["help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in topics())
    assert run(["help", "convert"]) == 0 and "bitwright convert --help" in capsys.readouterr().out


def test_unknown_word(capsys: pytest.CaptureFixture[str]):
    assert run(["help", "flip"]) == 2
    assert "Nearest: flips." in capsys.readouterr().err


def test_no_torch_for_help():
    """And none for the --help of the commands beside it."""
    code = (
        "import sys; from bitwright.cli.run import run\n"
        "for a in (['help', 'flips'], ['help', 'tied'], ['import', '--help'], ['data', '--help'], ['data', 'get', "
        "'--help'], ['doctor', '--help']): assert run(a) == 0, a\n"
        "print('TORCH' if 'torch' in sys.modules else 'FREE', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), timeout=60, check=False
    )
    assert done.stderr.splitlines()[-1] == "FREE", done.stderr


def pages() -> list[list[str]]:
    found = command().commands
    return [[], *([name] for name in found), *(["data", name] for name in found["data"].commands)]


@pytest.mark.parametrize("page", pages(), ids=" ".join)
def test_help_at_80_columns_is_whole(
    page: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*page, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10 and max(map(len, lines)) <= 80
    cut = [line for line in lines if "\u2026" in line or re.search(r"\w\.\.\.$", line)]
    assert [line for line in cut if not line.startswith("Usage:")] == []

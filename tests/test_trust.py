"""A run directory is data: whose Python code runs, and when."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitwright import experiment, trust
from bitwright.errors import InputError
from bitwright.usercode import Home, with_imports

NET = """
from pathlib import Path
from blocks import head
Path({mark!r}).write_text("ran")
import torch
def Net():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.BatchNorm1d(32), torch.nn.Hardtanh(),
        torch.nn.Linear(32, 32), torch.nn.BatchNorm1d(32), torch.nn.Hardtanh(), head())
"""
BLOCKS = "import torch\ndef head():\n    return torch.nn.Linear(32, 10)\n"
TOML = """
[data]
name = "digits"
limit = 64
limit_test = 32
[model]
name = "net.py:Net"
[[stage]]
epochs = 1
recipe = "bwn-sign"
[log]
tensorboard = false
histograms_every = 0
"""
RULES = '[[stage.rule]]\nmatch = "*"\nw = "bwn"\nx = "sign"\n'


@pytest.fixture(autouse=True)
def _no_modules_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) & {"net", "blocks"} - before:
        del sys.modules[name]
    sys.path[:] = path


def forget() -> None:
    """As in a new process."""
    for name in ("net", "blocks"):
        sys.modules.pop(name, None)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (folder / "net.py").write_text(NET.format(mark=str(tmp_path / "mark")))
    (folder / "blocks.py").write_text(BLOCKS)
    text = TOML.replace('recipe = "bwn-sign"\n', "").replace("[log]", f"{RULES}[log]")
    (folder / "mine.toml").write_text(text)
    return folder


def test_a_run_of_ones_own_needs_no_word_and_a_moved_one_needs_it_once(project: Path, call: Any) -> None:
    mark = project.parent / "mark"
    assert call("train", "mine.toml", "--out", "runs/mine")[0] == 0
    run = project / "runs" / "mine"
    assert sorted(p.name for p in (run / "code").iterdir()) == ["blocks.py", "net.py"]
    forget()
    code, _, err = call("convert", "runs/mine")
    assert "--trust" not in err and code in (0, 1)

    moved = shutil.move(run, project.parent / "elsewhere")
    for name in ("net.py", "blocks.py", "mine.toml"):  # the run needs nothing from outside
        (project / name).unlink()
    for argv in (
        ["convert", moved], ["eval", moved], ["plan", moved], ["cost", moved], ["analyze", "pca", moved], ["train", moved],
        ["plan", f"{moved}/experiment.toml"], ["train", f"{moved}/experiment.toml", "--dry-run"],
    ):  # fmt: skip
        forget()
        mark.unlink(missing_ok=True)
        code, _, err = call(*map(str, argv))
        said = [line for line in err.splitlines() if line.startswith("error:")]
        assert code == 2 and len(said) == 1 and said[0].endswith("add: --trust") and "net.py:Net" in said[0], argv
        assert not mark.exists(), argv
    assert call("report", str(moved))[0] == 0 and not mark.exists()

    forget()
    assert call("cost", str(moved), "--trust")[0] == 0 and mark.exists()
    forget()
    assert call("plan", str(moved))[0] == 0  # once is enough
    with open(Path(moved) / "code" / "blocks.py", "a") as file:
        file.write("# changed\n")
    assert call("plan", str(moved))[0] == 2  # what runs is not what was trusted


def test_a_packed_net_of_a_stranger_is_judged_and_timed_without_the_code(project: Path, call: Any) -> None:
    mark = project.parent / "mark"
    assert call("train", "mine.toml", "--out", "runs/mine")[0] == 0
    call("convert", "runs/mine", "--force")
    shutil.move(project / "runs" / "mine", "theirs")
    mark.unlink()
    forget()
    if not Path("theirs/packed.safetensors").exists():
        pytest.skip("nothing was packed")
    assert call("eval", "theirs", "--packed")[0] == 0
    code, out, err = call("bench", "theirs", "--rounds", "1", "--against", "torch-fp32")
    assert code == 0 and "without other programs" in err and "--trust" in err and "bitwright" in out
    assert not mark.exists()


@pytest.mark.slow
def test_where_nothing_can_be_written_trust_is_asked_for_each_time(
    project: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.parent / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(project.parent / "file"))
    assert call("train", "mine.toml", "--out", "runs/mine")[0] == 0
    assert call("plan", "runs/mine")[0] == 2
    for _ in range(2):
        assert call("plan", "runs/mine", "--trust")[0] == 0
    assert call("plan", "runs/mine")[0] == 2


@pytest.mark.parametrize(
    "text",
    [
        '[model]\nname = "os:system"\ncommand = "x"\n[[stage]]\nepochs = 1\n',
        '[data]\nname = "os:system"\n[[stage]]\nepochs = 1\n',
        '[[stage]]\nepochs = 1\nloss = "os:system"\n',
    ],
)
def test_no_experiment_names_a_module(text: str) -> None:
    with pytest.raises(InputError, match=r'line \d: .*"os:system" is a module; possible: file.py:name'):
        experiment.parse(text)
    made = experiment.Experiment.model_validate({"stage": [{"epochs": 1}], "model": {"name": "os:system"}})
    with pytest.raises(InputError, match="not a module"):
        made.home.place("os:system", "model")


def test_code_lies_in_the_experiments_own_folder(project: Path, call: Any) -> None:
    (project / "sub").mkdir()
    (project / "sub" / "there.toml").write_text(TOML.replace('"bwn-sign"', '"bwn"'))
    code, _, err = call("plan", "sub/there.toml")
    assert code == 2 and f"no file {Path('sub') / 'net.py'}" in err  # not the one of the current folder
    (project / "sub" / "there.toml").write_text(TOML.replace('"net.py:', '"../net.py:'))
    code, _, err = call("plan", "sub/there.toml")
    assert code == 2 and "outside of the experiment's folder sub" in err
    (project / "sub" / "net.py").symlink_to(project / "net.py")
    (project / "sub" / "there.toml").write_text(TOML)
    code, _, err = call("plan", "sub/there.toml")
    assert code == 2 and "outside of the experiment's folder sub" in err
    # what is named on the command line is named by hand, so it may lie in the current folder
    text = '[[stage]]\nepochs = 1\nrecipe = "bwn"\n'
    (project / "sub" / "there.toml").write_text(text)
    assert experiment.load("sub/there.toml", ["model.name=net.py:Net"]).home.place("net.py:Net", "m")[0] == Path()


def test_imports_from_beside_the_file_are_found_without_running_it(project: Path) -> None:
    (project / "pack").mkdir()
    (project / "pack" / "__init__.py").write_text("raise SystemExit\n")
    (project / "pack" / "deep.py").write_text("def f():\n    import late\n")
    (project / "late.py").write_text("")
    (project / "other.py").write_text("")  # nobody's
    (project / "net.py").write_text("import torch, json\nfrom pack.deep import f\nraise SystemExit\n")
    found = with_imports(project, "net.py")
    assert sorted(found) == ["late.py", "net.py", "pack/__init__.py", "pack/deep.py"]
    (project / "bad.py").write_text("def (")
    assert sorted(with_imports(project, "bad.py")) == ["bad.py"]


def test_the_record_is_of_this_path_and_these_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "experiment.toml").write_text("a")
    assert trust.folders_of(run) is None
    trust.remember(run, (tmp_path,))
    assert trust.folders_of(run) == (tmp_path,)
    shutil.copytree(run, tmp_path / "copy")
    assert trust.folders_of(tmp_path / "copy") is None
    (run / "experiment.toml").write_text("b")
    assert trust.folders_of(run) is None
    with trust.asked(True):
        assert trust.folders_of(run) == ()
    assert trust.folders_of(run) == ()
    next((tmp_path / "config" / "bitwright" / "trusted").iterdir()).write_text("[1")
    assert trust.folders_of(run) is None


def test_a_home_of_python_takes_any_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("value = 3\n")
    assert Home().find(f"{tmp_path / 'own.py'}:value", "model") == 3
    with pytest.raises(InputError, match="no file"):
        Home().find(f"{tmp_path / 'none.py'}:value", "model")

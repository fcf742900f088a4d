"""Things that people type and files that people have: each end is one clear line with the right exit code."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bitwright.cli.run import run

TINY = """
[data]
name = "digits"
limit = 40
limit_test = 20
batch = 20
[model]
name = "mlp"
hidden = 16
depth = 2
[[stage]]
epochs = 1
[[stage]]
epochs = 1
recipe = "bwn"
[train]
device = "cpu"
threads = 1
[log]
tensorboard = false
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(TINY)
    return tmp_path


def says(*words: str) -> tuple[int, str]:
    """(exit code, the one error line, "" where all is well)."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(list(words))
    errors = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    assert len(errors) == (1 if code else 0) and "Traceback" not in err.getvalue()
    return code, errors[0] if errors else ""


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("train.threads=1000000", "possible: a whole number from 1 to 1024"),  # OpenMP would end the process
        ("train.devices=999", "a process each, but"),
        ("model.hidden=10000000000000", "out of memory. Try a smaller batch, input or model"),
        ("stage.1.teacher=nowhere", "stage 1: teacher nowhere: no such file"),  # before stage 0 is trained
        ("stage.0.teacher=toy.toml/x", "stage 0: teacher toy.toml/x: no such file"),
    ],
)
def test_what_can_be_known_is_said_before_any_work(override: str, text: str, here: Path) -> None:
    code, line = says("train", "toy.toml", override)
    assert code == 2 and text in line
    assert not (here / "runs/toy/metrics.csv").exists()


def test_threads_of_the_commands(here: Path) -> None:
    code, line = says("bench", "conv:8x4", "--threads", "100000")
    assert code == 2 and "1024" in line
    code, line = says("convert", "runs/toy", "--threads", "100000")
    assert code == 2 and "1024" in line


def test_weights_that_are_not_finite_are_named(here: Path) -> None:
    assert says("train", "toy.toml")[0] == 0
    path = here / "runs/toy/model.safetensors"
    with safe_open(path, "pt") as f:
        tensors, metadata = {key: f.get_tensor(key) for key in f.keys()}, f.metadata()  # noqa: SIM118
    tensors["fc2.weight"][0, 0] = torch.nan
    save_file(tensors, path, metadata)
    code, line = says("convert", "runs/toy")
    assert code == 1 and "convert: fc2.weight holds nan" in line


def test_damaged_tables_of_a_run(here: Path) -> None:
    assert says("train", "toy.toml")[0] == 0
    (here / "runs/toy/results.csv").write_bytes(bytes(range(256)))
    for command in ("eval", "convert"):
        assert says(command, "runs/toy") == (2, "error: run runs/toy: results.csv is damaged: not UTF-8 text")


def test_files_where_a_run_is_wanted(here: Path) -> None:
    assert says("eval", "toy.toml")[1].startswith("error: eval toy.toml: a file, not a run directory")
    assert says("eval", "nowhere")[1].startswith("error: eval nowhere: no such folder")
    assert says("convert", "nowhere") == (2, "error: convert: no file nowhere")
    assert "no file or module before the colon" in says("cost", ":Net", "--input", "3,8,8")[1]


def test_a_broken_file_of_the_user_stays_broken(here: Path) -> None:
    """Half a module must not pass for a whole one the second time."""
    (here / "broken_half.py").write_text("ready = 1\nraise RuntimeError('not today')\n")
    for _ in range(2):
        code, line = says("cost", "broken_half.py:Net", "--input", "3,8,8")
        assert code == 2 and "importing broken_half.py failed: RuntimeError: not today" in line
    (here / "nothing_in_it.py").write_text("")
    assert says("cost", "nothing_in_it.py:Net", "--input", "3,8,8")[1].endswith("Callables: none")


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there")
def test_a_folder_whose_name_is_no_text(here: Path) -> None:
    name = os.fsdecode(b"r\xfcns")
    code, line = says("train", "toy.toml", "--out", name)
    assert code == 2 and "is not UTF-8 text" in line and not Path(name).exists()
    assert says("eval", name)[0] == 2
    line.encode()


def test_ctrl_c_is_one_line_and_130(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitwright.cli.report._one", stop)
    assert says("report", "runs/toy") == (130, "error: report: stopped")
    out = io.StringIO()
    with redirect_stdout(out):
        assert run(["report", "runs/toy", "--json"]) == 130
    data = json.loads(out.getvalue())
    assert data["exit_code"] == 130 and data["status"] == "error" and data["error"]["code"] == "stopped"


def test_a_reader_that_has_gone_is_not_the_answer_no() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "bitwright", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("columns", [80, 100])
def test_lines_fit(columns: int, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in (["methods"], ["methods", "ttq"], ["experiments"], ["recipes"], ["plan", "resnet20", "xnor"],
                  ["cost", "resnet20", "xnor"], ["data", "check", "digits"]):  # fmt: skip
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            assert run(words) == 0
        wide = [line for line in out.getvalue().splitlines() if len(line) > columns]
        assert not wide, (words, wide)

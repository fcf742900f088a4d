"""One training at a time in a folder, nothing of an old run in a new one, a disk that is full."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitwright import experiment
from bitwright.errors import InputError
from bitwright.runs import Run, file_list
from bitwright.runs.lock import locked
from bitwright.runs.result_tables import Sweeps
from bitwright.runs.tables import Classes, Gate, Health
from bitwright.training import train
from bitwright.training.probe import MEASURES

TINY = """
[data]
name = "digits"
limit = 64
limit_test = 32
[model]
name = "mlp"
hidden = 8
depth = 1
[[stage]]
epochs = 1
[log]
tensorboard = false
histograms_every = 0
"""


def tiny(*overrides: str) -> experiment.Experiment:
    return experiment.parse(TINY, overrides)


def test_a_second_training_is_refused_with_the_process_of_the_first(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with locked(run):
        assert json.loads((run / file_list.LOCK).read_text()) == {"host": socket.gethostname(), "process": os.getpid()}
        for how in ({}, {"resume": True}, {"force": True}):
            with pytest.raises(InputError, match=f"process {os.getpid()} is training in") as error:
                train(tiny(), run, **how)  # type: ignore[arg-type]
            assert error.value.code == "run-locked" and "\n" not in str(error.value)
        assert (run / file_list.LOCK).exists()
    assert not list(run.iterdir())
    train(tiny(), run)
    assert not (run / file_list.LOCK).exists()


@pytest.mark.slow
def test_a_killed_training_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from bitwright.runs.lock import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert (tmp_path / "run" / file_list.LOCK).exists()
    train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run" / file_list.LOCK).exists()


def test_a_lock_of_another_machine_is_believed(tmp_path: Path) -> None:
    (tmp_path / file_list.LOCK).write_text(json.dumps({"host": "elsewhere", "process": 7}))
    with pytest.raises(InputError, match=r"process 7 on elsewhere .* If it is gone, remove .*train\.lock"):
        train(tiny(), tmp_path)
    for text in ("", "[", "{}", '{"host": 3}', "[" * 3000, '{"host": null, "process": "x"}'):
        (tmp_path / file_list.LOCK).write_text(text)
        with locked(tmp_path):
            pass


def test_force_clears_every_file_of_a_run_and_nothing_else(tmp_path: Path) -> None:
    for name in file_list.FILES:
        (tmp_path / name).write_text("old")
    for name in file_list.FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").touch()
    (tmp_path / "mine.txt").touch()
    train(tiny(), tmp_path, force=True)
    new = {p.name for p in tmp_path.iterdir()} - {"mine.txt"}
    assert "pca.json" not in new and "stages" in new and not (tmp_path / "stages" / "old").exists()
    assert all((tmp_path / name).read_bytes() != b"old" for name in new - {"stages"})
    assert (tmp_path / "mine.txt").exists()
    assert new <= {*file_list.FILES, *file_list.FOLDERS}  # what a training writes is in the list


def test_the_documentation_lists_the_files_and_columns_that_there_are() -> None:
    page = (Path(__file__).parents[1] / "docs/concepts/run-directory.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([\w./]+)` \| (.*) \|$", page.partition("| column of")[0], re.M))
    assert listed.pop(file_list.LOCK)
    assert listed == file_list.FILES | {f"{name}/": what for name, what in file_list.FOLDERS.items()}
    assert re.findall(r"^\| `(\w+)` \|", page.partition("| column of `health.csv`")[2], re.M) == list(MEASURES)
    assert list(MEASURES) == [name for name in Health.columns() if name not in ("stage", "epoch", "layer")]


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Of every kind of file one; a damaged cell is named with its place."""
    run = Run(tmp_path)
    assert run.read(Health) == run.read(Classes) == ()
    run.write(Health, [{"stage": 0, "epoch": 1, "layer": "a,b", "flips": 0.25}, {"stage": 0, "epoch": 2, "layer": "c"}])
    assert run.read_text("health.csv") == (
        'stage,epoch,layer,flips,dead,scale,saturation,positive\n0,1,"a,b",0.25,,,,\n0,2,c,,,,,\n'
    )
    first, second = run.read(Health)
    assert (first.layer, first.flips, second.epoch, second.flips) == ("a,b", 0.25, 2, None)
    run.write(Classes, [{"classes": ["x", "y"]}])
    assert [found.classes for found in run.read(Classes)] == [("x", "y")]
    run.write_text("health.csv", "stage,epoch,layer,flips\n0,1,a,0.5\n0,2,a,often\n")
    with pytest.raises(InputError, match=r"health\.csv row 2: flips is 'often'; possible: a number or an empty cell"):
        run.read(Health)
    run.write_text("sweep.json", '{"sweeps": [{"images": 3, "rows": [{"on": "no"}]}]}')
    with pytest.raises(InputError, match=r"sweep\.json, sweeps 0, rows 0: on is 'no'"):
        run.read(Sweeps)
    run.write_text("gates.csv", "layer\na\n")
    with pytest.raises(InputError, match=r"gates\.csv row 1: stage is missing"):
        run.read(Gate)


def test_force_does_not_remove_what_the_experiment_reads(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny(), run)
    (run / "hybrid.toml").write_text('[[rule]]\nmatch = "*"\nw = "bwn"\n')
    for override in (f"model.weights={run}", f"stage.0.teacher={run}", f"stage.0.recipe={run / 'hybrid.toml'}"):
        with pytest.raises(InputError, match="which --force would clear"):
            train(tiny(override), run, force=True)
    assert Run(run).has("model.safetensors") and Run(run).has("hybrid.toml")


def full(*args: Any, **options: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "place",
    [
        "bitwright.runs.folder.Run.write_json",
        "tensorboard.compat.tensorflow_stub.io.gfile.LocalFileSystem._write",
        "bitwright.training.last_checkpoint.torch.save",
    ],
)
def test_a_disk_that_is_full_at_the_start_is_one_true_line(
    place: str, tmp_path: Path, call: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, full)
    (tmp_path / "t.toml").write_text(TINY.replace("tensorboard = false\n", ""))
    code, _, err = call("train", str(tmp_path / "t.toml"), "--out", str(tmp_path / "run"))
    assert code == 2 and "Traceback" not in err
    said = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and "No space left on device. Nothing was saved yet. Make room" in said[0]
    assert "whole" not in said[0] and not (tmp_path / "run").exists()  # the same command again finds nothing in its way

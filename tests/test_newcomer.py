"""Own model, own pictures, only the command line: train, convert, bench, report; killed, moved, in odd places, read-only."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bitwright.training.last_checkpoint import read_checkpoint

pytestmark = pytest.mark.slow

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, channels=16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(channels, 3)

    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x)))
        x = nn.functional.max_pool2d(torch.relu(self.norm2(self.conv2(x))), 2)
        x = torch.relu(self.norm3(self.conv3(x)))
        return self.fc(self.drop(x.mean((2, 3))))
"""
EXPERIMENT = """
[data]
name = "folder"
root = "pictures"
size = 12
batch = 20
[model]
name = "net.py:Net"
channels = 24
[[stage]]
epochs = 4
optimizer = { name = "adam", lr = 1e-2 }
[[stage]]
recipe = "w1a1"
epochs = EPOCHS
optimizer = { name = "adam", lr = 5e-3 }
teacher = "previous"
[train]
device = "cpu"
threads = 1
checkpoint_every = 3
"""
CLASSES = ("blau", "grün", "rot")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a newcomer has it: a blank and letters beyond ASCII in its name, a net, pictures, an experiment."""
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow: pip install 'bitwright[data]'")
    folder = tmp_path_factory.mktemp("home") / "meine Übung Nr 1"
    torch.manual_seed(0)
    for c, name in enumerate(CLASSES):
        (folder / "pictures" / name).mkdir(parents=True)
        for i in range(40):
            pixels = torch.randint(0, 120, (14, 16, 3), dtype=torch.uint8)
            pixels[:, :, 2 - c] += 90
            image.fromarray(pixels.numpy()).save(folder / "pictures" / name / f"bild {i}.jpg", quality=90)
    (folder / "net.py").write_text(NET, encoding="utf-8")
    (folder / "toy.toml").write_text(EXPERIMENT.replace("EPOCHS", "4"), encoding="utf-8")
    (folder / "long.toml").write_text(EXPERIMENT.replace("EPOCHS", "12"), encoding="utf-8")
    return folder


def bitwright(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "bitwright", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def same_weights(a: Path, b: Path) -> bool:
    x, y = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    """The run, trained, converted, measured and reported."""
    done = bitwright(place, "train", "toy.toml")
    assert "folder" in done.stdout.splitlines()[0] and "next:   bitwright convert runs/toy" in done.stderr
    done = bitwright(place, "convert", "runs/toy")
    assert "same class" in done.stdout and (place / "runs/toy/packed.safetensors").is_file()
    bitwright(place, "bench", "runs/toy", "--rounds", "2")
    bitwright(place, "report", "runs/toy")
    return place / "runs" / "toy"


def test_all_the_way(made: Path) -> None:
    results = {row["net"]: row for row in table(made / "results.csv")}
    assert float(results["float"]["accuracy"]) > 0.8, "three colors are easy"
    assert float(results["trained"]["accuracy"]) > 0.5
    assert results["bitwright"]["accuracy"] == results["trained"]["accuracy"]
    assert float(results["bitwright"]["latency_ms"]) > 0
    layers = {row["layer"]: row["runs_as"] for row in table(made / "layers.csv")}
    assert layers["conv2"].startswith("bits") and layers["conv3"].startswith("bits")
    page = (made / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in CLASSES) and 'src="http' not in page
    assert json.loads((made / "classes.json").read_text(encoding="utf-8"))["classes"] == list(CLASSES)


def test_killed_inside_the_second_stage(place: Path) -> None:
    """kill -9 while steps of stage 1 are provably being done; the resumed run is the unbroken one, bit for bit."""
    bitwright(place, "train", "long.toml", "--out", "runs/unbroken")
    words = [sys.executable, "-m", "bitwright", "train", "long.toml", "--out", "runs/broken"]
    process = subprocess.Popen(words, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    saved = place / "runs" / "broken" / "last.ckpt"
    end = time.monotonic() + 120
    try:
        while process.poll() is None and time.monotonic() < end:
            if saved.is_file():
                state = read_checkpoint(saved)["bitwright"]["state"]
                if state["stage"] == 1 and state["step"] > 0:
                    break
            time.sleep(0.005)
        assert process.poll() is None, "it was still training when it was killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    state = read_checkpoint(saved)["bitwright"]["state"]
    last = len(table(place / "runs" / "unbroken" / "metrics.csv")) - 4  # epochs of stage 1
    assert state["stage"] == 1 and state["step"] > 0 and state["epoch"] < last
    assert not (saved.parent / "model.safetensors").exists()
    done = bitwright(place, "train", "long.toml", "--out", "runs/broken", "--resume")
    assert f"resumed: stage 1, epoch {state['epoch']}, step {state['batch']} " in done.stderr
    assert same_weights(place / "runs/unbroken", place / "runs/broken")
    columns = ("stage", "epoch", "step", "loss", "top1", "test_top1", "flips", "dead")
    unbroken, broken = (
        [[row[c] for c in columns] for row in table(place / "runs" / name / "metrics.csv")]
        for name in ("unbroken", "broken")
    )
    assert unbroken == broken


def test_moved_elsewhere(place: Path, made: Path, tmp_path: Path) -> None:
    """A run holds no absolute path: beside the same net and pictures it works anywhere."""
    home = tmp_path / "ganz wo anders ü"
    home.mkdir()
    shutil.copy(place / "net.py", home)
    shutil.copytree(place / "pictures", home / "pictures")
    shutil.copytree(made, home / "umgezogen")
    for name in ("experiment.toml", "command.txt", "machine.json", "state.json", "convert.json", "bench.json"):
        assert str(place) not in (home / "umgezogen" / name).read_text(encoding="utf-8"), name
    before = {row["net"]: row["accuracy"] for row in table(made / "results.csv")}
    assert (
        "--trust" in bitwright(home, "eval", "umgezogen", code=2).stderr
    )  # it was moved: its code is asked about once
    data = json.loads(bitwright(home, "eval", "umgezogen", "--trust", "--json").stdout)
    assert {n["net"]: n["accuracy"] for n in data["eval"]["nets"]} == {
        name: float(before[name]) for name in ("trained", "bitwright")
    }
    bitwright(home, "convert", "umgezogen")
    bitwright(home, "report", "umgezogen")
    assert (home / "umgezogen" / "packed.safetensors").read_bytes() == (made / "packed.safetensors").read_bytes()
    # from another folder: pictures and net are looked for where the command is typed, and it says so
    done = bitwright(tmp_path, "eval", f"{home.name}/umgezogen", code=2)
    assert re.fullmatch(r"error: data folder pictures: no such folder; possible: .*", done.stderr.splitlines()[-1])


@pytest.mark.skipif(os.name != "posix", reason="rights are set the posix way")
def test_a_read_only_run(made: Path, tmp_path: Path) -> None:
    """What needs no writing works; the rest is one line with the file's name."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(made.parent.parent / "net.py", home)
    shutil.copytree(made.parent.parent / "pictures", home / "pictures")
    shutil.copytree(made, home / "run")
    folder = home / "run"
    bitwright(home, "plan", "run", "--trust")
    with _nobody_writes(folder):
        words = (("convert", "run"), ("report", "run"), ("train", "run/experiment.toml", "--out", "run", "--resume"))
        for command in words:
            done = bitwright(home, *command, code=2)
            errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1 and ("Read-only" in errors[0] or "Permission denied" in errors[0]), done.stderr
        bitwright(home, "report", "run", "-o", "page.html")
        bitwright(home, "cost", "run")


class _nobody_writes:
    """A folder without write permission; for root, whom permissions do not stop, a read-only mount of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mounted = folder, False

    def __enter__(self) -> None:
        if os.geteuid() != 0:
            self.folder.chmod(0o555)
            return
        for words in (["mount", "--bind", str(self.folder), str(self.folder)],
                      ["mount", "-o", "remount,bind,ro", str(self.folder)]):  # fmt: skip
            if subprocess.run(words, capture_output=True, check=False).returncode:
                self.__exit__()
                pytest.skip("root may write anywhere, and nothing may be mounted here")
            self.mounted = True

    def __exit__(self, *error: object) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)
        else:
            self.folder.chmod(0o755)


def test_wrong_use_of_own_code_is_one_line(place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "toy.toml", tmp_path)
    (tmp_path / "broken.py").write_text("class Net(\n")
    (tmp_path / "sad.py").write_text("def Net(channels):\n    raise RuntimeError('no weights today')\n")
    for name, text in (
        ("broken.py:Net", "importing broken.py failed: SyntaxError"),
        ("sad.py:Net", "failed: RuntimeError: no weights today"),
        ("gone.py:Net", "no file gone.py"),
    ):
        words = ("toy.toml", f"model.name={name}", f"data.root={place / 'pictures'}", "--out", name[:3], "--quiet")
        done = bitwright(tmp_path, "train", *words, code=2)
        assert len(done.stderr.splitlines()) == 1 and done.stdout == "" and text in done.stderr, done.stderr

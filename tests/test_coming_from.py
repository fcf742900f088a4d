"""docs/coming-from: every flag of the old script is there, and what the page says to type does what the flag did."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.cli.run import run
from bitwright.data import Dataset
from bitwright.runs import Run
from oracles import xnor_net as oracle
from overrides import value_at
from processes import finished

PAGE = (Path(__file__).parent.parent / "docs" / "coming-from" / "xnor-net.md").read_text(encoding="utf-8")
NAME = "imagenet-alexnet-xnor"
# the options of ImageNet/networks/main.py, long form, and where the same is found in an experiment
FLAGS: dict[str, Any] = {
    "--arch": ("model.name", "alexnet"), "--data": None, "--caffe-data": ("data.format", "lmdb"),
    "--workers": ("data.workers", 8), "--epochs": ("stage.0.epochs", 100), "--start-epoch": None,
    "--batch-size": ("data.batch", 256), "--lr": ("stage.0.optimizer.lr", 0.001),
    "--momentum": ("stage.0.optimizer.betas", (0.9, 0.999)), "--weight-decay": ("stage.0.optimizer.weight_decay", 1e-5),
    "--print-freq": ("log.health_every", 10), "--resume": None, "--evaluate": None, "--pretrained": None,
    "--world-size": ("train.devices", 2), "--dist-url": ("train.devices", 2), "--dist-backend": ("train.device", "cpu"),
}  # fmt: skip
SHORT = {"-a": "--arch", "-j": "--workers", "-b": "--batch-size", "-p": "--print-freq", "-e": "--evaluate",
         "--wd": "--weight-decay", "--learning-rate": "--lr"}  # fmt: skip
CLASSES, SIZE = 12, 227
TINY = ["model.width=0.0625", "model.dropout=0", "epochs=1", "data.batch=4", "train.precision=fp32"]


def rows() -> dict[str, str]:
    """Long flag -> what to type, from the first table of the page."""
    found: dict[str, str] = {}
    for line in PAGE.split("## Flag by flag")[1].split("\n## ")[0].splitlines():
        if not line.startswith("| `"):
            continue
        flags, typed = re.findall(r"`([^`]*)`", line.split("|")[1]), re.findall(r"`([^`]*)`", line.split("|")[2])
        assert len(typed) == 1
        assert len({SHORT.get(flag, flag) for flag in flags}) == 1, line
        name: str = flags[0]
        found[SHORT.get(name, name)] = typed[0]
    return found


def test_every_flag_has_its_row() -> None:
    assert set(rows()) == set(FLAGS)
    assert all(f"`{short}`" in PAGE for short in SHORT)


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if FLAGS[flag] is not None])
def test_an_override_sets_what_the_flag_set(flag: str) -> None:
    where, value = FLAGS[flag]
    assert value_at(NAME, [rows()[flag]], where) == value


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Random images instead of ImageNet; how they were asked for."""
    asked: list[dict[str, Any]] = []

    def stand_in(name: str, root: str | None = None, split: str = "train", **more: Any) -> Dataset:
        asked.append({"name": name, "root": root, "split": split, **more})
        g = torch.Generator().manual_seed(len(split))
        pixels = torch.randint(256, (8, 3, SIZE, SIZE), dtype=torch.uint8, generator=g)
        moments = (0.485, 0.456, 0.406), (1 / 255,) * 3
        return Dataset(name, pixels, torch.arange(8), tuple(map(str, range(CLASSES))), *moments)

    monkeypatch.setattr("bitwright.data.load", stand_in)
    return asked


def test_the_page_typed_at_tiny_size(
    images: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All overrides at once (but for two processes), then go on, evaluate, import, evaluate the old weights."""
    monkeypatch.chdir(tmp_path)
    typed = rows()
    overrides = [text for text in typed.values() if "=" in text and text != "train.devices=2" and "--" not in text]
    command = ["train", NAME, *shlex.split(typed["--data"]), *overrides, *TINY]
    assert run(command) == 0, capsys.readouterr().err
    assert {asked["root"] for asked in images} == {"data"} and images[0]["name"] == "imagenet"
    made = Run("runs/" + NAME)
    assert made.has("model.safetensors") and len(made.read_csv("metrics.csv")) == 1
    state = made.file("model.safetensors").read_bytes()

    assert typed["--start-epoch"] == typed["--resume"] == "--resume"
    assert run([*command, "--resume"]) == 0, capsys.readouterr().err  # it was done: nothing changes
    assert made.file("model.safetensors").read_bytes() == state

    torch.save({"state_dict": oracle.make_state("alexnet", CLASSES, 0.0625), "epoch": 1}, "alexnet.pth.tar")
    evaluate, old = (shlex.split(typed[flag])[1:] for flag in ("--evaluate", "--pretrained"))
    importing = next(line for line in PAGE.splitlines() if line.startswith("$ bitwright import"))
    assert run(shlex.split(importing)[2:]) == 0, capsys.readouterr().err
    capsys.readouterr()
    for words in (evaluate, old):
        assert run(words) == 0, capsys.readouterr().err
        assert "top-5 %" in capsys.readouterr().out


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """`train.devices=2` in a process of its own, on pictures that both processes find."""
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "val"):
        for i in range(8):
            folder = tmp_path / "pictures" / split / f"class{i % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            image.effect_noise((80, 70), 90).convert("RGB").save(folder / f"{i}.jpg")
    words = ["train", NAME, rows()["--world-size"], rows()["--dist-backend"], *TINY]
    words += ["data.name=folder", "data.root=pictures"]
    program = [sys.executable, "-m", "bitwright", *words, "--out", "run"]
    finished(program, tmp_path)
    assert (tmp_path / "run" / "model.safetensors").is_file()

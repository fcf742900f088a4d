"""The twelve likeliest errors: each is one line on stderr, the right exit code, and says what, given, possible, try."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright as bw
from bitwright import experiment
from bitwright.cli import model_argument
from bitwright.cli.run import run
from bitwright.errors import InputError
from bitwright.runs import Run

NET = """
import torch
from torch import nn


class MyConv(nn.Conv2d):
    def forward(self, x):
        return -super().forward(x)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1)
        self.conv2 = MyConv(32, 32, 3, padding=1)

    def forward(self, x):
        return self.conv2(self.conv1(x))


class Branchy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)

    def forward(self, x):
        y = self.a(x)
        if y.sum() > 0:  # the branch
            y = y + 1
        return self.b(y)
"""


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command that must fail, in a folder of its own -> its one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text(NET)

    def go(argv: Sequence[str], *pieces: str, code: int = 2, progress: int = 0) -> str:
        capsys.readouterr()
        got = run(list(argv))
        captured = capsys.readouterr()
        assert got == code and captured.out == "", captured
        lines = captured.err.splitlines()
        assert lines[-1].startswith("error: ") and len(lines) <= 1 + progress, captured.err
        for piece in pieces:
            assert piece in captured.err, captured.err
        return captured.err

    return go


def recipe(text: str) -> str:
    """mine.toml in the current folder."""
    Path("mine.toml").write_text(text)
    return "mine.toml"


def test_unknown_recipe(fails: Any):
    fails(["plan", "resnet20", "xnorr"], "recipe xnorr: no such recipe or file. Nearest: xnor. All: bitwright recipes")


def test_rule_that_matches_nothing(fails: Any):
    own = recipe('[[rule]]\nmatch = "*"\nw = "bwn"\n[[rule]]\nmatch = "layer5.*"\nw = "bwn"\n')
    fails(
        ["plan", "resnet20", own],
        'plan resnet20: rule 1 match="layer5.*" selects no layer.',
        "Names here: conv1, layer1.*, layer2.*, layer3.*, fc",
    )


def test_unknown_option(fails: Any):
    own = recipe('[[rule]]\nmatch = "*"\nw = { part = "ttq", treshold = 0.1 }\n')
    line = fails(["plan", "resnet20", own], "part ttq: unknown option treshold=0.1.", "Options: threshold=0.05, init=")
    assert "Nearest: threshold" in line


def test_part_in_the_wrong_slot(fails: Any):
    own = recipe('[[rule]]\nmatch = "layer1.0.conv1"\nx = { part = "dorefa_w", bits = 2 }\n')
    line = fails(["plan", "resnet20", own], "part dorefa_w in slot x: serves slot w only. For inputs: ")
    assert "dorefa_a" in line and "sign" in line


def test_subclass_with_its_own_forward(fails: Any):
    own = recipe('[[rule]]\nmatch = "conv2"\nw = "bwn"\nx = "sign"\n')
    line = fails(
        ["bench", "mynet.py:Own", "--recipe", own, "--input", "3,8,8"],
        "apply: conv2 (MyConv, subclass of Conv2d with its own forward) cannot be replaced",
        'match="conv2" w="float"',
    )
    assert "Use bw.nn" in line


def test_data_not_found(fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BITWRIGHT_DATA", os.pathsep.join([str(tmp_path / "here"), str(tmp_path / "there")]))
    net = bw.models.create("resnet20", width=0.25)
    bw.save(net, "m.safetensors")
    fails(
        ["convert", "m.safetensors", "--model", "resnet20", "--data", "cifar10"],
        "data cifar10: not found in ",
        str(tmp_path / "here"),
        str(tmp_path / "there"),
        "Set BITWRIGHT_DATA or --data-root, or run: bitwright data get cifar10",
    )


def test_data_damaged(fails: Any):
    folder = Path("cifar-10-batches-py")
    folder.mkdir()
    whole = pickle.dumps({b"data": bytes(3072), b"labels": [1]})  # ours, written here; the reader runs nothing of it
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(whole[: len(whole) // 2])
    bw.save(bw.models.create("resnet20", width=0.25), "m.safetensors")
    fails(
        ["convert", "m.safetensors", "--model", "resnet20", "--data", "cifar10", "--data-root", "."],
        "data cifar10: ",
        "test_batch is damaged",
        "Delete it and run: bitwright data get cifar10",
    )


def test_forward_that_cannot_be_traced(fails: Any):
    net, _ = model_argument.make_model("mynet.py:Branchy", "test", (3, 8, 8))
    bw.apply(net, [{"match": "b", "w": "bwn", "x": "sign"}], torch.zeros(1, 3, 8, 8))
    bw.save(net, "branchy.safetensors")
    line = 1 + NET.splitlines().index("        if y.sum() > 0:  # the branch")
    fails(
        ["convert", "branchy.safetensors", "--model", "mynet.py:Branchy", "--input", "3,8,8", "--form", "graph"],
        f"convert Branchy: cannot trace forward: mynet.py line {line} branches on a tensor value.",
        "Convert a part, bw.convert(model.body, x), or move the branch outside",
    )


def test_nine_bits(fails: Any):
    own = recipe('[[rule]]\nmatch = "layer3.0.conv1"\nw = { part = "dorefa_w", bits = 9 }\n')
    fails(["plan", "resnet20", own], "layer3.0.conv1: part dorefa_w: bits=9; takes 1..8, or 32 for float")


def test_input_of_another_shape(fails: Any):
    net = torch.nn.Sequential(bw.nn.Conv2d(3, 32, 3, w="bwn", x="sign")).eval()
    bw.convert(net, torch.randn(1, 3, 32, 32)).save("packed.safetensors")
    fails(
        ["bench", "packed.safetensors", "--input", "1,28,28"],
        "packed.safetensors: input is 1x1x28x28, the model was converted for 3x32x32 (any batch).",
        "Resize, or convert again with this example",
    )


def test_load_with_keys_missing(fails: Any):
    net = bw.apply(torch.nn.Sequential(torch.nn.Linear(4, 4)), [{"match": "0", "w": "bwn"}])
    bw.save(net, "a b.safetensors")
    other = bw.apply(torch.nn.Sequential(torch.nn.Linear(4, 4)), [{"match": "0", "x": ["norm", "sign"]}])
    with pytest.raises(InputError) as caught:
        bw.load("a b.safetensors", other)
    text = str(caught.value)
    assert "load a b.safetensors: " in text and " keys missing (0.x." in text and "\n" not in text
    assert "because the file was trained with w=bwn, this model has " in text and "x=norm+sign" in text
    assert text.endswith("bitwright plan --diff 'a b.safetensors' RECIPE")
    # the command that it names works, and the same mistake on the command line is one line as well
    assert run(["plan", "--diff", "a b.safetensors", "xnor", "--quiet"]) == 0
    fails(
        ["convert", "a b.safetensors", "--model", "lenet5"],
        "load a b.safetensors: its recipe does not fit this model: ",
    )


def test_resume_with_a_changed_experiment(fails: Any):
    text = '[data]\nname = "digits"\nlimit = 64\nlimit_test = 16\n[model]\nname = "mlp"\nhidden = 16\ndepth = 1\n[[stage]]\nepochs = 1\n'
    Path("e.toml").write_text(text)
    assert run(["train", "e.toml", "--out", "runs/x", "--quiet"]) == 0
    shutil.copy("runs/x/experiment.toml", "before.toml")
    fails(
        ["train", "e.toml", "stage.0.optimizer.lr=0.5", "--out", "runs/x", "--resume"],
        "stage.0.optimizer.lr",
        "0.5",
        "error: resume runs/x: experiment differs from the saved one (",
        "For others start anew: --out ",
        code=1,
        progress=1,  # the head of `train`
    )
    assert experiment.load("before.toml") == Run("runs/x").experiment

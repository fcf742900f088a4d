"""docs/coming-from/self-pruning: every flag of the notebook is there, and what the page says to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.cli.run import run
from bitwright.data import Dataset
from bitwright.runs import Run
from overrides import value_at

PAGE = (Path(__file__).parent.parent / "docs" / "coming-from" / "self-pruning.md").read_text(encoding="utf-8")
NAME = "mnist-selfprune_mlp-selfprune-published"
# the notebook's options and arguments, and where the same is found in an experiment; None: a command
FLAGS: dict[str, Any] = {
    "--binary": None, "--cuda": ("train.device", "cuda"), "--bias": ("model.arguments.bias", True),
    "--in_features": ("model.arguments.size", 28), "--out_features": ("data.name", "mnist"),
    "--hidden_units": ("model.arguments.hidden", 4000), "--batch_size": ("data.batch", 200),
    "--test_batch_size": ("data.eval_batch", 1000), "--lr": ("stage.0.optimizer.lr", 0.001),
    "--epochs": ("stage.0.epochs", 60), "--print_freq": None, "--hist_freq": ("log.histograms_every", 100),
    "--full_eval_freq": ("log.sweep_every", 10), "--norm": ("model.arguments.norm", "batch_norm"),
    "--dataset": ("data.name", "fashion-mnist"), "on": ("stage.0.rule.0.w.on", 1.0),
    "off": ("stage.0.rule.0.w.off", 0.0), "random_mag": ("stage.0.rule.0.w.random_mag", 1.0),
    "epsilon": ("stage.0.rule.0.w.epsilon", 0.5),
}  # fmt: skip
DEFAULTS = (
    "--batch_size",
    "--test_batch_size",
    "--lr",
    "--epochs",
    "--hist_freq",
    "--full_eval_freq",
    "--out_features",
)
TINY = ["model.hidden=1000", "model.depth=2", "stage.0.epochs=2", "data.batch=20", "train.precision=fp32"]


def cells(heading: str) -> list[tuple[list[str], list[str]]]:
    """Code in the first two columns of the first table below a heading."""
    table = re.search(r"(?:^\|.*\n)+", PAGE.split(heading)[1], re.M)
    assert table is not None
    rows = [line.split("|")[1:3] for line in table[0].splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([^`]*)`", a), re.findall(r"`([^`]*)`", b)) for a, b in rows]


def flags() -> dict[str, str]:
    rows = cells("## Flag by flag") + cells("The arguments of `train_epoch`")
    assert all(len(left) == len(right) == 1 for left, right in rows)
    return {left[0]: right[0] for left, right in rows}


def test_every_flag_has_its_row() -> None:
    assert set(flags()) == set(FLAGS)


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if FLAGS[flag] is not None])
def test_an_override_sets_what_the_flag_set(flag: str) -> None:
    where, value = FLAGS[flag]
    assert value_at(NAME, shlex.split(flags()[flag]), where) == value


@pytest.mark.parametrize("flag", DEFAULTS)
def test_the_experiment_has_the_notebook_s_defaults(flag: str) -> None:
    where, value = FLAGS[flag]
    assert value_at(NAME, [], where) == value


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random pictures instead of MNIST; each has more of its class's part in white, so that there is something to learn."""

    def stand_in(name: str, root: str | None = None, split: str = "train", **more: Any) -> Dataset:
        g = torch.Generator().manual_seed(len(split))
        labels = torch.arange(60) % 10
        pixels = torch.randint(128, (60, 1, 28, 28), dtype=torch.uint8, generator=g)
        for i, label in enumerate(labels.tolist()):
            pixels[i, :, 2 * label : 2 * label + 6] += 127
        return Dataset(name, pixels, labels, tuple(map(str, range(10))), (0.5,), (0.25,))

    monkeypatch.setattr("bitwright.data.load", stand_in)


@pytest.mark.slow
def test_the_page_typed_at_tiny_size(
    images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its four steps in their order, then every flag in one command."""
    monkeypatch.chdir(tmp_path)
    steps = [right[0] for _, right in cells("# Coming from the self-pruning notebook")]
    assert [shlex.split(s)[1] for s in steps] == ["train", "analyze", "analyze", "report"]
    for step in steps:
        words = shlex.split(step)[1:]
        assert run([*words, *(TINY if words[0] == "train" else [])]) == 0, capsys.readouterr().err
    first = Run(f"runs/{NAME}")
    assert first.has("report.html") and first.has("sweep.json") and first.has("connections.csv")
    given = [word for flag, text in flags().items() if flag not in ("--cuda", "--binary") for word in shlex.split(text)]
    tiny = [w for w in TINY if not w.startswith("data.batch")]
    capsys.readouterr()
    assert run(["train", NAME, *given, *tiny, "--out", "runs/all"]) == 0, capsys.readouterr().err
    second = Run("runs/all")
    assert second.read_csv("sweep.csv") and "fc1.b.threshold" not in second.model().state_dict()
    layer: Any = second.model().get_submodule("fc1")
    assert layer.w.part_name == layer.b.part_name == "zero_one" and layer.w.random_mag == 1.0

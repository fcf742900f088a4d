"""docs/coming-from/pca-hybrid: every flag and step of the old scripts is there, and what the page says to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from bitwright.cli.run import run
from bitwright.data import Dataset
from bitwright.experiment import load
from bitwright.runs import Run
from bitwright.transforms import Recipe
from oracles import pca_hybrid as oracle
from overrides import value_at

PAGE = (Path(__file__).parent.parent / "docs" / "coming-from" / "pca-hybrid.md").read_text(encoding="utf-8")
NAME = "cifar100-bireal_resnet20-hybrid"
# the options of main.py and where the same is found in an experiment; None: a command or a place
FLAGS: dict[str, Any] = {
    "--cpu": ("train.device", "cpu"), "--data": ("data.root", "data"), "--dataset": ("data.name", "cifar100"),
    "--arch": ("model.name", "bireal_resnet20"), "--model": ("model.name", "bireal_resnet20"),
    "--lr": ("stage.0.optimizer.lr", 0.1), "--momentum": ("stage.0.optimizer.momentum", 0.9),
    "--input_size": ("data.size", 32), "--pretrained": ("model.weights", "runs/first"), "--evaluate": None,
    "--model_config": ("model.arguments.width", 1), "--batch-size": ("data.batch", 100),
    "--workers": ("data.workers", 4), "--epochs": ("stage.0.epochs", 199), "--gpus": ("train.devices", 1),
    "--type": ("train.precision", "fp32"), "--save": None, "--results_dir": None,
}  # fmt: skip
SHORT = {"-a": "--model", "-b": "--batch-size", "-j": "--workers"}
TINY = ["model.width=0.25", "epochs=1", "data.limit=60", "data.limit_test=20", "data.batch=30", "train.precision=fp32"]


def cells(heading: str) -> list[tuple[list[str], list[str]]]:
    """Code in the first two columns of the table below a heading."""
    part = PAGE.split(heading)[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in part.splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([^`]*)`", a), re.findall(r"`([^`]*)`", b)) for a, b in rows]


def flags() -> dict[str, str]:
    found = {}
    for left, right in cells("## Flag by flag"):
        assert len(right) == 1 and len({SHORT.get(f, f) for f in left}) == 1, left
        found[SHORT.get(left[0], left[0])] = right[0]
    return found


def test_every_flag_has_its_row() -> None:
    assert set(flags()) == set(FLAGS) and all(f"`{short}`" in PAGE for short in SHORT)


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if FLAGS[flag] is not None])
def test_an_override_sets_what_the_flag_set(flag: str) -> None:
    where, value = FLAGS[flag]
    assert value_at(NAME, [flags()[flag]], where) == value


def test_the_schedule_of_the_page_is_that_of_the_experiment() -> None:
    said = re.search(r"`(stage\.0\.schedule\.at=[^`]*)`", PAGE)
    assert said is not None and load(NAME, [said[1]]) == load(NAME)
    plain = load("cifar100-resnet20_plain-xnor").stage[0]
    assert plain.schedule == load(NAME).stage[0].schedule and plain.optimizer == load(NAME).stage[0].optimizer


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random images instead of CIFAR-100."""

    def stand_in(name: str, root: str | None = None, split: str = "train", **more: Any) -> Dataset:
        g = torch.Generator().manual_seed(len(split))
        pixels = torch.randint(256, (60, 3, 32, 32), dtype=torch.uint8, generator=g)
        return Dataset(name, pixels, torch.arange(60) % 100, tuple(map(str, range(100))), (0.5,) * 3, (0.25,) * 3)

    monkeypatch.setattr("bitwright.data.load", stand_in)


@pytest.mark.slow
def test_the_page_typed_at_tiny_size(
    images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All steps in their order, then evaluation, the analysis with its baselines, and an old checkpoint."""
    monkeypatch.chdir(tmp_path)
    steps = [right[0] for _, right in cells("# Coming from pca-hybrid")[:5]]
    assert [shlex.split(s)[1] for s in steps] == ["train", "analyze", "report", "plan", "train"]
    for step in steps:
        words = shlex.split(step)[1:]
        assert run([*words, *(TINY if words[0] == "train" else [])]) == 0, capsys.readouterr().err
    assert Run("runs/cifar100-resnet20_plain-xnor").has("report.html")
    made = Run(f"runs/{NAME}")
    kept = Run("runs/cifar100-resnet20_plain-xnor").read_json("pca.json")
    trained = made.model()
    bits = {n: getattr(getattr(m, "w", None), "bits", 32) for n, m in trained.named_modules()}
    assert kept["significant"] and {n for n, b in bits.items() if b == 2} == set(kept["significant"])
    assert {r.match for r in Recipe.load("hybrid.toml").rules} >= set(kept["significant"])
    assert run(shlex.split(flags()["--evaluate"])[1:]) == 0
    assert "top-5 %" in capsys.readouterr().out

    given = [f for flag, f in flags().items() if "=" in f and flag not in ("--data", "--input_size", "--model_config")]
    tiny = [w for w in TINY if w.split("=")[0] not in ("data.batch", "train.precision")]
    (Path("runs") / "first").symlink_to(made.path.name)
    capsys.readouterr()
    assert run(["train", NAME, *given, *tiny, "stage.0.recipe=hybrid.toml", "--out", "runs/all"]) == 0, (
        capsys.readouterr().err
    )

    torch.save({"state_dict": oracle.make_state("resnet", 31)}, "test.pth.tar")
    importing = next(line for line in PAGE.splitlines() if line.startswith("$ bitwright import"))
    assert run(shlex.split(importing)[2:]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "conv12.x.links.0.weight" in said and Path("test.safetensors").is_file()


def test_the_options_that_the_page_names_exist() -> None:
    from bitwright.cli.app import command

    options = {o for p in command().commands["analyze"].commands["pca"].params for o in p.opts}
    wanted = {"--threshold", "--delta", "--baselines", "--faithful", "--weight-scale", "--shortcut", "--bits"}
    assert wanted <= options and all(f"`{w}" in PAGE for w in wanted)

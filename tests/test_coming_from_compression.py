"""docs/coming-from/network-compression.md: every flag of the old scripts is there, and what the page says to type works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import bitwright as bw
from bitwright.cli.run import run
from bitwright.data import Dataset
from bitwright.experiment import load
from bitwright.runs import Run
from bitwright.training.schedules import Plateau
from oracles import network_compression as oracle
from overrides import value_at

PAGE = (Path(__file__).parent.parent / "docs" / "coming-from" / "network-compression.md").read_text(encoding="utf-8")
FBS, BITS, FLOAT = "cifar10-resnet20-fbs", "cifar10-resnet20-bwn-published", "cifar10-resnet20-float"
NAMES = {"Feature boosting": FBS, "Few bits": BITS, "The float net": FLOAT}
# the options of FBS.py; DoReFa.py and TTQ.py; train_base_model.py, and what the experiment holds where the page says to type key=value
SCRIPTS: dict[str, dict[str, tuple[str, dict[str, Any] | None]]] = {
    "Feature boosting": {
        "-m": ("--model", {"model.name": "resnet20"}), "-d": ("--dataset", {"data.name": "cifar10"}),
        "-CR": ("--CR", {"stage.4.rule.0.gate.keep": 0.5}), "-sp": ("--saliency_penalty", {"stage.4.rule.0.gate.l1": 1e-8}),
        "-o": ("--optimizer", {"stage.4.optimizer.name": "adam"}), "-e": ("--exp_spec", None),
        "-lr": ("--init_lr", {"stage.4.optimizer.lr": 1e-3}), "-n": ("--n_epoch", {"stage.4.epochs": 100}),
        "-ad": ("--lr_adjust", {"stage.4.schedule.patience": 2}), "-bs": ("--batch_size", {"data.batch": 128}),
    },
    "Few bits": {
        "-m": ("--model", {"model.name": "resnet20"}), "-d": ("--dataset", {"data.name": "cifar100"}),
        "-q": ("--quantized", {"stage.1.recipe": "dorefa-w1a32"}), "-bw": ("--bitW", {"stage.1.recipe": "theirs.toml"}),
        "-tf": ("--thresh_factor", {"stage.1.recipe": "ternary.toml"}),
        "-o": ("--optimizer", {"stage.1.optimizer.name": "adam"}), "-e": ("--exp_spec", None),
        "-lr": ("--init_lr", {"stage.1.optimizer.lr": 1e-3}), "-n": ("--n_epoch", {"stage.1.epochs": 100}),
        "-ad": ("--lr_adjust", {"stage.1.schedule.patience": 2}), "-bs": ("--batch_size", {"data.batch": 128}),
    },
    "The float net": {
        "-lr": ("--lr", {"stage.0.optimizer.lr": 0.1}), "-r": ("--retrain", {"model.weights": "float.safetensors"}),
        "-m": ("--model", {"model.name": "resnet20"}), "-d": ("--dataset", {"data.name": "cifar10"}),
        "-o": ("--optimizer", {"stage.0.optimizer.name": "sgd"}),
    },
}  # fmt: skip
TINY = [
    "model.width=0.25",
    "epochs=1",
    "data.batch=4",
    "train.precision=fp32",
    "train.device=cpu",
    "log.tensorboard=false",
]


def section(script: str) -> str:
    return PAGE.split(f"## {script}, flag by flag")[1].split("\n## ")[0]


def rows(script: str) -> dict[str, tuple[str, str]]:
    """Short flag -> (long flag, what to type)."""
    found: dict[str, tuple[str, str]] = {}
    for line in section(script).splitlines():
        if line.startswith("| `"):
            short, long = re.findall(r"`([^`]*)`", line.split("|")[1])
            (typed,) = re.findall(r"`([^`]*)`", line.split("|")[2])
            found[short] = (long, typed)
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_has_its_row(script: str) -> None:
    assert {short: long for short, (long, _) in rows(script).items()} == {s: f for s, (f, _) in SCRIPTS[script].items()}


@pytest.mark.parametrize(("script", "flag"), [(s, f) for s, flags in SCRIPTS.items() for f, v in flags.items() if v[1]])
def test_an_override_sets_what_the_flag_set(script: str, flag: str) -> None:
    for where, value in (SCRIPTS[script][flag][1] or {}).items():
        assert value_at(NAMES[script], [rows(script)[flag][1]], where) == value


def test_what_the_notes_say_is_an_override_too() -> None:
    """In the third column and below the tables."""
    for script, name in NAMES.items():
        keys = [t for t in re.findall(r"`([^`]*)`", section(script)) if re.match(r"(stage|model|data|epochs)[.=]", t)]
        assert len(keys) > len([f for f, (_, held) in SCRIPTS[script].items() if held])
        for typed in keys:
            load(name, [typed])
    heavy = next(t for t in re.findall(r"`([^`]*)`", section("Feature boosting")) if "weight_decay" in t)
    assert value_at(FBS, [heavy], "stage.4.optimizer.momentum") == 0.9


@pytest.mark.parametrize(("name", "stages"), [(FBS, (1, 2, 3, 4)), (BITS, (1,)), ("stl10-resnet20-ttq", (1,))])
def test_the_rate_falls_after_three_epochs_without_a_new_lowest_loss(name: str, stages: tuple[int, ...]) -> None:
    for stage in stages:
        rule, plateau = load(name).stage[stage].schedule, Plateau()
        factors = [plateau.update(rule, loss) for loss in (2.0, 1.0, 1.0, 1.5, 1.0, 0.9)]
        assert factors == pytest.approx([1, 1, 1, 1, 0.1, 0.1])


def test_every_file_on_the_page_is_written_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes that the page shows, under the names it gives them, quantize every layer of their net."""
    monkeypatch.chdir(tmp_path)
    write_recipes()
    for file, part in (("theirs.toml", "DorefaW"), ("ternary.toml", "Ttq")):
        net = bw.apply(bw.models.create("resnet20", width=0.25, shortcut="conv"), file)
        layers = [m for m in net.modules() if isinstance(m, bw.nn.SlotLayer)]
        assert len(layers) == 22 and all(type(m.w).__name__ == part for m in layers)


def write_recipes() -> None:
    for file, text in re.findall(r"`(\w+\.toml)`:\n\n```toml\n(.*?)```", PAGE, flags=re.DOTALL):
        Path(file).write_text(text, encoding="utf-8")


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random images instead of CIFAR and STL-10."""

    def stand_in(name: str, root: str | None = None, split: str = "train", **more: Any) -> Dataset:
        from bitwright.data.function import read_function

        if ":" in name:
            return read_function(name, split)
        g, side = torch.Generator().manual_seed(len(split)), 96 if name == "stl10" else 32
        pixels = torch.randint(256, (8, 3, side, side), dtype=torch.uint8, generator=g)
        return Dataset(name, pixels, torch.arange(8), tuple(map(str, range(10))), (0.5,) * 3, (0.25,) * 3)

    monkeypatch.setattr("bitwright.data.load", stand_in)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")  # what nets of 4 channels are told
def test_old_checkpoints_typed_at_tiny_size(
    images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both imports, a training from the float net with all flags, the evaluation of the old net, with their moments too."""
    monkeypatch.chdir(tmp_path)
    for method, file in (("float", "ResNet20-CIFAR10-pretrain.pth"), ("fbs-0.5", "fbs.pth")):
        torch.save(oracle.make_state(method, stem=4), file)
    theirs = next(b for b in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "dataclasses" in b)
    Path("theirs.py").write_text(theirs, encoding="utf-8")
    lines = [shlex.split(line[2:])[1:] for line in section_of("Old checkpoints") if line.startswith("$ ")]
    assert [words[0] for words in lines] == ["import", "import", "train", "eval"]
    flags = [text for _, text in rows("Feature boosting").values() if "--" not in text]
    for words in lines:
        more = [*flags, *TINY, "data.name=theirs.py:cifar10"] if words[0] == "train" else []
        assert run([*words, *more]) == 0, capsys.readouterr().err
    assert "top-5 %" in capsys.readouterr().out
    made = Run("runs/" + FBS)
    assert len(made.read_csv("metrics.csv")) == 5  # the float net, then four shares
    from bitwright.runs import dataset

    assert dataset(made.experiment, "test").std == (0.2023, 0.1994, 0.2010)


def section_of(title: str) -> list[str]:
    return PAGE.split(f"## {title}\n")[1].split("\n## ")[0].splitlines()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")
def test_the_commands_of_the_first_table_typed_at_tiny_size(
    images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the two recipes of the page."""
    monkeypatch.chdir(tmp_path)
    write_recipes()
    table = PAGE.split("\n## ")[0]
    commands = [m for m in re.findall(r"\| `bitwright ([^`]*)`", table) if FBS not in m]
    assert len(commands) == 5
    few = rows("Few bits")
    commands += [f"train {BITS} {few[flag][1]}" for flag in ("-bw", "-tf")]
    for i, words in enumerate(commands):
        assert run([*shlex.split(words), *TINY, "--out", f"runs/{i}"]) == 0, (words, capsys.readouterr().err)
        assert Run(f"runs/{i}").has("model.safetensors")

"""docs/coming-from/metaquant.md and co-prune.md: every flag of the old scripts is there, and what the pages say to type works."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import bitwright as bw
from bitwright.data import Dataset
from bitwright.experiment import load
from bitwright.procedures import co_prune
from overrides import value_at

FOLDER = Path(__file__).parent.parent / "docs" / "coming-from"
META, CO = ((FOLDER / f"{name}.md").read_text(encoding="utf-8") for name in ("metaquant", "co-prune"))
NAME = "cifar10-resnet20-metaquant"
W = "stage.0.rule.0.w"
# the options of meta-quantize.py, and what the experiment holds where the page says to type key=value
FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "-m": ("--model", {"model.name": "resnet20"}), "-d": ("--dataset", {"data.name": "cifar10"}),
    "-o": ("--optimizer", {"stage.0.optimizer.name": "sgd"}), "-q": ("--quantize", {f"{W}.quantizer": "dorefa"}),
    "-e": ("--exp_spec", {}), "-lr": ("--init_lr", {"stage.0.optimizer.lr": 1e-3}), "-bw": ("--bitW", {f"{W}.bits": 1}),
    "-meta": ("--meta_type", {f"{W}.net": "multi_fc"}), "-hidden": ("--hidden_size", {f"{W}.hidden": 100}),
    "-nfc": ("--num_fc", {f"{W}.net": "multi_fc"}), "-nlstm": ("--num_lstm", {f"{W}.net": "lstm_fc"}),
    "-n": ("--n_epoch", {"stage.0.epochs": 100}), "-fix": ("--fix_meta", {f"{W}.meta_lr": 0}),
    "-n_fix": ("--fix_meta_epoch", {f"{W}.meta_lr": 0}), "-r": ("--random", {"seed": 1}),
    "-nonlinear": ("--meta_nonlinear", {f"{W}.net": "mlp"}), "-ad": ("--lr_adjust", {"stage.0.schedule.every": 30}),
    "-bs": ("--batch_size", {"data.batch": 128}), "-decay": ("--weight_decay", {f"{W}.meta_lr": 1e-3}),
}  # fmt: skip


def rows(page: str, title: str) -> dict[str, tuple[str, str]]:
    """Short flag -> (long flag, what to type)."""
    found = {}
    for line in page.split(f"## {title}")[1].split("\n## ")[0].splitlines():
        if line.startswith("| `"):
            short, long = re.findall(r"`([^`]*)`", line.split("|")[1])
            (typed,) = re.findall(r"`([^`]*)`", line.split("|")[2])
            found[short] = (long, typed)
    return found


def test_every_flag_of_the_meta_net_has_its_row() -> None:
    found = rows(META, "The meta net, flag by flag")
    assert {short: long for short, (long, _) in found.items()} == {short: long for short, (long, _) in FLAGS.items()}


@pytest.mark.parametrize("flag", FLAGS)
def test_an_override_sets_what_the_flag_set(flag: str) -> None:
    typed = rows(META, "The meta net, flag by flag")[flag][1]
    for where, value in FLAGS[flag][1].items():
        assert value_at(NAME, [typed], where) == value


def test_all_that_the_page_says_to_type_is_an_override() -> None:
    keys = [t for t in re.findall(r"`([^`]*)`", META) if re.match(r"(stage|model|data)[.=]", t)]
    assert len(keys) > 20
    for typed in keys:
        load(NAME, [typed])
    for line in re.findall(rf"bitwright train {NAME}([^`\n]*)", META):
        load(NAME, shlex.split(line))


@pytest.mark.parametrize("spec", re.findall(r"w=(\{part=\"[^`']*\})", META))
def test_the_parts_on_the_page_fit_a_net(spec: str) -> None:
    model = bw.models.create("resnet20", width=0.25)
    experiment = load(NAME, [f"{W}={spec}"])
    bw.apply(model, [{"match": "*", "w": experiment.stage[0].rule[0]["w"]}])


def test_every_flag_of_co_prune_has_its_row() -> None:
    flags = {
        "-m": "--model",
        "-s": "--source",
        "-t": "--target",
        "-e": "--exp_spec",
        "-n": "--n_epoch",
        "-a": "--alpha",
    }
    found = rows(CO, "Flag by flag")
    assert {short: long for short, (long, _) in found.items()} == flags
    known = inspect.signature(co_prune).parameters
    assert {"source_batches", "target_batches", "epochs", "alpha", "lr", "patience", "min_lr", "keep"} <= set(known)
    assert known["alpha"].default == (0.7, 0.5, 0.3) and known["epochs"].default == 100
    assert (known["lr"].default, known["patience"].default, known["min_lr"].default) == (1e-3, 3, 1e-6)


def test_the_kept_shares_of_the_paper_are_1_35_percent_of_their_net() -> None:
    (text,) = re.findall(r"`keep=(\{[^`]*\})`", CO)
    keep = ast.literal_eval(text)
    net = bw.models.create("cifarnet", num_classes=9)
    sizes = {name: net.get_parameter(f"{name}.weight").numel() for name in keep}
    kept = sum(max(1, round(sizes[name] * share)) for name, share in keep.items())
    assert kept / sum(sizes.values()) == pytest.approx(0.0135, abs=5e-5)


def test_the_nine_classes_have_the_same_labels_in_both_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = {
        "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        "stl10": ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    }

    def stand_in(name: str, split: str) -> Dataset:
        side = 96 if name == "stl10" else 32
        images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, side, side).clone()
        return Dataset(name, images, torch.arange(10), classes[name], (0.5,) * 3, (0.25,) * 3)

    monkeypatch.setattr("bitwright.data.load", stand_in)
    module = ModuleType("nine")
    source = next(b for b in re.findall(r"```python\n(.*?)```", CO, flags=re.DOTALL) if "def nine" in b)
    exec(source, vars(module))
    cifar, stl = module.cifar9("train"), module.stl9("train")
    assert cifar.classes == tuple("automobile" if c == "car" else c for c in stl.classes)
    for data, name in ((cifar, "cifar10"), (stl, "stl10")):
        assert len(data) == 9 and data.images.shape[2:] == (32, 32)
        for image, label in zip(data.images, data.labels.tolist(), strict=True):
            assert classes[name][int(image[0, 0, 0])] == data.classes[label]

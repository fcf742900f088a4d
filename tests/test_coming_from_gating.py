"""docs/coming-from/dnn-gating.md: every flag of both old scripts is there, and what the page says to type does what it did."""

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
from oracles import dnn_gating as oracle
from overrides import value_at

PAGE = (Path(__file__).parent.parent / "docs" / "coming-from" / "dnn-gating.md").read_text(encoding="utf-8")
CG, PG = "cifar10-resnet20-channel_gate", "cifar10-resnet20-precision_gate-w8a8p4"
GATE, GATED = "stage.0.rule.0.gate", "stage.0.rule.1.gate"
# the options of the scripts, and what is found in the experiment where the page says to type key=value
SCRIPTS: dict[str, dict[str, dict[str, Any] | None]] = {
    "Channel gating": {
        "--use_cg": None, "--use_postact": None, "--lr": {"stage.0.optimizer.lr": 0.08},
        "--wt_decay": {"stage.0.optimizer.weight_decay": 3e-4}, "--partitions": {f"{GATE}.splits": 2},
        "--ginit": {f"{GATE}.init": -1.5}, "--gtarget": {f"{GATE}.target": 0.6}, "--alpha": {f"{GATE}.slope": 3.0},
        "--use_group": {f"{GATE}.group": True}, "--sparse_bp": {f"{GATE}.sparse_backprop": True},
        "--use_shuffle": {f"{GATE}.shuffle": True}, "--save": None, "--test": None, "--path": None,
        "--which_gpus": {"train.device": "cuda"},
    },
    "Precision gating": {
        "--ispg": None, "--wbits": {"stage.0.rule.0.w.bits": 4},
        "--abits": {"stage.0.rule.0.x.bits": 6, f"{GATED}.bits": 6}, "--pbits": {f"{GATED}.top": 3},
        "--ispact": {"stage.0.rule.0.x.part": "pact"}, "--gtarget": {f"{GATED}.target": 0.5},
        "--sigma": {f"{GATED}.weight": 0.01}, "--sparse_bp": {f"{GATED}.sparse_backprop": True},
        "--save": None, "--test": None, "--path": None, "--which_gpus": {"train.device": "cuda"},
    },
}  # fmt: skip
NAMES = {"Channel gating": CG, "Precision gating": PG}
SHORT = {"-cg": "--use_cg", "-postact": "--use_postact", "-lr": "--lr", "-wd": "--wt_decay", "-pt": "--partitions",
         "-gi": "--ginit", "-gtar": "--gtarget", "-group": "--use_group", "-spbp": "--sparse_bp",
         "-shuffle": "--use_shuffle", "-s": "--save", "-t": "--test", "-p": "--path", "-gpu": "--which_gpus",
         "-pg": "--ispg", "-w": "--wbits", "-pb": "--pbits", "-pact": "--ispact", "-sg": "--sigma"}  # fmt: skip
TINY = [
    "model.width=0.25",
    "epochs=1",
    "data.batch=4",
    "train.precision=fp32",
    "train.device=cpu",
    "log.tensorboard=false",
]
OTHER = {"-a": {"Channel gating": "--alpha", "Precision gating": "--abits"}}  # one letter, two meanings


def rows(script: str) -> dict[str, tuple[str, str]]:
    """Long flag -> (what to type, the whole line)."""
    found: dict[str, tuple[str, str]] = {}
    for line in PAGE.split(f"## {script}, flag by flag")[1].split("\n## ")[0].splitlines():
        if line.startswith("| `"):
            short, long = re.findall(r"`([^`]*)`", line.split("|")[1])
            assert SHORT.get(short) == long or OTHER.get(short, {}).get(script) == long, line
            (typed,) = re.findall(r"`([^`]*)`", line.split("|")[2])
            found[long] = (typed, line)
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_has_its_row(script: str) -> None:
    assert set(rows(script)) == set(SCRIPTS[script])


@pytest.mark.parametrize(("script", "flag"), [(s, f) for s, flags in SCRIPTS.items() for f, v in flags.items() if v])
def test_an_override_sets_what_the_flag_set(script: str, flag: str) -> None:
    typed = shlex.split(rows(script)[flag][0])
    for where, value in (SCRIPTS[script][flag] or {}).items():
        assert value_at(NAMES[script], typed, where) == value


def test_what_the_notes_say_for_a_missing_flag_is_an_override_too() -> None:
    """In the third column and below the tables."""
    for script, name in NAMES.items():
        text = PAGE.split(f"## {script}, flag by flag")[1].split("\n## ")[0]
        keys = [t for t in re.findall(r"`([^`]*)`", text) if t.startswith(("stage.", "train."))]
        assert len(keys) > len(SCRIPTS[script]) - 6
        for typed in keys:
            load(name, [typed] if "{" in typed else shlex.split(typed))
    assert (
        value_at(PG, ['stage.0.rule.0.x={ part = "sign_magnitude", bits = 6 }'], "stage.0.rule.0.x.part")
        == "sign_magnitude"
    )


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random images instead of CIFAR-10."""

    def stand_in(name: str, root: str | None = None, split: str = "train", **more: Any) -> Dataset:
        from bitwright.data.function import read_function

        if ":" in name:
            return read_function(name, split)
        g = torch.Generator().manual_seed(len(split))
        pixels = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=g)
        return Dataset(name, pixels, torch.arange(8), tuple(map(str, range(10))), (0.5,) * 3, (0.25,) * 3)

    monkeypatch.setattr("bitwright.data.load", stand_in)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")  # what nets of 16 channels are told
def test_the_page_typed_at_tiny_size(
    script: str, images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All overrides at once (but for the GPU), evaluation, import of a file of the old script, its evaluation."""
    monkeypatch.chdir(tmp_path)
    name, typed = NAMES[script], {flag: text for flag, (text, _) in rows(script).items()}
    lines = [line[2:] for line in PAGE.splitlines() if line.startswith("$ bitwright ")]
    assert f"bitwright train {name}" in lines and typed["--use_cg" if script[0] == "C" else "--ispg"] in lines
    overrides = [word for text in typed.values() if text.startswith("stage.") for word in shlex.split(text)]
    assert run(["train", name, *overrides, *TINY]) == 0, capsys.readouterr().err
    made = Run("runs/" + name)
    assert made.has("model.safetensors") and len(made.read_csv("metrics.csv")) == 1
    assert run(shlex.split(typed["--test"])[1:]) == 0, capsys.readouterr().err

    kind = "cg" if script[0] == "C" else "pg"
    torch.save(oracle.make_state(kind, stem=4), "model_resnet-20.pt" if kind == "cg" else "model_pg.pt")
    importing = next(line for line in lines if line.startswith("bitwright import") and f"-o {kind}." in line)
    assert run(shlex.split(importing)[1:]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert run(shlex.split(typed["--path"])[1:]) == 0, capsys.readouterr().err
    assert "top-5 %" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")
def test_post_activated_and_their_moments(
    images: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = next(b for b in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL) if "dataclasses" in b)
    Path("theirs.py").write_text(theirs, encoding="utf-8")
    words = shlex.split(rows("Channel gating")["--use_postact"][0])[1:]
    assert run([*words, *TINY, "data.name=theirs.py:cifar10"]) == 0, capsys.readouterr().err
    from bitwright.runs import dataset

    assert dataset(Run("runs/" + words[1]).experiment, "test").mean == (0.485, 0.456, 0.406)

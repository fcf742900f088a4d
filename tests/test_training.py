"""Whole trainings on digits: files, resume bit by bit, signals, NaN, full disk, processes."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import bitwright as bw
from bitwright.errors import BitwrightWarning, InputError, Negative
from bitwright.experiment import Experiment, parse, to_toml
from bitwright.runs import Run
from bitwright.training import Result, Stopped, train
from processes import Child, finished
from stepping import on_step

TIMES = {"data_ms", "step_ms", "images_per_s", "seconds"}
TEACHING = pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")
pytestmark = TEACHING  # small nets after a few steps have much to be taught; what is told has its own tests


def experiment(**changes: Any) -> Experiment:
    """A float stage, then ternary weights, 4-bit inputs with a running range, dropout and a teacher; 7 steps an epoch."""
    rules = [
        {"match": "*", "w": "ttq", "x": ["norm", {"part": "uniform", "bits": 4, "signed": True, "observer": "ema"},
                                         {"part": "dropout", "p": 0.2}]},
        {"match": "first", "w": "float", "x": "float"},
        {"match": "last", "w": "float", "x": "float"},
    ]  # fmt: skip
    table: dict[str, Any] = {
        "data": {"batch": 64, "limit": 500, "val": 100},
        "model": {"name": "mlp", "hidden": 32, "depth": 2, "dropout": 0.3},
        "train": {"device": "cpu", "threads": 1, "checkpoint_every": 3},
        "log": {"health_every": 2, "histograms_every": 5},
        "stage": [
            {"epochs": 2, "schedule": {"name": "cosine"}, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
            {"epochs": 2, "schedule": {"name": "plateau", "patience": 1}, "teacher": "previous", "rule": rules},
        ],
    }
    for key, value in changes.items():
        table[key] = {**table[key], **value} if isinstance(value, dict) else value
    return Experiment.model_validate(table)


def same_weights(a: Path, b: Path) -> bool:
    x, y = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def rows(run: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    """Without the times, which differ from run to run."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in Run(run).read_csv(name)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "unbroken"
    train(experiment(), path)
    return path


def test_the_files_of_a_run(unbroken: Path) -> None:
    names = {
        "experiment.toml", "machine.json", "metrics.csv", "health.csv", "model.safetensors", "best.safetensors",
        "last.ckpt", "state.json", "predictions.csv", "worst.safetensors", "classes.json", "results.csv",
    }  # fmt: skip
    assert names <= set(os.listdir(unbroken))
    assert not list(unbroken.rglob(".bitwright-*"))
    run = Run(unbroken)
    assert run.experiment == experiment()
    state = run.read_json("state.json")
    assert state["status"] == "done" and (state["stage"], state["epoch"], state["step"], state["stages"]) == (
        1,
        2,
        14,
        2,
    )
    found = run.read_csv("metrics.csv")
    assert [(r["stage"], r["epoch"], r["step"]) for r in found] == [
        ("0", "0", "7"), ("0", "1", "14"), ("1", "0", "7"), ("1", "1", "14"),
    ]  # fmt: skip
    assert all(float(r[key]) > 0 for r in found for key in ("data_ms", "step_ms", "images_per_s", "seconds"))
    assert found[0]["flips"] == "" and 0 < float(found[2]["flips"]) < 1
    layers = run.read_csv("health.csv")
    assert [(r["stage"], r["epoch"], r["layer"]) for r in layers] == [("1", "0", "fc2"), ("1", "1", "fc2")]
    assert list(layers[0]) == ["stage", "epoch", "layer", "flips", "dead", "scale", "saturation", "positive"]
    assert float(found[1]["test_top1"]) == state["float_top1"]
    assert list(unbroken.glob("tensorboard/events*"))
    assert str(unbroken) not in (unbroken / "experiment.toml").read_text(), "may be moved"


def test_the_numbers_agree_with_an_evaluation_of_our_own(unbroken: Path) -> None:
    run = Run(unbroken)
    test = bw.data.load("digits", split="test")
    x = (test.images.float() / 255 - torch.tensor(test.mean).view(-1, 1, 1)) / torch.tensor(test.std).view(-1, 1, 1)
    with torch.no_grad():
        outputs = run.model()(x)
    right = (outputs.argmax(1) == test.labels).double().mean().item()
    loss = torch.nn.functional.cross_entropy(outputs, test.labels).item()
    five = (outputs.topk(5, 1).indices == test.labels[:, None]).any(1).double().mean().item()
    last = run.read_csv("metrics.csv")[-1]
    assert float(last["test_top1"]) == pytest.approx(right, abs=1e-9)
    assert float(last["test_loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(last["test_top5"]) == pytest.approx(five, abs=1e-9)
    results = {r["net"]: r for r in run.read_csv("results.csv")}
    assert float(results["trained"]["accuracy"]) == pytest.approx(right, abs=1e-9)
    assert float(results["float"]["accuracy"]) == run.read_json("state.json")["float_top1"]
    # a file beside a file; in it 64>32 and 32>32 without, 32>10 with bias, two norms of 32 with their statistics
    assert int(results["float"]["bytes"]) == run.file("stages/0.safetensors").stat().st_size
    assert int(results["float"]["bytes"]) > 4 * (64 * 32 + 32 * 32 + 32 * 10 + 10 + 8 * 32)
    said = run.read_csv("predictions.csv")
    assert [int(r["said"]) for r in said] == outputs.argmax(1).tolist()
    assert [int(r["true"]) for r in said] == test.labels.tolist() and all(r["float_said"] for r in said)
    worst = load_file(unbroken / "worst.safetensors")
    sure = torch.tensor([float(said[i]["confidence"]) for i in worst["index"].tolist()])
    assert torch.equal(worst["images"], test.images[worst["index"]]) and bool((sure.diff() <= 0).all())
    assert all(said[i]["said"] != said[i]["true"] for i in worst["index"].tolist())


def test_training_loss_of_an_epoch(tmp_path: Path) -> None:
    """One step an epoch with all images: the row is the loss of the weights before the step."""
    e = experiment(
        data={"batch": 400, "augment": False, "val": 0, "limit": 400}, model={"dropout": 0.0}, stage=[{"epochs": 1}]
    )
    train(e, tmp_path / "a")
    from bitwright.runs import build_model
    from bitwright.training.job import reseed

    with torch.random.fork_rng():
        reseed(0, -1)
        net = build_model(e).train()
    images = bw.data.load("digits").limit(400)
    ((x, y),) = images.batches(400)
    with torch.no_grad():
        outputs = net(x)
    row = Run(tmp_path / "a").read_csv("metrics.csv")[0]
    assert float(row["loss"]) == pytest.approx(torch.nn.functional.cross_entropy(outputs, y).item(), rel=1e-5)
    assert float(row["top1"]) == (outputs.argmax(1) == y).double().mean().item()
    assert float(row["lr"]) == 1e-3


def test_tensorboard_has_scalars_and_histograms(unbroken: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(unbroken / "tensorboard"), size_guidance={"scalars": 0, "histograms": 0})
    events.Reload()
    table = Run(unbroken).read_csv("metrics.csv")
    scalars = events.Scalars("test/top1")
    assert [s.step for s in scalars] == [7, 14, 21, 28]
    assert [s.value for s in scalars] == pytest.approx([float(r["test_top1"]) for r in table])
    assert "flips/fc2" in events.Tags()["scalars"]
    assert {"weights/fc1", "activations/fc2", "activations/net-output"} <= set(events.Tags()["histograms"])


@pytest.mark.slow
@pytest.mark.few("7", "16")
@pytest.mark.parametrize("step", [1, 7, 10, 16, 28])
def test_resume_is_bit_by_bit_an_unbroken_run(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the first epoch, at its last step (evaluation due), in the second, in the second stage, at the very end."""

    def stop(self: Any) -> None:
        self.job.signals.wanted = "^C"

    on_step(monkeypatch, step, stop)
    with pytest.raises(Stopped, match=r"\^C stopped at stage \d, epoch \d, step \d of 7; saved"):
        train(experiment(), tmp_path / "a")
    assert Run(tmp_path / "a").read_json("state.json")["status"] == "stopped"
    monkeypatch.undo()
    lines: list[str] = []
    again = experiment(data={"workers": step % 2})  # a thread for the data may come and go
    train(again, tmp_path / "a", resume=True, echo=lines.append)
    assert same_weights(unbroken, tmp_path / "a")
    assert rows(unbroken) == rows(tmp_path / "a")
    assert rows(unbroken, "health.csv") == rows(tmp_path / "a", "health.csv")
    assert (unbroken / "predictions.csv").read_bytes() == (tmp_path / "a" / "predictions.csv").read_bytes()
    assert sum("epoch" in line for line in lines) == 4 - (step - 1) // 7


def test_a_finished_run_resumed_is_the_same_run(unbroken: Path) -> None:
    before = (unbroken / "model.safetensors").read_bytes()
    result = train(experiment(), unbroken, resume=True)
    assert (unbroken / "model.safetensors").read_bytes() == before and result.top1 > 0.1


def test_resume_without_a_checkpoint_begins_at_the_beginning(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    run.write_text("experiment.toml", to_toml(experiment(stage=[{"epochs": 1}])))
    (tmp_path / "a" / ".bitwright-left").write_text("of a process that was killed")
    notes: list[str] = []
    from bitwright.training.display import Screen

    train(experiment(stage=[{"epochs": 1}]), run.path, resume=True, screen=Screen(note=notes.append))
    assert "starts from the beginning" in notes[0] and not (run.path / ".bitwright-left").exists()


def test_resume_with_another_experiment_is_refused(unbroken: Path) -> None:
    text = to_toml(experiment())
    for override, shown in (
        ("stage.1.optimizer.lr=0.5", "stage.1.optimizer.lr 0.001 -> 0.5"),
        ("stage.0.epochs=5", "stage.0.epochs 2 -> 5"),
        ("seed=1", "seed 0 -> 1"),
        ("train.threads=2", "train.threads 1 -> 2"),
    ):
        with pytest.raises(Negative, match="experiment differs from the saved one") as error:
            train(parse(text, [override]), unbroken, resume=True)
        assert shown in str(error.value) and "Allowed: log" in str(error.value)


@pytest.mark.slow
def test_more_epochs_of_a_stage_whose_schedule_does_not_know_them(tmp_path: Path) -> None:
    """2 + 1 epochs are 3."""
    stage = {"schedule": {"name": "step", "every": 1}}
    train(experiment(stage=[{"epochs": 2, **stage}]), tmp_path / "a")
    train(experiment(stage=[{"epochs": 3, **stage}]), tmp_path / "a", resume=True)
    train(experiment(stage=[{"epochs": 3, **stage}]), tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "b") and rows(tmp_path / "a") == rows(tmp_path / "b")


def test_nothing_is_overwritten(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"exists\. Go on: --resume; another folder: --out DIR; begin again: --force"):
        train(experiment(), unbroken)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and not a run"):
        train(experiment(), tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_force_removes_the_run_and_nothing_else(tmp_path: Path) -> None:
    e = experiment(stage=[{"epochs": 1}])
    train(e, tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "a" / "packed.safetensors").write_text("old")
    train(e, tmp_path / "a", force=True)
    assert (tmp_path / "a" / "notes.txt").exists() and not (tmp_path / "a" / "packed.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_at_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    old = signal.getsignal(number)
    on_step(monkeypatch, 3, lambda self: signal.raise_signal(number))
    word = r"\^C" if number == signal.SIGINT else "SIGTERM"
    with pytest.raises(Stopped, match=rf"{word} stopped at stage 0, epoch 0, step 3 of 7; saved \(\d+\.\d s\)"):
        train(experiment(), tmp_path / "a")
    assert signal.getsignal(number) is old
    assert Run(tmp_path / "a").has("last.ckpt")


def test_a_second_ctrl_c_quits_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(self: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    old = signal.getsignal(signal.SIGINT)
    on_step(monkeypatch, 1, twice)
    with pytest.raises(KeyboardInterrupt) as error:
        train(experiment(), tmp_path / "a")
    assert not isinstance(error.value, Stopped) and not (tmp_path / "a" / "last.ckpt").exists()
    assert signal.getsignal(signal.SIGINT) is old


def test_ctrl_c_while_calibrating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two stages: what the first one left is there."""
    from bitwright.training import stages

    original = stages.calibrate

    def interrupted(net: Any, batches: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        original(net, batches, **options)

    monkeypatch.setattr(stages, "calibrate", interrupted)
    with pytest.raises(Stopped, match=r"stopped at stage 1, epoch 0, step 0 of 7; saved"):
        train(experiment(), tmp_path / "a")
    assert len(rows(tmp_path / "a")) == 2


def test_a_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(self: Any) -> None:
        self.job.net.fc2.weight.data[0, 0] = torch.inf

    on_step(monkeypatch, 10, spoil)
    with pytest.raises(Negative) as error:
        train(experiment(data={"augment": False}), tmp_path / "a")
    text = str(error.value)
    assert text.startswith(
        "train: loss became nan at stage 0, epoch 1, step 3; first bad layer fc2 (its weight is inf)."
    )
    assert "Last good state: last.ckpt (stage 0, epoch 0)" in text
    assert "try: stage.0.optimizer.lr=0.005, or stage.0.clip=1.0" in text
    from bitwright.training.last_checkpoint import read_checkpoint

    saved = read_checkpoint(tmp_path / "a" / "last.ckpt")
    assert all(torch.isfinite(v).all() for v in saved["state_dict"].values())


def test_a_bad_net_is_not_written_over_a_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step of all leaves an infinite weight: no loss follows that would show it."""

    def spoil(self: Any) -> None:
        self.job.net.fc2.weight.data[0, 0] = torch.inf

    on_step(monkeypatch, 7, spoil)
    with pytest.raises(
        Negative, match=r"weights became infinite or nan at stage 0, epoch 0, step 7; first bad layer fc2"
    ):
        train(experiment(stage=[{"epochs": 1}]), tmp_path / "a")
    from bitwright.training.last_checkpoint import read_checkpoint

    saved = read_checkpoint(tmp_path / "a" / "last.ckpt")
    assert saved["bitwright"]["state"]["step"] == 6 and torch.isfinite(saved["state_dict"]["net.fc2.weight"]).all()


@pytest.mark.slow
def test_a_full_disk_ends_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = os.fsync, [0]

    def full(handle: int) -> None:
        count[0] += 1
        if count[0] > 12:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device.*--resume") as error:
        train(experiment(), tmp_path / "a")
    assert "\n" not in str(error.value) and not list((tmp_path / "a").rglob(".bitwright-*"))
    monkeypatch.undo()
    train(experiment(), tmp_path / "a", resume=True)
    train(experiment(), tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_freeze_holds_still_and_thaws(tmp_path: Path) -> None:
    stages = [{"epochs": 1, "freeze": ["fc1.*"]}, {"epochs": 1}]
    train(experiment(stage=stages), tmp_path / "a")
    first, second = (load_file(tmp_path / "a" / "stages" / f"{i}.safetensors") for i in (0, 1))
    from bitwright.runs import build_model
    from bitwright.training.job import reseed

    with torch.random.fork_rng():
        reseed(0, -1)
        start = build_model(experiment()).state_dict()
    assert torch.equal(first["fc1.weight"], start["fc1.weight"]) and not torch.equal(
        first["fc2.weight"], start["fc2.weight"]
    )
    assert not torch.equal(first["fc1.weight"], second["fc1.weight"])
    with pytest.raises(InputError, match=r"freeze .fc9\.weight. matches no parameter"):
        train(experiment(stage=[{"epochs": 1, "freeze": ["fc9.weight"]}]), tmp_path / "b")


def test_the_best_on_held_out_images_is_kept(unbroken: Path) -> None:
    run = Run(unbroken)
    found = [float(r["val_top1"]) for r in run.read_csv("metrics.csv")]
    val = bw.data.load("digits").limit(500).part("val", 100)
    net = run.model("best.safetensors") if found.index(max(found)) >= 2 else None
    if net is not None:
        from bitwright.training import evaluate

        assert evaluate(net, val).top1 == pytest.approx(max(found), abs=1e-9)
    assert len(val) == 100


@pytest.mark.slow
def test_the_host_program_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream, threads = torch.random.get_rng_state(), torch.get_num_threads()
    names = ("", "lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric")
    levels = [logging.getLogger(n).level for n in names]
    train(experiment(stage=[{"epochs": 1}], train={"threads": 2}), tmp_path / "a")
    assert torch.equal(stream, torch.random.get_rng_state()) and torch.get_num_threads() == threads
    assert [logging.getLogger(n).level for n in names] == levels
    out = capsys.readouterr()
    assert out.out == "" and out.err == ""


@pytest.mark.parametrize("there", [True, False])
def test_bf16_is_fp32_on_a_cpu_without_it(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would compute each number of bf16 in turn."""
    from bitwright.training import job
    from bitwright.training.display import Screen

    monkeypatch.setattr(job, "computes_bf16", lambda: there)
    lines: list[str] = []
    monkeypatch.setattr(Screen, "line", lambda self, text: lines.append(text))
    autocast: list[bool] = []
    cross_entropy: Any = torch.nn.functional.cross_entropy

    def seen(outputs: torch.Tensor, *more: Any, **options: Any) -> torch.Tensor:
        autocast.append(torch.is_autocast_enabled("cpu"))
        return cross_entropy(outputs, *more, **options)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", seen)
    train(experiment(stage=[{"epochs": 1}], train={"precision": "bf16"}), tmp_path / "a")
    assert any(line.startswith("precision: fp32, because this CPU") for line in lines) != there
    assert any(autocast) == there


@pytest.mark.parametrize(
    ("told", "capability", "computes"),
    [
        ("fpu avx2 fma", "AVX2", False), ("avx2 avx512bw avx512_bf16", "AVX2", True), ("fp asimd bf16", "DEFAULT", True),
        ("fp asimd", "DEFAULT", False), ("", "AVX2", False), ("", "AVX512", True), ("avx512bw avx512_vnni", "AVX512", False),
    ],
)  # fmt: skip
def test_what_computes_bf16(told: str, capability: str, computes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitwright.measure import machine

    monkeypatch.setattr(machine, "_cpuinfo", lambda key: told if key == "flags" else "")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert machine.computes_bf16() is computes


def test_a_lesson_is_a_warning_and_is_kept(tmp_path: Path) -> None:
    """A sign after ReLU sees one sign only."""
    rules = [{"match": "fc2", "w": "bwn", "x": "sign"}]
    e = experiment(model={"activation": "relu"}, stage=[{"epochs": 1, "rule": rules}])
    with pytest.warns(BitwrightWarning, match="fc2"):
        result = _allowing_constant_inputs(e, tmp_path / "a")
    assert any("nearly a constant" in text for text in result.warnings)
    assert Run(tmp_path / "a").read_json("state.json")["warnings"] == list(result.warnings)


def _allowing_constant_inputs(e: Experiment, path: Path) -> Result:
    """`apply` refuses what it can trace; a net it cannot see through gets as far as training."""
    from bitwright.transforms import apply as applying

    module = sys.modules[applying.__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "constant_inputs", lambda flow, built: iter(()))
        return train(e, path)


# -- slow: whole processes -----------------------------------------------------------------------------------------------
def command(path: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "bitwright", "train", str(path), "--out", str(out), *more]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ten_kills(tmp_path: Path, precision: str, record_property: Callable[[str, object], None]) -> None:
    """kill -9 at ten random moments inside training, then --resume; the weights are those of an unbroken run."""
    e = experiment(train={"precision": precision})
    table = e.model_dump(exclude_none=True)
    table["model"] = {"name": "bireal_resnet20", "width": 0.25, "dropout": 0.1}
    for stage in table["stage"]:
        stage["epochs"] = 6
    e = Experiment.model_validate(table)
    file = tmp_path / "toy.toml"
    file.write_text(to_toml(e))
    subprocess.run(command(file, tmp_path / "a"), check=True, capture_output=True, timeout=300)
    per_stage = 6 * 7
    draw = random.Random(0 if precision == "fp32" else 1)
    kills = []
    for wanted in sorted(draw.sample(range(1, 2 * per_stage - 7), 10)):
        kills.append(kill_at(command(file, tmp_path / "b", "--resume"), tmp_path / "b", wanted, draw.uniform(0, 0.2)))
    record_property("kills", kills)
    print(f"\n{precision}: kills landed at (stage, epoch, step of the epoch) {kills}")
    inside = [k for k in kills if k is not None]
    assert len(inside) >= 8, f"too many kills came when no step was being done: {kills}"
    assert inside == sorted(inside), f"a checkpoint was lost: {kills}"
    assert {stage for stage, _, _ in inside} == {0, 1} and len(set(inside)) >= 6, kills
    done = subprocess.run(command(file, tmp_path / "b", "--resume"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert rows(tmp_path / "a", "health.csv") == rows(tmp_path / "b", "health.csv")
    assert not list((tmp_path / "b").rglob(".bitwright-*"))


def kill_at(words: list[str], run: Path, wanted: int, delay: float) -> tuple[int, int, int] | None:
    """Kills the training `delay` s after the first checkpoint that it wrote itself with so many steps done in all.

    Returns where its last checkpoint then stands: (stage, epoch, batch); it is whole, else reading it fails.
    None where the process was not between its first and its last step.
    """
    from bitwright.training.last_checkpoint import read_checkpoint

    path = run / "last.ckpt"
    before, wrote = path.stat().st_ino if path.exists() else None, False
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < end:
        if path.exists() and path.stat().st_ino != before:  # each writing is a new file
            wrote = True
            state = read_checkpoint(path)["bitwright"]["state"]
            if state["stage"] * 42 + state["step"] >= wanted:
                time.sleep(delay)
                break
        time.sleep(0.01)
    process.kill()
    killed = process.wait() == -signal.SIGKILL
    state = read_checkpoint(path)["bitwright"]["state"]
    over = json.loads((run / "state.json").read_text())["status"] == "done"
    last = state["stage"] == 1 and state["step"] == 42
    return (state["stage"], state["epoch"], state["batch"]) if killed and wrote and not (over or last) else None


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """One prints and writes; stopped and resumed they give the same bits."""
    e = experiment(train={"devices": 2}, data={"batch": 16, "limit": 1400}, stage=[{"epochs": 8}])
    file = tmp_path / "toy.toml"
    file.write_text(to_toml(e))
    said = finished(command(file, tmp_path / "a"))
    assert said.count("done:") == 1 and said.count("\nstage ") == 8, "only one process prints"
    table = Run(tmp_path / "a").read_csv("metrics.csv")
    assert len(table) == 8 and float(table[-1]["test_top1"]) > 0.3
    results = {r["net"]: r for r in Run(tmp_path / "a").read_csv("results.csv")}
    assert float(results["trained"]["accuracy"]) == float(table[-1]["test_top1"]), (
        "shared evaluation equals the plain one"
    )
    child = Child(command(file, tmp_path / "b"))
    child.until("stage 0  epoch   0")
    child.signal(signal.SIGINT)
    code, said = child.finish()
    assert code == 130 and "next:" in said, said
    finished(command(file, tmp_path / "b", "--resume"))
    assert same_weights(tmp_path / "a", tmp_path / "b") and rows(tmp_path / "a") == rows(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no tmpfs may be mounted here")
    try:
        e = experiment(log={"tensorboard": False}, model={"hidden": 64})
        with pytest.raises(InputError, match="No space left on device") as error:
            train(e, disk / "a")
        assert "\n" not in str(error.value) and not list(disk.rglob(".bitwright-*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_metrics_are_plain_csv_and_json(unbroken: Path) -> None:
    with open(unbroken / "metrics.csv", encoding="utf-8", newline="") as f:
        table = list(csv.reader(f))
    assert len({len(row) for row in table}) == 1 and table[0][:4] == ["stage", "epoch", "step", "loss"]
    assert json.loads((unbroken / "classes.json").read_text()) == {"classes": list("0123456789")}


def test_a_stage_calibrates_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stage 0 learned of its steps is not read off the data again when stage 1 adds weights."""
    seen: list[list[str]] = []

    def watch(model: torch.nn.Module, batches: Any, norms: str, parts: Any) -> None:
        names = {id(m): name for name, m in model.named_modules()}
        seen.append(sorted(names[id(part)] for part in parts))

    monkeypatch.setattr("bitwright.training.stages.calibrate", watch)
    stages = [
        {"epochs": 1, "rule": [{"match": "fc2", "x": {"part": "lsq", "bits": 2, "signed": False}}]},
        {"epochs": 1, "rule": [{"match": "fc3", "x": {"part": "pact", "bits": 2}}]},
    ]
    train(experiment(stage=stages), tmp_path / "run")
    assert seen == [["fc2.x"], ["fc3.x"]]


def test_a_view_on_a_feature_map_trains(tmp_path: Path) -> None:
    """Such a net does not run in channels_last, which is asked for by default: it trains, evaluates and converts all the same."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.conv, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(288, 10)\n\n"
        "    def forward(self, x):\n        return self.head(self.norm(self.conv(x)).relu().view(x.size(0), -1))\n"
    )
    (tmp_path / "mine.toml").write_text(
        '[data]\nname = "digits"\nlimit = 64\nlimit_test = 32\n[model]\nname = "net.py:Net"\n'
        '[[stage]]\nepochs = 1\n[[stage]]\nepochs = 1\nrecipe = "w8a8"\n'
    )
    result = train(bw.experiment.load(tmp_path / "mine.toml"), tmp_path / "run")
    assert result.images == 32 and Run(tmp_path / "run").read_csv("predictions.csv")[0]["float_said"]


def test_what_the_float_net_said_is_said_of_the_pixels_it_learned_on(tmp_path: Path) -> None:
    """The last stage reads pixels as codes, the float stage normalized ones."""
    rule = [{"match": "first", "w": {"part": "uniform", "bits": 8}, "x": "input8"}]
    stages = [{"epochs": 2, "optimizer": {"name": "adam", "lr": 0.01}}, {"epochs": 1, "rule": rule}]
    e = Experiment.model_validate(
        {
            "data": {"name": "digits", "limit": 400, "limit_test": 100}, "model": {"name": "mlp", "hidden": 16, "depth": 1},
            "stage": stages, "log": {"tensorboard": False},
        }
    )  # fmt: skip
    train(e, tmp_path / "run")
    run = Run(tmp_path / "run")
    said = [int(r["float_said"]) == int(r["true"]) for r in run.read_csv("predictions.csv")]
    assert sum(said) / len(said) == pytest.approx(run.read_json("state.json")["float_top1"])

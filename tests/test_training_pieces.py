"""Schedules, losses, optimizers, loader, checkpoint, health and lessons, each by hand-computed values."""

from __future__ import annotations

import errno
import io
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bitwright as bw
from bitwright.errors import InputError
from bitwright.experiment import Experiment, load
from bitwright.experiment.schema import Optimizer, Schedule, Stage
from bitwright.runs.tables import Connected, Epoch, Health
from bitwright.training import probe as probes
from bitwright.training.display import Screen, TimeLeft
from bitwright.training.last_checkpoint import read_checkpoint, write_checkpoint
from bitwright.training.lessons import lessons
from bitwright.training.loader import EpochLoader, steps_per_epoch
from bitwright.training.losses import distilled, make_loss
from bitwright.training.optimizers import make_optimizer, set_rate
from bitwright.training.schedules import factor
from bitwright.training.state import State


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        (Schedule(), (0, 19), (1, 1)),
        (Schedule(name="step", every=2, gamma=0.5), (0, 9, 10, 19), (1, 1, 0.5, 0.5)),
        (Schedule(name="milestones", at=[1, 3], gamma=0.1), (4, 5, 14, 15), (1, 0.1, 0.1, 0.01)),
        (Schedule(name="linear", final=0.2), (0, 19), (1, 0.2)),
        (Schedule(name="cosine"), (0, 19), (1, 0)),
        (Schedule(name="cosine", warmup=1), (0, 4, 5, 12, 19), (0.2, 1, 1, (1 + math.cos(math.pi / 2)) / 2, 0)),
        (Schedule(warmup=0.4), (0, 1, 2), (0.5, 1, 1)),
    ],
)
def test_factor_of_the_rate(schedule: Schedule, steps: tuple[int, ...], expected: tuple[float, ...]) -> None:
    """5 steps an epoch, 4 epochs."""
    assert [factor(schedule, s, 5, 4) for s in steps] == pytest.approx(expected, abs=1e-12)


def test_losses_by_hand() -> None:
    outputs, labels = torch.tensor([[2.0, -0.5, 0.0]]), torch.tensor([0])
    hinge = make_loss(Stage(epochs=1, loss="squared_hinge"))
    assert hinge(outputs, labels).item() == pytest.approx((0 + 0.25 + 1) / 3)
    assert make_loss(Stage(epochs=1, loss="mse"))(outputs, labels).item() == pytest.approx((1 + 0.25 + 0) / 3)
    norm = math.log(sum(math.exp(v) for v in (2.0, -0.5, 0.0)))
    plain, others = norm - 2.0, (norm + 0.5) + norm
    smooth = 0.7 * plain + 0.1 * (plain + others)  # 0.3 spread over three classes
    stage = Stage(epochs=1, label_smoothing=0.3)
    assert make_loss(stage)(outputs, labels).item() == pytest.approx(smooth, rel=1e-6)
    assert make_loss(stage, smoothing=False)(outputs, labels).item() == pytest.approx(plain, rel=1e-6)
    with pytest.raises(InputError, match="label_smoothing"):
        make_loss(Stage(epochs=1, loss="mse", label_smoothing=0.1))
    with pytest.raises(InputError, match="Nearest: squared_hinge"):
        make_loss(Stage(epochs=1, loss="squared_hing"))


def test_distillation_by_hand() -> None:
    """Teacher (3/4, 1/4) and student (1/2, 1/2) at T = 2: KL = 3/4 ln 3/2 + 1/4 ln 1/2."""
    teacher, student = torch.tensor([[2 * math.log(3.0), 0.0]]), torch.zeros(1, 2)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    found = distilled(torch.tensor(1.0), student, teacher, weight=0.25, temperature=2.0)
    assert found.item() == pytest.approx(0.75 * 1.0 + 0.25 * 4 * kl, rel=1e-5)


def test_own_loss_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "my_loss.py").write_text("def double(o, y):\n    return 2 * o.sum()\ndef bad(o, y):\n    return o\n")
    loss = make_loss(Stage(epochs=1, loss=f"{tmp_path / 'my_loss.py'}:double"))
    assert loss(torch.ones(1, 2), torch.tensor([0])).item() == 4
    bad = make_loss(Stage(epochs=1, loss=f"{tmp_path / 'my_loss.py'}:bad"))
    with pytest.raises(InputError, match=r"shape \[1, 2\], not a scalar"):
        bad(torch.ones(1, 2), torch.tensor([0]))


def test_optimizers() -> None:
    net = nn.Sequential(bw.nn.Linear(4, 4, w="ttq"), nn.Linear(4, 2))
    optimizer = make_optimizer(net, Optimizer(name="sgd", lr=0.5, momentum=0.9, nesterov=True, weight_decay=0.1))
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0, 0, 0]
    set_rate(optimizer, 0.25)
    assert {g["lr"] for g in optimizer.param_groups} == {0.125}
    with pytest.raises(InputError, match="adam has no momentum"):
        make_optimizer(net, Optimizer(name="adam", momentum=0.9))
    for fused in (False, True):
        assert make_optimizer(net, Optimizer(name="adam", fused=fused)).defaults["fused"] is (fused or None)
    with pytest.raises(InputError, match="nadam has no fused"):
        make_optimizer(net, Optimizer(name="nadam", fused=True))
    for name in ("adam", "adamw", "nadam", "rmsprop"):
        make_optimizer(net, Optimizer.model_validate({"name": name, "eps": 1e-7}))
    with pytest.raises(InputError, match="every parameter is frozen"):
        make_optimizer(net.requires_grad_(False), Optimizer())


# -- loader -----------------------------------------------------------------------------------------------------------
def batches(**options: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    data = bw.data.load("digits").limit(100)
    return list(EpochLoader(data, 16, seed=3, augment=True, **options))


def equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def test_order_is_a_function_of_seed_and_epoch() -> None:
    whole = batches(epoch=2)
    assert len(whole) == 7 and equal(whole, batches(epoch=2))
    assert equal(whole, batches(epoch=2, workers=3)), "a thread changes nothing"
    assert equal(whole[4:], batches(epoch=2, start=4)), "the rest of an epoch"
    assert not equal(whole, batches(epoch=1))
    halves = [batches(epoch=2, rank=rank, world=2) for rank in (0, 1)]
    joined = [(torch.cat([a, b]), torch.cat([s, t])) for (a, s), (b, t) in zip(*halves, strict=True)]
    assert equal(whole, joined), "processes share each batch"


def test_state_of_the_loader() -> None:
    data = bw.data.load("digits").limit(100)
    loader = EpochLoader(data, 16, seed=3, epoch=2, augment=True)
    source = iter(loader)
    for _ in range(3):
        next(source)
    state = loader.state_dict()
    other = EpochLoader(data, 16, seed=3, augment=True)
    other.load_state_dict(state)
    assert state == {"epoch": 2, "start": 3} and len(other) == 4
    assert equal(list(other), list(source))
    assert loader.images == 100 and loader.made > 0


def test_a_thread_ends_with_its_iterator_and_passes_errors_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    data = bw.data.load("digits").limit(100)
    source = iter(EpochLoader(data, 16, workers=1))
    next(source)
    source.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name == "bitwright-loader"]

    def broken(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("bitwright.data.dataset.crop_flip", broken)
    with pytest.raises(ZeroDivisionError):
        list(EpochLoader(data, 16, workers=1, augment=True))


def test_a_last_batch_of_one_image_is_left_out() -> None:
    assert steps_per_epoch(97, 16) == 6 and len(EpochLoader(bw.data.load("digits").limit(97), 16)) == 6
    assert steps_per_epoch(98, 16) == 7 and steps_per_epoch(98, 16, world=2) == 6


# -- checkpoint -------------------------------------------------------------------------------------------------------
def checkpoint(value: float) -> dict[str, Any]:
    return {"bitwright": {"a": value}, "state_dict": {"w": torch.full((1000,), value)}, "optimizer_states": []}


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint(1.0), path)
    before = path.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "write":
        import builtins

        class Short(io.FileIO):
            """A disk that is full after 1,000 bytes."""

            def write(self, data: Any) -> int:
                if self.tell() > 1000:
                    full()
                return super().write(bytes(data)[:1000])

        monkeypatch.setattr(builtins, "open", lambda handle, mode="r", **k: Short(handle, mode))
    else:
        monkeypatch.setattr(os, where, full)
    with pytest.raises(InputError, match=r"last\.ckpt: .*The checkpoint before it is whole\. Make room") as error:
        write_checkpoint(checkpoint(2.0), path)
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.ckpt"]
    assert read_checkpoint(path)["bitwright"]["a"] == 1.0


def test_damaged_and_foreign_checkpoints_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(checkpoint(1.0), path)
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="damaged or not a checkpoint") as error:
            read_checkpoint(path)
        assert "\n" not in str(error.value)
    torch.save({"a": 1}, path)
    with pytest.raises(InputError, match="not a checkpoint of bitwright"):
        read_checkpoint(path)
    torch.save({"bitwright": {}, "state_dict": Evil(), "optimizer_states": []}, path)
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        read_checkpoint(path)
    assert not Evil.ran


class Evil:
    """A file that would run code when unpickled."""

    ran = False

    def __reduce__(self) -> Any:
        return _evil, ()


def _evil() -> None:
    Evil.ran = True


# -- screen -----------------------------------------------------------------------------------------------------------
def test_time_left_comes_with_the_20th_step_and_is_never_zero() -> None:
    left = TimeLeft()
    texts = []
    for _ in range(30):
        left.step(0.001)
        texts.append(left.text(10))
    assert texts[:19] == [""] * 19 and set(texts[19:]) == {"left 0:01"}


def test_without_a_terminal_a_line_each_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    lines: list[str] = []
    screen = Screen(note=lines.append)
    for second in range(100):
        now[0] = second
        screen.step("stage 0", second, 100, lambda: "loss 1")
    assert lines == [f"stage 0  {p}.0 %  loss 1" for p in (30, 60, 90)]


# -- health -----------------------------------------------------------------------------------------------------------
def test_health_of_a_step_by_hand() -> None:
    layer = bw.nn.Linear(4, 2, bias=False, w="bwn", x="sign")
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.5, 0.1, 0.1], [1.0, 1.0, 1.0, 1.0]]))
    net = nn.Sequential(layer)
    layers = probes.coded_layers(net)
    probe = probes.Probe(layers, {"0": 0.65})  # mean |latent| at the stage's start
    net(torch.tensor([[0.5, -0.5, 3.0, 0.0]]))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -0.5, -0.1, 0.1], [1.0, -1.0, 1.0, 1.0]]))
        layer.weight.grad = torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    row = probe.read()["0"]
    assert row["flips"] == 2 / 8 and row["dead"] == 4 / 8
    assert row["saturation"] == 1 / 4, "3.0 lies outside the clip"
    assert row["positive"] == 3 / 4
    assert row["scale"] == pytest.approx(1.0)
    assert not layer.x._forward_pre_hooks  # type: ignore[union-attr]


def test_weights_that_a_mask_removes_are_not_dead() -> None:
    layer = bw.nn.Linear(4, 1, bias=False, w=["mask", "bwn"])
    layer.w.mask.mask.copy_(torch.tensor([[1, 1, 0, 0]]))  # type: ignore[union-attr, operator]
    probe = probes.Probe({"0": layer}, {})
    layer.weight.grad = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    assert probe.read()["0"]["dead"] == 1 / 2


@pytest.mark.parametrize(
    ("part", "flips"), [("bwn", 0.5), ("ttq", 0.5), ({"part": "uniform", "bits": 4}, None), (None, None)]
)
def test_flips_are_told_of_weights_of_one_or_two_bits(part: Any, flips: float | None) -> None:
    """Finer levels change in nearly every step, which says nothing."""
    layer = bw.nn.Linear(2, 1, bias=False, w=part, x="sign")
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.9, -0.9]]))
    probe = probes.Probe({"0": layer}, {})
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.9, 0.9]]))
    assert probe.read()["0"]["flips"] == flips


def test_a_probe_changes_neither_observers_nor_the_random_stream() -> None:
    net = nn.Sequential(bw.nn.Linear(4, 4, w="binaryconnect" if "binaryconnect" in bw.parts() else "bwn",
                                     x={"part": "uniform", "bits": 4, "observer": "ema"}))  # fmt: skip
    net(torch.rand(8, 4))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    probe = probes.Probe(probes.coded_layers(net), {})
    probe.inputs["0"] = torch.rand(8, 4)
    stream = torch.random.get_rng_state()
    row = probe.read()["0"]
    assert torch.equal(stream, torch.random.get_rng_state()) and net.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert row["saturation"] is not None and row["dead"] is None


# -- lessons ----------------------------------------------------------------------------------------------------------
TWO = Experiment.model_validate(
    {"stage": [{"epochs": 4}, {"epochs": 6, "optimizer": {"lr": 1e-3, "weight_decay": 0.1}, "rule": [{"match": "*"}]}]}
)


def state_of(rows: list[dict[str, Any]], health: list[dict[str, Any]] | None = None) -> State:
    return State(stage=1, tables={Epoch.file: rows, Health.file: health or []})


def told(state: State, signed: bool = True, on: dict[str, int] | None = None) -> list[str]:
    at = {"stage": state.stage, "epoch": state.rows(Epoch)[-1]["epoch"]}
    state.tables[Connected.file] = [{**at, "layer": name, "on": count} for name, count in (on or {}).items()]
    return lessons(TWO, state, lambda name: signed, classes=10, images=1000)


def metrics(stage: int, epoch: int, **changes: Any) -> dict[str, Any]:
    return {"stage": stage, "epoch": epoch, "test_top1": 0.9, "data_ms": 0.1, "step_ms": 10.0, **changes}


def health_row(epoch: int, layer: str = "conv2", **changes: Any) -> dict[str, Any]:
    usual = {"flips": 0.001, "dead": 0.0, "scale": 1.0, "saturation": 0.1, "positive": 0.5}
    return {"stage": 1, "epoch": epoch, "layer": layer, **usual, **changes}


def test_a_healthy_run_is_told_nothing() -> None:
    state = state_of([metrics(1, 4)], [health_row(e) for e in range(5)])
    assert told(state) == []


def test_flips() -> None:
    state = state_of([metrics(1, 4)])
    state.tables[Health.file] = [health_row(e, flips=0.05) for e in range(5)] + [
        health_row(e, "conv3") for e in range(5)
    ]
    (text,) = told(state)
    assert text.startswith("conv2: 5.0 % of signs or levels still flip each step since epoch 3 (others 0.1 %)")
    assert "try: stage.1.optimizer.lr=0.0003" in text
    assert told(state) == [], "once per layer and stage"
    state.tables[Health.file] = [health_row(e, "conv4", flips=0.02) for e in range(5)] + state.tables[Health.file]
    assert len(told(state)) == 1


def test_a_layer_without_a_connection_and_one_whose_readers_are_off() -> None:
    state = state_of([metrics(1, 4)], [health_row(4, "fc1"), health_row(4, "fc2")])
    (text,) = told(state, on={"fc1": 3, "fc2": 0})
    assert text.startswith("fc2: none of its connections is on at the end of epoch 4") and "fan_in:8" in text
    assert told(state, on={"fc1": 3, "fc2": 0}) == [], "once per layer and stage"
    state.tables[Health.file] = [health_row(e, name, dead=0.9) for e in range(2) for name in ("fc1", "conv2")]
    texts = told(state, on={"fc1": 3})
    assert [t.split(":")[0] for t in texts] == ["conv2", "fc1"]
    assert "a norm in front" in texts[0] and "only through connections that are on" in texts[1]


def test_health_of_0_1_weights() -> None:
    net = nn.Sequential(bw.nn.Linear(16, 8, bias=False, w="zero_one"), bw.nn.Linear(8, 4, w="bwn"))
    layers = probes.coded_layers(net)
    row = probes.Probe(layers, {"0": 0.1, "1": 0.1}).read()
    assert row["0"]["scale"] is None and row["1"]["scale"] is not None  # latents on [0, 1] have no size of their own


def test_many_layers_are_one_line() -> None:
    rows = [health_row(e, name, dead=0.9) for e in range(2) for name in ("a", "b", "c")]
    state = state_of([metrics(1, 1)], rows)
    (text,) = told(state)
    assert text.startswith("a and 2 more: 90.0 % of weights get no gradient since epoch 0") and told(state) == []


def test_constant_sign() -> None:
    state = state_of([metrics(1, 0)], [health_row(0, positive=1.0), health_row(0, "b", positive=0.001)])
    first, second = told(state)
    assert "100.0 % of its inputs are at or above zero" in first and 'x = ["norm", "sign"]' in first
    assert "99.9 % of its inputs are below zero" in second
    assert told(state) == [], "once per layer and stage"
    state.told = []
    assert told(state, signed=False) == [], "a grid from 0 up is meant to see no negative input"


def test_scale() -> None:
    state = state_of([metrics(1, 2)], [health_row(0), health_row(1, scale=0.05), health_row(2, scale=0.01)])
    (text,) = told(state)
    assert "shrunk to 0.01 times their size since epoch 1" in text and "stage.1.optimizer.weight_decay=0" in text
    state.tables[Health.file] = [health_row(0, "b", scale=20.0)]
    assert "grown to 20 times" in told(state)[0]


def test_switch_loader_and_chance() -> None:
    state = state_of([metrics(0, 3), metrics(1, 0, test_top1=0.8)])
    (text,) = told(state)
    assert text.startswith(
        "test accuracy fell 10.0 points at the switch to stage 1; a dip that recovers within 2 epochs"
    )
    assert "stage.1.teacher=previous" in text and "binarize inputs before weights" in text
    state.rows(Epoch).append(metrics(1, 1, test_top1=0.85))
    assert told(state) == [] and state.warnings == [text]
    state.rows(Epoch).append(metrics(1, 2, test_top1=0.895))  # within a point of the 0.9 before: it was a dip
    assert told(state) == [] and state.warnings == []
    float_on = TWO.model_copy(update={"stage": [TWO.stage[0], TWO.stage[1].model_copy(update={"rule": []})]})
    state = state_of([metrics(0, 3), metrics(1, 0, test_top1=0.8)])
    (text,) = lessons(float_on, state, lambda name: True, classes=10, images=1000)
    assert "stage.1.optimizer.lr=0.0001, or stage.1.teacher=previous" in text and "binarize" not in text
    state = state_of([metrics(1, 1, data_ms=10.0)])
    assert "50.0 % of each step is waiting for data" in told(state)[0] and "data.workers=1" in state.warnings[0]
    state = state_of([metrics(1, 1, test_top1=0.11)])
    assert "is what guessing gives (10.0 %)" in told(state)[0]
    assert told(state_of([metrics(1, 1, test_top1=0.2)])) == []


@pytest.mark.slow
def test_a_large_data_set_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training leaves cycles; where much memory hangs on them, they are collected at once."""
    import gc
    import importlib
    import weakref

    training = importlib.import_module("bitwright.training.train")
    kept: list[Any] = []
    opened = training.open_data

    def watched(experiment: Any) -> Any:
        sets = opened(experiment)
        kept.append(weakref.ref(sets[0].images))
        return sets

    monkeypatch.setattr(training, "open_data", watched)
    monkeypatch.setattr(training, "COLLECT_FROM", 0)
    settings = ["stage.0.epochs=1", "stage.1.epochs=1", "data.limit=64", "log.tensorboard=false"]
    gc.disable()
    try:
        training.train(load("digits-mlp-bwn", settings), tmp_path / "run")
        assert kept[0]() is None
    finally:
        gc.enable()

"""l_dnq: what it leaves in a net, what it must not touch, and the layers that make up for the others."""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.cli.run import run
from bitwright.errors import BitwrightWarning, InputError
from bitwright.experiment import parse
from bitwright.fn.levels import level_grid
from bitwright.parts.codebook import Codebook
from bitwright.procedures import l_dnq, magnitude
from bitwright.procedures.layerwise.cascade import Cascade
from bitwright.runs import Run

pytestmark = pytest.mark.few(every=3)  # of each test with many parameters; the rest runs slowly

MODULE = importlib.import_module("bitwright.procedures.l_dnq")


def images(seed: int) -> Tensor:
    """Neighbors are alike, and so are channels."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(60, 1, 4, 4, generator=rng).repeat_interleave(2, 2).repeat_interleave(2, 3)
    return coarse + 0.3 * torch.randn(60, 3, 8, 8, generator=rng)


IMAGES = [images(seed) for seed in range(3)]


def net(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    found = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    bw.procedures.recalibrate_batchnorm(found, IMAGES)
    return found.eval()


def books(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Codebook)}


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("levels", ["ternary", "pow2:7", "uniform:8"])
def test_every_weight_is_on_a_level_and_nothing_else_is(levels: str, per_channel: bool, cascade: bool) -> None:
    model, before = net(), net()
    report = l_dnq(model, IMAGES, levels=levels, per_channel=per_channel, cascade=cascade, epochs=1)
    found = books(model)
    assert list(found) == ["0.w", "3.w", "6.w"] == [f"{row.layer}.w" for row in report.rows] and report.samples == 180
    grid = torch.tensor(level_grid(levels)).float()
    for name, part in found.items():
        layer = model.get_submodule(name.removesuffix(".w"))
        assert part.scale.shape == ((len(layer.weight),) if per_channel else ()) and bool((part.scale > 0).all())
        scale = part.scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
        assert torch.equal(layer.quantized_weight(), grid[part.index.long()] * scale)
        assert torch.equal(layer.weight, layer.quantized_weight()) and layer.weight.requires_grad
    assert len(model[3].bias.unique()) == 8  # a public code puts the bias on the levels too
    if not cascade:
        assert torch.equal(model[1].weight, before[1].weight)
    assert not model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_other_number_types(kind: torch.dtype) -> None:
    model = net().to(kind)
    l_dnq(model, [x.to(kind) for x in IMAGES], cascade=kind == torch.float64, norms="keep")
    assert model[0].weight.dtype == kind and len(model[0].quantized_weight().unique()) == 3


def test_the_reported_error_is_that_of_the_outputs() -> None:
    """Strided, padded and grouped: a public code orders the patches of a convolution in another way than its kernel."""
    model, before = net(), net()
    report = l_dnq(model, IMAGES, cascade=False, norms="keep")
    for at in (0, 3, 6):
        x = [model[:at](one) for one in IMAGES]
        old, new = (torch.cat([m[at](one) for one in x]).detach() for m in (before, model))
        outputs = old.shape[1]
        exact = (old - new).double().square().mean() * outputs
        row = report.rows[(0, 3, 6).index(at)]
        assert row.error == pytest.approx(float(exact), rel=1e-4)
        assert row.relative == pytest.approx(row.error / float(old.double().square().mean() * outputs), rel=0.3)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_better_than_rounding(seed: int) -> None:
    errors = []
    variants: list[dict[str, Any]] = [{"iterations": 0, "sweeps": 0}, {}, {"per_channel": True}]
    for options in variants:
        report = l_dnq(net(seed), IMAGES, cascade=False, **options)
        errors.append([row.relative for row in report.rows])
    assert errors[1][0] < 0.8 * errors[0][0]  # the first layer reads the same in both
    assert all(b < a for a, b in zip(errors[0], errors[1], strict=True)) and sum(errors[2]) < sum(errors[1])


def test_a_dead_first_channel_does_not_stop_it() -> None:
    """A public code takes its step size from the first input: where that is always 0 it returns plain rounding."""
    dead = [x * torch.tensor([0.0, 1.0, 1.0]).reshape(3, 1, 1) for x in IMAGES]
    rows = [l_dnq(net(), dead, levels={"0": "ternary"}, cascade=False, iterations=n, sweeps=n).rows[0] for n in (0, 20)]
    assert rows[1].error < 0.8 * rows[0].error


@pytest.mark.parametrize("factor", [1e-4, 1e3])
def test_the_unit_of_the_images_does_not_matter(factor: float) -> None:
    """A public code stops by absolute differences of 0.001."""
    models = [nn.Sequential(nn.Linear(12, 6)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(200, 12).relu() @ torch.randn(12, 12)
    for model, batch in zip(models, (x, factor * x), strict=True):
        l_dnq(model, [batch], levels="pow2:7", cascade=False)
    a, b = (books(model)["0.w"] for model in models)
    assert torch.equal(a.index, b.index)
    torch.testing.assert_close(a.scale, b.scale)


def test_levels_of_single_layers() -> None:
    model = net()
    l_dnq(model, IMAGES, levels={"0": "uniform:16", "6": "ternary"}, cascade=False)
    assert {n: len(part.levels) for n, part in books(model).items()} == {"0.w": 16, "6.w": 3}
    assert type(model[3]) is nn.Conv2d


@pytest.mark.slow
def test_weights_on_levels_stay_and_a_quantized_layer_is_refused() -> None:
    model = net()
    l_dnq(model, IMAGES, levels="pow2:7", cascade=False, norms="keep")
    again = net()
    again.load_state_dict({k: v for k, v in model.state_dict().items() if ".w." not in k})
    l_dnq(again, IMAGES, levels="pow2:7", cascade=False, norms="keep")
    for name, part in books(model).items():
        layer = name.removesuffix(".w")
        torch.testing.assert_close(
            again.get_submodule(layer).quantized_weight(), part(model.get_submodule(layer).weight), rtol=1e-6, atol=0
        )
    with pytest.raises(InputError, match=r"l_dnq: 0: its weight goes through codebook"):
        l_dnq(model, IMAGES)


def test_what_is_pruned_stays_pruned() -> None:
    model = net()
    magnitude(model, keep=0.5)
    masks = {at: model[at].w.mask.clone() for at in (0, 3, 6)}
    l_dnq(model, IMAGES, levels="pow2:7", epochs=1)
    for at, mask in masks.items():
        assert torch.equal(model[at].w.mask.mask, mask)
        assert bool((model[at].quantized_weight()[mask == 0] == 0).all())
        assert len(model[at].quantized_weight().unique()) > 3


# -- the layers that are still real -----------------------------------------------------------------------------------
def distance(model: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        return sum(float((model(x) - other(x)).square().mean()) for x in IMAGES)


@pytest.mark.slow
def test_the_cascade_brings_the_answers_closer_without_labels() -> None:
    before = net()
    plain, followed = net(), net()
    l_dnq(plain, IMAGES, cascade=False)
    pairs = [(x, torch.full((60,), -1)) for x in IMAGES]  # no use of the labels: these would raise
    l_dnq(followed, pairs)
    assert distance(followed, before) < 0.9 * distance(plain, before)


def test_two_runs_are_the_same() -> None:
    models = [net(), net()]
    for i, model in enumerate(models):
        torch.manual_seed(i)
        l_dnq(model, IMAGES, epochs=2, seed=5)
    for (name, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_what_does_not_learn_and_the_statistics_stay() -> None:
    model, before = net(), net()
    model.train()
    model[3].requires_grad_(False)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    l_dnq(model, IMAGES, levels={"0": "ternary"}, norms="keep")
    assert torch.equal(model[3].weight, before[3].weight) and torch.equal(model[3].bias, before[3].bias)
    assert not model[3].weight.requires_grad and model[6].weight.requires_grad
    assert not torch.equal(model[6].weight, before[6].weight) and not torch.equal(model[1].weight, before[1].weight)
    for key in ("running_mean", "running_var", "num_batches_tracked"):  # a public code lets those of both nets drift
        assert torch.equal(getattr(model[1], key), getattr(before[1], key))
    assert model.training and bool((model[0].weight.grad == 1).all())


def test_a_rate_that_is_too_large_is_taken_back() -> None:
    model = net()
    follow = Cascade.of(net(), IMAGES, epochs=3, rate=1e6, seed=0)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    first, last = follow.fit(model, {id(model[0].weight)}, 1)
    assert first == last > 0 and torch.equal(model[6].weight, before["6.weight"])
    assert follow.fit(net(), set(), 1) == (0.0, 0.0)  # nothing to learn


def test_large_batches_are_cut_and_answers_may_be_several() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.unused = nn.Linear(4, 3), nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"sum": self.fc(x + y), "kind": x.long()}

    torch.manual_seed(0)
    follow = Cascade.of(Two(), [{"x": torch.randn(300, 4), "y": torch.ones(300, 4)}], 1, 0.1, 0)
    assert [len(piece["x"]) for piece in follow.pieces] == [128, 128, 44]
    assert [len(one) for one in follow.answers] == [1, 1, 1]
    first, last = follow.fit(Two(), set(), 1)
    assert last < first


# -- all of it or nothing ---------------------------------------------------------------------------------------------
class Killed(BaseException):
    """What no code catches."""


def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The solver raises once it has done this many layers."""
    solve, calls = MODULE.best_levels, iter(range(after))

    def some(*args: Any) -> Any:
        if next(calls, None) is None:
            raise Killed
        return solve(*args)

    monkeypatch.setattr(MODULE, "best_levels", some)


@pytest.mark.parametrize("cascade", [False, True])
def test_after_an_error_the_net_is_as_it_was(cascade: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = net(), net()
    stopping(monkeypatch, 2)
    with pytest.raises(Killed):
        l_dnq(model, IMAGES, cascade=cascade)
    assert [type(m) for m in model] == [type(m) for m in before]
    for (name, a), b in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.slow
@pytest.mark.parametrize("cascade", [False, True])
def test_a_killed_run_goes_on(cascade: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"cascade": cascade, "epochs": 2, "journal": tmp_path / "journal"}
    whole, broken = net(), net()
    l_dnq(whole, IMAGES, **options)
    with monkeypatch.context() as patch:
        stopping(patch, 2)
        with pytest.raises(Killed):
            l_dnq(broken, IMAGES, **options)
    assert len(list((tmp_path / "journal").iterdir())) == 2
    with monkeypatch.context() as patch:
        stopping(patch, 1)
        report = l_dnq(broken, IMAGES, **options)
    assert [row.layer for row in report.rows] == ["0", "3", "6"] and not (tmp_path / "journal").exists()
    for (name, a), b in zip(whole.state_dict().items(), broken.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"levels": "pow2:6"}, "levels='pow2:6'; possible: ternary, pow2:N"),
        ({"levels": {"conv*": "ternary"}}, r"l_dnq: levels of 'conv\*' matches no layer"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        l_dnq(net(), IMAGES, **options)


def test_wrong_images_are_one_line() -> None:
    for batches, text in (([], "no images"), ([torch.full((2, 3, 8, 8), torch.nan)], "0 reads NaN numbers in batch 0")):
        with pytest.raises(InputError, match=f"l_dnq: {text}"):
            l_dnq(net(), batches)


# -- as a stage, and on the command line ------------------------------------------------------------------------------
EXPERIMENT = """
[data]
name = "digits"
limit = 300
limit_test = 64
batch = 100
[model]
name = "resnet20"
width = 0.25
[log]
tensorboard = false
[[stage]]
epochs = 1
optimizer = { name = "adam", lr = 1e-2 }
[[stage]]
procedure = { name = "l_dnq", levels = "ternary", batches = 2, epochs = 1 }
epochs = 1
optimizer = { name = "adam", lr = 1e-3 }
"""


@pytest.mark.slow
def test_a_stage_and_a_packed_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitwrightWarning)
        bw.train(parse(EXPERIMENT), tmp_path / "run", echo=lambda line: None)
    opened = Run(tmp_path / "run")
    [row] = opened.read_json("procedures.json")["procedures"]
    assert row["procedure"] == "l_dnq" and "codebook" in row["recipe"] and len(row["rows"]) == 20
    part = books(opened.model())
    assert len(part) == 20 and all(
        len(p.levels) == 3 for p in part.values()
    )  # trained on for an epoch, still on levels
    assert run(["convert", str(opened.path)]) == 0
    weights = sum(p.index.numel() for p in part.values())
    assert opened.file("packed.safetensors").stat().st_size < weights * 2 / 8 + 24_000 + 8 * 200


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    float_run = EXPERIMENT[: EXPERIMENT.rindex("[[stage]]")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BitwrightWarning)
        bw.train(parse(float_run), tmp_path / "run", echo=lambda line: None)
    words = ["quantize", str(tmp_path / "run"), "--method", "l_dnq", "--levels", "*=ternary,conv1=uniform:16"]
    assert run([*words, "--batches", "2", "--epochs", "1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["quantize"]
    assert said["procedure"] == "l_dnq" and said["rows"][0]["layer"] == "conv1"
    assert run(["eval", str(tmp_path / "run"), "--weights", said["file"]]) == 0
    capsys.readouterr()
    assert run([*words[:-1], "pow2:6"]) == 2 and "levels='pow2:6'" in capsys.readouterr().err

"""Self-pruning nets from a float model to a file: starts, plan, cost, packing, dead layers, stopped trainings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bitwright as bw
from bitwright.engine.convert import Converted
from bitwright.experiment import Experiment
from bitwright.nn import SlotLayer
from bitwright.runs import Run
from bitwright.training import Stopped, callback, train
from stepping import stop_at

PIXELS = torch.rand(96, 1, 8, 8, generator=torch.Generator().manual_seed(5)).round()


def net(name: str = "selfprune_mlp", recipe: str = "selfprune", seed: int = 0, **options: Any) -> nn.Module:
    """A small one, its norms having seen images, in evaluation mode."""
    torch.manual_seed(seed)
    size: dict[str, Any] = {"hidden": 48, "depth": 2} if name.endswith("mlp") else {"width": 0.25}
    made = bw.apply(bw.models.create(name, size=8, **size, **options), recipe, PIXELS[:2])
    with torch.no_grad():
        for start in range(0, 96, 32):
            made(PIXELS[start : start + 32])
    return made.eval()


def layer(model: nn.Module, name: str) -> SlotLayer:
    found = model.get_submodule(name)
    assert isinstance(found, SlotLayer)
    return found


def converted(model: nn.Module) -> tuple[Converted, nn.Module]:
    done = bw.convert(model, PIXELS)
    assert done.model is not None, str(done.report)
    assert done.report.layers_exact and done.report.same == done.report.images == 96
    return done, done.model


def runs_as(done: Converted) -> dict[str, str]:
    return {row.layer: row.runs_as for row in done.report.rows}


# -- from a float model ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["selfprune_mlp", "selfprune_conv"])
def test_the_recipe_draws_latents_of_the_expected_fan_in(name: str) -> None:
    made = net(name)
    for module in made.modules():
        if isinstance(module, SlotLayer):
            weight = module.weight.detach()
            assert set(weight.unique().tolist()) <= {0.0, 1.0} and module.bias is None
            inputs = weight[0].numel()
            counts = weight.flatten(1).sum(1)
            deviation = (min(4, inputs) / len(counts)) ** 0.5
            assert counts.mean().item() == pytest.approx(min(4, inputs), abs=5 * deviation)
    assert torch.equal(layer(net(name), "fcx").weight, layer(net(name), "fcx").weight)
    assert not torch.equal(layer(net(name), "fcx").weight, layer(net(name, seed=1), "fcx").weight)


def test_a_saved_net_comes_back_without_a_new_start(tmp_path: Path) -> None:
    made = net()
    layer(made, "fc2").weight.data.zero_()  # what a start would not leave
    bw.save(made, tmp_path / "net.safetensors")
    again = bw.load(tmp_path / "net.safetensors", bw.models.create("selfprune_mlp", size=8, hidden=48, depth=2))
    assert torch.equal(again.eval()(PIXELS), made(PIXELS)) and not layer(again, "fc2").weight.any()


def test_plan_and_cost_say_one_bit() -> None:
    made = net("selfprune_mlp", "selfprune-step", activation="identity")
    table = bw.cost(made, PIXELS[:1])
    shapes = {"fc1": 64 * 48, "fc2": 48 * 48, "fcx": 48 * 10}
    for row in table.rows:
        assert (row.w_bits, row.x_bits, row.weight_bytes) == (1, 1, shapes[row.name] / 8)
        assert row.bops == row.macs == shapes[row.name]
    assert len(table.rows) == 3
    plan = bw.plan(bw.models.create("selfprune_mlp", size=8, hidden=48, depth=2), "selfprune", PIXELS[:2])
    assert [(row.w, row.x) for row in plan.rows] == [("zero_one", "heaviside"), *[("zero_one", "float")] * 2]


WHOLE = {"bits", "int8"}  # whole numbers on either kernel: the machine chooses


# -- packing --------------------------------------------------------------------------------------------------------------
@pytest.mark.few()
@pytest.mark.parametrize("norm", ["batch_norm", "hard_invert", "soft_invert"])
@pytest.mark.parametrize("name", ["selfprune_mlp", "selfprune_conv"])
def test_pixels_run_at_one_bit_and_real_hidden_values_leave_bits_on_disk(name: str, norm: str, tmp_path: Path) -> None:
    made = net(name, norm=norm)
    done, packed = converted(made)
    first, *rest = runs_as(done).values()
    assert first in WHOLE and set(rest) == {"bits on disk, float run"}
    assert torch.allclose(packed(PIXELS), made(PIXELS), rtol=0, atol=2e-5)
    done.save(tmp_path / "net.safetensors")
    loaded = bw.load(tmp_path / "net.safetensors")
    assert torch.equal(loaded(PIXELS), packed(PIXELS))
    bits = {k: v for k, v in load_file(tmp_path / "net.safetensors").items() if k.endswith(".bits")}
    weights = sum(m.weight.numel() for m in made.modules() if isinstance(m, SlotLayer))
    assert sum(v.numel() * v.element_size() for v in bits.values()) <= weights / 8 + 8 * len(bits)


@pytest.mark.parametrize("name", ["selfprune_mlp", "selfprune_conv"])
def test_step_nets_run_at_one_bit_in_every_layer(name: str) -> None:
    made = net(name, "selfprune-step", activation="identity")
    done, packed = converted(made)
    assert set(runs_as(done).values()) <= WHOLE
    assert torch.allclose(packed(PIXELS), made(PIXELS), rtol=0, atol=2e-5)


def test_a_nor_net_runs_at_one_bit_in_every_layer() -> None:
    """1 - tanh(s), cut at one half: 1 where no connected input is on."""
    made = net("selfprune_mlp", "selfprune-step", norm="hard_invert", head="counts")
    for name in ("fc2", "fcx"):
        layer(made, name).set_slots(x={"part": "heaviside", "threshold": 0.5, "surrogate": "identity"})
    done, packed = converted(made.eval())
    assert set(runs_as(done).values()) <= WHOLE
    bits, (one, two, last) = PIXELS.flatten(1), (layer(made, n).weight >= 0.5 for n in ("fc1", "fc2", "fcx"))
    for weight in (one, two):
        bits = ((bits @ weight.float().T) == 0).float()
    expected = 1 - bits @ last.float().T
    assert torch.equal(made(PIXELS), expected) and torch.equal(packed(PIXELS), expected)


def test_a_ready_made_net_of_any_kind() -> None:
    torch.manual_seed(0)
    made = bw.apply(bw.models.create("lenet5", size=16), "zero_one", torch.rand(2, 1, 16, 16).round())
    x = torch.rand(64, 1, 16, 16).round()
    with torch.no_grad():
        made(x)
    done = bw.convert(made.eval(), x)
    assert set(runs_as(done).values()) <= WHOLE and done.report.layers_exact


@pytest.mark.parametrize(("on", "off"), [(2.5, 0.0), (0.5, -0.5), (3.0, 1.0)])
def test_other_values_of_on_and_off_are_packed_as_they_are_now(on: float, off: float) -> None:
    made = net("selfprune_mlp", "selfprune-step", activation="identity")
    for name in ("fc1", "fc2", "fcx"):
        slot: Any = layer(made, name).w
        slot.on = on
        slot.off = off
    _, packed = converted(made)
    assert torch.allclose(packed(PIXELS), made(PIXELS), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("x", ["heaviside", None])
def test_biases_of_the_part_are_packed_as_their_values(x: str | None) -> None:
    torch.manual_seed(0)
    one = bw.nn.Linear(64, 10, w="zero_one", b={"part": "zero_one", "on": 2.0}, x=x)
    assert one.bias is not None
    one.bias.data.copy_(torch.rand(10))
    done, packed = converted(nn.Sequential(nn.Flatten(), one).eval())
    assert set(runs_as(done).values()) == {"bits" if x else "bits on disk, float run"}
    weight, bits = (one.weight >= 0.5).float(), (PIXELS.flatten(1) >= 0).float()
    expected = (bits if x else PIXELS.flatten(1)) @ weight.T + 2 * (one.bias >= 0.5).float()
    assert torch.equal(packed(PIXELS), expected)


def test_an_off_value_that_is_no_multiple_of_the_step_stays_float_and_says_why() -> None:
    made = net("selfprune_mlp", "selfprune-step", activation="identity")
    slot: Any = layer(made, "fc2").w
    slot.off = math.sqrt(0.1)
    done, _ = converted(made)
    (row,) = [row for row in done.report.rows if row.layer == "fc2"]
    assert row.runs_as == "float" and "off=0.316" in row.why and "not the same multiple of a step" in row.why


def test_an_off_value_of_three_sevenths_of_the_step_packs() -> None:
    made = net("selfprune_mlp", "selfprune-step", activation="identity")
    slot: Any = layer(made, "fc2").w
    slot.off = 0.3
    done, _ = converted(made)
    assert [row.runs_as for row in done.report.rows if row.layer == "fc2"] == ["bits"]


# -- layers without a connection ------------------------------------------------------------------------------------------
def dead(model: nn.Module, name: str) -> nn.Module:
    """Nothing on in this layer; the norm behind it has seen nothing but zeros."""
    layer(model, name).weight.data.zero_()
    model.train()
    with torch.no_grad():
        for _ in range(200):
            model(PIXELS)
    return model.eval()


@pytest.mark.few()
@pytest.mark.parametrize("recipe", ["selfprune", "selfprune-step"])
@pytest.mark.parametrize("name", ["fc1", "fc2", "fcx"])
def test_a_layer_without_connections_is_a_constant_and_convert_says_so(recipe: str, name: str) -> None:
    made = dead(net("selfprune_mlp", recipe, activation="tanh" if recipe == "selfprune" else "identity"), name)
    norm = made.get_submodule(f"norm{name[2:]}")
    assert isinstance(norm.running_var, Tensor) and norm.running_var.max() < 1e-6
    y = made(PIXELS)
    assert y.isfinite().all() and torch.equal(y, y[:1].expand_as(y))
    done, packed = converted(made)
    assert torch.allclose(packed(PIXELS), y, rtol=0, atol=2e-5)
    rows = {row.layer: row.why for row in done.report.rows}
    assert "all its weights are 0, so its output is a constant" in rows.pop(name)
    assert not any("constant" in why for why in rows.values())


def test_a_layer_with_on_at_zero_is_packed_too() -> None:
    made = net("selfprune_mlp", "selfprune-step", activation="identity")
    slot: Any = layer(made, "fc2").w
    slot.on = 0.0
    _, packed = converted(made)
    assert torch.allclose(packed(PIXELS), made(PIXELS), rtol=0, atol=2e-5)


# -- training -------------------------------------------------------------------------------------------------------------
def experiment(**changes: Any) -> Experiment:
    weights = {"part": "zero_one", "random_mag": 0.5, "epsilon": 0.75}
    table: dict[str, Any] = {
        "data": {"batch": 64, "limit": 320, "augment": False, "binarize": True},
        "model": {"name": "selfprune_mlp", "hidden": 32, "depth": 2, "norm": "soft_invert", "dropout": 0.1},
        "train": {"device": "cpu", "threads": 1, "checkpoint_every": 3},
        "log": {"health_every": 2, "histograms_every": 0, "tensorboard": False},
        "stage": [
            {
                "epochs": 3,
                "optimizer": {"name": "adam", "lr": 0.05},
                "rule": [
                    {"match": "*", "w": weights},
                    {"match": "first", "x": {"part": "heaviside", "threshold": 0.5}},
                ],
            }
        ],
    }
    return Experiment.model_validate({**table, **changes})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")
def test_a_stopped_training_with_random_on_values_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(experiment(), tmp_path / "a")
    whole = load_file(tmp_path / "a" / "model.safetensors")
    assert len({int(v) for k, v in whole.items() if k.endswith("count")}) == 1  # all layers are at the same draw
    assert len({int(v) for k, v in whole.items() if k.endswith("stream")}) == 1
    stop_at(monkeypatch, 7)
    with pytest.raises(Stopped):
        train(experiment(), tmp_path / "b")
    monkeypatch.undo()
    train(experiment(), tmp_path / "b", resume=True)
    again = load_file(tmp_path / "b" / "model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)
    trained = Run(tmp_path / "b").model()
    for key, value in trained.state_dict().items():
        if key.endswith(("weight", "invert")):
            assert value.min() >= 0 and value.max() <= 1, key


@pytest.mark.filterwarnings("ignore::bitwright.errors.BitwrightWarning")
def test_a_training_that_leaves_a_layer_without_a_connection_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = callback.TrainingCallback.on_train_start

    def start(self: Any, trainer: Any, pl_module: Any) -> None:
        original(self, trainer, pl_module)
        layer(self.job.net, "fc2").weight.data.zero_()

    monkeypatch.setattr(callback.TrainingCallback, "on_train_start", start)
    stage = {"epochs": 1, "rule": [{"match": "*", "w": "zero_one"}], "freeze": ["fc2.weight"]}
    result = train(experiment(stage=[stage]), tmp_path / "a")
    (told,) = [text for text in result.warnings if "is on at the end" in text]
    assert "fc2: none of its connections is on at the end of epoch 0" in told


def test_a_layer_with_hardly_a_connection_runs_on_lists() -> None:
    g = torch.Generator().manual_seed(0)
    wide = bw.nn.Linear(
        600, 40, bias=False, w={"part": "zero_one", "init": "keep"}, x={"part": "heaviside", "threshold": 0.5}
    )
    rest = bw.nn.Linear(
        40, 3, bias=False, w={"part": "zero_one", "init": "keep"}, x={"part": "heaviside", "threshold": 0.5}
    )
    wide.weight.data.zero_().view(-1)[torch.randperm(24000, generator=g)[:90]] = 1.0
    rest.weight.data.copy_(torch.rand(3, 40, generator=g))
    model, x = nn.Sequential(wide, rest).eval(), torch.rand(70, 600, generator=g)
    done = bw.convert(model, x[:2], verify=[x])
    first, second = done.report.rows
    assert first.runs_as == "bits" and first.why.startswith("most of its weights are 0: runs on lists of the others; ")
    assert "of its 40 outputs are left out" in first.why and second.why == ""
    assert done.model is not None and torch.equal(done.model(x), model(x))

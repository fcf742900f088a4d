"""Nets built as torchvision, timm and transformers build theirs: float weights, plan, apply, calibrate, one step, convert."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from lookalikes import NETS, Tied, TorchEncoder

FLOAT = {"w": "float", "x": "float"}
# what a user adds where a stock recipe cannot know: a head that only trains, a Linear with a forward of its own
EXTRA = {"googlenet": [{"match": "aux", **FLOAT}], "timm": [{"match": "head", **FLOAT}]}
FIRST = {  # the recipe that the fast tests take
    "resnet": "w1a1", "bottleneck": "lsq-w4a4", "mobilenet_v2": "w8a8", "vgg": "ttq", "densenet": "w1a1",
    "googlenet": "dorefa-w1a2", "timm": "twn", "vit": "lsq-w4a4", "tied": "ttq", "torch_encoder": "bwn",
}  # fmt: skip
CASES = [(name, FIRST[name]) for name in NETS]
MORE = [(n, r) for n in NETS for r in ("w1a1", "lsq-w2a2", "pact-w4a4", "ttq", "xnor") if r != FIRST[n]]
MORE.remove(("mobilenet_v2", "lsq-w2a2"))  # its recipe is for nets with ReLU: linear bottlenecks have both signs


def recipe_for(name: str, recipe: str) -> bw.Recipe:
    stock = bw.Recipe.load(recipe)
    return stock + bw.Recipe.from_rules(EXTRA[name]) if name in EXTRA else stock


def applied(name: str, recipe: str) -> tuple[nn.Module, Tensor]:
    build, example, _ = NETS[name]
    net, x = build(), example()
    with torch.no_grad():  # a float net that has seen data
        for _ in range(10):
            net.train()(x)
    with warnings.catch_warnings():
        # of layers that a "*" cannot replace and leaves float, by name: attention's own, embeddings, subclasses
        warnings.filterwarnings("ignore", message="apply: stays float", category=bw.BitwrightWarning)
        bw.apply(net, recipe_for(name, recipe), x)
    return net, x


def check_trains(net: nn.Module, x: Tensor) -> None:
    bw.calibrate(net, [x], norms="batch")
    optimizer = torch.optim.SGD(bw.param_groups(net, 0.01, 1e-4))
    coded = {n: m for n, m in net.named_modules() if isinstance(m, bw.nn.SlotLayer) and m.w is not None}
    before = {name: layer.weight.detach().clone() for name, layer in coded.items()}
    with bw.attach(net, optimizer):
        loss = net.train()(x).square().mean() + bw.penalty(net)
        loss.backward()
        optimizer.step()
    assert loss.isfinite() and all(p.grad is not None and p.isfinite().all() for p in net.parameters())
    moved = [name for name, layer in coded.items() if not torch.equal(before[name], layer.weight)]
    assert len(moved) > len(coded) / 2  # a step may be too small for the last bit, behind a LayerScale say
    assert all(layer.weight.grad is not None and layer.weight.grad.any() for layer in coded.values())


def check_converts(name: str, net: nn.Module, x: Tensor) -> None:
    report = bw.convert(net.eval(), x[:1], verify=[x]).report
    assert report.status in ("PASS", "WARN") and report.same == len(x), report


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_plan_apply_train(name: str, recipe: str) -> None:
    build, example, _ = NETS[name]
    net, x = build(), example()
    rows = {row.name: row for row in bw.plan(net, recipe_for(name, recipe), x).rows}
    net, x = applied(name, recipe)
    for layer, module in net.named_modules():
        if isinstance(module, bw.nn.SlotLayer):
            assert (rows[layer].w != "float", rows[layer].x != "float") == (module.w is not None, module.x is not None)
    check_trains(net, x)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [pytest.param(n, r, marks=() if n in ("timm", "tied") else pytest.mark.slow) for n, r in CASES],
)
def test_convert(name: str, recipe: str) -> None:
    net, x = applied(name, recipe)
    bw.calibrate(net, [x])
    check_converts(name, net, x)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recipe"), MORE)
def test_other_recipes(name: str, recipe: str) -> None:
    net, x = applied(name, recipe)
    check_trains(net, x)
    check_converts(name, net, x)


# ---- refusals that name the layer ----


def test_a_head_that_only_trains_is_named() -> None:
    build, example, _ = NETS["googlenet"]
    with pytest.warns(bw.BitwrightWarning, match=r"stays float: aux \(.*, the example never reaches it"):
        bw.apply(build(), "bwn", example())


def test_a_linear_with_its_own_forward_is_named() -> None:
    build, example, _ = NETS["timm"]
    with pytest.raises(bw.InputError, match=r"head \(HeadLinear, subclass of Linear with its own forward\)"):
        bw.apply(build(), "lsq-w4a4", example())


def test_attention_of_torch_is_left_float_by_name() -> None:
    net, x = TorchEncoder(), torch.randn(2, 6, 8)
    with pytest.warns(bw.BitwrightWarning, match=r"stays float: encoder.layers.0.self_attn"):
        bw.apply(net, "bwn", x)
    assert isinstance(net.get_submodule("encoder.layers.0.linear1"), bw.nn.SlotLayer)
    with pytest.raises(bw.InputError, match=r"self_attn.out_proj .* cannot be replaced"):
        bw.apply(TorchEncoder(), [{"match": "*.out_proj", "w": "bwn"}], x)


def test_a_weight_shared_with_a_float_layer_is_named() -> None:
    """Clipping the latent of the head would change the table of the embedding without a word."""
    net, ids = Tied(), torch.randint(11, (2, 6))
    with pytest.warns(bw.BitwrightWarning, match="lm_head shares its weight with embed, which reads it as a float"):
        bw.apply(net, [{"match": "lm_head", "w": "bwn"}], ids)
    assert net.lm_head.weight is net.embed.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a part that never writes to its latent is no trouble
        bw.apply(Tied(), [{"match": "lm_head", "w": "twn"}], ids)


# ---- float weights ----


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bottleneck", "mobilenet_v2", "densenet", "timm", "vit"])
@pytest.mark.parametrize("recipe", ["ttq", "lsq-w4a4", "dorefa-w1a2", "twn"])
def test_float_weights_before_or_after_apply(name: str, recipe: str) -> None:
    """Only keys of parts are missing; after `calibrate`, scales and outputs do not depend on which came first."""
    build, example, _ = NETS[name]
    weights = build().state_dict()
    x = example()
    before, after = build(), build()
    before.load_state_dict(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bw.BitwrightWarning)
        bw.apply(before, recipe_for(name, recipe), x)
        bw.apply(after, recipe_for(name, recipe), x)
    answer = after.load_state_dict(weights, strict=False)
    parts = {f"{n}.{s}." for n, m in after.named_modules() if isinstance(m, bw.nn.SlotLayer) for s in ("w", "x")}
    assert not answer.unexpected_keys
    assert all(any(key.startswith(p) for p in parts) for key in answer.missing_keys)
    for net in (before, after):
        bw.calibrate(net, [x])
    mine, theirs = before.state_dict(), after.state_dict()
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        if not key.endswith(".stream"):
            assert torch.equal(value, theirs[key]), key
    assert torch.equal(before.eval()(x), after.eval()(x))


def test_scales_begin_at_the_weights() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(50, 40)
    net: Any = bw.apply(nn.Sequential(copy.deepcopy(layer)), [{"match": "*", "w": "ttq"}])
    w = layer.weight
    limit = 0.05 * w.abs().max()
    torch.testing.assert_close(net[0].w.p, w[w > limit].mean())
    torch.testing.assert_close(net[0].w.n, -w[w < -limit].mean())
    for part, step in (("lsq", 2 * w.abs().mean() / 7**0.5),):
        net = bw.apply(nn.Sequential(copy.deepcopy(layer)), [{"match": "*", "w": {"part": part, "bits": 4}}])
        torch.testing.assert_close(net[0].w.step, step)


def test_fine_tuning_from_a_float_net_learns() -> None:
    """Digits, a few steps each: the ternary net starts near the float net and the loss falls."""
    data = bw.data.load("digits")
    x, y = next(iter(data.batches(256)))
    net: Any = bw.models.create("mlp", in_channels=1, size=8, hidden=64, depth=2)

    def train(steps: int) -> list[float]:
        optimizer = torch.optim.Adam(bw.param_groups(net, 3e-3, 0.0))
        losses = []
        with bw.attach(net, optimizer):
            for _ in range(steps):
                loss = nn.functional.cross_entropy(net.train()(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
        return losses

    full = train(30)
    bw.apply(net, "ttq", x)
    bw.calibrate(net, [x])
    low = train(30)
    assert low[0] < full[0] / 2 and low[-1] < low[0]

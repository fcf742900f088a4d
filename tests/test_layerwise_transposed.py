"""Transposed convolutions in layer-wise procedures, beside the dense matrix of the layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitwright as bw
from bitwright.procedures.layerwise.geometry import places, rows_of, weight_rows
from bitwright.procedures.layerwise.select import Unit
from bitwright.procedures.layerwise.stats import LayerStats, visit_layers
from bitwright.transforms.geometry import as_rows, from_rows

LAYERS = {
    "1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1, output_padding=1), (2, 5)),
    "1d groups": (lambda: nn.ConvTranspose1d(4, 6, 2, stride=3, groups=2), (4, 4)),
    "2d": (lambda: nn.ConvTranspose2d(3, 2, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 4, 3)),
    "2d dilated": (lambda: nn.ConvTranspose2d(2, 2, 2, stride=2, dilation=3, output_padding=(1, 2)), (2, 3, 3)),
    "2d cut": (lambda: nn.ConvTranspose2d(2, 3, 2, padding=2), (2, 5, 6)),
    "2d groups": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False), (4, 3, 3)),
    "2d depthwise": (lambda: nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4), (4, 3, 3)),
    "3d": (lambda: nn.ConvTranspose3d(2, 2, 2, stride=2, padding=(0, 1, 0)), (2, 2, 3, 2)),
}


def dense(layer: Any, x: Tensor) -> Tensor:
    """[G, samples * places, D]: column q is the output of the layer whose only weight, a 1, is weight q of a filter."""
    filters = as_rows(layer, layer.weight.detach())
    groups, each = layer.groups, len(filters) // layer.groups
    columns = []
    for q in range(filters[0].numel()):
        one = torch.zeros(filters.shape, dtype=filters.dtype)
        one.flatten(1)[:, q] = 1
        given = {"weight": from_rows(layer, one)}
        if layer.bias is not None:
            given["bias"] = torch.zeros_like(layer.bias)
        y = torch.func.functional_call(layer, given, (x,))
        columns.append(y.detach()[:, ::each].transpose(0, 1).flatten(1))  # all outputs of a group read the same
    return torch.stack(columns, -1).reshape(groups, -1, len(columns))


@pytest.mark.parametrize("name", LAYERS)
def test_rows_are_the_dense_matrix_of_the_layer(name: str) -> None:
    build, shape = LAYERS[name]
    layer, x = build().double(), torch.randn(3, *shape, dtype=torch.float64)
    want = dense(layer, x)
    got = torch.cat(list(rows_of(layer, x)), 1)
    assert torch.allclose(got, want, atol=1e-12) and places(layer, x) == want.shape[1]
    y = torch.einsum("gnd,god->gno", got, weight_rows(layer, layer.weight))
    bias = 0 if layer.bias is None else layer.bias
    out = layer(x).movedim(1, -1)
    assert torch.allclose(y.transpose(0, 1).reshape(out.shape) + bias, out, atol=1e-12)
    assert torch.equal(from_rows(layer, as_rows(layer, layer.weight)), layer.weight)


@pytest.mark.parametrize("name", LAYERS)
def test_statistics_and_error_are_those_of_the_layer(name: str) -> None:
    build, shape = LAYERS[name]
    net = nn.Sequential(build(), nn.Flatten()).double()
    layer: Any = net[0]
    x, seen = torch.randn(6, *shape, dtype=torch.float64), []
    before = layer(x).detach()

    def visit(stats: LayerStats) -> None:
        rows = dense(layer, x)
        if stats.bias:
            rows = torch.cat([rows, torch.ones_like(rows[..., :1])], -1)
        assert torch.allclose(stats.h[0], rows.mT @ rows / rows.shape[1], atol=1e-10)
        new = [w + 0.1 * torch.randn_like(w) for w in stats.w]
        predicted = stats.error(new)
        stats.write(new)
        moved = (layer(x).detach() - before).square().sum() / places(layer, x)
        assert predicted == pytest.approx(float(moved), rel=1e-9) == stats.error()
        seen.append(stats.name)

    visit_layers(net, [x], [Unit("0", (layer,))], visit, who="test")
    assert seen == ["0"]


def net() -> Any:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2)
    ).double()


def test_pruning_leaves_the_least_squares_weights_of_its_mask() -> None:
    one = net()
    old, x = one[2].weight.detach().clone(), torch.randn(40, 2, 6, 6, dtype=torch.float64)
    target, matrix = one(x).detach(), dense(one[2], one[:2](x))
    report = bw.procedures.l_obs(one, [x], keep={"2": 0.5}, damping=1e-12)
    layer, (row,) = one[2], report.rows
    assert layer.w.mask.shape == (6, 2, 3, 3) and int(layer.w.mask.sum()) == row.kept == 54
    for o in range(6):
        keep = layer.w.mask[o].flatten().bool()
        a = torch.cat([matrix[o // 3][:, keep], torch.ones(matrix.shape[1], 1, dtype=torch.float64)], 1)
        best = torch.linalg.lstsq(a, target[:, o].flatten()[:, None]).solution[:, 0]
        got = as_rows(layer, layer.weight.detach())[o].flatten()
        assert torch.allclose(got[keep], best[:-1], atol=1e-7) and not bool(got[~keep].any())
    moved = (one(x) - target).detach().square().sum() / places(layer, one[:2](x))
    assert row.error == pytest.approx(float(moved), rel=1e-6)
    assert not torch.equal(old, layer.weight)


@pytest.mark.parametrize("method", ["sparse_gpt", "magnitude", "reconstruct", "gptq", "l_dnq", "2:4"])
def test_every_procedure_takes_them(method: str, tmp_path: Any) -> None:
    one, x = net(), torch.randn(40, 2, 6, 6, dtype=torch.float64)
    want, p = one(x).detach(), bw.procedures
    if method == "gptq":
        p.gptq(one, [x], bits={"2": 4})
    elif method == "l_dnq":
        p.l_dnq(one, [x], levels={"2": "uniform:8"}, cascade=False)
    elif method in ("sparse_gpt", "2:4"):
        p.sparse_gpt(one, [x], **({"pattern": "2:4"} if method == "2:4" else {"keep": {"2": 0.5}}))
    else:
        p.magnitude(one, keep={"2": 0.5})
    if method == "reconstruct":
        zeroed = float((one(x) - want).detach().square().sum())
        p.reconstruct(one, [x])
        assert float((one(x) - want).detach().square().sum()) < 0.8 * zeroed
    relative = float((one(x) - want).detach().square().sum() / want.square().sum())
    assert relative < {"gptq": 0.02, "l_dnq": 0.05}.get(method, 0.6)
    layer = one[2]
    if method == "2:4":  # two channels a group: one stays
        assert bool((layer.w.mask.sum(1) == 1).all())
    bw.save(one, tmp_path / "a.safetensors")
    back = bw.load(tmp_path / "a.safetensors", net())
    assert torch.equal(back(x), one(x))


def test_rounding_gives_the_levels_that_the_part_holds() -> None:
    one, x = net(), torch.randn(40, 2, 6, 6, dtype=torch.float64)
    bw.procedures.gptq(one, [x], bits={"2": 3})
    layer = one[2]
    value = as_rows(layer, layer.quantized_weight().detach())
    steps = value / layer.w.scale.detach().reshape(-1, 1, 1, 1)
    assert torch.allclose(steps, steps.round(), atol=1e-5) and float(steps.abs().max()) <= 4
    assert torch.allclose(value, as_rows(layer, layer.weight.detach()), atol=1e-6)


def test_a_norm_behind_one_is_folded() -> None:
    one = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6)).eval()
    norm: Any = one[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.weight.data.normal_()
    x = torch.randn(3, 4, 5, 5)
    want = one(x)
    bw.procedures.fold_batchnorm(one, [x])
    assert isinstance(one[1], nn.Identity) and torch.allclose(one(x), want, atol=1e-5)

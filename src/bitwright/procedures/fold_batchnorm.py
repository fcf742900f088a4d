"""Batch norms that follow a layer become part of its weight and bias."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bitwright.errors import InputError
from bitwright.nn.layers import SlotLayer
from bitwright.procedures.layerwise.select import KINDS
from bitwright.procedures.registry import procedure
from bitwright.procedures.report import Report
from bitwright.transforms.call import Call
from bitwright.transforms.facts import part_text
from bitwright.transforms.flow import trace_flow
from bitwright.transforms.geometry import as_rows, from_rows
from bitwright.transforms.layers import candidates, hooks_of
from bitwright.transforms.unwrap import unwrap


@dataclass(frozen=True)
class FoldedNorm:
    """One norm. layer   it went into;   gain   largest |gamma / sigma|;   reason   why it stays, "" where it is folded"""

    norm: str
    layer: str
    channels: int
    gain: float
    reason: str


@dataclass(frozen=True)
class Folded(Report):
    """A row per norm behind a layer."""

    rows: tuple[FoldedNorm, ...] = ()

    def cells(self) -> list[list[str]]:
        out = [["norm", "layer", "channels", "largest gain", "left because"]]
        return out + [[r.norm, r.layer, str(r.channels), f"{r.gain:.3g}", r.reason] for r in self.rows]


@procedure("fold_batchnorm")
def fold_batchnorm(model: nn.Module, batches: Iterable[Any]) -> Folded:
    """Fold each batch norm into its layer, if nothing else reads that layer; in evaluation the net computes the same.

    value    W' = W gamma / sigma,  b' = beta + (b - mean) gamma / sigma,  sigma = sqrt(var + eps); float64, rounded once
    norm     becomes `nn.Identity`; a layer without a bias gets one
    batches  one sample of the first batch runs, to see who reads what
    left     norms of layers whose weight goes through a part other than a mask (their codes would change), whose weight is
             shared, or that have hooks; norms without running statistics. `bw.convert` folds those where it can
    errors   no images
    use      before layer-wise procedures on nets for inference; further training works better with the norms

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()
    >>> x = torch.randn(4, 2)
    >>> y = net(x)
    >>> _ = fold_batchnorm(net, [x])
    >>> net[1], torch.allclose(net(x), y, atol=1e-6)
    (Identity(), True)
    """
    model = unwrap(model)
    batch = next(iter(batches), None)
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
    if inputs is None or not Call.of(inputs).images:
        raise InputError("fold_batchnorm: no images. Give at least one batch of inputs", code="batches-none")
    flow = trace_flow(model, inputs)
    modules = dict(model.named_modules())
    rows = []
    for row in candidates(model):
        norm: Any = modules.get(flow.reader.get(row.name, ""))
        if norm is None:
            continue
        name = flow.reader[row.name]
        reason = _reason(model, row.module, row.reason, norm)
        size = None if norm.running_var is None else (norm.running_var.double() + norm.eps).rsqrt()
        gain = (
            1.0
            if size is None
            else float((size if norm.weight is None else size * norm.weight.detach().double()).abs().max())
        )
        if not reason:
            _fold(row.module, norm)
            for also, module in list(model.named_modules(remove_duplicate=False)):
                if module is norm:
                    parent, _, child = also.rpartition(".")
                    model.get_submodule(parent)._modules[child] = nn.Identity()
        rows.append(FoldedNorm(name, row.name, norm.num_features, gain, reason))
    return Folded("fold_batchnorm", 0, tuple(rows))


def _reason(model: nn.Module, layer: Any, why: str, norm: Any) -> str:
    if why or not isinstance(layer, KINDS):
        return why or f"a {type(layer).__name__}"
    if isinstance(layer, SlotLayer) and part_text(layer.w) not in ("float", "mask"):
        return f"the weight goes through {part_text(layer.w)}"
    if isinstance(layer, SlotLayer) and (layer.b is not None or layer.gate is not None or layer.g is not None):
        return "the layer has a part on its bias or output"
    if norm.running_mean is None:
        return "no running statistics"
    if hooks := hooks_of(norm) + hooks_of(layer):
        return hooks[0]
    users = sum(m._parameters.get("weight") is layer.weight for m in model.modules())
    return "the weight is shared" if users > 1 else ""


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> None:
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double()
    if layer.bias is not None:
        shift = shift + layer.bias.double()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    weight = layer.weight
    filters = as_rows(layer, weight.double())
    weight.copy_(from_rows(layer, filters * scale.reshape(-1, *[1] * (weight.dim() - 1))))
    if layer.bias is None:
        layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
    else:
        layer.bias.copy_(shift)

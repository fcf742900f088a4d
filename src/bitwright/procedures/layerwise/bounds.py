"""How far the net's output can move, from what each layer lost."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.procedures.layerwise.geometry import groups_of
from bitwright.procedures.layerwise.select import KINDS
from bitwright.transforms.batch_norms import batch_norms
from bitwright.transforms.call import Call
from bitwright.transforms.flow import trace_flow
from bitwright.transforms.geometry import as_rows
from bitwright.transforms.layers import candidates

if TYPE_CHECKING:
    from bitwright.procedures.layerwise.work import LayerReport

EXACT = 1024  # outputs of a layer up to which its largest singular value is computed


@dataclass(frozen=True)
class Link:
    """A layer in the net: whose outputs reach it, by how much it and its norm can stretch a change of its input, and by how
    much the norm alone. gain nan: not known."""

    layer: str
    inputs: tuple[str, ...]
    gain: float
    norm: float


class Net:
    """The net that a report is of, as far as the bound needs it: how far each layer can stretch a change, taken at once since
    weights change, and how the layers hang together, found when somebody asks. It does not keep the model alive."""

    def __init__(self, model: nn.Module, feed: list[Any]) -> None:
        self._model = weakref.ref(model)
        first = feed[0] if feed else None
        first = first[0] if isinstance(first, (tuple, list)) and first else first  # (inputs, targets)
        self._call = None if first is None else Call.of(first).map(lambda t: t[:2] if t.dim() else t)
        self.gains = {row.name: _gain(row.module) for row in candidates(model)}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()  # a report from a file knows its rows alone

    def links(self) -> tuple[Link, ...]:
        """The layers in the order in which they run; none where the model is gone or cannot be followed, or a norm stands
        elsewhere than right behind a layer."""
        model = self._model()
        if model is None or self._call is None:
            return ()
        try:
            flow = trace_flow(model, self._call.kwargs or self._call.args)
        except Exception:  # a model may insist on the size of its batch
            return ()
        norms = batch_norms(model)
        if not norms.keys() <= set(flow.reader.values()):
            return ()
        found = []
        for name in flow.order:
            norm: Any = norms.get(flow.reader.get(name, ""))
            stretch = 1.0
            if norm is not None:
                size = (norm.running_var.double() + norm.eps).rsqrt()
                stretch = float((size if norm.weight is None else size * norm.weight.detach().double()).abs().max())
            found.append(Link(name, flow.inputs[name], stretch * self.gains.get(name, math.nan), stretch))
        return tuple(found)


def error_bound(report: LayerReport) -> float:
    """Upper bound of the root mean squared change of the net's output, per sample, from the E of each layer.

    value    eps_l = gain_l (sum of eps over the layers that make its input) + norm_l sqrt(E_l P_l), P_l outputs per channel;
             gain_l = norm_l |W_l|, |W| the largest singular value, times the square root of how often a kernel reads an
             input; norm_l = max |gamma / sigma| of the batch norm behind it. In a plain chain:
             sum_k (prod_{l > k} gain_l) sqrt(E_k P_k)
    holds    for the images the report was made from, while the model is there and its norms are kept, all rows read, and nothing between layers that
             stretches a change: ReLU, adds, mean pooling
    use      it is loose by orders of magnitude: it ranks layers, it does not predict accuracy
    errors   `InputError` where the net is gone, could not be followed, or has a layer without a known gain
    source   Dong, Chen, Pan 2017, arXiv 1705.07565, theorem 3.3
    differs  singular values instead of Frobenius norms; branches add

    >>> from bitwright.procedures import l_obs
    >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> report = l_obs(net, [torch.randn(64, 4)], keep=0.5)
    >>> error_bound(report) > 0
    True
    """
    links = report.net.links() if report.net else ()
    if not links:
        raise InputError(
            f"error_bound: the report of {report.procedure} does not say how the layers hang together: its net is gone (a report "
            "does not keep it alive), could not be followed, or has a norm that is not right behind a layer",
            code="bound",
        )
    lost = {row.layer: math.sqrt(row.error * row.positions) for row in report.rows}
    moved: dict[str, float] = {}
    for link in links:
        change = sum(moved[name] for name in link.inputs if name in moved)
        if math.isnan(link.gain) and change:
            raise InputError(
                f"error_bound: how far {link.layer} can stretch a change is not known; possible: Linear and convolutions",
                code="bound",
                layer=link.layer,
            )
        moved[link.layer] = (link.gain * change if change else 0.0) + link.norm * lost.get(link.layer, 0.0)
    read = {name for link in links for name in link.inputs}
    return sum(value for name, value in moved.items() if name not in read)


@torch.no_grad()
def _gain(layer: nn.Module) -> float:
    if not isinstance(layer, KINDS):
        return math.nan
    weight = as_rows(layer, layer.weight.detach())
    rows = weight.reshape(groups_of(layer), -1, weight[0].numel())
    overlap = 1
    if isinstance(layer, nn.ConvTranspose2d):  # an input reaches as many outputs as there are taps
        overlap = math.prod(layer.kernel_size)
    elif not isinstance(layer, nn.Linear):
        overlap = math.prod(-(-k // s) for k, s in zip(layer.kernel_size, layer.stride, strict=True))
    return math.sqrt(overlap) * _largest(rows)


def _largest(rows: Tensor) -> float:
    """The largest singular value; of a very large matrix the root of the sum of all squared, which is more."""
    small = rows if rows.shape[1] <= rows.shape[2] else rows.mT
    if small.shape[1] <= EXACT:
        small = small.double()
        return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(small @ small.mT).max())))
    return float(torch.linalg.matrix_norm(rows.float()).max())

"""The best weights on masks that are there already."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.procedures.l_obs import FLOPS, cost_of, put_found
from bitwright.procedures.layerwise.geometry import weight_rows
from bitwright.procedures.layerwise.linalg import check_damping
from bitwright.procedures.layerwise.prune import Surgery
from bitwright.procedures.layerwise.select import compressible
from bitwright.procedures.layerwise.stats import WIDEST, LayerStats, Limits
from bitwright.procedures.layerwise.work import LayerReport, LayerwiseRun, Solved
from bitwright.procedures.registry import procedure
from bitwright.transforms.decide import exact_glob
from bitwright.transforms.geometry import as_rows
from bitwright.transforms.unwrap import unwrap


@procedure("reconstruct", verb="prune")
def reconstruct(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    dense: nn.Module | None = None,
    damping: float = 0.01,
    inputs: Literal["compressed", "original"] = "compressed",
    norms: Literal["keep", "recalibrate"] = "keep",
    flop_budget: float = FLOPS,
    max_rows: int | None = None,
    max_dim: int = WIDEST,
    seed: int = 0,
    latent: bool = False,
    tokens: str | None = None,
    journal: Path | str | None = None,
) -> LayerReport:
    """Give every layer with a mask the weights that come closest to its dense output; the masks stay.

    value    H_SS w_S = (H w0)_S for each row, S its mask, H the mean of x x^T over what the layer reads: the least E
             that this mask allows, never more than before
    w0       the dense weight: of `dense`, the net before pruning, by the same names; without it the layer's own latent,
             where a mask (of `magnitude`, or of training) hides weights that are still there
    others   damping, inputs, norms, limits, journal, errors: those of `l_obs`
    errors   no layer has a mask; pruned weights that are 0, so that their old values are lost, and no `dense`

    >>> from bitwright.procedures import magnitude
    >>> net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> _ = magnitude(net, keep=0.5)
    >>> [row.kept for row in reconstruct(net, [torch.randn(64, 8)]).rows]
    [16, 4]
    """
    model = unwrap(model)
    check_damping("reconstruct", damping)
    every = compressible(model, "reconstruct", latent=True, listing=True)
    masked = [u.name for u in every if u.mask is not None]
    if not masked:
        raise InputError("reconstruct: no layer has a mask; prune first, e.g. with magnitude", code="masks-none")
    units = compressible(model, "reconstruct", [exact_glob(name) for name in masked], latent)
    limits = Limits(max_rows, max_dim, seed)
    before = {u.name: _dense_rows(u.name, u.layer, u.mask, dense) for u in units}
    surgery = Surgery("exact", 1, "layer", damping, flop_budget)
    options = {"surgery": str(surgery), "inputs": inputs, "limits": str(limits)}
    work = LayerwiseRun("reconstruct", units, inputs, limits, True, norms, tokens, journal, options, cost_of)

    def solve(stats: LayerStats) -> Solved:
        weight, bias = before[stats.name]
        rows = weight_rows(stats.layer, weight).to(stats.h[0].device)
        if stats.bias and bias is not None:
            rows = torch.cat([rows, bias.double().reshape(*rows.shape[:2], 1).to(rows.device)], -1)
        stats.aim(list(rows.split([h.shape[-1] for h in stats.h], -1)))
        return surgery.refit(stats)

    return work.run(model, batches, solve, put_found)


def _dense_rows(name: str, layer: Any, mask: Any, dense: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) that the layer is to come close to."""
    if dense is not None:
        other: Any = dict(unwrap(dense).named_modules()).get(name)
        if not isinstance(getattr(other, "weight", None), Tensor) or other.weight.shape != layer.weight.shape:
            raise InputError(
                f"reconstruct: the dense net has no layer {name} with weights {tuple(layer.weight.shape)}",
                code="reconstruct-dense",
                layer=name,
            )
        return other.weight.detach().clone(), None if other.bias is None else other.bias.detach().clone()
    pruned = as_rows(layer, layer.weight.detach())[~mask.bool()]
    if pruned.numel() and not bool(pruned.any()):
        raise InputError(
            f"reconstruct: the pruned weights of {name} are 0, their old values are lost; give the net before pruning: "
            "reconstruct(model, batches, dense=net)",
            code="reconstruct-dense",
            layer=name,
        )
    return layer.weight.detach().clone(), None if layer.bias is None else layer.bias.detach().clone()

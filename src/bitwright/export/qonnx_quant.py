"""Quantizers of inputs and weights as Quant and BipolarQuant.

A quantizer of an input gives whole numbers: `x` times one number, then Quant with scale 1. Its step is multiplied in behind the
layer, together with that of the weight. So a layer adds whole numbers, and every program that runs the file gets the same codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitwright.engine import reference
from bitwright.engine.graph import Node
from bitwright.export.qonnx_graph import QonnxGraph, common, levels_of, refuse, whole_type

OTHER = "Possible: a uniform quantizer (lsq, uniform, dorefa_a, pact, sign), or bitwright export onnx"


# -- inputs ---------------------------------------------------------------------------------------------------
def quantize(q: QonnxGraph, node: Node) -> None:
    """The whole numbers X = mult * code + zero of a quantizer."""
    a, name, last = node.attrs, node.name, node.last
    levels, mult, zero = int(a["levels"]), int(a["mult"]), torch.tensor([int(z) for z in a["zero"]])
    rows, x = q.graph.need(node, "thresholds").reshape(-1, levels), q.read(node)
    if not bool(rows.isfinite().all()):
        refuse(node, "one of the levels of its input is never reached", OTHER)
    base = int(zero[0]) // mult if len(zero) == 1 and int(zero[0]) % mult == 0 else 0
    two_signs = levels == 1 and len(zero) == 1 and 2 * int(zero[0]) == -mult
    steps = None if two_signs else _steps(rows, base)
    if steps is None and levels == 1:
        x = q.scaled("Add", x, f"{name}.shift", q.along(-rows[:, 0], node, last), 0.0)
        y = q.scaled("Mul", q.bipolar(x, name, 1.0), f"{name}.mult", mult / 2, 1.0)
        q.values[name] = q.scaled("Add", y, f"{name}.level", q.along(zero + mult / 2, node, last), 0.0)
        return
    if steps is None:
        refuse(node, f"the {levels + 1} levels of its input have no even steps, and Quant has one step", OTHER)
    x = q.scaled("Add", x, f"{name}.lift", q.along(steps.lift, node, last), 0.0)
    x = q.scaled("Mul", x, f"{name}.rate", q.along(steps.rate, node, last), 1.0)
    x = q.scaled("Div", x, f"{name}.step", q.along(steps.step, node, last), 1.0)
    x = q.scaled("Add", x, f"{name}.shift", q.along(steps.shift, node, last), 0.0)
    bits, signed, narrow, exactly = whole_type(base, base + levels)
    if not exactly:
        ends = [q.constant(f"{name}.end", np.float32(e)) for e in (base, base + levels)]
        x = q.put("Clip", [x, *ends], f"{name}.clip")
    if not signed:
        x = q.put("Relu", [x], f"{name}.relu")  # changes nothing; FINN takes an unsigned Quant behind a Relu
    y = q.scaled("Mul", q.quant(x, name, 1.0, bits, signed, narrow, steps.rounding), f"{name}.mult", mult, 1.0)
    q.values[name] = q.scaled("Add", y, f"{name}.level", q.along(zero - mult * base, node, last), 0.0)


@dataclass(frozen=True)
class Steps:
    """code + base = rounding((x + lift) * rate / step + shift), kept in base..base + levels; each number one per channel, or
    one."""

    lift: Tensor
    rate: Tensor
    step: Tensor
    shift: Tensor
    rounding: str


def _steps(rows: Tensor, base: int) -> Steps | None:
    """The rounding that gives the codes of these thresholds [channels, levels] for every float; None: there is none."""
    found = [_of_one_row(row, base) for row in rows]
    each = [s for s in found if s is not None and s.rounding == (found[0].rounding if found[0] else "")]
    if len(each) < len(found):
        return None
    lift, rate, step, shift = (torch.cat([getattr(s, k) for s in each]) for k in ("lift", "rate", "step", "shift"))
    return Steps(lift, rate, step, shift, each[0].rounding)


def _of_one_row(row: Tensor, base: int) -> Steps | None:
    """Even steps to begin with; then numbers of float32 near them, until every code begins exactly at its threshold."""
    levels, zero, one = row.numel(), torch.zeros(1), torch.ones(1)
    wide, ends = row.double(), torch.arange(1, levels + 1).double() + base
    step = float(2 * wide[0] if levels == 1 else (wide[-1] - wide[0]) / (levels - 1))
    if not step > 0:
        return None
    for rounding, reach in (("ROUND", 0.5), ("FLOOR", 0.0)):  # y becomes a code at the code less `reach`
        shift = round(2 * float(ends[0] - reach - wide[0] / step)) / 2
        places = ends - reach - shift
        far = int(places.abs().argmax())
        exact = float(wide[far] / places[far]) if float(places[far]) else 0.0
        for value, divides in [
            (v, d) for d in (False, True) for v in _around(exact if d else 1 / exact if exact else 0.0)
        ]:
            line = (one, value) if divides else (value, one)
            if _begins(row, made := Steps(zero, *line, torch.tensor([shift]), rounding), base):
                return made
    # levels that lie between the steps: x + 1 of a grid on [-1, 1]
    lift = torch.tensor([round(step / 2 - float(wide[0]), 6)])
    for value in _around(1 / step):
        if _begins(row, made := Steps(lift, value, one, torch.tensor([base + 0.5]), "FLOOR"), base):
            return made
    return None


def _around(value: float) -> list[Tensor]:
    """Positive numbers of float32 around a guess, nearest first."""
    if not 1e-30 < value < 1e30:
        return []
    middle = np.float32(value).view(np.int32)
    return [
        torch.from_numpy((middle + np.array([k], dtype=np.int32)).view(np.float32))
        for k in sorted(range(-4, 5), key=abs)
    ]


def _begins(row: Tensor, s: Steps, base: int) -> bool:
    """Whether each code begins exactly at its threshold. No step of the formula falls as x rises, so two floats prove it."""
    low, high = base, base + row.numel()
    run, want = torch.round if s.rounding == "ROUND" else torch.floor, torch.arange(low + 1, high + 1)

    def codes(x: Tensor) -> Tensor:
        return run(((x + s.lift) * s.rate / s.step + s.shift).clamp(low, high)).long()

    below = torch.nextafter(row, torch.tensor(-torch.inf))
    return torch.equal(codes(row), want) and torch.equal(codes(below), want - 1)


# -- weights --------------------------------------------------------------------------------------------------
def weight(q: QonnxGraph, node: Node, inside: bool) -> tuple[str, Tensor]:
    """(the quantized weight, the scale that is still to be multiplied, one per output) of a layer with bits.

    inside   True: the scale is that of Quant, so that the tensor is the weight itself; else Quant gives whole numbers
    """
    info = node.attrs["weight"]
    if len(info["terms"]) > 1:
        refuse(
            node,
            "its weights have levels of several units, as ttq's p and n or those of a codebook, and Quant has one scale",
            "Possible: twn, bwn, lsq, uniform, dorefa_w, or bitwright export onnx",
        )
    levels, whole = levels_of(info["terms"][0]), reference.weight_integers(q.graph, node)[0]
    step = common(levels)
    levels, whole, scale = levels // step, whole // step, q.graph.need(node, "scale")[0] * step
    symmetric = torch.equal(levels, -levels.flip(0))
    if bool((scale < 0).any()) and (symmetric or inside):
        turned = torch.where(scale < 0, -1, 1)
        whole, scale = whole * turned.reshape(-1, *[1] * (whole.dim() - 1)).to(whole.dtype), scale.abs()
        levels = torch.cat([levels, -levels]).unique()
    one = torch.ones(())
    own = torch.where(scale == 0, 1.0, scale) if inside else one
    if inside:
        whole = torch.where((scale == 0).reshape(-1, *[1] * (whole.dim() - 1)), 0, whole)
    axes = (-1, *[1] * (whole.dim() - 1))
    data, shape = whole.float() * own.reshape(axes) if inside else whole.float(), own.reshape(axes) if inside else own
    if node.op.endswith("linear"):
        data, shape = data.T, shape.T if inside else shape
    name = f"{node.name}.weight"
    latent = q.constant(f"{name}.value", data)
    if levels.tolist() == [-1, 1] and bool((whole != 0).all()):
        found = q.bipolar(latent, name, shape)
    else:
        found = q.quant(latent, name, shape, *_weight_type(levels, whole, int(info["planes"])))
    return found, one.reshape(1) if inside else scale


def _weight_type(levels: Tensor, whole: Tensor, planes: int) -> tuple[int, bool, bool]:
    """(bits, signed, narrow) of all levels; where the planes can say more than the part has (masks; 127 but not 128), of those
    that the weights have."""
    bits, signed, narrow, _ = whole_type(int(levels[0]), int(levels[-1]))
    odd = bool((levels % 2 != 0).all())  # -3, -1, 1, 3: a bit more than planes, because all zero points are 0
    if len(levels) < 1 << planes or (bits > planes and not odd):
        bits, signed, narrow, _ = whole_type(int(whole.min()), int(whole.max()))
    return bits, signed, narrow

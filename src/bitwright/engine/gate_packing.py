"""From a trained gated layer to operators of the graph: `GatePacking`, or the reason why there is none and what helps."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bitwright.engine import reference
from bitwright.engine.packing import NotInteger, Packing, grid_of, packing_of, storable
from bitwright.engine.thresholds import float_thresholds
from bitwright.nn import SlotLayer
from bitwright.nn.layers import Conv1d, Conv2d, Linear
from bitwright.parts import moment
from bitwright.parts.scale import width_of
from bitwright.parts.split_gate import SplitGate
from bitwright.parts.traits import traits_of
from bitwright.transforms.facts import folds, part_text, split

if TYPE_CHECKING:
    from bitwright.engine.lower import Lowering

LAYERS = (Linear, Conv1d, Conv2d)


def gated(layer: nn.Module) -> bool:
    """Whether the layer's gate skips work; `xnor_k` only scales an output."""
    return moment(getattr(layer, "gate", None), "spent") is not None


@dataclass(frozen=True)
class GatePacking:
    """inner   the layer without its gate: its input's grid, what comes before it, whether the weight is coded
    codes      the gate's operator reads codes
    whole      of codes: the weight is whole numbers, too
    """

    inner: Packing
    codes: bool = False
    whole: bool = False


def gate_packing_of(layer: SlotLayer) -> GatePacking | str:
    """How a gated layer enters the graph, or the reason why it cannot, with what would help."""
    gate, traits = layer.gate, traits_of(layer.gate)
    if type(layer) not in LAYERS:
        return f"{type(layer).__name__} has no gated operator; Linear, Conv1d, Conv2d have"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"padding_mode={layer.padding_mode!r}; gated operators pad with zeros"
    if not (traits.switches_channels or isinstance(gate, SplitGate)):
        return "a gate of another kind has no operator in a packed net; fbs, channel_gate, precision_gate have"
    if traits.switches_channels and not traits.owns_norm:
        return 'compat="seed" gates in front of its norm; train without it'
    if traits.reads_batch:
        return 'scale="batch_max" reads the whole batch, so that an answer depends on its neighbors; use scale="static"'
    with _without(layer):
        plain = _plain(layer)
    if isinstance(plain, str):
        return plain
    if isinstance(gate, SplitGate) and gate.one_sided:
        return _split(layer, gate, plain)
    return GatePacking(plain)


def _plain(layer: SlotLayer) -> Packing | str:
    """A layer without its gate: with the bits it has, else in float behind the values of its input part."""
    found = packing_of(layer)
    if isinstance(found, Packing):
        return found
    before, quantizer = split(layer.x)
    if not all(map(folds, before)):
        return found
    try:
        grid = None if quantizer is None else grid_of(quantizer, width_of(layer) or 0, layer.weight.dim())
    except NotInteger:
        return found
    return Packing(grid, before, False)


def _split(layer: SlotLayer, gate: SplitGate, plain: Packing) -> GatePacking | str:
    quantizer = split(layer.x)[1]
    own = getattr(gate, "quantizer", None)  # of a gate that quantizes its input itself
    if own is not None and quantizer is not None:
        return f"slot x holds {part_text(layer.x)}, which has no codes that the gate could split"
    whole = (
        moment(own, "whole") if own is not None else moment(quantizer, "whole") if moment(layer.x, "whole") else None
    )
    if whole is None:  # numbers, or values of a grid: both are added up as floats
        return GatePacking(Packing(plain.grid, plain.before, False))
    part = own or quantizer
    assert part is not None
    try:
        grid = grid_of(part, width_of(layer) or 0, layer.weight.dim())
    except NotInteger as reason:
        return f"{part_text(part)}: {reason}"
    if _power_of_two(ratio := grid.unit / _unit(layer, whole)) is None:
        return f"{part_text(part)}: its unit and that of its codes differ by {ratio:.6g}"
    if traits_of(gate).code_bits is not None and not high_step(gate, ratio):
        return f"{part_text(part)}: its high bits are no whole number of its steps"
    return GatePacking(Packing(grid, plain.before, True), codes=True, whole=_whole_weight(layer, gate))


def _unit(layer: SlotLayer, whole: Any) -> float:
    """What one of the whole numbers of an input part is worth."""
    with torch.no_grad():
        return float(whole(torch.zeros(1, width_of(layer) or 1, *[1] * (layer.weight.dim() - 2)))[1].double())


def high_step(gate: Any, ratio: float) -> int:
    """The unit of the high bits, in whole numbers of the grid whose unit is `ratio` times theirs; 0 where it is none."""
    step = 2.0 ** (gate.code_bits - gate.top) / (_power_of_two(ratio) or 1.0)
    return int(step) if step == int(step) else 0


def _power_of_two(ratio: float) -> float | None:
    """`ratio` rounded to float32's precision, if that is a power of two: then it may move into a scale without rounding."""
    mantissa, exponent = math.frexp(ratio)
    return 2.0 ** (exponent - 1) if abs(mantissa - 0.5) < 1e-6 else 2.0**exponent if abs(mantissa - 1) < 1e-6 else None


def _whole_weight(layer: SlotLayer, gate: SplitGate) -> bool:
    """Whether the trained gate adds whole numbers of the weight."""
    numbers = moment(layer.w, "whole")
    if numbers is None:
        return False
    with torch.no_grad():
        return numbers(layer.slot_weight().detach())[1].numel() in (1, gate.outputs)


def weight_of(layer: SlotLayer, packing: GatePacking) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(attributes, tensors) of the weight: its bits, or whole numbers and their scale where bits are too few, or floats."""
    encode, numbers, unit = moment(layer.w, "encode"), moment(layer.w, "whole"), 1.0
    if packing.whole:
        assert packing.inner.grid is not None
        unit = packing.inner.grid.unit
    with torch.no_grad():
        weight = layer.slot_weight().detach()
        whole, step = numbers(weight) if packing.whole and numbers is not None else (None, None)
        try:
            found = None if encode is None else storable(encode(weight))
        except NotInteger:
            found = None
        if found is not None and (whole is None or _same_numbers(found, whole)):
            bit, terms = found
            info = {
                "shape": [int(s) for s in bit.shape[1:]],
                "planes": bit.shape[0],
                "terms": [{"planes": list(t.planes), "mult": list(t.mult), "zero": t.zero} for t in terms],
            }
            return {"weight": info}, {
                "bits": reference.pack_bits(bit),
                "scale": torch.stack([t.unit * unit for t in terms]),
            }
        if whole is not None and step is not None:
            scale = (step.double().reshape(-1) * unit).expand(len(weight))[None].contiguous()
            return {}, {"weight": whole.float(), "scale": scale}
        return {}, {"weight": layer.quantized_weight().detach().float()}


def _same_numbers(found: tuple[Tensor, list[Any]], whole: Tensor) -> bool:
    """Whether the whole numbers of the bits are those of the trained weight up to a power of two, which scales exactly."""
    bit, terms = found
    if len(terms) != 1:
        return False
    theirs = reference.whole_numbers(bit, *terms[0].code).double()
    if not bool(theirs.any()):
        return not bool(whole.any())
    at = int(theirs.abs().flatten().argmax())
    ratio = float(whole.double().flatten()[at] / theirs.flatten()[at])
    return ratio != 0 and _power_of_two(ratio) is not None and torch.equal(theirs * ratio, whole.double())


@contextmanager
def _without(layer: SlotLayer) -> Any:
    """The layer as if its gate slot were empty."""
    gate, layer._modules["gate"] = layer.gate, None
    try:
        yield
    finally:
        layer._modules["gate"] = gate


# -- the nodes ----------------------------------------------------------------------------------------------------
def threshold_of(gate: SplitGate) -> Tensor:
    """float32 [O]: the smallest base at which each channel is on, found by asking the gate itself."""
    shape = (-1, gate.outputs) if gate.last else (-1, gate.outputs, 1)

    def on(base: Tensor) -> Tensor:  # [n, O]
        return (gate.distance(base.reshape(shape)) > 0).long().reshape(base.shape)

    with torch.no_grad():
        found, _ = float_thresholds(on, 1, gate.outputs)
    return found[:, 0].clone()


def lower_whole(low: Lowering, name: str, gate: nn.Module, packing: Packing, raw: str, y: str) -> str:
    """The gate behind the node `y`, which computes the layer; `raw` is the layer's input."""
    if traits_of(gate).switches_channels:
        return _lower_switch(low, name, gate, packing, raw, y)
    norm: Any = getattr(gate, "output_norm", None)  # nothing to split: always the full sum
    if norm is None:
        return y
    scale, add = dual_constants(norm.on)
    attrs = {"last": bool(gate.last), "keep": True, "owner": name}
    return low.emit("affine", f"{name}.norm", [y], attrs, {"scale": scale, "add": add})


def _lower_switch(low: Lowering, name: str, gate: Any, packing: Packing, raw: str, y: str) -> str:
    last, owner = gate.last, {"owner": name}
    for i, link in enumerate(packing.before):  # the predictor reads what the quantizer reads
        constants: Any = moment(link, "constants")
        if constants is not None:
            scale, add = (t.detach() for t in constants())
            raw = low.emit(
                "affine", f"{name}.raw{i}", [raw], {"last": last, "keep": True, **owner}, {"scale": scale, "add": add}
            )
    norm = gate.norm
    assert norm.running_mean is not None and norm.running_var is not None
    rate = gate.flip.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    add = gate.shift.detach().double() - norm.running_mean.double() * rate
    y = low.emit("affine", f"{name}.norm", [y], {"last": last, **owner}, {"scale": rate, "add": add})
    predictor = {"weight": gate.predictor.weight.detach().float(), "bias": gate.predictor.bias.detach().float()}
    g = low.emit("saliency", f"{name}.saliency", [raw], {"last": last, **owner}, predictor)
    blocks = gate.outputs // gate.block
    count = max(1, math.ceil(gate.keep * blocks - 1e-9))
    on = low.emit("winners", f"{name}.winners", [g], {"count": count, "block": gate.block, **owner}, {})
    return low.emit("switch", f"{name}.gated", [y, g, on], {"last": last, **owner}, {})


def lower_split(
    low: Lowering, name: str, layer: SlotLayer, gate: Any, packing: GatePacking, value: str, attrs: dict[str, Any]
) -> str:
    """One node that reads `value`: numbers or codes."""
    grid, (info, tensors) = packing.inner.grid, weight_of(layer, packing)
    if (bias := layer.quantized_bias()) is not None:
        tensors["bias"] = bias.detach().double()
    attrs = {**attrs, "last": gate.last} | ({"rank": 0, "groups": 1} if gate.last else {})
    if packing.codes and not packing.whole:
        attrs = {**attrs, "unit": float(torch.tensor(grid.unit))}  # type: ignore[union-attr]
    op = "channel_gate"
    if traits_of(gate).code_bits is not None:
        whole = moment(gate.quantizer, "whole") or moment(split(layer.x)[1], "whole")
        assert grid is not None and whole is not None
        op, attrs = "precision_gate", {**attrs, "step": high_step(gate, grid.unit / _unit(layer, whole))}
    else:
        op = "coded_channel_gate" if packing.codes else op
        attrs = {**attrs, "splits": gate.splits, "group": gate.group, "shuffle": gate.order is not None}
        if gate.output_norm is not None:
            for kind in ("on", "off"):
                scale, add = dual_constants(getattr(gate.output_norm, kind))
                tensors |= {f"{kind}_scale": scale, f"{kind}_add": add}
    return low.emit(op, name, [value], attrs | info, {**tensors, "threshold": threshold_of(gate)})


def dual_constants(kind: Any) -> tuple[Tensor, Tensor]:
    """(scale, add) of one of the two norms, as evaluation computes them."""
    with torch.no_grad():
        rate = kind.weight / torch.sqrt(kind.running_var + kind.eps)
        return rate.float(), (kind.bias - kind.running_mean * rate).float()

"""A layer is PyTorch's layer plus slots. An empty slot means: exactly what PyTorch does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.whole import HALF, whole_op
from bitwright.parts.chain import Chain
from bitwright.parts.gate_call import GateCall
from bitwright.parts.moments import moment
from bitwright.parts.registry import SLOTS, make_slot
from bitwright.parts.traits import title_of, traits_of


class SlotLayer(nn.Module):
    """The mixin that does the work: five slots and one forward.

    w, b   weight and bias go through them           x      so does the input
    g      so does the output (identity forward: a gradient quantizer)
    gate   decides how the linear operator is evaluated: `gate(op, x, w, b)`, op the operator as a `GateCall`

    Checkpoint keys stay `weight` and `bias`; parts add theirs, e.g. `w.p`.
    """

    weight: Tensor
    bias: Tensor | None
    w: nn.Module | None
    b: nn.Module | None
    x: nn.Module | None
    g: nn.Module | None
    gate: nn.Module | None

    def __init__(
        self, *args: Any, w: Any = None, b: Any = None, x: Any = None, g: Any = None, gate: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)  # torch's layer, which follows in the order of bases
        for slot in SLOTS:
            self.register_module(slot, None)
        self.set_slots(w=w, b=b, x=x, g=g, gate=gate)
        for slot in ("w", "b"):
            self.on_latent(slot, "start")

    def set_slots(self, where: str = "", **slots: Any) -> None:
        """Fills slots; each value a part, a name, a mapping, a list of them, or None (empty)."""
        for slot, value in slots.items():
            if slot not in SLOTS:
                raise InputError(f"{where or type(self).__name__}: no slot {slot!r}; slots: {', '.join(SLOTS)}")
            if slot == "b" and value is not None and self.bias is None:
                value = None
            # through _modules: an empty slot stays a registered name, so setattr later works the same way
            made = make_slot(value, slot, self, where)
            setattr(self, slot, made if made is None or made is value else made.train(self.training))

    def op(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """The linear operator of the layer, no slots."""
        raise NotImplementedError

    def slot_weight(self) -> Tensor:
        """The weight as parts see it: axis 0 is the output channel."""
        return self.to_slot(self.weight)

    def to_slot(self, w: Tensor) -> Tensor:
        """From the operator's layout of a weight to that of the parts, outputs first."""
        return w

    def from_slot(self, w: Tensor) -> Tensor:
        """Back from the parts' layout to the operator's."""
        return w

    @torch.no_grad()
    def on_latent(self, slot: str, name: str) -> None:
        """Runs the moment `name` of the part in slot w or b on the tensor that it reads, in place."""
        run, latent = moment(getattr(self, slot), name), self.bias if slot == "b" else self.weight
        if run is None or latent is None:
            return
        seen = latent if slot == "b" else self.slot_weight()
        if seen is not latent and latent.grad is not None:
            seen.grad = self.to_slot(latent.grad)
        run(seen)
        if seen is not latent:  # a transposed convolution shows its parts a rearranged copy
            latent.copy_(self.from_slot(seen))

    def quantized_weight(self) -> Tensor:
        """The weight the operator gets."""
        return self.weight if self.w is None else self.from_slot(self.w(self.slot_weight()))

    def quantized_bias(self) -> Tensor | None:
        """The bias the operator gets."""
        return self.bias if self.b is None or self.bias is None else self.b(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.evaluate(input, self.op)

    def evaluate(self, raw: Tensor, op: Callable[..., Tensor]) -> Tensor:
        """The whole data flow: input part, weight part, bias part, gate, gradient part."""
        if (self.gate is not None or self.x is not None) and raw.dim() == self.weight.dim() - 1:
            return self.evaluate(raw[None], op)[0]  # one sample without a batch: parts tell samples from channels
        exact = None if self.training else self.exact(raw, op)
        graph = torch.is_grad_enabled() and (raw.requires_grad or self.weight.requires_grad)
        if exact is not None and (torch.compiler.is_exporting() or not graph):  # an exported net is not trained
            return exact if self.g is None else self.g(exact)
        if self.gate is None:
            y = op(raw if self.x is None else self.x(raw), self.quantized_weight(), self.quantized_bias())
        else:
            y = self.gated(self.gate, raw, op)
        if exact is not None:  # the value of evaluation with the gradient of training
            y = y + (exact - y).detach()
        return y if self.g is None else self.g(y)

    def gated(self, gate: nn.Module, raw: Tensor, op: Callable[..., Tensor]) -> Tensor:
        """The output of the gate."""
        wants, call = traits_of(gate), GateCall(op, from_slot=self.from_slot)
        seen, quantizer = raw, self.x
        if isinstance(self.x, Chain) and (wants.needs_raw_input or wants.needs_code):
            seen, quantizer = self.x.before(raw), self.x.quantizer  # a norm in front of the quantizer runs once
            x = self.x.rest(seen)
        else:
            x = raw if self.x is None else self.x(raw)
        w, b = self.quantized_weight(), self.quantized_bias()
        if wants.needs_raw_input:
            call.raw = seen
        if wants.needs_code:
            # no code where something behind the quantizer moves its value
            call.whole, call.seen = moment(quantizer, "whole") if moment(self.x, "whole") else None, seen.detach()
            w_whole = None if self.training else moment(self.w, "whole")
            call.w_code = None if w_whole is None else w_whole(self.slot_weight())
        return gate(call, x, w, b)

    def exact(self, raw: Tensor, op: Callable[..., Tensor]) -> Tensor | None:
        """Evaluation of a layer whose weight and input are both whole numbers times a unit: the product of the whole
        numbers (exact, whatever the order of the sum), one multiply by the units, one add. So the trained net itself gives
        what the packed one will, not a sum of rounded products. None where the slots do not allow it, and where
        a part has hooks (`bw.calibrate` adds them): only a call of the part runs them.
        """
        x_whole, w_whole = moment(self.x, "whole"), moment(self.w, "whole")
        if x_whole is None or w_whole is None or self.gate is not None:
            return None
        if any(part is not None and (part._forward_pre_hooks or part._forward_hooks) for part in (self.x, self.w)):
            return None
        x, x_unit = x_whole(raw)
        w, w_unit = w_whole(self.slot_weight())
        if x_unit.numel() != 1 or w_unit.numel() not in (1, w.shape[0]):
            return None
        y = whole_op(op, w)(x, self.from_slot(w), None)
        axes = [1] * (self.weight.dim() - 2)  # channels are the last axis of Linear, the one before space of Conv
        y = y * (w_unit.double() * x_unit.double()).to(y.dtype).reshape(-1, *axes)
        b = self.quantized_bias()
        y = y if b is None else y + b.to(y.dtype).reshape(-1, *axes)
        return y.to(raw.dtype) if raw.dtype in HALF else y

    def extra_repr(self) -> str:
        base = super().extra_repr()
        filled = [(s, getattr(self, s)) for s in SLOTS if getattr(self, s) is not None]
        text = [f"{s}={title_of(p)}" for s, p in filled]
        return ", ".join([base, *text])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


class SlotConv(SlotLayer):
    """A convolution; its operator also computes in other groups than its own: what the base path of a gate is."""

    _conv_forward: Callable[..., Tensor]

    def op(self, x: Tensor, w: Tensor, b: Tensor | None, groups: int | None = None) -> Tensor:
        if groups is None:
            return self._conv_forward(x, w, b)
        conv: Any = self
        padding = conv.padding
        if conv.padding_mode != "zeros":
            x, padding = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0
        function = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[w.dim()]
        return function(x, w, b, conv.stride, padding, conv.dilation, groups)


class Linear(SlotLayer, nn.Linear):
    """`torch.nn.Linear` with slots.

    >>> import torch
    >>> Linear(4, 2, w="bwn", x="sign")(torch.zeros(1, 4)).shape
    torch.Size([1, 2])
    """

    def op(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.linear(x, w, b)


class Conv1d(SlotConv, nn.Conv1d):
    """`torch.nn.Conv1d` with slots."""


class Conv2d(SlotConv, nn.Conv2d):
    """`torch.nn.Conv2d` with slots.

    >>> Conv2d(16, 16, 3, w="xnor", x="sign")
    Conv2d(16, 16, kernel_size=(3, 3), stride=(1, 1), w=xnor, x=sign)
    """


class Conv3d(SlotConv, nn.Conv3d):
    """`torch.nn.Conv3d` with slots."""


def _ints(padding: object) -> tuple[int, ...]:
    """Transposed convolutions take no 'same'; torch's annotation says they might."""
    assert isinstance(padding, tuple)
    return padding


class ConvTranspose2d(SlotLayer, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with slots. Its weight is [I, O/g, kh, kw]; parts see [O, I/g, kh, kw]."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding = self._output_padding(
            input,
            output_size,
            list(self.stride),
            list(_ints(self.padding)),
            list(self.kernel_size),
            2,
            list(self.dilation),
        )
        return self.evaluate(input, partial(self.op, output_padding=padding))

    def op(self, x: Tensor, w: Tensor, b: Tensor | None, output_padding: list[int] | None = None) -> Tensor:
        extra = list(self.output_padding) if output_padding is None else output_padding
        return F.conv_transpose2d(x, w, b, self.stride, _ints(self.padding), extra, self.groups, self.dilation)

    def to_slot(self, w: Tensor) -> Tensor:
        i, o, kh, kw = w.shape
        g = self.groups
        return w.reshape(g, i // g, o, kh, kw).transpose(1, 2).reshape(g * o, i // g, kh, kw)

    def from_slot(self, w: Tensor) -> Tensor:
        o, i, kh, kw = w.shape
        g = self.groups
        return w.reshape(g, o // g, i, kh, kw).transpose(1, 2).reshape(g * i, o // g, kh, kw)


KINDS: dict[type[nn.Module], type[SlotLayer]] = {
    nn.Linear: Linear,
    nn.Conv1d: Conv1d,
    nn.Conv2d: Conv2d,
    nn.Conv3d: Conv3d,
    nn.ConvTranspose2d: ConvTranspose2d,
}


def is_slot_layer(module: nn.Module) -> TypeGuard[SlotLayer]:
    """True for layers of this file and subclasses of them."""
    return isinstance(module, SlotLayer)


def replace_layer(layer: nn.Module) -> SlotLayer:
    """The slot layer that stands for `layer`: same Parameters, buffers and hooks, empty slots.

    Only exact types: a subclass with a forward of its own would silently lose it.
    """
    cls = KINDS.get(type(layer))
    if cls is None:
        kinds = ", ".join(k.__name__ for k in KINDS)
        raise InputError(f"{type(layer).__name__} cannot be replaced; exact types only: {kinds}", code="layer-kind")
    new = cls.__new__(cls)
    nn.Module.__init__(new)
    kept = dict(layer.__dict__)
    kept["_modules"] = {}
    kept["_compiled_call_impl"] = None  # `layer.compile()` has compiled the call of the old one
    new.__dict__.update(kept)  # the same Parameter objects: optimizers keep working
    for slot in SLOTS:
        new.register_module(slot, None)
    return new

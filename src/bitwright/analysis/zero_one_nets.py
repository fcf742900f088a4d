"""What the analyses of self-pruning nets share: their layers, their weight value, and the layer that names the class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.nn.layers import SlotLayer
from bitwright.parts.zero_one import ZeroOne
from bitwright.transforms.facts import links_of
from bitwright.transforms.forward import evaluating, run_model
from bitwright.transforms.layers import candidates


def zero_one_parts(model: nn.Module) -> list[ZeroOne]:
    """Of weights and of biases, each once."""
    return [m for m in model.modules() if isinstance(m, ZeroOne)]


def zero_one_layers(model: nn.Module) -> dict[str, SlotLayer]:
    """Name -> layer with 0/1 weights, in order of definition.

    >>> import bitwright as bw
    >>> list(zero_one_layers(nn.Sequential(bw.nn.Linear(4, 2, w="zero_one", bias=False), nn.BatchNorm1d(2))))
    ['0']
    """
    found = ((n, m) for n, m in model.named_modules() if isinstance(m, SlotLayer))
    return {n: m for n, m in found if is_zero_one(m)}


def is_zero_one(layer: SlotLayer) -> bool:
    """Whether it has a 0/1 part for its weights, alone or with a mask."""
    return any(isinstance(link, ZeroOne) for link in links_of(layer.w))


def need_zero_one(model: nn.Module, who: str) -> None:
    if not zero_one_layers(model):
        raise InputError(
            f'{who}: the model has no layer with 0/1 weights; give its layers w = "zero_one"', code="zero-one-none"
        )


@contextmanager
def weight_value_kept(model: nn.Module) -> Iterator[Callable[[float], None]]:
    """Gives a function that sets `on` of all parts; afterwards each has its own again, and its recipe says so."""
    parts = zero_one_parts(model)
    saved = [(part, part.on, dict(part.__dict__["spec"]) if "spec" in part.__dict__ else None) for part in parts]

    def put(value: float) -> None:
        for part in parts:
            part.on = value

    try:
        yield put
    finally:
        for part, on, spec in saved:
            part.on = on
            if spec is not None:
                part.__dict__["spec"] = spec


class Head:
    """The layer whose outputs are the classes' pre-activations, and which way the rest of the net orders them.

    layer, name   the compute layer that ran last
    sign          [classes]: +1 where what follows it rises with the pre-activation, -1 where it falls (an inverter); None
                  where outputs and classes are not one to one
    hidden        layers that ran after the first one: what they read are hidden activations
    """

    def __init__(self, layer: nn.Module, name: str, sign: Tensor | None, hidden: list[nn.Module]) -> None:
        self.layer, self.name, self.sign, self.hidden = layer, name, sign, hidden

    @property
    def ranking(self) -> str:
        """ "largest", "smallest" or "mixed" pre-activation names the class; "" where none does."""
        if self.sign is None:
            return ""
        return "largest" if bool((self.sign > 0).all()) else "smallest" if bool((self.sign < 0).all()) else "mixed"


def find_head(model: nn.Module, x: Any, who: str) -> Head:
    """By running it: the order of definition may hold layers that are never called."""
    ran: dict[int, str] = {}
    last: list[Tensor] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            ran.pop(id(module), None)  # the last call counts
            ran[id(module)] = name
            last[:] = [output] if isinstance(output, Tensor) else []

        return hook

    found = {id(c.module): c for c in candidates(model)}
    handles = [c.module.register_forward_hook(note(c.name)) for c in found.values()]
    try:
        with evaluating(model):
            out = run_model(model, x)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(out, Tensor) or out.dim() != 2:
        given = f"[{', '.join(map(str, out.shape))}]" if isinstance(out, Tensor) else type(out).__name__
        raise InputError(
            f"{who}: the model gives {given}; possible: [images, classes]", code="sweep-output", given=given
        )
    order = [found[key] for key in ran]
    hidden = [c.module for c in order[1:]]
    sign = None
    if last and last[0].shape == out.shape:
        sign = _signs(model, x, order[-1].module, last[0])
    return Head(order[-1].module, order[-1].name, sign, hidden)


def _signs(model: nn.Module, x: Any, layer: nn.Module, seen: Tensor) -> Tensor | None:
    """Sign of d output_c / d pre-activation_c: at 0.5, where no tanh is flat, then at the mean of what was seen (behind a
    norm, 0.5 may be out of range). Image c of the batch asks for class c, so one backward pass answers for all."""
    classes = seen.shape[1]
    signs = seen.new_zeros(classes)
    for probe in (torch.full_like(signs, 0.5), seen.mean(0)):
        asked = probe.expand(classes, classes).clone().requires_grad_()
        handle = layer.register_forward_hook(_answer(asked))
        try:
            with evaluating(model), torch.enable_grad():
                out = run_model(model, _repeated(x, classes))
                if not isinstance(out, Tensor) or out.shape != asked.shape or not out.requires_grad:
                    return None
                (slope,) = torch.autograd.grad(out.diagonal().sum(), asked, allow_unused=True)
        finally:
            handle.remove()
        if slope is None:
            return None
        signs = torch.where(signs == 0, slope.diagonal().sign(), signs)
    usual = 1.0 if float(signs.sum()) >= 0 else -1.0
    return torch.where(signs == 0, usual, signs)


def _answer(value: Tensor) -> Callable[..., Tensor]:
    """A hook that puts this value in the place of a layer's output."""

    def hook(module: nn.Module, args: Any, output: Any) -> Tensor:
        return value

    return hook


def _repeated(x: Any, times: int) -> Any:
    """The first sample, repeated."""
    if isinstance(x, Tensor):
        return x[:1].expand(times, *x.shape[1:]).clone()
    if isinstance(x, dict):
        return {key: _repeated(value, times) for key, value in x.items()}
    return x

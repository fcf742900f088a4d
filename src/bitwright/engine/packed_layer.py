"""One packed layer in the place of a slot layer, inside whatever module calls it."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from bitwright.engine.graph import Graph, Node
from bitwright.engine.packed import PackedModel, laid_out
from bitwright.engine.packing import HOOKS
from bitwright.engine.rules import LAYERS
from bitwright.errors import InputError


class PackedLayer(nn.Module):
    """Input quantizer, bits, kernel, scale and bias of a trained layer; `PackedLinear`, `PackedConv1d`, `PackedConv2d`.

    Still an `nn.Linear`, `nn.Conv1d` or `nn.Conv2d` to `isinstance`, with the attributes of the trained layer (`stride`,
    `out_channels`, ...) and its hooks. `weight` and `bias` have shape, type and device of the trained ones and hold NaN:
    the trained values are not kept, and what is computed from them must not look right.

    Takes what the trained layer takes, of any size and type; computes in float32 and gives the input's floating type back.
    Evaluation only, without gradients, in `train()` too. Stays on the CPU; `half()` and the like change what `weight.dtype`
    says and no packed number.
    """

    packed: PackedModel
    rank: int
    norm: str
    trained_dtype: torch.dtype
    last: bool  # whether the trained weight lay in channels_last memory: the output then does
    _sizes: tuple[int, ...]
    _has_bias: bool

    @classmethod
    def build(
        cls, layer: nn.Module, graph: Graph, norm: str = "", backend: str = "auto", threads: int | None = None
    ) -> PackedLayer:
        """The layer that computes `graph` (one layer, its input part, perhaps its norm) in the place of `layer`.

        norm   name of the BatchNorm whose numbers went into the scale
        """
        kind = next(k for k in KINDS if isinstance(layer, k))
        new = cast(Any, KINDS[kind].__new__(KINDS[kind]))
        nn.Module.__init__(new)
        for key, value in vars(layer).items():
            if not key.startswith("_") and key != "training" and not isinstance(value, (Tensor, nn.Module)):
                new.__dict__[key] = value
        for key in HOOKS:
            new.__dict__[key] = layer.__dict__[key].copy()
        weight = cast(Tensor, layer.weight)
        new.norm, new.rank = norm, 2 if kind is nn.Linear else weight.dim()
        new._sizes, new._has_bias = tuple(weight.shape), layer.bias is not None
        new.trained_dtype, new.last = weight.dtype, _last(weight)
        new.packed = PackedModel(graph, backend, threads)
        return new.eval()

    @property
    def node(self) -> Node:
        """The layer's own node in its graph."""
        return next(n for n in self.packed.graph.nodes if n.op in LAYERS)

    def environment(self, x: Tensor) -> dict[str, Tensor]:
        """The input as the kernels take it: features in rows [N, C], images with their batch axis.

        Errors: `InputError` for an input that the trained layer would not take.
        """
        linear, features = self.rank == 2, self._sizes[1] * int(getattr(self, "groups", 1))
        axis = -1 if linear else 1 - self.rank
        wrong = x.dim() < 1 if linear else x.dim() not in (self.rank - 1, self.rank)
        takes = f"{features} features on the last axis" if linear else f"{features} channels on axis {axis}"
        if linear and self.norm and x.dim() > 2:
            wrong, takes = True, f"[N, {features}], with its BatchNorm {self.norm} inside"
        if wrong or x.shape[axis] != features:
            text = f"packed {type(self).__name__}: input is {list(x.shape)}, it takes {takes}"
            raise InputError(text, code="input-shape", given=str(list(x.shape)), possible=takes)
        x = x.reshape(-1, features) if linear else x if x.dim() == self.rank else x[None]
        return {self.packed.inputs[0].name: laid_out(x)}

    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:
        y = self.packed.run(self.environment(input))
        y = y.to(input.dtype if input.is_floating_point() else self.trained_dtype)
        if self.rank == 2:
            return y.reshape(*input.shape[:-1], y.shape[-1])
        y = y.contiguous(memory_format=torch.channels_last) if self.last or _last(input) else y.contiguous()
        return y if input.dim() == self.rank else y[0]

    def _without_values(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full((), float("nan"), dtype=self.trained_dtype).expand(shape)

    @property
    def weight(self) -> Tensor:
        return self._without_values(self._sizes)

    @property
    def bias(self) -> Tensor | None:
        return self._without_values(self._sizes[:1]) if self._has_bias else None

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLayer:
        probe = fn(torch.empty(0, dtype=self.trained_dtype))
        if probe.device.type != "cpu":
            raise InputError(f"packed layers run on the CPU, not on {str(probe.device)!r}", code="device")
        self.trained_dtype = probe.dtype
        return self

    def train(self, mode: bool = True) -> PackedLayer:
        """Stays in evaluation: there is nothing to train."""
        return super().train(False)

    def extra_repr(self) -> str:
        node = self.node
        kind = "bits" if node.op.startswith("coded") else "bits on disk, float run"
        sizes = "x".join(str(s) for s in self._sizes)
        return f"{sizes}, {kind}" + (f", norm={self.norm}" if self.norm else "")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _last(t: Tensor) -> bool:
    """Whether memory is channels_last and not also in plain order."""
    return t.dim() == 4 and not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)


class PackedLinear(PackedLayer, nn.Linear):  # type: ignore[misc]
    """A packed `Linear` layer; see `PackedLayer`."""


class PackedConv1d(PackedLayer, nn.Conv1d):  # type: ignore[misc]
    """A packed `Conv1d` layer; see `PackedLayer`."""


class PackedConv2d(PackedLayer, nn.Conv2d):  # type: ignore[misc]
    """A packed `Conv2d` layer; see `PackedLayer`."""


KINDS: dict[type[nn.Module], type[PackedLayer]] = {
    nn.Linear: PackedLinear,
    nn.Conv1d: PackedConv1d,
    nn.Conv2d: PackedConv2d,
}


def packed_layers(model: nn.Module) -> dict[str, PackedLayer]:
    """The packed layers of a module, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, PackedLayer)}

"""Channel gating: a part of the input channels decides which outputs need the others."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.errors import BitwrightWarning, InputError
from bitwright.fn.kernels import takes
from bitwright.fn.shares import base_mask, fitting, shuffled
from bitwright.parts.gate_call import as_call
from bitwright.parts.gate_norm import DualNorm
from bitwright.parts.options import check_compat, check_word
from bitwright.parts.registry import part
from bitwright.parts.scale import width_of
from bitwright.parts.split_gate import SplitGate, spent_of
from bitwright.types import Site, Spent


@part("channel_gate", "gate")
class ChannelGate(SplitGate):
    """Each output is first summed over 1/splits of the input channels; only where that is large are the others added.

    value     base + on rest, on = 1 where norm(base) > threshold_o; base: the sum over the output's base channels (and
              the bias), rest: over the others
    gradient  on: slope s (1 - s), s = sigmoid(slope (norm(base) - threshold)), 0 where off with sparse_backprop; base and
              rest: their own, rest only where on
    shape     that of the layer; threshold [O]
    options   splits: 1/splits of the channels are base. group: outputs in `splits` groups, each with its own base channels,
              so that every channel is base for some (False: the first channels for all). init, target: where thresholds
              start and are pulled to, by weight times the sum of squares; in standard deviations of the base with
              unit="normalized", in its own units with "raw". shuffle: the groups' channels are mixed first.
              output_bn: "dual" takes over the BatchNorm behind the layer and keeps one for partial and one for full sums
    edges     leftover channels go to the last group; groups=g of the layer are split each inside; fewer channels per group
              than splits: the largest divisor of splits that fits; 1 (depthwise, one channel): a plain layer, with a warning
    source    Hua et al. 2019, arXiv 1805.12549; its public code, cornell-zhang/dnn-gating
    differs   the code masks a frozen full-size copy of the weight, computes the full sum beside the base, and compares a
              rounded sigmoid; no shipped number uses two norms or the shuffle. compat="seed" changes nothing: with equal
              shares the two decide alike, in evaluation by the running statistics. The test is one-sided, as in the
              code; one for sums that no ReLU follows (two-sided, or undecided) is not offered; `bw.plan` notes such layers

    >>> import bitwright as bw
    >>> layer = bw.nn.Conv2d(8, 8, 3, padding=1, gate={"part": "channel_gate", "splits": 4})
    >>> layer(torch.randn(2, 8, 5, 5)).shape, layer.gate.threshold.shape
    (torch.Size([2, 8, 5, 5]), torch.Size([8]))
    """

    splits: int
    transposed: bool
    grouped: bool
    base: Tensor
    order: Tensor | None

    def __init__(
        self,
        splits: int = 4,
        group: bool = True,
        init: float = 0.0,
        target: float = 1.0,
        weight: float = 1e-4,
        slope: float = 2.0,
        unit: str = "normalized",
        sparse_backprop: bool = True,
        shuffle: bool = False,
        output_bn: str = "shared",
        compat: str | None = None,
    ) -> None:
        super().__init__(
            "channel_gate", init=init, target=target, weight=weight, slope=slope, unit=unit,
            sparse_backprop=sparse_backprop,
        )  # fmt: skip
        if not isinstance(splits, int) or splits < 2:
            raise InputError(f"part channel_gate: splits={splits!r}; a whole number from 2", code="option")
        self.wanted, self.group, self.shuffle = splits, group, shuffle
        self.owns_norm = check_word("channel_gate", "output_bn", output_bn, ("shared", "dual")) == "dual"
        check_compat("channel_gate", compat)
        self.output_norm: DualNorm | None = None

    @classmethod
    def for_layer(cls, layer: nn.Module, **options: Any) -> ChannelGate:
        new = cls(**options)
        new.fit("channel_gate", layer)
        groups = int(getattr(layer, "groups", 1))
        inputs = width_of(layer) or 0
        new.transposed = bool(getattr(layer, "transposed", False))
        if new.transposed and groups > 1:
            raise InputError(
                f"part channel_gate: a transposed convolution with groups={groups} has no split here; groups=1 has",
                code="gate-layer",
                given=f"groups={groups}",
                possible="groups=1",
            )
        fan, outs = inputs // groups, new.outputs // groups
        new.splits = fitting(new.wanted, min(fan, outs) if new.group else fan)
        new.one_sided = new.splits > 1
        if new.splits == 1:
            new.threshold.requires_grad_(False)  # no decision: a parameter without gradient would stop DDP
            warnings.warn(
                f"channel_gate: {fan} input and {outs} output channels a group leave nothing to split: a plain layer",
                BitwrightWarning,
                stacklevel=2,
            )
        new.register_buffer("base", base_mask(fan, outs, groups, new.splits, new.group), persistent=False)
        mixed = new.shuffle and new.splits > 1
        new.register_buffer("order", shuffled(inputs, new.splits) if mixed else None, persistent=False)
        # equal shares: the base is a convolution in groups, at 1/splits of the cost; not so for Linear
        even = groups == 1 and inputs % new.splits == 0 and new.outputs % new.splits == 0
        new.grouped = new.group and even and not new.transposed and not new.last
        new.to(new.threshold.device)
        return new

    def take_norm(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        """output_bn="dual": both norms begin as copies of the one behind the layer."""
        self.output_norm = DualNorm(norm, self.last).train(norm.training)

    def succeed(self, old: SplitGate) -> None:
        super().succeed(old)
        if self.owns_norm and isinstance(old, ChannelGate):
            self.output_norm = old.output_norm

    def norm_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = {key: value for key, value in state.items() if value.dim()}
        return {f"output_norm.{kind}.{key}": value for kind in ("on", "off") for key, value in kept.items()}

    def split(self, op: Callable[..., Tensor], x: Tensor, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
        """(base, rest): their sum is the full result."""
        base = self.base
        if self.transposed:
            base = base.transpose(0, 1)
        base = base.reshape(*base.shape, *[1] * (w.dim() - 2)).to(w.dtype)
        if self.grouped:
            q, c = self.outputs // self.splits, x.shape[1] // self.splits
            own = torch.cat([w[j * q : (j + 1) * q, j * c : (j + 1) * c] for j in range(self.splits)])
            return op(x, own, b, groups=self.splits), op(x, w * (1 - base), None)
        return op(x, w * base, b), op(x, w * (1 - base), None)

    def partial_sums(self, op: Callable[..., Tensor], x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """Of two equal shares: the sums over either half of the inputs, for all outputs, as `halves` takes them apart. One
        convolution in two groups, with the work of the layer itself; the bias belongs to the base."""
        half = self.outputs // 2
        both = torch.cat(w.roll(half, 0).chunk(2, 1))
        return op(x, both, None if b is None else F.pad(b, (half, half)), groups=2)

    def forward(self, op: Callable[..., Tensor], x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        op = as_call(op)
        x = x if self.order is None else self._mixed(x)
        if self.splits == 1:
            y = op(x, w, b)
            return y if self.output_norm is None else self.output_norm(y, torch.ones_like(y))
        if self.training and self.grouped and self.splits == 2 and takes(x):  # plain torch would copy the sums apart
            sums = self.partial_sums(op, x, w, b), None, None
        else:
            code = None if self.training else op.code
            if self.order is not None and code is not None:
                code = self._mixed(code[0]), code[1]
            sums = self.sums(op, lambda: x, w, b, code)
        y, on = self.joined(*sums, x, self.output_norm is not None)
        return y if self.output_norm is None else self.output_norm(y, on)

    def _mixed(self, x: Tensor) -> Tensor:
        return x[..., self.order] if self.last else x[:, self.order]

    def penalty(self) -> Tensor:
        if self.splits == 1 or self.governed:
            return self.threshold.new_zeros(())
        return self.weight * (self.threshold - self.target).square().sum()

    def spent(self, site: Site, fires: Tensor, active: Tensor | None) -> Spent:
        present = site.active(active, len(fires)).to(fires.device)
        if self.order is not None and active is not None:
            present = present.flatten(1)[:, self.order].reshape(present.shape)
        mask = self.base.double().reshape(site.groups, -1, site.fan)
        full = present.sum(2, keepdim=True)  # [N, groups, 1]
        base = torch.einsum("ngi,goi->ngo", present, mask)
        on = fires.double().reshape(len(fires), site.groups, site.outputs // site.groups)
        macs = site.taps * (site.positions * base.sum((1, 2)) + site.share((on * (full - base)).sum((1, 2))))
        decided = site.places * site.outputs if self.splits > 1 else 0
        return spent_of(macs, macs * site.w_bits * site.x_bits, None, decided)

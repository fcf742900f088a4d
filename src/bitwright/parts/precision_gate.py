"""Precision gating: the high bits of the inputs decide which outputs need the low bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn.fast import split_code
from bitwright.fn.ste import ste
from bitwright.parts.bits import check_bits
from bitwright.parts.gate_call import as_call
from bitwright.parts.moments import moment
from bitwright.parts.options import check_compat, check_word
from bitwright.parts.registry import part
from bitwright.parts.sign_magnitude import SignMagnitude
from bitwright.parts.split_gate import SplitGate, spent_of
from bitwright.parts.traits import title_of, traits_of
from bitwright.types import Site, Spent


@part("precision_gate", "gate")
class PrecisionGate(SplitGate):
    """Each output is first computed from the `top` high bits of the inputs; only where that is large, from all bits.

    value     O_h + on O_l, on = 1 where O_h > threshold_o; O_h = op(T, w) + b with T the code of the inputs cut to its
              top bits, O_l = op(q - T, w) with q the whole code
    gradient  on: slope s (1 - s), s = sigmoid(slope (O_h - threshold)), 0 where off with sparse_backprop; to the inputs
              through O_h alone, because cutting and rounding have the same slope; to w through both
    shape     that of the layer; threshold [O]
    options   bits, top: code and high bits, 1 <= top < bits. The code is that of the layer's x part, whose bits must be
              the same; where it has none (empty, or a clipping without a grid) the gate quantizes like sign_magnitude,
              with scale="static": the largest magnitude of calibration, then a mean that follows those of training batches;
              "batch_max": of the batch itself, in evaluation too. init, target: where thresholds start and are
              pulled to, by weight times the norm ("norm") of the difference or its square ("sq"); unit: "raw" outputs, or
              "normalized": one target then means the same share in every layer
    source    Zhang et al. 2020, arXiv 2002.07136; its public code, cornell-zhang/dnn-gating
    differs   the code quantizes by the maximum of the batch in evaluation too, decays thresholds, and refuses a bias.
              compat="seed": scale="batch_max" unless told otherwise. unit="raw" is the default because the code's targets
              are in it; for a net of your own "normalized" is the better choice. The test is one-sided, as in the
              code; one for sums that no ReLU follows is not offered (`bw.plan` notes such layers)

    >>> import bitwright as bw
    >>> layer = bw.nn.Conv2d(4, 8, 3, x={"part": "pact", "bits": 4}, gate={"part": "precision_gate", "bits": 4, "top": 2})
    >>> layer(torch.rand(2, 4, 5, 5)).shape
    torch.Size([2, 8, 3, 3])
    """

    bits_range = "2-8"
    quantizer: SignMagnitude | None

    def __init__(
        self,
        bits: int = 4,
        top: int = 2,
        init: float = 0.0,
        target: float = 0.0,
        weight: float = 1e-3,
        slope: float = 5.0,
        unit: str = "raw",
        sparse_backprop: bool = True,
        scale: str | None = None,
        penalty: str = "norm",
        compat: str | None = None,
    ) -> None:
        super().__init__(
            "precision_gate", init=init, target=target, weight=weight, slope=slope, unit=unit,
            sparse_backprop=sparse_backprop,
        )  # fmt: skip
        self.code_bits, self.top = check_bits("precision_gate", bits), top
        if not 2 <= bits <= 8:
            raise InputError(f"part precision_gate: bits={bits}; 2 to 8, to have high and low ones", code="option")
        if not isinstance(top, int) or not 1 <= top < bits:
            raise InputError(f"part precision_gate: top={top!r} of bits={bits}; 1 to {bits - 1}", code="option")
        self.seed = check_compat("precision_gate", compat)
        scale = scale or ("batch_max" if self.seed else "static")
        self.scale = check_word("precision_gate", "scale", scale, ("static", "batch_max"))
        self.reads_batch = self.scale == "batch_max"
        self.form = check_word("precision_gate", "penalty", penalty, ("norm", "sq"))
        self.quantizer = None

    @classmethod
    def for_layer(cls, layer: nn.Module, **options: Any) -> PrecisionGate:
        new = cls(**options)
        new.fit("precision_gate", layer)
        from bitwright.parts.chain import Chain

        reads = getattr(layer, "x", None)
        if isinstance(reads, Chain):
            if moment(reads.quantizer, "whole") and reads.code_at + 1 < len(reads.links):
                raise InputError(
                    f"part precision_gate: it splits the code of the x part, and in {reads.part_name} something comes "
                    "behind the code; put it in front",
                    code="gate-layer",
                    given=reads.part_name,
                    possible="the code last",
                )
            reads = reads.quantizer
        has_code = moment(reads, "whole") is not None
        theirs = traits_of(reads).bits
        if has_code and theirs != new.code_bits:
            raise InputError(
                f"part precision_gate: bits={new.code_bits}, but the x part {title_of(reads)} has "
                f"{theirs}; the gate splits that code, so give both the same",
                code="gate-bits",
                given=str(new.code_bits),
                possible=str(theirs),
            )
        if not has_code:
            kept = "max" if new.scale == "static" else "batch_max"
            new.quantizer = SignMagnitude(new.code_bits, kept, "seed" if new.seed else None, slot="x")
            new.quantizer.to(new.threshold.device)
        return new

    def succeed(self, old: SplitGate) -> None:
        super().succeed(old)
        before = old.quantizer if isinstance(old, PrecisionGate) else None
        if self.quantizer is not None and before is not None and self.quantizer.kept and before.kept:
            self.quantizer.high, self.quantizer.seen = (
                before.high,
                before.seen,
            )  # the range does not depend on the number of bits

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        if self.quantizer is not None:
            self.quantizer.observe(x)

    @property
    def one(self) -> float:
        """The smallest whole number of the high bits."""
        return float(2 ** (self.code_bits - self.top))

    def cut(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """(high bits, low bits) of whole numbers."""
        high = (numbers / self.one).trunc() * self.one  # exact, and keeps the sign: magnitudes are cut
        return high, numbers - high

    def split(
        self, op: Callable[..., Tensor], x: tuple[Tensor, Tensor], w: Tensor, b: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x: (high bits, low bits)."""
        return op(x[0], w, b), op(x[1], w, None)

    def forward(self, op: Callable[..., Tensor], x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        op = as_call(op)
        if self.quantizer is not None:
            op = replace(op, whole=self.quantizer.whole, seen=x.detach())
            x = self.quantizer(x)
        if self.training:
            code = op.code if self.reads_batch else None
            unit = code[1] if code else op.unit
            if (made := split_code(x, unit, self.code_bits, self.one)) is not None:
                return self.joined(*self.split(op, made, w, b), None, x)[0]
        code = op.code
        assert code is not None
        numbers, unit = code
        high, low = (part.to(w.dtype) for part in self.cut(numbers.to(unit.dtype)))

        def parts() -> tuple[Tensor, Tensor]:
            return ste(x, (high * unit).to(x.dtype)), (low * unit).to(x.dtype)

        return self.joined(*self.sums(op, parts, w, b, ((high, low), unit)), x)[0]

    def penalty(self) -> Tensor:
        if self.governed:
            return self.threshold.new_zeros(())
        gap = self.threshold - self.target
        if self.form == "sq":
            return self.weight * gap.square().sum()
        return self.weight * torch.linalg.vector_norm(gap)

    def spent(self, site: Site, fires: Tensor, active: Tensor | None) -> Spent:
        fan = site.active(active, len(fires)).to(fires.device).sum(2, keepdim=True)  # [N, groups, 1]
        on = fires.double().reshape(len(fires), site.groups, site.outputs // site.groups)
        macs = site.taps * site.positions * (fan * on.shape[2]).sum((1, 2))
        low = site.taps * site.w_bits * site.share((fan * on).sum((1, 2)))
        bops = self.top * site.w_bits * macs + (self.code_bits - self.top) * low
        return spent_of(macs, bops, None, site.places * site.outputs)

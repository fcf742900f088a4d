"""Learned step size quantization."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bitwright.errors import InputError
from bitwright.fn import fast
from bitwright.fn.coded import uint_code
from bitwright.fn.plain import step_size
from bitwright.parts.bits import check_bits
from bitwright.parts.registry import part
from bitwright.parts.scale import kept_only, weight_of, wide, width_of
from bitwright.types import Coded


@part("lsq", "w", "x")
class Lsq(nn.Module):
    """b-bit grid with a learned step: value = step * integer.

    value     s round(clip(t / s, -Q, P)): signed Q = 2^(b-1), P = 2^(b-1) - 1; unsigned Q = 0, P = 2^b - 1
    gradient  dt = g where -Q <= t / s <= P;   ds = c sum g r, r = -Q below, P above, round(t / s) - t / s inside,
              c = 1 / sqrt(N P), N = weights that share a step, or features of one sample that share a step
    shape     w [O, ...]; x [N, C, ...], or [..., C] before a Linear layer; s a scalar, or one per row of w or channel of x
    options   signed: True for w, False for x where not given
    moments   observe: s = 2 mean|t| / sqrt(P), for inputs averaged over the batches; `bw.calibrate` calls it. Weight steps
              start there by themselves; input steps stay 1 until calibrated
    source    Esser et al. 2020, arXiv 1902.08153, section 2
    differs   N counts one sample, not the batch (else the step's learning rate would follow the batch size), and per channel
              only its own values; a step that crosses 0 keeps its size, so the grid never flips

    >>> Lsq(bits=2)(torch.tensor([[0.4, 1.3, -2.6, 9.0]])).tolist()
    [[0.0, 1.0, -2.0, 1.0]]
    """

    step: nn.Parameter
    seen: Tensor
    bits_range = "1-8"

    def __init__(
        self, bits: int = 4, signed: bool | None = None, per_channel: bool = False, *, slot: str = "w"
    ) -> None:
        super().__init__()
        self.bits = self.planes = self.storage_bits = check_bits("lsq", bits)
        self.signed = (slot == "w") if signed is None else signed
        if self.signed and bits == 1:
            raise InputError("part lsq: bits=1 signed has no positive level; use bwn or sign", code="bits", given="1")
        if per_channel:
            raise InputError("part lsq: per_channel=True needs a layer to read its channels from", code="option")
        self.begins_at_zero = not self.signed  # a ReLU in front changes nothing
        self.floor = -(2 ** (bits - 1)) if self.signed else 0
        self.top = self.floor + 2**bits - 1
        self.slot, self.per_channel, self.last = slot, False, False
        self.step = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # calibration batches seen so far

    @classmethod
    def for_layer(
        cls, layer: nn.Module, bits: int = 4, signed: bool | None = None, per_channel: bool = False, *, slot: str = "w"
    ) -> Lsq:
        new = cls(bits, signed, slot=slot)
        weight = weight_of(layer)
        new.per_channel, new.last = per_channel, slot == "x" and isinstance(layer, nn.Linear)
        if weight is not None:
            width = width_of(layer)
            count = weight.shape[0] if slot == "w" else width
            # half types would lose the step's small moves
            kept = torch.float64 if weight.dtype == torch.float64 else torch.float32
            shape = (count,) if per_channel and count else ()
            new.step = nn.Parameter(torch.ones(shape, dtype=kept, device=weight.device))
            new.to(weight.device)
            if slot == "w" and weight.device.type != "meta":
                new.observe(weight)
        return new

    # -- shapes ---------------------------------------------------------------------------------------------------
    def _axis(self, t: Tensor) -> int:
        return 0 if self.slot == "w" else t.dim() - 1 if self.last or t.dim() < 2 else 1

    def _spread(self, per_channel: Tensor, t: Tensor) -> Tensor:
        """[C] -> broadcasts over t; a scalar stays one."""
        if not self.per_channel:
            return per_channel
        shape = [1] * t.dim()
        shape[self._axis(t)] = -1
        return per_channel.reshape(shape)

    def _rate(self, t: Tensor) -> float:
        """c of the docstring, from shapes alone."""
        count = math.prod(t.shape) if self.slot == "w" else math.prod(t.shape[1:])
        if self.per_channel:
            count //= max(1, t.shape[self._axis(t)])
        return 1 / math.sqrt(max(1, count) * self.top)

    # -- the step -------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def observe(self, t: Tensor) -> None:
        """Sets the step from weights, or averages it over batches of inputs. A tensor of zeros changes nothing."""
        if not t.numel():
            return
        size = wide(t).abs()
        mean = size.movedim(self._axis(t), 0).flatten(1).mean(1) if self.per_channel else size.mean()
        found = (2 * mean / math.sqrt(self.top)).to(self.step.dtype)
        fresh = (self.seen == 0) | (self.slot == "w")
        mixed = torch.where(fresh, found, self.step + (found - self.step) / (self.seen + 1))
        self.step.copy_(torch.where(found > 0, mixed, self.step))
        self.seen.add_(1)

    # -- the grid -------------------------------------------------------------------------------------------------
    def _code(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(t / s, its integer, s), all without a graph."""
        size = self._spread(step_size(wide(self.step)), t)
        place = wide(t.detach()) / size
        return place, place.clamp(float(self.floor), float(self.top)).round(), size

    def forward(self, t: Tensor, keep: Tensor | None = None) -> Tensor:
        return fast.lsq(kept_only(t, keep), wide(self.step), self.floor, self.top, self._axis(t), self._rate(t))

    def encode(self, t: Tensor, keep: Tensor | None = None) -> Coded:
        _, code, size = self._code(kept_only(t, keep))
        code = torch.nan_to_num(code, nan=self.floor) - self.floor
        return uint_code(code, self.bits, size, self.floor * size)

    def whole(self, t: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _, code, size = self._code(kept_only(t, keep))
        return code.to(t.dtype), size

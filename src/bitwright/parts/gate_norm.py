"""Norms inside gates: over whatever axis holds the channels, in float32, and one that tells two kinds of outputs apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as collective
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.parts.scale import wide


def autocast_off(t: Tensor) -> Any:
    """A region where decisions are made in full precision."""
    return torch.autocast(t.device.type, enabled=False)


def channels_first(t: Tensor, last: bool) -> Tensor:
    """[N, C, positions] of an output whose channels are its axis 1, or its last one (Linear)."""
    if last:
        return t.unsqueeze(1).flatten(1, -2).transpose(1, 2)
    return t.unsqueeze(-1).flatten(2)


class FullPrecision(nn.Module):
    """A module whose own tensors stay float32 in a half-precision net: a step of 0.004 would move a decision."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FullPrecision:
        def full(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved.float() if moved.dtype in (torch.float16, torch.bfloat16) else moved

        return super()._apply(full, recurse)


class FreeNorm(FullPrecision, nn.modules.batchnorm._BatchNorm):
    """BatchNorm without gain and shift, for outputs of every kind of layer; statistics stay in float32.

    One value per channel has no variance: such a batch is normalized by the running statistics.
    of_batch   True: evaluation takes the statistics of its batch, as a public code does
    """

    def __init__(self, channels: int, last: bool = False, eps: float = 1e-5, momentum: float = 0.1) -> None:
        nn.modules.batchnorm._BatchNorm.__init__(self, channels, eps=eps, momentum=momentum, affine=False)
        self.last, self.of_batch = last, False

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """gain, shift: those of somebody else, [C]; a bfloat16 input then stays one, as in a BatchNorm of its own."""
        x = input if gain is not None and input.dtype == torch.bfloat16 else wide(input)
        flat = x.flatten(0, -2) if self.last else x
        several = flat.numel() > flat.shape[1]
        with autocast_off(x):
            if several and (self.training or self.of_batch):
                out = self._by_batch(flat, gain, shift)
            else:
                out = F.batch_norm(flat, self.running_mean, self.running_var, gain, shift, eps=self.eps)
        return out.reshape(x.shape)

    def _by_batch(self, flat: Tensor, gain: Tensor | None, shift: Tensor | None) -> Tensor:
        if not self.training:
            return F.batch_norm(flat, None, None, gain, shift, training=True, eps=self.eps)
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if momentum is None else momentum
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(flat, mean, var, gain, shift, True, momentum or 0.0, self.eps)


class DualNorm(nn.Module):
    """Two affine norms: `off` for outputs that stayed partial sums, `on` for full ones, each with its own statistics.

    A channel with fewer than two values of a kind in a batch uses that kind's running statistics. With sync the sums
    are taken over all processes.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.sync = isinstance(norm, nn.SyncBatchNorm)
        self.on, self.off = (_Kind(norm) for _ in range(2))

    def forward(self, y: Tensor, on: Tensor) -> Tensor:
        """y [N, C, ...] (or [..., C]), on 1 where the full sum was computed."""
        with autocast_off(y):
            rows, chosen = channels_first(wide(y), self.last), channels_first(on.detach() > 0, self.last)
            full = self.on(rows, chosen, self.training, self.sync)
            part = self.off(rows, ~chosen, self.training, self.sync)
            out = torch.where(chosen, full, part)
        out = out.transpose(1, 2) if self.last else out
        return out.reshape(y.shape).to(y.dtype)


class _Kind(FullPrecision):
    """One of the two: statistics of chosen values only."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, 0.1 if norm.momentum is None else norm.momentum
        ones, zeros = torch.ones(norm.num_features), torch.zeros(norm.num_features)
        like = norm.running_mean if norm.running_mean is not None else zeros
        pick = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones} | {
            key: value.detach() for key, value in norm.state_dict().items() if value.dim()
        }
        pick = {key: value.clone().to(like.device, wide(like).dtype) for key, value in pick.items()}
        self.weight, self.bias = nn.Parameter(pick["weight"]), nn.Parameter(pick["bias"])
        self.register_buffer("running_mean", pick["running_mean"])
        self.register_buffer("running_var", pick["running_var"])

    def forward(self, rows: Tensor, chosen: Tensor, training: bool, sync: bool) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if training:
            share = chosen.to(rows.dtype)
            count, total = _summed(torch.stack([share.sum((0, 2)), (rows * share).sum((0, 2))]), sync)
            enough, n = count >= 2, count.clamp_min(1)
            own = total / n
            # around the mean: a difference of two large sums of squares would leave nothing of a small variance
            spread = _summed(((rows - own[:, None]).square() * share).sum((0, 2)), sync) / n
            with torch.no_grad():
                unbiased = spread * (n / (n - 1).clamp_min(1))
                for kept, value in ((self.running_mean, own), (self.running_var, unbiased)):
                    kept.copy_(torch.where(enough, kept + self.momentum * (value - kept), kept))
            mean, var = torch.where(enough, own, mean), torch.where(enough, spread, var)
        rate = self.weight / torch.sqrt(var + self.eps)
        return rows * rate[:, None] + (self.bias - mean * rate)[:, None]


def _summed(sums: Tensor, sync: bool) -> Tensor:
    """Over all processes, with its gradient."""
    return collective.all_reduce(sums) if sync and dist.is_initialized() and dist.get_world_size() > 1 else sums

"""Norms inside gates: over whatever axis holds the channels, in float32, and one that normalizes two kinds of outputs separately."""

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


def scope(channels: int, like: nn.Module | None = None) -> nn.Module:
    """Which processes share the statistics of a gate's norm: a process group (SyncBatchNorm), or this process alone.

    A child without state or use of its own, so that `nn.SyncBatchNorm.convert_sync_batchnorm` finds and replaces it.
    """
    own = nn.BatchNorm1d(channels, affine=False, track_running_stats=False)
    if not isinstance(like, nn.SyncBatchNorm):
        return own
    return nn.SyncBatchNorm.convert_sync_batchnorm(own, like.process_group)


class FreeNorm(FullPrecision, nn.modules.batchnorm._NormBase):
    """BatchNorm without gain and shift, for outputs of every kind of layer; statistics stay in float32.

    One value per channel has no variance: such a batch is normalized by the running statistics.
    scope   a SyncBatchNorm: statistics of training are those of all its processes
    """

    # no _BatchNorm: convert_sync_batchnorm would replace it by a norm that takes no gain and shift from outside
    scope: nn.Module

    def __init__(self, channels: int, last: bool = False, eps: float = 1e-5, momentum: float = 0.1) -> None:
        nn.modules.batchnorm._NormBase.__init__(self, channels, eps=eps, momentum=momentum, affine=False)
        self.last, self.scope = last, scope(channels)

    def shares(self) -> bool:
        """Whether statistics of training are taken over several processes."""
        return _group(self.scope) is not None

    def follow(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        """Takes eps, momentum and processes from another norm."""
        self.eps, self.momentum = norm.eps, norm.momentum
        self.scope = scope(self.num_features, norm).train(self.training)

    def learn(self, count: int, mean: Tensor, var: Tensor) -> None:
        """Moves the running statistics by those of a batch of `count` values a channel."""
        assert self.running_mean is not None and self.running_var is not None
        momentum = self._counted()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), momentum)

    def forward(self, input: Tensor, gain: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """gain, shift: from outside, [C]; with a gain, bfloat16 in gives bfloat16 out, as in a plain BatchNorm."""
        x = input if gain is not None and input.dtype == torch.bfloat16 else wide(input)
        flat = x.flatten(0, -2) if self.last else x
        with autocast_off(x):
            if self.training and (group := _group(self.scope)) is not None:
                out = self._by_all(flat, gain, shift, group)
            elif self.training and flat.numel() > flat.shape[1]:
                out = self._by_batch(flat, gain, shift)
            elif gain is None and shift is None:
                out = self._by_running(flat)
            else:
                out = F.batch_norm(flat, self.running_mean, self.running_var, gain, shift, eps=self.eps)
        return out.reshape(x.shape)

    def _by_running(self, flat: Tensor) -> Tensor:
        """Rounds after each operation, because a gate decides by this; some machines fuse the steps of a batch norm."""
        assert self.running_mean is not None and self.running_var is not None
        shape = (-1, *[1] * (flat.dim() - 2))
        spread = torch.sqrt(self.running_var + self.eps)
        return (flat - self.running_mean.reshape(shape)) / spread.reshape(shape)

    def _counted(self) -> float:
        """One batch more; by how much it moves the running statistics."""
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if momentum is None else momentum
        return momentum or 0.0

    def _by_batch(self, flat: Tensor, gain: Tensor | None, shift: Tensor | None) -> Tensor:
        momentum = self._counted()
        return F.batch_norm(flat, self.running_mean, self.running_var, gain, shift, True, momentum, self.eps)

    def _by_all(self, flat: Tensor, gain: Tensor | None, shift: Tensor | None, group: Any) -> Tensor:
        """A process whose own batch is empty takes part too: the others wait for its sums."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        rows = channels_first(wide(flat), last=False)
        count, mean, var = _moments(rows, None, group)
        with torch.no_grad():
            self.num_batches_tracked.add_(count[0] >= 2)
        rate = 1 / self.num_batches_tracked.clamp_min(1) if self.momentum is None else self.momentum
        mean, var = _learned(self.running_mean, self.running_var, count, mean, var, rate)
        out = (rows - mean[:, None]) / torch.sqrt(var + self.eps)[:, None]
        out = out if gain is None else out * gain[:, None]
        out = out if shift is None else out + shift[:, None]
        return out.reshape(flat.shape).to(flat.dtype)


class DualNorm(nn.Module):
    """Two affine norms: `off` for outputs that stayed partial sums, `on` for full ones, each with its own statistics.

    A channel with fewer than two values of a kind in a batch uses that kind's running statistics.
    scope   a SyncBatchNorm: the sums of training are taken over all its processes
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, last: bool = False) -> None:
        super().__init__()
        self.last, self.scope = last, scope(norm.num_features, norm)
        self.on, self.off = (_Kind(norm) for _ in range(2))

    def forward(self, y: Tensor, on: Tensor) -> Tensor:
        """y [N, C, ...] (or [..., C]), on 1 where the full sum was computed."""
        group = _group(self.scope) if self.training else None
        with autocast_off(y):
            rows, chosen = channels_first(wide(y), self.last), channels_first(on.detach() > 0, self.last)
            full = self.on(rows, chosen, self.training, group)
            part = self.off(rows, ~chosen, self.training, group)
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

    def forward(self, rows: Tensor, chosen: Tensor, training: bool, group: Any) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if training:
            found = _moments(rows, chosen.to(rows.dtype), group)
            mean, var = _learned(self.running_mean, self.running_var, *found, self.momentum)
        rate = self.weight / torch.sqrt(var + self.eps)
        return rows * rate[:, None] + (self.bias - mean * rate)[:, None]


def _moments(rows: Tensor, share: Tensor | None, group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(count, mean, variance) of each channel of rows [N, C, P], of the values whose share is 1, over the processes."""
    kept = rows if share is None else rows * share
    many = rows.new_full((rows.shape[1],), rows.shape[0] * rows.shape[2]) if share is None else share.sum((0, 2))
    count, total = _summed(torch.stack([many, kept.sum((0, 2))]), group)
    n = count.clamp_min(1)
    mean = total / n
    # around the mean: a difference of two large sums of squares would leave nothing of a small variance
    square = (rows - mean[:, None]).square()
    return count, mean, _summed((square if share is None else square * share).sum((0, 2)), group) / n


def _learned(
    running_mean: Tensor, running_var: Tensor, count: Tensor, mean: Tensor, var: Tensor, momentum: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Moves the running statistics; returns (mean, variance) to normalize by: the running ones below two values."""
    enough = count >= 2
    with torch.no_grad():
        unbiased = var * (count / (count - 1).clamp_min(1))
        for kept, value in ((running_mean, mean), (running_var, unbiased)):
            kept.copy_(torch.where(enough, kept + momentum * (value - kept), kept))
    return torch.where(enough, mean, running_mean), torch.where(enough, var, running_var)


def _group(scope: nn.Module) -> Any:
    """The processes whose values are taken together; None: this one alone."""
    if not isinstance(scope, nn.SyncBatchNorm) or not dist.is_initialized():
        return None
    group = dist.group.WORLD if scope.process_group is None else scope.process_group
    return group if dist.get_world_size(group) > 1 else None


def _summed(sums: Tensor, group: Any) -> Tensor:
    """Over all processes, with its gradient."""
    return sums if group is None else collective.all_reduce(sums, group=group)
